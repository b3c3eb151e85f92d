"""Writes the tables of machine code into docs/attention.md: what the main loops consist of.

    python tools/attention_table.py

Needs a build with kernels for sm_80 and sm_90a, and NVIDIA's cuobjdump and nvdisasm; no GPU.
"""

import re
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import kernel_reports as reports  # noqa: E402  (found through the path above)
from llmjp_ext import _library  # noqa: E402

PAGE = ROOT / "docs" / "attention.md"
BEGIN, END = "<!-- machine code -->", "<!-- end of machine code -->"
NAMES = {
    "attention_forward_kernel": "forward",
    "attention_backward_kernel": "backward",
    "attention_decode_kernel": "decode",
}
ARCHITECTURES = {"sm_80": "A100", "sm_90a": "H100"}

# What the parts of a loop are called, and the opcodes of each.
CLASSES = {
    "HMMA": ("HMMA",),
    "shared memory": ("LDSM", "LDGSTS", "LDS", "STS"),
    "exponentials": ("MUFU",),
    "other floating point": ("FADD", "FMUL", "FFMA", "FMNMX", "FSEL", "FSETP", "F2FP", "HADD2"),
    "integer": (
        "IADD3",
        "IMAD",
        "IABS",
        "IMNMX",
        "ISETP",
        "LEA",
        "LOP3",
        "SEL",
        "SHF",
        "PRMT",
        "PLOP3",
        "VIADD",
        "I2F",
        "I2FP",
        "UIADD3",
        "UIMAD",
        "ULEA",
        "ULOP3",
        "USHF",
        "UISETP",
        "USEL",
        "UMOV",
    ),
}
OTHERS = "moves, control, global memory"
STACK_LOADS, STACK_STORES = "LDL", "STL"
COLUMNS = (*CLASSES, OTHERS)


# Bytes of stack that ptxas, short of registers, gives a kernel for sm_90a, by name and tile.
HOPPER_STACK = {
    ("attention_forward_kernel", "ForwardTile<128, 128, 64, 4, 2>"): 56,
    ("attention_forward_kernel", "ForwardTile<128, 128, 32, 4, 2>"): 48,
    ("attention_backward_kernel", "BackwardTile<64, 128, 4, 1, 32, 2, 2>"): 32,
    ("attention_backward_kernel", "BackwardTile<128, 128, 8, 1, 64, 2, 1>"): 16,
}


class Instruction(NamedTuple):
    """One instruction: its address, its opcode without modifiers, and where it may jump to."""

    address: int
    opcode: str
    target: int | None
    conditional: bool


class Loop(NamedTuple):
    """The instructions of a main loop, by class.

    `skipped` are those that a jump passes over in steps that need no mask; they are in `counts`,
    too.
    """

    counts: Counter[str]
    skipped: int

    @property
    def total(self) -> int:
        return sum(self.counts.values())


_INSTRUCTION = re.compile(
    r"\s+/\*([0-9a-f]{4,})\*/\s+(@!?U?P\w+\s+)?([A-Z][A-Z0-9_]*)((?:\.[A-Z0-9_]+)*)([^;]*);"
)
_TARGET = re.compile(r"^\s*(!?U?P\w+,\s*)?(0x[0-9a-f]+)\s*$")


def instructions(listing: Sequence[str]) -> list[Instruction]:
    """The instructions of a kernel's listing by cuobjdump -sass."""
    found = []
    for line in listing:
        match = _INSTRUCTION.match(line)
        if match is None:
            continue
        address, predicate, opcode, modifiers, operands = match.groups()
        # IMAD.MOV and its like copy a register in the multiplier's place.
        opcode = "MOV" if opcode == "IMAD" and ".MOV" in modifiers else opcode
        jump = _TARGET.match(operands) if opcode == "BRA" else None
        target = int(jump[2], 16) if jump else None
        conditional = predicate is not None or bool(jump and jump[1])
        found.append(Instruction(int(address, 16), opcode, target, conditional))
    return found


def main_loop(kernel: Sequence[Instruction]) -> list[Instruction]:
    """The loop with the most tensor-core products, and of equal ones the shortest."""
    best: tuple[int, int] = (0, 0)
    inside: list[Instruction] = []
    for jump in kernel:
        if jump.target is None or jump.target > jump.address:
            continue
        body = [i for i in kernel if jump.target <= i.address <= jump.address]
        worth = sum(i.opcode == "HMMA" for i in body), -len(body)
        if worth > best:
            best, inside = worth, body
    return inside


def passed_over(loop: Sequence[Instruction]) -> int:
    """Instructions behind conditional jumps without products and copies: masks and formulas."""
    skipped: set[int] = set()
    for jump in loop:
        if jump.target is None or not jump.conditional or jump.target <= jump.address:
            continue
        behind = [i for i in loop if jump.address < i.address < jump.target]
        if not any(i.opcode in ("HMMA", "LDGSTS", "LDSM") for i in behind):
            skipped |= {i.address for i in behind}
    return len(skipped)


def summary(kernel: Sequence[Instruction]) -> Loop:
    """A kernel's main loop, counted."""
    loop = main_loop(kernel)
    classes = {opcode: name for name, opcodes in CLASSES.items() for opcode in opcodes}
    classes |= {opcode: opcode for opcode in (STACK_LOADS, STACK_STORES)}
    counts = Counter(classes.get(i.opcode, OTHERS) for i in loop)
    return Loop(counts, passed_over(loop))


def listings(library: Path, architecture: str, symbols: Sequence[str]) -> dict[str, list[str]]:
    """Listings of some kernels by their symbols."""
    found: dict[str, list[str]] = {}
    chosen = ("-sass", "-arch", architecture, "-fun", ",".join(symbols))
    for line in reports.run_cuobjdump(*chosen, str(library)).splitlines():
        if "Function : " in line:
            lines = found.setdefault(line.split("Function : ")[1].strip(), [])
        elif found:
            lines.append(line)
    return found


def hopper_stack(kernel: reports.Kernel) -> int:
    """Bytes of stack that a kernel may have for sm_90a."""
    return HOPPER_STACK.get((kernel.name, "".join(kernel.arguments[1:2])), 0)


def is_tabled(kernel: reports.Kernel) -> bool:
    """Whether a kernel has a row: bfloat16, without formulas; packed ones of one head dimension."""
    if kernel.name not in NAMES or kernel.arguments[0] != "bfloat16":
        return False
    if kernel.name == "attention_decode_kernel":
        return True
    packed = kernel.arguments[3] != "Schedule"
    return kernel.arguments[2] == "false" and (not packed or "Tile<128," in kernel.arguments[1])


def loops(library: Path, architecture: str) -> list[tuple[reports.Kernel, Loop]]:
    """The kernels that have a row, with their main loops."""
    kernels = [k for k in reports.resource_usage(library, architecture) if is_tabled(k)]
    code = listings(library, architecture, [kernel.symbol for kernel in kernels])
    return [(kernel, summary(instructions(code[kernel.symbol]))) for kernel in kernels]


def row(kernel: reports.Kernel, gpu: str, loop: Loop) -> str:
    """A line of the table."""
    tile = re.search(r"<([\d, ]+)>", kernel.arguments[1])
    assert tile is not None
    sizes = [int(number) for number in tile[1].split(",")]
    name = f"{NAMES[kernel.name]}, head_dim {sizes[0]}"
    if kernel.arguments[-1].startswith("Packed"):
        name += ", packed"
    if kernel.name == "attention_decode_kernel":
        name += f", {16 * sizes[1]} rows"
    parts = [f"{loop.counts[c]} ({loop.counts[c] / loop.total:.0%})" for c in COLUMNS]
    spilled = loop.counts[STACK_LOADS] + loop.counts[STACK_STORES]
    figures = (kernel.registers, kernel.stack_bytes, loop.total, *parts, spilled, loop.skipped)
    return f"| {name} | {gpu} | {' | '.join(map(str, figures))} |"


def table(library: Path) -> list[str]:
    """The lines of the table, its heading first."""
    heads = ("loop of", "GPU", "registers", "stack, bytes", "all", *COLUMNS, "stack", "jumped over")
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    rows = []
    for architecture, gpu in ARCHITECTURES.items():
        for kernel, loop in loops(library, architecture):
            head_dim = int(re.findall(r"\d+", kernel.arguments[1])[0])
            place = (gpu, list(NAMES).index(kernel.name), head_dim)
            rows.append((*place, row(kernel, gpu, loop)))
    return lines + [line for *_, line in sorted(rows)]


def page(text: str, library: Path) -> str:
    """The page with the table in its place."""
    before, rest = text.split(BEGIN)
    _, behind = rest.split(END)
    made_by = (
        f"Compiled by nvcc {_library.build_info()['nvcc']}; written by `tools/attention_table.py`."
    )
    return "\n".join([before + BEGIN, made_by, "", *table(library), "", END + behind])


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8"), _library.LIBRARY_PATH), encoding="utf-8")
    print(f"wrote {PAGE.relative_to(ROOT)}")
