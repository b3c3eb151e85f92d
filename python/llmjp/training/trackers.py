"""Where a run's figures go besides metrics.jsonl: TensorBoard, Weights & Biases."""

import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llmjp.errors import UserError
from llmjp.training.settings import TrainSettings


class Trackers:
    """The trackers that the settings name; none costs anything where it is not asked for."""

    def __init__(self, settings: TrainSettings, done: int) -> None:
        """Opens them.

        Args:
            settings: of the run.
            done: steps that were done before; what was told of later ones goes.

        Raises:
            UserError: a tracker's package is not installed, or it refuses the run.
            OSError: the output cannot be written to.
        """
        self._board: Any = None
        self._wandb: Any = None
        output = Path(settings.output)
        if settings.tensorboard:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError:
                raise UserError("--tensorboard needs 'pip install tensorboard'") from None
            self._board = SummaryWriter(str(output / "tensorboard"), purge_step=done + 1)
        if settings.wandb is not None:
            try:
                import wandb
            except ImportError:
                raise UserError("--wandb needs 'pip install wandb'") from None
            try:
                self._wandb = wandb.init(
                    project=settings.wandb, id=_run_id(output), name=output.resolve().name,
                    dir=str(output), resume="allow", config=vars(settings),
                )  # fmt: skip
            except wandb.Error as error:
                reason = (str(error).splitlines() or [type(error).__name__])[0]
                raise UserError(f"--wandb {settings.wandb}: {reason}") from error

    def add(self, entry: dict[str, Any]) -> None:
        """Tells the numbers of a metrics line."""
        numbers = {
            name: value
            for name, value in _flat(entry)
            if name != "step" and isinstance(value, (int, float)) and not isinstance(value, bool)
        }
        if self._board is not None:
            for name, value in numbers.items():
                self._board.add_scalar(name, value, entry["step"])
            self._board.flush()
        if self._wandb is not None:
            self._wandb.log(numbers, step=entry["step"])

    def close(self) -> None:
        """Ends what was opened."""
        if self._board is not None:
            self._board.close()
        if self._wandb is not None:
            self._wandb.finish()


def _run_id(output: Path) -> str:
    """The name under which Weights & Biases knows the run in this folder, however often continued.

    Not the folder's: two of them may be called alike.
    """
    path = output / "wandb.id"
    if not path.exists():
        path.write_text(uuid.uuid4().hex[:12], encoding="utf-8")
    return path.read_text(encoding="utf-8").strip()


def _flat(entry: dict[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """The entries, those of an entry that is a mapping as ABOVE/NAME."""
    for name, value in entry.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{above}{name}/")
        else:
            yield above + name, value
