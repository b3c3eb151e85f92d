"""What the tests of attention, attention_varlen and attention_decode share.

`run` gives everything that an op and its gradients give; `compare` holds it to the numerics rule.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from llmjp_ext import _library
from llmjp_ext.reference import attention as reference
from llmjp_ext.testing import GRADIENT_FACTOR, assert_accurate

FLOATS = [torch.float32, torch.float16, torch.bfloat16]
SLOPES = torch.tensor([0.5, 0.25, 0.125, 0.06])  # of ALiBi, for four heads


def runs_kernels(device: str) -> bool:
    """Whether attention's CUDA kernel serves this device, on a GPU or simulated."""
    return device == "cuda" or _library.ops is not torch.ops.llmjp_ext


def lengths(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


def on(device: str, options: dict[str, object]) -> dict[str, object]:
    return {k: v.to(device) if isinstance(v, Tensor) else v for k, v in options.items()}


def run(function, inputs: list[Tensor], dout: Tensor, dlse: Tensor | None) -> list[Tensor]:
    """out, lse and the gradients of q, k and v."""
    leaves = [t.detach().requires_grad_() for t in inputs]
    out, lse = function(*leaves)
    loss = (out * dout.to(out.dtype)).sum()
    if dlse is not None:
        # Rows without keys have lse -inf, and no gradient to give.
        loss = loss + (lse.masked_fill(lse == -torch.inf, 0.0) * dlse.to(lse.dtype)).sum()
    loss.backward()
    return [out.detach(), lse.detach(), *(leaf.grad for leaf in leaves)]


def sdpa(q: Tensor, k: Tensor, v: Tensor, options: dict[str, object]) -> Tensor:
    """What a PyTorch user writes, where PyTorch has it: no softcap and no ALiBi."""
    ones = torch.ones_like(q[..., :1]), torch.ones_like(k[..., :1])
    masks = {key: value for key, value in options.items() if key != "scale"}
    # With one key dimension of ones and v the identity, the reference shows which keys are seen.
    eye = torch.eye(k.shape[1], device=q.device, dtype=q.dtype)[None, :, None]
    seen = reference.attention(*ones, eye.expand(*k.shape[:3], -1), **masks)[0] > 0
    out = F.scaled_dot_product_attention(
        *(t.transpose(1, 2) for t in (q, k, v)),
        attn_mask=seen.transpose(1, 2),
        scale=options.get("scale"),
        enable_gqa=True,
    )
    return out.transpose(1, 2).nan_to_num(0.0)


def compare(
    actual: list[Tensor], exact: list[Tensor], plain: list[Tensor], what: str
) -> list[Tensor]:
    """Holds what `run` gave to what it gives of the reference in float64, by the errors of plain
    PyTorch; returns it."""
    assert actual[0].is_contiguous() and actual[1].dtype == torch.float32
    for name, a, e, p in zip(["out", "lse", "dq", "dk", "dv"], actual, exact, plain, strict=True):
        factor = GRADIENT_FACTOR if name.startswith("d") else 2.0
        assert_accurate(a, e, p, factor=factor, what=f"{name} of {what}")
    return actual
