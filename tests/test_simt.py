"""csrc/simt keeps its promises: runs the C++ cases of csrc/tests, plain and address-sanitized.

A failing case prints the source line, the values and, for a launch, the seed of its thread order.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SIMT = ROOT / "build" / str(sys.implementation.cache_tag) / "simt"
PLAIN = SIMT / "simt_tests"
SANITIZED = SIMT / "simt_tests_asan"

# These run past a buffer on purpose: only the sanitized build can stop them.
OVERRUNS = {"overrun_of_shared_memory_by_raw_pointer", "overrun_of_global_memory"}


def cases() -> list[str]:
    if not PLAIN.exists():
        return []
    listing = subprocess.run([PLAIN, "--list"], check=True, capture_output=True, text=True)
    return sorted(set(listing.stdout.split()) - OVERRUNS)


def run(binary: Path, case: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "UBSAN_OPTIONS": "halt_on_error=1"}
    return subprocess.run(
        [binary, case], capture_output=True, text=True, timeout=120, env=environment
    )


def test_the_cases_are_built() -> None:
    """Without the binaries every other test here would vanish silently."""
    assert PLAIN.exists() and SANITIZED.exists(), f"{SIMT} lacks the C++ tests: run `make test`"
    assert len(cases()) > 40


@pytest.mark.parametrize("case", cases())
@pytest.mark.parametrize("binary", [PLAIN, SANITIZED], ids=["plain", "sanitized"])
def test_case(binary: Path, case: str) -> None:
    finished = run(binary, case)
    assert finished.returncode == 0, finished.stdout + finished.stderr[-4000:]


@pytest.mark.parametrize("case", sorted(OVERRUNS))
def test_the_sanitizer_stops_an_overrun(case: str) -> None:
    finished = run(SANITIZED, case)
    assert finished.returncode != 0
    assert "AddressSanitizer: heap-buffer-overflow" in finished.stderr
