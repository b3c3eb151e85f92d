"""`llmjp train` on blended, folded, isolated data: any processes, resumed, validated per source."""

import re
from pathlib import Path

import pytest
import torch

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
        *("--valid-interval", 4, "--valid-samples", 8, "--global-batch", 32),
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


def close(folder: Path, actual: str) -> None:
    """Losses differ from one process's as little as other micro-batches' do."""
    reference = torch.tensor(losses(folder / "one 2"), dtype=torch.float64)
    others = torch.tensor([losses(folder / f"one {size}") for size in (4, 8)])
    plain = reference + (others.double() - reference).abs().amax(0)
    found = torch.tensor(losses(folder / actual))
    assert len(found) == STEPS
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


def test_resuming_changes_nothing(folder: Path, single: list[Result]) -> None:
    """Four steps and four more give every digit of eight, validation included."""
    assert [single[index].code for index in (3, 4)] == [0, 0], single[4].err
    assert metrics(folder / "parts") == metrics(folder / "one 2")


def test_two_processes_and_plain_code_give_the_losses_of_one(
    folder: Path, single: list[Result]
) -> None:
    """The same samples in the same steps, in ZeRO's stage 3; documents isolated by a mask."""
    (result,) = run_jobs(
        folder, [arguments("--output", "two", "--zero-stage", 3, "--micro-batch", 4)], processes=2
    )
    assert result.code == 0, result.err
    close(folder, "two")
    assert single[5].code == 0, single[5].err
    close(folder, "plain")


def test_data_without_the_end_token_are_refused(single: list[Result]) -> None:
    """The model's end token is 7, the data's is not: documents cannot be told apart."""
    assert single[6].code == 1
    assert "document 0 ends with the id 63, not with the end token, 7" in single[6].err
