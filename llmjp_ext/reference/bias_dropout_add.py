"""Bias, dropout and residual addition, written down."""

from torch import Tensor


def bias_dropout_add(
    x: Tensor, bias: Tensor | None, residual: Tensor, *, dropout_scale: Tensor | None = None
) -> Tensor:
    """(x + bias) * dropout_scale + residual, in the inputs' dtypes.

    Shapes: x, residual [..., width]; bias [width]. dropout_scale [..., width], 0 or 1 / (1 - p).
    """
    u = x if bias is None else x + bias
    return (u if dropout_scale is None else u * dropout_scale) + residual
