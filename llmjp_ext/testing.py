"""What tests and benchmarks of the ops share: the numerics rule and the simulated kernels.

The rule (docs/DESIGN.md, "Numerics"): against a reference in float64, an op may err `factor` times
as much as plain PyTorch does in the op's own dtype, plus the rounding of the reference itself.
"""

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

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
    same = torch.where(finite, torch.isfinite(wide), (wide == reference) | wide.isnan())
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


@contextlib.contextmanager
def simulated_kernels() -> Iterator[None]:
    """Within it the ops run the CUDA kernels' source on CPU tensors, each GPU thread a fiber.

    Outputs are allocated full of NaN, so that what a kernel leaves unwritten is seen. Raises
    ImportError where the test build is missing.
    """
    _library.load_library(simulated_library())
    deterministic = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)  # fills new tensors
    _library.ops = torch.ops.llmjp_ext_simt
    try:
        yield
    finally:
        _library.ops = torch.ops.llmjp_ext
        torch.use_deterministic_algorithms(deterministic)
