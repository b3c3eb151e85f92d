"""What a run tells: metrics, trackers, the kernels that it uses and those that it lacks."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from llmjp.errors import UserError
from llmjp.training import progress
from llmjp.training.progress import Metrics, Progress, kernels, slow_paths
from llmjp.training.settings import TrainSettings
from llmjp.training.trackers import Trackers
from llmjp_ext import __main__ as report

ENTRY = {
    **{"step": 1, "loss": 2.5, "lr": 1e-3, "grad_norm": None, "mfu": 0.5, "tokens": 64},
    **{"tokens_per_second": 10.0, "teraflops_per_device": 1.0, "memory_gib": 2.0},
}


def settings(output: Path, **changes: Any) -> TrainSettings:
    """Settings with some changes."""
    return TrainSettings(data=["a"], output=str(output), **changes)


def entry(step: int, loss: float = 2.5) -> dict[str, Any]:
    """A metrics line."""
    return ENTRY | {"step": step, "loss": loss}


def test_metrics_are_json_and_go_on_at_a_checkpoint(tmp_path: Path) -> None:
    """NaN is null, also of one source; later and damaged lines go when a run goes on."""
    path = tmp_path / "metrics.jsonl"
    metrics = Metrics(path, 0)
    metrics.add(entry(1))
    metrics.add({"step": 2, "valid_loss": float("nan"), "valid_losses": {"a": float("inf")}})
    metrics.add(entry(3))
    with path.open("a") as stream:
        stream.write('{"step": 2, "lo')
    Metrics(path, 2).add(entry(3, 1.5))
    found = [json.loads(line, parse_constant=pytest.fail) for line in path.read_text().splitlines()]
    nothing = {"step": 2, "valid_loss": None, "valid_losses": {"a": None}}
    assert found == [entry(1), nothing, entry(3, 1.5)]


def test_tensorboard_has_each_step_once(tmp_path: Path) -> None:
    """A run that was killed before its first checkpoint, and one that went on from its second."""
    for done in (0, 0, 1):
        trackers = Trackers(settings(tmp_path, tensorboard=True), done)
        for step in range(done + 1, 4):
            trackers.add(entry(step, step + done))
            trackers.add({"step": step, "valid_loss": 1.0, "valid_losses": {"ja": 3.0 + step}})
        trackers.close()
    board = EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    assert [(event.step, event.value) for event in board.Scalars("loss")] == [
        (1, 1),
        (2, 3),
        (3, 4),
    ]
    assert [event.value for event in board.Scalars("valid_losses/ja")] == [4, 5, 6]


def test_weights_and_biases_know_a_run_by_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One run however often it is continued, another for a folder of the same name; each figure."""
    told: list[Any] = []
    begun: list[dict[str, Any]] = []

    def init(**how: Any) -> Any:
        begun.append(how)
        return SimpleNamespace(log=lambda *what, **at: told.append((what, at)), finish=lambda: None)

    fake = SimpleNamespace(init=init, Error=type("Error", (Exception,), {}))
    monkeypatch.setitem(sys.modules, "wandb", fake)  # type: ignore[arg-type]
    for folder in ("a/run", "a/run", "b/run"):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        Trackers(settings(tmp_path / folder, wandb="project"), 0).add(entry(1))
    first, again, other = begun
    assert first["id"] == again["id"] != other["id"] and first["resume"] == "allow"
    assert {how["name"] for how in begun} == {"run"} and other["dir"] == str(tmp_path / "b/run")
    numbers = {name: value for name, value in ENTRY.items() if name != "step" and value is not None}
    assert told == [((numbers,), {"step": 1})] * 3

    def refused(**_: Any) -> None:
        raise fake.Error("No API key configured.\nMore of it.")

    fake.init = refused
    with pytest.raises(UserError, match=r"^--wandb project: No API key configured\.$"):
        Trackers(settings(tmp_path / "a/run", wandb="project"), 0)


def test_a_missing_kernel_is_loud(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ops of training that a GPU would run as PyTorch code are named; others do not matter."""
    cuda, cpu = torch.device("cuda"), torch.device("cpu")
    facts = dict.fromkeys(("attention", "bias_gelu"), "CUDA: CUDA kernel; CPU: native code")
    slow = "CUDA: PyTorch implementation; CPU: PyTorch implementation"
    facts |= {"sample_x": slow, "rotary": slow}

    def rows() -> list[tuple[str, str]]:
        return [(f"op {name}_{half}", what) for name, what in facts.items() for half in HALVES]

    monkeypatch.setattr(report, "report_ops", rows)
    assert slow_paths(cuda, True) is None
    assert kernels(cuda, True) == "CUDA kernel: attention, bias_gelu"
    facts["add_layer_norm"] = slow
    assert "add_layer_norm run as PyTorch code" in str(slow_paths(cuda, True))
    assert slow_paths(cpu, True) is None
    told = "PyTorch implementation: add_layer_norm; native code: attention, bias_gelu"
    assert kernels(cpu, True) == told
    assert "kernels are off" in str(slow_paths(cpu, False))


HALVES = ("fwd", "bwd")


@pytest.mark.parametrize("terminal", [False, True])
def test_progress_is_a_bar_or_lines(
    terminal: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a terminal a bar on stderr; elsewhere a line a step on stdout, without control codes."""
    monkeypatch.setattr(progress.sys.stderr, "isatty", lambda: terminal, raising=False)
    shown = Progress(2, 10)
    shown.show(entry(4), 60.0)
    shown.say("saved")
    shown.close()
    out, err = capsys.readouterr()
    parts = "loss 2.5000", "lr 1.00e-03", "grad norm -", "10 tokens/s", "1 TFLOP/s", "MFU 50.0%"
    assert all(part in (err if terminal else out) for part in (*parts, "2.0 GiB", "4/10"))
    assert "saved\n" in out
    if terminal:
        assert "40%" in err and "step 4" not in out
    else:
        assert err == "" and "\r" not in out and "ETA 0:06:00" in out
