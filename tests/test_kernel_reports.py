"""The CUDA kernels as compiled for sm_80, and those that memory limits for sm_90a too: nothing
spilled, registers as planned, 16-byte accesses.

Needs no GPU, only a build with CUDA kernels and NVIDIA's cuobjdump.
"""

import shutil
import subprocess
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

import kernel_reports as reports
from llmjp_ext import _library
from tools import attention_table
from tools import kernel_table as table

ARCHITECTURE = "sm_80"
ROOT = Path(__file__).resolve().parents[1]

PLANTED = """
namespace llmjp::norm {
__global__ void __launch_bounds__(1024) spilling_kernel(float* data) {
  float held[96];
  for (int i = 0; i < 96; ++i) held[i] = data[i * 1024 + threadIdx.x];
  for (int round = 0; round < 96; ++round) {
    __syncthreads();
#pragma unroll
    for (int i = 0; i < 96; ++i) held[i] = held[i] * held[(i * 7 + 1) % 96] + round;
  }
  for (int i = 0; i < 96; ++i) data[i * 1024 + threadIdx.x] = held[i];
}
template <int kWarps, int kElements>
struct Tile;
template <class X, class R, class W, class RowTile>
__global__ void layer_norm_forward_tile_kernel(const float* x, float* y) {
  for (int i = 0; i < 4; ++i) y[threadIdx.x * 4 + i] = x[threadIdx.x * 4 + i];
}
template __global__ void layer_norm_forward_tile_kernel<float, float, float, Tile<1, 8>>(
    const float*, float*);
}  // namespace llmjp::norm
"""


def need_tools() -> None:
    """Skips the test where NVIDIA's binary tools are missing."""
    for name in ("cuobjdump", "nvdisasm"):
        if reports.find_tool(name) is None:
            pytest.skip(f"{name} not found (pip install nvidia-cuda-{name})")


@pytest.fixture(scope="module")
def library() -> Path:
    """The built _ops.so, if it holds sm_80 code with PTX."""
    architectures = _library.build_info()["cuda_architectures"]
    if "8.0+PTX" not in architectures.split(";"):
        pytest.skip(f"this build holds no 8.0+PTX kernels (built: {architectures or 'none'})")
    need_tools()
    return _library.LIBRARY_PATH


@pytest.fixture(scope="module")
def kernels(library: Path) -> list[reports.Kernel]:
    """All kernels of the library, each known to the table of expectations."""
    found = reports.resource_usage(library, ARCHITECTURE)
    assert found, "the library was built with CUDA but holds no kernel"
    unknown = {kernel.name for kernel in found} - set(reports.EXPECTATIONS)
    assert not unknown, f"kernels without an entry in tests/kernel_reports.py: {sorted(unknown)}"
    missing = set(reports.EXPECTATIONS) - {kernel.name for kernel in found}
    assert not missing, f"kernels expected but not in the library: {sorted(missing)}"
    return found


def test_nothing_spills_and_registers_fit(library: Path, kernels: list[reports.Kernel]) -> None:
    """No kernel uses stack or local memory, and each fits the blocks it was planned for."""
    bounds = reports.launch_bounds(library, ARCHITECTURE)
    faults: list[str] = []
    for kernel in kernels:
        assert kernel.symbol in bounds, f"{kernel} has no launch bounds"
        faults += reports.faults_in_resources(kernel, bounds[kernel.symbol])
    assert not faults, "\n".join(faults)


@pytest.fixture(scope="module")
def ampere_code(library: Path) -> dict[str, Counter[str]]:
    """Opcodes of all kernels for sm_80."""
    return reports.machine_code(library, ARCHITECTURE)


def test_memory_is_accessed_in_16_bytes(
    ampere_code: dict[str, Counter[str]], kernels: list[reports.Kernel]
) -> None:
    """The machine code has the 16-byte loads, stores and asynchronous copies of the design."""
    faults: list[str] = []
    for kernel in kernels:
        faults += reports.faults_in_code(kernel, ampere_code[kernel.symbol])
    assert not faults, "\n".join(faults)


@pytest.fixture(scope="module")
def hopper_code(library: Path) -> dict[str, Counter[str]]:
    """Opcodes of all kernels for sm_90a."""
    if "9.0a" not in _library.build_info()["cuda_architectures"].split(";"):
        pytest.skip("this build holds no 9.0a kernels")
    return reports.machine_code(library, "sm_90a")


def test_memory_bound_kernels_for_hopper(
    library: Path, hopper_code: dict[str, Counter[str]]
) -> None:
    """The same of the kernels that the speed of memory limits and of sampling, for sm_90a.

    Their launch bounds are the source's, and so those that the PTX for sm_80 shows.
    """
    bounds = reports.launch_bounds(library, ARCHITECTURE)
    compiled = reports.resource_usage(library, "sm_90a")
    found = [k for k in compiled if table.is_memory_bound(k) or k.name == "sample_kernel"]
    assert {k.name for k in found} == {
        name for name in reports.EXPECTATIONS if "attention" not in name
    }, "kernels that the library lacks for sm_90a, or that no test looks at"
    faults: list[str] = []
    for kernel in found:
        faults += reports.faults_in_resources(kernel, bounds[kernel.symbol])
        faults += reports.faults_in_code(kernel, hopper_code[kernel.symbol])
    assert not faults, "\n".join(faults)


def test_sums_of_other_blocks_do_not_come_from_a_stale_cache(
    ampere_code: dict[str, Counter[str]], hopper_code: dict[str, Counter[str]]
) -> None:
    """Blocks that share a row read what others wrote: behind a load that acquires, which empties
    the first-level cache, and never by way of the constant one. The simulator has no caches."""
    for code in (ampere_code, hopper_code):
        found = [opcodes for symbol, opcodes in code.items() if "backward_parts" in symbol]
        assert found, "the library holds no kernel whose blocks share a row"
        for opcodes in found:
            assert opcodes["MEMBAR.SC.GPU"] == 1, opcodes
            assert opcodes["LDG.E.STRONG.GPU"] == opcodes["CCTL.IVALL"] - 1 > 0, opcodes
            assert not [name for name in opcodes if ".CONSTANT" in name], opcodes


def test_the_page_of_kernels_is_what_was_built(library: Path) -> None:
    """docs/kernels.md holds this build's registers and predictions, made by tools/kernel_table.py.

    Another nvcc hands out other registers, so only its own is compared.
    """
    page = (ROOT / "docs" / "kernels.md").read_text()
    if f"nvcc {_library.build_info()['nvcc']}" not in page:
        pytest.skip(f"the page was made with another nvcc than {_library.build_info()['nvcc']}")
    results = ROOT / "benchmarks" / "results"
    for line in (*table.table(library, results), *table.predictions(library, results)):
        assert line in page, f"docs/kernels.md lacks this line; run tools/kernel_table.py:\n{line}"


def test_attention_for_hopper(library: Path, hopper_code: dict[str, Counter[str]]) -> None:
    """Attention's kernels as compiled for sm_90a: what is read from the stack within a loop is
    little and nothing is stored there, registers fit, and 16-byte accesses are those of sm_80."""
    bounds = reports.launch_bounds(library, ARCHITECTURE)
    found = [k for k in reports.resource_usage(library, "sm_90a") if "attention" in k.name]
    assert found, "the library holds no attention kernel for sm_90a"
    faults: list[str] = []
    for kernel in found:
        if kernel.stack_bytes <= attention_table.hopper_stack(kernel):
            kernel = replace(kernel, stack_bytes=0)
        faults += reports.faults_in_resources(kernel, bounds[kernel.symbol])
        faults += reports.faults_in_code(kernel, hopper_code[kernel.symbol])
    for kernel, loop in attention_table.loops(library, "sm_90a"):
        reads, writes = (loop.counts[opcode] for opcode in ("LDL", "STL"))
        if reads > loop.total / 100 or writes:
            faults.append(f"{kernel} reads the stack {reads} times in its loop, writes {writes}")
    assert not faults, "\n".join(faults)


def test_the_table_of_attention_is_what_was_built(library: Path) -> None:
    """docs/attention.md holds this build's main loops; another nvcc makes others."""
    page = (ROOT / "docs" / "attention.md").read_text()
    if f"nvcc {_library.build_info()['nvcc']}" not in page:
        pytest.skip(f"the page was made with another nvcc than {_library.build_info()['nvcc']}")
    for line in attention_table.table(library):
        assert line in page, f"docs/attention.md lacks; run tools/attention_table.py:\n{line}"


LISTING = """
        /*0000*/                   MOV R1, c[0x0][0x28] ;
        /*0010*/                   HMMA.16816.F32.BF16 R4, R8, R12, R4 ;
        /*0020*/              @!P0 BRA 0x50 ;
        /*0030*/                   FSEL R4, R4, -INF , P1 ;
        /*0040*/                   LDL R9, [R1+0x8] ;
        /*0050*/                   LDSM.16.M88.4 R8, [R2] ;
        /*0060*/                   IMAD.MOV.U32 R3, RZ, RZ, R4 ;
        /*0070*/                   IMAD R3, R3, 0x8, R4 ;
        /*0080*/               @P2 BRA P0, 0x10 ;
        /*0090*/                   LOP3.LUT R3, R3, 0x7, RZ, 0xc0, !PT ;
        /*00a0*/              @!P3 BRA 0x90 ;
        /*00b0*/                   EXIT ;
        /*00c0*/                   BRA 0xc0;
"""


def test_main_loops_are_found_and_counted() -> None:
    """The loop with products, by class; what a conditional jump passes over; moves in disguise."""
    loop = attention_table.summary(attention_table.instructions(LISTING.splitlines()))
    assert loop.total == 8 and loop.skipped == 2
    assert loop.counts == {
        "HMMA": 1,
        "other floating point": 1,
        "shared memory": 1,
        "integer": 1,
        "LDL": 1,
        attention_table.OTHERS: 3,
    }


def test_predicted_shares() -> None:
    """By Little's law: twice the bytes on their way twice the share, until all is used."""
    gpu = table.Gpu("test", "sm_80", 100, 1000e9, 1e-6, 100 * 1024)
    assert gpu.bytes_needed() == 10_000
    assert table.share(gpu, 2500) == 0.25
    assert table.share(gpu, 5000) == 0.5
    assert table.share(gpu, 40_000) == 1.0


def test_predictions_count_sums_and_the_last_round() -> None:
    """300 groups of ten rows each: their sums are bytes too; one row more takes a round more."""
    gpu = table.Gpu("test", "sm_80", 100, 1000e9, 1e-6, 100 * 1024)
    arguments = ("bfloat16", "bfloat16", "true", "8")
    kernel = reports.Kernel("symbol", "bias_gelu_backward_kernel", arguments, 80, 0, 0)
    bounds = {"symbol": (256, 3)}
    work = table.Work("bias_gelu", "backward", "", "bias_gelu_backward", 30.0, 3000, 2048, sums=1)
    sums, lowest, highest = table.prediction(work, gpu, [kernel], bounds)
    assert sums == pytest.approx(2 * 300 * 2048 * 4 / 1e6)
    assert highest == 1.0 and lowest == pytest.approx(30 / (30 + sums))
    one_more = table.prediction(replace(work, rows=3001), gpu, [kernel], bounds)
    assert one_more[1] == pytest.approx(lowest * 3001 / 300 / 11)


def test_planted_faults_are_seen(tmp_path: Path) -> None:
    """A spilling kernel and a scalar copy under a known name are reported: the checks can fail."""
    if shutil.which("nvcc") is None:
        pytest.skip("nvcc not found")
    need_tools()
    source = tmp_path / "planted.cu"
    source.write_text(PLANTED)
    cubin = tmp_path / "planted.cubin"
    subprocess.run(
        ["nvcc", "-cubin", "-arch", ARCHITECTURE, "-o", str(cubin), str(source)], check=True
    )
    kernels = {kernel.name: kernel for kernel in reports.resource_usage(cubin, None)}
    spilling = kernels["spilling_kernel"]
    assert "of stack" in "".join(reports.faults_in_resources(spilling, (1024, 1)))
    crowded = replace(spilling, stack_bytes=0, local_bytes=0, registers=65)
    assert "at most 64" in "".join(reports.faults_in_resources(crowded, (1024, 1)))

    scalar = kernels["layer_norm_forward_tile_kernel"]
    faults = reports.faults_in_code(scalar, reports.machine_code(cubin, None)[scalar.symbol])
    assert len(faults) == 4, faults  # too few wide and too many narrow, both loads and stores

    copied = replace(
        scalar,
        name="attention_forward_kernel",
        arguments=("float16", "ForwardTile<64, 128, 128, 4, 2>", "false"),
    )
    faults = reports.faults_in_code(copied, reports.machine_code(cubin, None)[scalar.symbol])
    assert "has 0 HMMA, expected 256" in "".join(faults)


def test_access_widths_are_read_from_opcodes() -> None:
    """Suffixes of SASS opcodes give the width, whatever modifiers stand beside them."""
    opcodes = Counter(
        {
            "LDG.E.NA.128.CONSTANT": 3,
            "LDG.E": 2,
            "LDG.E.U16": 1,
            "LDGSTS.E.BYPASS.128": 5,
            "LDG.E.64": 4,
        }
    )
    assert reports.accesses(opcodes, "LDG") == {128: 3, 64: 4, 32: 2, 16: 1}
    assert reports.accesses(opcodes, "LDGSTS") == {128: 5}
