"""`llmjp plot`: the loss curves of training runs, from their metrics.jsonl, as PNG, SVG or PDF."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llmjp.errors import UserError
from llmjp.training.progress import METRICS

HELP = "Draws loss, learning rate and gradient norm of training runs beside each other."
FORMATS = (".png", ".svg", ".pdf")
_SIZE = (9, 7)  # inches


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument("runs", nargs="+", metavar="RUN", help="output folders of 'llmjp train'")
    parser.add_argument(
        "--output", default="loss.png", metavar="FILE", help=f"ends in {', '.join(FORMATS)}"
    )
    parser.add_argument("--x", choices=("tokens", "step"), default="tokens", help="the axis")
    parser.add_argument(
        "--smooth", type=int, default=1, metavar="N", help="mean of the last N points; 1: none"
    )
    parser.add_argument("--log", action="store_true", help="loss on a logarithmic axis")


def run(arguments: argparse.Namespace) -> int:
    """Draws the picture; returns the exit code.

    Raises:
        UserError: a run has no metrics, or the picture cannot be drawn or written.
    """
    output = Path(arguments.output)
    if output.suffix not in FORMATS:
        raise UserError(f"--output {output} must end in {', '.join(FORMATS)}")
    if arguments.smooth < 1:
        raise UserError(f"--smooth must be 1 or more, got {arguments.smooth}")
    runs = {name: read_metrics(Path(name)) for name in arguments.runs}
    try:
        import matplotlib
    except ImportError:
        raise UserError("llmjp plot needs 'pip install matplotlib'") from None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (losses, rates, norms) = pyplot.subplots(
        3, sharex=True, figsize=_SIZE, height_ratios=(3, 1, 1), layout="constrained"
    )
    for name, entries in runs.items():
        x, y = curve(entries, "loss", arguments.x)
        (line,) = losses.plot(x, smoothed(y, arguments.smooth), label=name, linewidth=1)
        for source in validation_names(entries):
            style = {"linestyle": "--", "marker": ".", "linewidth": 1}
            x, y = curve(entries, source, arguments.x)
            if source == "valid_loss":
                style["color"] = line.get_color()
            losses.plot(x, y, label=f"{name} {source.replace('_', ' ')}", **style)
        for axis, what in ((rates, "lr"), (norms, "grad_norm")):
            axis.plot(*curve(entries, what, arguments.x), color=line.get_color(), linewidth=1)
    if arguments.log:
        losses.set_yscale("log")
    losses.set_ylabel("loss (nats a token)")
    rates.set_ylabel("learning rate")
    norms.set_ylabel("gradient norm")
    norms.set_xlabel(arguments.x)
    losses.legend(fontsize="small")
    for axis in (losses, rates, norms):
        axis.grid(alpha=0.3)
    partial = output.with_name(f".{output.stem}.partial{output.suffix}")
    try:
        figure.savefig(partial, dpi=150)
        partial.replace(output)
    finally:
        partial.unlink(missing_ok=True)
        pyplot.close(figure)
    print(f"wrote {output}")
    return 0


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics, in order.

    Raises:
        UserError: there are none.
    """
    path = folder / METRICS if folder.is_dir() else folder
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    entries = []
    damaged = []
    for number, line in enumerate(lines[:-1], 1):  # behind the last end of line: being written
        try:
            entry = json.loads(line)
        except ValueError:
            damaged.append(number)
            continue
        if isinstance(entry, dict) and isinstance(entry.get("step"), int):
            sources = entry.pop("valid_losses", None)
            if isinstance(sources, dict):
                entry |= {f"valid_loss of {name}": loss for name, loss in sources.items()}
            entries.append(entry)
    if not entries:
        raise UserError(f"{path} holds no steps{' yet' if not damaged else ', but damaged lines'}")
    if damaged:
        # A power failure or a full disk leaves such a line; the run drops it when it goes on.
        print(f"{path}: {len(damaged)} damaged lines left out, the first is {damaged[0]}")
    return entries


def curve(entries: list[dict[str, Any]], name: str, x: str) -> tuple[list[float], list[float]]:
    """The points of one figure, without lines that lack it or their place."""
    points = [
        (entry[x], entry[name])
        for entry in entries
        if isinstance(entry.get(name), (int, float)) and isinstance(entry.get(x), (int, float))
    ]
    return [place for place, _ in points], [value for _, value in points]


def validation_names(entries: list[dict[str, Any]]) -> list[str]:
    """Names of the validation losses that a run has, in the order of their first line."""
    return list(
        dict.fromkeys(
            name
            for entry in entries
            for name, value in entry.items()
            if name.startswith("valid_loss") and isinstance(value, (int, float))
        )
    )


def smoothed(values: Sequence[float], count: int) -> list[float]:
    """Each value's mean with those before it, `count` in all where there are so many."""
    return [
        sum(values[max(0, end - count) : end]) / min(count, end)
        for end in range(1, len(values) + 1)
    ]
