"""Rotary position embedding by its definition (Su et al.: RoFormer, arXiv 2104.09864)."""

import torch
from torch import Tensor


def rotary(
    q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, *, interleaved: bool = False
) -> tuple[Tensor, Tensor]:
    """q and k with the first pairs of each head turned, in the inputs' dtypes.

    Shapes: q [batch, tokens, heads, head_dim], k with its own number of heads, cos and sin
    [tokens, pairs] or [batch, tokens, pairs].
    """
    return _turned(q, cos, sin, interleaved), _turned(k, cos, sin, interleaved)


def _turned(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    pairs = cos.shape[-1]
    cos, sin = cos.unsqueeze(-2), sin.unsqueeze(-2)  # one angle for all heads of a token
    head, rest = x[..., : 2 * pairs], x[..., 2 * pairs :]
    if interleaved:
        x1, x2 = head[..., ::2], head[..., 1::2]
    else:
        x1, x2 = head[..., :pairs], head[..., pairs:]
    turned = [x1 * cos - x2 * sin, x2 * cos + x1 * sin]
    head = torch.stack(turned, -1).flatten(-2) if interleaved else torch.cat(turned, -1)
    return torch.cat([head, rest], dim=-1)
