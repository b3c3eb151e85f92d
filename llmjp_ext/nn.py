"""Modules that take the place of torch.nn's: same parameters, same state dict, fused kernels."""

import torch
from torch import Tensor

from llmjp_ext.ops.layer_norm import layer_norm
from llmjp_ext.ops.rms_norm import rms_norm


class LayerNorm(torch.nn.LayerNorm):
    """torch.nn.LayerNorm over one last dimension, on llmjp_ext.layer_norm.

    Unlike torch's it returns x's dtype under autocast too, and forward takes an optional residual:
    then it returns (norm(r), r) with r = x + residual, in training dropout(x) + residual.
    """

    def __init__(
        self,
        width: int,
        eps: float = 1e-5,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        dropout_p: float = 0.0,
    ) -> None:
        super().__init__(width, eps=eps, bias=bias, device=device, dtype=dtype)
        self.dropout_p = dropout_p

    def forward(  # type: ignore[override]
        self, x: Tensor, residual: Tensor | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        dropout_p = self.dropout_p if self.training and residual is not None else 0.0
        return layer_norm(
            x, self.weight, self.bias, self.eps, residual=residual, dropout_p=dropout_p
        )

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, dropout_p={self.dropout_p}"


class RMSNorm(torch.nn.Module):
    """torch.nn.RMSNorm over one last dimension, on llmjp_ext.rms_norm, with the same state dict.

    Returns x's dtype under autocast too. Forward takes an optional residual: then it returns
    (norm(r), r) with r = x + residual, in training dropout(x) + residual.
    """

    def __init__(
        self,
        width: int,
        eps: float = 1e-6,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        dropout_p: float = 0.0,
    ) -> None:
        super().__init__()
        self.eps = eps
        self.dropout_p = dropout_p
        self.weight = torch.nn.Parameter(torch.ones(width, device=device, dtype=dtype))

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        dropout_p = self.dropout_p if self.training and residual is not None else 0.0
        return rms_norm(x, self.weight, self.eps, residual=residual, dropout_p=dropout_p)

    def extra_repr(self) -> str:
        return f"{self.weight.shape[0]}, eps={self.eps}, dropout_p={self.dropout_p}"
