"""Rows and tables: one JSON object for each candidate of a case, and the same to read."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from benchmarks.harness.case import OURS, Candidate, Case
from benchmarks.harness.ceilings import Ceilings
from benchmarks.harness.measure import Timing, paired_ratio

# Every row has all of these, null where they do not apply, and then the environment's.
MEASURED = (
    "median_ms",
    "p20_ms",
    "p80_ms",
    "host_ms",
    "repetitions",
    "launch_bound",
    "allocated_mib",
    "gb_per_s",
    "tflop_per_s",
    "mb_per_s",
    "ns_per_byte",
    "us_per_item",
    "differing",
    "ratios",
    "share_of_ceiling",
    "bound",
    "strongest_peer",
    "speedup_over_strongest_peer",
)


def candidates_of(case: Case) -> dict[str, Candidate]:
    """A case's candidates, which may have been given as plain callables."""
    return {name: c for name, c in case.candidates.items() if isinstance(c, Candidate)}


def is_ours(candidate: str) -> bool:
    """Whether a candidate is this project's: "llmjp_ext", or "llmjp_ext <variant>"."""
    return candidate.split(" ", 1)[0] == OURS


def one_line(error: BaseException) -> str:
    """An exception in one line."""
    first = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {first}" if first else type(error).__name__


def measured_fields(
    case: Case,
    timing: Timing,
    ceilings: Ceilings,
    on_cuda: bool,
    strongest: tuple[str, float] | None,
) -> dict[str, Any]:
    """The MEASURED part of a row."""
    seconds = timing.median_ms / 1e3
    floor_ms, bound = ceilings.floor_ms(case.bytes, case.flops)
    has_floor = floor_ms > 0
    return {
        "median_ms": timing.median_ms,
        "p20_ms": timing.p20_ms,
        "p80_ms": timing.p80_ms,
        "host_ms": timing.host_ms if on_cuda else None,
        "repetitions": timing.repetitions,
        "launch_bound": timing.host_ms > timing.median_ms if on_cuda else None,
        "allocated_mib": timing.allocated_mib if on_cuda else None,
        "gb_per_s": case.bytes / seconds / 1e9 if case.bytes else None,
        "tflop_per_s": case.flops / seconds / 1e12 if case.flops else None,
        "mb_per_s": case.input_bytes / seconds / 1e6 if case.input_bytes else None,
        "ns_per_byte": seconds * 1e9 / case.input_bytes if case.input_bytes else None,
        "us_per_item": seconds * 1e6 / case.items if case.items else None,
        "share_of_ceiling": floor_ms / timing.median_ms if has_floor else None,
        "bound": bound if has_floor else None,
        "strongest_peer": strongest[0] if strongest else None,
        "speedup_over_strongest_peer": strongest[1] / timing.median_ms if strongest else None,
    }


def paired_ratios(
    case: Case, name: str, results: Mapping[str, Timing | Exception]
) -> dict[str, dict[str, float]] | None:
    """By the names in `against` that were measured: the quotients of the rounds in common."""
    own = results[name]
    ratios: dict[str, dict[str, float]] = {}
    for other in candidates_of(case)[name].against:
        timing = results.get(other)
        if isinstance(own, Timing) and isinstance(timing, Timing):
            ratio = paired_ratio(timing, own)
            if ratio is not None:
                ratios[other] = dataclasses.asdict(ratio)
    return ratios or None


def case_rows(
    benchmark: str,
    case: Case,
    results: dict[str, Timing | Exception],
    ceilings: Ceilings,
    on_cuda: bool,
    differing: Mapping[str, int | None] | None = None,
) -> list[dict[str, Any]]:
    """Rows of all candidates of a case, those that failed and those that are absent included.

    `differing` has, by candidate, how many items of its result are wrong, as `Case.check` said.
    """
    peers = {
        name: result.median_ms
        for name, result in results.items()
        if isinstance(result, Timing) and not is_ours(name)
    }
    strongest = min(peers.items(), key=lambda peer: peer[1]) if peers else None
    rows = []
    for name in case.candidates:
        result = results[name]
        row = empty_row(benchmark, case, name)
        if isinstance(result, Timing):
            row |= {"status": "ok"} | measured_fields(case, result, ceilings, on_cuda, strongest)
            row["differing"] = (differing or {}).get(name)
            row["ratios"] = paired_ratios(case, name, results)
            if row["differing"]:
                row["message"] = f"{row['differing']} of {case.items} results are wrong"
        else:
            row |= {"status": "error", "message": one_line(result)}
        rows.append(row)
    for name, reason in case.absent.items():
        rows.append(empty_row(benchmark, case, name) | {"status": "absent", "message": reason})
    return rows


def empty_row(benchmark: str, case: Case | None, candidate: str | None) -> dict[str, Any]:
    """A row that names what was to be measured and holds no figure yet."""
    return {
        "benchmark": benchmark,
        "case": case.name if case else None,
        "shape": case.shape if case else None,
        "dtype": case.dtype if case else None,
        "candidate": candidate,
        "input_bytes": case.input_bytes or None if case else None,
        "items": case.items or None if case else None,
        "facts": dict(case.facts) if case else {},
        "status": None,
        "message": None,
        **dict.fromkeys(MEASURED),
    }


def _number(value: float | None) -> str:
    """Four significant digits, never an exponent."""
    if value is None:
        return ""
    digits = 0 if abs(value) >= 1000 else 1 if abs(value) >= 100 else 2 if abs(value) >= 10 else 3
    return f"{value:.{digits}f}" if abs(value) >= 0.1 or value == 0 else f"{value:.5f}"


def _ratio(ratio: dict[str, float] | None) -> str:
    """Median and spread of the pairs."""
    if ratio is None:
        return ""
    return f"{ratio['median']:.2f}x ({ratio['p20']:.2f} – {ratio['p80']:.2f})"


def table(case: Case, rows: list[dict[str, Any]]) -> str:
    """A case's rows to read; columns without any figure are left out."""
    columns: dict[str, Callable[[dict[str, Any]], str]] = {
        "median ms": lambda r: _number(r["median_ms"]),
        "p20 – p80": lambda r: f"{_number(r['p20_ms'])} – {_number(r['p80_ms'])}",
        "host ms": lambda r: _number(r["host_ms"]) + ("*" if r["launch_bound"] else ""),
        "MiB": lambda r: _number(r["allocated_mib"]),
        "GB/s": lambda r: _number(r["gb_per_s"]),
        "TFLOP/s": lambda r: _number(r["tflop_per_s"]),
        "MB/s": lambda r: _number(r["mb_per_s"]),
        "ns/B": lambda r: _number(r["ns_per_byte"]),
        "µs/item": lambda r: _number(r["us_per_item"]),
        "wrong": lambda r: str(r["differing"]) if r["differing"] else "",
        "of ceiling": lambda r: (
            "" if r["share_of_ceiling"] is None else f"{r['share_of_ceiling']:.0%}"
        ),
        "vs best peer": lambda r: (
            ""
            if r["speedup_over_strongest_peer"] is None
            else f"{r['speedup_over_strongest_peer']:.2f}x"
        ),
    }
    for other in dict.fromkeys(name for row in rows for name in row["ratios"] or ()):
        columns[f"vs {other}"] = lambda r, other=other: _ratio((r["ratios"] or {}).get(other))
    measured = [row for row in rows if row["status"] == "ok"]
    cells = {name: [cell(row) for row in measured] for name, cell in columns.items()}
    cells = {name: values for name, values in cells.items() if any(values)}
    first = max(len(row["candidate"]) for row in rows)
    widths = {name: max(map(len, [name, *values])) for name, values in cells.items()}
    lines = [case.title]
    if measured:
        lines.append("  ".join(["  " + " " * first, *(f"{n:>{w}}" for n, w in widths.items())]))
    position = 0
    for row in rows:
        line = f"  {row['candidate']:<{first}}"
        if row["status"] == "ok":
            line += "".join(f"  {cells[name][position]:>{w}}" for name, w in widths.items())
            position += 1
        else:
            line += f"  {row['status']}: {row['message']}"
        lines.append(line)
    if any(row["launch_bound"] for row in measured):
        lines.append("  * launch-bound: the host issues the call more slowly than the GPU runs it")
    return "\n".join(lines) + "\n"
