"""Fused CUDA kernels and a byte-fallback Unigram tokenizer for PyTorch.

Names are loaded on first use: `llmjp_ext.Tokenizer` does not import torch, and an op imports
nothing of the tokenizer. `python -m llmjp_ext` reports what was built and found, and what each op
runs.
"""

import importlib
from typing import TYPE_CHECKING, Any

from llmjp_ext._version import __version__

if TYPE_CHECKING:
    from llmjp_ext import nn as nn
    from llmjp_ext import reference as reference
    from llmjp_ext.ops.attention import attention as attention
    from llmjp_ext.ops.attention_decode import attention_decode as attention_decode
    from llmjp_ext.ops.attention_varlen import attention_varlen as attention_varlen
    from llmjp_ext.ops.bias_dropout_add import bias_dropout_add as bias_dropout_add
    from llmjp_ext.ops.bias_gelu import bias_gelu as bias_gelu
    from llmjp_ext.ops.cross_entropy import cross_entropy as cross_entropy
    from llmjp_ext.ops.layer_norm import layer_norm as layer_norm
    from llmjp_ext.ops.linear_cross_entropy import linear_cross_entropy as linear_cross_entropy
    from llmjp_ext.ops.rms_norm import rms_norm as rms_norm
    from llmjp_ext.ops.rotary import rotary as rotary
    from llmjp_ext.ops.sample import sample as sample
    from llmjp_ext.ops.swiglu import swiglu as swiglu
    from llmjp_ext.tokenizer import Tokenizer as Tokenizer

_HOME_OF_NAME = {
    "Tokenizer": "llmjp_ext.tokenizer",
    "attention": "llmjp_ext.ops.attention",
    "attention_decode": "llmjp_ext.ops.attention_decode",
    "attention_varlen": "llmjp_ext.ops.attention_varlen",
    "bias_dropout_add": "llmjp_ext.ops.bias_dropout_add",
    "bias_gelu": "llmjp_ext.ops.bias_gelu",
    "cross_entropy": "llmjp_ext.ops.cross_entropy",
    "layer_norm": "llmjp_ext.ops.layer_norm",
    "linear_cross_entropy": "llmjp_ext.ops.linear_cross_entropy",
    "rms_norm": "llmjp_ext.ops.rms_norm",
    "rotary": "llmjp_ext.ops.rotary",
    "sample": "llmjp_ext.ops.sample",
    "swiglu": "llmjp_ext.ops.swiglu",
}
_SUBMODULES = ("nn", "reference")

__all__ = [
    "Tokenizer",
    "__version__",
    "attention",
    "attention_decode",
    "attention_varlen",
    "bias_dropout_add",
    "bias_gelu",
    "cross_entropy",
    "layer_norm",
    "linear_cross_entropy",
    "nn",
    "reference",
    "rms_norm",
    "rotary",
    "sample",
    "swiglu",
]


def __getattr__(name: str) -> Any:
    """Imports a public name from its module on first use (PEP 562)."""
    if name in _HOME_OF_NAME:
        value = getattr(importlib.import_module(_HOME_OF_NAME[name]), name)
    elif name in _SUBMODULES:
        value = importlib.import_module(f"{__name__}.{name}")
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Public names, loaded or not."""
    return sorted({*globals(), *__all__})
