"""The benchmark harness: rows, statistics, correctness before speed. No timing decides a test."""

import dataclasses
import json
import re
import subprocess
import sys
import types
from collections import Counter
from pathlib import Path

import pytest
import torch

from benchmarks import run
from benchmarks.harness import Candidate, Case, accuracy_check, missing, runner
from benchmarks.harness.ceilings import Ceilings
from benchmarks.harness.environment import commit
from benchmarks.harness.measure import QUICK_REPETITIONS, Sample, Timing, measure, summarise
from benchmarks.harness.report import case_rows, table
from benchmarks.harness.runner import Machine, run_case

ROOT = Path(__file__).resolve().parents[1]
CPU = torch.device("cpu")
CEILINGS = Ceilings(copy_gb_per_s=10.0, matmul_tflop_per_s=2.0)


class EvenClock:
    """A clock by which every call takes a millisecond."""

    def time(self, candidate: Candidate) -> Sample:
        candidate.run(*candidate.arguments())
        return Sample(1e-3, 1e-3)

    def cover(self, host_seconds: float) -> None:
        pass


MACHINE = Machine(CPU, EvenClock(), CEILINGS, {"device": "cpu"})


class ToldClock(EvenClock):
    """A clock that says what it is told, by candidate, and notes the order of the calls."""

    def __init__(self, seconds: dict[str, list[float]]) -> None:
        self.seconds = {name: iter(values) for name, values in seconds.items()}
        self.calls: list[str] = []

    def time(self, candidate: Candidate) -> Sample:
        name = candidate.run(*candidate.arguments())
        self.calls.append(name)
        seconds = next(self.seconds[name])
        return Sample(seconds, seconds)


def double_case(**changes) -> Case:
    """x * 2 done in two right ways; `changes` replace fields."""
    x = torch.randn(8, 16)
    case = Case(
        name="double",
        shape="8 x 16",
        dtype="float32",
        candidates={"llmjp_ext": lambda: x * 2, "peer": lambda: x + x},
        check=accuracy_check({"y": x.double() * 2}, [x + x]),
        bytes=2 * x.nbytes,
    )
    return dataclasses.replace(case, **changes)


def timing(milliseconds: float, host_ms: float = 0.0) -> Timing:
    return Timing(milliseconds, milliseconds, milliseconds, host_ms, 20)


def run_module(
    monkeypatch: pytest.MonkeyPatch,
    cases,
    output: Path,
    device: torch.device = CPU,
    resume: bool = False,
) -> int:
    """run_benchmarks on a benchmark "planted" with this function `cases`."""
    module = types.ModuleType("benchmarks.planted")
    module.cases = cases
    monkeypatch.setitem(sys.modules, "benchmarks.planted", module)
    return runner.run_benchmarks(["planted"], device, quick=True, output=output, resume=resume)


@pytest.mark.parametrize("place", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_layer_norm(place: str, tmp_path: Path) -> None:
    """The command measures, appends rows that are whole, and prints the same candidates."""
    output = tmp_path / "sub" / "results.jsonl"
    command = [sys.executable, "benchmarks/run.py", "layer_norm", "--quick", "--device", place]
    done = subprocess.run(
        [*command, "--output", str(output)], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    cases = Counter((row["case"], row["dtype"]) for row in rows)
    assert {case for case, _ in cases} == {
        "forward",
        "forward + residual",
        "forward + residual + dropout",
        "backward",
        "backward + residual",
        "backward + residual + dropout",
    }
    assert {dtype for _, dtype in cases} == {"float32", "float16", "bfloat16"}
    # With dropout the peers are others.
    rows = [row for row in rows if "dropout" not in row["case"]]
    for row in rows:
        assert row.keys() == rows[0].keys()
        assert row["benchmark"] == "layer_norm" and row["quick"] is True
        assert (row["device"] == "cpu") == (place == "cpu")
        assert row["commit"] and row["cpu"] and row["torch"]
        assert (row["host_ms"] is not None) == (place == "cuda" and row["status"] == "ok")
        if row["status"] == "ok":
            assert 0 < row["p20_ms"] <= row["median_ms"] <= row["p80_ms"], row
            assert row["gb_per_s"] > 0 and row["share_of_ceiling"] > 0, row
            assert row["strongest_peer"] in {"F.layer_norm", "torch.compile", "Liger"}, row
            assert row["repetitions"] == QUICK_REPETITIONS, row
    by_status = {
        status: {row["candidate"] for row in rows if row["status"] == status}
        for status in ("ok", "absent", "error")
    }
    everyone = {"llmjp_ext", "F.layer_norm", "torch.compile", "Liger"}
    present = everyone - ({"torch.compile", "Liger"} if place == "cpu" else set())
    if missing("liger_kernel"):
        present -= {"Liger"}
    assert by_status == {"ok": present, "absent": everyone - present, "error": set()}
    for words in (*everyone, "backward 64 x 256 float32"):
        assert words in done.stdout


def test_wrong_candidate_is_reported_and_not_timed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """An error beyond the numerics rule makes an error row and a failure; others are measured."""
    output = tmp_path / "results.jsonl"
    x = torch.randn(8, 16)
    calls = Counter()

    def nearly(x: torch.Tensor) -> torch.Tensor:
        calls["nearly"] += 1
        return (x * 2).index_fill(1, torch.tensor([7]), 0.25)

    case = double_case(
        candidates={"llmjp_ext": lambda: nearly(x), "peer": lambda: x + x},
        check=accuracy_check({"y": x.double() * 2}, [x + x]),
    )
    assert run_module(monkeypatch, lambda device, quick: iter([case]), output) == 1
    wrong, right = (json.loads(line) for line in output.read_text().splitlines())
    assert wrong["candidate"] == "llmjp_ext" and wrong["status"] == "error"
    assert re.match(r"AssertionError: y: error .* allowed", wrong["message"])
    assert wrong["median_ms"] is None and calls["nearly"] == 1
    assert right["status"] == "ok" and right["strongest_peer"] == "peer"


def test_raising_candidate_does_not_stop_the_others() -> None:
    """Whether it raises at the check or only later, its row says why."""
    calls = Counter()

    def fails_later() -> torch.Tensor:
        calls["later"] += 1
        if calls["later"] > 3:
            raise RuntimeError("out of something\nwith a trace below")
        return torch.zeros(1)

    def fails_at_once() -> torch.Tensor:
        raise NotImplementedError("not for this shape")

    case = double_case(
        candidates={"at once": fails_at_once, "later": fails_later, "sound": lambda: None},
        check=lambda result: None,
    )
    rows = run_case("planted", case, MACHINE, quick=True)
    assert [(row["candidate"], row["status"], row["message"]) for row in rows] == [
        ("at once", "error", "NotImplementedError: not for this shape"),
        ("later", "error", "RuntimeError: out of something"),
        ("sound", "ok", None),
    ]


def test_broken_benchmark_is_one_failure(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Cases before the exception keep their rows, and a row names what went wrong."""
    output = tmp_path / "results.jsonl"

    def cases(device, quick):
        yield double_case()
        raise FileNotFoundError("no such corpus")

    assert run_module(monkeypatch, cases, output) == 1
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert [row["status"] for row in rows] == ["ok", "ok", "error"]
    assert rows[-1]["message"] == "FileNotFoundError: no such corpus"
    assert len({tuple(row) for row in rows}) == 1, "rows differ in their keys"


def test_jobs_of_the_cpu_have_its_clock(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Beside a GPU a case on the CPU is measured as the CPU's work, and its rows say so."""

    def machine(device: torch.device, quick: bool) -> Machine:
        return Machine(device, EvenClock(), CEILINGS, {"device": device.type})

    monkeypatch.setattr(runner, "make_machine", machine)
    output = tmp_path / "results.jsonl"
    cases = [double_case(), double_case(on_cpu=True)]
    gpu = torch.device("cuda")
    assert run_module(monkeypatch, lambda device, quick: iter(cases), output, gpu) == 0
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert [(row["device"], row["host_ms"]) for row in rows] == [
        ("cuda", 1.0),
        ("cuda", 1.0),
        ("cpu", None),
        ("cpu", None),
    ]


def test_absent_peers_are_listed() -> None:
    """In the rows and in the table, with the reason."""
    reason = missing("no_module_has_this_name", "no-package")
    assert reason == "no-package is not installed" and missing("torch") is None
    case = double_case(absent={"another": reason})
    rows = case_rows("b", case, {"llmjp_ext": timing(1), "peer": timing(2)}, CEILINGS, False)
    assert (rows[2]["candidate"], rows[2]["status"]) == ("another", "absent")
    assert re.search(r"another +absent: no-package is not installed", table(case, rows))


def test_statistics_of_known_samples() -> None:
    """0 to 100 ms: the percentiles are their own numbers, in any order."""
    samples = [Sample(i / 1e3, i / 2e3, i << 20) for i in torch.randperm(101).tolist()]
    result = summarise(dict(enumerate(samples)))
    assert result.median_ms == pytest.approx(50) and result.host_ms == pytest.approx(25)
    assert result.p20_ms == pytest.approx(20) and result.p80_ms == pytest.approx(80)
    assert result.repetitions == 101 and result.allocated_mib == 100


def test_rates_of_known_times() -> None:
    """Rates, shares, the bound and the ratio follow from bytes, operations and medians."""
    case = double_case(
        candidates=dict.fromkeys(("llmjp_ext", "llmjp_ext in place", "slow", "fast"), lambda: None),
        bytes=20_000_000,  # 2 ms at 10 GB/s
        flops=2_000_000_000,  # 1 ms at 2 TFLOP/s
        input_bytes=3_000_000,
    )
    times = {
        "llmjp_ext": timing(4.0, host_ms=5.0),
        "llmjp_ext in place": timing(2.5, host_ms=1.0),
        "slow": timing(20.0),
        "fast": timing(5.0),
    }
    rows = {row["candidate"]: row for row in case_rows("b", case, times, CEILINGS, True)}
    ours = rows["llmjp_ext"]
    assert ours["gb_per_s"] == pytest.approx(5.0) and ours["tflop_per_s"] == pytest.approx(0.5)
    assert ours["mb_per_s"] == pytest.approx(750.0)
    assert ours["share_of_ceiling"] == pytest.approx(0.5) and ours["bound"] == "memory"
    assert ours["launch_bound"] is True and rows["llmjp_ext in place"]["launch_bound"] is False
    # Our own variant is faster than both peers and still no peer.
    assert {row["strongest_peer"] for row in rows.values()} == {"fast"}
    ratios = [rows[name]["speedup_over_strongest_peer"] for name in times]
    assert ratios == pytest.approx([1.25, 2.0, 0.25, 1.0])
    assert CEILINGS.floor_ms(10_000_000, 4_000_000_000) == (pytest.approx(2.0), "compute")
    text = table(case, list(rows.values()))
    assert "launch-bound" in text and "1.25x" in text and "50%" in text


def test_a_stopped_benchmark_goes_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With resume, cases that have their figures do not run again: not where another commit has
    them, nor where our own candidate failed; half a line at the end is no obstacle."""
    monkeypatch.setenv("LLMJP_COMMIT", "abc")
    output = tmp_path / "results.jsonl"
    ran: list[str] = []
    fail = {"second": True}

    def case(name: str) -> Case:
        def run() -> None:
            ran.append(name)
            if fail.get(name):
                raise RuntimeError("no")

        def peer() -> None:
            raise RuntimeError("never")

        candidates = {"llmjp_ext": run, "peer": peer}
        return double_case(name=name, candidates=candidates, check=lambda result: None)

    def cases(device: torch.device, quick: bool):
        return (case(name) for name in ("first", "second", "third"))

    def names(**options) -> list[str]:
        ran.clear()
        run_module(monkeypatch, cases, output, **options)
        return list(dict.fromkeys(ran))

    assert names(resume=True) == ["first", "second", "third"]
    with output.open("a") as file:
        file.write('{"benchmark": "plan')
    assert names(resume=True) == ["second"]
    fail.clear()
    with output.open("a") as file:
        file.write("\n")
    assert names(resume=True) == ["second"] and names(resume=True) == []
    assert names() == ["first", "second", "third"]
    monkeypatch.setenv("LLMJP_COMMIT", "def")
    assert names(resume=True) == ["first", "second", "third"]


def test_rounds_interleave_all_candidates() -> None:
    """Each round runs every candidate once in an order of its own, at least 20 rounds."""
    warm_up, rounds = 3, 20
    seconds = {name: [1.0] * warm_up + [float(i) for i in range(rounds)] for name in "ab"}
    clock = ToldClock(seconds)
    candidates = {name: Candidate(lambda name=name: name) for name in "ab"}
    results = measure(candidates, clock, CPU)
    pairs = ["".join(clock.calls[i : i + 2]) for i in range(2 * warm_up, len(clock.calls), 2)]
    assert len(pairs) == rounds and set(pairs) == {"ab", "ba"}
    # Warm-up calls are not among the samples.
    assert all(r.median_ms == pytest.approx(9.5e3) for r in results.values())


def test_prepared_argument_is_new_for_every_call() -> None:
    """What `prepare` returns goes to the next call of `run`, once."""
    made: list[object] = []
    used: list[object] = []

    def prepare() -> object:
        made.append(object())
        return made[-1]

    case = double_case(
        candidates={"peer": Candidate(used.append, prepare)}, check=lambda result: None
    )
    (row,) = run_case("planted", case, MACHINE, quick=True)
    assert row["status"] == "ok"
    assert used == made and len(made) >= QUICK_REPETITIONS + 1


def test_readme_example_is_a_benchmark(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The benchmark that benchmarks/README.md shows runs, and both its candidates are right."""
    text = (ROOT / "benchmarks" / "README.md").read_text()
    example = next(b for b in re.findall(r"```python\n(.*?)```", text, re.S) if "def cases" in b)
    namespace: dict = {}
    exec(compile(example, "benchmarks/README.md", "exec"), namespace)
    output = tmp_path / "results.jsonl"
    assert run_module(monkeypatch, namespace["cases"], output) == 0
    statuses = Counter(json.loads(line)["status"] for line in output.read_text().splitlines())
    assert statuses == {"ok": 2, "absent": 1}


def test_command_line_errors_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    """An unknown name is refused with those that exist; --list prints them."""
    with pytest.raises(SystemExit) as stopped:
        run.main(["no_such_benchmark"])
    assert stopped.value.code == 2
    assert "unknown benchmark 'no_such_benchmark'; there are" in capsys.readouterr().err
    assert run.main(["--list"]) == 0
    names = capsys.readouterr().out.split()
    assert "layer_norm" in names and "run" not in names
    if not torch.cuda.is_available():
        assert run.main(["--device", "cuda", "layer_norm"]) == 2
        assert "no CUDA GPU was found" in capsys.readouterr().err


def test_commit_is_what_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """$LLMJP_COMMIT serves copies without history and goes before git."""
    monkeypatch.setenv("LLMJP_COMMIT", "abc123")
    assert commit() == "abc123"


def test_every_benchmark_has_cases() -> None:
    """run.py lists what it can run: a module with a `cases` function and a docstring."""
    for name in run.benchmark_names():
        text = (ROOT / "benchmarks" / f"{name}.py").read_text()
        assert text.startswith('"""') and re.search(r"^def cases\(", text, re.M), name
