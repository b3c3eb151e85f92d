"""Loads the native library _ops.so and registers the ops' PyTorch implementations beside it.

_ops.so defines the schemas of torch.ops.llmjp_ext and, in a CUDA build, the CUDA kernels; for a few
ops it has native code for CPU tensors too. For all others CPU tensors run PyTorch implementations,
registered here. Where the build holds no CUDA kernel for an op, its PyTorch implementation serves
CUDA tensors too, announced once by a warning; LLMJP_EXT_STRICT=1 refuses it.
"""

import functools
import json
import os
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

NAMESPACE = "llmjp_ext"
OLDEST_TORCH = (2, 11)
LIBRARY_PATH = Path(__file__).parent / "_ops.so"

_definitions = torch.library.Library(NAMESPACE, "FRAGMENT")
_kernels_from_library: set[str] = set()
_native_on_cpu: set[str] = set()
_composed: set[str] = set()


def check_torch_version(version: str) -> None:
    """Raises ImportError unless _ops.so loads into torch `version` (such as "2.13.0+cpu")."""
    match = re.match(r"(\d+)\.(\d+)", version)
    if match is None or (int(match[1]), int(match[2])) < OLDEST_TORCH:
        raise ImportError(
            f"llmjp_ext needs torch {OLDEST_TORCH[0]}.{OLDEST_TORCH[1]} or newer, found {version}; "
            "upgrade torch (pip install 'torch>=2.11')."
        )


def load_library(path: Path) -> None:
    """Loads a native op library; raises ImportError where it is missing or does not load."""
    if not path.exists():
        raise ImportError(
            f"the native library {path} is missing: llmjp_ext was not built; run 'pip install .' "
            "or 'pip install --no-build-isolation -e .' in the source folder."
        )
    try:
        torch.ops.load_library(path)
    except OSError as error:
        raise ImportError(
            f"the native library {path} does not load into torch {torch.__version__} ({error}); "
            "build it again with 'pip install .' in the source folder."
        ) from error


def _load() -> None:
    check_torch_version(torch.__version__)
    load_library(LIBRARY_PATH)
    # Taken now, before any PyTorch implementation is registered for CUDA under the same name.
    for name in torch._C._dispatch_get_all_op_names():
        if not name.startswith(f"{NAMESPACE}::"):
            continue
        for key, names in (("CUDA", _kernels_from_library), ("CPU", _native_on_cpu)):
            if torch._C._dispatch_has_kernel_for_dispatch_key(name, key):
                names.add(name.removeprefix(f"{NAMESPACE}::"))


_load()

# What the ops' modules call; testing.simulated_kernels() points it at the simulated kernels.
ops: Any = torch.ops.llmjp_ext


@functools.cache
def build_info() -> dict[str, str]:
    """Facts of the native build: compiler, torch, nvcc, cuda_architectures and others.

    cuda_architectures is empty in a build without CUDA kernels.
    """
    facts: dict[str, str] = json.loads(torch.ops.llmjp_ext.build_info())
    return facts


def op_names() -> list[str]:
    """Names of the ops that compute something, sorted, such as "layer_norm_fwd"."""
    prefix = f"{NAMESPACE}::"
    names = {
        name.removeprefix(prefix)
        for name in torch._C._dispatch_get_all_op_names()
        if name.startswith(prefix)
    }
    return sorted(names - {"build_info"})


def has_cuda_kernel(name: str) -> bool:
    """Whether this build holds a CUDA kernel for the op `name`."""
    return name in _kernels_from_library


def is_native_on_cpu(name: str) -> bool:
    """Whether _ops.so itself holds the op `name` for CPU tensors."""
    return name in _native_on_cpu


def register_implementation(name: str, function: Callable[..., Any]) -> None:
    """Registers a PyTorch implementation of op `name` for the CPU, unless that has a native one.

    Where the build holds no CUDA kernel it is registered for CUDA too, and its first call there
    warns, or raises NotImplementedError when LLMJP_EXT_STRICT=1.
    """
    if not is_native_on_cpu(name):
        _definitions.impl(name, function, "CPU")
    if has_cuda_kernel(name):
        return

    @functools.cache
    def announce(strict: bool) -> None:
        reason = (
            f"llmjp_ext.{name} has no CUDA kernel in this build "
            f"(CUDA architectures built: {build_info()['cuda_architectures'] or 'none'})"
        )
        if strict:
            raise NotImplementedError(
                f"{reason}, and LLMJP_EXT_STRICT=1 refuses the PyTorch implementation."
            )
        warnings.warn(f"{reason}; the PyTorch implementation runs instead.", stacklevel=3)

    @functools.wraps(function)
    def on_cuda(*arguments: Any) -> Any:
        announce(os.environ.get("LLMJP_EXT_STRICT") == "1")
        return function(*arguments)

    _definitions.impl(name, on_cuda, "CUDA")


def define_composed(name: str, signature: str, function: Callable[..., Any]) -> None:
    """Defines an op made of matrix products and other ops, the same code on every device.

    It has no kernel of its own that a build could lack, so nothing is announced for it; the ops
    that it calls speak for themselves.

    Args:
        name: of the op.
        signature: arguments and results as in a schema, "(Tensor x) -> Tensor".
        function: the implementation.
    """
    _definitions.define(name + signature, tags=(torch.Tag.pt2_compliant_tag,))
    _definitions.impl(name, function, "CompositeExplicitAutograd")
    _composed.add(name)


def is_composed(name: str) -> bool:
    """Whether the op `name` was defined by define_composed."""
    return name in _composed
