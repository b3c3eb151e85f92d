"""What the compiler made of the CUDA kernels, and what is expected of it.

`resource_usage` and `machine_code` read a library or cubin through NVIDIA's cuobjdump (in the CUDA
toolkit, or the Python packages nvidia-cuda-cuobjdump and nvidia-cuda-nvdisasm). EXPECTATIONS, keyed
by the kernel's name, is the place to add a new kernel; a kernel without an entry fails the tests.
"""

import importlib.util
import os
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

ELEMENT_BYTES = {"float": 4, "float16": 2, "bfloat16": 2}
REGISTERS_PER_MULTIPROCESSOR = 65536
_INSTRUCTION = re.compile(
    r"^ {8}/\*[0-9a-f]{4,}\*/ +(?:@!?U?P\w+ +)?([A-Z][A-Z0-9_.]*)", re.MULTILINE
)
REGISTER_GRANULARITY = 8  # registers are handed out to a warp in multiples of 8 a thread

WIDE_CHUNKS = 16  # kWideChunks of csrc/norm/tiles.h


@dataclass(frozen=True)
class Kernel:
    """One instantiation: its name, template arguments, and what ptxas reported."""

    symbol: str
    name: str
    arguments: tuple[str, ...]
    registers: int
    stack_bytes: int
    local_bytes: int

    def __str__(self) -> str:
        return f"{self.name}<{', '.join(self.arguments)}>"


@dataclass(frozen=True)
class Expectation:
    """What the machine code of a kernel must show.

    wide: how many 16-byte accesses an instantiation must at least have, by opcode (LDG global load,
    STG global store, LDGSTS asynchronous copy to shared memory).
    narrow: how many accesses may be smaller than the element chunk, by opcode; chunks are 16 bytes
    of the row's type, so an input half as wide moves 8 bytes at a time. None: not restricted.
    exact: how many instructions of any width there must be, by opcode (HMMA tensor-core product,
    LDSM load of matrices from shared memory).
    """

    wide: Callable[[Kernel], dict[str, int]] = field(default=lambda kernel: {})
    narrow: Callable[[Kernel], dict[str, int] | None] = field(default=lambda kernel: None)
    exact: Callable[[Kernel], dict[str, int]] = field(default=lambda kernel: {})


def chunk_of(kernel: Kernel) -> int:
    """Elements that a thread of a LayerNorm kernel moves at once: 16 bytes of the row's type."""
    return 16 // ELEMENT_BYTES[kernel.arguments[1]]


def tile_chunks(kernel: Kernel) -> int:
    """Chunks of a row that one thread holds, by the last argument Tile<warps, elements>."""
    match = re.fullmatch(r"Tile<(\d+), ?(\d+) ?>", kernel.arguments[-1])
    assert match is not None, f"{kernel}: the last template argument is not a tile"
    return int(match[2]) // chunk_of(kernel)


def drops(kernel: Kernel) -> bool:
    """Whether this instantiation has dropout: the last template argument but one."""
    return kernel.arguments[-2] == "true"


def is_scalar(kernel: Kernel) -> bool:
    """Whether this instantiation serves rows that are not 16-byte aligned."""
    return kernel.arguments[-1] == "1"


@dataclass(frozen=True)
class AttentionTile:
    """The tile of an attention kernel: head dimension, queries, keys, warps, blocks."""

    head_dim: int
    rows: int
    keys: int
    warps: int
    blocks: int

    @classmethod
    def of(cls, kernel: Kernel) -> "AttentionTile":
        """By the template argument ForwardTile<...>."""
        match = re.fullmatch(r"\w+Tile<([\d, ]+)>", kernel.arguments[1])
        assert match is not None, f"{kernel}: the second template argument is not a tile"
        return cls(*(int(number) for number in match[1].split(",")))

    def forward_products(self) -> int:
        """m16n8k16 products of a warp and a tile of keys: q by k, and as many p by v."""
        return 2 * (self.rows // self.warps * self.keys * self.head_dim) // (16 * 8 * 16)

    def forward_matrix_loads(self) -> int:
        """16 x 16 pieces that a warp reads from shared memory: its queries, all of k, all of v."""
        return (self.rows // self.warps + 2 * self.keys) * self.head_dim // (16 * 16)

    def pieces(self, rows: int) -> int:
        """16-byte pieces that a thread copies of so many rows."""
        return rows * self.head_dim // 8 // (32 * self.warps)


@dataclass(frozen=True)
class BackwardTile:
    """The tile of attention's backward kernel, by the names of csrc/attention/backward_tiles.h."""

    head_dim: int
    keys: int
    warps: int
    column_warps: int
    chunk: int
    stages: int
    blocks: int
    queries = 64

    @classmethod
    def of(cls, kernel: Kernel) -> "BackwardTile":
        """By the template argument BackwardTile<...>."""
        match = re.fullmatch(r"BackwardTile<([\d, ]+)>", kernel.arguments[1])
        assert match is not None, f"{kernel}: the second template argument is not a tile"
        return cls(*(int(number) for number in match[1].split(",")))

    def shapes(self) -> list[tuple[int, int, int, bool]]:
        """Rows, columns and depth of each product of a warp as the code has it once, and whether
        its left operand lies in registers. Neither chunks nor parts of dq are unrolled."""
        keys = self.keys * self.column_warps // self.warps
        columns = self.head_dim // self.column_warps
        shared = self.column_warps > 1
        part = min(32, 2 * self.head_dim // self.warps)
        return [
            *[(keys, self.chunk, self.head_dim, False)] * 2,  # the scores, dout by v
            *[(keys, columns, self.queries if shared else self.chunk, not shared)] * 2,  # dv, dk
            (32, part, self.keys, False),  # dq
        ]

    def products(self) -> int:
        """m16n8k16 products."""
        return sum(rows * columns * depth for rows, columns, depth, _ in self.shapes()) // 2048

    def matrix_loads(self) -> int:
        """16 x 16 pieces read from shared memory."""
        return sum(
            (columns + (0 if registers else rows)) * depth
            for rows, columns, depth, registers in self.shapes()
        ) // (16 * 16)

    def pieces(self, rows: int) -> int:
        """16-byte pieces that a thread moves of so many rows."""
        return rows * self.head_dim // 8 // (32 * self.warps)

    def sums(self) -> int:
        """Additions of a lane to its part of dq."""
        return min(32, 2 * self.head_dim // self.warps)


@dataclass(frozen=True)
class DecodeTile:
    """The tile of the decode kernel, by the names of csrc/attention/decode_tiles.h."""

    head_dim: int
    row_warps: int
    key_warps: int
    keys: int
    stages: int
    blocks: int

    @classmethod
    def of(cls, kernel: Kernel) -> "DecodeTile":
        """By the template argument DecodeTile<...>."""
        match = re.fullmatch(r"DecodeTile<([\d, ]+)>", kernel.arguments[1])
        assert match is not None, f"{kernel}: the second template argument is not a tile"
        return cls(*(int(number) for number in match[1].split(",")))

    def products(self) -> int:
        """m16n8k16 products of a warp's sixteen rows and its keys of a tile: q by k, p by v."""
        return 2 * (self.keys // self.key_warps) * self.head_dim // (8 * 16)

    def matrix_loads(self) -> int:
        """16 x 16 pieces that a warp reads from shared memory: q once, its keys and values."""
        return (16 + 2 * self.keys // self.key_warps) * self.head_dim // (16 * 16)

    def pieces(self, rows: int) -> int:
        """16-byte pieces that a thread copies of so many rows."""
        return rows * self.head_dim // 8 // (32 * self.row_warps * self.key_warps)


def row_passes(kernel: Kernel) -> int:
    """Passes of 256 threads, eight elements each, over 64 rows of a head."""
    return 64 * int(kernel.arguments[1]) // (8 * 256)


EXPECTATIONS: dict[str, Expectation] = {
    # x (and the residual) once, y once; mean and rstd are the two narrow stores, seed and offset of
    # dropout the narrow loads.
    "layer_norm_forward_tile_kernel": Expectation(
        wide=lambda kernel: {"LDG": tile_chunks(kernel), "STG": tile_chunks(kernel)},
        narrow=lambda kernel: {"LDG": 2 if drops(kernel) else 0, "STG": 2},
    ),
    # The chunks kept in registers, and one more of those in shared memory.
    "layer_norm_forward_wide_kernel": Expectation(
        wide=lambda kernel: {"LDG": WIDE_CHUNKS + 1, "STG": WIDE_CHUNKS + 1},
        narrow=lambda kernel: {"LDG": 2 if kernel.arguments[-1] == "true" else 0, "STG": 2},
    ),
    # Rows that are not 16-byte aligned, one element at a time.
    "layer_norm_forward_loop_kernel": Expectation(),
    "layer_norm_backward_loop_kernel": Expectation(),
    "layer_norm_backward_columns_kernel": Expectation(),
    # Rows arrive by cp.async, before the loop and inside it; mean and rstd are read narrow, and so
    # are dropout's seed and offset for each chunk, from the first-level cache: registers for them
    # would cost those who drop nothing.
    "layer_norm_backward_tile_kernel": Expectation(
        wide=lambda kernel: {"LDGSTS": 2 * tile_chunks(kernel), "STG": tile_chunks(kernel)},
        narrow=lambda kernel: {"LDG": 2 + 2 * tile_chunks(kernel), "STG": 0, "LDGSTS": 0},
    ),
    # The same; the sums that blocks tell each other, and the count of those who have, are narrow.
    "layer_norm_backward_parts_kernel": Expectation(
        wide=lambda kernel: {"LDGSTS": 2 * tile_chunks(kernel), "STG": tile_chunks(kernel)},
        narrow=lambda kernel: {"LDG": 5 + 2 * tile_chunks(kernel), "STG": 2, "LDGSTS": 0},
    ),
    # Adds up at most a few hundred partial rows of fp32; a warp reads 32 neighbouring columns.
    "layer_norm_backward_group_sum_kernel": Expectation(),
    # Four rows at a time, and the bias once, all in 16 bytes.
    "bias_gelu_forward_kernel": Expectation(
        wide=lambda kernel: {} if is_scalar(kernel) else {"LDG": 4, "STG": 4},
        narrow=lambda kernel: None if is_scalar(kernel) else {"LDG": 0, "STG": 0},
    ),
    # Two rows of dy and x at a time; partial sums of dbias leave in 16 bytes too.
    "bias_gelu_backward_kernel": Expectation(
        wide=lambda kernel: {} if is_scalar(kernel) else {"LDG": 4, "STG": 3},
        narrow=lambda kernel: None if is_scalar(kernel) else {"LDG": 0, "STG": 0},
    ),
    "bias_gelu_backward_group_sum_kernel": Expectation(),
    # Two rows of x and residual at a time; the narrow loads are dropout's seed and offset.
    "bias_dropout_add_forward_kernel": Expectation(
        wide=lambda kernel: {} if is_scalar(kernel) else {"LDG": 2, "STG": 2},
        narrow=lambda kernel: (
            None if is_scalar(kernel) else {"LDG": 4 if drops(kernel) else 0, "STG": 0}
        ),
    ),
    # Four rows of dr at a time; partial sums of dbias leave in 16 bytes too.
    "bias_dropout_add_backward_kernel": Expectation(
        wide=lambda kernel: {} if is_scalar(kernel) else {"LDG": 4, "STG": 1},
        narrow=lambda kernel: (
            None if is_scalar(kernel) else {"LDG": 8 if drops(kernel) else 0, "STG": 0}
        ),
    ),
    "bias_dropout_add_backward_group_sum_kernel": Expectation(),
    # Two rows of gate and up at a time; backward reads dy too and writes two gradients.
    "swiglu_forward_kernel": Expectation(
        wide=lambda kernel: {} if is_scalar(kernel) else {"LDG": 4, "STG": 2},
        narrow=lambda kernel: None if is_scalar(kernel) else {"LDG": 0, "STG": 0},
    ),
    "swiglu_backward_kernel": Expectation(
        wide=lambda kernel: {} if is_scalar(kernel) else {"LDG": 6, "STG": 4},
        narrow=lambda kernel: None if is_scalar(kernel) else {"LDG": 0, "STG": 0},
    ),
    # Two heads at a time, of each one chunk or two; angles, which are small, come as they lie.
    "rotary_forward_kernel": Expectation(
        wide=lambda kernel: {} if is_scalar(kernel) else {"LDG": 2, "STG": 2},
        narrow=lambda kernel: None if is_scalar(kernel) else {"STG": 0},
    ),
    # Four loads on their way at a time and one more for the rest; elements before and behind the
    # 16-byte chunks of a row are taken one by one.
    "cross_entropy_forward_kernel": Expectation(wide=lambda kernel: {"LDG": 5}),
    # The same, each with its store, and a store for rows and columns without a gradient.
    "cross_entropy_backward_kernel": Expectation(wide=lambda kernel: {"LDG": 5, "STG": 6}),
    # Three loads on their way at a time when the row comes from memory; one for each later pass:
    # the id at temperature 0, the first bins, the ends of a bin, keys, the sum, the id. Elements at
    # both ends of a row are taken one by one.
    "sample_kernel": Expectation(wide=lambda kernel: {"LDG": 9}),
    # q and the first k before the loop, v and the next k in it; each operand of a product is read
    # from shared memory once, and out leaves in whole pieces.
    "attention_forward_kernel": Expectation(
        wide=lambda kernel: {
            "LDGSTS": (tile := AttentionTile.of(kernel)).pieces(tile.rows + 3 * tile.keys),
            "STG": tile.pieces(tile.rows),
        },
        exact=lambda kernel: {
            "HMMA": AttentionTile.of(kernel).forward_products(),
            "LDSM": AttentionTile.of(kernel).forward_matrix_loads(),
        },
    ),
    # Sorts a few thousand lengths at most, once for a whole pass.
    "attention_packed_order_kernel": Expectation(),
    # k and v once; q and dout before the loop and in it, with a piece of their statistics each. The
    # block's number alone waits for what an atomic answers.
    "attention_backward_kernel": Expectation(
        wide=lambda kernel: {
            "LDGSTS": (tile := BackwardTile.of(kernel)).pieces(2 * tile.keys + 4 * tile.queries)
            + 2,
            "STG": tile.pieces(2 * tile.keys),
        },
        exact=lambda kernel: {
            "HMMA": BackwardTile.of(kernel).products(),
            "LDSM": BackwardTile.of(kernel).matrix_loads(),
            "ATOMG": 1,
        },
    ),
    # q once; keys and values before the loop and in it. A new key and value are stored, and either
    # out or, in two pieces, sums for the combining kernel.
    "attention_decode_kernel": Expectation(
        wide=lambda kernel: {
            "LDGSTS": (tile := DecodeTile.of(kernel)).pieces(16 * tile.row_warps + 4 * tile.keys),
            "LDG": 2,
            "STG": 5,
        },
        exact=lambda kernel: {
            "HMMA": DecodeTile.of(kernel).products(),
            "LDSM": DecodeTile.of(kernel).matrix_loads(),
        },
    ),
    # Four sums of each of eight parts on their way together.
    "attention_decode_combine_kernel": Expectation(wide=lambda kernel: {"LDG": 8}),
    # out and dout once; 16 bytes of zeros for four sums.
    "attention_backward_prepare_kernel": Expectation(
        wide=lambda kernel: {"LDG": 2 * row_passes(kernel), "STG": 2 * row_passes(kernel)},
    ),
    # Eight sums for eight elements of dq.
    "attention_backward_finish_kernel": Expectation(
        wide=lambda kernel: {"LDG": 2 * row_passes(kernel), "STG": row_passes(kernel)},
    ),
}


def find_tool(name: str) -> str | None:
    """Path of one of NVIDIA's tools: on PATH, in CUDA_HOME, by nvcc or in a Python package."""
    places = [os.environ.get("PATH", "")]
    if "CUDA_HOME" in os.environ:
        places.append(str(Path(os.environ["CUDA_HOME"], "bin")))
    nvcc = shutil.which("nvcc")
    if nvcc is not None:
        places.append(str(Path(nvcc).resolve().parent))
    namespace = importlib.util.find_spec("nvidia")
    if namespace is not None and namespace.submodule_search_locations is not None:
        for location in namespace.submodule_search_locations:
            places += [str(path) for path in sorted(Path(location).glob("*/bin"))]
    return shutil.which(name, path=os.pathsep.join(places))


def run_cuobjdump(*arguments: str) -> str:
    """Output of cuobjdump, which itself finds nvdisasm on PATH."""
    tool = find_tool("cuobjdump")
    disassembler = find_tool("nvdisasm")
    assert tool is not None
    assert disassembler is not None
    path = os.pathsep.join([str(Path(disassembler).parent), os.environ.get("PATH", "")])
    return subprocess.run(
        [tool, *arguments],
        env={**os.environ, "PATH": path},
        check=True,
        capture_output=True,
        text=True,
    ).stdout


def split_arguments(text: str) -> tuple[str, ...]:
    """Splits "float, Tile<4, 32>" at the commas outside angle brackets, without namespaces."""
    parts = [""]
    depth = 0
    for character in text:
        depth += {"<": 1, ">": -1}.get(character, 0)
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return tuple(re.sub(r"\w+::", "", part).strip() for part in parts)


def demangle(symbols: list[str]) -> list[tuple[str, tuple[str, ...]]]:
    """Name and template arguments of each mangled kernel symbol, by c++filt."""
    output = subprocess.run(
        ["c++filt"], input="\n".join(symbols), check=True, capture_output=True, text=True
    ).stdout
    result = []
    for line in output.splitlines():
        signature = re.match(r"(?:void )?(?:\w+::)*(\w+)(?:<(.*)>)?\(", line)
        assert signature is not None, f"not a kernel's signature: {line}"
        result.append((signature[1], split_arguments(signature[2] or "")))
    return result


def only(architecture: str | None) -> list[str]:
    """Arguments that restrict cuobjdump to e.g. "sm_80"; a cubin (None) holds one architecture."""
    return [] if architecture is None else ["-arch", architecture]


def resource_usage(library: Path, architecture: str | None) -> list[Kernel]:
    """Registers, stack and local memory of every kernel in a library or cubin."""
    output = run_cuobjdump("-res-usage", *only(architecture), str(library))
    pattern = r"Function (\S+):\s+REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)"
    found = re.findall(pattern, output)
    names = demangle([symbol for symbol, *_ in found])
    return [
        Kernel(symbol, name, arguments, int(registers), int(stack), int(local))
        for (symbol, registers, stack, local), (name, arguments) in zip(found, names, strict=True)
    ]


def launch_bounds(library: Path, architecture: str) -> dict[str, tuple[int, int]]:
    """Threads a block and blocks a multiprocessor that each kernel symbol was compiled for.

    From the PTX in `library`, so `architecture` must have been built with +PTX.
    """
    output = run_cuobjdump("-ptx", "-arch", architecture, str(library))
    pattern = r"\.entry (\w+)\((?:[^{]*?)\)\s*\.maxntid (\d+), 1, 1\s*(?:\.minnctapersm (\d+))?"
    return {
        symbol: (int(threads), int(blocks or 1))
        for symbol, threads, blocks in re.findall(pattern, output)
    }


def machine_code(library: Path, architecture: str | None) -> dict[str, Counter[str]]:
    """How often each opcode, such as LDG.E.128, occurs in each kernel symbol.

    A kernel that several translation units instantiate is counted once.
    """
    opcodes: dict[str, Counter[str]] = {}
    dump = run_cuobjdump("-sass", *only(architecture), str(library))
    for part in dump.split("Function : ")[1:]:
        symbol, _, listing = part.partition("\n")
        opcodes[symbol.strip()] = opcodes_of(listing)
    return opcodes


def opcodes_of(listing: str) -> Counter[str]:
    """How often each opcode occurs in a kernel's listing by cuobjdump."""
    return Counter(_INSTRUCTION.findall(listing))


def access_bits(opcode: str) -> int:
    """Width of a memory instruction by its suffix, as in LDG.E.128; 32 where there is none."""
    for part in reversed(opcode.split(".")):
        if part in ("64", "128"):
            return int(part)
        if part in ("U8", "S8", "U16", "S16"):
            return int(part[1:])
    return 32


def accesses(opcodes: Counter[str], kind: str) -> Counter[int]:
    """How many instructions of a kind (LDG, STG, LDGSTS, ...) there are of each width in bits."""
    widths: Counter[int] = Counter()
    for opcode, count in opcodes.items():
        if opcode.split(".")[0] == kind:
            widths[access_bits(opcode)] += count
    return widths


def faults_in_resources(kernel: Kernel, bounds: tuple[int, int]) -> list[str]:
    """One sentence for each thing that is wrong with a kernel's registers and memory."""
    faults = []
    if kernel.stack_bytes or kernel.local_bytes:
        faults.append(
            f"{kernel} keeps {kernel.stack_bytes} bytes of stack and {kernel.local_bytes} of local "
            "memory a thread; everything must stay in registers"
        )
    threads, blocks = bounds
    rounded = -(-kernel.registers // REGISTER_GRANULARITY) * REGISTER_GRANULARITY
    if rounded * threads * blocks > REGISTERS_PER_MULTIPROCESSOR:
        faults.append(
            f"{kernel} takes {kernel.registers} registers a thread; {blocks} blocks of {threads} "
            f"threads need at most {REGISTERS_PER_MULTIPROCESSOR // (threads * blocks)}"
        )
    return faults


def faults_in_code(kernel: Kernel, opcodes: Counter[str]) -> list[str]:
    """One sentence for each thing that is wrong with a kernel's memory instructions."""
    expectation = EXPECTATIONS[kernel.name]
    faults = []
    for kind, least in expectation.wide(kernel).items():
        found = accesses(opcodes, kind)[128]
        if found < least:
            faults.append(f"{kernel} has {found} 16-byte {kind}, expected at least {least}")
    for kind, expected in expectation.exact(kernel).items():
        found = sum(accesses(opcodes, kind).values())
        if found != expected:
            faults.append(f"{kernel} has {found} {kind}, expected {expected}")
    narrow = expectation.narrow(kernel)
    if narrow is not None:
        sizes = [ELEMENT_BYTES[name] for name in kernel.arguments[:2] if name in ELEMENT_BYTES]
        chunk_bits = 128 * sizes[0] // sizes[-1]
        for kind, most in narrow.items():
            widths = accesses(opcodes, kind)
            found = sum(count for bits, count in widths.items() if bits < chunk_bits)
            if found > most:
                faults.append(
                    f"{kernel} has {found} {kind} narrower than {chunk_bits} bits, "
                    f"expected at most {most}"
                )
    return faults
