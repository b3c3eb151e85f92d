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
        return u / 2 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (u + 0.044715 * u**3)))
    return u / 2 * (1 + torch.erf(u / math.sqrt(2)))
