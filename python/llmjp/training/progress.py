"""What a run tells: the report at its start, a line now and then, and metrics.jsonl."""

import datetime
import json
import platform
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
        parts = [
            f"loss {entry['loss']:.4f}",
            f"lr {entry['lr']:.2e}",
            f"grad norm {'-' if norm is None else format(norm, '.3f')}",
            f"{entry['tokens_per_second']:,.0f} tokens/s",
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


def kernels(device: torch.device) -> list[str]:
    """What each op of llmjp_ext runs on the device."""
    from llmjp_ext.__main__ import report_ops

    if device.type == "cpu":
        return ["PyTorch implementations (CPU)"]
    return [f"{name}: {facts.split(';')[0]}" for name, facts in report_ops()]
