"""The facts that make a figure worth quoting: machine, software, commit and date."""

import datetime
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[2]


def output_of(*command: str) -> str | None:
    """First line that a program prints, or None where it is missing, fails or prints nothing."""
    try:
        done = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, timeout=30, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip().partition("\n")[0] or None


def cpu_model() -> str:
    """Model and number of usable cores, such as "AMD EPYC, 2 cores"."""
    model = platform.processor() or platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    except OSError:
        pass  # not Linux: platform's word is all there is
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{model}, {cores} cores"


def commit() -> str:
    """$LLMJP_COMMIT where the sources carry no history, else what git says; "unknown" without."""
    given = os.environ.get("LLMJP_COMMIT")
    return given or output_of("git", "describe", "--always", "--dirty") or "unknown"


def environment(device: torch.device) -> dict[str, Any]:
    """Facts of this run, the same in each of its rows."""
    on_cuda = device.type == "cuda"
    driver = (
        output_of("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
        if on_cuda
        else None
    )
    return {
        "device": torch.cuda.get_device_name(device) if on_cuda else "cpu",
        "driver": driver,
        "cuda": torch.version.cuda,
        "torch": str(torch.__version__),
        "python": platform.python_version(),
        "cpu": cpu_model(),
        "threads": torch.get_num_threads(),
        "load_average": os.getloadavg()[0],  # of the minute before: what else the machine was doing
        "commit": commit(),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }
