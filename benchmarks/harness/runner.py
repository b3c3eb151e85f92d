"""Runs benchmarks: correctness, then time, then rows and tables."""

import importlib
import json
import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness.case import Case
from benchmarks.harness.ceilings import Ceilings, measure_ceilings
from benchmarks.harness.environment import environment
from benchmarks.harness.measure import Clock, Timing, make_clock, measure
from benchmarks.harness.report import (
    candidates_of,
    case_rows,
    empty_row,
    is_ours,
    one_line,
    table,
)


def progress(text: str) -> None:
    """A line on standard error."""
    print(text, file=sys.stderr, flush=True)


@dataclass(frozen=True)
class Machine:
    """One device to measure on: its clock, its ceilings, and the facts that every row gets."""

    device: torch.device
    clock: Clock
    ceilings: Ceilings
    facts: dict[str, Any]


def make_machine(device: torch.device, quick: bool) -> Machine:
    """Measures a device's ceilings, and prints them with what the device is."""
    facts = environment(device)
    progress(f"measuring the ceilings of {facts['device']} ({facts['cpu']})")
    cores = os.cpu_count() or 1
    if facts["load_average"] > cores / 4:
        progress(f"the machine is busy: load average {facts['load_average']:.1f}, {cores} cores")
    clock = make_clock(device)
    ceilings = measure_ceilings(device, clock, quick)
    print(
        f"{facts['device']}, {facts['cpu']}, torch {facts['torch']}, commit {facts['commit']}\n"
        f"copy {ceilings.copy_gb_per_s:.1f} GB/s, "
        f"matrix product {ceilings.matmul_tflop_per_s:.3g} TFLOP/s"
        f"{'; quick: not for quoting' if quick else ''}\n",
        flush=True,
    )
    facts |= {
        "quick": quick,
        "ceiling_copy_gb_per_s": ceilings.copy_gb_per_s,
        "ceiling_matmul_tflop_per_s": ceilings.matmul_tflop_per_s,
    }
    return Machine(device, clock, ceilings, facts)


def check_candidates(case: Case) -> tuple[dict[str, Exception], dict[str, int | None]]:
    """Runs every candidate once and checks its result.

    Returns:
        The exceptions of those that are not to be timed, and the number of wrong items of those
        whose check gave one, by name.
    """
    failures: dict[str, Exception] = {}
    differing: dict[str, int | None] = {}
    for name, candidate in candidates_of(case).items():
        try:
            result = candidate.run(*candidate.arguments())
            wrong = case.check(candidate.as_result(result) if candidate.as_result else result)
            del result
            if wrong and is_ours(name):
                raise AssertionError(f"{wrong} of {case.items} results are wrong")
            differing[name] = wrong
        except Exception as error:  # whatever a peer raises, the others go on
            failures[name] = error
    return failures, differing


def run_case(benchmark: str, case: Case, machine: Machine, quick: bool) -> list[dict[str, Any]]:
    """Checks and measures a case; returns its rows, complete."""
    failures, differing = check_candidates(case)
    results: dict[str, Timing | Exception] = dict(failures)
    sound = {name: c for name, c in candidates_of(case).items() if name not in results}
    results |= measure(
        sound, machine.clock, machine.device, quick=quick, budget=case.budget_seconds
    )
    on_cuda = machine.device.type == "cuda"
    rows = case_rows(benchmark, case, results, machine.ceilings, on_cuda, differing)
    return [row | machine.facts for row in rows]


def run_benchmarks(
    names: Sequence[str],
    device: torch.device,
    *,
    quick: bool = False,
    output: Path | None = None,
    words: Sequence[str] = (),
    resume: bool = False,
) -> int:
    """Runs benchmarks by name.

    Args:
        names: stems of modules in benchmarks/.
        device: CUDA or CPU.
        quick: few small cases, few repetitions.
        output: a file that every row is appended to as soon as it is there, one JSON object a line.
        words: only cases whose title has one of these, in any case of letters; all if empty.
        resume: without the cases that `output` has from this device and commit.

    Returns:
        The number of candidates and benchmarks that failed.
    """
    failures = 0
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
    machines = {device.type: make_machine(device, quick)}
    done = measured_cases(output, machines[device.type].facts) if resume and output else set()
    for name in names:
        try:
            for case in _cases(name, device, quick):
                if words and not any(word.lower() in case.title.lower() for word in words):
                    continue
                if (name, case.name, case.shape, case.dtype) in done:
                    progress(f"{name}: {case.title}: measured before")
                    continue
                place = "cpu" if case.on_cpu else device.type
                if place not in machines:
                    machines[place] = make_machine(torch.device(place), quick)
                progress(f"{name}: {case.title}")
                rows = run_case(name, case, machines[place], quick)
                failures += sum(row["status"] == "error" for row in rows)
                print(table(case, rows), flush=True)
                _append(output, rows)
                del case  # its tensors make room for the next one's
                _forget_compiled_code()
        except Exception as error:  # one benchmark that cannot run does not stop the next
            failures += 1
            traceback.print_exc()
            row = empty_row(name, None, None) | {"status": "error", "message": one_line(error)}
            print(f"{name}: error: {row['message']}\n", flush=True)
            _append(output, [row | machines[device.type].facts])
    return failures


def measured_cases(output: Path, facts: dict[str, Any]) -> set[tuple[str, ...]]:
    """Benchmark, name, shape and dtype of the cases whose figures a file of results has.

    Those of another device, commit or kind of run do not count, nor does a case in which this
    project's candidates failed: a peer that fails does so again.
    """
    found: dict[tuple[str, ...], dict[str, bool]] = {}
    for line in output.read_text(encoding="utf-8").splitlines() if output.exists() else ():
        try:
            row = json.loads(line)
        except ValueError:  # half a line of a process that was killed
            continue
        of_this_run = all(row.get(key) == facts[key] for key in ("device", "commit", "quick"))
        if of_this_run and row.get("case") is not None and is_ours(row["candidate"]):
            key = tuple(row[name] for name in ("benchmark", "case", "shape", "dtype"))
            found.setdefault(key, {})[row["candidate"]] = row["status"] == "ok"
    return {key for key, candidates in found.items() if all(candidates.values())}


def _cases(name: str, device: torch.device, quick: bool) -> Iterator[Case]:
    module = importlib.import_module(f"benchmarks.{name}")
    cases: Iterator[Case] = module.cases(device, quick)
    return cases


def _forget_compiled_code() -> None:
    """torch.compile falls back to eager code after some shapes of one function: start anew."""
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _append(output: Path | None, rows: list[dict[str, Any]]) -> None:
    if output is None:
        return
    with output.open("a", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row) + "\n")
