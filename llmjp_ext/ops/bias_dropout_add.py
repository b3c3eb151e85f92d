"""bias_dropout_add: a linear layer's bias, dropout and the residual addition, in one pass.

The CPU runs native code (csrc/activation/bias_dropout_add_cpu.cpp) with the masks of the CUDA
kernels, and serves the norms' dropout there too. The PyTorch implementation here is for CUDA
tensors in a build without kernels.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from llmjp_ext import _library
from llmjp_ext.ops._support import (
    FLOAT_NAMES,
    FLOATS,
    distinct,
    draw_random_state,
    needs_grad,
    row_dropout,
    without_autocast,
)


def bias_dropout_add(
    x: Tensor, bias: Tensor | None, residual: Tensor, *, dropout_p: float = 0.0
) -> Tensor:
    """dropout(x + bias) + residual, computed in float32 and rounded once.

    Differentiable once in x, bias and residual; backward draws the same mask again, so none is
    stored.

    Args:
        x: [..., width], float32, float16 or bfloat16. Rows may have any stride as long as the last
            dimension is contiguous; anything else is copied.
        bias: [width] of x's dtype or float32, or None.
        residual: as x in shape, of x's dtype or float32. It is the residual stream: the result
            keeps its dtype.
        dropout_p: share of the elements of x + bias that are dropped, the others being scaled by
            1 / (1 - dropout_p). The caller passes 0 outside training.

    Returns:
        [..., width] of residual's dtype (under autocast too), contiguous.

    Raises:
        TypeError: for a dtype that is not supported.
        ValueError: for shapes or devices that do not fit, or a dropout_p outside [0, 1).
    """
    _check(x, bias, residual, dropout_p)
    if bias is not None and bias.dtype != torch.float32 and bias.dtype != residual.dtype:
        bias = bias.float()  # kernels exist for a 16-bit bias only beside rows of the same type
    state = draw_random_state(x.device) if dropout_p > 0 else None
    if needs_grad(x, bias, residual):
        return _BiasDropoutAdd.apply(  # type: ignore[no-untyped-call]
            *distinct(x, bias, residual, state, dropout_p)
        )
    return _library.ops.bias_dropout_add_fwd(x, bias, residual, state, dropout_p)


def _check(x: Tensor, bias: Tensor | None, residual: Tensor, dropout_p: float) -> None:
    if x.dtype not in FLOATS:
        raise TypeError(f"bias_dropout_add: x must be {FLOAT_NAMES}, got {x.dtype}.")
    if x.ndim == 0:
        raise ValueError("bias_dropout_add: x must have at least one dimension, got a scalar.")
    for name, tensor in (("bias", bias), ("residual", residual)):
        if tensor is None:
            continue
        if tensor.dtype not in (x.dtype, torch.float32):
            raise TypeError(
                f"bias_dropout_add: {name} must be {x.dtype} (as x) or torch.float32, "
                f"got {tensor.dtype}."
            )
        shape = x.shape[-1:] if name == "bias" else x.shape
        if tensor.shape != shape:
            raise ValueError(
                f"bias_dropout_add: {name} must have shape {list(shape)} beside this x, "
                f"got {list(tensor.shape)}."
            )
        if tensor.device != x.device:
            raise ValueError(
                f"bias_dropout_add: {name} must be on x's device {x.device}, got {tensor.device}."
            )
    if not 0.0 <= dropout_p < 1.0:
        raise ValueError(
            f"bias_dropout_add: dropout_p must be at least 0 and below 1, got {dropout_p}."
        )


class _BiasDropoutAdd(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        bias: Tensor | None,
        residual: Tensor,
        random_state: Tensor | None,
        dropout_p: float,
    ) -> Tensor:
        ctx.save_for_backward(bias, random_state)
        ctx.dropout_p = dropout_p
        ctx.x_dtype = x.dtype
        return _library.ops.bias_dropout_add_fwd(x, bias, residual, random_state, dropout_p)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dr: Tensor) -> tuple[Tensor | None, ...]:
        bias, random_state = ctx.saved_tensors
        dx, dbias = _library.ops.bias_dropout_add_bwd(
            dr, bias, random_state, ctx.dropout_p, ctx.x_dtype
        )
        if random_state is None and ctx.x_dtype == dr.dtype:
            dx = dr
        return dx, None if bias is None else dbias, dr, None, None


def add_residual(
    x: Tensor, residual: Tensor, random_state: Tensor | None, dropout_p: float
) -> Tensor:
    """r = dropout(x) + residual, of residual's dtype, contiguous: of the norms in PyTorch."""
    if random_state is None:
        return torch.add(x, residual).to(residual.dtype).contiguous()
    r: Tensor = _library.ops.bias_dropout_add_fwd(x, None, residual, random_state, dropout_p)
    return r


def dropped_gradient(
    dr: Tensor, random_state: Tensor | None, dropout_p: float, x_dtype: torch.dtype
) -> Tensor:
    """The gradient of x, of x_dtype, in dropout(x) + residual, dr being the sum's."""
    if random_state is None:
        return dr.to(x_dtype)
    dx: Tensor = _library.ops.bias_dropout_add_bwd(dr, None, random_state, dropout_p, x_dtype)[0]
    return dx


def _fake_fwd(
    x: Tensor,
    bias: Tensor | None,
    residual: Tensor,
    random_state: Tensor | None,
    dropout_p: float,
) -> Tensor:
    return residual.new_empty(x.shape)


def _fake_bwd(
    dr: Tensor,
    bias: Tensor | None,
    random_state: Tensor | None,
    dropout_p: float,
    x_dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    has_dx = random_state is not None or x_dtype != dr.dtype
    dx = dr.new_empty(dr.shape if has_dx else 0, dtype=x_dtype)
    if bias is None:
        return dx, dr.new_empty(0, dtype=torch.float32)
    return dx, bias.new_empty(bias.shape)


def _scale(like: Tensor, random_state: Tensor, dropout_p: float) -> Tensor:
    row = torch.arange(math.prod(like.shape[:-1]), device=like.device)
    return row_dropout(random_state, dropout_p, row, like.shape[-1]).view(like.shape)


@without_autocast
def _torch_fwd(
    x: Tensor,
    bias: Tensor | None,
    residual: Tensor,
    random_state: Tensor | None,
    dropout_p: float,
) -> Tensor:
    wide = x.float() if bias is None else x.float() + bias.float()
    if random_state is not None and x.numel() > 0:
        wide = wide * _scale(x, random_state, dropout_p)
    return (wide + residual).to(residual.dtype).contiguous()


@without_autocast
def _torch_bwd(
    dr: Tensor,
    bias: Tensor | None,
    random_state: Tensor | None,
    dropout_p: float,
    x_dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    wide = dr.float()
    if random_state is not None and dr.numel() > 0:
        wide = wide * _scale(dr, random_state, dropout_p)
    has_dx = random_state is not None or x_dtype != dr.dtype
    dx = wide.to(x_dtype, copy=True).contiguous() if has_dx else dr.new_empty(0)
    if bias is None:
        return dx, dr.new_empty(0, dtype=torch.float32)
    return dx, wide.reshape(-1, dr.shape[-1]).sum(0).to(bias.dtype)


for _name, _torch, _fake in (
    ("bias_dropout_add_fwd", _torch_fwd, _fake_fwd),
    ("bias_dropout_add_bwd", _torch_bwd, _fake_bwd),
):
    _library.register_implementation(_name, _torch)
    torch.library.register_fake(f"{_library.NAMESPACE}::{_name}", _fake)
