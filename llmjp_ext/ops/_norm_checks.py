"""What layer_norm and rms_norm share: checks, and the random state of dropout."""

import torch
from torch import Tensor

from llmjp_ext.ops._support import FLOAT_NAMES, FLOATS, draw_random_state


def check_norm(
    op: str,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    eps: float,
    residual: Tensor | None,
    dropout_p: float,
) -> None:
    """Raises TypeError or ValueError, in the op's name, for what no norm supports."""
    if x.dtype not in FLOATS:
        raise TypeError(f"{op}: x must be {FLOAT_NAMES}, got {x.dtype}.")
    if x.ndim == 0:
        raise ValueError(f"{op}: x must have at least one dimension, got a scalar.")
    width = x.shape[-1]
    if weight.dtype not in (x.dtype, torch.float32):
        raise TypeError(
            f"{op}: weight must be {x.dtype} (as x) or torch.float32, got {weight.dtype}."
        )
    for name, vector in (("weight", weight), ("bias", bias)):
        if vector is None:
            continue
        if vector.ndim != 1 or vector.shape[0] != width:
            raise ValueError(
                f"{op}: {name} must have shape [{width}], the last dimension of x, "
                f"got {list(vector.shape)}."
            )
        if vector.dtype != weight.dtype:
            raise TypeError(
                f"{op}: {name} must have weight's dtype {weight.dtype}, got {vector.dtype}."
            )
        if vector.device != x.device:
            raise ValueError(f"{op}: {name} must be on x's device {x.device}, got {vector.device}.")
    if eps < 0:
        raise ValueError(f"{op}: eps must not be negative, got {eps}.")
    if not 0.0 <= dropout_p < 1.0:
        raise ValueError(f"{op}: dropout_p must be at least 0 and below 1, got {dropout_p}.")
    if residual is None:
        if dropout_p > 0:
            raise ValueError(
                f"{op}: dropout_p {dropout_p} needs a residual, which x is added to afterwards."
            )
        return
    if residual.dtype not in (x.dtype, torch.float32):
        raise TypeError(
            f"{op}: residual must be {x.dtype} (as x) or torch.float32, got {residual.dtype}."
        )
    if residual.shape != x.shape:
        raise ValueError(
            f"{op}: residual must have x's shape {list(x.shape)}, got {list(residual.shape)}."
        )
    if residual.device != x.device:
        raise ValueError(f"{op}: residual must be on x's device {x.device}, got {residual.device}.")


def dropout_state(x: Tensor, dropout_p: float) -> Tensor | None:
    """Seed and offset of one call's dropout, or None where nothing is dropped."""
    return draw_random_state(x.device) if dropout_p > 0 else None
