"""`llmjp train` in two processes: ZeRO's stages give one process's losses, and resume."""

import json
import math
from pathlib import Path

import pytest
import torch

from llmjp.checkpoint.huggingface import load_model
from llmjp.cli import build_parser
from llmjp.config import preset
from llmjp.data.packed import Documents, PackedDataset
from llmjp.model import GPT
from llmjp.training.settings import from_arguments
from llmjp_ext.testing import GRADIENT_FACTOR, assert_accurate
from train_runs import QUICK, TINY, Result, losses, metrics, run_jobs, toy_data

STAGES = (0, 1, 2, 3)
STEPS = 6
MISTAKES = (["--gpus", "3"], ["--dtype", "fp16"], ["--model-set", "vocab_size=40"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a space in its name, and the toy data in it."""
    folder = tmp_path_factory.mktemp("two processes")
    toy_data(folder / "toy")
    return folder


def arguments(*more: object) -> list[str]:
    """A run without dropout, whose masks would differ from process to process."""
    fixed = ("--dropout", "0", "--decay-steps", STEPS, "--steps", STEPS, "--dtype", "fp32")
    return [str(word) for word in ("--data", "toy", *TINY, *QUICK, *fixed, *more)]


PLAIN = [
    *("train", *arguments("--output", "plain"), "--lr", "3e-2", "--min-lr", "1e-4"),
    *("--clip", "0.5", "--weight-decay", "5", "--beta1", "0.8", "--beta2", "0.9"),
    *("--epsilon", "1e-6", "--zero-stage", "0"),
]


@pytest.fixture(scope="module")
def single(folder: Path) -> list[Result]:
    """One process: the reference, and the same samples dealt out otherwise."""
    jobs = [arguments("--output", "one")]
    jobs += [arguments("--output", f"one {size}", "--micro-batch", size) for size in (1, 4, 8)]
    jobs.append(PLAIN[1:])
    return run_jobs(folder, jobs)


@pytest.fixture(scope="module")
def double(folder: Path, single: list[Result]) -> list[Result]:
    """Two processes in each stage; stage 3 also in two parts, and from a model folder."""
    jobs = [arguments("--output", f"two {stage}", "--zero-stage", stage) for stage in STAGES]
    jobs.append(arguments("--output", "parts", "--zero-stage", 3, "--steps", 3))
    jobs.append(arguments("--output", "parts", "--zero-stage", 3))
    source = ["--data", "toy", *QUICK, "--dropout", "0", "--model", "one/hf", "--steps", "1"]
    jobs += [[*source, "--output", f"from {stage}", "--zero-stage", str(stage)] for stage in (1, 3)]
    jobs += [moved(stage, 2) for stage in (1, 2, 3)]
    jobs += [arguments("--output", "wrong", *mistake) for mistake in MISTAKES]
    return run_jobs(folder, jobs, processes=2)


def moved(stage: int, steps: int) -> list[str]:
    """A run that different numbers of processes continue."""
    return arguments("--output", f"moved {stage}", "--zero-stage", stage, "--steps", steps)


@pytest.fixture(scope="module")
def grown(folder: Path, double: list[Result]) -> list[Result]:
    """One process goes on from two processes' steps, and two from there to the end."""
    results = run_jobs(folder, [moved(stage, 4) for stage in (1, 2, 3)])
    more = run_jobs(folder, [moved(stage, STEPS) for stage in (1, 2, 3)], processes=2)
    return results + more


def close(folder: Path, actual: str, *, what: str) -> None:
    """Losses of a run against one process's: no farther off than other sums of the same samples.

    Rounding is what differs: gradients are added up in another order. How much that can change is
    what one process shows when it deals the same global batches out in other micro-batches.
    """
    reference = torch.tensor(losses(folder / "one"), dtype=torch.float64)
    others = torch.tensor([losses(folder / f"one {size}") for size in (1, 4, 8)])
    plain = reference + (others.double() - reference).abs().amax(0)
    assert_accurate(
        torch.tensor(losses(folder / actual)), reference, plain, factor=GRADIENT_FACTOR, what=what
    )


@pytest.mark.parametrize("stage", STAGES)
def test_two_processes_give_the_losses_of_one(
    folder: Path, double: list[Result], stage: int
) -> None:
    """Each step's loss over both processes, with accumulation, is one process's."""
    result = double[stage]
    assert result.code == 0 and result.err == "", result.err
    assert "8 samples = 2 x 2 processes x 2 accumulated" in result.out
    assert len(losses(folder / f"two {stage}")) == STEPS
    close(folder, f"two {stage}", what=f"losses in stage {stage}")


def test_a_mistake_is_told_once(folder: Path, double: list[Result]) -> None:
    """The first process tells what is wrong with the settings or the data; the others just end."""
    reasons = ("the settings are for 3 processes", "fp16 needs a GPU", "toy holds the id 63")
    (file,) = (
        path
        for path in folder.glob("jobs-*.1.out")
        if "wrong" in path.with_suffix("").with_suffix("").read_text()
    )
    others = [Result(**entry) for entry in json.loads(file.read_text())]
    for first, other, reason in zip(double[-3:], others[-3:], reasons, strict=True):
        assert first.code == other.code == 1 and reason in first.err, first.err
        assert first.err.count("\n") == 1 and other.err == "", other.err


def test_one_process_gives_the_losses_of_a_plain_loop(folder: Path, single: list[Result]) -> None:
    """The trainer against a dozen lines of PyTorch on the same weights and samples: accumulation,
    schedule, clipping, AdamW, and what decays. A clip of 0.5 cuts each of these steps."""
    assert single[-1].code == 0, single[-1].err
    plain = [loop(folder, torch.float32, size) for size in (2, 8)]
    exact, errors = loop(folder, torch.float64, 8), torch.tensor(plain).double()
    reference = torch.tensor(exact, dtype=torch.float64)
    worst = reference + (errors - reference).abs().amax(0)
    told = torch.tensor(losses(folder / "plain"))
    assert_accurate(told, reference, worst, factor=GRADIENT_FACTOR, what="losses")
    norms = [entry["grad_norm"] for entry in metrics(folder / "plain")]
    assert min(norms) > 0.5


def loop(folder: Path, dtype: torch.dtype, micro: int) -> list[float]:
    """Losses of STEPS steps of 8 samples, `micro` at a time."""
    config = preset(
        "tiny", **from_arguments(build_parser("train").parse_args(PLAIN)).model_fields()
    )
    torch.manual_seed(1234)
    model = GPT(config)
    model.use_kernels(False)
    model.to(dtype)
    data = PackedDataset(Documents([folder / "toy"]), 32, 1234, split=(99, 1))
    groups = [
        {"params": [p for p in model.parameters() if p.dim() == 2], "weight_decay": 5.0},
        {"params": [p for p in model.parameters() if p.dim() == 1], "weight_decay": 0.0},
    ]
    adam = torch.optim.AdamW(groups, betas=(0.8, 0.9), eps=1e-6)
    told = []
    for step in range(STEPS):
        warm = min((step + 1) / 2, 1.0)  # two steps of warm-up
        share = max(step - 1, 0) / (STEPS - 2)
        for group in adam.param_groups:
            group["lr"] = 1e-4 + (3e-2 * warm - 1e-4) * (1 + math.cos(math.pi * share)) / 2
        adam.zero_grad()
        parts = []
        for first in range(8 * step, 8 * step + 8, micro):
            inputs, labels = (torch.from_numpy(part) for part in data.batch(first, micro))
            logits = model(inputs).flatten(0, 1)
            part = torch.nn.functional.cross_entropy(logits, labels.flatten())
            (part * micro / 8).backward()
            parts.append(part.item())
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        adam.step()
        told.append(sum(parts) / len(parts))
    return told


def test_sharded_weights_come_out_whole(folder: Path, double: list[Result]) -> None:
    """OUTPUT/hf of stage 3 is that of stage 0, up to the rounding of Adam's steps."""
    assert double[3].code == 0
    whole = load_model(folder / "two 0" / "hf").state_dict()
    sharded = load_model(folder / "two 3" / "hf").state_dict()
    others = load_model(folder / "one 8" / "hf").state_dict()
    assert sharded.keys() == whole.keys()
    for name, value in sharded.items():
        plain = whole[name] + (others[name] - whole[name]).abs().max()
        assert_accurate(
            value, whole[name].double(), plain, factor=GRADIENT_FACTOR, what=f"weight {name}"
        )


def test_resuming_two_processes_changes_nothing(folder: Path, double: list[Result]) -> None:
    """Three steps and three more give every digit of six, in stage 3."""
    assert [double[index].code for index in (4, 5)] == [0, 0]
    assert metrics(folder / "parts") == metrics(folder / "two 3")


def test_training_goes_on_from_a_model_folder(folder: Path, double: list[Result]) -> None:
    """The trained weights are what the first step starts from, sharded as they are read too."""
    assert [double[index].code for index in (6, 7)] == [0, 0], double[7].err
    fresh, trained = losses(folder / "one")[0], losses(folder / "from 1")[0]
    assert trained < fresh - 0.1
    assert abs(losses(folder / "from 3")[0] - trained) <= trained * torch.finfo(torch.float32).eps


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_another_number_of_processes_goes_on(folder: Path, grown: list[Result], stage: int) -> None:
    """Steps by two processes, then one, then two again: an uninterrupted run's losses.

    Weights, AdamW's means, schedule and place in the data all come along: each would move the
    losses by far more than the order of sums does.
    """
    shrunk, again = grown[stage - 1], grown[stage + 2]
    assert shrunk.code == 0 and "step-2, written by 2 processes" in shrunk.out, shrunk.err
    assert again.code == 0 and "step-4, written by 1 processes" in again.out, again.err
    close(folder, f"moved {stage}", what=f"losses of changed numbers in stage {stage}")
    assert not list((folder / f"moved {stage}").rglob("*.partial"))
    weights = load_model(folder / f"moved {stage}" / "hf").state_dict()
    others = load_model(folder / "one 8" / "hf").state_dict()
    for name, value in load_model(folder / "two 0" / "hf").state_dict().items():
        plain = value + (others[name] - value).abs().max()
        assert_accurate(
            weights[name], value.double(), plain, factor=GRADIENT_FACTOR, what=f"weight {name}"
        )
