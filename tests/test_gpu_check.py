"""tools/gpu_check.sh without a GPU: stages, how they end, what a next call does, the report."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from benchmarks.harness import Case
from benchmarks.harness.ceilings import Ceilings
from benchmarks.harness.measure import Timing
from benchmarks.harness.report import case_rows
from tools import gpu_check, gpu_report
from tools.gpu_check import Check, Stage

ROOT = Path(__file__).resolve().parents[1]
# Goes on beyond its time limit, in a child that a signal to its parent alone would not reach.
HANGING = "import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"


def test_stages_are_found(tmp_path: Path) -> None:
    """Test modules with tests for a GPU, all benchmarks of GPU work, and no others."""
    (tmp_path / "tests").mkdir()
    (tmp_path / "benchmarks").mkdir()
    for name, text in {
        "tests/test_fixture.py": "def test_one(device: str) -> None: ...",
        "tests/test_marked.py": "@pytest.mark.gpu\ndef test_one(): ...",
        "tests/test_files.py": "def test_one(tmp_path): ...",
        "benchmarks/run.py": "",
        "benchmarks/thing.py": "",
        "benchmarks/tokenizer.py": "",
    }.items():
        (tmp_path / name).write_text(text)
    names = [stage.name for stage in gpu_check.chosen([], tmp_path)]
    expected = ["build", "test:fixture", "test:marked", "sanitize:memcheck", "bench:thing"]
    assert names == expected
    some = gpu_check.chosen(["bench:thing", "test:marked", "bench"], tmp_path)
    assert [stage.name for stage in some] == ["bench:thing", "test:marked"]
    with pytest.raises(ValueError, match="'bench:other'"):
        gpu_check.chosen(["bench:other"], tmp_path)


def test_script_lists_this_project() -> None:
    """The script itself, from another folder, finds the project's own tests and benchmarks."""
    script = ROOT / "tools" / "gpu_check.sh"
    done = subprocess.run(
        ["bash", str(script), "nowhere", "--list"],
        cwd="/",
        env={**os.environ, "PYTHON": sys.executable},
        capture_output=True,
        text=True,
        check=True,
    )
    listed = set(done.stdout.split())
    assert {"build", "test:layer_norm", "bench:attention", "sanitize:memcheck"} <= listed
    assert "bench:tokenizer" not in listed and "test:tokenize" not in listed


def commands(monkeypatch: pytest.MonkeyPatch, programs: dict[str, str]) -> None:
    """Stages become Python programs."""
    monkeypatch.setattr(gpu_check, "_LEAST", 0)
    monkeypatch.setattr(
        Stage, "command", lambda self, *_: [sys.executable, "-c", programs[self.name]]
    )


def rows(out: Path) -> dict[str, dict]:
    """The stages' rows by name."""
    return {row["stage"]: row for row in gpu_check.rows_of(out / gpu_check.RESULTS)}


def test_a_stage_that_ends_badly_costs_the_others_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One fails, one hangs with its child: both are told, and the next ones run."""
    late = tmp_path / "late"
    child = f"import time; time.sleep(4); open({str(late)!r}, 'w')"
    commands(
        monkeypatch,
        {
            "build": "print('built')",
            "test:failing": "import sys; print('reason'); sys.exit(3)",
            "test:empty": f"import sys; sys.exit({gpu_check._NO_TESTS})",
            "bench:hanging": HANGING.format(child=child),
            "bench:good": "print('measured')",
        },
    )
    monkeypatch.setitem(gpu_check._LIMITS, "bench", 1.5)
    check = Check(tmp_path, "abc", time.monotonic() + 60)
    names = ("build", "test:failing", "test:empty", "bench:hanging", "bench:good")
    check.run([Stage(name) for name in names])
    codes = {name: row["exit_code"] for name, row in rows(tmp_path).items()}
    expected = {"build": 0, "test:failing": 3, "test:empty": 0, "bench:hanging": 124}
    assert codes == expected | {"bench:good": 0}
    assert rows(tmp_path)["bench:hanging"]["timed_out"]
    assert sorted(check.failed) == ["bench:hanging", "test:failing"] and not check.left
    log = (tmp_path / gpu_check.LOG).read_text()
    assert "reason" in log and "measured" in log
    assert gpu_check.succeeded(tmp_path / gpu_check.RESULTS, "abc") == {
        "build",
        "test:empty",
        "bench:good",
    }
    assert not gpu_check.succeeded(tmp_path / gpu_check.RESULTS, "other")
    time.sleep(3)
    assert not late.exists(), "the child of a stopped stage went on"


def test_a_stage_has_a_limit_of_its_own(tmp_path: Path) -> None:
    """And a benchmark goes on with what it has not measured, unless all is wanted again."""
    assert Stage("bench:attention").limit > Stage("bench:rotary").limit
    assert all(stage.limit < 600 for stage in gpu_check.chosen([]))
    results = tmp_path / gpu_check.RESULTS
    assert "--resume" in Stage("bench:rotary").command(results, again=False)
    assert "--resume" not in Stage("bench:rotary").command(results, again=True)


def test_some_cases_do_not_stand_for_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A benchmark of which some cases ran is not done, but for a call that asks for the same."""
    results = tmp_path / gpu_check.RESULTS
    command = Stage("bench:rotary").command(results, False, ("bfloat16", "forward"))
    assert command[-3:] == ["--cases", "bfloat16", "forward"]
    assert "--cases" not in Stage("test:rotary").command(results, False, ("bfloat16",))
    commands(monkeypatch, dict.fromkeys(("build", "bench:one"), ""))
    check = Check(tmp_path, "abc", time.monotonic() + 60, cases=("bfloat16",))
    check.run([Stage("build"), Stage("bench:one")])
    assert gpu_check.succeeded(results, "abc") == {"build"}
    assert gpu_check.succeeded(results, "abc", ["float16"]) == {"build"}
    assert gpu_check.succeeded(results, "abc", ["bfloat16"]) == {"build", "bench:one"}


def test_nothing_runs_after_a_failed_build_or_the_end_of_the_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What did not run is named as left, not as failed."""
    commands(monkeypatch, {"build": "import sys; sys.exit(1)"})
    check = Check(tmp_path, "abc", time.monotonic() + 60)
    check.run([Stage(name) for name in ("build", "test:one", "bench:one")])
    assert check.failed == ["build"] and check.left == ["test:one", "bench:one"]

    monkeypatch.setattr(gpu_check, "_LEAST", 20)
    check = Check(tmp_path, "abc", time.monotonic() + 5)
    check.run([Stage("build"), Stage("bench:one")])
    assert check.failed == [] and check.left == ["build", "bench:one"]


def test_a_next_call_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the results of the last call only what has not succeeded runs, and the build."""
    names = ("bench:layer_norm", "bench:rms_norm", "build")
    ran: list[str] = []
    monkeypatch.setattr(gpu_check, "commit", lambda: "abc")
    monkeypatch.setattr(Check, "run", lambda self, stages: ran.extend(s.name for s in stages))
    earlier = tmp_path / "earlier.jsonl"
    done = {"stage": "bench:layer_norm", "commit": "abc", "exit_code": 0, "seconds": 1}
    failed = {"stage": "bench:rms_norm", "commit": "abc", "exit_code": 1, "seconds": 1}
    built = {"stage": "build", "commit": "abc", "exit_code": 0, "seconds": 1}
    lines = "".join(json.dumps(row) + "\n" for row in (done, failed, built))
    earlier.write_text(lines + '{"half of a ro')
    out = tmp_path / "out"
    assert gpu_check.main([str(out), *names, "--resume", str(earlier)]) == 0
    assert ran == ["bench:rms_norm", "build"]
    assert "bench:layer_norm: succeeded before" in capsys.readouterr().out
    assert (out / gpu_check.RESULTS).exists() and (out / gpu_check.SUMMARY).exists()
    ran.clear()
    assert gpu_check.main([str(out), *names, "--again"]) == 0
    assert ran == list(names)


def measured(benchmark: str, name: str, shape: str, times: dict[str, float], size: int) -> list:
    """Rows of a case as the harness writes them, for a copy of 1000 GB/s."""
    candidates = dict.fromkeys(times, torch.empty)
    case = Case(name, shape, "bfloat16", candidates, lambda result: None, bytes=size)
    results = {c: Timing(t, t, t, 0.004, 20, 1.0) for c, t in times.items()}
    facts = {
        "device": "a GPU",
        "driver": "1",
        "torch": "2",
        "commit": "abc",
        "ceiling_copy_gb_per_s": 1000.0,
        "ceiling_matmul_tflop_per_s": 100.0,
    }
    made = case_rows(benchmark, case, results, Ceilings(1000.0, 100.0), on_cuda=True)
    return [row | facts for row in made]


def line(report: str, goal: str) -> list[str]:
    """The cells of a goal's line."""
    found = [text for text in report.splitlines() if text.startswith(f"| {goal}")]
    assert len(found) == 1, found
    return [cell.strip() for cell in found[0].strip("|").split("|")]


def test_report_judges_each_goal() -> None:
    """Shares of the ceiling and ratios to peers; small cases do not count, later rows replace."""
    size = 10**8  # 0.1 ms at the rate of the copy
    results = [
        *measured("layer_norm", "forward", "8192 x 2048", {"llmjp_ext": 0.2}, size),
        *measured("layer_norm", "forward", "8192 x 2048", {"llmjp_ext": 0.105}, size),
        *measured("rms_norm", "forward", "8192 x 2048", {"llmjp_ext": 0.125}, size),
        *measured("rms_norm", "forward", "64 x 2048", {"llmjp_ext": 9.0}, 10**5),
        *measured(
            "linear_cross_entropy",
            "forward + backward",
            "16384 x 2048 x 50688",
            {"llmjp_ext": 1.0, "logits + cross_entropy": 1.2, "F.cross_entropy": 0.1},
            0,
        ),
        *measured(
            "attention_varlen",
            "forward",
            "4 x 2048",
            {"llmjp_ext": 1, "llmjp_ext attention": 0.8},
            0,
        ),
        *measured(
            "attention_decode", "decode", "32 x 32760 of 32768, 64/8 x 64", {"llmjp_ext": 0.2}, size
        ),
        *measured("attention_decode", "decode", "32 x 32760, 8 tokens", {"llmjp_ext": 0.125}, size),
        *measured("adamw", "step", "1", {"torch fused": 0.125, "torch foreach": 0.5}, size),
        *measured(
            "bias_gelu",
            "linear, forward",
            "8192 x 2048 x 8192",
            {"llmjp_ext": 1.0, "llmjp_ext bias in the product": 1.5, "cuBLASLt's epilogue": 0.9},
            0,
        ),
        *measured("sample", "top-p", "32 x 50688", {"llmjp_ext": 1.0, "PyTorch": 2.0}, size),
        *measured("sample", "top-p", "64 x 50688", {"llmjp_ext": 1.0, "PyTorch": 11.0}, size),
    ]
    failing = results[0] | {"candidate": "peer", "status": "error", "message": "RuntimeError: no"}
    stage = {"stage": "bench:sample", "commit": "abc", "exit_code": 124, "seconds": 240.0}
    text = gpu_report.report([*results, failing, stage])
    assert "a GPU" in text and "copy 1000 – 1000 GB/s" in text
    assert "| bench:sample | 124 | 240 |" in text
    assert "RuntimeError: no" in text
    norms = line(text, "norms, forward")
    assert norms[2:4] == ["**1** of 2", "0.8"] and "rms_norm forward 8192" in norms[4]
    assert line(text, "linear_cross_entropy")[2:4] == ["all of 1", "1.2"]
    assert line(text, "sample, 1 and 64 rows")[2:4] == ["all of 1", "11"]
    assert line(text, "torch's fused AdamW")[2:4] == ["**0** of 1", "0.8"]
    assert line(text, "bias_gelu of a linear layer: ")[2:4] == ["all of 1", "1.5"]
    assert line(text, "bias_gelu of a linear layer, inf")[2:4] == ["**0** of 2", "0.6"]
    assert line(text, "bias_gelu: of the copy")[2] == "not measured"
    assert line(text, "attention_varlen")[2:4] == ["**0** of 1", "0.8"]
    assert line(text, "attention_decode, 1 M keys")[2:4] == ["**0** of 1", "0.5"]
    assert line(text, "attention_decode, 8 tokens")[2:4] == ["all of 1", "0.8"]
    assert line(text, "attention, forward")[2] == "not measured"
    assert line(text, "host time")[2] == "all of 9"


def test_report_of_attention() -> None:
    """Ratios to FlashAttention-2, package or PyTorch's; to a fixed order's own kind; a table with
    the share of the matrix product."""
    flash, cudnn = ("F.scaled_dot_product_attention, " + n for n in ("FlashAttention-2", "cuDNN"))
    any_order = "llmjp_ext in any order"
    shape = "2 x 8192 x 16/2 x 128"
    cases = {
        "forward, causal": {"llmjp_ext": 1.0, flash: 1.2, cudnn: 0.5, "fa3-fwd": 0.8},
        "forward, full": {"llmjp_ext": 1.0, "flash-attn": 1.04, flash: 1.5},
        "backward, causal": {"llmjp_ext": 1.0, flash: 0.9},
        "backward, deterministic, causal": {
            "llmjp_ext": 1.0,
            any_order: 0.9,
            flash: 2.0,
            cudnn: 1.1,
        },
    }
    rows = [
        row | {"tflop_per_s": 50.0}
        for name, times in cases.items()
        for row in measured("attention", name, shape, times, 0)
    ]
    text = gpu_report.report(rows)
    assert line(text, "attention, forward")[2:4] == ["**1** of 2", "1.04"]
    assert line(text, "attention, backward: x Flash")[2:4] == ["**0** of 1", "0.9"]
    assert line(text, "attention, deterministic backward: x Flash")[2:4] == ["all of 1", "2"]
    assert line(text, "attention, deterministic backward: x in any")[2:4] == ["all of 1", "0.9"]
    table = line(text, "forward, causal 2 x 8192")
    assert table[1:6] == ["50", "50%", "1.20", "0.50", "0.80"]
    assert "x FlashAttention-2" in text and text.count("| 50 | 50% |") == 4


def test_report_without_results() -> None:
    """Every goal is open."""
    text = gpu_report.report([])
    assert text.count("not measured") == len(gpu_report.GOALS)
