"""swiglu: the gated activation of Llama's feed-forward layers, in one pass over memory."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from llmjp_ext import _library
from llmjp_ext.ops._support import FLOAT_NAMES, FLOATS, distinct, needs_grad, without_autocast


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """gate * sigmoid(gate) * up, computed in float32 and rounded once.

    Differentiable once in both. The two halves of one linear layer's output are given as views,
    `swiglu(*h.chunk(2, dim=-1))`, and not copied.

    Args:
        gate: [..., width], float32, float16 or bfloat16. Rows may have any stride as long as the
            last dimension is contiguous; anything else is copied.
        up: as gate, of its shape, dtype and device.

    Returns:
        [..., width] of gate's dtype (under autocast too), contiguous.

    Raises:
        TypeError: for a dtype that is not supported, or two of them.
        ValueError: for shapes or devices that do not fit.

    Source: Shazeer, "GLU Variants Improve Transformer", arXiv 2002.05202.
    """
    if gate.dtype not in FLOATS:
        raise TypeError(f"swiglu: gate must be {FLOAT_NAMES}, got {gate.dtype}.")
    if up.dtype != gate.dtype:
        raise TypeError(f"swiglu: up must be {gate.dtype} as gate, got {up.dtype}.")
    if gate.ndim == 0:
        raise ValueError("swiglu: gate must have at least one dimension, got a scalar.")
    if up.shape != gate.shape:
        raise ValueError(
            f"swiglu: up must have gate's shape {list(gate.shape)}, got {list(up.shape)}."
        )
    if up.device != gate.device:
        raise ValueError(f"swiglu: up must be on gate's device {gate.device}, got {up.device}.")
    if needs_grad(gate, up):
        return _Swiglu.apply(  # type: ignore[no-untyped-call]
            *distinct(gate, up)
        )
    return _library.ops.swiglu_fwd(gate, up)


class _Swiglu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return _library.ops.swiglu_fwd(gate, up)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor]:
        return _library.ops.swiglu_bwd(dy, *ctx.saved_tensors)


def _fake_fwd(gate: Tensor, up: Tensor) -> Tensor:
    return gate.new_empty(gate.shape)


def _fake_bwd(dy: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    return gate.new_empty(gate.shape), gate.new_empty(gate.shape)


@without_autocast
def _torch_fwd(gate: Tensor, up: Tensor) -> Tensor:
    return (F.silu(gate.float()) * up.float()).to(gate.dtype).contiguous()


@without_autocast
def _torch_bwd(dy: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    wide_dy, wide_gate, wide_up = dy.float(), gate.float(), up.float()
    dgate = torch.ops.aten.silu_backward(wide_dy * wide_up, wide_gate)
    dup = F.silu(wide_gate) * wide_dy
    return dgate.to(gate.dtype).contiguous(), dup.to(gate.dtype).contiguous()


for _name, _torch, _fake in (
    ("swiglu_fwd", _torch_fwd, _fake_fwd),
    ("swiglu_bwd", _torch_bwd, _fake_bwd),
):
    _library.register_implementation(_name, _torch)
    torch.library.register_fake(f"{_library.NAMESPACE}::{_name}", _fake)
