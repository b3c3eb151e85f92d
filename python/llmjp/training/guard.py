"""What a run does about losses that are not numbers and losses that jump: the update is skipped."""

import contextlib
import math
import statistics
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

_WINDOW = 100  # losses that a new one is compared with
_LEAST = 20  # fewer say too little about what is usual


class LossGuard:
    """Judges each step's loss before its update is made.

    What it knows depends on the run's losses alone, and a checkpoint keeps it: a continued run
    skips what an uninterrupted one skips.
    """

    def __init__(self, spike: float, most: int, state: Sequence[Any] = ((), 0)) -> None:
        """Args:
        spike: standard deviations above the mean of the last steps that are too many; 0: none.
        most: updates skipped one after another at which the run should stop.
        state: what state() gave.
        """
        self._spike = spike
        self._most = most
        self._losses: deque[float] = deque(state[0], _WINDOW)
        self._skipped = int(state[1])

    def judge(self, loss: float, norm: float | None = None) -> str | None:
        """Why the update must not be made, or None.

        Args:
            loss: of the step, the same in every process.
            norm: of its gradient, where it is known.
        """
        if not math.isfinite(loss):
            return f"the loss is {loss}"
        if norm is not None and not math.isfinite(norm):
            return f"the gradient's norm is {norm}"
        if self._spike > 0 and len(self._losses) >= _LEAST:
            mean, deviation = statistics.fmean(self._losses), statistics.stdev(self._losses)
            if loss > mean + self._spike * deviation:
                return f"the loss is {loss:.4f}, usual are {mean:.4f} +- {deviation:.4f}"
        return None

    def note(self, loss: float, skipped: bool) -> bool:
        """Remembers a step; returns whether so many were skipped that the run should stop."""
        self._skipped = self._skipped + 1 if skipped else 0
        if not skipped:
            self._losses.append(loss)
        return self._skipped >= self._most

    def state(self) -> list[Any]:
        """What a checkpoint keeps, of JSON's types."""
        return [list(self._losses) if self._spike > 0 else [], self._skipped]


@contextlib.contextmanager
def without_update(engine: Any) -> Iterator[None]:
    """Within it engine.step() clears the gradients but leaves weights and optimizer as they are.

    DeepSpeed has no way to drop the accumulated gradients alone, and each stage keeps them
    elsewhere. So the step is made in full, by an optimizer that does nothing.
    """
    optimizer = getattr(engine.optimizer, "optimizer", engine.optimizer)  # inside ZeRO's, if any
    step = optimizer.step
    optimizer.step = lambda *_, **__: None
    try:
        yield
    finally:
        optimizer.step = step
