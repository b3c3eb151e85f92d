"""What a run tells: the report at its start, a line now and then, and metrics.jsonl."""

import datetime
import json
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
        """Appends one object."""
        with self._path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(entry) + "\n")


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


def kernels(device: torch.device, enabled: bool) -> list[str]:
    """What each op of llmjp_ext runs on the device; plain PyTorch where they are not enabled."""
    from llmjp_ext.__main__ import report_ops

    if not enabled:
        return ["off: plain PyTorch"]
    if device.type == "cpu":
        return ["PyTorch implementations (CPU)"]
    return [f"{name}: {facts.split(';')[0]}" for name, facts in report_ops()]


def slow_paths(device: torch.device, enabled: bool) -> str | None:
    """What keeps training from full speed, in one line; None if nothing does."""
    if not enabled:
        return "kernels are off (--kernels off): attention, norms, GELU and loss are PyTorch's"
    if device.type == "cpu":
        return None  # there is no faster one to be had
    used = ("attention", "layer_norm", "bias_gelu", "cross_entropy")
    slow = [
        line.partition(":")[0].removeprefix("op ")
        for line in kernels(device, True)
        if "PyTorch" in line and any(line.startswith(f"op {name}") for name in used)
    ]
    return (
        f"{', '.join(slow)} run as PyTorch code: this build has no CUDA kernels" if slow else None
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
