"""GELU by its definition (Hendrycks, Gimpel: Gaussian Error Linear Units, arXiv 1606.08415)."""

import math

import torch
from torch import Tensor


def bias_gelu(x: Tensor, bias: Tensor | None = None, *, approximate: str = "none") -> Tensor:
    """u · Φ(u) of u = x + bias, or its tanh approximation, in the inputs' dtypes.

    Shapes: x [..., width], bias [width].
    """
    u = x if bias is None else x + bias
    if approximate == "tanh":
        # tanh is ±1 long before its argument, or the derivative of that, overflows.
        bounded = u.clamp(-100, 100)
        z = math.sqrt(2 / math.pi) * (bounded + 0.044715 * bounded**3)
        return u / 2 * (1 + torch.tanh(z))
    return u / 2 * (1 + torch.erf(u / math.sqrt(2)))
