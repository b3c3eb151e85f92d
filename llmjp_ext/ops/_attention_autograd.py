"""What attention and attention_varlen share above their ops: autograd, shapes, checks of k and v.

Both are `<op>_fwd(q, k, v, *tensors, *numbers) -> (out, lse)` and `<op>_bwd(dout, dlse, q, k, v,
out, lse, *tensors, *numbers, deterministic) -> (dq, dk, dv)`, with as many tensors, each a Tensor
or None: masks, lengths and dropout's random state, none of them differentiable.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from llmjp_ext import _library
from llmjp_ext.ops._support import distinct, needs_grad

_TENSORS = 4
LARGEST_HEAD_DIM = 256  # of the CUDA kernels' tiles


def attend(op: str, q: Tensor, k: Tensor, v: Tensor, *options: Any) -> tuple[Tensor, Tensor]:
    """(out, lse) of an op, recorded by autograd where q, k or v asks for it."""
    if needs_grad(q, k, v):
        result: tuple[Tensor, Tensor] = _Attention.apply(  # type: ignore[no-untyped-call]
            op, *distinct(q, k, v, *options)
        )
        return result
    out, lse = getattr(_library.ops, f"{op}_fwd")(q, k, v, *options)
    return out, lse


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, op: str, q: Tensor, k: Tensor, v: Tensor, *options: Any
    ) -> tuple[Tensor, Tensor]:
        out, lse = getattr(_library.ops, f"{op}_fwd")(q, k, v, *options)
        ctx.save_for_backward(q, k, v, out, lse, *options[:_TENSORS])
        ctx.op, ctx.numbers = op, options[_TENSORS:]
        ctx.set_materialize_grads(False)
        return out, lse

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor | None, dlse: Tensor | None) -> tuple[Tensor | None, ...]:
        nothing = (None,) * (_TENSORS + len(ctx.numbers))
        if dout is None and dlse is None:
            return None, None, None, None, *nothing
        q, k, v, out, lse, *tensors = ctx.saved_tensors
        if dout is None:  # only lse was used
            dout = torch.zeros_like(out)
        deterministic = torch.are_deterministic_algorithms_enabled()
        dq, dk, dv = getattr(_library.ops, f"{ctx.op}_bwd")(
            dout, dlse, q, k, v, out, lse, *tensors, *ctx.numbers, deterministic
        )
        return None, dq, dk, dv, *nothing


def fake_fwd(q: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    """out and lse without values; q is [..., tokens, heads, head_dim]."""
    *batch, tokens, heads, _width = q.shape
    return q.new_empty(q.shape), q.new_empty((*batch, heads, tokens), dtype=torch.float32)


def fake_bwd(
    dout: Tensor, dlse: Tensor | None, q: Tensor, k: Tensor, v: Tensor, *_: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of q, k and v without values."""
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def register(op: str, forward: Any, backward: Any) -> None:
    """Makes these the PyTorch implementations of an op's two halves, beside their fakes."""
    for half, implementation, fake in (("fwd", forward, fake_fwd), ("bwd", backward, fake_bwd)):
        _library.register_implementation(f"{op}_{half}", implementation)
        torch.library.register_fake(f"{_library.NAMESPACE}::{op}_{half}", fake)


def check_keys(op: str, q: Tensor, k: Tensor, v: Tensor, leading: tuple[int | str, ...]) -> None:
    """Raises unless k and v fit q; `leading` are their sizes before kv_heads, names for any."""
    heads, width = q.shape[-2:]
    wanted = (*leading, "kv_heads", width)
    for name, tensor in (("k", k), ("v", v)):
        if tensor.dtype != q.dtype:
            raise TypeError(f"{op}: {name} must have q's dtype {q.dtype}, got {tensor.dtype}.")
        if tensor.device != q.device:
            raise ValueError(f"{op}: {name} must be on q's device {q.device}, got {tensor.device}.")
        if tensor.ndim != len(wanted) or any(
            not isinstance(size, str) and tensor.shape[i] != size for i, size in enumerate(wanted)
        ):
            raise ValueError(
                f"{op}: {name} must have shape [{', '.join(map(str, wanted))}] beside q of shape "
                f"{list(q.shape)}, got {list(tensor.shape)}."
            )
    if k.shape != v.shape:
        raise ValueError(
            f"{op}: k and v must have one shape, got {list(k.shape)} and {list(v.shape)}."
        )
    if k.shape[-2] == 0 or heads % k.shape[-2] != 0:
        raise ValueError(
            f"{op}: q's heads must be a multiple of k's, got {heads} and {k.shape[-2]}."
        )
    if q.is_cuda and _library.has_cuda_kernel(f"{op}_fwd") and not 1 <= width <= LARGEST_HEAD_DIM:
        raise ValueError(f"{op}: head_dim must be 1 to {LARGEST_HEAD_DIM} on CUDA, got {width}.")
