"""torch's AdamW on the weights of GPT-2 blocks: is its fused step short of the memory's ceiling?

A step reads weight, gradient and two moments and writes weight and moments: seven numbers an
element. This project has no optimizer of its own; the share of the ceiling that is measured here is
the reason.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from benchmarks.harness import Case, accuracy_check

# Blocks and width: a quarter of the 1.3B model's, of weights in matrices, biases and norms.
CUDA_SHAPES = ((6, 2048),)
CPU_SHAPES = ((1, 2048),)
QUICK_SHAPES = ((1, 64),)
RATE, BETAS, EPSILON, DECAY = 1e-3, (0.9, 0.95), 1e-8, 0.1
STEPS_BEFORE = 10


def weights(blocks: int, width: int, dtype: torch.dtype, device: torch.device) -> list[Tensor]:
    """Parameters of some blocks, matrices and vectors, with gradients."""
    torch.manual_seed(0)
    matrices = ((3 * width, width), (width, width), (4 * width, width), (width, 4 * width))
    vectors = [(rows,) for rows, _ in matrices] + [(width,)] * 4
    parameters = []
    for shape in (*matrices, *vectors) * blocks:
        parameter = torch.randn(shape, device=device).to(dtype).requires_grad_()
        parameter.grad = torch.randn(shape, device=device).to(dtype)
        parameters.append(parameter)
    return parameters


def definition(parameters: list[Tensor], steps: int) -> list[Tensor]:
    """The weights in float64 after some steps with the same gradients."""
    results = []
    for parameter in parameters:
        x, g = parameter.detach().double(), parameter.grad.double()
        for step in range(1, steps + 1):
            # Moments of a gradient that stays the same, divided by their bias correction.
            first = g * (1 - BETAS[0] ** step) / (1 - BETAS[0] ** step)
            second = g.square() * (1 - BETAS[1] ** step) / (1 - BETAS[1] ** step)
            x = x * (1 - RATE * DECAY) - RATE * first / (second.sqrt() + EPSILON)
        results.append(x)
    return results


def step_case(blocks: int, width: int, dtype: torch.dtype, device: torch.device) -> Case:
    """One step of the optimizer over all weights."""
    candidates: dict[str, Callable[[], list[Tensor]]] = {}
    checked = slice(0, 8)  # one block
    for name, options in (("torch fused", {"fused": True}), ("torch foreach", {"foreach": True})):
        parameters = weights(blocks, width, dtype, device)
        optimizer = torch.optim.AdamW(
            parameters, lr=RATE, betas=BETAS, eps=EPSILON, weight_decay=DECAY, **options
        )
        for _ in range(STEPS_BEFORE - 1):
            optimizer.step()

        def step(o: torch.optim.AdamW = optimizer, p: list[Tensor] = parameters) -> list[Tensor]:
            o.step()
            return p[checked]

        candidates[name] = step
    fresh = weights(blocks, width, dtype, device)
    elements = sum(parameter.numel() for parameter in fresh)
    exact = definition(fresh[checked], STEPS_BEFORE)
    plain = torch.optim.AdamW(
        fresh[checked], lr=RATE, betas=BETAS, eps=EPSILON, weight_decay=DECAY, foreach=False
    )
    for _ in range(STEPS_BEFORE):
        plain.step()
    names = [f"weight {i}" for i in range(len(exact))]
    return Case(
        name="step",
        shape=f"{elements} weights in {len(fresh)} tensors",
        dtype=str(dtype).removeprefix("torch."),
        candidates=candidates,
        check=accuracy_check(
            dict(zip(names, exact, strict=True)), [t.detach() for t in fresh[checked]]
        ),
        bytes=7 * elements * dtype.itemsize,
    )


def cases(device: torch.device, quick: bool) -> Iterator[Case]:
    """Float32, as masters of weights are, and bfloat16."""
    shapes = QUICK_SHAPES if quick else CUDA_SHAPES if device.type == "cuda" else CPU_SHAPES
    for blocks, width in shapes:
        for dtype in (torch.float32, torch.bfloat16):
            yield step_case(blocks, width, dtype, device)
