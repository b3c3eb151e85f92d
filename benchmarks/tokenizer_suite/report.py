"""The table and the plot of docs/tokenizer.md, made from a run's rows.

    python3 benchmarks/tokenizer_suite/report.py RESULTS.jsonl [--page PAGE.md] [--plot PLOT.svg]

prints the tables of the last run in the file. --page puts them between the two marks of that page
instead, --plot draws the throughput. No figure goes through anybody's hands.
"""

import argparse
import json
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from benchmarks.harness.report import is_ours

BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"
# In the order of the columns and bars.
CANDIDATES = (
    "llmjp_ext encode_ragged",
    "llmjp_ext encode_batch",
    "splintr",
    "sentencepiece",
    "kitoken",
    "tokenizers",
)
COLOURS = ("#0b4f8a", "#5fa2d9", "#c9a227", "#7a9a3a", "#b07aa1", "#b5483a")
RATIOS = (
    ("llmjp_ext encode_ragged", "sentencepiece"),
    ("llmjp_ext encode_ragged", "splintr"),
    ("llmjp_ext encode_ragged", "tokenizers"),
    ("llmjp_ext encode_batch", "sentencepiece"),
    ("llmjp_ext encode_batch", "tokenizers"),
)
# The kinds of cases that encode, and what their tables call them.
STATES = {"encode": "after other text", "first": "first call"}

Row = dict[str, Any]


class ReportError(Exception):
    """What a user can mend, in one line."""


def last_run(path: Path) -> list[Row]:
    """The tokenizer's rows of the last run in a file, those that belong to a case."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    # Rows without facts are from before they were written down.
    rows = [row for row in rows if row["benchmark"] == "tokenizer" and row.get("facts")]
    if not rows:
        raise ReportError(
            f"{path} has no rows of the benchmark tokenizer that say what they measure"
        )
    newest = max(row["date"] for row in rows)
    return [row for row in rows if row["date"] == newest]


def of_kind(rows: list[Row], kind: str) -> list[Row]:
    """Rows of one kind of case, measured or not."""
    return [row for row in rows if row["facts"].get("kind") == kind]


def distinct(values: Iterable[Any]) -> list[Any]:
    """Each value once, in the order of their first appearance."""
    return list(dict.fromkeys(values))


def number(value: float) -> str:
    """Three significant digits, never an exponent."""
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2
    return f"{value:,.{digits}f}"


def spread(ratio: dict[str, float] | None) -> str:
    """The median of the pairs, with the 20th and 80th percentile."""
    if not ratio:
        return "–"
    return f"{number(ratio['median'])} ({number(ratio['p20'])}–{number(ratio['p80'])})"


def markdown_table(header: list[str], lines: list[list[str]]) -> str:
    """A Markdown table."""
    rows = [header, ["---"] * len(header), *lines]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in rows)


def measured(row: Row | None, key: str, unit: float = 1.0) -> str:
    """A figure of a row; a dash where nothing was measured, a mark where results are wrong."""
    if row is None or row["status"] == "absent":
        return "–"
    if row["status"] != "ok" or row[key] is None:
        return "failed"
    return number(row[key] * unit) + (" ✗" if row["differing"] else "")


def throughput_table(rows: list[Row], kind: str, state: str) -> str:
    """MB/s of each kind of text by candidate, for each number of threads."""
    encode = of_kind(rows, kind)
    threads = distinct(row["facts"]["threads"] for row in encode)
    by_key = {(row["case"], row["candidate"], row["facts"]["threads"]): row for row in encode}
    names = [
        *CANDIDATES,
        *distinct(r["candidate"] for r in encode if r["candidate"] not in CANDIDATES),
    ]
    present = [
        name
        for name in names
        if any(row["candidate"] == name and row["status"] != "absent" for row in encode)
    ]
    lines = []
    for case in distinct(row["case"] for row in encode):
        cells = [
            " / ".join(measured(by_key.get((case, name, count)), "mb_per_s") for count in threads)
            for name in present
        ]
        lines.append([case, *cells])
    headings = [f"`{name.split()[1]}`" if is_ours(name) else name for name in present]
    counts = " / ".join(map(str, threads)) + (" thread" if threads == [1] else " threads")
    return markdown_table([f"MB/s, {state}, {counts}", *headings], lines)


def ratio_table(rows: list[Row], kind: str, state: str) -> str:
    """Quotients of pairs on one thread."""
    encode = [row for row in of_kind(rows, kind) if row["facts"]["threads"] == 1]
    by_key = {(row["case"], row["candidate"]): row for row in encode}
    lines = []
    for case in distinct(row["case"] for row in encode):
        cells = []
        for own, other in RATIOS:
            row = by_key.get((case, own))
            cells.append(spread(row["ratios"].get(other) if row and row["ratios"] else None))
        lines.append([case, *cells])
    headings = [f"`{own.split()[1]}` / {other}" for own, other in RATIOS]
    return markdown_table([f"times as fast, {state}, 1 thread", *headings], lines)


def wrong_table(rows: list[Row]) -> str:
    """Peers whose ids are not the oracle's: how many texts."""
    lines = [
        [row["case"], row["candidate"], f"{row['differing']:,} of {row['items']:,}"]
        for row in rows
        if row["differing"]
        and row["facts"]["kind"] != "first"  # the same texts and ids as those of "encode"
        and row["facts"].get("threads") in (1, None)
    ]
    return markdown_table(["✗ text", "peer", "results that are not tokenizers'"], lines)


def other_table(rows: list[Row]) -> str:
    """Calls, ids to text, loading, threads and memory, a line a candidate."""
    forms = {
        "prompts": ("us_per_item", 1.0, "µs a call"),
        "decode": ("mb_per_s", 1.0, "MB/s"),
        "load": ("median_ms", 1.0, "ms"),
        "threads": ("mb_per_s", 1.0, "MB/s"),
        "memory": ("mb_per_s", 1.0, "MB/s"),
    }
    lines = []
    for kind, (key, unit, name) in forms.items():
        for row in of_kind(rows, kind):
            if row["status"] == "absent":
                continue
            ratios = row["ratios"] or {}
            pairs = "; ".join(f"{spread(ratio)} × {other}" for other, ratio in ratios.items())
            figure = f"{measured(row, key, unit)} {name}"
            lines.append([row["case"], row["candidate"], figure, pairs])
    return markdown_table(["case", "candidate", "median", "speed, in pairs"], lines)


def caption(rows: list[Row]) -> str:
    """Where, when and of what these figures are."""
    first = rows[0]
    counts = [row["repetitions"] for row in rows if row["repetitions"]]
    wanted = "; quick: not for quoting" if first["quick"] else ""
    return (
        f"Commit {first['commit']}, {first['date'][:10]}, {first['cpu']}, "
        f"Python {first['python']}, load average {first['load_average']:.1f} at the start, "
        f"{first['facts']['model']}; medians of {min(counts)} to {max(counts)} repetitions{wanted}."
    )


def report(rows: list[Row]) -> str:
    """All tables."""
    tables = [
        table(rows, kind, state)
        for kind, state in STATES.items()
        for table in (throughput_table, ratio_table)
    ]
    tables.append(other_table(rows))
    if any(row["differing"] for row in rows):
        tables.append(wrong_table(rows))
    return "\n\n".join([caption(rows), *tables])


def write_page(page: Path, text: str) -> None:
    """Puts a text between the page's two marks."""
    old = page.read_text(encoding="utf-8")
    if old.count(BEGIN) != 1 or old.count(END) != 1 or old.index(BEGIN) > old.index(END):
        raise ReportError(f"{page} needs one line {BEGIN} and after it one line {END}")
    before, after = old.partition(BEGIN)[0], old.partition(END)[2]
    page.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}", encoding="utf-8")


def draw(rows: list[Row], path: Path) -> None:
    """Grouped bars of MB/s with their spread, a panel for each number of threads."""
    try:
        import matplotlib
    except ImportError:
        raise ReportError("--plot needs matplotlib, which is not installed") from None
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.patches import Patch

    encode = of_kind(rows, "encode")
    kinds = distinct(row["case"] for row in encode)
    threads = distinct(row["facts"]["threads"] for row in encode)
    # Text as text, and nothing that differs from one drawing of the same rows to the next.
    plt.rcParams |= {"svg.fonttype": "none", "svg.hashsalt": "llmjp", "font.size": 9}
    figure, panels = plt.subplots(
        len(threads), 1, figsize=(10, 3.4 * len(threads)), sharex=True, sharey=True, squeeze=False
    )
    width = 0.8 / len(CANDIDATES)
    for panel, count in zip(panels[:, 0], threads, strict=True):
        for place, (name, colour) in enumerate(zip(CANDIDATES, COLOURS, strict=True)):
            bars = [
                (kinds.index(row["case"]) + (place - 2.5) * width, row)
                for row in encode
                if row["candidate"] == name
                and row["facts"]["threads"] == count
                and row["status"] == "ok"
            ]
            if not bars:
                continue
            heights = [row["mb_per_s"] for _, row in bars]
            slow = [row["input_bytes"] / row["p80_ms"] / 1e3 for _, row in bars]
            fast = [row["input_bytes"] / row["p20_ms"] / 1e3 for _, row in bars]
            panel.bar(
                [position for position, _ in bars],
                heights,
                width,
                color=colour,
                yerr=[
                    [height - low for height, low in zip(heights, slow, strict=True)],
                    [high - height for high, height in zip(fast, heights, strict=True)],
                ],
                error_kw={"elinewidth": 0.8},
                hatch=["////" if row["differing"] else "" for _, row in bars],
                edgecolor="white",
                linewidth=0,
            )
        panel.set_yscale("log")
        panel.set_ylabel(f"MB/s, {count} thread{'s' if count > 1 else ''}")
        panel.yaxis.set_major_formatter("{x:g}")
        panel.grid(axis="y", which="major", linewidth=0.4)
        panel.set_axisbelow(True)
        panel.spines[["top", "right"]].set_visible(False)
    panels[-1, 0].set_xticks(range(len(kinds)), [kind.replace(" ", "\n", 1) for kind in kinds])
    patches = [
        Patch(color=colour, label=name) for name, colour in zip(CANDIDATES, COLOURS, strict=True)
    ]
    figure.legend(handles=patches, loc="upper center", ncols=3)
    first = rows[0]
    figure.text(
        0.01,
        0.005,
        f"{first['facts']['model']}, {first['cpu']}, commit {first['commit']}. Whiskers: 20th to "
        "80th percentile. Hatched: some ids are not those of tokenizers.",
        fontsize=7,
    )
    figure.tight_layout(rect=(0, 0.02, 1, 0.92))
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None, dpi=110)
    plt.close(figure)


def main(argv: list[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="benchmarks/tokenizer_suite/report.py",
        description="Tables and plot of the tokenizer benchmark, from its rows.",
    )
    parser.add_argument("results", type=Path, metavar="RESULTS.jsonl")
    parser.add_argument("--page", type=Path, help="write the tables between this page's marks")
    parser.add_argument("--plot", type=Path, metavar="PLOT.svg", help="draw the throughput")
    arguments = parser.parse_args(argv)
    try:
        rows = last_run(arguments.results)
        quotable = not rows[0]["quick"] and not rows[0]["commit"].endswith("-dirty")
        if arguments.page is not None and not quotable:
            raise ReportError(
                f"{arguments.results} is from a --quick run or from sources that differ from their "
                "commit: a page does not quote it"
            )
        if arguments.plot is not None:
            draw(rows, arguments.plot)
        if arguments.page is not None:
            text = report(rows)
            if arguments.plot is not None:
                place = os.path.relpath(arguments.plot, arguments.page.parent)
                text = f"![Throughput by text and tokenizer]({place})\n\n{text}"
            write_page(arguments.page, text)
        else:
            print(report(rows))
    except (ReportError, OSError) as error:
        print(f"report.py: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
