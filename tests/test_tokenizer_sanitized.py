"""The tokenizer's C++ code under the address and undefined-behaviour sanitizers.

Each fuzz target of csrc/tests/tokenizer runs on its seeds and on random mutants of them: hostile
files of all formats, texts through every search and instruction set, any ids. `make fuzz` looks
further, guided by coverage.
"""

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
BINARY = ROOT / "build" / str(sys.implementation.cache_tag) / "tokenizer_tests" / "tokenizer_replay"


def replay(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Runs the program so that any report of a sanitizer is a failure."""
    environment = {**os.environ, "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1"}
    return subprocess.run(
        [BINARY, *arguments], capture_output=True, text=True, timeout=300, env=environment
    )


@pytest.mark.parametrize(
    ("target", "count"), [("files", 1500), ("search", 3000), ("decode", 20000)]
)
def test_seeds_and_mutants_break_no_promise(target: str, count: int) -> None:
    """No sanitizer report, no broken promise, no exception that nobody expects."""
    seed = random.Random(target).randrange(1 << 30)
    finished = replay(target, "--mutate", str(seed), str(count))
    assert finished.returncode == 0, f"{target}, seed {seed}: {finished.stderr[-4000:]}"


def test_what_a_fuzzer_found_can_be_replayed(tmp_path: Path) -> None:
    """Inputs as files: the seeds, written and read; a missing file and target are errors."""
    assert replay("files", "--seeds", tmp_path).returncode == 0
    files = sorted(tmp_path.iterdir())
    assert len(files) > 5
    assert replay("files", *files).returncode == 0
    assert replay("files", tmp_path / "none").returncode == 1
    assert replay("nothing", "--seeds", tmp_path).returncode == 2
