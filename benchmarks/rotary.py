"""rotary of queries and keys at the shapes of Llama-shaped models: forward and backward.

Each element is read and written once in either direction, and the angles are read. Written in
PyTorch the turn takes products, sums and a concatenation, each a pass of its own.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

import llmjp_ext
from benchmarks.harness import OURS, Candidate, Case, accuracy_check, missing
from llmjp_ext.reference.rotary import rotary as definition
from llmjp_ext.testing import GRADIENT_FACTOR

# Batch, tokens, query heads, key heads, head size: training of 7B and 8B models, and decoding.
CUDA_SHAPES = ((4, 2048, 32, 32, 128), (1, 8192, 32, 8, 128), (64, 1, 32, 8, 128))
CPU_SHAPES = ((1, 512, 16, 16, 128), (1, 1, 16, 16, 128))
QUICK_SHAPES = ((1, 8, 4, 2, 64),)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
COMPILED = "torch.compile"
LIGER = "Liger"

Function = Callable[..., Any]
Shape = tuple[int, int, int, int, int]


def liger(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Liger's Triton kernel, in place but for the copies that it makes of slices."""
    from liger_kernel.ops.rope import LigerRopeFunction

    q, k, *_ = LigerRopeFunction.apply(q.transpose(1, 2), k.transpose(1, 2), cos[None], sin[None])
    return q.transpose(1, 2), k.transpose(1, 2)


def functions(device: torch.device) -> tuple[dict[str, Function], dict[str, str]]:
    """The candidates by name, and the peers that this machine cannot run with the reason."""
    present: dict[str, Function] = {OURS: llmjp_ext.rotary, "PyTorch": definition}
    if device.type != "cuda":
        return present, {COMPILED: "measured on CUDA only", LIGER: "needs CUDA"}
    present[COMPILED] = torch.compile(definition, fullgraph=True, dynamic=False)
    reason = missing("liger_kernel", "liger-kernel")
    return ({**present, LIGER: liger}, {}) if reason is None else (present, {LIGER: reason})


def inputs(shape: Shape, dtype: torch.dtype, device: torch.device) -> list[Tensor]:
    """q and k, slices of one projection, and cos and sin of the whole head."""
    batch, tokens, heads, kv_heads, head_dim = shape
    packed = torch.randn(batch, tokens, heads + kv_heads, head_dim, device=device, dtype=dtype)
    angle = torch.randn(tokens, head_dim // 2, device=device)
    return [
        packed[:, :, :heads],
        packed[:, :, heads:],
        angle.cos().to(dtype),
        angle.sin().to(dtype),
    ]


def moved_bytes(tensors: list[Tensor]) -> int:
    """q and k read and written, the angles read."""
    q, k, cos, sin = (t.numel() * t.element_size() for t in tensors)
    return 2 * (q + k) + cos + sin


def case(name: str, shape: Shape, dtype: torch.dtype, device: torch.device, backward: bool) -> Case:
    """One direction; the forward pass before a backward is not timed."""
    q, k, cos, sin = tensors = inputs(shape, dtype, device)
    present, absent = functions(device)
    leaves = [t.detach().requires_grad_() for t in (q, k)]
    gradients = [torch.randn_like(t) for t in (q, k)]
    wide = [t.detach().double() for t in tensors]

    def run_backward(turned: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
        return torch.autograd.grad(turned, leaves, gradients)

    if backward:
        names = ("dq", "dk")
        wide_leaves = [t.requires_grad_() for t in wide[:2]]
        exact = torch.autograd.grad(
            definition(*wide_leaves, *wide[2:]), wide_leaves, [g.double() for g in gradients]
        )
        baseline = run_backward(definition(*leaves, cos, sin))
        candidates = {
            label: Candidate(run_backward, prepare=lambda f=function: f(*leaves, cos, sin))
            for label, function in present.items()
        }
    else:
        names = ("q", "k")
        exact = definition(*wide)
        baseline = definition(*tensors)
        candidates = {
            # Without autograd, so that what is timed is the op.
            label: Candidate(torch.no_grad()(lambda f=function: f(*tensors)))
            for label, function in present.items()
        }
    return Case(
        name=name,
        shape=" x ".join(str(size) for size in shape),
        dtype=str(dtype).removeprefix("torch."),
        candidates=candidates,
        check=accuracy_check(
            dict(zip(names, exact, strict=True)),
            baseline,
            dict.fromkeys(names, GRADIENT_FACTOR) if backward else None,
        ),
        bytes=moved_bytes(tensors),
        absent=absent,
    )


def cases(device: torch.device, quick: bool) -> Iterator[Case]:
    """Both directions at every shape and dtype."""
    torch.manual_seed(0)
    shapes = QUICK_SHAPES if quick else CUDA_SHAPES if device.type == "cuda" else CPU_SHAPES
    for shape in shapes:
        for dtype in DTYPES:
            yield case("forward", shape, dtype, device, backward=False)
            yield case("backward", shape, dtype, device, backward=True)
