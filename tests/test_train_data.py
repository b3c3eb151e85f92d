"""`llmjp train` on blended, folded, isolated data: any processes, resumed, validated per source."""

import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from llmjp.cli import build_parser
from llmjp.config import preset
from llmjp.data.isolation import document_bounds
from llmjp.train import open_data
from llmjp.training.progress import METRICS
from llmjp.training.settings import from_arguments
from llmjp_ext.testing import GRADIENT_FACTOR, assert_accurate
from train_runs import QUICK, TINY, VOCABULARY, Result, losses, metrics, run_jobs, toy_data

STEPS = 8


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with three datasets."""
    folder = tmp_path_factory.mktemp("blended data")
    for seed, name in enumerate(("ja", "en", "code")):
        toy_data(folder / name, seed)
    return folder


def arguments(*more: object) -> list[str]:
    """Two folds of two sources and then a third, with isolated documents; no dropout."""
    fixed = [
        *("--data", "0.7", "ja", "0.3", "en", "--folds", 2, "--fold", 1, "--final-data", "code"),
        *("--split", "80,15,5", "--isolate-documents", *TINY, f"eos_token_id={VOCABULARY - 1}"),
        *(*QUICK, "--dropout", 0, "--dtype", "fp32", "--steps", STEPS, "--decay-steps", STEPS),
        *("--valid-interval", 4, "--valid-samples", 7, "--global-batch", 32),
    ]
    return [str(word) for word in (*fixed, *more)]


@pytest.fixture(scope="module")
def single(folder: Path) -> list[Result]:
    """One process: whole, in other micro-batches, in two parts, as plain PyTorch."""
    jobs = [arguments("--output", f"one {size}", "--micro-batch", size) for size in (2, 4, 8)]
    jobs += [arguments("--output", "parts", "--steps", 4), arguments("--output", "parts")]
    jobs.append(arguments("--output", "plain", "--kernels", "off"))
    jobs.append(arguments("--output", "no end", *TINY))
    return run_jobs(folder, jobs)


@pytest.fixture(scope="module")
def double(folder: Path) -> Result:
    """Two processes."""
    job = arguments("--output", "two", "--zero-stage", 3, "--micro-batch", 4)
    (result,) = run_jobs(folder, [job], processes=2)
    return result


def figures(output: Path) -> list[float]:
    """Training losses, then validation losses."""
    told = [entry["valid_loss"] for entry in metrics(output) if "valid_loss" in entry]
    return losses(output) + told


def close(folder: Path, actual: str) -> None:
    """Losses differ from one process's as little as other micro-batches' do; validation's too."""
    reference = torch.tensor(figures(folder / "one 2"), dtype=torch.float64)
    others = torch.tensor([figures(folder / f"one {size}") for size in (4, 8)])
    plain = reference + (others.double() - reference).abs().amax(0)
    found = torch.tensor(figures(folder / actual))
    assert len(found) == STEPS + 2
    assert_accurate(found, reference, plain, factor=GRADIENT_FACTOR, what=f"losses of {actual}")


def test_sources_are_reported_and_validated(folder: Path, single: list[Result]) -> None:
    """The start says what an epoch takes; a validation has each source's loss and the blend's."""
    assert [result.code for result in single[:3]] == [0] * 3, single[0].err
    assert re.search(r"ja: (69|70)\.\d\d% of the samples", single[0].out), single[0].out
    assert "at last code: 100.00% of the samples" in single[0].out
    told = [entry for entry in metrics(folder / "one 2") if "valid_loss" in entry]
    assert [entry["step"] for entry in told] == [4, 8]
    for entry in told:
        parts = entry["valid_losses"]
        assert parts.keys() == {"ja", "en"}
        assert entry["valid_loss"] == pytest.approx(0.7 * parts["ja"] + 0.3 * parts["en"])
    assert "perplexity" in single[0].out


@pytest.mark.parametrize(("output", "processes"), [("one 2", 1), ("one 8", 1), ("two", 2)])
def test_work_counts_what_documents_see(
    folder: Path, single: list[Result], double: Result, output: str, processes: int
) -> None:
    """TFLOP/s over tokens/s is the work of a token whose documents are as long as the step's."""
    assert single[0].code == 0 and double.code == 0
    settings = from_arguments(
        build_parser("train").parse_args(["train", *arguments("--output", "-")])
    )
    settings = dataclasses.replace(
        settings, data=[word if word[0] == "0" else str(folder / word) for word in settings.data]
    )
    settings = dataclasses.replace(settings, final_data=[str(folder / "code")])
    data, _ = open_data(settings, 32)
    config = preset("tiny", **settings.model_fields())
    lines = [json.loads(line) for line in (folder / output / METRICS).read_text().splitlines()]
    lines = [line for line in lines if "loss" in line]
    for step, line in enumerate(lines):
        inputs, _ = data.batch(32 * step, 32)
        _, bounds, _ = document_bounds(inputs, VOCABULARY - 1)
        lengths = np.diff(bounds)
        assert lengths.max() < 33 and len(lengths) > 32
        work = config.flops_per_token((lengths**2).sum() / lengths.sum())
        told = line["teraflops_per_device"] / line["tokens_per_second"] * processes * 1e12
        assert told == pytest.approx(work, rel=1e-6)
        assert work < config.flops_per_token(32)


def test_resuming_changes_nothing(folder: Path, single: list[Result]) -> None:
    """Four steps and four more give every digit of eight, validation included."""
    assert [single[index].code for index in (3, 4)] == [0, 0], single[4].err
    assert metrics(folder / "parts") == metrics(folder / "one 2")


def test_two_processes_and_plain_code_give_the_losses_of_one(
    folder: Path, single: list[Result], double: Result
) -> None:
    """The same samples in the same steps, in ZeRO's stage 3; documents isolated by a mask."""
    assert double.code == 0, double.err
    close(folder, "two")
    assert single[5].code == 0, single[5].err
    close(folder, "plain")


def test_data_without_the_end_token_are_refused(single: list[Result]) -> None:
    """The model's end token is 7, the data's is not: documents cannot be told apart."""
    assert single[6].code == 1
    assert "document 0 ends with the id 63, not with the end token, 7" in single[6].err
