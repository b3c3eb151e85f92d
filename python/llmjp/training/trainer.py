"""The training loop: what happens in which order, and how it stops."""

import contextlib
import dataclasses
import math
import signal
import time
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from llmjp.checkpoint.huggingface import save_model
from llmjp.config import ModelConfig
from llmjp.data.blend import Course, Validation
from llmjp.data.isolation import document_bounds
from llmjp.data.packed import PackedDataset
from llmjp.model import DocumentBounds
from llmjp.training.checkpoints import Checkpoints
from llmjp.training.engine import Batches, gradient_norm, plain_gradient_norm, whole_weights
from llmjp.training.guard import LossGuard, without_update
from llmjp.training.memory import GIB
from llmjp.training.processes import Processes, SharedError
from llmjp.training.progress import METRICS, Metrics, Progress, memory_in_use, peak_tflops
from llmjp.training.schedule import learning_rate
from llmjp.training.settings import TrainSettings
from llmjp.training.trackers import Trackers

_SECOND_SIGNAL = 2.0  # seconds; launchers pass on a Ctrl-C that the process has had already


class StopSignal:
    """Takes the first signal for a wish to stop after the step, a later one for an order.

    SIGTERM and SIGUSR1 are how schedulers say that time is up: to have saved is a success then.

    Attributes:
        wanted: whether a signal came.
        interrupted: whether it was Ctrl-C.
    """

    def __init__(self) -> None:
        self.wanted = False
        self.interrupted = False
        self._at = 0.0
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "StopSignal":
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            self._previous[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _receive(self, number: int, _frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.wanted and now - self._at > _SECOND_SIGNAL:
            raise KeyboardInterrupt
        if not self.wanted:
            self._at = now
            self.interrupted = number == signal.SIGINT
        self.wanted = True


@dataclasses.dataclass
class Trainer:
    """One run in one process.

    Attributes:
        settings: of the run.
        config: the model's shape.
        engine: the DeepSpeed engine.
        processes: of the run.
        batches: how a global batch is made.
        data: the training samples.
        valid: the validation samples of each source that has some.
        checkpoints: where the run saves.
        record: what a checkpoint's record says besides the step.
        done: optimizer steps done so far.
        samples: training samples taken so far; not `done` global batches where those changed.
        tokenizer: folder of the tokenizer that goes with the model, or None.
        guard: judges each step's loss.
        interrupted: whether Ctrl-C ended the run, rather than a scheduler.
    """

    settings: TrainSettings
    config: ModelConfig
    engine: Any
    processes: Processes
    batches: Batches
    data: Course
    valid: list[Validation]
    checkpoints: Checkpoints
    record: dict[str, Any]
    done: int
    samples: int
    tokenizer: Path | None
    guard: LossGuard
    interrupted: bool = False
    # Squared lengths of isolated documents, added up since the last figures were told.
    _attended: int = dataclasses.field(default=0, init=False)
    _progress: Progress | None = dataclasses.field(default=None, init=False)
    _waited: float = dataclasses.field(default=0.0, init=False)  # seconds, for the last checkpoint

    def run(self) -> bool:
        """Trains to the last step; returns whether it got there, or was asked to stop.

        Raises:
            UserError: updates are skipped without end, or something cannot be written.
        """
        settings = self.settings
        metrics = progress = None
        trackers = self.processes.first_alone(lambda: Trackers(settings, self.done))
        if self.processes.first:
            metrics = Metrics(Path(settings.output) / METRICS, self.done)
            progress = self._progress = Progress(self.done, settings.steps)
        busy, counted = 0.0, 0
        stopped = False
        try:
            with StopSignal() as stop:
                while self.done < settings.steps and not stopped:
                    started = time.perf_counter()
                    last = self.done + 1 == settings.steps
                    logged = self.done == 0 or last or (self.done + 1) % settings.log_interval == 0
                    entry, skipped = self._step(logged)
                    if skipped is not None and progress is not None:
                        progress.say(f"step {self.done}  SKIPPED its update: {skipped}")
                    busy += time.perf_counter() - started
                    counted += 1
                    stopped = self.processes.any(stop.wanted)
                    if stopped:
                        self.interrupted = self.processes.any(stop.interrupted)
                    if entry is not None:
                        tokens = self.batches.size * self.data.seq_length
                        speed = tokens * counted / busy
                        flops = self.config.flops_per_token(self._context(tokens * counted))
                        entry["tokens_per_second"] = speed
                        work = speed * flops / self.processes.world / 1e12
                        entry["teraflops_per_device"] = work
                        peak = settings.peak_tflops or peak_tflops(self.processes.device)
                        entry["mfu"] = None if peak is None else work / peak
                        entry["memory_gib"] = memory_in_use(self.processes.device) / GIB
                        if metrics is not None and progress is not None and trackers is not None:
                            metrics.add(entry)
                            trackers.add(entry)
                            progress.show(entry, busy / counted)
                        busy, counted = 0.0, 0
                    if self.valid and _due(self.done, settings.valid_interval, last):
                        found = self._validate_all()
                        if metrics is not None and progress is not None and trackers is not None:
                            told = {"step": self.done, "tokens": self._tokens(), **found}
                            metrics.add(told)
                            trackers.add(told)
                            progress.say(f"step {self.done}  {_told(found)}")
                    if _due(self.done, settings.save_interval, last or stopped):
                        self._save()
                    elif self.checkpoints.ready(self.processes):
                        self._finish_saving()
                    if _due(self.done, settings.save_hf_every, False):
                        self._export()
                self._finish_saving()
                if self.done == settings.steps:
                    self._export()
        finally:
            if progress is not None:
                progress.close()
            if trackers is not None:
                trackers.close()
        return self.done == settings.steps

    def _step(self, logged: bool) -> tuple[dict[str, Any] | None, str | None]:
        """One optimizer step; its figures if they are wanted, and why its update was skipped."""
        settings = self.settings
        rate = learning_rate(
            self.done,
            highest=settings.lr,
            lowest=settings.min_lr,
            warmup=settings.warmup,
            decay_steps=settings.decay_steps or settings.steps,
        )
        for group in self.engine.optimizer.param_groups:
            group["lr"] = rate
        self._reseed()
        losses = []
        for index in range(self.batches.accumulation):
            place = self.batches.place(index, self.processes.rank, self.processes.world)
            batch = self._batch(self.data, self.samples + place, self.batches.micro)
            part = self.engine(*batch)
            # DeepSpeed divides by the number of accumulated micro-batches. All hold the same number
            # of targets, so that the mean of their means is the mean of all.
            self.engine.backward(part)
            losses.append(part.detach())
            if index + 1 < self.batches.accumulation:
                self.engine.step()  # only counts
        norm = plain_gradient_norm(self.engine)  # before the step clears it
        loss = self.processes.mean(torch.stack(losses).mean())
        skipped = self.guard.judge(loss, norm)
        with without_update(self.engine) if skipped else contextlib.nullcontext():
            self._update()
        if norm is None:
            norm = gradient_norm(self.engine)
        scaled = self.engine.fp16_enabled()
        if skipped is None and not self.engine.was_step_applied():
            scale = f"; the scale is now {self.engine.loss_scale():g}" if scaled else ""
            skipped = f"the gradient is not finite{scale}"
            norm = math.nan
        self.done += 1
        self.samples += self.batches.size
        # Dynamic scaling finds its scale by overflows, and stops by itself where there is none.
        if self.guard.note(loss, skipped is not None and not (scaled and math.isfinite(loss))):
            self._finish_saving()
            last = self.checkpoints.latest()
            kept = f"the last checkpoint is {last}" if last else "no checkpoint was written"
            raise SharedError(
                f"step {self.done}: {skipped}; {settings.max_skipped} updates were skipped one "
                f"after another; {kept}; try a lower lr or a longer warmup"
            )
        if not logged and skipped is None:
            return None, None
        entry: dict[str, Any] = {
            "step": self.done,
            "loss": loss if math.isfinite(loss) else None,
            "lr": rate,
            "grad_norm": norm if norm is not None and math.isfinite(norm) else None,
            "samples": self.samples,
            "tokens": self._tokens(),
        }
        if skipped is not None:
            entry["skipped"] = skipped
        return entry, skipped

    def _tokens(self) -> int:
        return self.samples * self.data.seq_length

    def _context(self, tokens: int) -> float:
        """How long the document of a token is, on average over the last `tokens` of the run.

        Every process must call this where documents are isolated.
        """
        if not self.settings.isolate_documents:
            return self.data.seq_length
        mine = torch.tensor(float(self._attended), device=self.processes.device)
        self._attended = 0
        return self.processes.mean(mine) * self.processes.world / tokens

    def _update(self) -> None:
        """The optimizer's step.

        Raises:
            UserError: fp16's loss scale can fall no further.
        """
        try:
            self.engine.step()
        except Exception as error:
            if "loss scale already at minimum" not in str(error):
                raise
            self._finish_saving()
            raise SharedError(
                f"step {self.done + 1}: fp16's loss scale is at its minimum and the gradient still "
                "overflows; try --dtype bf16, a lower lr or a longer warmup"
            ) from error

    def _reseed(self) -> None:
        """Dropout's randomness of a step comes from its number: there is no state to resume."""
        key = [self.settings.seed, self.done, self.processes.rank]
        torch.manual_seed(int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> 1))

    def _batch(self, data: Course | PackedDataset, first: int, count: int) -> tuple[Any, ...]:
        """What the model takes: inputs, labels, and where documents begin if they are isolated."""
        inputs, labels = data.batch(first, count)
        device = self.processes.device
        batch = (_placed(inputs, device), _placed(labels, device))
        if not self.settings.isolate_documents:
            return batch
        positions, bounds, longest = document_bounds(inputs, self.config.eos_token_id)
        if data is self.data:
            self._attended += int((np.diff(bounds).astype(np.int64) ** 2).sum())
        places = (_placed(positions, device), _placed(bounds, device))
        return (*batch, None, DocumentBounds(*places, longest))

    def _validate_all(self) -> dict[str, Any]:
        """The loss of each source, and that of their blend."""
        losses = {part.name: self._validate(part.data) for part in self.valid}
        loss = sum(part.share * losses[part.name] for part in self.valid)
        return {"valid_loss": loss, **({"valid_losses": losses} if len(losses) > 1 else {})}

    def _validate(self, data: PackedDataset) -> float:
        """Mean loss over the first valid_samples samples, or over all where there are fewer."""
        count = min(self.settings.valid_samples, data.samples_per_epoch)
        micro, world = self.batches.micro, self.processes.world
        losses = []
        self.engine.eval()
        with torch.no_grad():
            for index in range(-(-count // (micro * world))):
                first = self.batches.place(index, self.processes.rank, world)
                mine = min(max(count - first, 0), micro)
                # Whoever has nothing left computes along: ZeRO-3 gathers weights from all.
                batch = self._batch(data, first if mine else 0, max(mine, 1))
                losses.append(self.engine(*batch) * mine)
        self.engine.train()
        return self.processes.mean(torch.stack(losses).sum()) * world / count

    def _save(self) -> None:
        """Begins a checkpoint, and ends it too where nothing is written in the background."""
        self._finish_saving()
        started = time.perf_counter()
        record = {
            "step": self.done,
            "samples": self.samples,
            "guard": self.guard.state(),
            **self.record,
        }
        self.checkpoints.begin(self.engine, record, self.processes)
        self._waited = time.perf_counter() - started
        if not self.settings.saves_in_background:
            self._finish_saving()

    def _finish_saving(self) -> None:
        """Ends the checkpoint that is being written, if there is one."""
        started = time.perf_counter()
        folder = self.checkpoints.finish(self.processes)
        self._waited += time.perf_counter() - started
        if folder is not None and self._progress is not None:
            step = folder.name.removeprefix("step-")
            waited = f"training waited {self._waited:.2f} s"
            self._progress.say(f"step {step}  saved {folder}, {waited}")

    def _export(self) -> None:
        """Writes the model folder OUTPUT/hf."""
        weights = whole_weights(self.engine, self.processes)
        folder = Path(self.settings.output) / "hf"

        def write() -> None:
            assert weights is not None
            save_model(folder, weights, self.config, self.tokenizer)

        self.processes.first_alone(write)


def _placed(array: npt.NDArray[np.integer[Any]], device: torch.device) -> Tensor:
    """An array on the device; the copy to a GPU waits neither for it nor makes anyone wait."""
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def _due(done: int, interval: int, last: bool) -> bool:
    """Whether something that happens every `interval` steps happens now."""
    return last or (interval > 0 and done % interval == 0)


def _told(validation: dict[str, Any]) -> str:
    """Losses of a validation and their perplexities, e to the loss, in a line."""
    losses = {"": validation["valid_loss"], **validation.get("valid_losses", {})}
    parts = (
        f"{name} {loss:.4f} (perplexity {math.exp(min(loss, 700)):,.2f})".strip()
        for name, loss in losses.items()
    )
    return "validation loss " + "  ".join(parts)
