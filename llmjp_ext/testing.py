"""What tests and benchmarks of the ops share: the numerics rule and the simulated kernels.

The rule (docs/DESIGN.md, "Numerics"): against a reference in float64, an op may err `factor` times
as much as plain PyTorch does in the op's own dtype, plus the rounding of the reference itself.
"""

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llmjp_ext import _library

FORWARD_FACTOR = 2.0
GRADIENT_FACTOR = 3.0


def rounding_floor(reference: Tensor, dtype: torch.dtype) -> float:
    """2 * max|(ref + 0.3 - 0.3) - ref| in `dtype`: the size of an ulp where the values are."""
    rounded = reference.to(dtype)
    return 2.0 * float(((rounded + 0.3 - 0.3) - rounded).abs().max()) if rounded.numel() else 0.0


def assert_accurate(
    actual: Tensor,
    reference: Tensor,
    plain: Tensor,
    *,
    factor: float = FORWARD_FACTOR,
    what: str = "value",
) -> None:
    """Fails unless `actual` keeps the numerics rule.

    Args:
        actual: the op's result.
        reference: the same computed in float64 from the same (rounded) inputs.
        plain: the same computed by plain PyTorch in actual's dtype.
        factor: how many times plain's error is allowed: 2 for values, 3 for gradients.
        what: names the tensor in the failure's message.
    """
    assert actual.shape == reference.shape, f"{what}: shape {actual.shape}, not {reference.shape}"
    if actual.numel() == 0:
        return
    reference = reference.detach().to(actual.device, torch.float64)
    wide = actual.detach().double()
    finite = torch.isfinite(reference)
    undefined = reference.isnan() & wide.isnan()
    same = torch.where(finite, torch.isfinite(wide), (wide == reference) | undefined)
    assert bool(same.all()), (
        f"{what}: infinities or NaN where the reference has none, or the reverse"
    )
    reference, wide = reference.where(finite, 0.0), wide.where(finite, 0.0)
    error = (wide - reference).abs()
    plain_error = (plain.detach().to(wide).where(finite, 0.0) - reference).abs().max()
    allowed = factor * float(plain_error) + rounding_floor(reference, actual.dtype)
    worst = int(error.argmax())
    place = tuple(int(i) for i in torch.unravel_index(torch.tensor(worst), error.shape))
    assert float(error.max()) <= allowed, (
        f"{what}: error {float(error.max()):.3e} at {place} "
        f"({float(wide.flatten()[worst]):.7g} for {float(reference.flatten()[worst]):.7g}), "
        f"allowed {allowed:.3e} = {factor} x plain PyTorch's {float(plain_error):.3e} + rounding; "
        f"{actual.dtype}, shape {list(actual.shape)}, "
        f"seed {torch.initial_seed()}"
    )


def simulated_library() -> Path:
    """Path of the kernels compiled for csrc/simt: $LLMJP_SIMT_OPS, else in the build tree."""
    if path := os.environ.get("LLMJP_SIMT_OPS"):
        return Path(path)
    root = Path(__file__).resolve().parent.parent
    return root / "build" / str(sys.implementation.cache_tag) / "simt" / "_ops_simt.so"


class _SimulatedOps:
    """torch.ops.llmjp_ext_simt, with the PyTorch implementations of some ops in between."""

    def __init__(self, in_pytorch: tuple[str, ...]) -> None:
        self._in_pytorch = in_pytorch

    def __getattr__(self, name: str) -> Any:
        return getattr(
            torch.ops.llmjp_ext if name in self._in_pytorch else torch.ops.llmjp_ext_simt, name
        )


@contextlib.contextmanager
def simulated_kernels(in_pytorch: tuple[str, ...] = ()) -> Iterator[None]:
    """Within it the ops run the CUDA kernels' source on CPU tensors, each GPU thread a fiber.

    Outputs are allocated full of NaN, so that what a kernel leaves unwritten is seen.

    Args:
        in_pytorch: ops that have no kernel, such as the backward of one that has; their PyTorch
            implementations run.

    Raises:
        ImportError: where the test build is missing.
        ValueError: for an op in_pytorch that does have a kernel.
    """
    _library.load_library(simulated_library())
    for name in in_pytorch:
        if torch._C._dispatch_has_kernel_for_dispatch_key(f"llmjp_ext_simt::{name}", "CPU"):
            raise ValueError(f"{name} has a kernel, which simulated_kernels() would leave out")
    deterministic = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)  # fills new tensors
    _library.ops = _SimulatedOps(in_pytorch)
    try:
        yield
    finally:
        _library.ops = torch.ops.llmjp_ext
        torch.use_deterministic_algorithms(deterministic)
