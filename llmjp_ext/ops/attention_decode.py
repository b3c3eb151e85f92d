"""attention_decode: attention of the newest tokens over a cache of keys and values.

Appends in place and has no backward. The PyTorch implementation attends sequence by sequence to the
valid part of the cache on the CPU; for builds without the CUDA kernel it attends without a
synchronisation to all of the cache.
"""

import dataclasses
from typing import Literal, overload

import torch
from torch import Tensor

from llmjp_ext import _library
from llmjp_ext.ops import _attention_torch
from llmjp_ext.ops._attention_autograd import LARGEST_HEAD_DIM, fake_fwd
from llmjp_ext.ops._attention_torch import Scoring
from llmjp_ext.ops._support import autocast_dtype, without_autocast
from llmjp_ext.ops.attention import (
    check_alibi,
    check_dtype,
    check_lengths,
    check_softcap,
    check_window,
)

_OP = "attention_decode"


@overload
def attention_decode(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    cache_seqlens: Tensor,
    *,
    k_new: Tensor | None = ...,
    v_new: Tensor | None = ...,
    block_table: Tensor | None = ...,
    scale: float | None = ...,
    window: tuple[int, int] | None = ...,
    softcap: float = ...,
    alibi_slopes: Tensor | None = ...,
    starts_k: Tensor | None = ...,
    return_lse: Literal[False] = ...,
) -> Tensor: ...


@overload
def attention_decode(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    cache_seqlens: Tensor,
    *,
    k_new: Tensor | None = ...,
    v_new: Tensor | None = ...,
    block_table: Tensor | None = ...,
    scale: float | None = ...,
    window: tuple[int, int] | None = ...,
    softcap: float = ...,
    alibi_slopes: Tensor | None = ...,
    starts_k: Tensor | None = ...,
    return_lse: Literal[True],
) -> tuple[Tensor, Tensor]: ...


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
    return_lse: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Attention of one or several new tokens of each sequence over its cache. Not differentiable.

    With k_new and v_new these are first written behind the sequence's keys, in place; cache_seqlens
    is left as it is. The last query stands at the last key; several queries are causal among
    themselves. Scores are made as in `attention`.

    Args:
        q: [batch, tokens, heads, head_dim], float16 or bfloat16, on the CPU float32 too, as the
            caches. Under autocast q, k_new and v_new are cast to it.
        k_cache: [batch, capacity, kv_heads, head_dim], or paged [blocks, page, kv_heads, head_dim]
            with a block_table.
        v_cache: as k_cache.
        cache_seqlens: int32 [batch], keys of each sequence before the append where k_new is given,
            all its keys otherwise.
        k_new: [batch, new, kv_heads, head_dim], or None; together with v_new.
        v_new: as k_new.
        block_table: int32 [batch, pages]: which block of the caches is a sequence's i-th page.
        scale: multiplies q·k; None means head_dim ** -0.5.
        window: (left, right), how many keys before its own position a query sees; -1 is no bound.
            right is 0 or -1: nothing lies behind a query but later queries.
        softcap: bounds scores to ±softcap; 0 is off.
        alibi_slopes: float32 [heads] or [batch, heads].
        starts_k: int32 [batch], the first key of each sequence: left padding.
        return_lse: also return the log-sum-exp of the scores.

    Returns:
        out, as q, contiguous; with return_lse (out, lse), lse float32 [batch, heads, tokens].

    Raises:
        TypeError: for a dtype that is not supported.
        ValueError: for shapes, devices, strides or numbers that do not fit and, on the CPU, where a
            sequence would not fit its cache. On CUDA, where nothing waits for the lengths, such a
            sequence gets NaN and is not appended to.
    """
    if autocast_dtype(q.device) is not None:
        q = q.to(k_cache.dtype)
        k_new = None if k_new is None else k_new.to(k_cache.dtype)
        v_new = None if v_new is None else v_new.to(v_cache.dtype)
    _check(q, k_cache, v_cache, block_table)
    check_lengths(_OP, "cache_seqlens", cache_seqlens, q)
    check_lengths(_OP, "starts_k", starts_k, q)
    _check_new(q, k_cache, k_new, v_new)
    check_softcap(_OP, softcap)
    check_alibi(_OP, alibi_slopes, q)
    window_left, window_right = check_window(_OP, window)
    if window_right > 0:
        raise ValueError(f"{_OP}: window's right side must be 0 or -1, got {window}.")
    with torch.no_grad():
        out, lse = _library.ops.attention_decode(
            q,
            k_cache,
            v_cache,
            cache_seqlens,
            k_new,
            v_new,
            block_table,
            alibi_slopes,
            starts_k,
            scale,
            window_left,
            softcap,
        )
    return (out, lse) if return_lse else out


def _check(q: Tensor, k_cache: Tensor, v_cache: Tensor, block_table: Tensor | None) -> None:
    check_dtype(_OP, q)
    if q.ndim != 4:
        raise ValueError(
            f"{_OP}: q must be [batch, tokens, heads, head_dim], got shape {list(q.shape)}."
        )
    batch, _, heads, width = q.shape
    first = "batch" if block_table is None else "blocks"
    second = "capacity" if block_table is None else "page"
    for name, cache in (("k_cache", k_cache), ("v_cache", v_cache)):
        if cache.dtype != q.dtype:
            raise TypeError(f"{_OP}: {name} must have q's dtype {q.dtype}, got {cache.dtype}.")
        if cache.device != q.device:
            raise ValueError(f"{_OP}: {name} must be on q's device {q.device}, got {cache.device}.")
        if (
            cache.ndim != 4
            or cache.shape[3] != width
            or (block_table is None and cache.shape[0] != batch)
        ):
            raise ValueError(
                f"{_OP}: {name} must be [{first}, {second}, kv_heads, head_dim] beside q of shape "
                f"{list(q.shape)}, got {list(cache.shape)}."
            )
    if k_cache.shape != v_cache.shape:
        raise ValueError(
            f"{_OP}: k_cache and v_cache must have one shape, got {list(k_cache.shape)} and "
            f"{list(v_cache.shape)}."
        )
    if k_cache.shape[2] == 0 or heads % k_cache.shape[2] != 0:
        raise ValueError(
            f"{_OP}: q's heads must be a multiple of the caches', got {heads} and "
            f"{k_cache.shape[2]}."
        )
    if q.is_cuda and _library.has_cuda_kernel(_OP):
        _check_for_kernel(k_cache, v_cache)
    if block_table is None:
        return
    if block_table.dtype != torch.int32:
        raise TypeError(f"{_OP}: block_table must be int32, got {block_table.dtype}.")
    if block_table.ndim != 2 or block_table.shape[0] != batch:
        raise ValueError(
            f"{_OP}: block_table must have shape [{batch}, pages], got {list(block_table.shape)}."
        )
    if block_table.device != q.device:
        raise ValueError(
            f"{_OP}: block_table must be on q's device {q.device}, got {block_table.device}."
        )


def _check_for_kernel(k_cache: Tensor, v_cache: Tensor) -> None:
    """Caches are read and written where they lie, in pieces of 16 bytes."""
    width = k_cache.shape[3]
    if width % 8 != 0 or not 8 <= width <= LARGEST_HEAD_DIM:
        raise ValueError(
            f"{_OP}: head_dim must be a multiple of 8 up to {LARGEST_HEAD_DIM} on CUDA, got "
            f"{width}."
        )
    for name, cache in (("k_cache", k_cache), ("v_cache", v_cache)):
        strides = cache.stride()
        # A dimension of one element may have any stride.
        steps = [s for size, s in zip(cache.shape[:3], strides[:3], strict=True) if size > 1]
        if strides[3] != 1 or any(step % 8 != 0 for step in steps):
            raise ValueError(
                f"{_OP}: {name}'s strides must be multiples of 8 and the last 1 on CUDA, got "
                f"{list(strides)}."
            )


def _check_new(q: Tensor, k_cache: Tensor, k_new: Tensor | None, v_new: Tensor | None) -> None:
    if (k_new is None) != (v_new is None):
        raise ValueError(f"{_OP}: k_new and v_new must be given together.")
    if k_new is None or v_new is None:
        return
    shape = [q.shape[0], k_new.shape[1] if k_new.ndim == 4 else "new", *k_cache.shape[2:]]
    for name, new in (("k_new", k_new), ("v_new", v_new)):
        if new.dtype != k_cache.dtype:
            raise TypeError(
                f"{_OP}: {name} must have the caches' dtype {k_cache.dtype}, got {new.dtype}."
            )
        if list(new.shape) != shape:
            raise ValueError(f"{_OP}: {name} must have shape {shape}, got {list(new.shape)}.")
        if new.device != q.device:
            raise ValueError(f"{_OP}: {name} must be on q's device {q.device}, got {new.device}.")


def _append(
    caches: tuple[Tensor, Tensor],
    new: tuple[Tensor, Tensor],
    seqlens: Tensor,
    block_table: Tensor | None,
) -> None:
    batch, count = new[0].shape[:2]
    place = seqlens.long()[:, None] + torch.arange(count, device=seqlens.device)
    if block_table is None:
        block = torch.arange(batch, device=seqlens.device)[:, None]
    else:
        page = caches[0].shape[1]
        block = block_table.long().gather(1, place // page)
        place = place % page
    for cache, values in zip(caches, new, strict=True):
        cache.index_put_((block, place), values)


def _one_token(q: Tensor, k: Tensor, v: Tensor, scoring: Scoring) -> tuple[Tensor, Tensor]:
    """One query token: heads that share keys become tokens, so that the keys are read once."""
    batch, _, heads, width = q.shape
    kv_heads = k.shape[2]
    folded = q.view(batch, kv_heads, heads // kv_heads, width).transpose(1, 2)
    everything = dataclasses.replace(scoring, window_left=-1, window_right=-1)
    out, lse = _attention_torch.forward(folded, k, v, everything)
    return out.transpose(1, 2).reshape(q.shape), lse.view(batch, heads, 1)


def _attend(
    q: Tensor, k: Tensor, v: Tensor, start: int, total: int, scoring: Scoring
) -> tuple[Tensor, Tensor]:
    """Sequences that share start and length; k and v hold at least `total` keys."""
    batch, tokens, heads, _ = q.shape
    low = start
    if scoring.window_left >= 0:
        low = max(low, total - tokens - scoring.window_left)
    if total <= low or q.numel() == 0:
        return q.new_zeros(q.shape), q.new_full(
            (batch, heads, tokens), -torch.inf, dtype=torch.float32
        )
    k, v = k[:, low:total], v[:, low:total]
    if tokens == 1 and scoring.alibi_slopes is None:
        return _one_token(q, k, v, scoring)
    scoring = dataclasses.replace(scoring, query_shift=total - tokens - low)
    return _attention_torch.forward(q, k, v, scoring)


def _on_cpu(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    starts: list[int],
    totals: list[int],
    block_table: Tensor | None,
    scoring: Scoring,
) -> tuple[Tensor, Tensor]:
    batch = q.shape[0]
    if block_table is None and len(set(starts)) == 1 and len(set(totals)) == 1:
        return _attend(q, k_cache, v_cache, starts[0], totals[0], scoring)
    parts = []
    for b in range(batch):
        one = slice(b, b + 1)
        k, v = k_cache[one], v_cache[one]
        if block_table is not None:
            pages = block_table[b, : -(-totals[b] // k_cache.shape[1])].long()
            k, v = (cache[pages].flatten(0, 1)[None] for cache in (k_cache, v_cache))
        slopes = scoring.alibi_slopes
        if slopes is not None and slopes.ndim == 2:
            slopes = slopes[one]
        of_sequence = dataclasses.replace(scoring, alibi_slopes=slopes)
        parts.append(_attend(q[one], k, v, starts[b], totals[b], of_sequence))
    out, lse = zip(*parts, strict=True)
    return torch.cat(out), torch.cat(lse)


@without_autocast
def _torch_decode(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    cache_seqlens: Tensor,
    k_new: Tensor | None,
    v_new: Tensor | None,
    block_table: Tensor | None,
    alibi_slopes: Tensor | None,
    starts_k: Tensor | None,
    scale: float | None,
    window_left: int,
    softcap: float,
) -> tuple[Tensor, Tensor]:
    batch, tokens, heads, width = q.shape
    if batch == 0:
        return q.new_empty(q.shape), q.new_empty((batch, heads, tokens), dtype=torch.float32)
    new = 0 if k_new is None else k_new.shape[1]
    on_cpu = q.device.type == "cpu"
    scoring = Scoring(
        scale=width**-0.5 if scale is None else scale,
        window_left=window_left,
        window_right=0,
        softcap=softcap,
        alibi_slopes=alibi_slopes,
    )
    totals = [length + new for length in cache_seqlens.tolist()] if on_cpu else []
    capacity = k_cache.shape[1] * (1 if block_table is None else block_table.shape[1])
    for b, total in enumerate(totals):
        if not new <= total <= capacity:
            raise ValueError(
                f"{_OP}: sequence {b} has {total - new} keys and {new} new ones, which do not fit "
                f"its cache of {capacity}."
            )
    if k_new is not None and v_new is not None and new > 0:
        _append((k_cache, v_cache), (k_new, v_new), cache_seqlens, block_table)
    if on_cpu:
        starts = [0] * batch if starts_k is None else [max(s, 0) for s in starts_k.tolist()]
        return _on_cpu(q, k_cache, v_cache, starts, totals, block_table, scoring)
    if block_table is not None:
        k_cache, v_cache = (cache[block_table.long()].flatten(1, 2) for cache in (k_cache, v_cache))
    seqlens = cache_seqlens + new
    scoring = dataclasses.replace(
        scoring, starts_k=starts_k, seqlens_k=seqlens, query_shift=seqlens.long() - tokens
    )
    return _attention_torch.forward(q, k_cache, v_cache, scoring)


_library.register_implementation("attention_decode", _torch_decode)
torch.library.register_fake(f"{_library.NAMESPACE}::attention_decode", fake_fwd)
