"""attention_varlen over documents packed into one sample: causal, forward and backward.

Beside it stands `attention` of a batch of equal documents that takes as many operations: what a mix
of lengths costs.
"""

import itertools
import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

import llmjp_ext
from benchmarks.harness import OURS, Case, missing
from benchmarks.harness.attention import (
    FLASH_2,
    FLASH_3,
    SDPA,
    TORCH_VARLEN,
    Function,
    Index,
    Passes,
    Way,
    Work,
    bounds_of,
    chosen,
    parts,
)

DENSE = f"{OURS} attention"
LOOP = f"{SDPA}, a document at a time"


class Shape(NamedTuple):
    """Documents of these lengths behind one another."""

    lengths: tuple[int, ...]
    heads: int
    kv_heads: int
    head_dim: int

    @property
    def total(self) -> int:
        """Tokens in all."""
        return sum(self.lengths)

    @property
    def squares(self) -> int:
        """Scores of a head, before the mask."""
        return sum(length * length for length in self.lengths)

    def equal(self) -> "Shape":
        """As many operations in documents of one length, of about as many tokens in all."""
        documents = max(1, round(self.total**2 / self.squares))
        length = round(math.sqrt(self.squares / documents))
        return self._replace(lengths=(length,) * documents)

    def __str__(self) -> str:
        longest = max(self.lengths)
        kind = f"of {longest}" if self.equal() == self else f"up to {longest}"
        return (
            f"{len(self.lengths)} documents {kind}, {self.total} tokens x "
            f"{self.heads}/{self.kv_heads} x {self.head_dim}"
        )


def mixed(total: int, longest: int) -> tuple[int, ...]:
    """Lengths as web documents have them: log-normal about 400 tokens, cut at the context."""
    generator = torch.Generator().manual_seed(0)
    lengths: list[int] = []
    while sum(lengths) < total:
        drawn = 400 * torch.randn((), generator=generator).mul(1.1).exp()
        lengths.append(min(max(int(drawn), 8), longest, total - sum(lengths)))
    return tuple(lengths)


# Samples of 16k and 64k tokens at the models' heads, and the same tokens as equal documents.
CUDA_SHAPES = (
    Shape(mixed(16384, 2048), 16, 16, 128),
    Shape(mixed(65536, 8192), 16, 16, 128),
    Shape(mixed(16384, 2048), 16, 2, 128),
    Shape(mixed(16384, 2048), 32, 32, 64),
    Shape((2048,) * 8, 16, 16, 128),
    Shape((512,) * 32, 16, 16, 128),
)
CPU_SHAPES = (Shape((256,) * 4, 16, 16, 128), Shape(mixed(1024, 512), 16, 16, 128))
QUICK_SHAPES = (Shape((24, 24), 4, 2, 32), Shape((40, 3, 21), 4, 2, 32))


class Packed:
    """The packed functions of one shape, whose boundaries are made outside the measured time."""

    def __init__(self, shape: Shape, device: torch.device) -> None:
        self.bounds = bounds_of(shape.lengths)
        cu_seqlens = torch.tensor(self.bounds, dtype=torch.int32, device=device)
        longest = max(shape.lengths)
        self.lengths = (cu_seqlens, cu_seqlens, longest, longest)
        self.documents = len(shape.lengths)

    def ours(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """llmjp_ext's op."""
        return llmjp_ext.attention_varlen(q, k, v, *self.lengths, causal=True)

    def dense(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Documents of one length as a batch."""
        q, k, v = (t.unflatten(0, (self.documents, -1)) for t in (q, k, v))
        return llmjp_ext.attention(q, k, v, causal=True).flatten(0, 1)

    def loop(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """What PyTorch users write without a packed kernel."""
        results = []
        for begin, end in itertools.pairwise(self.bounds):
            own = (t[begin:end].transpose(0, 1)[None] for t in (q, k, v))
            out = F.scaled_dot_product_attention(*own, is_causal=True, enable_gqa=True)
            results.append(out[0].transpose(0, 1))
        return torch.cat(results)

    def torch_varlen(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """PyTorch's packed attention."""
        from torch.nn.attention.varlen import varlen_attn

        gqa = {"enable_gqa": True} if q.shape[1] != k.shape[1] else {}
        out: Tensor = varlen_attn(q, k, v, *self.lengths, window_size=(-1, 0), **gqa)  # type: ignore
        return out

    def flash_2(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """The FlashAttention package."""
        from flash_attn import flash_attn_varlen_func

        ordered = torch.are_deterministic_algorithms_enabled()
        result: Tensor = flash_attn_varlen_func(
            q, k, v, *self.lengths, causal=True, deterministic=ordered
        )
        return result

    def flash_3(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """FlashAttention-3's forward pass."""
        from fa3_fwd_interface import flash_attn_varlen_func

        result = flash_attn_varlen_func(q, k, v, *self.lengths, causal=True)
        out: Tensor = result[0] if isinstance(result, tuple) else result
        return out


def functions(packed: Packed, device: torch.device) -> tuple[dict[str, Function], dict[str, str]]:
    """The candidates by name, and the peers that this machine cannot run with the reason."""
    present: dict[str, Function] = {OURS: packed.ours, LOOP: packed.loop}
    absent: dict[str, str] = {}
    for name, function, module, package in (
        (TORCH_VARLEN, packed.torch_varlen, "torch.nn.attention.varlen", "torch 2.10 or newer"),
        (FLASH_2, packed.flash_2, "flash_attn", FLASH_2),
        (FLASH_3, packed.flash_3, "fa3_fwd_interface", FLASH_3),
    ):
        reason = missing(module, package) if device.type == "cuda" else "needs CUDA"
        if reason is None:
            present[name] = function
        else:
            absent[name] = reason
    return present, absent


def work_of(shape: Shape, dtype: torch.dtype, device: torch.device) -> Work:
    """Random q, k and v."""
    q, k, v = (
        torch.randn(shape.total, h, shape.head_dim, device=device, dtype=dtype)
        for h in (shape.heads, shape.kv_heads, shape.kv_heads)
    )
    sequences: list[tuple[Index, int]] = [
        ((slice(begin, end),), end - begin)
        for begin, end in itertools.pairwise(bounds_of(shape.lengths))
    ]
    return Work(q, k, v, chosen(parts(sequences, shape.heads, shape.kv_heads)), causal=True)


def passes(shape: Shape, dtype: torch.dtype, device: torch.device) -> Passes:
    """A shape's cases."""
    work = work_of(shape, dtype, device)
    present, absent = functions(Packed(shape, device), device)
    ways = {name: Way(function, work) for name, function in present.items()}
    equal = shape.equal()
    equal_work = work if equal == shape else work_of(equal, dtype, device)
    ways[DENSE] = Way(Packed(equal, device).dense, equal_work)
    return Passes(str(shape), ways, absent, shape.heads * shape.squares * shape.head_dim)


def cases(device: torch.device, quick: bool) -> Iterator[Case]:
    """Both directions at every shape and dtype; float32 on the CPU only."""
    torch.manual_seed(0)
    on_cuda = device.type == "cuda"
    shapes = QUICK_SHAPES if quick else CUDA_SHAPES if on_cuda else CPU_SHAPES
    dtypes = (torch.bfloat16,) if on_cuda else (torch.float32, torch.bfloat16)
    for shape in shapes:
        for dtype in dtypes:
            made = passes(shape, dtype, device)
            yield made.forward()
            yield made.backward()
