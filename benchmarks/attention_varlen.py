"""attention_varlen over documents packed into one sample: causal, forward and backward.

Operations are those of the matrix products over the scores that causality leaves within each
document: two of them in forward, five in backward. Bytes are q, k, v and out once, with their
gradients in backward, and lse. Documents of one length are a batch, which `attention` takes too:
their row shows what packing itself costs, and the mixed rows are to be compared with it by TFLOP/s.
"""

import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

import llmjp_ext
from benchmarks.harness import OURS, Candidate, Case, accuracy_check, missing
from llmjp_ext.reference.attention_varlen import attention_varlen as definition
from llmjp_ext.testing import GRADIENT_FACTOR

DENSE = f"{OURS} attention"
FLASH = "flash-attn"
LOOP = "F.scaled_dot_product_attention, a document at a time"
TORCH = "torch.nn.attention.varlen"


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
    def is_batch(self) -> bool:
        """Whether all documents have one length."""
        return len(set(self.lengths)) == 1

    def __str__(self) -> str:
        longest = max(self.lengths)
        kind = f"of {longest}" if self.is_batch else f"up to {longest}"
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
    Shape((2048,) * 8, 16, 16, 128),
    Shape(mixed(16384, 2048), 16, 16, 128),
    Shape((512,) * 32, 16, 16, 128),
    Shape(mixed(65536, 8192), 16, 16, 128),
    Shape(mixed(16384, 2048), 32, 8, 128),
    Shape(mixed(16384, 2048), 16, 16, 64),
)
CPU_SHAPES = (Shape((256,) * 4, 16, 16, 128), Shape(mixed(1024, 512), 16, 16, 128))
QUICK_SHAPES = (Shape((24, 24), 4, 2, 32), Shape((40, 3, 21), 4, 2, 32))

Function = Callable[..., Tensor]


class Packed(NamedTuple):
    """What the functions need beside q, k and v; made outside the measured time."""

    shape: Shape
    cu_seqlens: Tensor
    bounds: list[int]

    @classmethod
    def of(cls, shape: Shape, device: torch.device) -> "Packed":
        """The boundaries of a shape's documents, as the op and as a loop want them."""
        bounds = list(itertools.accumulate(shape.lengths, initial=0))
        return cls(shape, torch.tensor(bounds, dtype=torch.int32, device=device), bounds)


def ours(packed: Packed, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """llmjp_ext's op."""
    cu_seqlens, longest = packed.cu_seqlens, max(packed.shape.lengths)
    return llmjp_ext.attention_varlen(
        q, k, v, cu_seqlens, cu_seqlens, longest, longest, causal=True
    )


def dense(packed: Packed, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Documents of one length as a batch."""
    documents = len(packed.shape.lengths)
    q, k, v = (t.unflatten(0, (documents, -1)) for t in (q, k, v))
    return llmjp_ext.attention(q, k, v, causal=True).flatten(0, 1)


def loop(packed: Packed, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """What PyTorch users write without a packed kernel."""
    results = []
    for begin, end in itertools.pairwise(packed.bounds):
        own = (t[begin:end].transpose(0, 1)[None] for t in (q, k, v))
        out = F.scaled_dot_product_attention(*own, is_causal=True, enable_gqa=True)
        results.append(out[0].transpose(0, 1))
    return torch.cat(results)


def torch_varlen(packed: Packed, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """PyTorch's packed attention."""
    from torch.nn.attention.varlen import varlen_attn

    cu_seqlens, longest = packed.cu_seqlens, max(packed.shape.lengths)
    gqa = {"enable_gqa": True} if q.shape[1] != k.shape[1] else {}
    return varlen_attn(  # type: ignore[return-value]
        q, k, v, cu_seqlens, cu_seqlens, longest, longest, window_size=(-1, 0), **gqa
    )


def flash_attn(packed: Packed, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Dao's kernels."""
    from flash_attn import flash_attn_varlen_func

    cu_seqlens, longest = packed.cu_seqlens, max(packed.shape.lengths)
    result: Tensor = flash_attn_varlen_func(
        q, k, v, cu_seqlens, cu_seqlens, longest, longest, causal=True
    )
    return result


def plain(packed: Packed, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The definition, whose error in a dtype is the measure of the others."""
    return definition(q, k, v, packed.cu_seqlens, packed.cu_seqlens, causal=True)[0]


def functions(shape: Shape, device: torch.device) -> tuple[dict[str, Function], dict[str, str]]:
    """The candidates by name, and the peers that this machine cannot run with the reason."""
    present: dict[str, Function] = {OURS: ours, LOOP: loop}
    absent: dict[str, str] = {}
    if shape.is_batch:
        present[DENSE] = dense
    for name, function, module, package in (
        (TORCH, torch_varlen, "torch.nn.attention.varlen", "torch 2.10 or newer"),
        (FLASH, flash_attn, "flash_attn", "flash-attn"),
    ):
        reason = missing(module, package) if device.type == "cuda" else "needs CUDA"
        if reason is None:
            present[name] = function
        else:
            absent[name] = reason
    return present, absent


def inputs(shape: Shape, dtype: torch.dtype, device: torch.device) -> list[Tensor]:
    """q, k and v."""
    heads = (shape.heads, shape.kv_heads, shape.kv_heads)
    return [torch.randn(shape.total, h, shape.head_dim, device=device, dtype=dtype) for h in heads]


def product_flops(shape: Shape) -> int:
    """Operations of one product over the scores that causality leaves within the documents."""
    scores = sum(length * (length + 1) // 2 for length in shape.lengths)
    return 2 * shape.heads * scores * shape.head_dim


def forward_case(shape: Shape, dtype: torch.dtype, device: torch.device) -> Case:
    """out of q, k and v."""
    tensors = inputs(shape, dtype, device)
    packed = Packed.of(shape, device)
    present, absent = functions(shape, device)
    exact = plain(packed, *(t.double() for t in tensors))
    return Case(
        name="forward, causal",
        shape=str(shape),
        dtype=str(dtype).removeprefix("torch."),
        candidates={
            name: Candidate(torch.no_grad()(lambda f=function: f(packed, *tensors)))
            for name, function in present.items()
        },
        check=accuracy_check({"out": exact}, [plain(packed, *tensors)]),
        bytes=sum(t.nbytes for t in tensors) + tensors[0].nbytes + 4 * shape.heads * shape.total,
        flops=2 * product_flops(shape),
        absent=absent,
    )


def backward_case(shape: Shape, dtype: torch.dtype, device: torch.device) -> Case:
    """dq, dk and dv of out's gradient; the forward pass before it is not timed."""
    leaves = [t.requires_grad_() for t in inputs(shape, dtype, device)]
    packed = Packed.of(shape, device)
    present, absent = functions(shape, device)
    dout = torch.randn_like(leaves[0])

    def backward(out: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(out, leaves, dout)

    exact_leaves = [t.detach().double().requires_grad_() for t in leaves]
    exact = torch.autograd.grad(plain(packed, *exact_leaves), exact_leaves, dout.double())
    names = ("dq", "dk", "dv")
    lse_bytes = 4 * shape.heads * shape.total

    def candidate(function: Function) -> Candidate:
        def prepare() -> Any:
            return function(packed, *leaves)

        return Candidate(backward, prepare=prepare)

    return Case(
        name="backward, causal",
        shape=str(shape),
        dtype=str(dtype).removeprefix("torch."),
        candidates={name: candidate(function) for name, function in present.items()},
        check=accuracy_check(
            dict(zip(names, exact, strict=True)),
            backward(plain(packed, *leaves)),
            dict.fromkeys(names, GRADIENT_FACTOR),
        ),
        bytes=2 * sum(t.nbytes for t in leaves) + 2 * dout.nbytes + lse_bytes,
        flops=5 * product_flops(shape),
        absent=absent,
    )


def cases(device: torch.device, quick: bool) -> Iterator[Case]:
    """Both directions at every shape and dtype; float32 on the CPU only."""
    torch.manual_seed(0)
    on_cuda = device.type == "cuda"
    shapes = QUICK_SHAPES if quick else CUDA_SHAPES if on_cuda else CPU_SHAPES
    dtypes = (torch.bfloat16,) if on_cuda else (torch.float32, torch.bfloat16)
    for shape in shapes:
        for dtype in dtypes:
            yield forward_case(shape, dtype, device)
            yield backward_case(shape, dtype, device)
