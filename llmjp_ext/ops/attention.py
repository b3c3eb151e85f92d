"""attention: softmax(q·kᵀ)·v with grouped heads, windows, padding, ALiBi, softcap and dropout.

The public function checks its arguments and dispatches to torch.ops.llmjp_ext, whose PyTorch
implementation is in _attention_torch.
"""

from typing import Literal, overload

import torch
from torch import Tensor

from llmjp_ext.ops import _attention_torch
from llmjp_ext.ops._attention_autograd import attend, check_keys, register
from llmjp_ext.ops._attention_torch import Dropout, Scoring
from llmjp_ext.ops._support import (
    FLOAT_NAMES,
    FLOATS,
    autocast_dtype,
    draw_random_state,
    without_autocast,
)

_OP = "attention"


@overload
def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool = ...,
    scale: float | None = ...,
    window: tuple[int, int] | None = ...,
    softcap: float = ...,
    alibi_slopes: Tensor | None = ...,
    dropout_p: float = ...,
    starts_k: Tensor | None = ...,
    seqlens_k: Tensor | None = ...,
    return_lse: Literal[False] = ...,
) -> Tensor: ...


@overload
def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool = ...,
    scale: float | None = ...,
    window: tuple[int, int] | None = ...,
    softcap: float = ...,
    alibi_slopes: Tensor | None = ...,
    dropout_p: float = ...,
    starts_k: Tensor | None = ...,
    seqlens_k: Tensor | None = ...,
    return_lse: Literal[True],
) -> tuple[Tensor, Tensor]: ...


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
    dropout_p: float = 0.0,
    starts_k: Tensor | None = None,
    seqlens_k: Tensor | None = None,
    return_lse: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Scaled dot-product attention.

    Query i stands at key position i + keys - tokens: causal and window are aligned at the last
    query and the last key, of the tensors, not of seqlens_k. Scores are q·k * scale, then
    softcap * tanh(score / softcap), then minus slope * |distance|, then masked. A query that sees
    no key has output 0 and lse -inf. Differentiable once in q, k and v, through out and lse.

    Args:
        q: [batch, tokens, heads, head_dim], float16 or bfloat16, on the CPU float32 too. Any
            strides with a contiguous last dimension are taken as they are. Under autocast q, k and
            v are cast to its dtype.
        k: [batch, keys, kv_heads, head_dim] of q's dtype; heads is a multiple of kv_heads.
        v: as k.
        causal: hides the keys behind a query's own position.
        scale: multiplies q·k; None means head_dim ** -0.5.
        window: (left, right), how many keys before and behind its own position a query sees;
            -1 is no bound. With causal, right is 0.
        softcap: bounds scores to ±softcap; 0 is off.
        alibi_slopes: float32 [heads] or [batch, heads], not differentiable.
        dropout_p: share of the probabilities that is dropped, at least 0 and below 1. The mask
            comes from the device's default generator through one draw of seed and offset, and is
            computed again in backward. lse is that before dropout.
        starts_k: int32 [batch], the first key of each sequence: left padding.
        seqlens_k: int32 [batch], one past the last key of each sequence: right padding.
        return_lse: also return the log-sum-exp of the scores.

    Returns:
        out, as q, contiguous; with return_lse (out, lse), lse float32 [batch, heads, tokens] in
        natural logarithms.

    Raises:
        TypeError: for a dtype that is not supported.
        ValueError: for shapes, devices or numbers that do not fit.

    Source: Vaswani et al., arXiv 1706.03762; Dao, arXiv 2307.08691; ALiBi: Press et al.,
    arXiv 2108.12409; softcap: Gemma 2, arXiv 2408.00118.
    """
    dtype = autocast_dtype(q.device)
    if dtype is not None:
        q, k, v = q.to(dtype), k.to(dtype), v.to(dtype)
    _check_tensors(q, k, v)
    window_left, window_right = check_window(_OP, window)
    if causal:
        window_right = 0
    check_softcap(_OP, softcap)
    check_alibi(_OP, alibi_slopes, q)
    check_lengths(_OP, "starts_k", starts_k, q)
    check_lengths(_OP, "seqlens_k", seqlens_k, q)
    check_dropout(_OP, dropout_p)
    random_state = draw_random_state(q.device) if dropout_p > 0 else None
    out, lse = attend(
        _OP,
        q,
        k,
        v,
        alibi_slopes,
        starts_k,
        seqlens_k,
        random_state,
        scale,
        window_left,
        window_right,
        softcap,
        dropout_p,
    )
    return (out, lse) if return_lse else out


def _check_tensors(q: Tensor, k: Tensor, v: Tensor) -> None:
    check_dtype(_OP, q)
    if q.ndim != 4:
        raise ValueError(
            f"{_OP}: q must be [batch, tokens, heads, head_dim], got shape {list(q.shape)}."
        )
    check_keys(_OP, q, k, v, (q.shape[0], "keys"))


def check_dtype(op: str, q: Tensor) -> None:
    """Raises TypeError for a dtype of q that attention does not take on q's device."""
    if q.dtype not in FLOATS:
        raise TypeError(f"{op}: q must be {FLOAT_NAMES}, got {q.dtype}.")
    if q.is_cuda and q.dtype == torch.float32:
        raise TypeError(f"{op}: q must be float16 or bfloat16 on CUDA, got {q.dtype}.")


def check_window(op: str, window: tuple[int, int] | None) -> tuple[int, int]:
    """(left, right) of an op's window argument, -1 for an open side."""
    if window is None:
        return -1, -1
    if len(window) != 2 or min(window) < -1:
        raise ValueError(f"{op}: window must be (left, right), each at least -1, got {window}.")
    return window


def check_softcap(op: str, softcap: float) -> None:
    """Raises ValueError unless softcap is a bound or 0."""
    if not softcap >= 0.0:
        raise ValueError(f"{op}: softcap must not be negative, got {softcap}.")


def check_dropout(op: str, dropout_p: float) -> None:
    """Raises ValueError unless dropout_p is a share below 1."""
    if not 0.0 <= dropout_p < 1.0:
        raise ValueError(f"{op}: dropout_p must be at least 0 and below 1, got {dropout_p}.")


def check_alibi(op: str, slopes: Tensor | None, q: Tensor, batch: int | None = None) -> None:
    """Raises unless slopes are float32 [heads] or [batch, heads], on q's device.

    q is [..., heads, head_dim]; batch is its first size unless given.
    """
    if slopes is None:
        return
    heads = q.shape[-2]
    batch = q.shape[0] if batch is None else batch
    if slopes.dtype != torch.float32:
        raise TypeError(f"{op}: alibi_slopes must be float32, got {slopes.dtype}.")
    if slopes.shape != (heads,) and slopes.shape != (batch, heads):
        raise ValueError(
            f"{op}: alibi_slopes must have shape [{heads}] or [{batch}, {heads}], "
            f"got {list(slopes.shape)}."
        )
    if slopes.device != q.device:
        raise ValueError(
            f"{op}: alibi_slopes must be on q's device {q.device}, got {slopes.device}."
        )


def check_lengths(op: str, name: str, lengths: Tensor | None, q: Tensor) -> None:
    """Raises unless lengths is None or int32 [batch] of q, on its device."""
    if lengths is None:
        return
    if lengths.dtype != torch.int32:
        raise TypeError(f"{op}: {name} must be int32, got {lengths.dtype}.")
    if lengths.shape != (q.shape[0],):
        raise ValueError(
            f"{op}: {name} must have shape [{q.shape[0]}], one a sequence, "
            f"got {list(lengths.shape)}."
        )
    if lengths.device != q.device:
        raise ValueError(f"{op}: {name} must be on q's device {q.device}, got {lengths.device}.")


def _scoring(
    q: Tensor,
    k: Tensor,
    alibi_slopes: Tensor | None,
    starts_k: Tensor | None,
    seqlens_k: Tensor | None,
    scale: float | None,
    window_left: int,
    window_right: int,
    softcap: float,
) -> Scoring:
    return Scoring(
        scale=q.shape[-1] ** -0.5 if scale is None else scale,
        window_left=window_left,
        window_right=window_right,
        softcap=softcap,
        alibi_slopes=alibi_slopes,
        starts_k=starts_k,
        seqlens_k=seqlens_k,
        query_shift=k.shape[1] - q.shape[1],
    )


def _dropout(random_state: Tensor | None, dropout_p: float, q: Tensor, k: Tensor) -> Dropout | None:
    return None if random_state is None else Dropout.of_batch(random_state, dropout_p, q, k)


@without_autocast
def _torch_fwd(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    alibi_slopes: Tensor | None,
    starts_k: Tensor | None,
    seqlens_k: Tensor | None,
    random_state: Tensor | None,
    scale: float | None,
    window_left: int,
    window_right: int,
    softcap: float,
    dropout_p: float,
) -> tuple[Tensor, Tensor]:
    if q.numel() == 0 or k.numel() == 0:
        batch, tokens, heads, _ = q.shape
        return q.new_zeros(q.shape), q.new_full(
            (batch, heads, tokens), -torch.inf, dtype=torch.float32
        )
    scoring = _scoring(
        q, k, alibi_slopes, starts_k, seqlens_k, scale, window_left, window_right, softcap
    )
    return _attention_torch.forward(q, k, v, scoring, _dropout(random_state, dropout_p, q, k))


@without_autocast
def _torch_bwd(
    dout: Tensor,
    dlse: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    alibi_slopes: Tensor | None,
    starts_k: Tensor | None,
    seqlens_k: Tensor | None,
    random_state: Tensor | None,
    scale: float | None,
    window_left: int,
    window_right: int,
    softcap: float,
    dropout_p: float,
    deterministic: bool,  # as the blocks always are
) -> tuple[Tensor, Tensor, Tensor]:
    if q.numel() == 0 or k.numel() == 0:
        return q.new_zeros(q.shape), k.new_zeros(k.shape), v.new_zeros(v.shape)
    scoring = _scoring(
        q, k, alibi_slopes, starts_k, seqlens_k, scale, window_left, window_right, softcap
    )
    dropout = _dropout(random_state, dropout_p, q, k)
    return _attention_torch.backward(dout, dlse, q, k, v, out, lse, scoring, dropout)


register(_OP, _torch_fwd, _torch_bwd)
