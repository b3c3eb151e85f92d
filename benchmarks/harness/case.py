"""What a benchmark hands to the harness: cases, their candidates, and how results are checked."""

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from llmjp_ext.testing import FORWARD_FACTOR, assert_accurate

# Candidates of this project are called "llmjp_ext" or "llmjp_ext <variant>"; all others are peers.
OURS = "llmjp_ext"


@dataclass(frozen=True)
class Candidate:
    """One way to do a case's work.

    Attributes:
        run: what is timed; without `prepare` it takes no argument, else what `prepare` returned.
        prepare: runs before every call, outside the measured time: a forward pass whose
            backward is measured, or the copy of a tensor that `run` overwrites.
        as_result: makes of what `run` returns what `check` takes, outside the measured time; for
            candidates that return the same things in forms of their own.
        calls: calls in one repetition, whose time is divided by them: for work so short that a
            single call is at the mercy of the machine. All are prepared before the first. CPU only.
        warm: the caches stay as `prepare` left them, instead of being overwritten: for work that
            goes on in a process that has been doing the like. CPU only.
        against: names of other candidates of the case that this one is compared with in pairs:
            their time over this one's, of the same round.
    """

    run: Callable[..., Any]
    prepare: Callable[[], Any] | None = None
    as_result: Callable[[Any], Any] | None = None
    calls: int = 1
    warm: bool = False
    against: tuple[str, ...] = ()

    def arguments(self) -> tuple[Any, ...]:
        """Arguments of one call of `run`."""
        return () if self.prepare is None else (self.prepare(),)


@dataclass
class Case:
    """One row of a benchmark's table: one shape and dtype, and several candidates.

    Attributes:
        name: what is done, such as "forward" or "backward".
        shape: such as "8192 x 2048".
        dtype: such as "bfloat16"; "" where there is none.
        candidates: by name, plain callables or `Candidate`s. Their results go to `check`.
        check: called with one result of each candidate before anything is timed; raises
            AssertionError for a wrong one, which is then reported and not timed. Where a result has
            many items it may return how many are wrong instead: a peer is then timed all the same
            and its row says how many, one of this project is reported and not timed.
        bytes: device memory that the work must move at least: every input read once, every output
            written once. Gives GB/s and the memory bound.
        flops: floating-point operations of the matrix products. Gives TFLOP/s and the compute
            bound.
        input_bytes: size of a job's input, such as UTF-8 text to tokenize. Gives MB/s (10^6).
        absent: peers that this machine cannot run, by name, each with the reason.
        on_cpu: the candidates run on the CPU even where the benchmark was given a GPU, as a
            tokenizer does. Decides the clock; the rows then name the CPU as their device.
        items: texts or calls that the work consists of. Gives microseconds an item.
        facts: more about the case that its rows carry, such as the number of threads.
        budget_seconds: the measured time that a candidate gets. One that would need more for all
            rounds takes part in every second or every fourth. Without it all take part in all.
    """

    name: str
    shape: str
    dtype: str
    candidates: Mapping[str, Candidate | Callable[[], Any]]
    check: Callable[[Any], int | None]
    bytes: int = 0
    flops: int = 0
    input_bytes: int = 0
    absent: Mapping[str, str] = field(default_factory=dict)
    on_cpu: bool = False
    items: int = 0
    facts: Mapping[str, Any] = field(default_factory=dict)
    budget_seconds: float | None = None

    def __post_init__(self) -> None:
        self.candidates = {
            name: candidate if isinstance(candidate, Candidate) else Candidate(candidate)
            for name, candidate in self.candidates.items()
        }
        if not self.candidates:
            raise ValueError(f"the case {self.title!r} has no candidates")

    @property
    def title(self) -> str:
        """Name, shape and dtype in one line."""
        return " ".join(part for part in (self.name, self.shape, self.dtype) if part)


def accuracy_check(
    references: Mapping[str, Tensor],
    plain: Sequence[Tensor],
    factors: Mapping[str, float] | None = None,
) -> Callable[[Any], None]:
    """A Case's `check` by the numerics rule of llmjp_ext.testing.

    Args:
        references: by name and in order, what the candidates return, computed in float64 from the
            same (rounded) inputs.
        plain: the same results of plain PyTorch in the candidates' dtype.
        factors: by name, how many times plain's error is allowed; 2 for those not named.

    Returns:
        A function of a candidate's result, a tensor or a sequence of tensors.
    """
    if len(references) != len(plain):
        raise ValueError(f"{len(references)} references, but {len(plain)} plain results")
    allowed = factors or {}

    def check(result: Any) -> None:
        tensors = [result] if isinstance(result, Tensor) else list(result)
        assert len(tensors) == len(references), (
            f"{len(tensors)} results, not {len(references)} ({', '.join(references)})"
        )
        for (name, reference), tensor, baseline in zip(
            references.items(), tensors, plain, strict=True
        ):
            factor = allowed.get(name, FORWARD_FACTOR)
            assert_accurate(tensor, reference, baseline, factor=factor, what=name)

    return check


def missing(module: str, package: str | None = None) -> str | None:
    """Why a peer cannot run: "<package> is not installed", or None where `module` is there."""
    if importlib.util.find_spec(module) is not None:
        return None
    return f"{package or module} is not installed"
