"""The ops, one module each: argument checks, autograd, fakes, and the PyTorch implementation.

Each module has the name of its op in every other room of the project. Importing this package makes
all of torch.ops.llmjp_ext whole, as a saved graph that calls them needs it.
"""

from llmjp_ext.ops import (
    attention,
    attention_decode,
    attention_varlen,
    bias_dropout_add,
    bias_gelu,
    cross_entropy,
    layer_norm,
    linear_cross_entropy,
    rms_norm,
    rotary,
    sample,
    swiglu,
)

__all__ = [
    "attention",
    "attention_decode",
    "attention_varlen",
    "bias_dropout_add",
    "bias_gelu",
    "cross_entropy",
    "layer_norm",
    "linear_cross_entropy",
    "rms_norm",
    "rotary",
    "sample",
    "swiglu",
]
