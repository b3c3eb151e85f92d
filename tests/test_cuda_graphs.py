"""Every differentiable op of one pass over memory, and the linear layer's loss, in a CUDA graph.

A captured step, forward and backward, reads new values and draws new numbers in every replay, and
gives what the same step gives outside. Sampling, attention and rows that blocks share have tests of
their own beside their ops.
"""

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

import llmjp_ext

ROWS, WIDTH = 48, 256
SHARE = 0.25
Step = Callable[..., Tensor | tuple[Tensor, ...]]


def angles(like: Tensor) -> tuple[Tensor, Tensor]:
    angle = torch.arange(4 * 8, device=like.device, dtype=torch.float32).view(4, 8) / 10
    return angle.cos(), angle.sin()


def rotary(q: Tensor, k: Tensor, inplace: bool) -> tuple[Tensor, Tensor]:
    heads = ((x * 1).view(12, 4, 4, 64) for x in (q, k))
    return llmjp_ext.rotary(*heads, *angles(q), inplace=inplace)


def targets(like: Tensor) -> Tensor:
    classes = torch.arange(ROWS, device=like.device) * 5
    return classes.masked_fill(classes % 3 == 0, -100)


# Each a function of as many [ROWS, WIDTH] tensors, whose first rows serve as weights.
STEPS: dict[str, tuple[int, Step]] = {
    "layer_norm": (3, lambda x, w, b: llmjp_ext.layer_norm(x, w[0], b[0])),
    "layer_norm with dropout": (
        4,
        lambda x, w, b, r: llmjp_ext.layer_norm(x, w[0], b[0], residual=r, dropout_p=SHARE),
    ),
    "rms_norm": (2, lambda x, w: llmjp_ext.rms_norm(x, w[0])),
    "rms_norm with dropout": (
        3,
        lambda x, w, r: llmjp_ext.rms_norm(x, w[0], residual=r, dropout_p=SHARE),
    ),
    "bias_gelu": (2, lambda x, b: llmjp_ext.bias_gelu(x, b[0])),
    "swiglu": (2, llmjp_ext.swiglu),
    "bias_dropout_add": (
        3,
        lambda x, b, r: llmjp_ext.bias_dropout_add(x, b[0], r, dropout_p=SHARE),
    ),
    "rotary": (2, lambda q, k: rotary(q, k, False)),
    "rotary in place": (2, lambda q, k: rotary(q, k, True)),
    "cross_entropy": (1, lambda x: llmjp_ext.cross_entropy(x, targets(x), z_loss=1e-3)),
    "cross_entropy in place": (
        1,
        lambda x: llmjp_ext.cross_entropy(x * 1, targets(x), inplace_backward=True),
    ),
    "linear_cross_entropy": (
        2,
        lambda x, w: llmjp_ext.linear_cross_entropy(x, w.repeat(5, 1), targets(x)),
    ),
    "linear_cross_entropy of rows": (
        2,
        lambda x, w: llmjp_ext.linear_cross_entropy(
            x, w.repeat(5, 1), targets(x), reduction="none"
        ),
    ),
}


def results(step: Step, leaves: Sequence[Tensor]) -> list[Tensor]:
    """Outputs and gradients of one step; the gradients that arrive are the outputs."""
    outputs = step(*leaves)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    arriving = [output.detach() for output in outputs]
    return [*arriving, *torch.autograd.grad(outputs, leaves, arriving)]


def captured(step: Step, leaves: Sequence[Tensor]) -> Callable[[], list[Tensor]]:
    """A replay of the step, which reads the leaves again."""
    stream = torch.cuda.Stream()  # capture asks for a first call elsewhere
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        results(step, leaves)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept = results(step, leaves)

    def replay() -> list[Tensor]:
        graph.replay()
        return [t.clone() for t in kept]

    return replay


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", STEPS)
def test_replays_are_eager_steps(name: str, dtype: torch.dtype, seed: int) -> None:
    count, step = STEPS[name]
    leaves = [
        torch.randn(ROWS, WIDTH, device="cuda", dtype=dtype).requires_grad_() for _ in range(count)
    ]
    replay = captured(step, leaves)
    for number in range(3):
        with torch.no_grad():
            for leaf in leaves:
                leaf.copy_(torch.randn_like(leaf))
        torch.manual_seed(seed + number)
        actual = replay()
        torch.manual_seed(seed + number)
        for a, e in zip(actual, results(step, leaves), strict=True):
            if "linear" in name:  # cuBLAS may take another product within a graph
                torch.testing.assert_close(a, e)
            else:
                assert torch.equal(a, e), f"replay {number}, {seed=}"
