"""Losses that are not numbers or jump: the update is skipped, and a run that only skips stops."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from llmjp.training.guard import LossGuard
from train_runs import QUICK, TINY, environment, losses, metrics, run_jobs, toy_data

# The loss and gradient of one step become NaN, as a bad sample or a broken GPU makes them.
SKIPPING = """
import sys
import torch
from llmjp import cli
from llmjp.model import GPT
from llmjp.training import trainer
from llmjp.training.engine import whole_weights
from llmjp.training.processes import end_process

forward, step = GPT.forward, trainer.Trainer._step
calls = 0

def poisoned(self, *arguments, **named):
    global calls
    calls += 1
    loss = forward(self, *arguments, **named)
    return loss * float("nan") if calls == 6 else loss

def watched(self, logged):
    before = whole_weights(self.engine, self.processes)
    result = step(self, logged)
    if result[1] is not None:
        after = whole_weights(self.engine, self.processes)
        same = all(torch.equal(after[name], value) for name, value in before.items())
        print("weights unchanged" if same else "weights CHANGED")
    return result

GPT.forward, trainer.Trainer._step = poisoned, watched
code = 0
for stage in "0123":
    calls = 0
    code += cli.main([*sys.argv[1:], "--zero-stage", stage, "--output", stage, "--steps", "4"])
end_process(code)
"""


def test_an_update_from_nan_is_skipped(tmp_path: Path) -> None:
    """In each stage: the third step's second micro-batch is NaN, and the weights stay exactly."""
    toy_data(tmp_path / "toy")
    command = [sys.executable, "-c", SKIPPING, "train", "--data", "toy", *TINY, *QUICK]
    done = subprocess.run(
        [*command, "--micro-batch", "4", "--decay-steps", "9"],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for stage in "0123":
        run = tmp_path / stage
        entries = metrics(run)
        assert [entry["step"] for entry in entries] == [1, 2, 3, 4], done.stdout
        assert entries[2]["loss"] is None and "the loss is nan" in entries[2]["skipped"]
        assert all(math.isfinite(entries[index]["loss"]) for index in (0, 1, 3))
        assert "skipped" not in entries[3]
    assert done.stdout.count("step 3  SKIPPED its update: the loss is nan") == 4
    assert done.stdout.count("weights unchanged") == 4 and "CHANGED" not in done.stdout


def test_a_run_that_only_skips_stops(tmp_path: Path) -> None:
    """A learning rate that blows the weights up: three skipped updates, one line, the checkpoint
    of the last whole step named."""
    toy_data(tmp_path / "toy")
    flags = ["--lr", "1e30", "--clip", "0", "--warmup", "0", "--max-skipped", "3"]
    job = ["--data", "toy", *TINY, *QUICK, *flags, "--save-interval", "1", "--output", "o"]
    (result,) = run_jobs(tmp_path, [[*job, "--steps", "50"]])
    assert result.code == 1, result.out
    assert "3 updates were skipped one after another; the last checkpoint is o/" in result.err
    assert result.err.count("\n") == 1
    skipped = [entry for entry in metrics(tmp_path / "o") if "skipped" in entry]
    assert len(skipped) == 2 and json.dumps(skipped)  # the third is told by the error


def test_spikes_are_judged_by_the_last_steps() -> None:
    """Off by default; on, a loss beyond so many deviations; what is known survives a checkpoint."""
    usual = [3.0 + 0.1 * (-1) ** step for step in range(30)]
    off, on = LossGuard(0.0, 3), LossGuard(5.0, 3)
    for loss in usual:
        assert off.judge(loss) is None and on.judge(loss) is None
        assert not off.note(loss, False) and not on.note(loss, False)
    assert off.judge(9.0) is None and off.judge(math.inf) == "the loss is inf"
    resumed = LossGuard(5.0, 3, json.loads(json.dumps(on.state())))
    for guard in (on, resumed):
        assert guard.judge(3.2) is None and guard.judge(1.0) is None
        assert "the loss is 4.0000, usual are 3.0000" in str(guard.judge(4.0))
        assert guard.judge(3.0, math.nan) == "the gradient's norm is nan"
        assert [guard.note(9.0, True) for _ in range(3)] == [False, False, True]
        assert not guard.note(3.0, False)


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The same run with the ops, with plain PyTorch, and with other micro-batches."""
    folder = tmp_path_factory.mktemp("kernels")
    toy_data(folder / "toy")
    fixed = ["--dropout", "0", "--steps", "8", "--decay-steps", "8", "--dtype", "fp32"]
    job = ["--data", "toy", *TINY, *QUICK, *fixed, "--output"]
    jobs = [[*job, "on"], [*job, "off", "--kernels", "off"]]
    jobs += [[*job, f"on {size}", "--micro-batch", size] for size in ("1", "4", "8")]
    results = run_jobs(folder, jobs)
    assert [result.code for result in results] == [0] * 5, results
    return folder, results[1].out


def test_plain_pytorch_has_the_same_losses(kernels: tuple[Path, str]) -> None:
    """--kernels off: a curve no farther off than twice what other orders of sums make it."""
    folder, out = kernels
    curve = losses(folder / "on")
    eps = 2.0**-23
    for step, loss in enumerate(curve):
        others = [abs(losses(folder / f"on {size}")[step] - loss) for size in ("1", "4", "8")]
        bound = 2 * max(others) + 4 * eps * loss
        assert abs(losses(folder / "off")[step] - loss) <= bound, (step, bound)
    assert "WARNING: not at full speed: kernels are off (--kernels off)" in out


def test_missing_tracker_is_told(tmp_path: Path) -> None:
    """Weights & Biases is nobody's dependency: one line says what to install."""
    toy_data(tmp_path / "toy")
    code = (
        "import sys; sys.modules['wandb'] = None\n"
        "from llmjp import cli; sys.exit(cli.main(sys.argv[1:]))"
    )
    job = ["train", "--data", "toy", *TINY, *QUICK, "--output", "o", "--wandb", "p"]
    done = subprocess.run(
        [sys.executable, "-c", code, *job],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 1
    assert done.stderr == "llmjp: error: --wandb needs 'pip install wandb'\n"
