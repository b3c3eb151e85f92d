"""The structure that docs/DESIGN.md draws, read from the sources themselves.

Who may include and import whom, where assembly may stand, one name for one thing, and file sizes.
Rules are first shown to reject a planted offence, so that a rule that matches nothing cannot pass.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CSRC = ROOT / "csrc"
MOST_LINES = 600

FAMILIES = {"attention", "norm", "activation", "cross_entropy", "sampling", "rotary", "linear"}
# What each room may include besides itself. device and host turn to simt only under LLMJP_SIMT.
ROOMS: dict[str, set[str]] = {
    "device": {"simt"},
    "host": {"simt"},
    "simt": set(),
    "tokenizer": {"host"},
    "bindings": {"host", "tokenizer", *FAMILIES},
    "tests": {"device", "simt", "host", "tokenizer", *FAMILIES},
    **{family: {"host"} for family in FAMILIES},
}
STABLE_HEADERS = re.compile(r"torch/(csrc/stable|headeronly)/")
FOREIGN_HEADERS = re.compile(r"(torch|ATen|c10|caffe2)/|Python\.h|pybind11/")
CUDA_HEADERS = re.compile(r"cuda\w*\.h$")


def sources(folder: Path, *suffixes: str) -> list[Path]:
    """Source files below a folder, by suffix."""
    return sorted(path for path in folder.rglob("*") if path.suffix in suffixes)


def include_faults(path: str, text: str) -> list[str]:
    """Forbidden includes and assembly of one C++ file; `path` is relative to csrc/."""
    room, _, _ = path.partition("/")
    allowed = ROOMS[room] | {room}
    if room in FAMILIES and path.endswith(".cuh"):
        allowed = allowed | {"device"}
    faults = []
    for header in re.findall(r'^\s*#\s*include\s*"([^"]+)"', text, re.MULTILINE):
        target, slash, _ = header.partition("/")
        if not slash:
            if not (room == "bindings" and header == "build_info.h"):
                faults.append(f"{path} includes {header}: paths start at csrc/")
        elif target not in allowed:
            faults.append(f"{path} includes {header}: {room} may include {sorted(allowed)}")
        elif room == "bindings" and header.endswith(".cuh"):
            faults.append(f"{path} includes {header}: bindings see launchers, not kernels")
    for header in re.findall(r"^\s*#\s*include\s*<([^>]+)>", text, re.MULTILINE):
        if room == "bindings" and STABLE_HEADERS.match(header):
            continue
        if FOREIGN_HEADERS.match(header):
            if not path.startswith("tokenizer/python") or header.startswith("torch"):
                faults.append(f"{path} includes <{header}>: only bindings see torch's stable ABI")
        elif CUDA_HEADERS.search(header) and room not in ("device", "host"):
            faults.append(f"{path} includes <{header}>: CUDA's headers belong to device and host")
    # simt's switch between fibers and the CPU's vectors are assembly of the host, which no kernel
    # sees.
    host_assembly = room == "simt" or path == "host/cpu_vector.h"
    if re.search(r"\basm\b", text) and room != "device" and not host_assembly:
        faults.append(f"{path} contains asm: instructions have their wrappers in csrc/device")
    return faults


def imported_modules(text: str) -> Iterator[str]:
    """Every module that a Python file imports anywhere, and what it takes from packages."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module or ''}.{alias.name}" for alias in node.names)


def import_faults(path: str, text: str) -> list[str]:
    """Forbidden imports of one Python file; `path` is relative to the checkout."""
    faults = []
    for module in imported_modules(text):
        top = module.split(".")[0]
        if path.startswith("llmjp_ext/"):
            if top in ("llmjp", "deepspeed"):
                faults.append(f"{path} imports {module}: llmjp_ext stands alone")
            elif top in ("transformers", "peft") and "/integrations/" not in path:
                faults.append(f"{path} imports {module}: only llmjp_ext/integrations may")
        elif path.startswith("python/llmjp/") and re.match(r"llmjp_ext\.(_(?!_)|ops\b)", module):
            faults.append(f"{path} imports {module}: llmjp uses the public API of llmjp_ext")
    if path.startswith("python/llmjp/") and "torch.ops.llmjp_ext" in text:
        faults.append(f"{path} calls torch.ops.llmjp_ext: that is llmjp_ext's own door")
    return faults


def op_modules() -> list[str]:
    """Stems of the public ops: the modules of llmjp_ext/ops."""
    return sorted(
        path.stem
        for path in (ROOT / "llmjp_ext" / "ops").glob("*.py")
        if not path.stem.startswith("_")
    )


def schema_names() -> list[str]:
    """Names of the ops that csrc/bindings/ops.cpp defines."""
    text = (CSRC / "bindings" / "ops.cpp").read_text()
    return re.findall(r'def\(\s*"(\w+)\(', text)


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("device/vector.h", '#include "host/launch.h"'),
        ("norm/layer_norm.h", '#include "device/vector.h"'),
        ("norm/layer_norm.cuh", '#include "attention/tile.h"'),
        ("host/launch.h", "#include <torch/csrc/stable/tensor.h>"),
        ("bindings/norm.cpp", "#include <torch/extension.h>"),
        ("bindings/norm.cpp", "#include <ATen/ATen.h>"),
        ("bindings/norm.cpp", '#include "norm/layer_norm_launch.cuh"'),
        ("bindings/norm.cpp", '#include "device/vector.h"'),
        ("norm/layer_norm.cpp", "#include <cuda_runtime.h>"),
        ("tokenizer/unigram.cpp", "#include <pybind11/pybind11.h>"),
        ("tokenizer/python.cpp", "#include <torch/csrc/stable/tensor.h>"),
        ("norm/layer_norm.cuh", 'asm volatile("bar.sync 0;");'),
        ("norm/layer_norm.h", '#include "layer_norm_plan.h"'),
    ],
)
def test_planted_includes_are_rejected(path: str, text: str) -> None:
    """Each kind of forbidden include, and assembly in a kernel, is one fault."""
    assert len(include_faults(path, text)) == 1


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("llmjp_ext/ops/layer_norm.py", "import llmjp.model"),
        ("llmjp_ext/nn.py", "def f():\n    from transformers import GPT2Model"),
        ("llmjp_ext/nn.py", "import deepspeed"),
        ("python/llmjp/model.py", "from llmjp_ext import _library"),
        ("python/llmjp/model.py", "from llmjp_ext.ops import layer_norm"),
        ("python/llmjp/model.py", "import torch\ntorch.ops.llmjp_ext.layer_norm_fwd"),
    ],
)
def test_planted_imports_are_rejected(path: str, text: str) -> None:
    """Each kind of forbidden import is one fault, wherever in the file it stands."""
    assert len(import_faults(path, text)) == 1


def test_rooms_include_only_what_they_may() -> None:
    """torch only in bindings and only its stable ABI, no family another, no stray asm."""
    files = sources(CSRC, ".h", ".cuh", ".cpp")
    assert files
    rooms = {path.relative_to(CSRC).parts[0] for path in files}
    assert rooms <= set(ROOMS), f"rooms without a rule: {sorted(rooms - set(ROOMS))}"
    faults: list[str] = []
    for path in files:
        faults += include_faults(path.relative_to(CSRC).as_posix(), path.read_text())
    assert not faults, "\n".join(faults)


def test_packages_import_only_what_they_may() -> None:
    """llmjp_ext imports neither llmjp nor DeepSpeed; llmjp uses llmjp_ext's public names alone."""
    files = sources(ROOT / "llmjp_ext", ".py") + sources(ROOT / "python" / "llmjp", ".py")
    faults: list[str] = []
    for path in files:
        faults += import_faults(path.relative_to(ROOT).as_posix(), path.read_text())
    assert not faults, "\n".join(faults)


def schema_faults(schemas: list[str], stems: list[str]) -> list[str]:
    """Schemas whose names break the rule.

    An op with a backward has <stem>_fwd and <stem>_bwd, an op without one has its stem alone; there
    may be more of either with add_ before or _inplace behind.
    """
    faults = []
    for schema in schemas:
        owner = re.fullmatch(r"(?:add_)?(\w+?)(?:_(fwd|bwd))?(?:_inplace)?", schema)
        assert owner is not None
        stem, direction = owner.groups()
        if stem not in stems:
            faults.append(f"{schema} has no module llmjp_ext/ops/{stem}.py")
        elif direction is None and f"{stem}_fwd" in schemas:
            faults.append(f"{schema} is neither {stem}_fwd nor {stem}_bwd")
        elif direction is not None and not {f"{stem}_fwd", f"{stem}_bwd"} <= set(schemas):
            faults.append(f"{schema} is half of a pair: without a backward it is called {stem}")
    return faults


def test_planted_schemas_are_rejected() -> None:
    """A schema without its module, a lone direction, and a name beside a pair."""
    stems = ["norm", "draw"]
    good = ["norm_fwd", "norm_bwd", "add_norm_fwd", "norm_bwd_inplace", "draw", "draw_inplace"]
    assert not schema_faults(good, stems)
    for planted in ("other_fwd", "other", "draw_fwd", "norm", "norm_sideways"):
        assert len(schema_faults([*good, planted], stems)) >= 1, planted


def test_one_stem_names_one_thing() -> None:
    """Every schema has its op module; every op has its reference, test, page and benchmark."""
    stems = op_modules()
    assert stems
    faults = schema_faults([name for name in schema_names() if name != "build_info"], stems)
    assert not faults, "\n".join(faults)
    for stem in stems:
        for place in (
            f"llmjp_ext/reference/{stem}.py",
            f"tests/test_{stem}.py",
            f"docs/{stem}.md",
            f"benchmarks/{stem}.py",
        ):
            assert (ROOT / place).exists(), f"the op {stem} lacks {place}"


def test_kernels_are_named_after_their_op() -> None:
    """A kernel's name starts with the stem of the header that it is declared through."""
    headers = {path.stem for path in sources(CSRC, ".h") if path.parent.name in FAMILIES}
    found = 0
    for path in sources(CSRC, ".cuh"):
        for name in re.findall(r"\b(\w+_kernel)\(\w", path.read_text()):
            found += 1
            assert any(name.startswith(stem) for stem in headers), f"{path.name}: {name}"
    assert found


def test_files_stay_short() -> None:
    """No source file of the project has more than 600 lines."""
    suffixes = (".h", ".cuh", ".cpp", ".py", ".pyi", ".cmake", ".sh")
    folders = ("csrc", "cmake", "llmjp_ext", "python", "tests", "benchmarks", "tools")
    files = [path for folder in folders for path in sources(ROOT / folder, *suffixes)]
    assert files
    long = {
        path.relative_to(ROOT).as_posix(): count
        for path in files
        if (count := len(path.read_text().splitlines())) > MOST_LINES
    }
    assert not long, long


def test_nothing_is_left_for_later() -> None:
    """No unfinished-work marks in the sources: what is open stands in the issues."""
    marks = re.compile("|".join([r"\bTO" + r"DO\b", r"\bFIX" + r"ME\b", r"\bX" + r"XX\b"]))
    assert marks.search("// TO" + "DO: later")
    folders = ("csrc", "cmake", "llmjp_ext", "python", "tests", "benchmarks", "tools")
    suffixes = (".h", ".cuh", ".cpp", ".py", ".pyi", ".cmake", ".sh")
    offenders = [
        path.relative_to(ROOT).as_posix()
        for folder in folders
        for path in sources(ROOT / folder, *suffixes)
        if marks.search(path.read_text())
    ]
    assert not offenders, offenders
