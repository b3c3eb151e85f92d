"""RMSNorm by its definition (Zhang, Sennrich: Root Mean Square Layer Normalization, 1910.07467)."""

import torch
from torch import Tensor


def rms_norm(
    x: Tensor,
    weight: Tensor,
    eps: float = 1e-6,
    *,
    residual: Tensor | None = None,
    dropout_scale: Tensor | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Scales the last dimension of x, or of r = x + residual; computed in the inputs' dtypes.

    Shapes: x, residual [..., width]; weight [width]. Returns y, or (y, r) with a residual.
    dropout_scale [..., width], 0 or 1 / (1 - p), multiplies x.
    """
    if dropout_scale is not None:
        x = x * dropout_scale
    r = x if residual is None else x + residual
    y = r * torch.rsqrt(r.square().mean(-1, keepdim=True) + eps) * weight
    return y if residual is None else (y, r)
