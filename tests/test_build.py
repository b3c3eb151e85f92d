"""The build: what the native library asks of torch, how builds fail, and what the report says."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from llmjp_ext import __main__ as report
from llmjp_ext import _library, _version

ROOT = Path(__file__).resolve().parents[1]
TORCH_INCLUDE = Path(torch.__file__).parent / "include"
# Libraries that every Linux with a C++ runtime has, and the one of torch.
ALLOWED_LIBRARIES = re.compile(
    r"lib(torch_cpu|c|m|dl|rt|pthread|stdc\+\+|gcc_s)\.so(\.\d+)?|ld-linux.*\.so\.\d+"
)
# What bindings may name of torch: read in the headers of 2.11, which a GPU machine may have.
HEADERS_OF_2_11 = {
    "<torch/csrc/stable/accelerator.h>",
    "<torch/csrc/stable/library.h>",
    "<torch/csrc/stable/ops.h>",
    "<torch/csrc/stable/tensor.h>",
}
MACROS_OF_2_11 = {
    "AOTI_TORCH_SUCCESS",
    "STABLE_TORCH_LIBRARY",
    "STABLE_TORCH_LIBRARY_IMPL",
    "TORCH_ABI_VERSION",
    "TORCH_BOX",
    "TORCH_ERROR_CODE_CHECK",
}
RUNTIME_VERSION = re.compile(r"@(GLIBC|GLIBCXX|CXXABI|GCC)_[\d.]+$")


def compiler() -> str:
    """The C++ compiler that the build takes too."""
    found = shutil.which(os.environ.get("CXX", "c++"))
    if found is None:
        pytest.skip("no C++ compiler on PATH")
    return found


def functions_of_torch(target: str) -> set[str]:
    """C functions that torch's stable headers declare for TORCH_TARGET_VERSION `target`.

    The compiler's preprocessor evaluates the version guards, so this is torch's own word.
    """
    output = subprocess.run(
        [
            *(compiler(), "-E", "-P", "-x", "c++", "-std=c++20", f"-I{TORCH_INCLUDE}"),
            *(f"-DTORCH_TARGET_VERSION={target}", "-"),
        ],
        input="#include <torch/csrc/stable/c/shim.h>\n",
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    return set(re.findall(r"\b((?:aoti_)?torch_\w+)\s*\(", output))


def undefined_symbols(library: Path) -> tuple[set[str], set[str]]:
    """Undefined symbols of a library: those it must find, and the weak ones it may miss."""
    if shutil.which("nm") is None:
        pytest.skip("nm not found (binutils)")
    output = subprocess.run(
        ["nm", "-D", "--undefined-only", str(library)], check=True, capture_output=True, text=True
    ).stdout
    needed: set[str] = set()
    weak: set[str] = set()
    for line in output.splitlines():
        kind, name = line.split()[:2]
        (weak if kind in "wv" else needed).add(name)
    return needed, weak


def configure(
    folder: Path, path: str, *options: str, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Runs CMake's configuration of this project with only `path` as PATH; output in one stream."""
    cmake = shutil.which("cmake", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    ninja = shutil.which("ninja", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if cmake is None or ninja is None:
        pytest.skip("cmake or ninja not found")
    kept = {
        name: value
        for name, value in os.environ.items()
        if name not in ("CXX", "CC", "CUDACXX", "CUDA_HOME", "CUDA_PATH", "TORCH_CUDA_ARCH_LIST")
        and not name.endswith("_COMPILER_LAUNCHER")
    }
    return subprocess.run(
        [
            *(cmake, "-S", str(ROOT), "-B", str(folder), "-G", "Ninja"),
            *(f"-DCMAKE_MAKE_PROGRAM={ninja}", f"-DLLMJP_PYTHON={sys.executable}", *options),
        ],
        env={**kept, "PATH": path, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )


def reason(result: subprocess.CompletedProcess[str]) -> str:
    """The one sentence in which a configuration says why it stopped; there must be exactly one."""
    assert result.returncode != 0, result.stdout
    lines = [line for line in result.stdout.splitlines() if line.startswith("llmjp_ext: ")]
    assert len(lines) == 1, result.stdout
    return lines[0].removeprefix("llmjp_ext: ")


@pytest.fixture
def host_tools(tmp_path: Path) -> str:
    """A PATH with the host compiler's programs and the shell's, but without nvcc."""
    folder = tmp_path / "host tools"
    folder.mkdir()
    for name in ("c++", "g++", "cc", "gcc", "as", "ld", "ar", "ranlib", "nm", "sh", "uname"):
        program = shutil.which(name)
        if program is not None:
            (folder / name).symlink_to(program)
    return str(folder)


def test_library_needs_only_what_torch_2_11_offers() -> None:
    """Every undefined symbol of _ops.so is a C function of torch 2.11 or of the C++ runtime."""
    offered = functions_of_torch("0x020b000000000000")
    newer = functions_of_torch("0x020d000000000000") - offered
    assert "torch_library_set_python_module" in newer, "the guards of torch's headers were not read"
    needed, weak = undefined_symbols(_library.LIBRARY_PATH)
    from_torch = {name for name in needed if name in offered or "torch" in name or "c10" in name}
    assert "torch_library_impl" in from_torch
    assert from_torch <= offered, f"not in torch 2.11: {sorted(from_torch - offered)}"
    others = {name for name in needed - from_torch if not RUNTIME_VERSION.search(name)}
    assert not others, f"neither torch's nor the runtime's: {sorted(others)}"
    unknown = {name for name in weak if not RUNTIME_VERSION.search(name)}
    assert unknown <= {"_ITM_deregisterTMCloneTable", "_ITM_registerTMCloneTable", "__gmon_start__"}


def test_bindings_name_only_what_headers_of_2_11_have() -> None:
    """The sources compile with torch 2.11, whose headers lack macros that later ones define.

    The guards of a later torch's headers hide newer functions, but not newer macros and headers.
    """
    text = "\n".join(path.read_text() for path in (ROOT / "csrc" / "bindings").iterdir())
    headers = set(re.findall(r"<torch/[^>]*>", text))
    macros = set(re.findall(r"\b(?:[A-Z]+_)*TORCH_[A-Z_]+\b", text))
    assert headers <= HEADERS_OF_2_11, f"not in torch 2.11: {sorted(headers - HEADERS_OF_2_11)}"
    assert macros <= MACROS_OF_2_11, f"not in torch 2.11: {sorted(macros - MACROS_OF_2_11)}"


def test_library_links_only_torch_and_the_runtime() -> None:
    """_ops.so names libtorch_cpu and the C++ runtime; no CUDA, no Python, no search path."""
    if shutil.which("readelf") is None:
        pytest.skip("readelf not found (binutils)")
    output = subprocess.run(
        ["readelf", "-d", str(_library.LIBRARY_PATH)], check=True, capture_output=True, text=True
    ).stdout
    libraries = re.findall(r"\(NEEDED\).*\[(.*)\]", output)
    assert "libtorch_cpu.so" in libraries
    assert all(ALLOWED_LIBRARIES.fullmatch(name) for name in libraries), libraries
    assert "RPATH" not in output
    assert "RUNPATH" not in output


def test_cuda_without_nvcc_is_one_clear_sentence(tmp_path: Path, host_tools: str) -> None:
    """LLMJP_CUDA=ON never becomes a CPU build in silence."""
    result = configure(tmp_path / "tree", host_tools, "-DLLMJP_CUDA=ON")
    assert re.match(r"LLMJP_CUDA=ON asks for CUDA .*nvcc was not found .*\.$", reason(result))


def test_build_without_nvcc_is_a_cpu_build(tmp_path: Path, host_tools: str) -> None:
    """LLMJP_CUDA=AUTO configures without nvcc, says so, and leaves no CUDA source in the build."""
    tree = tmp_path / "tree with spaces"
    result = configure(tree, host_tools, "-DLLMJP_CUDA=AUTO", "-DLLMJP_TESTS=ON")
    assert result.returncode == 0, result.stdout
    assert "CUDA kernels: none (nvcc not found" in result.stdout
    assert ".cu" not in re.findall(r"\.\w+", (tree / "compile_commands.json").read_text())


def test_missing_compiler_is_one_clear_sentence(tmp_path: Path) -> None:
    """With no C++ compiler on PATH the sentence says what to install."""
    empty = tmp_path / "empty"
    empty.mkdir()
    result = configure(tmp_path / "tree", str(empty))
    assert re.match(r"no working C\+\+ compiler was found; install .*\.$", reason(result))


@pytest.mark.parametrize(
    ("architectures", "sentence"),
    [
        ("Ampere", 'TORCH_CUDA_ARCH_LIST holds "Ampere"; supported are entries such as 8.0'),
        ("7.5;8.0", "TORCH_CUDA_ARCH_LIST asks for 7.5; the kernels need compute capability 8.0"),
    ],
)
def test_unusable_architectures_are_one_clear_sentence(
    tmp_path: Path, architectures: str, sentence: str
) -> None:
    """TORCH_CUDA_ARCH_LIST is checked entry by entry, before anything is compiled."""
    nvcc = tmp_path / "nvcc"
    nvcc.write_text("#!/bin/sh\nexit 1\n")
    nvcc.chmod(0o755)
    result = configure(
        tmp_path / "tree",
        os.environ["PATH"],
        CUDACXX=str(nvcc),
        TORCH_CUDA_ARCH_LIST=architectures,
    )
    assert reason(result).startswith(sentence)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("", "80-real;80-virtual;90a-real"),
        ("8.0", "80-real"),
        ("8.0 8.6+PTX", "80-real;86-real;86-virtual"),
        ("9.0a;10.0", "90a-real;100-real"),
    ],
)
def test_architectures_are_translated(tmp_path: Path, given: str, expected: str) -> None:
    """TORCH_CUDA_ARCH_LIST, with spaces or semicolons, becomes CMAKE_CUDA_ARCHITECTURES."""
    script = tmp_path / "translate.cmake"
    languages = (ROOT / "cmake" / "languages.cmake").read_text()
    functions = re.findall(r"^function\(.*?^endfunction\(\)", languages, re.MULTILINE | re.DOTALL)
    default = re.search(r'set\(LLMJP_ARCHS "([^"$]+)"\)', languages)
    assert default is not None
    script.write_text(
        "\n".join(functions)
        + f'\nllmjp_cuda_architectures("{given or default[1]}" result)\nmessage("${{result}}")\n'
    )
    cmake = shutil.which("cmake", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if cmake is None:
        pytest.skip("cmake not found")
    result = subprocess.run([cmake, "-P", str(script)], capture_output=True, text=True, check=True)
    assert result.stderr.strip() == expected


def test_build_against_an_old_torch_is_one_clear_sentence(tmp_path: Path, host_tools: str) -> None:
    """The build refuses a torch older than the stable ABI in use, and names both versions."""
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").touch()
    metadata = tmp_path / "torch-2.9.1.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: torch\nVersion: 2.9.1\n")
    result = configure(tmp_path / "tree", host_tools, "-DLLMJP_CUDA=OFF", PYTHONPATH=str(tmp_path))
    assert re.match(
        r"torch 2\.9\.1 is installed .*; torch 2\.11 or newer is needed\.", reason(result)
    )


def test_build_without_torch_is_one_clear_sentence() -> None:
    """A Python without torch (here: without site-packages) is told what to install."""
    result = subprocess.run(
        [sys.executable, "-I", "-S", str(ROOT / "cmake" / "python_facts.py")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 1
    assert re.fullmatch(r"the package torch is not installed for .*\n", result.stderr)


@pytest.mark.parametrize("version", ["2.10.0", "2.9.1+cu128", "1.13.1", "unknown"])
def test_unsupported_torch_is_one_clear_sentence(version: str) -> None:
    """Loading into an older torch is refused with both versions named."""
    sentence = r"needs torch 2\.11 or newer, found " + re.escape(version)
    with pytest.raises(ImportError, match=sentence):
        _library.check_torch_version(version)


@pytest.mark.parametrize("version", ["2.11.0+cu130", "2.13.0+cpu", "2.20.1", "3.0.0a0+git1234"])
def test_supported_torch_is_accepted(version: str) -> None:
    """Any torch from 2.11 on is accepted, whatever its local version says."""
    _library.check_torch_version(version)


def test_missing_build_is_one_clear_sentence(tmp_path: Path) -> None:
    """Sources without native modules: the report fails with one line that says how to build."""
    copy = tmp_path / "llmjp_ext"
    shutil.copytree(ROOT / "llmjp_ext", copy, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    result = subprocess.run(
        [sys.executable, "-m", "llmjp_ext"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 1
    assert re.fullmatch(
        r"llmjp_ext: the native library .* is missing: .*'pip install .*\n", result.stderr
    )


def test_foreign_library_is_one_clear_sentence(tmp_path: Path) -> None:
    """A file that is no library gives one sentence, with the loader's reason in it."""
    path = tmp_path / "_ops.so"
    path.write_bytes(b"not a library")
    with pytest.raises(ImportError, match=r"does not load into torch .*build it again"):
        _library.load_library(path)


def test_report_names_versions_build_and_choices(capsys: pytest.CaptureFixture[str]) -> None:
    """`python -m llmjp_ext` prints versions, the build, the GPU and what each op runs."""
    assert report.main() == 0
    lines = capsys.readouterr().out.splitlines()
    facts = {line[: report.WIDTH].strip(): line[report.WIDTH :] for line in lines}
    assert facts["llmjp_ext"].startswith(_version.__version__)
    assert facts["torch"] == torch.__version__
    assert facts["built with"].startswith(_library.build_info()["compiler"])
    assert facts["GPU architectures built"] == (
        _library.build_info()["cuda_architectures"] or "none"
    )
    assert any(name.startswith("GPU") for name in facts)
    for op in _library.op_names():
        if _library.is_composed(op):
            assert facts[f"op {op}"].startswith("CUDA and CPU: matrix products")
            continue
        kind = "CUDA kernel" if _library.has_cuda_kernel(op) else "PyTorch implementation"
        on_cpu = "native code" if _library.is_native_on_cpu(op) else "PyTorch implementation"
        assert facts[f"op {op}"] == f"CUDA: {kind}; CPU: {on_cpu}"
    assert facts["tokenizer"].endswith(".so")


def test_kernels_are_there_when_architectures_were_built() -> None:
    """A CUDA build holds a kernel for each op of its families; a CPU build holds none."""
    kernels = {name for name in _library.op_names() if _library.has_cuda_kernel(name)}
    if _library.build_info()["cuda_architectures"]:
        assert {"layer_norm_fwd", "add_layer_norm_fwd", "layer_norm_bwd"} <= kernels
        assert {"rms_norm_fwd", "add_rms_norm_fwd", "rms_norm_bwd"} <= kernels
        assert {"bias_dropout_add_fwd", "bias_dropout_add_bwd"} <= kernels
        assert {"bias_gelu_fwd", "bias_gelu_bwd", "swiglu_fwd", "swiglu_bwd"} <= kernels
        assert {"rotary", "rotary_inplace"} <= kernels
        assert {"cross_entropy_fwd", "cross_entropy_bwd", "cross_entropy_bwd_inplace"} <= kernels
    else:
        assert not kernels
