"""The arithmetic of docs/scaling.md: 13B on 96 A100-40GB. `--write` puts its tables into the page.

Nothing here is measured: sizes follow from the model, rates and links are what a row assumes.
"""

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "python")]

from llmjp.config import preset  # noqa: E402
from llmjp.training.memory import GIB, predict  # noqa: E402

PAGE = ROOT / "docs" / "scaling.md"
GPUS, PER_NODE, BATCH, LENGTH = 96, 8, 1536, 2048
PEAK = 312e12  # an A100's bf16 products, dense, by its data sheet
STEPS = 96_657  # of the published 13B run
DAY = 86_400
SHARES = (0.3, 0.4, 0.5, 0.6)
LINKS = (100, 200, 400, 800)  # Gbit/s of a machine
ZERO3_COLLECTIVES = 3  # gathers for forward and for backward, reduction of gradients


def work(recompute: bool) -> float:
    """FLOP of one GPU and step."""
    tokens = BATCH * LENGTH / GPUS
    return preset("llm-jp-13b").flops_per_token(LENGTH) * tokens * (4 / 3 if recompute else 1)


def traffic(micro: int) -> float:
    """Bytes that ZeRO-3 moves into each machine in a step.

    A collective of all 2-byte parameters brings a machine what the others hold; gradients go the
    same way once reduced within the machine.
    """
    nodes = GPUS // PER_NODE
    size = 2 * preset("llm-jp-13b").parameter_count() * (nodes - 1) / nodes
    return ZERO3_COLLECTIVES * size * BATCH / (GPUS * micro)


def table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def memory_table() -> str:
    rows = []
    for micro, recompute in ((1, False), (1, True), (2, True), (4, True), (8, True)):
        plan = predict(
            preset("llm-jp-13b"), {"stage": 3}, processes=GPUS, micro_batch=micro, length=LENGTH,
            accumulation=BATCH // (GPUS * micro), itemsize=2, recompute=recompute,
        )  # fmt: skip
        cells = (plan.states, plan.kept, plan.working, plan.needed)
        rows.append(
            [str(micro), "recomputed" if recompute else "kept", *(f"{c / GIB:.1f}" for c in cells)]
        )
    return table(["micro-batch", "activations", "states", "kept", "at work", "needed, GiB"], rows)


def time_table() -> str:
    rows = []
    for micro, recompute in ((1, False), (4, True)):
        for share in SHARES:
            seconds = work(recompute) / (share * PEAK)
            links = [traffic(micro) / (link * 1e9 / 8) for link in LINKS]
            rows.append(
                [f"{micro}, {'recomputed' if recompute else 'kept'}", f"{share:.0%}",
                 f"{seconds:.1f}", *(f"{max(seconds, t):.1f}-{seconds + t:.1f}" for t in links)]
            )  # fmt: skip
    heads = [f"{link} Gbit/s" for link in LINKS]
    return table(["micro-batch", "of 312 TFLOP/s", "products, s", *heads], rows)


def run_table() -> str:
    tokens = STEPS * BATCH * LENGTH
    rows = []
    for share in SHARES:
        seconds = STEPS * work(False) / (share * PEAK)
        rows.append([f"{share:.0%}", f"{share * PEAK / 1e12:.0f}", f"{seconds / DAY:.1f}"])
    head = ["useful work, of 312 TFLOP/s", "TFLOP/s a GPU", f"days for {tokens / 1e9:.2f} G tokens"]
    return table(head, rows)


def filled(page: str) -> str:
    """The page with its tables as they are computed now."""
    for name, make in (("memory", memory_table), ("time", time_table), ("run", run_table)):
        before, rest = page.split(f"<!-- {name} -->\n", 1)
        _, after = rest.split("\n<!-- end -->", 1)
        page = f"{before}<!-- {name} -->\n{make()}\n<!-- end -->{after}"
    return page


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--write", action="store_true", help="into docs/scaling.md")
    if parser.parse_args().write:
        PAGE.write_text(filled(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    else:
        print("\n\n".join((memory_table(), time_table(), run_table())))
        amounts = ", ".join(f"{traffic(micro) / 1e9:,.0f} GB" for micro in (1, 4))
        print(f"\n{work(False) / 1e12:,.0f} TFLOP a step and GPU; {amounts} into a machine")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
