"""`llmjp demo`: every step of the main job, one after another, with the ordinary commands.

Each step is a command that a user could type, printed before it runs. Steps that a stopped run has
completed are not done again, and training continues from its last checkpoint.
"""

import argparse
import json
import shlex
import shutil
import time
from pathlib import Path
from typing import Any

from llmjp.config import preset
from llmjp.demo.chart import chart
from llmjp.errors import UserError

HELP = """Trains a small tokenizer and a small LLM-jp-shaped model on bundled Japanese, English and
code, or on your own text, and generates from it. Takes a few minutes on two CPU cores."""

BUNDLED = Path(__file__).parent / "text"
PROMPTS = ("港の朝は、", "### 指示：", "The bell ", "def ")
RECORD = "demo.json"
SEQUENCE, BATCH = 128, 8
# The work of training, from which the number of steps follows: on two CPU cores some minutes.
TRAINING_FLOPS = 1.6e13


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument("--output", default="llmjp-demo", metavar="DIR", help="what is made")
    parser.add_argument(
        "--text", nargs="+", metavar="PATH", help="your own .txt or .jsonl files or folders"
    )
    parser.add_argument(
        "--split",
        choices=("file", "lines", "blank-lines"),
        default="blank-lines",
        help="what a document is in your .txt files",
    )
    parser.add_argument(
        "--tokenizer",
        metavar="DIR",
        help="folder of a tokenizer.json to use, such as LLM-jp's; by default one is trained",
    )
    parser.add_argument("--steps", type=int, help="training steps; by default a few minutes' work")
    parser.add_argument("--prompt", action="append", help="what to continue; may be repeated")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--overwrite", action="store_true", help="start anew in --output")


def run(arguments: argparse.Namespace) -> int:
    """Runs the command; returns its exit code."""
    began = time.monotonic()
    output = Path(arguments.output)
    if arguments.steps is not None and arguments.steps < 1:
        raise UserError(f"--steps must be 1 or more, got {arguments.steps}")
    settings = {
        "text": [str(Path(path).resolve()) for path in arguments.text or [BUNDLED]],
        "split": arguments.split,
        "tokenizer": arguments.tokenizer and str(Path(arguments.tokenizer).resolve()),
        "steps": arguments.steps,
        "seed": arguments.seed,
    }
    prepare_folder(output, settings, arguments.overwrite)

    tokenizer = Path(arguments.tokenizer) if arguments.tokenizer else output / "tokenizer"
    prefixes: list[Path] = []
    code = (
        make_tokenizer(arguments, tokenizer)
        or make_data(arguments, output, tokenizer, prefixes)
        or train(arguments, output, tokenizer, prefixes)
        or generate(arguments, output)
    )
    if code != 0:
        return code
    summary(output, time.monotonic() - began)
    return 0


def prepare_folder(output: Path, settings: dict[str, Any], overwrite: bool) -> None:
    """Makes the folder of a new demonstration, or takes up one with the same settings.

    Raises:
        UserError: it holds a demonstration with other settings, or something else.
    """
    record = output / RECORD
    if overwrite and record.exists():
        shutil.rmtree(output)
    if record.exists():
        if json.loads(record.read_text(encoding="utf-8")) != settings:
            raise UserError(
                f"{output} holds a demonstration with other settings; --overwrite starts anew"
            )
        return
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UserError(f"{output} exists and is no demonstration; name another --output")
    output.mkdir(parents=True, exist_ok=True)
    record.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def command(*words: object) -> int:
    """Prints a command as one would type it, and runs it; returns its exit code."""
    from llmjp import cli

    argv = [str(word) for word in words]
    print(f"\n$ llmjp {shlex.join(argv)}", flush=True)
    return cli.main(argv)


def make_tokenizer(arguments: argparse.Namespace, folder: Path) -> int:
    """Trains the tokenizer, unless there is one."""
    if arguments.tokenizer or (folder / "tokenizer.json").exists():
        return 0
    size = preset("tiny").vocab_size
    return command(
        *("tokenizer-train", *(arguments.text or [BUNDLED]), "--vocab-size", size),
        *("--allow-fewer", "--output", folder),
    )


def make_data(
    arguments: argparse.Namespace, output: Path, tokenizer: Path, prefixes: list[Path]
) -> int:
    """Tokenises the texts into one or more datasets, whose prefixes are added to the list."""
    parts: list[tuple[str, list[Path], str]]
    if arguments.text:
        parts = [("text", [Path(path) for path in arguments.text], arguments.split)]
    else:
        # A blank line parts two documents of prose; in a program it belongs to the program.
        parts = [
            ("prose", [BUNDLED / "ja", BUNDLED / "en"], "blank-lines"),
            ("code", [BUNDLED / "code"], "file"),
        ]
    for name, texts, split in parts:
        prefix = output / "data" / name
        prefixes.append(prefix)
        if prefix.with_suffix(".idx").exists():
            continue
        prefix.parent.mkdir(exist_ok=True)
        code = command(
            *("tokenize", *texts, "--split", split, "--tokenizer", tokenizer),
            *("--output", prefix),
        )
        if code != 0:
            return code
    return 0


def train(
    arguments: argparse.Namespace, output: Path, tokenizer: Path, prefixes: list[Path]
) -> int:
    """Trains the model, from the beginning or from the last checkpoint."""
    from llmjp.data.tokenize import load_tokenizer

    if (output / "run" / "hf").exists():
        return 0
    # Padded as LLM-jp's is: a multiple of 128 rows suits the matrix product.
    vocabulary = -(-load_tokenizer(tokenizer).vocab_size // 128) * 128
    shape = preset("tiny", vocab_size=vocabulary)
    per_step = shape.flops_per_token(SEQUENCE) * SEQUENCE * BATCH
    steps = arguments.steps or max(20, round(TRAINING_FLOPS / per_step))
    return command(
        *("train", "--data", *prefixes, "--tokenizer", tokenizer, "--output", output / "run"),
        *("--model", "tiny", "--model-set", f"vocab_size={vocabulary}", "--dropout", 0),
        *("--seq-length", SEQUENCE, "--global-batch", BATCH, "--micro-batch", BATCH),
        *("--steps", steps, "--lr", 1e-3, "--min-lr", 2e-5, "--warmup", max(1, steps // 20)),
        *("--save-interval", max(1, steps // 4), "--valid-interval", 0, "--log-interval", 10),
        *("--seed", arguments.seed),
    )


def generate(arguments: argparse.Namespace, output: Path) -> int:
    """Continues the prompts with the trained model."""
    prompts = arguments.prompt or (("",) if arguments.text else PROMPTS)
    for prompt in prompts:
        code = command(
            *("generate", "--model", output / "run" / "hf", "--seed", arguments.seed),
            *("--max-new-tokens", 80, "--temperature", 0.7, "--top-p", 0.95, prompt),
        )
        if code != 0:
            return code
    return 0


def summary(output: Path, seconds: float) -> None:
    """Prints what ran, the loss curve and the times."""
    import torch

    from llmjp.training.progress import METRICS, kernels

    lines = (output / "run" / METRICS).read_text(encoding="utf-8").splitlines()
    steps = [entry for entry in map(json.loads, lines) if "loss" in entry]
    losses = [entry["loss"] for entry in steps]
    speeds = sorted(entry["tokens_per_second"] for entry in steps)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    print(f"\nloss over {steps[-1]['step']} steps")
    print("\n".join(chart(losses)))
    rows: list[tuple[str, str]] = [
        ("loss", f"{losses[0]:.2f} -> {losses[-1]:.2f} nats a token"),
        ("training", f"{speeds[len(speeds) // 2]:,.0f} tokens/s (median) on {device.type}"),
        ("kernels", kernels(device, True)),
        ("time", f"{seconds:.0f} s in all"),
        ("model", f"{output / 'run' / 'hf'} (Transformers reads it too)"),
    ]
    for name, text in rows:
        print(f"{name:<10}{text}")
