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
from typing import Any

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


@dataclass(frozen=True)
class Work:
    """A benchmark's case in bfloat16, as one pass over memory by blocks that share out its rows.

    Attributes:
        benchmark, case, shape: as its rows name them.
        kernel: the start of the name of the instantiation that does it, as str(Kernel) gives it;
            the narrowest tile that holds a row where tiles differ.
        megabytes: that the op must move.
        rows: of the work, each a block's or, in the narrowest tiles, a warp's; for kernels that
            have no rows, blocks.
        width: of a row.
        sums: float32 sums over rows of each column that a group of rows leaves to a second kernel,
            which adds them up; the groups then are all that run at once. 0 where there are none.
        parts: blocks that share a row.
    """

    benchmark: str
    case: str
    shape: str
    kernel: str
    megabytes: float
    rows: int
    width: int
    sums: int = 0
    parts: int = 1


def _works() -> Iterator[Work]:
    """What the table of predictions has: the shapes of the benchmarks that memory limits."""
    half, tile = "bfloat16", "Tile<"
    rows_of = "bfloat16, bfloat16, bfloat16"
    for op, centred, sums in (("layer_norm", "true", 2), ("rms_norm", "false", 1)):
        forward = f"layer_norm_forward_tile_kernel<{rows_of}, {centred}, false, {tile}"
        backward = f"layer_norm_backward_tile_kernel<{rows_of}, {centred}, {tile}"
        for rows, width in ((8192, 2048), (8192, 5120)):
            shape, size = f"{rows} x {width}", rows * width * 2e-6
            yield Work(op, "forward", shape, forward, 2 * size, rows, width)
            yield Work(op, "forward + residual", shape, forward, 4 * size, rows, width)
            yield Work(op, "backward", shape, backward, 3 * size, rows, width, sums)
        rows, width = 512, 65536
        shape, size = f"{rows} x {width}", rows * width * 2e-6
        wide = f"layer_norm_forward_wide_kernel<{rows_of}, {centred}, false"
        shared = f"layer_norm_backward_parts_kernel<{rows_of}, {centred}, {tile}"
        yield Work(op, "forward", shape, wide, 2 * size, rows, width)
        yield Work(op, "backward", shape, shared, 3 * size, rows, width, sums, 11)
    # A block of 256 threads has 16 bytes a thread of so many rows at once (csrc/activation).
    gelu, add, glu = (8192, 8192), (8192, 2048), (8192, 11008)
    for op, case, (rows, width), kernel, passes, at_once, sums in (
        ("bias_gelu", "forward", gelu, f"{half}, {half}, true, 8", 2, 4, 0),
        ("bias_gelu", "backward", gelu, f"{half}, {half}, true, 8", 3, 2, 1),
        ("bias_dropout_add", "forward", add, f"{rows_of}, true, 8", 3, 2, 0),
        ("bias_dropout_add", "backward", add, f"{half}, {half}, true, 8", 2, 4, 1),
        ("swiglu", "forward", glu, f"{half}, 8", 3, 2, 0),
        ("swiglu", "backward", glu, f"{half}, 8", 5, 2, 0),
    ):
        blocks = rows * width // (256 * 8 * at_once)
        yield Work(
            op,
            case,
            f"{rows} x {width}",
            f"{op}_{case}_kernel<{kernel}",
            passes * rows * width * 2e-6,
            rows if sums else blocks,
            width,
            sums,
        )
    turned = 4 * 2048 * (32 + 32) * 128 * 2e-6
    kernel = f"rotary_forward_kernel<{half}, {half}, false, 8"
    yield Work("rotary", "forward", "4 x 2048 x 32 x 32 x 128", kernel, 2 * turned, 8192, 0)
    for rows, vocab, valid in ((8192, 50688, 50570), (1024, 256000, 256000)):
        shape, size = f"{rows} x {vocab}", rows * 2e-6
        kernel = f"cross_entropy_forward_kernel<{half}, 512"
        yield Work("cross_entropy", "forward", shape, kernel, size * valid, rows, vocab)
        kernel = f"cross_entropy_backward_kernel<{half}, 512"
        both = size * (2 * valid + vocab)
        yield Work("cross_entropy", "forward + backward", shape, kernel, both, rows, vocab)


def _tile(kernel: reports.Kernel) -> tuple[int, int]:
    """Width of a row that a tile holds, and rows of a block; 0 and 1 where there is none."""
    match = re.fullmatch(r"Tile<(\d+), ?(\d+) ?>", kernel.arguments[-1])
    if match is None:
        return 0, 1
    return 32 * int(match[1]) * int(match[2]), 4 if match[1] == "1" else 1


def prediction(
    work: Work, gpu: Gpu, kernels: list[reports.Kernel], bounds: dict[str, tuple[int, int]]
) -> tuple[float, float, float]:
    """Megabytes of sums left to a second kernel, and the lowest and highest share of the bandwidth.

    The highest is what the bytes on their way allow. The lowest is without the last wave's idle
    multiprocessors, and as if the sums came from memory and not from the second-level cache.
    """
    found = [k for k in kernels if str(k).startswith(work.kernel)]
    held = work.width / work.parts
    found = [k for k in found if _tile(k)[0] == 0 or _tile(k)[0] >= held]
    kernel = min(found, key=lambda k: _tile(k)[0])
    threads, planned = bounds[kernel.symbol]
    resident = resident_blocks(kernel, threads, gpu)
    highest = share(gpu, resident * threads * 16 * loads_of_thread(kernel))
    partial = 0.0
    if work.sums:
        # The launchers count on the blocks that launch bounds promise.
        blocks = min(resident, planned) * gpu.multiprocessors
        tile_rows = _tile(kernel)[1]
        if _tile(kernel)[0]:
            at_once = blocks // work.parts * tile_rows
        else:
            at_once = blocks * threads // 32 // -(-work.width // 256)  # a warp: 32 chunks of 8
        waves = work.rows / at_once
        partial = 2 * at_once * work.width * work.sums * 4e-6
    else:
        waves = work.rows / _tile(kernel)[1] / (resident * gpu.multiprocessors)
    last_wave = waves / -(-waves // 1)
    moved = work.megabytes / (work.megabytes + partial)
    return partial, highest * last_wave * moved, highest


def predictions(library: Path, results: Path) -> Iterator[str]:
    """Lines of the table of works, its heading first: a row for each and GPU."""
    yield (
        "| op | case | bfloat16 | GPU | MB it must move | MB of sums | predicted share "
        "| measured share |"
    )
    yield "|---|---|---|---|---|---|---|---|"
    bounds = reports.launch_bounds(library, "sm_80")
    measured = measured_cases(results)
    for gpu in GPUS:
        kernels = reports.resource_usage(library, gpu.architecture)
        for work in _works():
            partial, lowest, highest = prediction(work, gpu, kernels, bounds)
            found = measured.get((gpu.name, work.benchmark, work.case, work.shape))
            columns = [
                f"`{work.benchmark}`",
                work.case,
                work.shape,
                gpu.name,
                f"{work.megabytes:.0f}",
                f"{partial:.0f}" if work.sums else "–",
                f"{lowest:.0%} – {highest:.0%}",
                UNMEASURED if found is None else f"{found:.0%}",
            ]
            yield "| " + " | ".join(columns) + " |"


def measured_cases(results: Path) -> dict[tuple[str, str, str, str], float]:
    """Share of the ceiling in bfloat16 by GPU, benchmark, case and shape; the last there is."""
    return {
        (gpu.name, row["benchmark"], row["case"], row["shape"]): row["share_of_ceiling"]
        for row in measured_rows(results)
        for gpu in GPUS
        if gpu.name in str(row.get("device")) and row.get("dtype") == "bfloat16"
    }


def measured_rows(results: Path) -> Iterator[dict[str, Any]]:
    """Committed rows of this project's candidates that have a share of the ceiling."""
    for path in sorted(results.glob("*/*.jsonl")):
        for text in path.read_text(encoding="utf-8").splitlines():
            row = json.loads(text)
            if row.get("candidate") == "llmjp_ext" and row.get("share_of_ceiling"):
                yield row


def measured_shares(results: Path) -> dict[tuple[str, str, str], float]:
    """Best share of the ceiling by GPU, benchmark and direction, from committed rows."""
    best: dict[tuple[str, str, str], float] = defaultdict(float)
    for row in measured_rows(results):
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

## By op

The same for whole ops at shapes of their benchmarks, with what bytes and blocks take from it.
Gradients of weights and biases are sums over rows: each group of warps writes its own, and a second
kernel reads them. At best that stays in the second-level cache, which is the upper end of the
prediction; the lower one counts these bytes, written and read, as the memory's, and the
multiprocessors that are idle while the last wave of blocks, or round of rows, ends. Neither end
knows of the time to launch a second kernel (some microseconds), of a block that computes while
nothing is on its way to it, or of instructions. In the time of a byte the 128 lanes of all
multiprocessors execute 9.6 instructions of a thread on an A100 (1.41 GHz) and 8.9 on an H100 (1.76
GHz), if no slot is lost. What comes near that is dropout, with some 20 instructions an element for
its random number: `bias_dropout_add` forward has 52 for the six bytes of an element, in whose time
an H100 has 53. There less is to be expected than the table says.

{chr(10).join(predictions(library, results))}
"""


if __name__ == "__main__":
    PAGE.write_text(page(_library.LIBRARY_PATH, ROOT / "benchmarks" / "results"), encoding="utf-8")
    print(f"wrote {PAGE.relative_to(ROOT)}")
