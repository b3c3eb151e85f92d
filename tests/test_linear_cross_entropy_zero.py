"""linear_cross_entropy inside ZeRO-3: two processes that shard every weight, none held back for
being small, have the loss and the gradients of one process."""

import copy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import llmjp_ext
from llmjp.config import ModelConfig
from llmjp.model import GPT
from llmjp_ext.testing import GRADIENT_FACTOR, assert_accurate
from train_runs import environment

VOCAB, WIDTH, SAMPLES, TOKENS = 93, 16, 4, 7


class Head(nn.Module):
    """Owns its weight, or shares the embedding's, and hands it to the loss in its own forward."""

    def __init__(self, reduction: str, weight: nn.Parameter, bias: bool) -> None:
        super().__init__()
        self.weight, self.reduction = weight, reduction
        self.bias = nn.Parameter(torch.randn(VOCAB)) if bias else None

    def forward(self, hidden: Tensor, targets: Tensor) -> Tensor:
        loss = llmjp_ext.linear_cross_entropy(
            hidden, self.weight, targets, bias=self.bias, z_loss=1e-3, reduction=self.reduction
        )
        if self.reduction == "none":  # each row with a gradient of its own
            loss = (loss * (1 + torch.arange(TOKENS))).sum()
        return loss


class Small(nn.Module):
    """An embedding, a layer, and the loss."""

    def __init__(self, reduction: str, tied: bool) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCAB, WIDTH)
        self.layer = nn.Linear(WIDTH, WIDTH)
        weight = self.embedding.weight if tied else nn.Parameter(torch.randn(VOCAB, WIDTH))
        self.head = Head(reduction, weight, bias=not tied)

    def forward(self, ids: Tensor, targets: Tensor) -> Tensor:
        loss: Tensor = self.head(F.gelu(self.layer(self.embedding(ids))), targets)
        return loss


def small_gpt(recompute: bool) -> GPT:
    """llmjp's model, whose output layer is the embedding."""
    sizes = {"n_positions": 16, "n_embd": 32, "n_layer": 2, "n_head": 2, "n_inner": 64}
    model = GPT(ModelConfig(vocab_size=VOCAB, **sizes))
    model.checkpoint_activations(recompute)
    return model.eval()


CASES = {
    "mean": lambda: Small("mean", tied=False),
    "sum": lambda: Small("sum", tied=False),
    "none": lambda: Small("none", tied=False),
    "tied mean": lambda: Small("mean", tied=True),
    "tied none": lambda: Small("none", tied=True),
    "llmjp's model": lambda: small_gpt(False),
    "llmjp's model, recomputed": lambda: small_gpt(True),
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Each case's module and inputs, and what both processes made of them."""
    torch.manual_seed(2024)
    cases = []
    for make in CASES.values():
        ids, targets = torch.randint(0, VOCAB, (2, SAMPLES, TOKENS))
        targets[:, 2] = -100  # as many in each process: a mean of means is the mean
        cases.append((make(), [ids, targets]))
    file = tmp_path_factory.mktemp("zero 3") / "cases"
    torch.save(cases, file)
    worker = Path(__file__).with_name("zero_worker.py")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    result = subprocess.run(
        [*command, str(worker), str(file)],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    outputs = [torch.load(f"{file}.{rank}.out") for rank in range(2)]
    return dict(zip(CASES, zip(cases, *outputs, strict=True), strict=True))


def run(module: nn.Module, inputs: list[Tensor], dtype: torch.dtype) -> tuple[Tensor, dict]:
    """Loss and gradients of all samples in one process."""
    module = copy.deepcopy(module).to(dtype)
    module.zero_grad()
    loss = module(*inputs)
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in module.named_parameters()}


@pytest.mark.parametrize("case", CASES)
def test_two_processes_give_what_one_gives(runs: dict[str, Any], case: str) -> None:
    """The loss, and every parameter's gradient; the weights are sharded before and after."""
    (module, inputs), *processes = runs[case]
    loss, gradients = run(module, inputs, torch.float32)
    parts = torch.stack([result[0] for result in processes])
    # DeepSpeed averages over processes; a sum over both is twice the average of their sums.
    share = 1.0 if "mean" in case or "model" in case else 0.5
    torch.testing.assert_close(parts.mean(), loss * share)
    reordered = run(module, [t.flip(0) for t in inputs], torch.float32)[1]
    for _, actual, sharded in processes:
        assert all(map(all, sharded)), f"{case}: a weight was whole outside its module"
        assert actual.keys() == gradients.keys()
        for name, gradient in gradients.items():
            # In one process another order of the same samples shows what rounding is worth.
            plain = gradient + (reordered[name] - gradient).abs().max()
            assert gradient.any()
            assert_accurate(
                actual[name],
                gradient.double() * share,
                plain * share,
                factor=GRADIENT_FACTOR,
                what=f"{case}, {name}",
            )
