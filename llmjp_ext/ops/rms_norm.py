"""rms_norm: RMSNorm over the last dimension, with an optional residual addition before it.

The CUDA kernels and the native code for CPU tensors are those of layer_norm without the mean
(csrc/norm); the PyTorch implementation here is for CUDA tensors in a build without kernels.
"""

import math
from typing import Any, overload

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from llmjp_ext import _library
from llmjp_ext.ops._norm_checks import check_norm, dropout_state
from llmjp_ext.ops._support import distinct, needs_grad, without_autocast
from llmjp_ext.ops.bias_dropout_add import add_residual, dropped_gradient


@overload
def rms_norm(
    x: Tensor,
    weight: Tensor,
    eps: float = ...,
    *,
    residual: None = ...,
    dropout_p: float = ...,
) -> Tensor: ...


@overload
def rms_norm(
    x: Tensor,
    weight: Tensor,
    eps: float = ...,
    *,
    residual: Tensor,
    dropout_p: float = ...,
) -> tuple[Tensor, Tensor]: ...


def rms_norm(
    x: Tensor,
    weight: Tensor,
    eps: float = 1e-6,
    *,
    residual: Tensor | None = None,
    dropout_p: float = 0.0,
) -> Tensor | tuple[Tensor, Tensor]:
    """RMSNorm of x, or of r = dropout(x) + residual.

    y = r / sqrt(mean(r²) + eps) * weight, the mean over the last dimension in float32.
    Differentiable once in every tensor, including through r.

    Args:
        x: [..., width], float32, float16 or bfloat16. Rows may have any stride as long as the last
            dimension is contiguous; anything else is copied.
        weight: [width], of x's dtype or float32.
        eps: added to the mean square; at least 0.
        residual: as x in shape, of x's dtype or float32. It is the residual stream: r keeps its
            dtype, so a float32 stream stays float32 under a bfloat16 x.
        dropout_p: share of x's elements that are dropped before the addition, the others being
            scaled by 1 / (1 - dropout_p); only with a residual. Backward draws the same mask
            again, so none is stored. The caller passes 0 outside training.

    Returns:
        y, [..., width] of x's dtype (under autocast too); with a residual (y, r), r of residual's
        dtype. Contiguous.

    Raises:
        TypeError: for a dtype that is not supported.
        ValueError: for shapes or devices that do not fit, a negative eps, a dropout_p
            outside [0, 1) or without a residual.

    Source: Zhang, Sennrich, "Root Mean Square Layer Normalization", arXiv 1910.07467.
    """
    check_norm("rms_norm", x, weight, None, eps, residual, dropout_p)
    row_dtype = x.dtype if residual is None else residual.dtype
    if weight.dtype != torch.float32 and row_dtype != weight.dtype:
        # Kernels exist for a 16-bit weight only beside rows of the same type.
        weight = weight.float()
    if residual is None:
        if needs_grad(x, weight):
            return _RmsNorm.apply(  # type: ignore[no-untyped-call]
                *distinct(x, weight, eps)
            )
        return _library.ops.rms_norm_fwd(x, weight, eps)[0]
    state = dropout_state(x, dropout_p)
    if needs_grad(x, weight, residual):
        return _AddRmsNorm.apply(  # type: ignore[no-untyped-call]
            *distinct(x, residual, weight, state, eps, dropout_p)
        )
    y, r, _ = _library.ops.add_rms_norm_fwd(x, residual, weight, state, eps, dropout_p)
    return y, r


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        y, rstd = _library.ops.rms_norm_fwd(x, weight, eps)
        ctx.save_for_backward(x, weight, rstd)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        dx, _, dweight = _library.ops.rms_norm_bwd(dy, None, *ctx.saved_tensors, None, 0.0)
        return dx, dweight, None


class _AddRmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        residual: Tensor,
        weight: Tensor,
        random_state: Tensor | None,
        eps: float,
        dropout_p: float,
    ) -> tuple[Tensor, Tensor]:
        y, r, rstd = _library.ops.add_rms_norm_fwd(
            x, residual, weight, random_state, eps, dropout_p
        )
        ctx.save_for_backward(r, weight, rstd, random_state)
        ctx.x_dtype = x.dtype
        ctx.dropout_p = dropout_p
        ctx.set_materialize_grads(False)
        return y, r

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor | None, dr: Tensor | None) -> tuple[Tensor | None, ...]:
        r, weight, rstd, random_state = ctx.saved_tensors
        if dy is None:  # only r was used
            if dr is None:
                return (None,) * 6
            dx = dropped_gradient(dr, random_state, ctx.dropout_p, ctx.x_dtype)
            return dx, dr, None, None, None, None
        dr_sum, dx, dweight = _library.ops.rms_norm_bwd(
            dy, dr, r, weight, rstd, random_state, ctx.dropout_p
        )
        if (
            random_state is None
        ):  # the same gradient reaches x and residual, whose dtypes may differ
            dx = dr_sum.to(ctx.x_dtype)
        return dx, dr_sum, dweight, None, None, None


def _rows(x: Tensor) -> int:
    return math.prod(x.shape[:-1])


def _fake_fwd(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty((_rows(x),), dtype=torch.float32)


def _fake_add_fwd(
    x: Tensor,
    residual: Tensor,
    weight: Tensor,
    random_state: Tensor | None,
    eps: float,
    dropout_p: float,
) -> tuple[Tensor, Tensor, Tensor]:
    y, rstd = _fake_fwd(x, weight, eps)
    return y, residual.new_empty(x.shape), rstd


def _fake_bwd(
    dy: Tensor,
    dr: Tensor | None,
    r: Tensor,
    weight: Tensor,
    rstd: Tensor,
    random_state: Tensor | None,
    dropout_p: float,
) -> tuple[Tensor, Tensor, Tensor]:
    dx = dy.new_empty(0 if random_state is None else r.shape)
    return r.new_empty(r.shape), dx, weight.new_empty(r.shape[-1])


@without_autocast
def _torch_fwd(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    if x.numel() == 0:
        return x.new_empty(x.shape), x.new_zeros((_rows(x),), dtype=torch.float32)
    rows = x.reshape(_rows(x), x.shape[-1]).float()
    rstd = torch.rsqrt(rows.square().mean(-1) + eps)
    y = (rows * rstd[:, None]).mul_(weight.float())
    return y.to(x.dtype).view(x.shape), rstd


@without_autocast
def _torch_add_fwd(
    x: Tensor,
    residual: Tensor,
    weight: Tensor,
    random_state: Tensor | None,
    eps: float,
    dropout_p: float,
) -> tuple[Tensor, Tensor, Tensor]:
    r = add_residual(x, residual, random_state, dropout_p)
    y, rstd = _torch_fwd(r, weight, eps)
    return y.to(x.dtype), r, rstd


@without_autocast
def _torch_bwd(
    dy: Tensor,
    dr: Tensor | None,
    r: Tensor,
    weight: Tensor,
    rstd: Tensor,
    random_state: Tensor | None,
    dropout_p: float,
) -> tuple[Tensor, Tensor, Tensor]:
    dr_sum, dweight = _torch_row_bwd(dy, dr, r, weight, rstd)
    if random_state is None:
        return dr_sum, dy.new_empty(0), dweight
    dx = dropped_gradient(dr_sum, random_state, dropout_p, dy.dtype)
    return dr_sum, dx, dweight


def _torch_row_bwd(
    dy: Tensor, dr: Tensor | None, r: Tensor, weight: Tensor, rstd: Tensor
) -> tuple[Tensor, Tensor]:
    if r.numel() == 0:
        return r.new_empty(r.shape), weight.new_zeros(r.shape[-1])
    shape = (_rows(r), r.shape[-1])
    normalised = r.reshape(shape).float() * rstd[:, None]
    dy32 = dy.reshape(shape).float()
    dweight = (dy32 * normalised).sum(0)
    g = dy32 * weight.float()
    mean = (g * normalised).mean(-1, keepdim=True)
    dx = g.sub_(normalised.mul_(mean)).mul_(rstd[:, None])
    if dr is not None:
        dx += dr.reshape(shape)
    return dx.to(r.dtype).view(r.shape), dweight.to(weight.dtype)


for _name, _torch, _fake in (
    ("rms_norm_fwd", _torch_fwd, _fake_fwd),
    ("add_rms_norm_fwd", _torch_add_fwd, _fake_add_fwd),
    ("rms_norm_bwd", _torch_bwd, _fake_bwd),
):
    _library.register_implementation(_name, _torch)
    torch.library.register_fake(f"{_library.NAMESPACE}::{_name}", _fake)
