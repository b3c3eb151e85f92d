"""Fixtures of the kernel tests: where an op runs, and the seed."""

import os
import signal
from collections.abc import Iterator

# Processes that run tests side by side share the cores. torch reads this once, on import.
if side_by_side := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "0")):
    threads = max(1, len(os.sched_getaffinity(0)) // side_by_side)
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))

import pytest
import torch

import llmjp_ext.ops  # noqa: F401  tests call torch.ops.llmjp_ext without its functions
from llmjp_ext.testing import simulated_kernels

# Shells start what runs in the background with Ctrl-C ignored, and processes of tests inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

BACKENDS = ["cpu", "simt", pytest.param("cuda", marks=pytest.mark.gpu)]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if "sweep" not in config.option.markexpr:
        left = [item for item in items if "sweep" in item.keywords]
        items[:] = [item for item in items if "sweep" not in item.keywords]
        config.hook.pytest_deselected(items=left)
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="no CUDA GPU in this machine")
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(skip)


@pytest.fixture(autouse=True)
def seed() -> int:
    """Every test starts from one seed; failures print it."""
    torch.manual_seed(2024)
    return 2024


@pytest.fixture(params=BACKENDS)
def device(request: pytest.FixtureRequest) -> Iterator[str]:
    """The device of a test's tensors: the PyTorch implementation on the CPU, the kernels' source
    simulated on the CPU, and the kernels on a GPU."""
    if request.param == "simt":
        with simulated_kernels():
            yield "cpu"
    else:
        yield request.param


@pytest.fixture(params=["simt", pytest.param("cuda", marks=pytest.mark.gpu)])
def kernel_device(request: pytest.FixtureRequest) -> Iterator[str]:
    """The device of a test's tensors where only the kernels run: simulated on the CPU, or a GPU."""
    if request.param == "simt":
        with simulated_kernels():
            yield "cpu"
    else:
        yield request.param


@pytest.fixture
def sums_in_any_order(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Simulated kernels ask PyTorch for deterministic algorithms for their own ends: the ops do not
    see it, and add gradients up in any order, as they do where nobody asks."""
    # Nowhere else: torch.compile knows the function by its identity.
    parameters = getattr(getattr(request.node, "callspec", None), "params", {})
    if parameters.get("device") == "simt":
        monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: False)
