"""How `llmjp train` stops: by a signal, by force, by a full disk; its checkpoints stay valid."""

import signal
import time
from collections.abc import Callable
from pathlib import Path
from subprocess import Popen

import pytest

from train_runs import QUICK, TINY, losses, metrics, places, run_jobs, start, toy_data

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


def saved(output: Path) -> int:
    """The step of the checkpoint to continue from; 0 without one."""
    pointer = output / "checkpoints" / "latest"
    return int(pointer.read_text().removeprefix("step-")) if pointer.exists() else 0


def wait_until(process: Popen[str], reached: Callable[[], bool]) -> None:
    """Returns when a run has come so far; fails if it ends before."""
    deadline = time.monotonic() + 120
    while not reached():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "the run did not come so far"
        time.sleep(0.002)


def unfinished(output: Path) -> list[Path]:
    """Files of a checkpoint of a later step than `latest`, beyond which training has gone on."""
    files = list(output.glob("checkpoints/.step-*.partial/*"))
    steps = [int(file.parent.name.split("-")[1].split(".")[0]) for file in files]
    if not steps or not 0 < saved(output) < steps[0]:
        return []
    return files if metrics(output)[-1]["step"] > steps[0] else []


def test_kill_and_interrupt_lose_nothing(folder: Path) -> None:
    """kill -9 while a checkpoint is written and training goes on, then SIGINT, then to the end.

    The first run's checkpoints are published steps after they were begun. The metrics are those of
    one whole run.
    """
    output = folder / "stopped"
    process = start(folder, arguments("stopped", LAST, "--save-interval", 3), slow=True)
    wait_until(process, lambda: bool(unfinished(output)))
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert unfinished(output), "it was killed between two checkpoints"
    killed_at = saved(output)

    process = start(folder, arguments("stopped", LAST))
    wait_until(process, lambda: saved(output) >= killed_at + 2)
    assert not unfinished(output)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert f"from stopped/checkpoints/step-{killed_at}" in out
    assert "Traceback" not in err
    stopped_at = saved(output)
    assert f"stopped after step {stopped_at}, which is saved" in out
    assert not (output / "hf").exists()

    last = stopped_at + 1
    results = run_jobs(folder, [arguments("stopped", last), arguments("whole", last)])
    assert [result.code for result in results] == [0, 0], results
    assert metrics(output) == metrics(folder / "whole")
    assert (output / "hf" / "model.safetensors").exists()


def test_a_schedulers_signal_saves_and_ends_well(folder: Path) -> None:
    """SIGTERM to a process alone; SIGUSR1 to one of two: step and checkpoint end, and exit 0 each.

    A checkpoint is being written when the signal comes, and the next one has to follow it.
    """
    alone = start(folder, arguments("alone", LAST, "--save-interval", 3), slow=True)
    pair = [
        start(folder, arguments("pair", LAST, "--save-interval", 3), place=place, slow=True)
        for place in places(2)
    ]
    for process, output, number in (
        (alone, folder / "alone", signal.SIGTERM),
        (pair[1], folder / "pair", signal.SIGUSR1),
    ):
        wait_until(process, lambda output=output: bool(unfinished(output)))  # type: ignore[misc]
        process.send_signal(number)
    for process, name in ((alone, "alone"), (pair[0], "pair"), (pair[1], "pair")):
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
        if process is not pair[1]:
            step = metrics(folder / name)[-1]["step"]
            assert step == saved(folder / name)
            assert f"stopped after step {step}, which is saved" in out
            assert not list((folder / name).rglob("*.partial"))


def test_full_disk_while_saving_keeps_the_last_checkpoint(folder: Path) -> None:
    """A file size limit cuts a checkpoint off: one line, the one before is whole and goes on.

    At the first checkpoint nothing is left that could be taken for one: the run starts anew.
    """
    jobs = [arguments("full", 2), arguments("full", 4), arguments("full", 4)]
    jobs += [arguments("uncut", 4), arguments("early", 1, "--no-async-save"), arguments("early", 1)]
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
