"""How a process of a training run ends, and what a run leaves behind in its process."""

import subprocess
import sys
from pathlib import Path

from train_runs import QUICK, TINY, environment, toy_data

# Threads in C++ code that gives up the interpreter's lock and takes it again, as gloo's do.
ENDING = """
import atexit, threading, time, torch
from llmjp.training.processes import end_process

def sort():
    values = torch.randn(20_000)
    while True:
        values.sort()

atexit.register(print, "handlers ran")
for _ in range(3):
    threading.Thread(target=sort, daemon=True).start()
time.sleep(0.2)
print("said", end=" ")
end_process(7)
"""

LEAVING = """
import gc, sys
import torch
from llmjp import cli
from llmjp.model import GPT

for stage in "012":
    cli.main([*sys.argv[1:], "--output", stage, "--zero-stage", stage])
gc.collect()
print("left", sum(isinstance(thing, GPT) for thing in gc.get_objects()))
"""


def run(code: str, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs Python code as a process of its own."""
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(
        command, cwd=folder, env=environment(), capture_output=True, text=True, timeout=120
    )


def test_a_process_ends_as_told_while_threads_run(tmp_path: Path) -> None:
    """Exit code, exit handlers and output are kept; sys.exit() would abort here ("terminate")."""
    result = run(ENDING, tmp_path)
    assert (result.returncode, result.stdout) == (7, "said handlers ran\n"), result.stderr


def test_a_run_leaves_no_model_behind(tmp_path: Path) -> None:
    """The models of runs that ended in this process are gone from its memory."""
    toy_data(tmp_path / "toy")
    result = run(LEAVING, tmp_path, "train", "--data", "toy", *TINY, *QUICK, "--steps", "1")
    assert result.stdout.endswith("left 0\n"), result.stdout + result.stderr
