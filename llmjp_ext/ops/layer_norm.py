"""layer_norm: LayerNorm over the last dimension, with an optional residual addition before it.

The public function checks its arguments and dispatches to torch.ops.llmjp_ext, whose CUDA kernels
and native code for CPU tensors are in csrc/norm; the PyTorch implementation here is for CUDA
tensors in a build without kernels. Autograd is a torch.autograd.Function around
the raw ops rather than torch.library.register_autograd: that costs less per call, and nothing in
inference.
"""

import math
from typing import Any, overload

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from llmjp_ext import _library
from llmjp_ext.ops._norm_checks import check_norm, dropout_state
from llmjp_ext.ops._support import distinct, needs_grad
from llmjp_ext.ops.bias_dropout_add import add_residual, dropped_gradient


@overload
def layer_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    eps: float = ...,
    *,
    residual: None = ...,
    dropout_p: float = ...,
) -> Tensor: ...


@overload
def layer_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    eps: float = ...,
    *,
    residual: Tensor,
    dropout_p: float = ...,
) -> tuple[Tensor, Tensor]: ...


def layer_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    eps: float = 1e-5,
    *,
    residual: Tensor | None = None,
    dropout_p: float = 0.0,
) -> Tensor | tuple[Tensor, Tensor]:
    """LayerNorm of x, or of r = dropout(x) + residual.

    y = (r - mean(r)) / sqrt(var(r) + eps) * weight + bias, with mean and (biased) variance over the
    last dimension in float32. Differentiable once in every tensor, including through r.

    Args:
        x: [..., width], float32, float16 or bfloat16. Rows may have any stride as long as the last
            dimension is contiguous; anything else is copied.
        weight: [width], of x's dtype or float32.
        bias: [width] of weight's dtype, or None.
        eps: added to the variance; at least 0.
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

    Source: Ba, Kiros, Hinton, "Layer Normalization", arXiv 1607.06450.
    """
    check_norm("layer_norm", x, weight, bias, eps, residual, dropout_p)
    row_dtype = x.dtype if residual is None else residual.dtype
    if weight.dtype != torch.float32 and row_dtype != weight.dtype:
        # Kernels exist for a 16-bit weight only beside rows of the same type.
        weight = weight.float()
        bias = None if bias is None else bias.float()
    if residual is None:
        if needs_grad(x, weight, bias):
            return _LayerNorm.apply(  # type: ignore[no-untyped-call]
                *distinct(x, weight, bias, eps)
            )
        return _library.ops.layer_norm_fwd(x, weight, bias, eps)[0]
    state = dropout_state(x, dropout_p)
    if needs_grad(x, weight, bias, residual):
        return _AddLayerNorm.apply(  # type: ignore[no-untyped-call]
            *distinct(x, residual, weight, bias, state, eps, dropout_p)
        )
    y, r, _, _ = _library.ops.add_layer_norm_fwd(x, residual, weight, bias, state, eps, dropout_p)
    return y, r


class _LayerNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
        y, mean, rstd = _library.ops.layer_norm_fwd(x, weight, bias, eps)
        ctx.save_for_backward(x, weight, mean, rstd)
        ctx.has_bias = bias is not None
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, rstd = ctx.saved_tensors
        dx, _, dweight, dbias = _library.ops.layer_norm_bwd(
            dy, None, x, weight, mean, rstd, None, 0.0, ctx.has_bias
        )
        return dx, dweight, dbias if ctx.has_bias else None, None


class _AddLayerNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        residual: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        random_state: Tensor | None,
        eps: float,
        dropout_p: float,
    ) -> tuple[Tensor, Tensor]:
        y, r, mean, rstd = _library.ops.add_layer_norm_fwd(
            x, residual, weight, bias, random_state, eps, dropout_p
        )
        ctx.save_for_backward(r, weight, mean, rstd, random_state)
        ctx.has_bias = bias is not None
        ctx.x_dtype = x.dtype
        ctx.dropout_p = dropout_p
        ctx.set_materialize_grads(False)
        return y, r

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor | None, dr: Tensor | None) -> tuple[Tensor | None, ...]:
        r, weight, mean, rstd, random_state = ctx.saved_tensors
        if dy is None:  # only r was used
            if dr is None:
                return (None,) * 7
            dx = dropped_gradient(dr, random_state, ctx.dropout_p, ctx.x_dtype)
            return dx, dr, None, None, None, None, None
        dr_sum, dx, dweight, dbias = _library.ops.layer_norm_bwd(
            dy, dr, r, weight, mean, rstd, random_state, ctx.dropout_p, ctx.has_bias
        )
        if (
            random_state is None
        ):  # the same gradient reaches x and residual, whose dtypes may differ
            dx = dr_sum.to(ctx.x_dtype)
        return dx, dr_sum, dweight, dbias if ctx.has_bias else None, None, None, None


def _rows(x: Tensor) -> int:
    return math.prod(x.shape[:-1])


def _fake_fwd(
    x: Tensor, weight: Tensor, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    mean, rstd = (x.new_empty((_rows(x),), dtype=torch.float32) for _ in range(2))
    return x.new_empty(x.shape), mean, rstd


def _fake_add_fwd(
    x: Tensor,
    residual: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    random_state: Tensor | None,
    eps: float,
    dropout_p: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    y, mean, rstd = _fake_fwd(x, weight, bias, eps)
    return y, residual.new_empty(x.shape), mean, rstd


def _fake_bwd(
    dy: Tensor,
    dr: Tensor | None,
    r: Tensor,
    weight: Tensor,
    mean: Tensor,
    rstd: Tensor,
    random_state: Tensor | None,
    dropout_p: float,
    has_bias: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    width = r.shape[-1]
    dx = dy.new_empty(0 if random_state is None else r.shape)
    return (
        r.new_empty(r.shape),
        dx,
        weight.new_empty(width),
        weight.new_empty(width if has_bias else 0),
    )


def _cpu_fwd(
    x: Tensor, weight: Tensor, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """aten's kernel; with 16-bit x it keeps float32 statistics only beside a float32 weight."""
    if x.numel() == 0:
        zeros = x.new_zeros((_rows(x),), dtype=torch.float32)
        return x.new_empty(x.shape), zeros, zeros.clone()
    bias32 = None if bias is None else bias.float()
    y, mean, rstd = torch.native_layer_norm(x, [x.shape[-1]], weight.float(), bias32, eps)
    return y.contiguous(), mean.reshape(-1), rstd.reshape(-1)


def _cpu_add_fwd(
    x: Tensor,
    residual: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    random_state: Tensor | None,
    eps: float,
    dropout_p: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    r = add_residual(x, residual, random_state, dropout_p)
    y, mean, rstd = _cpu_fwd(r, weight, bias, eps)
    return y.to(x.dtype), r, mean, rstd


def _cpu_bwd(
    dy: Tensor,
    dr: Tensor | None,
    r: Tensor,
    weight: Tensor,
    mean: Tensor,
    rstd: Tensor,
    random_state: Tensor | None,
    dropout_p: float,
    has_bias: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dr_sum, dweight, dbias = _cpu_row_bwd(dy, dr, r, weight, mean, rstd, has_bias)
    if random_state is None:
        return dr_sum, dy.new_empty(0), dweight, dbias
    dx = dropped_gradient(dr_sum, random_state, dropout_p, dy.dtype)
    return dr_sum, dx, dweight, dbias


def _cpu_row_bwd(
    dy: Tensor,
    dr: Tensor | None,
    r: Tensor,
    weight: Tensor,
    mean: Tensor,
    rstd: Tensor,
    has_bias: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    width = r.shape[-1]
    if r.numel() == 0 or width == 1:
        # A row of one value is normalised to 0 whatever it is; aten's sums cancel only nearly.
        dx = r.new_zeros(r.shape) if dr is None else dr.to(r.dtype, copy=True).contiguous()
        dweight = weight.new_zeros(width)
        if not has_bias:
            return dx, dweight, weight.new_zeros(0)
        return dx, dweight, dy.reshape(_rows(dy), width).float().sum(0).to(weight.dtype)
    statistics_shape = (*r.shape[:-1], 1)
    weight32 = weight.float()
    dx, dweight, dbias = torch.ops.aten.native_layer_norm_backward(
        dy.to(r.dtype),
        r,
        [width],
        mean.reshape(statistics_shape),
        rstd.reshape(statistics_shape),
        weight32,
        weight32 if has_bias else None,
        [True, True, has_bias],
    )
    if dr is not None:
        dx = dx + dr
    dbias = weight.new_empty(0) if dbias is None else dbias.to(weight.dtype)
    return dx.contiguous(), dweight.to(weight.dtype), dbias


for _name, _cpu, _fake in (
    ("layer_norm_fwd", _cpu_fwd, _fake_fwd),
    ("add_layer_norm_fwd", _cpu_add_fwd, _fake_add_fwd),
    ("layer_norm_bwd", _cpu_bwd, _fake_bwd),
):
    _library.register_implementation(_name, _cpu)
    torch.library.register_fake(f"{_library.NAMESPACE}::{_name}", _fake)
