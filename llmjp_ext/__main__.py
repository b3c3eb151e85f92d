"""`python -m llmjp_ext`: what was built, what was found, and what each op runs.

Prints one "name  value" line per fact and exits with 0; a package that cannot be loaded is reported
in one sentence on standard error, with exit code 1.
"""

import importlib
import pkgutil
import platform
import sys
from pathlib import Path

from llmjp_ext._version import __version__

WIDTH = 32
# Vector extensions that matter to code on the CPU, as Linux spells them in /proc/cpuinfo.
CPU_FEATURES = ("avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512_bf16", "avx512_vnni")
ARM_FEATURES = ("asimd", "asimdhp", "bf16", "i8mm", "sve")


def cpu_features() -> list[str]:
    """Those of the vector extensions above that this CPU has; empty where Linux does not tell."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    for line in text.splitlines():
        name, _, value = line.partition(":")
        if name.strip() in ("flags", "Features"):
            flags = set(value.split())
            return [flag for flag in CPU_FEATURES + ARM_FEATURES if flag in flags]
    return []


def report_cuda() -> list[tuple[str, str]]:
    """The CUDA that torch has, and each GPU with its compute capability and memory."""
    import torch

    facts = [("torch's CUDA", torch.version.cuda or "none (a CPU build of torch)")]
    if not torch.cuda.is_available():
        facts.append(("GPU", "none found"))
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        facts.append(
            (
                f"GPU {index}",
                f"{properties.name}, sm_{properties.major}{properties.minor}, "
                f"{properties.multi_processor_count} multiprocessors, "
                f"{properties.total_memory / 2**30:.1f} GiB",
            )
        )
    return facts


def report_build(info: dict[str, str]) -> list[tuple[str, str]]:
    """Facts of the native build, from the native library itself."""
    cuda = f"nvcc {info['nvcc']}" if info["cuda_architectures"] else "none"
    return [
        ("built with", f"{info['compiler']}, CMake {info['cmake']}, {info['build_type']}"),
        ("built against", f"torch {info['torch']}, Python {info['python']}"),
        ("CUDA kernels built", f"{cuda} (LLMJP_CUDA={info['llmjp_cuda']})"),
        ("GPU architectures built", info["cuda_architectures"] or "none"),
    ]


def report_ops() -> list[tuple[str, str]]:
    """What each op runs on the CPU and on CUDA in this build."""
    import llmjp_ext.ops
    from llmjp_ext import _library

    for module in pkgutil.iter_modules(llmjp_ext.ops.__path__):
        importlib.import_module(f"llmjp_ext.ops.{module.name}")
    facts = []
    for name in _library.op_names():
        if _library.is_composed(name):
            facts.append((f"op {name}", "CUDA and CPU: matrix products and other ops"))
            continue
        cuda = "CUDA kernel" if _library.has_cuda_kernel(name) else "PyTorch implementation"
        cpu = "native code" if _library.is_native_on_cpu(name) else "PyTorch implementation"
        facts.append((f"op {name}", f"CUDA: {cuda}; CPU: {cpu}"))
    return facts


def report_tokenizer() -> list[tuple[str, str]]:
    """Whether the native tokenizer module loads, from where, and the instructions it will use."""
    try:
        module = importlib.import_module("llmjp_ext._tokenizer")
    except ImportError as error:
        return [("tokenizer", f"not available ({error}); run 'pip install .' in the source folder")]
    facts = [("tokenizer", str(module.__file__))]
    supported = ", ".join(module.supported_isas())
    try:
        facts.append(("tokenizer's instructions", f"{module.default_isa()} (of {supported})"))
    except ValueError as error:
        facts.append(("tokenizer's instructions", str(error)))
    return facts


def main() -> int:
    """Prints the report; returns the exit code."""
    facts = [
        ("llmjp_ext", f"{__version__} at {Path(__file__).parent}"),
        ("Python", f"{platform.python_version()} on {platform.platform()}"),
        ("CPU", f"{platform.machine()}, {' '.join(cpu_features()) or 'extensions unknown'}"),
    ]
    try:
        import torch

        from llmjp_ext import _library
    except ImportError as error:
        print(f"llmjp_ext: {error}", file=sys.stderr)
        return 1
    facts.append(("torch", str(torch.__version__)))
    facts += report_cuda()
    facts += report_build(_library.build_info())
    facts += report_ops()
    facts += report_tokenizer()
    for name, value in facts:
        print(f"{name:<{WIDTH}}{value}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
