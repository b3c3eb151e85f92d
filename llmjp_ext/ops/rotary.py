"""rotary: position embedding of queries and keys by rotation, in one pass over memory."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from llmjp_ext import _library
from llmjp_ext.ops._support import FLOAT_NAMES, FLOATS, distinct, needs_grad, without_autocast

_MOST_HEAD_DIM = 256


def rotary(
    q: Tensor,
    k: Tensor,
    cos: Tensor,
    sin: Tensor,
    *,
    interleaved: bool = False,
    inplace: bool = False,
) -> tuple[Tensor, Tensor]:
    """Turns the first pairs of each head of q and k by the angles of their tokens.

    Pair i is the elements i and i + pairs (GPT-NeoX, Llama in Transformers), or with `interleaved`
    2i and 2i + 1 (GPT-J, the original Llama). Elements beyond the pairs stay as they are. Computed
    in float32 and rounded once. Differentiable in q and k, not in cos and sin.

    Args:
        q: [batch, tokens, heads, head_dim], float32, float16 or bfloat16, head_dim up to 256. Any
            strides with a contiguous last dimension are read as they are.
        k: as q, with its own number of heads.
        cos: [tokens, pairs], or [batch, tokens, pairs] where batches differ in their positions;
            pairs up to head_dim / 2; of q's dtype or float32. Transformers holds each angle twice:
            give it the first half, `cos[..., : cos.shape[-1] // 2]`.
        sin: as cos.
        interleaved: which elements are a pair.
        inplace: writes the result over q and k, which saves their memory, and returns them.

    Returns:
        q and k turned, contiguous unless in place, of their own dtype (under autocast too).

    Raises:
        TypeError: for a dtype that is not supported.
        ValueError: for shapes or devices that do not fit, or tensors that cannot be overwritten.

    Source: Su et al., "RoFormer", arXiv 2104.09864.
    """
    _check(q, k, cos, sin)
    if not inplace:
        if needs_grad(q, k):
            return _Rotary.apply(  # type: ignore[no-untyped-call]
                *distinct(q, k, cos, sin, interleaved)
            )
        return _library.ops.rotary(q, k, cos, sin, interleaved, False)
    for name, x in (("q", q), ("k", k)):
        _check_writable(name, x)
    if needs_grad(q, k):
        for x in (q, k):
            _RotaryInplace.apply(x, cos, sin, interleaved)  # type: ignore[no-untyped-call]
        return q, k
    _library.ops.rotary_inplace(q, k, cos, sin, interleaved, False)
    return q, k


def _check(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> None:
    if q.dtype not in FLOATS:
        raise TypeError(f"rotary: q must be {FLOAT_NAMES}, got {q.dtype}.")
    if k.dtype != q.dtype:
        raise TypeError(f"rotary: k must be {q.dtype} as q, got {k.dtype}.")
    if cos.dtype not in (q.dtype, torch.float32):
        raise TypeError(f"rotary: cos must be {q.dtype} as q or torch.float32, got {cos.dtype}.")
    if sin.dtype != cos.dtype:
        raise TypeError(f"rotary: sin must be {cos.dtype} as cos, got {sin.dtype}.")
    for name, x in (("q", q), ("k", k)):
        if x.ndim != 4:
            raise ValueError(
                f"rotary: {name} must have shape [batch, tokens, heads, head_dim], "
                f"got {list(x.shape)}."
            )
    batch, tokens, _, head_dim = q.shape
    if head_dim > _MOST_HEAD_DIM:
        raise ValueError(f"rotary: head_dim must be at most {_MOST_HEAD_DIM}, got {head_dim}.")
    if (k.shape[0], k.shape[1], k.shape[3]) != (batch, tokens, head_dim):
        raise ValueError(
            f"rotary: k must have shape [{batch}, {tokens}, heads, {head_dim}] to fit q, "
            f"got {list(k.shape)}."
        )
    if cos.ndim not in (2, 3) or cos.shape[-2] != tokens or cos.shape[:-2] not in ((), (batch,)):
        raise ValueError(
            f"rotary: cos must have shape [{tokens}, pairs] or [{batch}, {tokens}, pairs] to fit "
            f"q, got {list(cos.shape)}."
        )
    if 2 * cos.shape[-1] > head_dim:
        raise ValueError(
            f"rotary: cos must hold at most {head_dim // 2} pairs, half of head_dim, "
            f"got {cos.shape[-1]}."
        )
    if sin.shape != cos.shape:
        raise ValueError(
            f"rotary: sin must have cos' shape {list(cos.shape)}, got {list(sin.shape)}."
        )
    for name, x in (("k", k), ("cos", cos), ("sin", sin)):
        if x.device != q.device:
            raise ValueError(f"rotary: {name} must be on q's device {q.device}, got {x.device}.")


def _check_writable(name: str, x: Tensor) -> None:
    if x.shape[-1] > 1 and x.stride(-1) != 1:
        raise ValueError(
            f"rotary: {name} must have a contiguous last dimension to be written in place, "
            f"got strides {list(x.stride())}."
        )
    if any(size > 1 and step == 0 for size, step in zip(x.shape, x.stride(), strict=True)):
        raise ValueError(f"rotary: {name} is expanded and cannot be written in place.")


class _Rotary(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, interleaved: bool
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(cos, sin)
        ctx.interleaved = interleaved
        return _library.ops.rotary(q, k, cos, sin, interleaved, False)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dq: Tensor, dk: Tensor) -> tuple[Tensor | None, ...]:
        cos, sin = ctx.saved_tensors
        return *_library.ops.rotary(dq, dk, cos, sin, ctx.interleaved, True), None, None, None


class _RotaryInplace(torch.autograd.Function):
    """Of one tensor: autograd lets a function that writes over views have one output only."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
        ctx.save_for_backward(cos, sin)
        ctx.interleaved = interleaved
        ctx.mark_dirty(x)
        _library.ops.rotary_inplace(x, x[:, :, :0], cos, sin, interleaved, False)
        return x

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dx: Tensor) -> tuple[Tensor | None, ...]:
        cos, sin = ctx.saved_tensors
        turned, _ = _library.ops.rotary(dx, dx[:, :, :0], cos, sin, ctx.interleaved, True)
        return turned, None, None, None


def _fake_fwd(
    q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, interleaved: bool, inverse: bool
) -> tuple[Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape)


def _fake_fwd_inplace(
    q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, interleaved: bool, inverse: bool
) -> None:
    return None


@without_autocast
def _write_turned(
    y: Tensor, x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool, inverse: bool
) -> None:
    """x turned into y, which may be x."""
    pairs = cos.shape[-1]
    cos, sin = cos.float().unsqueeze(-2), sin.float().unsqueeze(-2)
    if inverse:
        sin = -sin
    if interleaved:
        first, second = slice(0, 2 * pairs, 2), slice(1, 2 * pairs, 2)
    else:
        first, second = slice(0, pairs), slice(pairs, 2 * pairs)
    x1, x2 = x[..., first].float(), x[..., second].float()
    turned1, turned2 = x1 * cos - x2 * sin, x2 * cos + x1 * sin
    y[..., first] = turned1
    y[..., second] = turned2
    if y is not x:
        y[..., 2 * pairs :] = x[..., 2 * pairs :]


def _torch_fwd(q: Tensor, k: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
    turned = q.new_empty(q.shape), k.new_empty(k.shape)
    for y, x in zip(turned, (q, k), strict=True):
        _write_turned(y, x, *arguments)
    return turned


def _torch_fwd_inplace(q: Tensor, k: Tensor, *arguments: Any) -> None:
    for x in (q, k):
        _write_turned(x, x, *arguments)


for _name, _torch, _fake in (
    ("rotary", _torch_fwd, _fake_fwd),
    ("rotary_inplace", _torch_fwd_inplace, _fake_fwd_inplace),
):
    _library.register_implementation(_name, _torch)
    torch.library.register_fake(f"{_library.NAMESPACE}::{_name}", _fake)
