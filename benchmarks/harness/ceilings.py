"""What this machine reaches in this run: the ceilings that shares are given of."""

from dataclasses import dataclass

import torch

from benchmarks.harness.case import Candidate
from benchmarks.harness.measure import Clock, measure


@dataclass(frozen=True)
class Ceilings:
    """Measured rates: a large copy within memory, and a large matrix product.

    Attributes:
        copy_gb_per_s: bytes read plus bytes written, 10^9 a second.
        matmul_tflop_per_s: of bfloat16 on CUDA, of float32 on the CPU, 10^12 a second.
    """

    copy_gb_per_s: float
    matmul_tflop_per_s: float

    def floor_ms(self, moved_bytes: int, flops: int) -> tuple[float, str]:
        """The least time that these amounts take, in milliseconds, and what bounds it."""
        memory = moved_bytes / self.copy_gb_per_s / 1e6
        compute = flops / self.matmul_tflop_per_s / 1e9
        return (memory, "memory") if memory >= compute else (compute, "compute")


def measure_ceilings(device: torch.device, clock: Clock, quick: bool) -> Ceilings:
    """Measures both ceilings; random data, because zeros multiply with less power and so faster."""
    on_cuda = device.type == "cuda"
    elements = (1 << 28) if on_cuda else (1 << 26)  # 1 GiB and 256 MiB of float32
    size = 8192 if on_cuda else 2048
    if quick:
        elements, size = elements >> 4, size >> 2
    source = torch.rand(elements, device=device)
    target = torch.empty_like(source)
    dtype = torch.bfloat16 if on_cuda else torch.float32
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    candidates = {
        "copy": Candidate(lambda: target.copy_(source)),
        "matmul": Candidate(lambda: left @ right),
    }
    rates = {}
    for name, work in (("copy", 2 * source.nbytes / 1e9), ("matmul", 2 * size**3 / 1e12)):
        timing = measure({name: candidates[name]}, clock, device, quick=quick)[name]
        if isinstance(timing, Exception):
            raise RuntimeError(f"the {name} ceiling could not be measured: {timing}") from timing
        rates[name] = work / (timing.median_ms / 1e3)
    return Ceilings(rates["copy"], rates["matmul"])
