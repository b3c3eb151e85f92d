"""The cross-entropy of a linear layer's outputs by its definition."""

from typing import Any

from torch import Tensor

from llmjp_ext.reference.cross_entropy import cross_entropy


def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, targets: Tensor, *, bias: Tensor | None = None, **options: Any
) -> tuple[Tensor, Tensor]:
    """cross_entropy of the logits hidden @ weight.T + bias, and the z-loss part of it.

    Shapes: hidden [..., width], weight [vocab, width], bias [vocab], targets [...]; options are
    cross_entropy's.
    """
    logits = hidden @ weight.T
    return cross_entropy(logits if bias is None else logits + bias, targets, **options)
