"""attention_decode at LLM-jp's heads: one new token a sequence, over caches of several lengths.

The work is reading the valid keys and values once; q, out and the append are counted too. Peers
append with an index assignment and attend over the valid part, or over all of it with a mask.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

import llmjp_ext
from benchmarks.harness import OURS, Case, accuracy_check, missing
from llmjp_ext.reference.attention_decode import attention_decode as definition

FLASH = "flash-attn"


class Shape(NamedTuple):
    """`batch` sequences with `length` keys in a cache of `capacity`."""

    batch: int
    length: int
    capacity: int
    heads: int
    kv_heads: int
    head_dim: int

    def __str__(self) -> str:
        return (
            f"{self.batch} x {self.length} of {self.capacity}, "
            f"{self.heads}/{self.kv_heads} x {self.head_dim}"
        )


CUDA_SHAPES = (
    Shape(1, 1024, 2048, 16, 16, 128),
    Shape(1, 2047, 2048, 40, 40, 128),
    Shape(32, 1024, 2048, 16, 16, 128),
    Shape(8, 8191, 8192, 32, 8, 128),
)
CPU_SHAPES = (Shape(1, 1024, 2048, 16, 16, 128), Shape(4, 1024, 2048, 16, 4, 128))
QUICK_SHAPES = (Shape(2, 40, 64, 4, 2, 32),)

Inputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


def ours(inputs: Inputs) -> Tensor:
    """llmjp_ext's op."""
    q, k_cache, v_cache, seqlens, k_new, v_new = inputs
    return llmjp_ext.attention_decode(q, k_cache, v_cache, seqlens, k_new=k_new, v_new=v_new)


def append(inputs: Inputs, length: int) -> tuple[Tensor, Tensor]:
    """The new keys and values at a place that the host knows."""
    _, k_cache, v_cache, _, k_new, v_new = inputs
    k_cache[:, length : length + 1] = k_new
    v_cache[:, length : length + 1] = v_new
    return k_cache.transpose(1, 2), v_cache.transpose(1, 2)


def sdpa(inputs: Inputs, length: int) -> Tensor:
    """What PyTorch users write where all sequences have one length that the host knows."""
    k, v = append(inputs, length)
    q = inputs[0].transpose(1, 2)
    valid = slice(0, length + 1)
    out = F.scaled_dot_product_attention(q, k[:, :, valid], v[:, :, valid], enable_gqa=True)
    return out.transpose(1, 2)


def sdpa_masked(inputs: Inputs, length: int) -> Tensor:
    """The same with shapes that do not change, as a CUDA graph needs them: a mask of the cache."""
    k, v = append(inputs, length)
    q, seqlens = inputs[0].transpose(1, 2), inputs[3]
    seen = torch.arange(k.shape[2], device=q.device) <= seqlens[:, None]
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=seen[:, None, None, :], enable_gqa=True)
    return out.transpose(1, 2)


def flash_attn(inputs: Inputs) -> Tensor:
    """Dao's kernels."""
    from flash_attn import flash_attn_with_kvcache

    q, k_cache, v_cache, seqlens, k_new, v_new = inputs
    return flash_attn_with_kvcache(
        q, k_cache, v_cache, k=k_new, v=v_new, cache_seqlens=seqlens, causal=True
    )


def decode_case(shape: Shape, dtype: torch.dtype, device: torch.device) -> Case:
    """Append one token and attend to all."""
    cache = (shape.batch, shape.capacity, shape.kv_heads, shape.head_dim)
    q = torch.randn(shape.batch, 1, shape.heads, shape.head_dim, device=device, dtype=dtype)
    k_cache, v_cache = (torch.randn(cache, device=device, dtype=dtype) for _ in range(2))
    k_new, v_new = (torch.randn_like(t[:, :1]) for t in (k_cache, v_cache))
    seqlens = torch.full((shape.batch,), shape.length, dtype=torch.int32, device=device)
    inputs = (q, k_cache, v_cache, seqlens, k_new, v_new)
    wide = [t.double() for t in (q, k_cache, v_cache)]
    new = {"k_new": k_new, "v_new": v_new}
    exact = definition(*wide, seqlens, **{name: t.double() for name, t in new.items()})[0]
    plain = definition(q, k_cache, v_cache, seqlens, **new)[0]
    candidates: dict[str, Callable[[], Tensor]] = {
        OURS: lambda: ours(inputs),
        "F.scaled_dot_product_attention, known length": lambda: sdpa(inputs, shape.length),
        "F.scaled_dot_product_attention, mask": lambda: sdpa_masked(inputs, shape.length),
    }
    reason = missing("flash_attn", "flash-attn") if device.type == "cuda" else "needs CUDA"
    if reason is None:
        candidates[FLASH] = lambda: flash_attn(inputs)
    keys = shape.batch * (shape.length + 1) * shape.kv_heads * shape.head_dim
    appended = k_new.numel()
    return Case(
        name="decode",
        shape=str(shape),
        dtype=str(dtype).removeprefix("torch."),
        candidates={name: torch.no_grad()(run) for name, run in candidates.items()},
        check=accuracy_check({"out": exact}, [plain]),
        bytes=2 * (keys + appended + q.numel()) * dtype.itemsize,
        flops=4 * shape.batch * shape.heads * (shape.length + 1) * shape.head_dim,
        absent={} if reason is None else {FLASH: reason},
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
