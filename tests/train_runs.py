"""What the trainer's tests share: a learnable toy dataset, a tiny model, running the command."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llmjp.data.indexed_writer import IndexedWriter

ROOT = Path(__file__).resolve().parents[1]
WORKER = Path(__file__).with_name("train_worker.py")
VOCABULARY = 64
TINY = [
    *("--model-set", f"vocab_size={VOCABULARY}", "n_positions=32", "n_embd=32", "n_layer=2"),
    *("n_head=2", "n_inner=64"),
]
QUICK = [
    *("--global-batch", "8", "--micro-batch", "2", "--lr", "3e-3", "--warmup", "2"),
    *("--log-interval", "1", "--valid-interval", "0"),
]


def toy_data(prefix: Path, seed: int = 0) -> Path:
    """Documents that count up in threes from a random start, modulo 60: easy to learn."""
    rng = np.random.default_rng(seed)
    with IndexedWriter(prefix, VOCABULARY) as writer:
        for _ in range(200):
            start, length = int(rng.integers(0, 60)), int(rng.integers(20, 60))
            writer.add([*((start + 3 * i) % 60 for i in range(length)), VOCABULARY - 1])
    return prefix


def environment() -> dict[str, str]:
    """The checkout's packages, one thread, and no launcher's variables."""
    launcher = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    paths = [str(ROOT), str(ROOT / "python")]
    return {
        **{name: value for name, value in os.environ.items() if name not in launcher},
        "PYTHONPATH": os.pathsep.join(paths),
        "OMP_NUM_THREADS": "1",
        # A compiler that is asked for anything fails: nothing may be built while training.
        "CXX": "/bin/false",
        "CC": "/bin/false",
        # A process that aborts says where each of its threads was.
        "PYTHONFAULTHANDLER": "1",
    }


@dataclass(frozen=True)
class Result:
    """How a command ended."""

    code: int
    out: str
    err: str


def run_jobs(
    folder: Path, jobs: list[list[Any]], *, processes: int = 1, limits: dict[int, int] | None = None
) -> list[Result]:
    """Runs `llmjp train` with each list of arguments, one after another.

    Args:
        folder: working folder of the commands.
        jobs: arguments of each.
        processes: how many processes each runs in, started by torchrun if more than one.
        limits: for some jobs, by index, the size in bytes that no file may exceed.

    Returns:
        The first process's results.
    """
    file = folder / f"jobs-{len(list(folder.glob('jobs-*.json')))}.json"
    entries = [
        {"arguments": [str(word) for word in job], "file_size_limit": (limits or {}).get(index)}
        for index, job in enumerate(jobs)
    ]
    file.write_text(json.dumps(entries))
    command = [sys.executable]
    if processes > 1:
        # "standalone" finds a free port by itself.
        command += ["-m", "torch.distributed.run", "--standalone"]
        command += [f"--nproc-per-node={processes}"]
    result = subprocess.run(
        [*command, str(WORKER), str(file)],
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return [Result(**entry) for entry in json.loads(Path(f"{file}.0.out").read_text())]


def start(folder: Path, arguments: list[Any]) -> subprocess.Popen[str]:
    """Starts `llmjp train` as a process of its own, as a user does."""
    return subprocess.Popen(
        [sys.executable, "-m", "llmjp.cli", "train", *map(str, arguments)],
        cwd=folder,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def metrics(output: Path) -> list[dict[str, Any]]:
    """The entries of a run's metrics.jsonl without what depends on clock and machine."""
    clock = ("tokens_per_second", "teraflops_per_device", "mfu", "memory_gib")
    lines = (output / "metrics.jsonl").read_text().splitlines()
    return [
        {name: value for name, value in json.loads(line).items() if name not in clock}
        for line in lines
    ]


def losses(output: Path) -> list[float]:
    """The training loss of each logged step."""
    return [entry["loss"] for entry in metrics(output) if "loss" in entry]
