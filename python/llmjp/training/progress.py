"""What a run tells: the report at its start, a line now and then, and metrics.jsonl."""

import datetime
import json
import math
import platform
import resource
import sys
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

METRICS = "metrics.jsonl"


class Metrics:
    """`metrics.jsonl`: an object a line, in the order of the steps."""

    def __init__(self, path: Path, done: int) -> None:
        """Continues the file after step `done`: later lines, of a run that was cut off, go.

        Raises:
            OSError: the file cannot be written.
        """
        self._path = path
        kept: list[str] = []
        if done > 0 and path.exists():
            for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
                try:
                    entry = json.loads(line)
                except ValueError:
                    continue  # cut off in the middle of a line
                if isinstance(entry, dict) and entry.get("step", done + 1) <= done:
                    kept.append(line + "\n")
        partial = path.with_name(f".{path.name}.partial")
        partial.write_text("".join(kept), encoding="utf-8")
        partial.replace(path)

    def add(self, entry: dict[str, Any]) -> None:
        """Appends one object; what is no number becomes null, as JSON has no NaN."""
        with self._path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(_finite(entry), allow_nan=False) + "\n")


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(entry) for name, entry in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


class Progress:
    """A bar on a terminal, plain lines elsewhere."""

    def __init__(self, done: int, steps: int) -> None:
        """Args:
        done: steps that were done before.
        steps: steps of the whole run.
        """
        self._bar: Any = None
        self._steps = steps
        self._done = done
        if sys.stderr.isatty():
            self._bar = tqdm(total=steps, initial=done, unit="step", dynamic_ncols=True)

    def show(self, entry: dict[str, Any], seconds_per_step: float) -> None:
        """Tells the figures of a step."""
        norm = entry["grad_norm"]
        loss, mfu = entry["loss"], entry["mfu"]
        parts = [
            f"loss {'-' if loss is None else format(loss, '.4f')}",
            f"lr {entry['lr']:.2e}",
            f"grad norm {'-' if norm is None else format(norm, '.3f')}",
            f"{entry['tokens_per_second']:,.0f} tokens/s",
            f"{entry['teraflops_per_device']:.3g} TFLOP/s",
            *([] if mfu is None else [f"MFU {mfu:.1%}"]),
            f"{entry['memory_gib']:.1f} GiB",
        ]
        if self._bar is not None:
            self._bar.set_postfix_str(", ".join(parts), refresh=False)
            self._bar.update(entry["step"] - self._bar.n)
            return
        left = round(seconds_per_step * (self._steps - entry["step"]))
        self.say(
            f"step {entry['step']}/{self._steps}  {'  '.join(parts)}  "
            f"ETA {datetime.timedelta(seconds=left)}"
        )

    def say(self, text: str) -> None:
        """Prints a line without spoiling the bar."""
        if self._bar is not None:
            self._bar.write(text, file=sys.stdout)
        else:
            print(text, flush=True)

    def close(self) -> None:
        """Leaves the bar as it stands."""
        if self._bar is not None:
            self._bar.close()


def versions() -> str:
    """Versions of what a result depends on."""
    import deepspeed

    from llmjp_ext import __version__

    return (
        f"llmjp {__version__}, torch {torch.__version__}, DeepSpeed {deepspeed.__version__}, "
        f"Python {platform.python_version()}"
    )


# The ops that a training step calls, by the names of their halves.
_OPS = (
    "attention",
    "attention_varlen",
    "layer_norm",
    "add_layer_norm",
    "bias_gelu",
    "cross_entropy",
)


def _implementations(device: torch.device) -> dict[str, list[str]]:
    """What runs on the device, each with the ops of training that it runs."""
    from llmjp_ext.__main__ import report_ops

    place = "CUDA: " if device.type == "cuda" else "CPU: "
    found: dict[str, list[str]] = {}
    for name, facts in report_ops():
        op, _, half = name.removeprefix("op ").rpartition("_")
        what = next((fact for fact in facts.split("; ") if fact.startswith(place)), None)
        if op in _OPS and half in ("fwd", "bwd") and what is not None:
            ops = found.setdefault(what.removeprefix(place), [])
            ops += [op] if op not in ops else []
    return found


def kernels(device: torch.device, enabled: bool) -> str:
    """What each op of training runs on the device; plain PyTorch where they are not enabled."""
    if not enabled:
        return "off: plain PyTorch"
    return "; ".join(
        f"{what}: {', '.join(ops)}" for what, ops in sorted(_implementations(device).items())
    )


def slow_paths(device: torch.device, enabled: bool) -> str | None:
    """What keeps training from full speed, in one line; None if nothing does."""
    if not enabled:
        return "kernels are off (--kernels off): attention, norms, GELU and loss are PyTorch's"
    if device.type == "cpu":
        return None  # there is no faster one to be had
    slow = _implementations(device).get("PyTorch implementation")
    return (
        f"{', '.join(slow)} run as PyTorch code: this build has no CUDA kernels for them"
        if slow
        else None
    )


# bf16 matrix products, dense, from the makers' data sheets.
_PEAKS = {
    "A100": 312.0,
    "H100 PCIe": 756.0,
    "H100 NVL": 835.0,
    "H100": 989.0,
    "H200": 989.0,
}


def peak_tflops(device: torch.device) -> float | None:
    """TFLOP/s of a GPU's bf16 matrix products as its maker states them; None if not known."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for part, peak in _PEAKS.items() if part in name), None)


def memory_in_use(device: torch.device) -> int:
    """The most bytes that this process has had: of tensors on a GPU, of everything on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    scale = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale
