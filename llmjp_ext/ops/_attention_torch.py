"""Attention in plain PyTorch, shared by the implementations of attention and attention_decode.

Where aten's CPU flash attention can do what is asked it is called; else the scores are computed a
block of query rows at a time, in float32, and never exist for all rows.
"""

import dataclasses
from collections.abc import Iterator

import torch
from torch import Tensor

from llmjp_ext.ops._support import row_dropout

# aten's flash attention wants its mask as a tensor; beyond 64 MiB of it the blocks are used.
_LARGEST_MASK = 1 << 24
# Scores held at a time, 16 MiB of float32: within the caches of a server, long enough for matmul.
_SCORES_OF_BLOCK = 1 << 22


@dataclasses.dataclass(frozen=True)
class Scoring:
    """How scores are made of q·k; the fields are the op's arguments of the same names.

    query_shift is the position of query 0 among the keys: a number, or int64 [batch].
    """

    scale: float
    window_left: int
    window_right: int
    softcap: float = 0.0
    alibi_slopes: Tensor | None = None
    starts_k: Tensor | None = None
    seqlens_k: Tensor | None = None
    query_shift: int | Tensor = 0

    @property
    def masks(self) -> bool:
        """Whether any key may be masked."""
        return (
            self.window_left >= 0
            or self.window_right >= 0
            or self.starts_k is not None
            or self.seqlens_k is not None
        )

    def key_range(self, first: int, last: int, keys: int) -> tuple[int, int]:
        """The keys that query rows [first, last) can see at all, as far as known without a sync."""
        low, high = 0, keys
        if isinstance(self.query_shift, int):
            if self.window_left >= 0:
                low = first + self.query_shift - self.window_left
            if self.window_right >= 0:
                high = last + self.query_shift + self.window_right
        low = min(max(low, 0), keys)
        return low, min(max(high, low), keys)

    def distance(self, rows: Tensor, columns: Tensor) -> Tensor:
        """Position of the query minus that of the key: [1 or batch, 1, rows, columns]."""
        shift = self.query_shift
        if isinstance(shift, Tensor):
            shift = shift.view(-1, 1, 1, 1)
        return (rows[:, None] - columns).view(1, 1, len(rows), len(columns)) + shift

    def allowed(self, rows: Tensor, columns: Tensor) -> Tensor:
        """Which keys each query sees: bool [1 or batch, 1, rows, columns]."""
        distance = self.distance(rows, columns)
        seen = torch.ones_like(distance, dtype=torch.bool)
        if self.window_left >= 0:
            seen = seen & (distance <= self.window_left)
        if self.window_right >= 0:
            seen = seen & (-distance <= self.window_right)
        if self.starts_k is not None:
            seen = seen & (columns >= self.starts_k.view(-1, 1, 1, 1))
        if self.seqlens_k is not None:
            seen = seen & (columns < self.seqlens_k.view(-1, 1, 1, 1))
        return seen


def _flash_mask(q: Tensor, k: Tensor, scoring: Scoring) -> tuple[Tensor | None, bool] | None:
    """(mask, is_causal) for aten's CPU flash attention, or None where it is no help."""
    if (
        q.device.type != "cpu"
        or scoring.softcap > 0
        or scoring.alibi_slopes is not None
        or isinstance(scoring.query_shift, Tensor)
    ):
        return None
    tokens, keys = q.shape[1], k.shape[1]
    padded = scoring.starts_k is not None or scoring.seqlens_k is not None
    at_the_end = scoring.query_shift == keys - tokens
    causal_alone = scoring.window_right == 0 and scoring.window_left < 0 and not padded
    if not scoring.masks or (causal_alone and at_the_end and tokens == 1):
        return None, False
    if causal_alone and at_the_end and tokens == keys:  # aten aligns its causal mask top-left
        return None, True
    if (q.shape[0] if padded else 1) * tokens * keys > _LARGEST_MASK:
        return None
    hidden = ~scoring.allowed(torch.arange(tokens), torch.arange(keys))
    return torch.zeros(hidden.shape).masked_fill_(hidden, -torch.inf), False


def _heads_first(x: Tensor) -> Tensor:
    """[batch, heads, tokens, head_dim]; aten's backward misreads a last stride that is not 1."""
    return (x if x.stride(-1) == 1 else x.contiguous()).transpose(1, 2)


def _flash_forward(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, is_causal: bool, scale: float
) -> tuple[Tensor, Tensor]:
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        _heads_first(q),
        _heads_first(k),
        _heads_first(v),
        0.0,
        is_causal,
        attn_mask=mask,
        scale=scale,
    )
    if mask is not None:  # a row without keys has aten's output 0, but lse 0
        lse = lse.masked_fill((mask == -torch.inf).all(-1), -torch.inf)
    return out.transpose(1, 2).contiguous(), lse.contiguous()


def _flash_backward(
    dout: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    mask: Tensor | None,
    is_causal: bool,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    gradients = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
        *(_heads_first(t) for t in (dout, q, k, v, out)),
        # Any finite lse gives a fully masked row its probabilities of 0; -inf would give NaN.
        lse.masked_fill(lse == -torch.inf, 0.0),
        0.0,
        is_causal,
        attn_mask=mask,
        scale=scale,
    )
    dq, dk, dv = (gradient.transpose(1, 2).contiguous() for gradient in gradients)
    return dq, dk, dv


def grouped(x: Tensor, kv_heads: int) -> Tensor:
    """[batch, tokens, heads, head_dim] to float32 [batch, kv_heads, group * tokens, head_dim]."""
    batch, tokens, heads, width = x.shape
    x = x.float().view(batch, tokens, kv_heads, heads // kv_heads, width)
    return x.permute(0, 2, 3, 1, 4).reshape(batch, kv_heads, -1, width)


def ungrouped(x: Tensor, tokens: int) -> Tensor:
    """The way back of `grouped`, without the dtype."""
    batch, kv_heads, rows, width = x.shape
    x = x.view(batch, kv_heads, rows // tokens, tokens, width)
    return x.permute(0, 3, 1, 2, 4).reshape(batch, tokens, -1, width)


@dataclasses.dataclass(frozen=True)
class Dropout:
    """Which probabilities are dropped: rows of `row_dropout`, one for each query and head."""

    random_state: Tensor  # (seed, offset), int64 [2]
    share: float  # of the probabilities that is dropped
    first_row: Tensor  # number of query 0's row, int64 [batch, heads]
    row_width: int

    @classmethod
    def of_batch(cls, random_state: Tensor, share: float, q: Tensor, k: Tensor) -> "Dropout":
        """Query i's row is (batch_index * heads + head) * tokens + i; shapes as in `attention`."""
        batch, tokens, heads, _ = q.shape
        head = torch.arange(batch * heads, device=q.device).view(batch, heads)
        return cls(random_state, share, head * tokens, k.shape[1])

    def scale(self, rows: range, keys: int) -> Tensor:
        """What the probabilities of some queries are multiplied with, 0 or 1 / (1 - share).

        float32 [batch, heads, len(rows), keys], of the first `keys` keys.
        """
        query = torch.arange(rows.start, rows.stop, device=self.first_row.device)
        row = self.first_row[..., None] + query
        return row_dropout(self.random_state, self.share, row, keys, self.row_width)


@dataclasses.dataclass
class _Block:
    """One block of query rows and the keys it can see."""

    rows: range
    low: int
    high: int
    query: Tensor  # float32 [batch, kv_heads, group * rows, head_dim]
    scores: Tensor  # float32 [batch, heads, rows, high - low], masked ones -inf
    capped: Tensor | None  # the scores as softcap left them
    dropout: Tensor | None  # [batch, heads, rows, high - low]


def _blocks(
    q: Tensor,
    keys_t: Tensor,
    scoring: Scoring,
    dropout: Dropout | None,
) -> Iterator[_Block]:
    batch, tokens, heads, _ = q.shape
    kv_heads, keys = keys_t.shape[1], keys_t.shape[3]
    rows_of_block = max(1, _SCORES_OF_BLOCK // max(1, batch * heads * keys))
    for first in range(0, tokens, rows_of_block):
        rows = range(first, min(first + rows_of_block, tokens))
        low, high = scoring.key_range(rows.start, rows.stop, keys)
        query = grouped(q[:, rows.start : rows.stop], kv_heads)
        scores = (query @ keys_t[..., low:high]).view(batch, heads, len(rows), high - low)
        scores = scores * scoring.scale
        capped = None
        if scoring.softcap > 0:
            capped = scores = scoring.softcap * torch.tanh(scores / scoring.softcap)
        i = torch.arange(rows.start, rows.stop, device=q.device)
        j = torch.arange(low, high, device=q.device)
        if scoring.alibi_slopes is not None:
            slopes = scoring.alibi_slopes.view(-1, heads, 1, 1)
            scores = scores - slopes * scoring.distance(i, j).abs()
        if scoring.masks:
            scores = scores.masked_fill(~scoring.allowed(i, j), -torch.inf)
        kept = None if dropout is None else dropout.scale(rows, high)[..., low:]
        yield _Block(rows, low, high, query, scores, capped, kept)


def _probabilities(scores: Tensor, lse: Tensor) -> Tensor:
    """exp(scores - lse); 0 where a row is fully masked, whose lse is -inf."""
    return torch.exp(scores - lse.masked_fill(lse == -torch.inf, 0.0)[..., None])


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scoring: Scoring,
    dropout: Dropout | None = None,
) -> tuple[Tensor, Tensor]:
    """out as q, and lse float32 [batch, heads, tokens]; shapes as in `attention`."""
    if dropout is None and (flash := _flash_mask(q, k, scoring)) is not None:
        return _flash_forward(q, k, v, *flash, scoring.scale)
    batch, tokens, heads, _ = q.shape
    kv_heads = k.shape[2]
    keys_t = k.float().permute(0, 2, 3, 1)
    values = v.float().transpose(1, 2)
    out = q.new_zeros(q.shape)
    lse = q.new_full((batch, heads, tokens), -torch.inf, dtype=torch.float32)
    for block in _blocks(q, keys_t, scoring, dropout):
        if block.low == block.high:
            continue
        rows = slice(block.rows.start, block.rows.stop)
        block_lse = torch.logsumexp(block.scores, -1)
        lse[:, :, rows] = block_lse
        p = _probabilities(block.scores, block_lse)
        if block.dropout is not None:
            p = p * block.dropout
        p = p.view(batch, kv_heads, -1, block.high - block.low)
        out[:, rows] = ungrouped(p @ values[:, :, block.low : block.high], len(block.rows))
    return out, lse


def backward(
    dout: Tensor,
    dlse: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    scoring: Scoring,
    dropout: Dropout | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v; the scores are computed again, from lse."""
    flash = _flash_mask(q, k, scoring) if dropout is None and dlse is None else None
    if flash is not None:
        return _flash_backward(dout, q, k, v, out, lse, *flash, scoring.scale)
    batch, keys, kv_heads, width = k.shape
    keys_t = k.float().permute(0, 2, 3, 1)
    values_t = v.float().permute(0, 2, 3, 1)
    dq = q.new_zeros(q.shape)
    dk, dv = (q.new_zeros((batch, kv_heads, keys, width), dtype=torch.float32) for _ in range(2))
    # Softmax' own term: sum_j p_j dp_j = dout . out, dropped probabilities included.
    delta = (dout.float() * out.float()).sum(-1).transpose(1, 2)
    if dlse is not None:
        delta = delta - dlse
    for block in _blocks(q, keys_t, scoring, dropout):
        if block.low == block.high:
            continue
        rows, columns = slice(block.rows.start, block.rows.stop), slice(block.low, block.high)
        p = _probabilities(block.scores, lse[:, :, rows])
        dout_block = grouped(dout[:, rows], kv_heads)
        dp = (dout_block @ values_t[..., columns]).view(p.shape)
        dropped = p
        if block.dropout is not None:
            dropped, dp = p * block.dropout, dp * block.dropout
        ds = p * (dp - delta[:, :, rows, None])
        if block.capped is not None:
            ds = ds * (1.0 - (block.capped / scoring.softcap).square())
        ds = (ds * scoring.scale).view(batch, kv_heads, -1, block.high - block.low)
        dropped = dropped.view(ds.shape)
        dq[:, rows] = ungrouped(ds @ keys_t[..., columns].transpose(2, 3), len(block.rows))
        dk[:, :, columns] += ds.transpose(2, 3) @ block.query
        dv[:, :, columns] += dropped.transpose(2, 3) @ dout_block
    return (
        dq,
        dk.transpose(1, 2).to(k.dtype).contiguous(),
        dv.transpose(1, 2).to(v.dtype).contiguous(),
    )
