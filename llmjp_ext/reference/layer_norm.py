"""LayerNorm by its definition (Ba, Kiros, Hinton: Layer Normalization, arXiv 1607.06450)."""

import torch
from torch import Tensor


def layer_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    eps: float = 1e-5,
    *,
    residual: Tensor | None = None,
    dropout_scale: Tensor | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Normalises the last dimension of x, or of r = x + residual; computed in the inputs' dtypes.

    Shapes: x, residual [..., width]; weight, bias [width]. Returns y, or (y, r) with a residual.
    dropout_scale [..., width], 0 or 1 / (1 - p), multiplies x.
    """
    if dropout_scale is not None:
        x = x * dropout_scale
    r = x if residual is None else x + residual
    mean = r.mean(-1, keepdim=True)
    variance = (r - mean).square().mean(-1, keepdim=True)
    y = (r - mean) * torch.rsqrt(variance + eps) * weight
    if bias is not None:
        y = y + bias
    return y if residual is None else (y, r)
