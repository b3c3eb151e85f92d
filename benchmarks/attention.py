"""attention at LLM-jp's shapes: causal, forward and backward.

Operations are those of the matrix products over the scores that causality leaves: two of them in
forward, five in backward (one computes the scores again). Bytes are q, k, v and out once, with
their gradients in backward, and lse.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

import llmjp_ext
from benchmarks.harness import OURS, Candidate, Case, accuracy_check, missing
from llmjp_ext.reference.attention import attention as definition
from llmjp_ext.testing import GRADIENT_FACTOR

COMPILED = "torch.compile"
FLASH = "flash-attn"
SDPA = "F.scaled_dot_product_attention"


class Shape(NamedTuple):
    """Self-attention of `batch` sequences of `tokens`."""

    batch: int
    tokens: int
    heads: int
    kv_heads: int
    head_dim: int

    def __str__(self) -> str:
        return f"{self.batch} x {self.tokens} x {self.heads}/{self.kv_heads} x {self.head_dim}"


# Heads of the 1.3B and 13B models at their context of 2048, a long context, and grouped heads.
CUDA_SHAPES = (
    Shape(4, 2048, 16, 16, 128),
    Shape(2, 2048, 40, 40, 128),
    Shape(1, 8192, 16, 16, 128),
    Shape(2, 2048, 32, 8, 128),
)
CPU_SHAPES = (Shape(1, 512, 16, 16, 128), Shape(1, 512, 16, 4, 128))
QUICK_SHAPES = (Shape(1, 64, 4, 2, 32),)

Function = Callable[..., Any]


def ours(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """llmjp_ext's op."""
    return llmjp_ext.attention(q, k, v, causal=True)


def sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """What PyTorch users write."""
    out = F.scaled_dot_product_attention(
        *(t.transpose(1, 2) for t in (q, k, v)), is_causal=True, enable_gqa=True
    )
    return out.transpose(1, 2)


def materialised(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """All scores in memory, as models were written before fused attention."""
    return definition(q, k, v, causal=True)[0]


def flash_attn(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Dao's kernels."""
    from flash_attn import flash_attn_func

    return flash_attn_func(q, k, v, causal=True)


def functions(device: torch.device) -> tuple[dict[str, Function], dict]:
    """The candidates by name, and the peers that this machine cannot run with the reason."""
    present: dict[str, Function] = {OURS: ours, SDPA: sdpa, "all scores in memory": materialised}
    absent: dict[str, str] = {}
    if device.type == "cuda":
        present[COMPILED] = torch.compile(materialised, fullgraph=True, dynamic=False)
        reason = missing("flash_attn", "flash-attn")
    else:
        absent[COMPILED] = "measured on CUDA only"
        reason = "needs CUDA"
    if reason is None:
        present[FLASH] = flash_attn
    else:
        absent[FLASH] = reason
    return present, absent


def inputs(shape: Shape, dtype: torch.dtype, device: torch.device) -> list[Tensor]:
    """q, k and v."""
    heads = (shape.heads, shape.kv_heads, shape.kv_heads)
    return [
        torch.randn(shape.batch, shape.tokens, h, shape.head_dim, device=device, dtype=dtype)
        for h in heads
    ]


def product_flops(shape: Shape) -> int:
    """Operations of one product over the scores that a causal mask leaves."""
    scores = shape.batch * shape.heads * shape.tokens * (shape.tokens + 1) // 2
    return 2 * scores * shape.head_dim


def forward_case(shape: Shape, dtype: torch.dtype, device: torch.device) -> Case:
    """out of q, k and v."""
    tensors = inputs(shape, dtype, device)
    present, absent = functions(device)
    exact = definition(*(t.double() for t in tensors), causal=True)[0]
    lse_bytes = 4 * shape.batch * shape.heads * shape.tokens
    return Case(
        name="forward, causal",
        shape=str(shape),
        dtype=str(dtype).removeprefix("torch."),
        candidates={
            name: Candidate(torch.no_grad()(lambda f=function: f(*tensors)))
            for name, function in present.items()
        },
        check=accuracy_check({"out": exact}, [materialised(*tensors)]),
        bytes=sum(t.nbytes for t in tensors) + tensors[0].nbytes + lse_bytes,
        flops=2 * product_flops(shape),
        absent=absent,
    )


def backward_case(shape: Shape, dtype: torch.dtype, device: torch.device) -> Case:
    """dq, dk and dv of out's gradient; the forward pass before it is not timed."""
    leaves = [t.requires_grad_() for t in inputs(shape, dtype, device)]
    present, absent = functions(device)
    dout = torch.randn_like(leaves[0])

    def backward(out: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(out, leaves, dout)

    exact_leaves = [t.detach().double().requires_grad_() for t in leaves]
    exact_out = definition(*exact_leaves, causal=True)[0]
    names = ("dq", "dk", "dv")
    exact = torch.autograd.grad(exact_out, exact_leaves, dout.double())
    lse_bytes = 4 * shape.batch * shape.heads * shape.tokens
    return Case(
        name="backward, causal",
        shape=str(shape),
        dtype=str(dtype).removeprefix("torch."),
        candidates={
            name: Candidate(backward, prepare=lambda f=function: f(*leaves))
            for name, function in present.items()
        },
        check=accuracy_check(
            dict(zip(names, exact, strict=True)),
            backward(materialised(*leaves)),
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
    dtypes = (torch.bfloat16, torch.float16) if on_cuda else (torch.float32, torch.bfloat16)
    for shape in shapes:
        for dtype in dtypes:
            yield forward_case(shape, dtype, device)
            yield backward_case(shape, dtype, device)
