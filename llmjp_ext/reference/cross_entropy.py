"""Cross-entropy by its definition.

Label smoothing: Szegedy et al., arXiv 1512.00567; z-loss: Chowdhery et al., arXiv 2204.02311.
"""

import torch
from torch import Tensor


def cross_entropy(
    logits: Tensor,
    targets: Tensor,
    *,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    valid_vocab: int | None = None,
    reduction: str = "mean",
) -> tuple[Tensor, Tensor]:
    """The loss and the z-loss part of it, in logits' dtype.

    Shapes: logits [..., vocab], targets [...]. Both results are scalars, or [...] for "none".
    """
    x = logits[..., :valid_vocab]
    counted = targets != ignore_index
    wanted = torch.nn.functional.one_hot(targets.where(counted, 0), x.shape[-1]).to(x.dtype)
    wanted = (1 - label_smoothing) * wanted + label_smoothing / x.shape[-1]
    lse = torch.logsumexp(x, -1)
    z = (z_loss * lse.square()).where(counted, 0.0)
    loss = (lse - (wanted * x).sum(-1)).where(counted, 0.0) + z
    if reduction == "none":
        return loss, z
    count = counted.sum() if reduction == "mean" else 1
    return loss.sum() / count, z.sum() / count
