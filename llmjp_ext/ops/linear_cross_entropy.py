"""linear_cross_entropy: the loss of hidden @ weight.T without ever holding [tokens, vocab].

Tokens are taken in chunks: a chunk's logits are one matrix product, cross_entropy turns them into
losses and then, in place, into their gradient, and two more products add that to the gradients of
hidden and weight. So a loss that is reduced to one number has its gradients when forward ends, up
to the factor that backward brings; the rows' own losses ("none") are computed again in backward.
"""

import functools
from collections.abc import Iterator
from typing import Any, Literal, overload

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from llmjp_ext import _library
from llmjp_ext.ops._support import (
    FLOAT_NAMES,
    FLOATS,
    autocast_dtype,
    needs_grad,
    without_autocast,
)
from llmjp_ext.ops.cross_entropy import check_loss, reduce_rows

# Bytes of logits at a time. On CUDA it must leave room for the gradient of hidden within 0.5 GB,
# and every chunk reads and writes the whole float32 gradient of weight: few large chunks.
_CHUNK_BYTES = {"cuda": 1 << 28, "cpu": 1 << 26}
# Tokens of a chunk and columns in memory are multiples of these, as matrix products like them.
_TOKENS, _COLUMNS = 128, 64
# Columns of the weight's gradient that the CPU takes at a time, few enough to stay in the cache.
_CPU_COLUMNS = 2048
# Elements that are scaled at a time where float32 copies of them are needed.
_SCALED_ELEMENTS = 1 << 22


@overload
def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None = ...,
    ignore_index: int = ...,
    label_smoothing: float = ...,
    z_loss: float = ...,
    valid_vocab: int | None = ...,
    reduction: str = ...,
    return_z_loss: Literal[False] = ...,
) -> Tensor: ...


@overload
def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None = ...,
    ignore_index: int = ...,
    label_smoothing: float = ...,
    z_loss: float = ...,
    valid_vocab: int | None = ...,
    reduction: str = ...,
    return_z_loss: Literal[True],
) -> tuple[Tensor, Tensor]: ...


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    valid_vocab: int | None = None,
    reduction: str = "mean",
    return_z_loss: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """cross_entropy(hidden @ weight.T + bias, targets, …) in the memory of a few of its rows.

    Differentiable once in hidden, weight and bias; the gradient of one that requires none is not
    computed. The gradient of weight is summed in float32 whatever its dtype, and rounded once.

    Args:
        hidden: [..., width], float32, float16 or bfloat16.
        weight: [vocab, width], of hidden's dtype. Under autocast hidden, weight and bias may have
            different ones, and the products run in autocast's, as those of a linear layer do.
        targets: int64 [...], class ids below valid_vocab, or ignore_index.
        bias: [vocab], of hidden's dtype, or None.
        ignore_index: tokens with this target have loss 0 and gradient 0.
        label_smoothing: share of the probability that is spread over all valid classes, in [0, 1].
        z_loss: weight of the squared log-sum-exp, at least 0.
        valid_vocab: rows of weight from here on are padding: no probability, gradient 0, and they
            are not read. None means all are valid.
        reduction: "mean" over the tokens that are not ignored (NaN where there is none), "sum", or
            "none". "none" keeps hidden and weight for backward and computes the logits again.
        return_z_loss: also return the z-loss part, reduced the same way, for logging; it has no
            gradient of its own.

    Returns:
        The loss, float32: a scalar, or targets' shape for "none"; with return_z_loss (loss, z).

    Raises:
        TypeError: for a dtype that is not supported.
        ValueError: for shapes, devices or numbers that do not fit and, on the CPU, for a target
            that is no valid class. On CUDA such a token's loss is NaN instead.
    """
    dtype = autocast_dtype(hidden.device) or hidden.dtype
    _check(hidden, weight, bias, targets, dtype)
    check_loss(
        "linear_cross_entropy",
        targets,
        hidden.device,
        weight.shape[0],
        label_smoothing,
        z_loss,
        valid_vocab,
        reduction,
    )
    inputs = (hidden, weight, bias, targets)
    options = (dtype, ignore_index, label_smoothing, z_loss, valid_vocab)
    counted = targets != ignore_index
    if needs_grad(hidden, weight, bias):
        wanted = [t is not None and t.requires_grad for t in (hidden, weight, bias)]
        reduced, largest, log_sum = _LinearCrossEntropy.apply(  # type: ignore[no-untyped-call]
            *inputs, counted, options, wanted, reduction
        )
    else:
        loss, largest, log_sum, *_ = torch.ops.llmjp_ext.linear_cross_entropy_fwd(
            *inputs, *options, [False] * 3
        )
        reduced = reduce_rows(loss, counted, reduction)
    if not return_z_loss:
        return reduced
    z = (z_loss * (largest + log_sum).square()).masked_fill(~counted, 0.0)
    return reduced, reduce_rows(z, counted, reduction)


def _check(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, dtype: torch.dtype
) -> None:
    op = "linear_cross_entropy"
    if dtype not in FLOATS:
        raise TypeError(f"{op}: autocast must be to {FLOAT_NAMES}, got {dtype}.")
    autocast = torch.is_autocast_enabled(hidden.device.type)
    for name, t in (("hidden", hidden), ("weight", weight), ("bias", bias)):
        if t is None:
            continue
        if t.dtype not in FLOATS:
            raise TypeError(f"{op}: {name} must be {FLOAT_NAMES}, got {t.dtype}.")
        if t.dtype != hidden.dtype and not autocast:
            raise TypeError(
                f"{op}: {name} must have hidden's dtype {hidden.dtype}, got {t.dtype}; dtypes may "
                "differ under autocast."
            )
        if t.device != hidden.device:
            raise ValueError(
                f"{op}: {name} must be on hidden's device {hidden.device}, got {t.device}."
            )
    if hidden.ndim == 0 or hidden.shape[:-1] != targets.shape:
        raise ValueError(
            f"{op}: hidden must be targets' shape {list(targets.shape)} and a last dimension of "
            f"features, got {list(hidden.shape)}."
        )
    if weight.ndim != 2 or weight.shape[0] == 0 or weight.shape[1] != hidden.shape[-1]:
        raise ValueError(
            f"{op}: weight must be [vocab, {hidden.shape[-1]}] as hidden's last dimension, "
            f"got {list(weight.shape)}."
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(
            f"{op}: bias must have shape [{weight.shape[0]}], the rows of weight, "
            f"got {list(bias.shape)}."
        )


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        counted: Tensor,
        options: tuple[Any, ...],
        wanted: list[bool],
        reduction: str,
    ) -> tuple[Tensor, Tensor, Tensor]:
        inputs = (hidden, weight, bias, targets)
        early = reduction != "none"
        loss, largest, log_sum, *gradients = torch.ops.llmjp_ext.linear_cross_entropy_fwd(
            *inputs, *options, wanted if early else [False] * 3
        )
        ctx.mark_non_differentiable(largest, log_sum)
        ctx.options, ctx.wanted, ctx.early = options, wanted, early
        ctx.dtypes = tuple(None if t is None else t.dtype for t in inputs[:3])
        ctx.compiling = torch.compiler.is_compiling()
        count = counted.sum() if reduction == "mean" else None
        if early and ctx.compiling:
            ctx.save_for_backward(count, *gradients)
        else:
            # weight is kept as the object that its owner passed, so that ZeRO-3, which takes a
            # parameter's memory away after forward, gets it back and has it here again in backward.
            ctx.save_for_backward(*inputs, largest, log_sum)
            ctx.count = count
            ctx.gradients = gradients if early else None
        return reduce_rows(loss, counted, reduction), largest, log_sum

    @staticmethod
    def backward(ctx: Any, dloss: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled() and not ctx.compiling:
            # Under create_graph once_differentiable refuses only where dloss has a gradient; where
            # it has none the results would pass for constants.
            dloss = dloss.detach().requires_grad_()
        return _gradients(ctx, dloss)


@once_differentiable
def _gradients(ctx: Any, dloss: Tensor) -> tuple[Tensor | None, ...]:
    if ctx.early and ctx.compiling:
        count, dhidden, dweight, dweight_rest, dbias = ctx.saved_tensors
    elif ctx.early and ctx.gradients is not None:
        # Handed out once, since they are scaled where they lie.
        dhidden, dweight, dweight_rest, dbias = ctx.gradients
        count, ctx.gradients = ctx.count, None
    else:
        *inputs, largest, log_sum = ctx.saved_tensors
        count = ctx.count
        dhidden, dweight, dweight_rest, dbias = torch.ops.llmjp_ext.linear_cross_entropy_bwd(
            torch.ones_like(log_sum) if ctx.early else dloss,
            *inputs,
            largest,
            log_sum,
            *ctx.options,
            ctx.wanted,
        )
    factor = None
    if ctx.early:
        # Where no token is counted the loss is NaN, and its gradient 0 as in torch.
        factor = dloss if count is None else dloss / count.clamp(min=1)
    finish = _finished if ctx.compiling else _finished_in_place
    results = finish(dhidden, dweight, dweight_rest, dbias, factor, ctx.dtypes)
    needed = zip(results, ctx.wanted, strict=True)
    return *(result if wanted else None for result, wanted in needed), *(None,) * 5


def _finished(
    dhidden: Tensor,
    dweight: Tensor,
    dweight_rest: Tensor,
    dbias: Tensor,
    factor: Tensor | None,
    dtypes: tuple[torch.dtype, ...],
) -> list[Tensor]:
    """The gradients times the factor in their inputs' dtypes; compiled graphs plan the memory."""
    whole = [dhidden, torch.cat((dweight, dweight_rest)), dbias]
    if factor is not None:
        whole = [gradient.float() * factor for gradient in whole]
    return [g.to(dtype or torch.float32) for g, dtype in zip(whole, dtypes, strict=True)]


def _finished_in_place(
    dhidden: Tensor,
    dweight: Tensor,
    dweight_rest: Tensor,
    dbias: Tensor,
    factor: Tensor | None,
    dtypes: tuple[torch.dtype, ...],
) -> list[Tensor]:
    """The same without a second tensor of dhidden's or dweight's size."""
    _, weight_dtype, bias_dtype = dtypes
    if factor is not None:
        for part in dhidden.view(-1).split(_SCALED_ELEMENTS):
            part.copy_(part.float().mul_(factor))
        dweight, dweight_rest, dbias = (t.mul_(factor) for t in (dweight, dweight_rest, dbias))
    if weight_dtype.itemsize < dweight.itemsize:
        dweight = _narrowed(dweight, dweight_rest, weight_dtype)
    return [dhidden, dweight, dbias.to(bias_dtype or torch.float32)]


def _narrowed(first: Tensor, rest: Tensor, dtype: torch.dtype) -> Tensor:
    """The rows of both in a 16-bit dtype, in the memory of `first`.

    `first` holds at least half of the rows, so that all fit into it at half the width. Row i goes
    to where row i / 2 was, behind which nothing is written before it has been read.
    """
    rows, width = first.shape[0] + rest.shape[0], first.shape[1]
    result = first.view(-1).view(dtype)[: rows * width].view(rows, width)
    done = 0
    step = max(1, _SCALED_ELEMENTS // max(1, width))
    for part in (*first.split(step), *rest.split(step)):
        result[done : done + part.shape[0]] = part.to(dtype)
        done += part.shape[0]
    return result


def _rows_in_first(vocab: int, dtype: torch.dtype) -> int:
    """Rows of the first part of dweight: all, or half where _narrowed follows.

    Up to a multiple of 64, so that the second part's columns of the logits are aligned.
    """
    if dtype == torch.float32:
        return vocab
    return torch.sym_min(vocab, (vocab + 2 * _COLUMNS - 1) // (2 * _COLUMNS) * _COLUMNS)


class _Gradients:
    """The sums that chunks of tokens are added to; what is not wanted is empty."""

    def __init__(self, hidden: Tensor, weight: Tensor, wanted: list[bool]) -> None:
        of_hidden, of_weight, of_bias = wanted
        vocab, width = weight.shape
        first = _rows_in_first(vocab, weight.dtype) if of_weight else 0
        rest = vocab - first if of_weight else 0
        self.wanted = wanted
        self.narrow = weight.dtype != torch.float32
        self.dhidden = hidden.new_empty(hidden.shape if of_hidden else 0)
        self.dweight = weight.new_zeros((first, width), dtype=torch.float32)
        self.dweight_rest = weight.new_zeros((rest, width), dtype=torch.float32)
        self.dbias = weight.new_zeros(vocab if of_bias else 0, dtype=torch.float32)

    def add(self, tokens: slice, hidden: Tensor, weight: Tensor, dlogits: Tensor) -> None:
        """Adds a chunk: hidden [tokens, width], weight [classes, width] of the products' dtype."""
        classes = dlogits.shape[1]
        of_hidden, of_weight, of_bias = self.wanted
        if of_hidden:
            dhidden = self.dhidden.view(-1, self.dhidden.shape[-1])[tokens]
            if dhidden.dtype == dlogits.dtype:
                torch.mm(dlogits, weight, out=dhidden)
            else:
                dhidden.copy_(torch.mm(dlogits, weight))
        if of_weight:
            start = self.dweight.shape[0]
            narrow = self.narrow
            _add_product(self.dweight[:classes], dlogits[:, :start], hidden, narrow)
            if classes > start:
                rest = self.dweight_rest[: classes - start]
                _add_product(rest, dlogits[:, start:], hidden, narrow)
        if of_bias:
            self.dbias[:classes] += dlogits.sum(0, dtype=torch.float32)

    def all(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.dhidden, self.dweight, self.dweight_rest, self.dbias


def _add_product(total: Tensor, dlogits: Tensor, hidden: Tensor, narrow: bool) -> None:
    """total += dlogits.T @ hidden, sums over tokens in float32 whatever the dtype of both.

    On the CPU no product of 16-bit numbers is added to float32. With `narrow`, where the result is
    to become 16-bit anyway, a chunk's sum is one product, rounded to 16 bits as it ends, where the
    processor has such products; else the numbers are converted, which is exact.
    """
    if hidden.dtype == total.dtype:
        total.addmm_(dlogits.t(), hidden)
    elif total.is_cuda:
        torch.addmm(total, dlogits.t(), hidden, out_dtype=total.dtype, out=total)
    else:
        fast = narrow and _has_fast_products(hidden.dtype)
        factor = hidden if fast else hidden.float()
        for rows, columns in zip(
            total.split(_CPU_COLUMNS), dlogits.split(_CPU_COLUMNS, dim=1), strict=True
        ):
            if fast:
                rows += torch.mm(columns.t(), factor)
            else:
                rows.addmm_(columns.float().t(), factor)


@functools.cache
def _has_fast_products(dtype: torch.dtype) -> bool:
    """Whether this processor multiplies matrices of a 16-bit dtype faster than float32's."""
    # They sum in float32. Without them torch's own loops are slower than a conversion.
    return dtype == torch.bfloat16 and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _tokens_of_chunk(tokens: int, row_bytes: int, device: torch.device) -> int:
    """Tokens of each chunk: chunks of about one size, none above the bytes allowed."""
    most = max(1, _CHUNK_BYTES["cuda" if device.type == "cuda" else "cpu"] // max(1, row_bytes))
    if most > _TOKENS:
        most -= most % _TOKENS
    chunks = -(-tokens // most)
    each = max(1, -(-tokens // max(1, chunks)))
    return min(most, -(-each // _TOKENS) * _TOKENS)


def _chunks_of_logits(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    dtype: torch.dtype,
    valid_vocab: int | None,
) -> Iterator[tuple[slice, Tensor, Tensor, Tensor]]:
    """Slices of tokens with their hidden states, the valid rows of weight, and their logits.

    All in dtype. The logits may be written over, and are gone when the next chunk is asked for.
    """
    rows = hidden.reshape(-1, hidden.shape[-1])
    weight = weight[:valid_vocab].to(dtype)
    bias = None if bias is None else bias[:valid_vocab].to(dtype)
    tokens, classes = rows.shape[0], weight.shape[0]
    columns = -(-classes // _COLUMNS) * _COLUMNS
    step = _tokens_of_chunk(tokens, columns * dtype.itemsize, hidden.device)
    memory = weight.new_empty((min(step, tokens), columns))
    for start in range(0, tokens, step):
        part = rows[start : start + step].to(dtype)
        logits = memory[: part.shape[0], :classes]
        if bias is None:
            torch.mm(part, weight.t(), out=logits)
        else:
            torch.addmm(bias, part, weight.t(), out=logits)
        yield slice(start, start + part.shape[0]), part, weight, logits


@torch.no_grad()
@without_autocast
def _forward(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    dtype: torch.dtype,
    ignore_index: int,
    label_smoothing: float,
    z_loss: float,
    valid_vocab: int | None,
    wanted: list[bool],
) -> tuple[Tensor, ...]:
    options = (ignore_index, label_smoothing, z_loss, None)
    statistics = [hidden.new_empty(targets.shape, dtype=torch.float32) for _ in range(3)]
    gradients = _Gradients(hidden, weight, wanted)
    one = torch.ones((), device=hidden.device)
    flat_targets = targets.reshape(-1)
    for tokens, part, rows, logits in _chunks_of_logits(hidden, weight, bias, dtype, valid_vocab):
        target = flat_targets[tokens]
        results = _library.ops.cross_entropy_fwd(logits, target, *options)
        for statistic, result in zip(statistics, results, strict=True):
            statistic.view(-1)[tokens] = result
        if any(wanted):
            _, largest, log_sum = results
            _library.ops.cross_entropy_bwd_inplace(
                one.expand_as(target), logits, target, largest, log_sum, *options
            )
            gradients.add(tokens, part, rows, logits)
    return *statistics, *gradients.all()


@torch.no_grad()
@without_autocast
def _backward(
    dloss: Tensor,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    largest: Tensor,
    log_sum: Tensor,
    dtype: torch.dtype,
    ignore_index: int,
    label_smoothing: float,
    z_loss: float,
    valid_vocab: int | None,
    wanted: list[bool],
) -> tuple[Tensor, ...]:
    options = (ignore_index, label_smoothing, z_loss, None)
    gradients = _Gradients(hidden, weight, wanted)
    flat = [t.reshape(-1) for t in (targets, largest, log_sum)]
    rows_dloss = dloss.reshape(-1)
    for tokens, part, rows, logits in _chunks_of_logits(hidden, weight, bias, dtype, valid_vocab):
        of_chunk = (t[tokens] for t in flat)
        _library.ops.cross_entropy_bwd_inplace(rows_dloss[tokens], logits, *of_chunk, *options)
        gradients.add(tokens, part, rows, logits)
    return gradients.all()


def _fake_forward(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, *options: Any
) -> tuple[Tensor, ...]:
    statistics = (hidden.new_empty(targets.shape, dtype=torch.float32) for _ in range(3))
    *_, wanted = options
    return *statistics, *_fake_gradients(hidden, weight, wanted)


def _fake_backward(dloss: Tensor, hidden: Tensor, weight: Tensor, *others: Any) -> Any:
    *_, wanted = others
    return _fake_gradients(hidden, weight, wanted)


def _fake_gradients(hidden: Tensor, weight: Tensor, wanted: list[bool]) -> tuple[Tensor, ...]:
    return _Gradients(hidden, weight, wanted).all()


_INPUTS = "Tensor hidden, Tensor weight, Tensor? bias, Tensor targets"
# dtype is that of the matrix products; wanted says whether hidden, weight and bias get a gradient.
_OPTIONS = (
    "ScalarType dtype, int ignore_index, float label_smoothing, float z_loss, SymInt? valid_vocab, "
    "bool[3] wanted"
)
# dweight is float32 in two parts, one below the other; dbias is float32. See _narrowed.
_GRADIENTS = "Tensor dhidden, Tensor dweight, Tensor dweight_rest, Tensor dbias"
for _name, _signature, _function, _fake in (
    (
        "linear_cross_entropy_fwd",
        f"({_INPUTS}, {_OPTIONS}) -> (Tensor loss, Tensor largest, Tensor log_sum, {_GRADIENTS})",
        _forward,
        _fake_forward,
    ),
    (
        "linear_cross_entropy_bwd",
        f"(Tensor dloss, {_INPUTS}, Tensor largest, Tensor log_sum, {_OPTIONS}) -> ({_GRADIENTS})",
        _backward,
        _fake_backward,
    ),
):
    _library.define_composed(_name, _signature, _function)
    torch.library.register_fake(f"{_library.NAMESPACE}::{_name}", _fake)
