"""attention_decode by its definition: append, then attention over each sequence's own keys."""

import torch
from torch import Tensor

from llmjp_ext.reference.attention import attention


def attention_decode(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    cache_seqlens: Tensor,
    *,
    k_new: Tensor | None = None,
    v_new: Tensor | None = None,
    block_table: Tensor | None = None,
    scale: float | None = None,
    window: tuple[int, int] | None = None,
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    starts_k: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """One sequence after the other, in q's dtype; the caches are left as they are.

    Shapes as in llmjp_ext.attention_decode. Returns out, as q, and lse [batch, heads, tokens].
    """
    results = []
    for b, length in enumerate(cache_seqlens.tolist()):
        keys_and_values = []
        for cache, new in ((k_cache, k_new), (v_cache, v_new)):
            own = cache[b] if block_table is None else cache[block_table[b].long()].flatten(0, 1)
            own = own[:length] if new is None else torch.cat([own[:length], new[b]])
            keys_and_values.append(own[None])
        slopes = alibi_slopes
        if slopes is not None and slopes.ndim == 2:
            slopes = slopes[b : b + 1]
        results.append(
            attention(
                q[b : b + 1],
                *keys_and_values,
                causal=True,
                scale=scale,
                window=window,
                softcap=softcap,
                alibi_slopes=slopes,
                starts_k=None if starts_k is None else starts_k[b : b + 1],
            )
        )
    out, lse = zip(*results, strict=True)
    return torch.cat(out), torch.cat(lse)
