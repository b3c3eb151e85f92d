"""Attention by its definition (Vaswani et al., "Attention Is All You Need", arXiv 1706.03762)."""

import torch
from torch import Tensor


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool = False,
    scale: float | None = None,
    window: tuple[int, int] | None = None,
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    starts_k: Tensor | None = None,
    seqlens_k: Tensor | None = None,
    dropout_scale: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """All scores at once, in q's dtype.

    Shapes: q [batch, tokens, heads, head_dim], k and v [batch, keys, kv_heads, head_dim];
    dropout_scale, [batch, heads, tokens, keys], multiplies the probabilities. Returns out, as q,
    and lse [batch, heads, tokens]; a fully masked row has 0 and -inf.
    """
    tokens, heads, width = q.shape[1:]
    keys = k.shape[1]
    q, k, v = (x.transpose(1, 2).repeat_interleave(heads // x.shape[2], dim=1) for x in (q, k, v))
    scores = q @ k.transpose(2, 3) * (width**-0.5 if scale is None else scale)
    if softcap > 0:
        scores = softcap * torch.tanh(scores / softcap)
    position = torch.arange(tokens, device=q.device)[:, None] + keys - tokens
    key = torch.arange(keys, device=q.device)
    if alibi_slopes is not None:
        slopes = alibi_slopes.to(q.dtype).view(-1, heads, 1, 1)
        scores = scores - slopes * (position - key).abs()
    left, right = (-1, -1) if window is None else window
    right = 0 if causal else right
    seen = torch.ones(tokens, keys, dtype=torch.bool, device=q.device)
    if left >= 0:
        seen = seen & (key >= position - left)
    if right >= 0:
        seen = seen & (key <= position + right)
    seen = seen.expand(q.shape[0], 1, tokens, keys)
    if starts_k is not None:
        seen = seen & (key >= starts_k.view(-1, 1, 1, 1))
    if seqlens_k is not None:
        seen = seen & (key < seqlens_k.view(-1, 1, 1, 1))
    # A row without keys is computed as if it saw them all and then emptied: -inf - -inf is NaN.
    blind = ~seen.any(-1, keepdim=True)
    scores = scores.masked_fill(~(seen | blind), -torch.inf)
    lse = torch.logsumexp(scores, -1).masked_fill(blind[..., 0], -torch.inf)
    p = torch.softmax(scores, -1).masked_fill(blind, 0.0)
    if dropout_scale is not None:
        p = p * dropout_scale
    return (p @ v).transpose(1, 2), lse
