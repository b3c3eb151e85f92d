"""sample: one id a row, drawn from logits after temperature, top-k, top-p, min-p and penalty.

Order and meaning are those of Transformers' logits processors. Not differentiable.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from llmjp_ext import _library
from llmjp_ext.ops._support import FLOAT_NAMES, FLOATS, draw_random_state, philox, without_autocast

# Most top-p sets are small: this many largest logits are tried before all are sorted.
_LARGEST_FIRST = 1024


def sample(
    logits: Tensor,
    *,
    temperature: float | Tensor = 1.0,
    top_k: int | Tensor = 0,
    top_p: float | Tensor = 1.0,
    min_p: float | Tensor = 0.0,
    repetition_penalty: float | Tensor = 1.0,
    previous: Tensor | None = None,
    valid_vocab: int | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Draws one id from each row of logits.

    In this order: repetition penalty, temperature, top-k, top-p, min-p, draw. NaN counts as -inf.
    Each of the five numbers may be a tensor [rows] instead, whose values are not checked.

    Args:
        logits: [rows, vocab], float32, float16 or bfloat16; computed in float32. The CUDA kernel
            takes at most 2^23 ids, with previous as many as have a bit in shared memory.
        temperature: divides the logits; 0 takes the largest logit (the first of equal ones).
        top_k: keeps the k largest logits and those equal to the k-th; 0 is off.
        top_p: keeps the smallest set of the likeliest ids whose probability reaches top_p, and ids
            as likely as the last of them; 1 is off, and one id is always kept.
        min_p: keeps ids at least min_p times as likely as the likeliest; 0 is off.
        repetition_penalty: divides positive and multiplies negative logits of previous ids; 1 is
            off.
        previous: int64 [rows, length], the ids of the penalty; ids outside the vocabulary, such as
            a padding of -1, are passed over. None means none.
        valid_vocab: ids from here on are padding of the vocabulary and never drawn.
        generator: of logits' device, for one draw of seed and offset; None takes the default one.
            Nothing is drawn for a temperature of 0. Not for compiled graphs.

    Returns:
        int64 [rows]; -1 for a row that has nothing but -inf.

    Raises:
        TypeError: for a dtype that is not supported.
        ValueError: for shapes, devices or numbers that do not fit.

    Source: top-p: Holtzman et al., arXiv 1904.09751; penalty: Keskar et al., arXiv 1909.05858;
    min-p: Nguyen et al., arXiv 2407.01082.
    """
    _check(logits, previous, valid_vocab)
    given = (temperature, top_k, top_p, min_p, repetition_penalty)
    numbers = list(given)
    by_row: list[Tensor | None] = [None] * len(given)
    for i, (name, words, fits, off) in enumerate(_OPTIONS):
        option = given[i]
        if isinstance(option, Tensor):
            _check_by_row(name, option, logits)
            numbers[i], by_row[i] = off, option.float()
        elif not fits(option):
            raise ValueError(f"sample: {name} must be {words}, got {option}.")
    greedy = not isinstance(temperature, Tensor) and temperature == 0
    random_state = None if greedy else draw_random_state(logits.device, generator)
    if logits.requires_grad:
        logits = logits.detach()
    return _library.ops.sample(logits, previous, random_state, *numbers, *by_row, valid_vocab)


def _check(logits: Tensor, previous: Tensor | None, valid_vocab: int | None) -> None:
    if logits.dtype not in FLOATS:
        raise TypeError(f"sample: logits must be {FLOAT_NAMES}, got {logits.dtype}.")
    if logits.ndim != 2 or logits.shape[1] == 0:
        raise ValueError(
            f"sample: logits must be [rows, vocab] with at least one id, got {list(logits.shape)}."
        )
    if previous is not None:
        if previous.dtype != torch.int64:
            raise TypeError(f"sample: previous must be int64 ids, got {previous.dtype}.")
        if previous.ndim != 2 or previous.shape[0] != logits.shape[0]:
            raise ValueError(
                f"sample: previous must have shape [{logits.shape[0]}, length], "
                f"got {list(previous.shape)}."
            )
        if previous.device != logits.device:
            raise ValueError(
                f"sample: previous must be on logits' device {logits.device}, "
                f"got {previous.device}."
            )
    if valid_vocab is not None and not 1 <= valid_vocab <= logits.shape[1]:
        raise ValueError(
            f"sample: valid_vocab must be from 1 to {logits.shape[1]}, the ids of logits, "
            f"got {valid_vocab}."
        )


# Each option's name, what a number must be, whether it is, and the number that switches it off.
_OPTIONS: tuple[tuple[str, str, Callable[[float], bool], float], ...] = (
    ("temperature", "at least 0", lambda value: value >= 0, 1.0),
    ("top_k", "at least 0", lambda value: value >= 0, 0),
    ("top_p", "from 0 to 1", lambda value: 0 <= value <= 1, 1.0),
    ("min_p", "from 0 to 1", lambda value: 0 <= value <= 1, 0.0),
    ("repetition_penalty", "above 0", lambda value: value > 0, 1.0),
)


def _check_by_row(name: str, option: Tensor, logits: Tensor) -> None:
    if option.shape != logits.shape[:1]:
        raise ValueError(
            f"sample: {name} must be a number or have shape [{logits.shape[0]}], one a row, "
            f"got {list(option.shape)}."
        )
    if option.device != logits.device:
        raise ValueError(
            f"sample: {name} must be on logits' device {logits.device}, got {option.device}."
        )


def _fake(logits: Tensor, *_: Any) -> Tensor:
    return logits.new_empty((logits.shape[0],), dtype=torch.int64)


def _penalised(x: Tensor, previous: Tensor, penalty: Tensor) -> Tensor:
    """The repetition penalty, once for each id however often it occurs."""
    rows, classes = x.shape
    known = (previous >= 0) & (previous < classes)
    seen = torch.zeros((rows, classes + 1), dtype=torch.bool, device=x.device)
    seen.scatter_(1, previous.masked_fill(~known, classes), True)
    return torch.where(seen[:, :classes], torch.where(x < 0, x * penalty, x / penalty), x)


def _top_k_threshold(x: Tensor, top_k: Tensor) -> Tensor:
    """The k-th largest of each row, [rows, 1]; -inf where top-k is off."""
    top_k = top_k.long().clamp(max=x.shape[1])
    most = max(1, int(top_k.max()))
    values = torch.topk(x, most).values
    kth = values.gather(1, (top_k - 1).clamp(min=0))
    return kth.masked_fill(top_k == 0, -torch.inf)


def _top_p_threshold(x: Tensor, top_p: Tensor) -> Tensor:
    """The smallest logit of each row's top-p set, [rows, 1]; -inf where top-p is off.

    The largest of each row of x is 0.
    """
    total = torch.exp(x).sum(-1, keepdim=True, dtype=torch.float64)
    for most in (min(_LARGEST_FIRST, x.shape[1]), x.shape[1]):
        values = torch.topk(x, most).values
        p = torch.exp(values).double() / total
        reached = p.cumsum(-1)
        if most == x.shape[1] or bool(((reached[:, -1:] >= top_p) | (top_p >= 1)).all()):
            break
    # An id stays while those before it have not reached top_p.
    count = (reached - p < top_p).sum(-1, keepdim=True).clamp(min=1)
    return values.gather(1, count - 1).masked_fill(top_p >= 1, -torch.inf)


def _draw(x: Tensor, random_state: Tensor) -> Tensor:
    """The first id whose cumulative probability passes a uniform number: Philox at the row.

    The largest of each row of x is 0.
    """
    rows = torch.arange(x.shape[0], device=x.device)
    upper, lower, _, _ = philox(random_state, rows)
    # 53 bits, so that ids of a tiny probability can be drawn at all.
    uniform = ((upper << 21) | (lower >> 11)).double() * 2.0**-53
    cumulative = torch.cumsum(torch.exp(x), -1, dtype=torch.float64)
    total = cumulative[:, -1:]
    ids = torch.searchsorted(cumulative, uniform[:, None] * total, right=True)[:, 0]
    # A product rounded up to the total itself belongs to the last id that has a probability.
    last = (cumulative < total).sum(-1)
    return torch.minimum(ids, last)


@without_autocast
def _torch_sample(
    logits: Tensor,
    previous: Tensor | None,
    random_state: Tensor | None,
    temperature: float,
    top_k: int,
    top_p: float,
    min_p: float,
    repetition_penalty: float,
    row_temperature: Tensor | None,
    row_top_k: Tensor | None,
    row_top_p: Tensor | None,
    row_min_p: Tensor | None,
    row_repetition_penalty: Tensor | None,
    valid_vocab: int | None,
) -> Tensor:
    rows = logits.shape[0]
    if rows == 0:
        return logits.new_empty((0,), dtype=torch.int64)

    def by_rows(number: float, by_row: Tensor | None) -> Tensor:
        if by_row is None:
            return logits.new_full((rows, 1), number, dtype=torch.float32)
        return by_row[:, None]

    x = logits[:, :valid_vocab].float()
    if previous is not None and previous.shape[1] > 0:
        penalty = by_rows(repetition_penalty, row_repetition_penalty)
        if bool((penalty != 1).any()):
            x = _penalised(x, previous, penalty)
    largest, best = x.max(-1, keepdim=True)
    if bool(largest.isnan().any()):  # max passes NaN on
        x = x.masked_fill(x.isnan(), -torch.inf)
        largest, best = x.max(-1, keepdim=True)
    if random_state is not None:
        t, k = by_rows(temperature, row_temperature), by_rows(top_k, row_top_k)
        p, m = by_rows(top_p, row_top_p), by_rows(min_p, row_min_p)
        # Relative to the largest, where neither a small temperature nor exp can overflow.
        unbounded = largest.isinf()
        if bool(unbounded.any()):  # inf - inf is NaN
            x = torch.where(unbounded & (x == largest), 0.0, x - largest)
        else:
            x = x - largest
        if bool((t != 1).any()):
            x = x / t.masked_fill(t == 0, 1.0)
        if bool((k > 0).any()):
            x = x.masked_fill(x < _top_k_threshold(x, k), -torch.inf)
        if bool((p < 1).any()):
            x = x.masked_fill(x < _top_p_threshold(x, p), -torch.inf)
        if bool((m > 0).any()):
            x = x.masked_fill(torch.exp(x) < m, -torch.inf)
        best = torch.where(t == 0, best, _draw(x, random_state)[:, None])
    return best.masked_fill(largest == -torch.inf, -1)[:, 0]


_library.register_implementation("sample", _torch_sample)
torch.library.register_fake(f"{_library.NAMESPACE}::sample", _fake)
