"""cross_entropy: the loss of logits over a vocabulary, without a float32 copy of them.

Forward keeps the log-sum-exp of each row; backward computes the probabilities again from it, and
can write the gradient over the logits. The CPU runs native code
(csrc/cross_entropy/cross_entropy_cpu.cpp); the PyTorch implementation here is for CUDA tensors in a
build without kernels.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any, Literal, overload

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from llmjp_ext import _library
from llmjp_ext.ops._support import FLOAT_NAMES, FLOATS, needs_grad, without_autocast

# Logits that the PyTorch implementation holds in float32 at a time, twice: 16 MiB.
_LOGITS_OF_CHUNK = 1 << 21

_REDUCTIONS = ("mean", "sum", "none")


@overload
def cross_entropy(
    logits: Tensor,
    targets: Tensor,
    *,
    ignore_index: int = ...,
    label_smoothing: float = ...,
    z_loss: float = ...,
    valid_vocab: int | None = ...,
    inplace_backward: bool = ...,
    reduction: str = ...,
    return_z_loss: Literal[False] = ...,
) -> Tensor: ...


@overload
def cross_entropy(
    logits: Tensor,
    targets: Tensor,
    *,
    ignore_index: int = ...,
    label_smoothing: float = ...,
    z_loss: float = ...,
    valid_vocab: int | None = ...,
    inplace_backward: bool = ...,
    reduction: str = ...,
    return_z_loss: Literal[True],
) -> tuple[Tensor, Tensor]: ...


def cross_entropy(
    logits: Tensor,
    targets: Tensor,
    *,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    valid_vocab: int | None = None,
    inplace_backward: bool = False,
    reduction: str = "mean",
    return_z_loss: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Cross-entropy of logits and class ids, with an optional z-loss as a part of it.

    A row's loss is lse - (1 - s) * logit[target] - s * mean(logits) + z_loss * lse², with
    lse = log(sum(exp(logits))), s = label_smoothing, all in float32 and over the valid classes.
    Differentiable once in logits.

    Args:
        logits: [..., vocab], float32, float16 or bfloat16.
        targets: int64 [...], class ids below valid_vocab, or ignore_index.
        ignore_index: rows with this target have loss 0 and gradient 0.
        label_smoothing: share of the probability that is spread over all valid classes, in [0, 1].
        z_loss: weight of lse², at least 0; keeps the logits from drifting.
        valid_vocab: ids from here on are padding of the vocabulary: no probability, gradient 0.
            None means all are valid.
        inplace_backward: backward writes the gradient over the logits, which saves as much memory;
            only for logits that nothing else reads, as right behind a linear layer. A second
            backward then raises. Compiled graphs plan their memory themselves and ignore it.
        reduction: "mean" over the rows that are not ignored (NaN where there is none), "sum", or
            "none".
        return_z_loss: also return the z-loss part, reduced the same way, for logging; it has no
            gradient of its own.

    Returns:
        The loss, float32: a scalar, or targets' shape for "none"; with return_z_loss (loss, z).

    Raises:
        TypeError: for a dtype that is not supported.
        ValueError: for shapes, devices or numbers that do not fit and, on the CPU, for a target
            that is no valid class. On CUDA such a row's loss and gradient are NaN instead.

    Source: label smoothing: Szegedy et al., arXiv 1512.00567; z-loss: Chowdhery et al. (PaLM),
    arXiv 2204.02311.
    """
    _check(logits, targets, label_smoothing, z_loss, valid_vocab, reduction)
    arguments = (logits, targets, ignore_index, label_smoothing, z_loss, valid_vocab)
    if needs_grad(logits):
        inplace = inplace_backward and not torch.compiler.is_compiling()
        reduced, largest, log_sum = _CrossEntropy.apply(  # type: ignore[no-untyped-call]
            *arguments, inplace, reduction
        )
    else:
        loss, largest, log_sum = _library.ops.cross_entropy_fwd(*arguments)
        reduced, _ = _reduced(loss, targets, ignore_index, reduction)
    if not return_z_loss:
        return reduced
    counted = targets != ignore_index
    z = (z_loss * (largest + log_sum).square()).masked_fill(~counted, 0.0)
    return reduced, reduce_rows(z, counted, reduction)


def reduce_rows(values: Tensor, counted: Tensor, reduction: str) -> Tensor:
    """The rows' values as "none", "sum" or "mean" over the rows that are counted."""
    if reduction == "none":
        return values
    return values.sum() / counted.sum() if reduction == "mean" else values.sum()


def _reduced(
    loss: Tensor, targets: Tensor, ignore_index: int, reduction: str
) -> tuple[Tensor, Tensor | None]:
    """The rows' losses, 0 where ignored, reduced, and the count that a mean divides by."""
    if reduction == "none":
        return loss, None
    if reduction == "sum":
        return loss.sum(), None
    count = torch.count_nonzero(targets != ignore_index)
    return loss.sum() / count, count


def _check(
    logits: Tensor,
    targets: Tensor,
    label_smoothing: float,
    z_loss: float,
    valid_vocab: int | None,
    reduction: str,
) -> None:
    if logits.dtype not in FLOATS:
        raise TypeError(f"cross_entropy: logits must be {FLOAT_NAMES}, got {logits.dtype}.")
    if logits.ndim == 0 or logits.shape[:-1] != targets.shape:
        raise ValueError(
            f"cross_entropy: logits must be targets' shape {list(targets.shape)} and a last "
            f"dimension of classes, got {list(logits.shape)}."
        )
    check_loss(
        "cross_entropy",
        targets,
        logits.device,
        logits.shape[-1],
        label_smoothing,
        z_loss,
        valid_vocab,
        reduction,
    )


def check_loss(
    op: str,
    targets: Tensor,
    device: torch.device,
    classes: int,
    label_smoothing: float,
    z_loss: float,
    valid_vocab: int | None,
    reduction: str,
) -> None:
    """Checks what linear_cross_entropy takes too; raises TypeError or ValueError in op's name."""
    if targets.dtype != torch.int64:
        raise TypeError(f"{op}: targets must be int64 class ids, got {targets.dtype}.")
    if targets.device != device:
        raise ValueError(f"{op}: targets must be on device {device}, got {targets.device}.")
    if not 0.0 <= label_smoothing <= 1.0:
        raise ValueError(f"{op}: label_smoothing must be in [0, 1], got {label_smoothing}.")
    if not z_loss >= 0.0:
        raise ValueError(f"{op}: z_loss must not be negative, got {z_loss}.")
    if valid_vocab is not None and not 1 <= valid_vocab <= classes:
        raise ValueError(
            f"{op}: valid_vocab must be from 1 to {classes}, the number of classes, "
            f"got {valid_vocab}."
        )
    if reduction not in _REDUCTIONS:
        raise ValueError(f"{op}: reduction must be 'mean', 'sum' or 'none', got {reduction!r}.")


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        targets: Tensor,
        ignore_index: int,
        label_smoothing: float,
        z_loss: float,
        valid_vocab: int | None,
        inplace: bool,
        reduction: str,
    ) -> tuple[Tensor, Tensor, Tensor]:
        options = (ignore_index, label_smoothing, z_loss, valid_vocab)
        loss, largest, log_sum = _library.ops.cross_entropy_fwd(logits, targets, *options)
        # Reduced in here, so that autograd has one node to record and to run instead of three.
        reduced, count = _reduced(loss, targets, ignore_index, reduction)
        ctx.save_for_backward(logits, targets, largest, log_sum, count)
        ctx.options = options
        ctx.inplace = inplace
        ctx.mark_non_differentiable(largest, log_sum)
        ctx.set_materialize_grads(False)  # of the two, which would be tensors of zeros
        return reduced, largest, log_sum

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dloss: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        logits, targets, largest, log_sum, count = ctx.saved_tensors
        if count is not None:
            dloss = dloss / count
        arguments = (dloss.expand_as(log_sum), logits, targets, largest, log_sum, *ctx.options)
        if ctx.inplace:
            _library.ops.cross_entropy_bwd_inplace(*arguments)
            # Kernels write past autograd's sight; a second backward must not read what is gone.
            torch.autograd.graph.increment_version(logits)
            dlogits = logits.detach()
        else:
            dlogits = _library.ops.cross_entropy_bwd(*arguments)
        return dlogits, *(None,) * 7


def _fake_fwd(logits: Tensor, targets: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    loss, largest, log_sum = (
        logits.new_empty(targets.shape, dtype=torch.float32) for _ in range(3)
    )
    return loss, largest, log_sum


def _fake_bwd(dloss: Tensor, logits: Tensor, *_: Any) -> Tensor:
    return logits.new_empty(logits.shape)


def _fake_bwd_inplace(dloss: Tensor, logits: Tensor, *_: Any) -> None:
    return None


def _chunks(rows_first: Tensor, *others: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Views of chunks of rows of all tensors, [..., vocab] like the first or [...]."""
    vocab = rows_first.shape[-1]
    if rows_first.ndim > 2 and not _is_flat(rows_first):
        # Sliced logits, as logits[:, :-1], would be copied whole to become [rows, vocab].
        for parts in zip(rows_first, *others, strict=True):
            yield from _chunks(*parts)
        return
    flat = [
        t.reshape(-1, vocab) if t.ndim == rows_first.ndim else t.reshape(-1)
        for t in (rows_first, *others)
    ]
    rows = max(1, _LOGITS_OF_CHUNK // max(1, vocab))
    yield from zip(*(t.split(rows) for t in flat), strict=True)


class _WorkSpace:
    """Room for two float32 copies of the largest chunk."""

    def __init__(self, logits: Tensor, classes: int) -> None:
        rows = min(math.prod(logits.shape[:-1]), max(1, _LOGITS_OF_CHUNK // logits.shape[-1]))
        self.logits, self.results = (
            logits.new_empty((rows, classes), dtype=torch.float32) for _ in range(2)
        )

    def apply(self, function: Callable[..., Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
        """A chunk's valid logits in float32, and what log_softmax or softmax makes of them."""
        rows = x.shape[0]
        logits = self.logits[:rows].copy_(x[:, : self.logits.shape[1]])
        return logits, function(logits, -1, False, out=self.results[:rows])


def _is_flat(x: Tensor) -> bool:
    """Whether [..., vocab] is a [rows, vocab] in memory."""
    return all(
        x.shape[i] == 1 or x.stride(i) == x.stride(i + 1) * x.shape[i + 1]
        for i in range(x.ndim - 2)
    )


@without_autocast
def _torch_fwd(
    logits: Tensor,
    targets: Tensor,
    ignore_index: int,
    label_smoothing: float,
    z_loss: float,
    valid_vocab: int | None,
) -> tuple[Tensor, Tensor, Tensor]:
    classes = logits.shape[-1] if valid_vocab is None else valid_vocab
    results = _fake_fwd(logits, targets)
    if targets.numel() == 0:
        return results
    work = _WorkSpace(logits, classes)
    for x, target, loss_rows, largest_rows, log_sum_rows in _chunks(logits, targets, *results):
        # One pass; exp and sum apart take twice as long. The largest logit's is -log_sum.
        x, log_p = work.apply(torch.ops.aten._log_softmax.out, x)
        largest, log_sum = x.amax(-1), -log_p.amax(-1)
        ignored = target == ignore_index
        picked = x.gather(1, target.masked_fill(ignored, 0)[:, None])[:, 0] - largest
        # Relative to the largest logit, since lse - logit would cancel where the loss is small.
        value = log_sum - picked
        if label_smoothing > 0:
            mean = x.sub_(largest[:, None]).mean(-1)
            value = value + label_smoothing * (picked - mean)
        if z_loss > 0:
            value = value + z_loss * (largest + log_sum).square()
        loss_rows.copy_(value.masked_fill_(ignored, 0.0))
        largest_rows.copy_(largest)
        log_sum_rows.copy_(log_sum)
    return results


@without_autocast
def _write_gradient(
    dlogits: Tensor,
    dloss: Tensor,
    logits: Tensor,
    targets: Tensor,
    largest: Tensor,
    log_sum: Tensor,
    ignore_index: int,
    label_smoothing: float,
    z_loss: float,
    valid_vocab: int | None,
) -> None:
    """The gradient of logits into dlogits, which may be logits itself."""
    if targets.numel() == 0:
        return
    classes = logits.shape[-1] if valid_vocab is None else valid_vocab
    work = _WorkSpace(logits, classes)
    rows = (logits, dlogits, targets, largest, log_sum, dloss.expand_as(log_sum))
    for x, dx, target, chunk_largest, chunk_log_sum, g in _chunks(*rows):
        ignored = target == ignore_index
        g = g.float().masked_fill(ignored, 0.0)[:, None]
        lse = (chunk_largest + chunk_log_sum)[:, None]
        _, gradient = work.apply(torch.ops.aten._softmax.out, x)
        gradient *= g * (1.0 + 2.0 * z_loss * lse)
        if label_smoothing > 0:
            gradient -= g * (label_smoothing / classes)
        place = target.masked_fill(ignored, 0)[:, None]
        wanted = gradient.gather(1, place) - g * (1.0 - label_smoothing)
        gradient.scatter_(1, place, wanted)
        # Also where logits that nobody looks at are NaN or infinite.
        gradient.masked_fill_(ignored[:, None], 0.0)
        dx[:, :classes] = gradient
        dx[:, classes:] = 0.0


def _torch_bwd(dloss: Tensor, logits: Tensor, *arguments: Any) -> Tensor:
    dlogits = logits.new_empty(logits.shape)
    _write_gradient(dlogits, dloss, logits, *arguments)
    return dlogits


def _torch_bwd_inplace(dloss: Tensor, logits: Tensor, *arguments: Any) -> None:
    _write_gradient(logits, dloss, logits, *arguments)


for _name, _torch, _fake in (
    ("cross_entropy_fwd", _torch_fwd, _fake_fwd),
    ("cross_entropy_bwd", _torch_bwd, _fake_bwd),
    ("cross_entropy_bwd_inplace", _torch_bwd_inplace, _fake_bwd_inplace),
):
    _library.register_implementation(_name, _torch)
    torch.library.register_fake(f"{_library.NAMESPACE}::{_name}", _fake)
