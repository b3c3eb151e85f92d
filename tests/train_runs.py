"""What the trainer's tests share: a learnable toy dataset, a tiny model, running the command."""

import json
import os
import socket
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


# Each file of a checkpoint takes half a second to write: training goes on meanwhile.
SLOW_DISK = """
import sys, time, torch
from llmjp import cli

save = torch.save

def save_slowly(state, path):
    path.touch()
    time.sleep(0.5)
    save(state, path)

torch.save = save_slowly
cli.run_alone(sys.argv[1:])
"""


def start(
    folder: Path, arguments: list[Any], *, place: dict[str, str] | None = None, slow: bool = False
) -> subprocess.Popen[str]:
    """Starts `llmjp train` as a process of its own, as a user does.

    Args:
        folder: its working folder.
        arguments: of the command.
        place: a launcher's variables.
        slow: whether it is on a SLOW_DISK.
    """
    return subprocess.Popen(
        [sys.executable, *(["-c", SLOW_DISK] if slow else ["-m", "llmjp.cli"]), "train",
         *map(str, arguments)],
        cwd=folder,
        env={**environment(), **(place or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip


def places(count: int) -> list[dict[str, str]]:
    """The variables of each of several processes on this machine, as a launcher sets them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return [{**common, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count)]


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
