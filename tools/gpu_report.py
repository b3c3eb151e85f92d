"""The results of a check on a GPU machine as one table: each goal of speed, and what was measured.

python3 -m tools.gpu_report RESULTS.jsonl
"""

import json
import math
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Row = dict[str, Any]
OURS = "llmjp_ext"
# PyTorch's backend of that name, and the package.
FLASH_2 = "FlashAttention-2$|^flash-attn$"
# Work that moves less is over before a GPU's memory is busy; it has its own goals.
LARGE_BYTES = 1 << 25


@dataclass(frozen=True)
class Goal:
    """One goal: a figure of all rows of some cases that must reach a limit.

    Attributes:
        text: what the goal is, in words.
        benchmark, case: patterns that the names must match as wholes.
        figure: of a row and the rows of the same case; None where the row does not count.
        limit: what each figure must reach.
        at_most: the figure must not exceed the limit instead.
        candidate: whose rows count: this name, or it and more words.
    """

    text: str
    benchmark: str
    case: str
    figure: Callable[[Row, Sequence[Row]], float | None]
    limit: float
    at_most: bool = False
    candidate: str = OURS

    def counts(self, row: Row) -> bool:
        """Whether the row is one of this goal's."""
        return bool(
            f"{row['candidate']} ".startswith(f"{self.candidate} ")
            and re.fullmatch(self.benchmark, row["benchmark"])
            and re.fullmatch(self.case, row["case"] or "")
        )

    def met(self, figure: float) -> bool:
        """Whether a figure reaches the limit."""
        return figure <= self.limit if self.at_most else figure >= self.limit


def share(row: Row, _others: Sequence[Row]) -> float | None:
    """Of the ceiling, for cases that are large enough to reach it."""
    if not row["gb_per_s"] or row["gb_per_s"] * row["median_ms"] * 1e6 < LARGE_BYTES:
        return None
    return float(row["share_of_ceiling"])


def host_time(row: Row, _others: Sequence[Row]) -> float | None:
    """Milliseconds that the host needs for a call."""
    return None if row["host_ms"] is None else float(row["host_ms"])


def against(peer: str, shape: str = "", deterministic: bool = False) -> Callable[..., float | None]:
    """A figure: the fastest time of the peers whose names contain a pattern, over the row's own."""

    def figure(row: Row, others: Sequence[Row]) -> float | None:
        if not re.match(shape, row["shape"]) or deterministic != _deterministic(row):
            return None
        times = [
            other["median_ms"]
            for other in others
            if other["status"] == "ok"
            and other["candidate"].split(" ", 1)[0] != OURS
            and re.search(peer, other["candidate"])
            and deterministic == _deterministic(other)
        ]
        return min(times) / row["median_ms"] if times else None

    return figure


def beside(variant: str) -> Callable[..., float | None]:
    """A figure: the time of another candidate of this project, over the row's own."""

    def figure(row: Row, others: Sequence[Row]) -> float | None:
        times = [
            r["median_ms"] for r in others if r["candidate"] == variant and r["status"] == "ok"
        ]
        return times[0] / row["median_ms"] if times and row["candidate"] == OURS else None

    return figure


def _deterministic(row: Row) -> bool:
    return "deterministic" in row["case"] and not row["candidate"].endswith(" in any order")


def _cached_keys(row: Row) -> tuple[int, int]:
    """Sequences and their length from the shape of a decode case, "8 x 8191 of 8192, …"."""
    match = re.match(r"(\d+) x (\d+)", row["shape"])
    return (int(match[1]), int(match[2])) if match else (0, 0)


def large_decode(row: Row, _others: Sequence[Row]) -> float | None:
    """Share of the copy's rate at a million keys or more, one token a sequence."""
    large = math.prod(_cached_keys(row)) >= 1_000_000
    return _of_copy(row) if large and " tokens" not in row["shape"] else None


def decode_of_eight(row: Row, _others: Sequence[Row]) -> float | None:
    """Share of the copy's rate with eight tokens a sequence."""
    return _of_copy(row) if ", 8 tokens" in row["shape"] else None


def _of_copy(row: Row) -> float:
    """Bytes a second over those of the copy in the same run."""
    return float(row["gb_per_s"] / row["ceiling_copy_gb_per_s"])


GOALS = (
    Goal("norms, forward: of the copy", "(layer|rms)_norm", "forward.*", share, 0.90),
    Goal("norms, backward: of the copy", "(layer|rms)_norm", "backward.*", share, 0.80),
    Goal("bias_gelu: of the copy", "bias_gelu", ".*", share, 0.90),
    # Where one of these is not reached, that place is the better one for the bias.
    Goal(
        "bias_gelu of a linear layer: x bias in the product",
        "bias_gelu",
        "linear.*",
        beside(f"{OURS} bias in the product"),
        1.0,
    ),
    Goal(
        "bias_gelu of a linear layer, inference: x cuBLASLt's epilogue",
        "bias_gelu",
        "linear, forward",
        against("^cuBLASLt"),
        1.0,
    ),
    Goal("bias_dropout_add: of the copy", "bias_dropout_add", ".*", share, 0.90),
    Goal("swiglu: of the copy", "swiglu", ".*", share, 0.90),
    Goal("rotary: of the copy", "rotary", ".*", share, 0.90),
    Goal("cross_entropy: of the copy", "cross_entropy", ".*", share, 0.85),
    # What an AdamW of this project's own could gain.
    Goal("torch's fused AdamW: of the copy", "adamw", ".*", share, 0.90, candidate="torch fused"),
    Goal(
        "linear_cross_entropy: x logits held + cross_entropy",
        "linear_cross_entropy",
        ".*",
        against(r"^logits \+ cross_entropy$"),
        1.0,
    ),
    Goal(
        "sample, 1 and 64 rows: x chain of processors",
        "sample",
        "top-.*",
        against("^(Transformers|PyTorch)", shape=r"(1|64) x 50688"),
        10.0,
    ),
    Goal(
        "attention, forward: x FlashAttention-2",
        "attention",
        "forward.*",
        against(FLASH_2),
        1.05,
    ),
    Goal(
        "attention, backward: x FlashAttention-2",
        "attention",
        "backward, (causal|full)",
        against(FLASH_2),
        1.0,
    ),
    Goal(
        "attention, deterministic backward: x FlashAttention-2's",
        "attention",
        "backward, deterministic.*",
        against(FLASH_2, deterministic=True),
        1.3,
    ),
    Goal(
        "attention, deterministic backward: x in any order",
        "attention",
        "backward, deterministic.*",
        beside(f"{OURS} in any order"),
        0.8,  # costs at most 25 %
    ),
    Goal(
        "attention_varlen: x attention of as many operations",
        "attention_varlen",
        ".*",
        beside(f"{OURS} attention"),
        0.9,
    ),
    Goal("attention_decode, 1 M keys: of the copy", "attention_decode", ".*", large_decode, 0.85),
    Goal("attention_decode, 8 tokens: of the copy", "attention_decode", ".*", decode_of_eight, 0.6),
    Goal(
        "attention_decode, batch 1, 2k keys: x best peer",
        "attention_decode",
        ".*",
        against("", shape=r"1 x 20\d\d "),
        1.5,
    ),
    Goal(
        "host time of a call, ms",
        ".*",
        # Also the cases that are named after their options; not those with a matrix product.
        "(?!.*backward|linear).*",
        host_time,
        0.010,
        at_most=True,
    ),
)


def latest(rows: Iterable[Row]) -> list[Row]:
    """Measured rows, the last of those that measure the same thing."""
    found: dict[tuple[Any, ...], Row] = {}
    for row in rows:
        if "benchmark" in row:
            key = tuple(row[k] for k in ("benchmark", "case", "shape", "dtype", "candidate"))
            found.pop(key, None)
            found[key] = row
    return list(found.values())


def goal_lines(rows: Sequence[Row], goals: Sequence[Goal] = GOALS) -> list[str]:
    """A table of the goals: cases that reach it, and the one that is furthest from it."""
    lines = ["| goal | limit | cases that reach it | worst | where |", "|---|---|---|---|---|"]
    for goal in goals:
        figures: list[tuple[float, Row]] = []
        for row in rows:
            if row["status"] != "ok" or not goal.counts(row):
                continue
            same = ("benchmark", "case", "shape", "dtype")
            others = [other for other in rows if all(other[k] == row[k] for k in same)]
            figure = goal.figure(row, others)
            if figure is not None:
                figures.append((figure, row))
        sign = "≤" if goal.at_most else "≥"
        if not figures:
            lines.append(f"| {goal.text} | {sign} {goal.limit:g} | not measured | | |")
            continue
        met = sum(goal.met(figure) for figure, _ in figures)
        worst, at = (max if goal.at_most else min)(figures, key=lambda pair: pair[0])
        where = " ".join(str(at[k]) for k in ("benchmark", "case", "shape", "dtype", "candidate"))
        verdict = "all" if met == len(figures) else f"**{met}**"
        lines.append(
            f"| {goal.text} | {sign} {goal.limit:g} | {verdict} of {len(figures)} "
            f"| {worst:.3g} | {where} |"
        )
    return lines


# Columns of the table of attention: what is compared with, and candidates of that name.
PEERS = {
    "FlashAttention-2": FLASH_2,
    "cuDNN": "cuDNN$",
    "fa3-fwd": "^fa3-fwd$",
    "in any order": f"^{OURS} in any order$",
    "dense": f"^{OURS} attention$",
}


def attention_lines(rows: Sequence[Row]) -> list[str]:
    """A table of attention: operations a second, as a share of the matrix product's, and how many
    times as fast as others."""
    lines = []
    for row in rows:
        if row["candidate"] != OURS or row["status"] != "ok" or not row["tflop_per_s"]:
            continue
        if row["benchmark"] not in ("attention", "attention_varlen"):
            continue
        same = ("benchmark", "case", "shape", "dtype")
        others = [r for r in rows if all(r[k] == row[k] for k in same) and r["status"] == "ok"]
        ratios = []
        for pattern in PEERS.values():
            times = [r["median_ms"] for r in others if re.search(pattern, r["candidate"])]
            ratios.append(f"{min(times) / row['median_ms']:.2f}" if times else "")
        share_of_product = row["tflop_per_s"] / row["ceiling_matmul_tflop_per_s"]
        name = " ".join((row["case"], row["shape"], row["dtype"]))
        figures = (f"{row['tflop_per_s']:.0f}", f"{share_of_product:.0%}", *ratios)
        lines.append(f"| {name} | {' | '.join(figures)} |")
    if not lines:
        return []
    head = ("attention", "TFLOP/s", "of the product", *(f"x {peer}" for peer in PEERS))
    return ["", f"| {' | '.join(head)} |", "|---" * len(head) + "|", *lines]


def report(rows: Sequence[Row]) -> str:
    """The summary, in Markdown."""
    measured = latest(rows)
    stages = {row["stage"]: row for row in rows if "stage" in row}
    lines = ["# Check on a GPU machine", ""]
    facts = ("device", "driver", "torch", "commit")
    for known in dict.fromkeys(tuple(row.get(key) for key in facts) for row in measured):
        lines.append(", ".join(f"{k} {v}" for k, v in zip(facts, known, strict=True)))
    ceilings = {
        name: [row[name] for row in measured if row.get(name)]
        for name in ("ceiling_copy_gb_per_s", "ceiling_matmul_tflop_per_s")
    }
    copy, product = ceilings.values()
    if copy and product:
        lines.append(
            f"copy {min(copy):.0f} – {max(copy):.0f} GB/s, "
            f"matrix product {min(product):.0f} – {max(product):.0f} TFLOP/s"
        )
    if stages:
        lines += ["", "| stage | exit code | seconds |", "|---|---|---|"]
        lines += [f"| {n} | {r['exit_code']} | {r['seconds']:g} |" for n, r in stages.items()]
    lines += ["", *goal_lines(measured), *attention_lines(measured)]
    errors = [row for row in measured if row["status"] == "error"]
    if errors:
        lines += ["", "| error | |", "|---|---|"]
        for row in errors:
            keys = ("benchmark", "case", "shape", "dtype", "candidate")
            name = " ".join(str(row[k]) for k in keys if row[k])
            lines.append(f"| {name} | {row['message']} |")
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str]) -> int:
    """Prints the report of a results file."""
    if len(argv) != 1:
        print("usage: python3 -m tools.gpu_report RESULTS.jsonl", file=sys.stderr)
        return 2
    path = Path(argv[0])
    print(report([json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
