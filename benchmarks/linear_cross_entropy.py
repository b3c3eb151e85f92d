"""linear_cross_entropy at LLM-jp's widths and vocabulary: the mean loss and its gradients.

Its bound is three matrix products of tokens x width x vocab. The peers hold the logits, or take
chunks of tokens as this op does.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import llmjp_ext
from benchmarks.harness import OURS, Candidate, Case, accuracy_check, missing
from llmjp_ext.reference.linear_cross_entropy import linear_cross_entropy as definition
from llmjp_ext.testing import GRADIENT_FACTOR

VOCAB = 50688
# Tokens of a micro-batch by the widths of the 1.3B and 13B models.
CUDA_SHAPES = ((16384, 2048, VOCAB), (16384, 5120, VOCAB))
CPU_SHAPES = ((512, 256, VOCAB),)
QUICK_SHAPES = ((64, 32, 512),)
# Float64 logits of all tokens would not fit beside the rest: these many are checked.
CHECKED_TOKENS = 2048
HELD = "logits + cross_entropy"
COMPILED = "torch.compile"
LIGER = "Liger"

Function = Callable[..., Any]


def held(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """This project's cross_entropy of logits that are held, their gradient written over them."""
    return llmjp_ext.cross_entropy(F.linear(hidden, weight), targets, inplace_backward=True)


def eager(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """What PyTorch users write: the loss of 16-bit logits is computed in float32."""
    return F.cross_entropy(F.linear(hidden, weight).float(), targets)


def liger(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Liger's chunks of tokens."""
    from liger_kernel.ops.fused_linear_cross_entropy import LigerFusedLinearCrossEntropyFunction

    result = LigerFusedLinearCrossEntropyFunction.apply(hidden, weight, targets)
    return result[0] if isinstance(result, tuple) else result


def functions(device: torch.device) -> tuple[dict[str, Function], dict[str, str]]:
    """The candidates by name, and the peers that this machine cannot run with the reason."""
    present: dict[str, Function] = {
        OURS: llmjp_ext.linear_cross_entropy,
        HELD: held,
        "F.cross_entropy": eager,
    }
    if device.type != "cuda":
        return present, {COMPILED: "measured on CUDA only", LIGER: "needs CUDA"}
    present[COMPILED] = torch.compile(eager, fullgraph=True, dynamic=False)
    reason = missing("liger_kernel", "liger-kernel")
    if reason is not None:
        return present, {LIGER: reason}
    return {**present, LIGER: liger}, {}


def training_case(
    tokens: int, width: int, vocab: int, dtype: torch.dtype, device: torch.device
) -> Case:
    """The mean loss and the gradients of hidden and weight."""
    hidden = torch.randn(tokens, width, device=device).to(dtype).requires_grad_()
    weight = (torch.randn(vocab, width, device=device) * 0.02).to(dtype).requires_grad_()
    targets = torch.randint(0, vocab, (tokens,), device=device)
    # The gradient of hidden is checked on the first tokens: the others weigh nothing.
    checked = min(tokens, CHECKED_TOKENS)
    targets[checked:] = -100
    present, absent = functions(device)

    def train(function: Function) -> list[Tensor]:
        dhidden, dweight = torch.autograd.grad(function(hidden, weight, targets), (hidden, weight))
        return [dhidden, dweight]

    part = hidden.detach()[:checked].double().requires_grad_()
    exact_weight = weight.detach().double().requires_grad_()
    loss, _ = definition(part, exact_weight, targets[:checked])
    dpart, exact_dweight = torch.autograd.grad(loss, (part, exact_weight))
    exact_dhidden = torch.zeros(hidden.shape, dtype=torch.float64, device=device)
    exact_dhidden[:checked] = dpart
    names = ("dhidden", "dweight")
    return Case(
        name="forward + backward",
        shape=f"{tokens} x {width} x {vocab}",
        dtype=str(dtype).removeprefix("torch."),
        candidates={
            name: Candidate(lambda f=function: train(f)) for name, function in present.items()
        },
        check=accuracy_check(
            dict(zip(names, (exact_dhidden, exact_dweight), strict=True)),
            train(lambda h, w, t: F.cross_entropy(F.linear(h, w), t)),
            dict.fromkeys(names, GRADIENT_FACTOR),
        ),
        flops=6 * tokens * width * vocab,
        absent=absent,
    )


def cases(device: torch.device, quick: bool) -> Iterator[Case]:
    """Every shape; bfloat16, and float32 too on the CPU."""
    torch.manual_seed(0)
    shapes = QUICK_SHAPES if quick else CUDA_SHAPES if device.type == "cuda" else CPU_SHAPES
    for tokens, width, vocab in shapes:
        for dtype in (
            (torch.bfloat16,) if device.type == "cuda" else (torch.float32, torch.bfloat16)
        ):
            yield training_case(tokens, width, vocab, dtype, device)
