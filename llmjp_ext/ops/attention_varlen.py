"""attention_varlen: attention within each of many sequences packed behind one another.

The PyTorch implementation takes one sequence after the other through that of attention.
"""

import dataclasses
import itertools
from collections.abc import Iterator
from typing import Any, Literal, overload

import torch
from torch import Tensor

from llmjp_ext.ops import _attention_torch
from llmjp_ext.ops._attention_autograd import attend, check_keys, register
from llmjp_ext.ops._attention_torch import Dropout, Scoring
from llmjp_ext.ops._support import autocast_dtype, draw_random_state, without_autocast
from llmjp_ext.ops.attention import (
    check_alibi,
    check_dropout,
    check_dtype,
    check_softcap,
    check_window,
)

_OP = "attention_varlen"


@overload
def attention_varlen(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    *,
    causal: bool = ...,
    scale: float | None = ...,
    window: tuple[int, int] | None = ...,
    softcap: float = ...,
    alibi_slopes: Tensor | None = ...,
    dropout_p: float = ...,
    return_lse: Literal[False] = ...,
) -> Tensor: ...


@overload
def attention_varlen(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    *,
    causal: bool = ...,
    scale: float | None = ...,
    window: tuple[int, int] | None = ...,
    softcap: float = ...,
    alibi_slopes: Tensor | None = ...,
    dropout_p: float = ...,
    return_lse: Literal[True],
) -> tuple[Tensor, Tensor]: ...


def attention_varlen(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    *,
    causal: bool = False,
    scale: float | None = None,
    window: tuple[int, int] | None = None,
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    dropout_p: float = 0.0,
    return_lse: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Scaled dot-product attention within each of several packed sequences.

    Sequence i is rows cu_seqlens_q[i] to cu_seqlens_q[i + 1] of q and rows cu_seqlens_k[i] to
    cu_seqlens_k[i + 1] of k and v; to it happens what `attention` does, causal and window aligned
    at its own last query and last key. Sequences may be empty. Rows before the first and behind the
    last sequence have out 0, lse -inf, and gradients of 0. On CUDA nothing waits for the lengths,
    which must ascend from at least 0 to at most the total: what does not leads to a wrong result.

    Args:
        q: [total_q, heads, head_dim], float16 or bfloat16, on the CPU float32 too. Any strides with
            a contiguous last dimension are taken as they are. Under autocast q, k and v are cast to
            its dtype.
        k: [total_k, kv_heads, head_dim] of q's dtype; heads is a multiple of kv_heads.
        v: as k.
        cu_seqlens_q: int32 [sequences + 1], where the queries of each sequence begin and end.
        cu_seqlens_k: the same for keys.
        max_seqlen_q: queries of the longest sequence. The result does not depend on it: on CUDA
            the order of work does.
        max_seqlen_k: keys of the longest sequence, likewise.
        causal: hides the keys behind a query's own position.
        scale: multiplies q·k; None means head_dim ** -0.5.
        window: (left, right), how many keys before and behind its own position a query sees;
            -1 is no bound. With causal, right is 0.
        softcap: bounds scores to ±softcap; 0 is off.
        alibi_slopes: float32 [heads] or [sequences, heads], not differentiable.
        dropout_p: share of the probabilities that is dropped, as in `attention`.
        return_lse: also return the log-sum-exp of the scores.

    Returns:
        out, as q, contiguous; with return_lse (out, lse), lse float32 [heads, total_q] in natural
        logarithms, differentiable too.

    Raises:
        TypeError: for a dtype that is not supported.
        ValueError: for shapes, devices or numbers that do not fit and, on the CPU, for lengths that
            do not ascend, lie outside the rows or exceed max_seqlen.

    Source: as `attention`; packing: Krell et al., arXiv 2107.02027.
    """
    dtype = autocast_dtype(q.device)
    if dtype is not None:
        q, k, v = q.to(dtype), k.to(dtype), v.to(dtype)
    _check_tensors(q, k, v)
    _check_lengths(cu_seqlens_q, q, max_seqlen_q, "q")
    _check_lengths(cu_seqlens_k, q, max_seqlen_k, "k")
    if cu_seqlens_q.shape != cu_seqlens_k.shape:
        raise ValueError(
            f"{_OP}: cu_seqlens_q and cu_seqlens_k must be of as many sequences, got shapes "
            f"{list(cu_seqlens_q.shape)} and {list(cu_seqlens_k.shape)}."
        )
    window_left, window_right = check_window(_OP, window)
    if causal:
        window_right = 0
    check_softcap(_OP, softcap)
    check_alibi(_OP, alibi_slopes, q, batch=cu_seqlens_q.shape[0] - 1)
    check_dropout(_OP, dropout_p)
    random_state = draw_random_state(q.device) if dropout_p > 0 else None
    out, lse = attend(
        _OP,
        q,
        k,
        v,
        cu_seqlens_q,
        cu_seqlens_k,
        alibi_slopes,
        random_state,
        max_seqlen_q,
        max_seqlen_k,
        scale,
        window_left,
        window_right,
        softcap,
        dropout_p,
    )
    return (out, lse) if return_lse else out


def _check_tensors(q: Tensor, k: Tensor, v: Tensor) -> None:
    check_dtype(_OP, q)
    if q.ndim != 3:
        raise ValueError(f"{_OP}: q must be [total, heads, head_dim], got shape {list(q.shape)}.")
    check_keys(_OP, q, k, v, ("total_k",))


def _check_lengths(cu_seqlens: Tensor, q: Tensor, max_seqlen: int | Tensor, side: str) -> None:
    name = f"cu_seqlens_{side}"
    if cu_seqlens.dtype != torch.int32:
        raise TypeError(f"{_OP}: {name} must be int32, got {cu_seqlens.dtype}.")
    if cu_seqlens.ndim != 1 or cu_seqlens.shape[0] == 0:
        raise ValueError(
            f"{_OP}: {name} must have shape [sequences + 1], got {list(cu_seqlens.shape)}."
        )
    if cu_seqlens.device != q.device:
        raise ValueError(
            f"{_OP}: {name} must be on q's device {q.device}, got {cu_seqlens.device}."
        )
    if isinstance(max_seqlen, Tensor):
        raise TypeError(f"{_OP}: max_seqlen_{side} must be an int, got a tensor.")
    if max_seqlen < 0:
        raise ValueError(f"{_OP}: max_seqlen_{side} must not be negative, got {max_seqlen}.")


@dataclasses.dataclass
class _Sequence:
    """One packed sequence: its rows, and how its scores are made."""

    rows: slice
    keys: slice
    scoring: Scoring
    dropout: Dropout | None


def _bounds(cu_seqlens: Tensor, total: int, longest: int, side: str) -> list[int]:
    """The boundaries as numbers; raises ValueError where they cut out no rows of `total`."""
    bounds = cu_seqlens.tolist()
    ascends = all(a <= b for a, b in itertools.pairwise(bounds))
    if bounds[0] < 0 or bounds[-1] > total or not ascends:
        raise ValueError(
            f"{_OP}: cu_seqlens_{side} must ascend from at least 0 to at most {total}, "
            f"got {bounds if len(bounds) <= 8 else [*bounds[:7], '...', bounds[-1]]}."
        )
    lengths = [b - a for a, b in itertools.pairwise(bounds)]
    if lengths and max(lengths) > longest:
        raise ValueError(
            f"{_OP}: max_seqlen_{side} is {longest}, but a sequence has {max(lengths)} rows."
        )
    return bounds


def _sequences(
    q: Tensor,
    k: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    alibi_slopes: Tensor | None,
    random_state: Tensor | None,
    max_seqlen_q: int,
    max_seqlen_k: int,
    scale: float | None,
    window_left: int,
    window_right: int,
    softcap: float,
    dropout_p: float,
) -> Iterator[_Sequence]:
    """Those that have both queries and keys."""
    (total_q, heads, width), total_k = q.shape, k.shape[0]
    bounds_q = _bounds(cu_seqlens_q, total_q, max_seqlen_q, "q")
    bounds_k = _bounds(cu_seqlens_k, total_k, max_seqlen_k, "k")
    for i in range(len(bounds_q) - 1):
        rows, keys = slice(*bounds_q[i : i + 2]), slice(*bounds_k[i : i + 2])
        if rows.start == rows.stop or keys.start == keys.stop:
            continue
        slopes = alibi_slopes
        if slopes is not None and slopes.ndim == 2:
            slopes = slopes[i : i + 1]
        scoring = Scoring(
            scale=width**-0.5 if scale is None else scale,
            window_left=window_left,
            window_right=window_right,
            softcap=softcap,
            alibi_slopes=slopes,
            query_shift=keys.stop - keys.start - (rows.stop - rows.start),
        )
        dropout = None
        if random_state is not None:
            head = torch.arange(heads, device=q.device)[None]
            dropout = Dropout(random_state, dropout_p, head * total_q + rows.start, total_k)
        yield _Sequence(rows, keys, scoring, dropout)


@without_autocast
def _torch_fwd(q: Tensor, k: Tensor, v: Tensor, *options: Any) -> tuple[Tensor, Tensor]:
    total, heads, _ = q.shape
    out = q.new_zeros(q.shape)
    lse = q.new_full((heads, total), -torch.inf, dtype=torch.float32)
    for sequence in _sequences(q, k, *options):
        rows, keys = sequence.rows, sequence.keys
        own_out, own_lse = _attention_torch.forward(
            q[None, rows], k[None, keys], v[None, keys], sequence.scoring, sequence.dropout
        )
        out[rows], lse[:, rows] = own_out[0], own_lse[0]
    return out, lse


@without_autocast
def _torch_bwd(
    dout: Tensor,
    dlse: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    *options: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    dq, dk, dv = q.new_zeros(q.shape), k.new_zeros(k.shape), v.new_zeros(v.shape)
    for sequence in _sequences(q, k, *options[:-1]):  # the last: deterministic, as this always is
        rows, keys = sequence.rows, sequence.keys
        gradients = _attention_torch.backward(
            dout[None, rows],
            None if dlse is None else dlse[None, :, rows],
            q[None, rows],
            k[None, keys],
            v[None, keys],
            out[None, rows],
            lse[None, :, rows],
            sequence.scoring,
            sequence.dropout,
        )
        dq[rows], dk[keys], dv[keys] = (gradient[0] for gradient in gradients)
    return dq, dk, dv


register(_OP, _torch_fwd, _torch_bwd)
