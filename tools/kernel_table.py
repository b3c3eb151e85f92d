"""Writes docs/kernels.md: memory-bound kernels as compiled, and the bandwidth predicted for them.

    python tools/kernel_table.py

Needs a build with kernels for sm_80 (with PTX) and sm_90a, and NVIDIA's cuobjdump and nvdisasm; no
GPU. Measured shares come from the files below benchmarks/results, where a GPU has written any.
"""

import json
import re
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import kernel_reports as reports  # noqa: E402  (found through the path above)
from llmjp_ext import _library  # noqa: E402

PAGE = ROOT / "docs" / "kernels.md"
FAMILIES = ("bias_dropout_add", "bias_gelu", "cross_entropy", "layer_norm", "rotary", "swiglu")
UNMEASURED = "unmeasured"


@dataclass(frozen=True)
class Gpu:
    """What Little's law asks of a GPU.

    Attributes:
        name: as torch's name of the device has it.
        architecture: such as "sm_80".
        multiprocessors: their number.
        bandwidth: of device memory by the data sheet, bytes a second.
        latency: of a load from device memory under load, seconds: an assumption.
        shared_bytes: shared memory of a multiprocessor.
    """

    name: str
    architecture: str
    multiprocessors: int
    bandwidth: float
    latency: float
    shared_bytes: int

    def bytes_needed(self) -> int:
        """Bytes that each multiprocessor must have on their way to keep the memory busy."""
        return round(self.bandwidth * self.latency / self.multiprocessors)


GPUS = (
    Gpu("A100", "sm_80", 108, 2.04e12, 0.6e-6, 164 * 1024),
    Gpu("H100", "sm_90a", 132, 3.35e12, 0.7e-6, 228 * 1024),
)


def is_memory_bound(kernel: reports.Kernel) -> bool:
    """Whether the speed of memory is what limits a kernel: not attention, not sampling."""
    return kernel.name.startswith(FAMILIES)


def share(gpu: Gpu, in_flight: int) -> float:
    """Share of the bandwidth that so many bytes on their way, a multiprocessor, allow."""
    return min(1.0, in_flight / gpu.bytes_needed())


def loads_of_thread(kernel: reports.Kernel) -> int:
    """16-byte loads that a thread has on their way at a time, as the expectations count them.

    cross_entropy's count one more, for what is left of a row.
    """
    wide = reports.EXPECTATIONS[kernel.name].wide(kernel)
    loads = wide.get("LDGSTS", wide.get("LDG", 0))
    return loads - 1 if kernel.name.startswith("cross_entropy") else loads


def resident_blocks(kernel: reports.Kernel, threads: int, gpu: Gpu) -> int:
    """Blocks of a kernel that share a multiprocessor."""
    granularity = reports.REGISTER_GRANULARITY
    registers = -(-kernel.registers // granularity) * granularity
    blocks = min(reports.REGISTERS_PER_MULTIPROCESSOR // (registers * threads), 2048 // threads, 32)
    if kernel.name in ("layer_norm_backward_tile_kernel", "layer_norm_backward_parts_kernel"):
        # Two stages of dy and r where they fit, as csrc/norm/layer_norm_plan.h has it.
        x, row = (reports.ELEMENT_BYTES[name] for name in kernel.arguments[:2])
        match = re.search(r"(\d+), ?(\d+)", kernel.arguments[-1])
        assert match is not None
        stage = threads * int(match[2]) * (x + row)
        stages = 2 if 2 * stage + 1024 <= gpu.shared_bytes else 1
        blocks = min(blocks, gpu.shared_bytes // (stages * stage + 1024))
    return blocks


def measured_shares(results: Path) -> dict[tuple[str, str, str], float]:
    """Best share of the ceiling by GPU, benchmark and direction, from committed rows."""
    best: dict[tuple[str, str, str], float] = defaultdict(float)
    for path in sorted(results.glob("*/*.jsonl")):
        for text in path.read_text(encoding="utf-8").splitlines():
            row = json.loads(text)
            if row.get("candidate") != "llmjp_ext" or not row.get("share_of_ceiling"):
                continue
            for gpu in GPUS:
                if gpu.name in str(row.get("device")):
                    direction = str(row["case"]).split(" ")[0]
                    key = (gpu.name, row["benchmark"], direction)
                    best[key] = max(best[key], row["share_of_ceiling"])
    return best


def span(values: list[int]) -> str:
    """ "5", or "5 – 9"."""
    low, high = min(values), max(values)
    return str(low) if low == high else f"{low} – {high}"


def table(library: Path, results: Path) -> Iterator[str]:
    """Lines of the table, its heading first: a row for each kernel and GPU."""
    yield (
        "| kernel | GPU | instantiations | registers | stack, bytes | resident warps "
        "| KB on their way | predicted share | measured share |"
    )
    yield "|---|---|---|---|---|---|---|---|---|"
    bounds = reports.launch_bounds(library, "sm_80")
    measured = measured_shares(results)
    for gpu in GPUS:
        kernels = defaultdict(list)
        for kernel in reports.resource_usage(library, gpu.architecture):
            if is_memory_bound(kernel):
                kernels[kernel.name].append(kernel)
        for name, found in sorted(kernels.items()):
            wide = [kernel for kernel in found if loads_of_thread(kernel) > 0]
            warps, flight = [], []
            for kernel in wide or found:
                threads, _ = bounds[kernel.symbol]
                blocks = resident_blocks(kernel, threads, gpu)
                warps.append(blocks * threads // 32)
                flight.append(blocks * threads * 16 * loads_of_thread(kernel))
            op = next(family for family in FAMILIES if name.startswith(family))
            direction = "backward" if "backward" in name else "forward"
            best = measured.get((gpu.name, op, direction))
            columns = [
                f"`{name.removesuffix('_kernel')}`",
                gpu.name,
                str(len(found)),
                span([kernel.registers for kernel in found]),
                span([kernel.stack_bytes + kernel.local_bytes for kernel in found]),
                span(warps),
                span([round(count / 1024) for count in flight]) if wide else "–",
                f"{share(gpu, min(flight)):.0%}" if wide else "–",
                UNMEASURED if best is None else f"{best:.0%}",
            ]
            yield "| " + " | ".join(columns) + " |"


def page(library: Path, results: Path) -> str:
    """The whole page."""
    facts = "\n".join(
        f"| {g.name} ({g.architecture}) | {g.multiprocessors} | {g.bandwidth / 1e12:.2f} TB/s "
        f"| {g.latency * 1e6:.1f} µs | {g.bytes_needed() / 1024:.0f} KB |"
        for g in GPUS
    )
    return f"""# Kernels as compiled

What the compiler made of the kernels that the speed of memory limits, and the share of it that
follows. `tools/kernel_table.py` writes this page from the built library;
`tests/test_kernel_reports.py` compares the two, and checks every instantiation for spills and
16-byte accesses on both architectures. Compiled by nvcc {_library.build_info()["nvcc"]}.

## How shares are predicted

By Little's law a memory of bandwidth B and latency L is busy while B · L bytes are on their way.
Bandwidths are the data sheets', the latencies assumed:

| GPU | multiprocessors | bandwidth | latency | bytes on their way, each multiprocessor |
|---|---|---|---|---|
{facts}

A kernel has on their way: resident warps × 32 lanes × 16 bytes × the loads that a thread starts
before it waits for one. Resident warps follow from its registers and threads a block (and, of
`layer_norm_backward_tile` and `_parts`, shared memory). The prediction is the lowest of the
instantiations for aligned rows, and an upper bound: it counts neither a last wave of blocks nor
what a copy of the same bytes loses itself. Kernels without a number read little, or, as the loop
kernels do, rows that are not aligned, an element at a time and two or three times, from the caches
where a row fits there.

Shares that were measured stand beside it, the best of an op's shapes as a share of the copy's
bandwidth in the same run, once files below `benchmarks/results` hold rows of that GPU.

## Table

{chr(10).join(table(library, results))}
"""


if __name__ == "__main__":
    PAGE.write_text(page(_library.LIBRARY_PATH, ROOT / "benchmarks" / "results"), encoding="utf-8")
    print(f"wrote {PAGE.relative_to(ROOT)}")
