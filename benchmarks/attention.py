"""attention over lengths, head dimensions, masks and groups of heads, and at LLM-jp's shapes.

The lengths keep 16k tokens and 2048 numbers a token, as FlashAttention's own tables do. Each shape
has a forward, a backward and a backward in a fixed order, which is compared with the same of others
and with our own in any order.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch

import llmjp_ext
from benchmarks.harness import OURS, Case
from benchmarks.harness.attention import (
    SDPA,
    Function,
    Passes,
    Way,
    Work,
    chosen,
    gpu_peers,
    parts,
    sdpa,
)
from llmjp_ext.reference.attention import attention as definition

COMPILED = "torch.compile"
SCORES = "all scores in memory"


class Shape(NamedTuple):
    """Self-attention of `batch` sequences of `tokens`."""

    batch: int
    tokens: int
    heads: int
    kv_heads: int
    head_dim: int

    def __str__(self) -> str:
        return f"{self.batch} x {self.tokens} x {self.heads}/{self.kv_heads} x {self.head_dim}"


class Setting(NamedTuple):
    """What is measured of a shape.

    `everything`: also what needs all scores in memory, and PyTorch's own choice of a backend.
    """

    shape: Shape
    causal: bool
    dtype: torch.dtype
    everything: bool = False

    @property
    def product_flops(self) -> int:
        """Operations of one product over the scores that the mask leaves."""
        batch, tokens, heads, _, head_dim = self.shape
        return 2 * batch * heads * tokens * tokens * head_dim // (2 if self.causal else 1)


TOKENS = 16384  # of a batch
WIDTH = 2048  # heads x head_dim
# Those that say most come first: a call that ends early has them.
LENGTHS = (8192, 2048, 4096, 16384, 1024, 512)


def cuda_settings() -> list[Setting]:
    """Heads of the 1.3B and 13B models at their context of 2048, then all lengths."""
    models = [
        Setting(Shape(batch, 2048, heads, heads, 128), True, dtype, everything=True)
        for dtype in (torch.bfloat16, torch.float16)
        for batch, heads in ((4, 16), (2, 40))
    ]
    lengths = [
        Setting(
            Shape(TOKENS // tokens, tokens, heads, kv_heads, WIDTH // heads), causal, torch.bfloat16
        )
        for causal in (True, False)
        for heads in (16, 32)
        for kv_heads in (heads, heads // 8)
        for tokens in LENGTHS
    ]
    return models + lengths


def cpu_settings(quick: bool) -> list[Setting]:
    """Few: the scores of long sequences take a CPU minutes."""
    dtypes = (torch.float32, torch.bfloat16)
    if quick:
        return [Setting(Shape(1, 64, 4, 2, 32), c, d, True) for c in (True, False) for d in dtypes]
    shapes = (Shape(1, 512, 16, 16, 128), Shape(1, 512, 16, 4, 128))
    return [Setting(shape, True, dtype, True) for shape in shapes for dtype in dtypes]


def ours(causal: bool) -> Function:
    """llmjp_ext's op."""
    return lambda q, k, v: llmjp_ext.attention(q, k, v, causal=causal)


def materialised(causal: bool) -> Function:
    """All scores in memory, as models were written before fused attention."""
    return lambda q, k, v: definition(q, k, v, causal=causal)[0]


def functions(setting: Setting, device: torch.device) -> tuple[dict[str, Function], dict[str, str]]:
    """The candidates by name, and the peers that this machine cannot run with the reason."""
    causal = setting.causal
    peers, absent = gpu_peers(device, causal)
    present: dict[str, Function] = {OURS: ours(causal), **peers}
    if setting.everything:
        present |= {SDPA: sdpa(causal), SCORES: materialised(causal)}
        if device.type == "cuda":
            present[COMPILED] = torch.compile(materialised(causal), fullgraph=True, dynamic=False)
        else:
            absent[COMPILED] = "measured on CUDA only"
    return present, absent


def work_of(setting: Setting, device: torch.device) -> Work:
    """Random q, k and v."""
    batch, tokens, heads, kv_heads, head_dim = setting.shape
    q, k, v = (
        torch.randn(batch, tokens, h, head_dim, device=device, dtype=setting.dtype)
        for h in (heads, kv_heads, kv_heads)
    )
    sequences = (((b, slice(None)), tokens) for b in range(batch))
    return Work(q, k, v, chosen(parts(sequences, heads, kv_heads)), setting.causal)


def passes(setting: Setting, device: torch.device) -> Passes:
    """A setting's cases."""
    work = work_of(setting, device)
    present, absent = functions(setting, device)
    ways = {name: Way(function, work) for name, function in present.items()}
    return Passes(
        str(setting.shape), ways, absent, setting.product_flops, unordered=(SCORES, COMPILED)
    )


def cases(device: torch.device, quick: bool) -> Iterator[Case]:
    """Forward and backward of every setting, and the backward in a fixed order."""
    torch.manual_seed(0)
    on_cuda = device.type == "cuda" and not quick
    for setting in cuda_settings() if on_cuda else cpu_settings(quick):
        if device.type == "cuda" and setting.dtype == torch.float32:
            continue
        made = passes(setting, device)
        yield made.forward()
        yield made.backward()
        yield made.backward(deterministic=True)
