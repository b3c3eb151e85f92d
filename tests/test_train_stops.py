"""How `llmjp train` stops: by a signal, by force, by a full disk; its checkpoints stay valid."""

import signal
import time
from pathlib import Path
from subprocess import Popen

import pytest

from train_runs import QUICK, TINY, losses, metrics, run_jobs, start, toy_data

LAST = 1000  # the step at which the cosine ends; the runs end long before


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the toy data."""
    folder = tmp_path_factory.mktemp("stops")
    toy_data(folder / "toy")
    return folder


def arguments(output: str, steps: int, *more: object) -> list[object]:
    """A run that saves after each step."""
    interval = ("--save-interval", 1, "--decay-steps", LAST)
    return ["--data", "toy", *TINY, *QUICK, *interval, "--output", output, "--steps", steps, *more]


def wait_for_step(process: Popen[str], output: Path, step: int) -> None:
    """Returns when the run has saved a step; fails if it ends before."""
    latest = output / "checkpoints" / "latest"
    deadline = time.monotonic() + 120
    while not latest.exists() or int(latest.read_text().removeprefix("step-")) < step:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "no checkpoint appeared"
        time.sleep(0.002)


def test_kill_and_interrupt_lose_nothing(folder: Path) -> None:
    """kill -9 while steps are saved, then SIGINT, then to the end: the metrics of one whole run."""
    output = folder / "stopped"
    process = start(folder, arguments("stopped", LAST))
    wait_for_step(process, output, 2)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    killed_at = int((output / "checkpoints" / "latest").read_text().removeprefix("step-"))

    process = start(folder, arguments("stopped", LAST))
    wait_for_step(process, output, killed_at + 2)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert f"from stopped/checkpoints/step-{killed_at}" in out
    assert "Traceback" not in err
    stopped_at = int((output / "checkpoints" / "latest").read_text().removeprefix("step-"))
    assert f"stopped after step {stopped_at}, which is saved" in out
    assert not (output / "hf").exists()

    last = stopped_at + 1
    results = run_jobs(folder, [arguments("stopped", last), arguments("whole", last)])
    assert [result.code for result in results] == [0, 0], results
    assert metrics(output) == metrics(folder / "whole")
    assert (output / "hf" / "model.safetensors").exists()


def test_full_disk_while_saving_keeps_the_last_checkpoint(folder: Path) -> None:
    """A file size limit cuts a checkpoint off: one line, the one before is whole and goes on.

    At the first checkpoint nothing is left that could be taken for one: the run starts anew.
    """
    jobs = [arguments("full", 2), arguments("full", 4), arguments("full", 4)]
    jobs += [arguments("uncut", 4), arguments("early", 1), arguments("early", 1)]
    first, cut, second, whole, early, anew = run_jobs(folder, jobs, limits={1: 100_000, 4: 100_000})
    assert first.code == 0 and whole.code == 0
    assert cut.code == 1, cut.out
    saving = "saving checkpoint full/checkpoints/step-3 failed: a file could not be written whole"
    assert cut.err.startswith(f"llmjp: error: {saving} (the disk has "), cut.err
    assert "the last complete one is full/checkpoints/step-2" in cut.err
    assert cut.err.count("\n") == 1
    assert second.code == 0 and "from full/checkpoints/step-2" in second.out
    assert losses(folder / "full") == losses(folder / "uncut")
    assert early.code == 1 and "there is no earlier one" in early.err
    assert anew.code == 0 and "from the beginning" in anew.out
