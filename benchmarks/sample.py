"""sample at LLM-jp's vocabulary: argmax, temperature alone, and the usual filters.

The work is reading the logits once. The peers are PyTorch code of the same meaning; a draw cannot
be compared with a reference, so what is checked is that a candidate draws only ids that may be.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

import llmjp_ext
from benchmarks.harness import OURS, Case, missing
from llmjp_ext.reference.sample import probabilities

VOCAB = 50688
CUDA_ROWS = (1, 32, 256)
CPU_ROWS = (1, 8)
QUICK_SHAPES = ((2, 512),)
OPTIONS: dict[str, dict[str, Any]] = {
    "argmax": {"temperature": 0.0},
    "temperature": {"temperature": 0.7},
    "top-p": {"temperature": 0.7, "top_p": 0.95},
    "top-k, top-p": {"temperature": 0.7, "top_k": 50, "top_p": 0.95},
}
FLASHINFER = "FlashInfer"


def eager(logits: Tensor, temperature: float, top_k: int = 0, top_p: float = 1.0) -> Tensor:
    """What PyTorch users write, with a full sort for top-p as in Transformers."""
    if temperature == 0:
        return logits.argmax(-1)
    x = logits.float() / temperature
    if top_k:
        x = x.masked_fill(x < torch.topk(x, top_k).values[:, -1:], -torch.inf)
    if top_p < 1:
        values, order = x.sort(-1)
        removed = values.softmax(-1).cumsum(-1) <= 1 - top_p
        removed[:, -1] = False
        x = x.masked_fill(removed.scatter(1, order, removed), -torch.inf)
    return torch.multinomial(x.softmax(-1), 1)[:, 0]


def flashinfer(logits: Tensor, temperature: float, top_k: int = 0, top_p: float = 1.0) -> Tensor:
    """FlashInfer's rejection sampling."""
    from flashinfer.sampling import top_k_top_p_sampling_from_logits

    return top_k_top_p_sampling_from_logits(
        logits.float() / temperature, top_k or logits.shape[1], top_p
    )


def sample_case(name: str, rows: int, vocab: int, dtype: torch.dtype, device: torch.device) -> Case:
    """One id a row."""
    options = OPTIONS[name]
    logits = torch.randn(rows, vocab, device=device).mul_(3).to(dtype)
    p = probabilities(logits.double(), **options)
    candidates: dict[str, Callable[[], Tensor]] = {
        OURS: lambda: llmjp_ext.sample(logits, **options),
        "PyTorch": lambda: eager(logits, **options),
    }
    reason = missing("flashinfer", "flashinfer-python") if device.type == "cuda" else "needs CUDA"
    if reason is None and options["temperature"] == 0:
        reason = "samples only"
    if reason is None:
        candidates[FLASHINFER] = lambda: flashinfer(logits, **options)

    def check(ids: Tensor) -> None:
        assert ids.shape == (rows,), f"shape {list(ids.shape)}, not [{rows}]"
        drawn = p.gather(1, ids.long()[:, None])
        # In float32 a set's last id may be another than in float64.
        assert float((drawn > 0).double().mean()) > 0.98, f"ids of probability 0: {ids[:8]}"

    return Case(
        name=name,
        shape=f"{rows} x {vocab}",
        dtype=str(dtype).removeprefix("torch."),
        candidates={n: torch.no_grad()(run) for n, run in candidates.items()},
        check=check,
        bytes=logits.nbytes,
        absent={} if reason is None else {FLASHINFER: reason},
    )


def cases(device: torch.device, quick: bool) -> Iterator[Case]:
    """Every choice of options at every number of rows."""
    torch.manual_seed(0)
    rows_of_device = CUDA_ROWS if device.type == "cuda" else CPU_ROWS
    shapes = QUICK_SHAPES if quick else [(rows, VOCAB) for rows in rows_of_device]
    for rows, vocab in shapes:
        for name in OPTIONS:
            for dtype in (torch.float32, torch.bfloat16):
                yield sample_case(name, rows, vocab, dtype, device)
