"""SwiGLU by its definition (Shazeer: GLU Variants Improve Transformer, arXiv 2002.05202)."""

import torch
from torch import Tensor


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """gate · σ(gate) · up in the inputs' dtype, all of one shape [..., width]."""
    return gate * torch.sigmoid(gate) * up
