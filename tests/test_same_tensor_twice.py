"""One tensor given to an op twice, eager and compiled: Dynamo refuses it in autograd functions."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import llmjp_ext

WEIGHT = torch.ones(32, requires_grad=True)
ANGLES = torch.full((4, 8), 0.5**0.5)


def heads(x: Tensor) -> Tensor:
    return x.view(1, 4, 2, 16)


SEQUENCES = torch.tensor([0, 1, 4], dtype=torch.int32)


def packed(a: Tensor, b: Tensor) -> Tensor:
    """Two sequences, whose places in queries and keys are one tensor."""
    q, k = heads(a)[0], heads(b)[0]
    return llmjp_ext.attention_varlen(q, k, k, SEQUENCES, SEQUENCES, 3, 3)


# Each of two tensors that are one and the same.
FUNCTIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "attention": lambda a, b: llmjp_ext.attention(heads(a), heads(b), heads(b)),
    "attention_varlen": packed,
    "bias_dropout_add": lambda a, b: llmjp_ext.bias_dropout_add(a, None, b),
    "bias_gelu": lambda a, b: llmjp_ext.bias_gelu(a[0], b[0]),
    "layer_norm": lambda a, b: llmjp_ext.layer_norm(a, WEIGHT, WEIGHT, residual=b)[0],
    "rms_norm": lambda a, b: llmjp_ext.rms_norm(a, WEIGHT, residual=b)[0],
    "rotary": lambda a, b: sum(llmjp_ext.rotary(heads(a), heads(b), ANGLES, ANGLES)),
    "swiglu": lambda a, b: llmjp_ext.swiglu(a, b),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_compiles_whole(name: str, seed: int) -> None:
    """Values and gradients of two different tensors of equal values, summed: of one given twice by
    the caller, and of one that the compiled function gives twice."""
    function = FUNCTIONS[name]
    x = torch.randn(4, 32, requires_grad=True)
    other = x.detach().clone().requires_grad_()
    expected = function(x, other)
    dy = torch.randn_like(expected)
    gradients = torch.autograd.grad(expected, (x, other), dy, allow_unused=True)
    total = sum(g for g in gradients if g is not None)
    for again in (function, lambda a, b: function(b, b)):
        compiled = torch.compile(again, fullgraph=True, backend="aot_eager")
        for call in (function, compiled):
            y = call(x, x)
            assert torch.equal(y, expected), f"{name}, seed {seed}"
            (dx,) = torch.autograd.grad(y, x, dy)
            torch.testing.assert_close(dx, total, msg=lambda m: f"{name}, seed {seed}: {m}")
