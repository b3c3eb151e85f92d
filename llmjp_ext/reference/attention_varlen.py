"""attention_varlen by its definition: attention over each packed sequence alone."""

import torch
from torch import Tensor

from llmjp_ext.reference.attention import attention


def attention_varlen(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    *,
    causal: bool = False,
    scale: float | None = None,
    window: tuple[int, int] | None = None,
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    dropout_scale: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """One sequence after the other, in q's dtype.

    Shapes as in llmjp_ext.attention_varlen; dropout_scale, [heads, total of q, total of k],
    multiplies the probability of row i of a head and key j of its own sequence by element [i, j].
    Returns out, as q, and lse [heads, total]; rows of no sequence have 0 and -inf.
    """
    out = torch.zeros_like(q)
    lse = q.new_full((q.shape[1], q.shape[0]), -torch.inf)
    bounds_q, bounds_k = cu_seqlens_q.tolist(), cu_seqlens_k.tolist()
    for i in range(len(bounds_q) - 1):
        rows, keys = slice(*bounds_q[i : i + 2]), slice(*bounds_k[i : i + 2])
        slopes, kept = alibi_slopes, dropout_scale
        if slopes is not None and slopes.ndim == 2:
            slopes = slopes[i : i + 1]
        if kept is not None:
            kept = kept[None, :, rows, : keys.stop - keys.start]
        own_out, own_lse = attention(
            q[None, rows],
            k[None, keys],
            v[None, keys],
            causal=causal,
            scale=scale,
            window=window,
            softcap=softcap,
            alibi_slopes=slopes,
            dropout_scale=kept,
        )
        out[rows], lse[:, rows] = own_out[0], own_lse[0]
    return out, lse
