"""cross_entropy at LLM-jp's vocabulary: forward, backward, and backward over the logits.

Forward reads the logits; backward reads them and writes their gradient. The vocabulary is padded to
50,688 with 50,570 valid ids.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import llmjp_ext
from benchmarks.harness import OURS, Candidate, Case, accuracy_check, missing
from llmjp_ext.reference.cross_entropy import cross_entropy as definition
from llmjp_ext.testing import GRADIENT_FACTOR

VOCAB, VALID_VOCAB = 50688, 50570
# The small and the large vocabularies are of other models.
CUDA_SHAPES = ((8192, VOCAB), (2048, VOCAB), (1024, 256000))
CPU_SHAPES = ((256, VOCAB), (2048, 1000), (64, 256000))
QUICK_SHAPES = ((32, 512),)
COMPILED = "torch.compile"
LIGER = "Liger"

Function = Callable[..., Any]


def ours(logits: Tensor, targets: Tensor, valid: int) -> Tensor:
    """llmjp_ext's op."""
    return llmjp_ext.cross_entropy(logits, targets, valid_vocab=valid)


def ours_inplace(logits: Tensor, targets: Tensor, valid: int) -> Tensor:
    """llmjp_ext's op with the gradient written over the logits."""
    return llmjp_ext.cross_entropy(logits, targets, valid_vocab=valid, inplace_backward=True)


def eager(logits: Tensor, targets: Tensor, valid: int) -> Tensor:
    """What PyTorch users write: the loss of 16-bit logits is computed in float32."""
    return F.cross_entropy(logits[:, :valid].float(), targets)


def eager_narrow(logits: Tensor, targets: Tensor, valid: int) -> Tensor:
    """The same without the conversion, which rounds more."""
    return F.cross_entropy(logits[:, :valid], targets)


def liger(logits: Tensor, targets: Tensor, valid: int) -> Tensor:
    """Liger's Triton kernel, which writes the gradient over the logits in forward."""
    from liger_kernel.ops.cross_entropy import LigerCrossEntropyFunction

    return LigerCrossEntropyFunction.apply(logits[:, :valid].contiguous(), targets)[0]


def functions(
    device: torch.device, dtype: torch.dtype
) -> tuple[dict[str, Function], dict[str, str]]:
    """The candidates by name, and the peers that this machine cannot run with the reason."""
    present: dict[str, Function] = {OURS: ours, "F.cross_entropy": eager}
    if dtype != torch.float32:
        present["F.cross_entropy in 16 bits"] = eager_narrow
    absent: dict[str, str] = {}
    if device.type == "cuda":
        present[COMPILED] = torch.compile(eager, fullgraph=True, dynamic=False)
        reason = missing("liger_kernel", "liger-kernel")
    else:
        absent[COMPILED] = "measured on CUDA only"
        reason = "needs CUDA"
    if reason is None:
        present[LIGER] = liger
    else:
        absent[LIGER] = reason
    return present, absent


def inputs(
    rows: int, vocab: int, valid: int, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Logits and targets."""
    logits = torch.randn(rows, vocab, device=device).mul_(3).to(dtype)
    return logits, torch.randint(0, valid, (rows,), device=device)


def forward_case(
    rows: int, vocab: int, valid: int, dtype: torch.dtype, device: torch.device
) -> Case:
    """The mean loss."""
    logits, targets = inputs(rows, vocab, valid, dtype, device)
    present, absent = functions(device, dtype)
    exact = definition(logits.double(), targets, valid_vocab=valid)[0]
    return Case(
        name="forward",
        shape=f"{rows} x {vocab}",
        dtype=str(dtype).removeprefix("torch."),
        # Without autograd, so that what is timed is the op. The loss is float32 in all of them.
        candidates={
            name: Candidate(torch.no_grad()(lambda f=function: f(logits, targets, valid)))
            for name, function in present.items()
            if name != LIGER  # its forward computes the gradient too
        },
        check=accuracy_check({"loss": exact}, [F.cross_entropy(logits[:, :valid], targets)]),
        bytes=rows * valid * dtype.itemsize,
        absent={**absent, LIGER: absent.get(LIGER, "forward and backward are one")},
    )


def training_case(
    rows: int, vocab: int, valid: int, dtype: torch.dtype, device: torch.device
) -> Case:
    """The mean loss and its gradient; the logits are new for each call, as in training."""
    logits, targets = inputs(rows, vocab, valid, dtype, device)
    present, absent = functions(device, dtype)
    present = {**present, f"{OURS} in place": ours_inplace}
    work = logits.clone().requires_grad_()

    def prepare() -> Tensor:
        with torch.no_grad():
            work.copy_(logits)
        return work

    def train(function: Function, leaf: Tensor) -> Tensor:
        return torch.autograd.grad(function(leaf, targets, valid), leaf)[0]

    leaf = logits.double().requires_grad_()
    exact = torch.autograd.grad(definition(leaf, targets, valid_vocab=valid)[0], leaf)[0]
    plain = train(lambda x, t, n: F.cross_entropy(x[:, :n], t), prepare())
    return Case(
        name="forward + backward",
        shape=f"{rows} x {vocab}",
        dtype=str(dtype).removeprefix("torch."),
        candidates={
            name: Candidate(lambda x, f=function: train(f, x), prepare=prepare)
            for name, function in present.items()
        },
        check=accuracy_check({"dlogits": exact}, [plain], {"dlogits": GRADIENT_FACTOR}),
        bytes=rows * (2 * valid + vocab) * dtype.itemsize,
        absent=absent,
    )


def cases(device: torch.device, quick: bool) -> Iterator[Case]:
    """Every direction at every number of rows and dtype."""
    torch.manual_seed(0)
    shapes = QUICK_SHAPES if quick else CUDA_SHAPES if device.type == "cuda" else CPU_SHAPES
    for rows, vocab in shapes:
        valid = VALID_VOCAB if vocab == VOCAB else vocab
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            yield forward_case(rows, vocab, valid, dtype, device)
            yield training_case(rows, vocab, valid, dtype, device)
