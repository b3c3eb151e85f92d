"""`llmjp train` in one process: learning, resuming bit by bit, and what it writes."""

import json
import math
from pathlib import Path

import pytest
import torch
import transformers
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.nn.functional import cross_entropy

from llmjp.checkpoint.huggingface import load_config, load_model
from llmjp.data.packed import Documents, PackedDataset
from llmjp_ext.testing import assert_accurate
from train_runs import QUICK, TINY, VOCABULARY, Result, losses, metrics, run_jobs, toy_data

FORMATS = [("fp32", 0), ("fp32", 3), ("bf16", 1), ("bf16", 2)]
STEPS = 6


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a space in its name, and the toy data in it."""
    folder = tmp_path_factory.mktemp("train runs")
    toy_data(folder / "toy data")
    return folder


@pytest.fixture(scope="module")
def results(folder: Path) -> dict[str, Result]:
    """All runs of this module, in one process one after another."""
    base = ["--data", "toy data", *TINY, *QUICK]
    jobs: dict[str, list[str]] = {
        "learn": [
            *("--data", "toy data", *TINY, "--output", "learn", "--steps", "120", "--lr", "1e-2"),
            *("--warmup", "10", "--global-batch", "16", "--micro-batch", "16", "--dropout", "0"),
            *("--valid-interval", "60", "--save-hf-every", "50", "--log-interval", "20"),
            *("--save-interval", "40", "--keep-last", "1", "--tensorboard"),
        ],
    }
    for dtype, stage in FORMATS:
        common = [*base, "--dtype", dtype, "--zero-stage", str(stage), "--decay-steps", str(STEPS)]
        name = f"{dtype} {stage}"
        whole = [*common, "--output", f"{name} whole", "--steps", str(STEPS)]
        first = [*common, "--output", f"{name} parts", "--steps", "3"]
        jobs[f"{name} whole"] = whole
        jobs[f"{name} first"] = first
        jobs[f"{name} second"] = [*first[:-1], str(STEPS)]
        if dtype == "fp32":
            jobs[f"{name} recompute"] = [
                *(*common, "--output", f"{name} recompute", "--steps", str(STEPS), "--recompute"),
            ]
    many = [*base, "--dropout", "0", "--decay-steps", "9", "--steps", "1", "--global-batch", "512"]
    jobs["one micro-batch"] = [*many, "--micro-batch", "512", "--output", "one micro-batch"]
    many += ["--micro-batch", "1", "--dtype", "bf16"]
    jobs["bf16 sums"] = [*many, "--output", "bf16 sums"]
    jobs["fp32 sums"] = [*many, "--output", "fp32 sums", "--fp32-gradients"]
    ended = run_jobs(folder, list(jobs.values()))
    return dict(zip(jobs, ended, strict=True))


def sample_losses(
    model_folder: Path, inputs: torch.Tensor, labels: torch.Tensor, dtype: torch.dtype
) -> torch.Tensor:
    """Mean loss of each sample, by Transformers' own model and PyTorch's own cross-entropy."""
    model = transformers.GPT2LMHeadModel.from_pretrained(model_folder, dtype=dtype).eval()
    with torch.no_grad():
        logits = model(inputs).logits
        return cross_entropy(logits.transpose(1, 2), labels, reduction="none").mean(1)


def test_loss_falls_and_the_model_is_what_was_trained(
    folder: Path, results: dict[str, Result]
) -> None:
    """A toy language is learnt; OUTPUT/hf holds the weights whose validation loss was told."""
    result = results["learn"]
    assert result.code == 0 and result.err == "", result.err
    trained = losses(folder / "learn")
    assert trained[-1] < 0.2 * math.log(VOCABULARY), f"{trained}: a guess has ln {VOCABULARY}"
    told = [entry["valid_loss"] for entry in metrics(folder / "learn") if "valid_loss" in entry]
    assert told[1] < told[0]
    data = PackedDataset(Documents([folder / "toy data"]), 32, 1234, split=(99, 1), part=1)
    count = min(64, data.samples_per_epoch)  # no sample counts twice
    inputs, labels = (torch.from_numpy(part) for part in data.batch(0, count))
    exact, plain = (
        sample_losses(folder / "learn" / "hf", inputs, labels, dtype).double()
        for dtype in (torch.float64, torch.float32)
    )
    # The mean of all samples errs no more than the worst of them.
    worst = exact.mean() + (plain - exact).abs().max()
    assert_accurate(torch.tensor(told[1]), exact.mean(), worst, what="validation loss")


def test_a_run_says_what_it_does(results: dict[str, Result]) -> None:
    """The report's figures, a progress line with its parts, and what was saved."""
    out = results["learn"].out
    assert "DeepSpeed 0." in out and "kernels     PyTorch implementation: " in out
    assert "CPU x 1, fp32, ZeRO stage 1" in out and "20,224 parameters" in out
    assert "16 samples = 16 x 1 processes x 1 accumulated = 512 tokens a step" in out
    line = next(line for line in out.splitlines() if line.startswith("step 40/120"))
    for part in ("loss ", "lr ", "grad norm ", "tokens/s", "ETA 0:"):
        assert part in line
    assert "step 120  saved learn/checkpoints/step-120" in out and "validation loss" in out


def test_trackers_get_the_figures(folder: Path, results: dict[str, Result]) -> None:
    """TensorBoard's file holds the losses of training and validation."""
    assert results["learn"].code == 0
    board = EventAccumulator(str(folder / "learn" / "tensorboard"))
    board.Reload()
    for name in ("loss", "valid_loss"):
        told = [(event.step, event.value) for event in board.Scalars(name)]
        lines = [entry for entry in metrics(folder / "learn") if name in entry]
        assert [step for step, _ in told] == [entry["step"] for entry in lines]
        assert [value for _, value in told] == pytest.approx([entry[name] for entry in lines])


def test_old_checkpoints_go(folder: Path, results: dict[str, Result]) -> None:
    """keep_last 1 leaves the newest alone, named by `latest`; nothing unfinished is left."""
    assert results["learn"].code == 0
    names = {path.name for path in (folder / "learn" / "checkpoints").iterdir()}
    assert {name for name in names if "step" in name} == {"step-120"}
    assert (folder / "learn" / "checkpoints" / "latest").read_text() == "step-120"
    assert not list((folder / "learn").rglob("*.partial"))


@pytest.mark.parametrize(("dtype", "stage"), FORMATS)
def test_resuming_changes_nothing(
    folder: Path, results: dict[str, Result], dtype: str, stage: int
) -> None:
    """With dropout on, three steps and three more give every digit of six: metrics and weights."""
    name = f"{dtype} {stage}"
    for part in ("whole", "first", "second"):
        assert results[f"{name} {part}"].code == 0, results[f"{name} {part}"].err
    assert "step-3" in results[f"{name} second"].out
    assert metrics(folder / f"{name} parts") == metrics(folder / f"{name} whole")
    assert len(losses(folder / f"{name} whole")) == STEPS
    whole = load_model(folder / f"{name} whole" / "hf").state_dict()
    for key, value in load_model(folder / f"{name} parts" / "hf").state_dict().items():
        assert torch.equal(value, whole[key]), key


@pytest.mark.parametrize(("dtype", "stage"), FORMATS)
def test_stages_and_formats_train_alike(
    folder: Path, results: dict[str, Result], dtype: str, stage: int
) -> None:
    """Each follows the losses of fp32 at stage 0 within its dtype's rounding."""
    assert results[f"{dtype} {stage} whole"].code == 0
    reference = torch.tensor(losses(folder / "fp32 0 whole"), dtype=torch.float64)
    actual = torch.tensor(losses(folder / f"{dtype} {stage} whole"), dtype=torch.float64)
    kind = torch.bfloat16 if dtype == "bf16" else torch.float32
    # The relative rounding of one operation bounds a mean of many, whose errors average out; those
    # of the updates before it are independent of each other, so they grow as the root of the steps.
    bound = reference * torch.finfo(kind).eps * torch.arange(1, STEPS + 1).sqrt()
    assert ((actual - reference).abs() <= bound).all(), actual
    model = load_model(folder / f"{dtype} {stage} whole" / "hf")
    assert model.lm_head.weight.dtype == kind


def test_gradients_can_be_added_up_in_fp32(folder: Path, results: dict[str, Result]) -> None:
    """512 micro-batches of a bf16 run: their sum's norm is off by less than a tenth as much."""
    norms = {}
    for name in ("one micro-batch", "bf16 sums", "fp32 sums"):
        assert results[name].code == 0, results[name].err
        (norms[name],) = (entry["grad_norm"] for entry in metrics(folder / name))
    exact = norms["one micro-batch"]  # in fp32
    assert abs(norms["fp32 sums"] - exact) < abs(norms["bf16 sums"] - exact) / 10, norms


@pytest.mark.parametrize("stage", [0, 3])
def test_recomputing_changes_nothing(folder: Path, results: dict[str, Result], stage: int) -> None:
    """Recomputed activations, dropout's masks among them, give every digit of the kept ones."""
    assert results[f"fp32 {stage} recompute"].code == 0, results[f"fp32 {stage} recompute"].err
    assert metrics(folder / f"fp32 {stage} recompute") == metrics(folder / f"fp32 {stage} whole")


def test_metrics_are_complete(folder: Path, results: dict[str, Result]) -> None:
    """Each line of metrics.jsonl has the figures of its step."""
    assert results["fp32 3 whole"].code == 0
    lines = (folder / "fp32 3 whole" / "metrics.jsonl").read_text().splitlines()
    entries = [json.loads(line) for line in lines]
    assert [entry["step"] for entry in entries] == list(range(1, STEPS + 1))
    assert [entry["tokens"] for entry in entries] == [256 * step for step in range(1, STEPS + 1)]
    assert all(entry["grad_norm"] > 0 and entry["tokens_per_second"] > 0 for entry in entries)
    assert entries[1]["lr"] == 3e-3 and entries[-1]["lr"] == 1e-6


def test_model_folder_has_the_shape(folder: Path, results: dict[str, Result]) -> None:
    """config.json carries the changed fields of the preset."""
    assert results["learn"].code == 0
    config = load_config(folder / "learn" / "hf")
    assert (config.n_embd, config.n_layer, config.vocab_size) == (32, 2, 64)
