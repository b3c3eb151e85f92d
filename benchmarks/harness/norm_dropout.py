"""The row that layer_norm's and rms_norm's benchmarks share: forward with residual and dropout.

Masks differ from peer to peer, so what is checked is the share dropped, and y against the norm of
the r that came with it.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.harness.case import OURS, Candidate, Case
from llmjp_ext.testing import assert_accurate

SHARE = 0.1
COMPILED = "torch.compile"


def norm_dropout_case(
    rows: int,
    width: int,
    dtype: torch.dtype,
    device: torch.device,
    *,
    ours: Callable[[Tensor, Tensor, float], tuple[Tensor, Tensor]],
    plain_norm: Callable[[Tensor], Tensor],
    exact_norm: Callable[[Tensor], Tensor],
    other_bytes: int,
) -> Case:
    """y and r = dropout(x) + residual of x and residual.

    Args:
        rows, width, dtype, device: of x and residual.
        ours: the op, of x, residual and the share to drop.
        plain_norm: what PyTorch users write for the norm of r.
        exact_norm: its definition, of r in float64.
        other_bytes: what is moved besides x, residual, y and r.
    """
    x, residual = (torch.randn(rows, width, device=device, dtype=dtype) for _ in range(2))

    def eager() -> tuple[Tensor, Tensor]:
        r = F.dropout(x, SHARE) + residual
        return plain_norm(r), r

    def check(result: tuple[Tensor, Tensor]) -> None:
        y, r = result
        share = (r == residual).double().mean().item()
        # Six standard deviations, and the elements of x too small to change the residual.
        allowed = 6 * (SHARE * (1 - SHARE) / r.numel()) ** 0.5 + 4 * torch.finfo(dtype).eps
        assert abs(share - SHARE) < allowed, f"{share:.4f} dropped, not {SHARE}"
        assert_accurate(y, exact_norm(r.double()), plain_norm(r), what="y")

    candidates = {
        OURS: Candidate(torch.no_grad()(lambda: ours(x, residual, SHARE))),
        "F.dropout": Candidate(torch.no_grad()(eager)),
    }
    absent = {}
    if device.type == "cuda":
        compiled = torch.compile(eager, fullgraph=True, dynamic=False)
        candidates[COMPILED] = Candidate(torch.no_grad()(compiled))
    else:
        absent[COMPILED] = "measured on CUDA only"
    return Case(
        name="forward + residual + dropout",
        shape=f"{rows} x {width}",
        dtype=str(dtype).removeprefix("torch."),
        candidates=candidates,
        check=check,
        bytes=4 * rows * width * dtype.itemsize + other_bytes,
        absent=absent,
    )
