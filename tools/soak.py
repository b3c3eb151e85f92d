"""Kills a training run again and again, at random moments; its end must be an undisturbed run's.

`make soak` runs it for half an hour: at least --kills kills by SIGKILL, some of them SIGTERM or
SIGUSR1 instead, which save first. Then metrics and weights are compared bit for bit with a run that
nobody disturbed. Needs no GPU. `--seconds 120 --kills 3` tries it out.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "python")]

from llmjp.data.indexed_writer import IndexedWriter  # noqa: E402

VOCABULARY = 64
CLOCK = ("tokens_per_second", "teraflops_per_device", "mfu", "memory_gib")
SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGUSR1)
START = 15.0  # seconds that a process may need to come to its first step
STEPS_AT_A_TIME = 12  # steps between checkpoints: a kill costs some of them


def command(output: str, steps: int) -> list[str]:
    """A run with dropout, in ZeRO stage 2, that saves often."""
    flags = (
        f"--data toy --output {output} --steps {steps} --global-batch 8 --micro-batch 2 --lr 3e-3 "
        f"--decay-steps {steps} --save-interval {STEPS_AT_A_TIME} --log-interval 1 --zero-stage 2 "
        f"--valid-interval 50 --model-set vocab_size={VOCABULARY} n_positions=32 n_embd=32 "
        "n_layer=2 n_head=2 n_inner=64"
    )
    return [sys.executable, "-m", "llmjp.cli", "train", *flags.split()]


def environment() -> dict[str, str]:
    """The checkout's packages, one thread."""
    paths = os.pathsep.join([str(ROOT), str(ROOT / "python")])
    return {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}


def write_data(folder: Path, seed: int) -> None:
    """A small set of documents that count up."""
    rng = np.random.default_rng(seed)
    with IndexedWriter(folder / "toy", VOCABULARY) as writer:
        for _ in range(200):
            start, length = int(rng.integers(0, 60)), int(rng.integers(20, 60))
            writer.add([*((start + 3 * i) % 60 for i in range(length)), VOCABULARY - 1])


def latest(run: Path) -> int:
    """The step of the checkpoint to continue from; 0 without one."""
    pointer = run / "checkpoints" / "latest"
    return int(pointer.read_text().removeprefix("step-")) if pointer.exists() else 0


def figures(run: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl without what depends on the clock."""
    lines = (run / "metrics.jsonl").read_text().splitlines()
    entries = [json.loads(line) for line in lines]
    return [{k: v for k, v in entry.items() if k not in CLOCK} for entry in entries]


def disturb(folder: Path, steps: int, kills: int, seconds: float, rng: random.Random) -> int:
    """Runs `disturbed` to its end; returns how often it was killed.

    Raises:
        SystemExit: it failed by itself, or the kills were not reached.
    """
    done = 0
    began = time.monotonic()
    while True:
        process = subprocess.Popen(
            command("disturbed", steps), cwd=folder, env=environment(), stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        spent = time.monotonic() - began
        share = max(seconds - spent, 0.0) / max(kills - done, 1)
        try:
            # From the start on, so that loading and the first steps are hit as well. After the last
            # kill the run has all the time that it takes.
            moment = None if done >= kills else rng.uniform(START / 4, START + share)
            out, _ = process.communicate(timeout=moment)
        except subprocess.TimeoutExpired:
            number = rng.choice(SIGNALS)
            process.send_signal(number)
            out, _ = process.communicate()
            done += 1
            step = latest(folder / "disturbed")
            print(f"kill {done:3}  {number.name:8} checkpoint at step {step}/{steps}", flush=True)
            # One that saves exits with 0, unless it came before the handlers were set.
            if number == signal.SIGKILL or process.returncode in (0, -number):
                continue
        if process.returncode != 0:
            raise SystemExit(f"soak: the run failed by itself ({process.returncode}):\n{out}")
        if latest(folder / "disturbed") == steps:
            return done


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=1800.0, help="about how long it takes")
    parser.add_argument("--kills", type=int, default=20, help="kills that there must be")
    parser.add_argument("--seed", type=int, default=None, help="of the moments; none: a new one")
    arguments = parser.parse_args()
    seed = random.SystemRandom().randrange(1 << 32) if arguments.seed is None else arguments.seed
    print(f"seed {seed}", flush=True)
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory(prefix="llmjp soak ") as name:
        folder = Path(name)
        write_data(folder, seed)
        # A short run tells how many steps fill the time.
        began = time.monotonic()
        subprocess.run(command("pace", 60), cwd=folder, env=environment(), check=True,
                       stdout=subprocess.DEVNULL)  # fmt: skip
        lines = (folder / "pace" / "metrics.jsonl").read_text().splitlines()
        speeds = [json.loads(line).get("tokens_per_second", 0.0) for line in lines]
        start = time.monotonic() - began - 60 * 256 / max(speeds)
        training = arguments.seconds - (arguments.kills + 2) * max(start, 1.0)
        steps = max(60, int(0.3 * training * sorted(speeds)[len(speeds) // 2] / 256))
        print(f"{steps} steps, at least {arguments.kills} kills", flush=True)
        kills = disturb(folder, steps, arguments.kills, arguments.seconds * 0.6, rng)
        subprocess.run(command("whole", steps), cwd=folder, env=environment(), check=True,
                       stdout=subprocess.DEVNULL)  # fmt: skip
        weights, others = (
            load_file(folder / run / "hf" / "model.safetensors") for run in ("disturbed", "whole")
        )
        faults = [name for name in others if not np.array_equal(weights[name], others[name])]
        if weights.keys() != others.keys() or faults:
            print(f"soak: weights differ: {', '.join(faults) or 'names'}")
            return 1
        if figures(folder / "disturbed") != figures(folder / "whole"):
            print("soak: metrics differ")
            return 1
    print(f"{kills} kills; weights and metrics are those of an undisturbed run")
    if kills < arguments.kills:
        print(f"soak: {arguments.kills} kills were wanted: give it more --seconds")
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
