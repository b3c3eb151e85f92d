"""bias_gelu: GELU of x plus an optional bias, in one pass over memory."""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from llmjp_ext import _library
from llmjp_ext.ops._support import FLOAT_NAMES, FLOATS, distinct, needs_grad, without_autocast

# What the PyTorch implementation holds in float32 at a time: 64 MiB. Smaller chunks make more
# parallel regions, which cost where other processes want the cores.
_ELEMENTS_OF_CHUNK = 1 << 24

# Of the tanh approximation the derivative is 0 or 1 from here on; aten's has infinity times 0 where
# the square of its argument overflows.
_TANH_BOUND = 100.0


def bias_gelu(x: Tensor, bias: Tensor | None = None, *, approximate: str = "none") -> Tensor:
    """GELU(x + bias), the sum and the function in float32.

    Differentiable once in x and bias.

    Args:
        x: [..., width], float32, float16 or bfloat16. Rows may have any stride as long as the last
            dimension is contiguous; anything else is copied.
        bias: [width] of x's dtype or float32, or None.
        approximate: "none" for x * Φ(x) by erf, "tanh" for the tanh approximation of it.

    Returns:
        [..., width] of x's dtype (under autocast too), contiguous.

    Raises:
        TypeError: for a dtype that is not supported.
        ValueError: for shapes or devices that do not fit, or another approximation.

    Source: Hendrycks, Gimpel, "Gaussian Error Linear Units", arXiv 1606.08415.
    """
    if x.dtype not in FLOATS:
        raise TypeError(f"bias_gelu: x must be {FLOAT_NAMES}, got {x.dtype}.")
    if x.ndim == 0:
        raise ValueError("bias_gelu: x must have at least one dimension, got a scalar.")
    if approximate not in ("none", "tanh"):
        raise ValueError(f"bias_gelu: approximate must be 'none' or 'tanh', got {approximate!r}.")
    if bias is not None:
        _check_bias(x, bias)
    if needs_grad(x, bias):
        return _BiasGelu.apply(  # type: ignore[no-untyped-call]
            *distinct(x, bias, approximate)
        )
    return _library.ops.bias_gelu_fwd(x, bias, approximate)


def _check_bias(x: Tensor, bias: Tensor) -> None:
    if bias.dtype not in (x.dtype, torch.float32):
        raise TypeError(
            f"bias_gelu: bias must be {x.dtype} (as x) or torch.float32, got {bias.dtype}."
        )
    if bias.ndim != 1 or bias.shape[0] != x.shape[-1]:
        raise ValueError(
            f"bias_gelu: bias must have shape [{x.shape[-1]}], the last dimension of x, "
            f"got {list(bias.shape)}."
        )
    if bias.device != x.device:
        raise ValueError(f"bias_gelu: bias must be on x's device {x.device}, got {bias.device}.")


class _BiasGelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor | None, approximate: str) -> Tensor:
        ctx.save_for_backward(x, bias)
        ctx.approximate = approximate
        return _library.ops.bias_gelu_fwd(x, bias, approximate)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, bias = ctx.saved_tensors
        dx, dbias = _library.ops.bias_gelu_bwd(dy, x, bias, ctx.approximate)
        return dx, None if bias is None else dbias, None


def _fake_fwd(x: Tensor, bias: Tensor | None, approximate: str) -> Tensor:
    return x.new_empty(x.shape)


def _fake_bwd(
    dy: Tensor, x: Tensor, bias: Tensor | None, approximate: str
) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty(0) if bias is None else bias.new_empty(bias.shape)


def _chunks(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Views of chunks of rows of all tensors, [..., width]."""
    width = tensors[0].shape[-1]
    rows = max(1, _ELEMENTS_OF_CHUNK // max(1, width))
    flat = [t.reshape(math.prod(t.shape[:-1]), width) for t in tensors]
    yield from zip(*(t.split(rows) for t in flat), strict=True)


@without_autocast
def _torch_fwd(x: Tensor, bias: Tensor | None, approximate: str) -> Tensor:
    if bias is None:  # aten's GELU is in float32 inside
        return torch.nn.functional.gelu(x, approximate=approximate).contiguous()
    y = x.new_empty(x.shape)
    bias32 = bias.float()
    u = None
    for x_rows, y_rows in _chunks(x, y):
        if x.dtype == torch.float32:
            u = y_rows
        elif u is None or u.shape != x_rows.shape:
            u = torch.empty_like(x_rows, dtype=torch.float32)
        torch.add(x_rows, bias32, out=u)
        torch.ops.aten.gelu_(u, approximate=approximate)
        if u is not y_rows:
            y_rows.copy_(u)
    return y


@without_autocast
def _torch_bwd(
    dy: Tensor, x: Tensor, bias: Tensor | None, approximate: str
) -> tuple[Tensor, Tensor]:
    if bias is None:
        bounded = x.clamp(-_TANH_BOUND, _TANH_BOUND) if approximate == "tanh" else x
        dx = torch.ops.aten.gelu_backward(dy.to(x.dtype), bounded, approximate=approximate)
        return dx.contiguous(), x.new_empty(0)
    dx = x.new_empty(x.shape)
    bias32 = bias.float()
    dbias = torch.zeros_like(bias32)
    u = None
    for dy_rows, x_rows, dx_rows in _chunks(dy, x, dx):
        if x.dtype == torch.float32:
            u = dx_rows
        elif u is None or u.shape != x_rows.shape:
            u = torch.empty_like(x_rows, dtype=torch.float32)
        torch.add(x_rows, bias32, out=u)
        if approximate == "tanh":
            u.clamp_(-_TANH_BOUND, _TANH_BOUND)
        torch.ops.aten.gelu_backward(dy_rows.float(), u, approximate=approximate, grad_input=u)
        dbias += u.sum(0)
        if u is not dx_rows:
            dx_rows.copy_(u)
    return dx, dbias.to(bias.dtype)


for _name, _torch, _fake in (
    ("bias_gelu_fwd", _torch_fwd, _fake_fwd),
    ("bias_gelu_bwd", _torch_bwd, _fake_bwd),
):
    _library.register_implementation(_name, _torch)
    torch.library.register_fake(f"{_library.NAMESPACE}::{_name}", _fake)
