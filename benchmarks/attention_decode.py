"""attention_decode at LLM-jp's and at grouped heads: new tokens over caches of several lengths.

The work is reading the valid keys and values once; q, out and the append are counted too. PyTorch's
attention appends with an index assignment and attends over the valid part, or over all of it with a
mask; it has no paged caches. The goals are of a million keys, of one sequence with 2,048, and of
eight new tokens.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

import llmjp_ext
from benchmarks.harness import OURS, Case, accuracy_check, missing
from benchmarks.harness.attention import FLASH_2, FLASH_3, SDPA, refusal
from llmjp_ext.reference.attention_decode import attention_decode as definition


class Shape(NamedTuple):
    """`batch` sequences with `length` keys before the append, in a cache of `capacity`."""

    batch: int
    length: int
    capacity: int
    heads: int
    kv_heads: int
    head_dim: int
    tokens: int = 1
    page: int | None = None

    def __str__(self) -> str:
        return (
            f"{self.batch} x {self.length} of {self.capacity}, "
            f"{self.heads}/{self.kv_heads} x {self.head_dim}"
            + (f", {self.tokens} tokens" if self.tokens > 1 else "")
            + (f", pages of {self.page}" if self.page is not None else "")
        )


# The last four hold a million keys, of which reading is nearly all of the work.
CUDA_SHAPES = (
    Shape(1, 1024, 2048, 16, 16, 128),
    Shape(1, 2047, 2048, 40, 40, 128),
    Shape(1, 2047, 2048, 64, 8, 128),
    Shape(32, 1024, 2048, 16, 16, 128),
    Shape(8, 8191, 8192, 32, 8, 128),
    Shape(128, 8191, 8192, 64, 8, 128),
    Shape(128, 8191, 8192, 64, 8, 128, page=16),
    Shape(32, 32760, 32768, 64, 8, 64),
    Shape(32, 32760, 32768, 64, 8, 128, tokens=8),
)
CPU_SHAPES = (Shape(1, 1024, 2048, 16, 16, 128), Shape(4, 1024, 2048, 16, 4, 128))
QUICK_SHAPES = (
    Shape(2, 40, 64, 4, 2, 32),
    Shape(3, 40, 64, 4, 2, 32, tokens=3),
    Shape(2, 40, 64, 4, 2, 32, page=16),
)


class Inputs(NamedTuple):
    """What a call is given; block_table is None for a contiguous cache."""

    q: Tensor
    k_cache: Tensor
    v_cache: Tensor
    seqlens: Tensor
    k_new: Tensor
    v_new: Tensor
    block_table: Tensor | None


def ours(inputs: Inputs) -> Tensor:
    """llmjp_ext's op."""
    q, k_cache, v_cache, seqlens, k_new, v_new, block_table = inputs
    return llmjp_ext.attention_decode(
        q, k_cache, v_cache, seqlens, k_new=k_new, v_new=v_new, block_table=block_table
    )


def append(inputs: Inputs, length: int) -> tuple[Tensor, Tensor]:
    """The new keys and values at a place that the host knows."""
    new = slice(length, length + inputs.k_new.shape[1])
    inputs.k_cache[:, new] = inputs.k_new
    inputs.v_cache[:, new] = inputs.v_new
    return inputs.k_cache.transpose(1, 2), inputs.v_cache.transpose(1, 2)


def sees(inputs: Inputs, keys: int) -> Tensor:
    """Which of `keys` keys each new token sees: bool [batch, 1, tokens, keys]."""
    token = torch.arange(inputs.q.shape[1], device=inputs.q.device)
    last = inputs.seqlens.view(-1, 1, 1, 1) + token[:, None]
    return torch.arange(keys, device=inputs.q.device) <= last


def sdpa(inputs: Inputs, length: int) -> Tensor:
    """What PyTorch users write where all sequences have one length that the host knows."""
    k, v = append(inputs, length)
    tokens = inputs.q.shape[1]
    k, v = k[:, :, : length + tokens], v[:, :, : length + tokens]
    mask = sees(inputs, length + tokens) if tokens > 1 else None
    q = inputs.q.transpose(1, 2)
    return F.scaled_dot_product_attention(q, k, v, mask, enable_gqa=True).transpose(1, 2)


def sdpa_masked(inputs: Inputs, length: int) -> Tensor:
    """The same with shapes that do not change, as a CUDA graph needs them: a mask of the cache."""
    k, v = append(inputs, length)
    q = inputs.q.transpose(1, 2)
    mask = sees(inputs, k.shape[2])
    return F.scaled_dot_product_attention(q, k, v, mask, enable_gqa=True).transpose(1, 2)


def flash_2(inputs: Inputs) -> Tensor:
    """The FlashAttention package. Pages must be multiples of 256."""
    from flash_attn import flash_attn_with_kvcache

    return flash_attn_with_kvcache(**_flash_arguments(inputs), block_table=inputs.block_table)


def flash_3(inputs: Inputs) -> Tensor:
    """FlashAttention-3's forward pass."""
    from fa3_fwd_interface import flash_attn_with_kvcache

    result = flash_attn_with_kvcache(**_flash_arguments(inputs), page_table=inputs.block_table)
    out: Tensor = result[0] if isinstance(result, tuple) else result
    return out


def _flash_arguments(inputs: Inputs) -> dict[str, Any]:
    q, k_cache, v_cache, seqlens, k_new, v_new, _ = inputs
    return {
        "q": q,
        "k_cache": k_cache,
        "v_cache": v_cache,
        "k": k_new,
        "v": v_new,
        "cache_seqlens": seqlens,
        "causal": True,
    }


def functions(
    shape: Shape, inputs: Inputs, device: torch.device
) -> tuple[dict[str, Callable[[], Tensor]], dict[str, str]]:
    """The candidates by name, and the peers that cannot do this here with the reason."""
    present: dict[str, Callable[[], Tensor]] = {OURS: lambda: ours(inputs)}
    absent = {}
    if shape.page is None:
        present[f"{SDPA}, known length"] = lambda: sdpa(inputs, shape.length)
        present[f"{SDPA}, mask"] = lambda: sdpa_masked(inputs, shape.length)
    for name, function, module in (
        (FLASH_2, flash_2, "flash_attn"),
        (FLASH_3, flash_3, "fa3_fwd_interface"),
    ):
        reason = missing(module, name) if device.type == "cuda" else "needs CUDA"
        reason = reason or refusal(function, inputs)
        if reason is None:
            present[name] = partial(function, inputs)
        else:
            absent[name] = reason
    return present, absent


def make_inputs(shape: Shape, dtype: torch.dtype, device: torch.device) -> Inputs:
    """Random caches; the pages of a sequence lie anywhere."""
    table, cache = None, (shape.batch, shape.capacity, shape.kv_heads, shape.head_dim)
    if shape.page is not None:
        pages = shape.batch * shape.capacity // shape.page
        cache = (pages, shape.page, shape.kv_heads, shape.head_dim)
        table = torch.randperm(pages, device=device).view(shape.batch, -1).int()
    q = torch.randn(
        shape.batch, shape.tokens, shape.heads, shape.head_dim, device=device, dtype=dtype
    )
    k_cache, v_cache = (torch.randn(cache, device=device, dtype=dtype) for _ in range(2))
    new = (shape.batch, shape.tokens, shape.kv_heads, shape.head_dim)
    k_new, v_new = (torch.randn(new, device=device, dtype=dtype) for _ in range(2))
    seqlens = torch.full((shape.batch,), shape.length, dtype=torch.int32, device=device)
    return Inputs(q, k_cache, v_cache, seqlens, k_new, v_new, table)


def checked_sequences(inputs: Inputs) -> tuple[Tensor, Tensor]:
    """The definition for the first sequence and the last, in float64 and in the inputs' dtype: of
    all of them it would take several times the caches' memory."""
    rows = [0, len(inputs.q) - 1]
    if inputs.block_table is None:
        caches = [cache[rows] for cache in (inputs.k_cache, inputs.v_cache)]
    else:
        own = inputs.block_table[rows].long()
        caches = [cache[own].flatten(1, 2) for cache in (inputs.k_cache, inputs.v_cache)]
    given = [inputs.q[rows], *caches, inputs.k_new[rows], inputs.v_new[rows]]
    exact, plain = (
        definition(q, k, v, inputs.seqlens[rows], k_new=k_new, v_new=v_new)[0]
        for q, k, v, k_new, v_new in ([t.double() for t in given], given)
    )
    return exact, plain


def decode_case(shape: Shape, dtype: torch.dtype, device: torch.device) -> Case:
    """Append the new tokens' keys and attend to all."""
    inputs = make_inputs(shape, dtype, device)
    exact, plain = checked_sequences(inputs)
    check = accuracy_check({"out": exact}, [plain])
    rows = [0, shape.batch - 1]
    candidates, absent = functions(shape, inputs, device)
    total = shape.length + shape.tokens
    keys = shape.batch * total * shape.kv_heads * shape.head_dim
    appended = inputs.k_new.numel()
    return Case(
        name="decode",
        shape=str(shape),
        dtype=str(dtype).removeprefix("torch."),
        candidates={name: torch.no_grad()(run) for name, run in candidates.items()},
        check=lambda out: check(out[rows]),
        bytes=2 * (keys + appended + inputs.q.numel()) * dtype.itemsize,
        flops=4 * shape.batch * shape.tokens * shape.heads * total * shape.head_dim,
        absent=absent,
    )


def cases(device: torch.device, quick: bool) -> Iterator[Case]:
    """Every shape and dtype; float32 on the CPU only."""
    torch.manual_seed(0)
    on_cuda = device.type == "cuda"
    shapes = QUICK_SHAPES if quick else CUDA_SHAPES if on_cuda else CPU_SHAPES
    for shape in shapes:
        for dtype in (
            (torch.bfloat16, torch.float16) if on_cuda else (torch.float32, torch.bfloat16)
        ):
            yield decode_case(shape, dtype, device)
