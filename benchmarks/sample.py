"""sample at LLM-jp's vocabulary and one of 256,000: argmax, temperature alone, the usual filters.

The work is reading the logits once. The peers are Transformers' processors with a softmax and
torch.multinomial, and the same written plainly; a draw cannot be compared with a reference, so what
is checked is that a candidate draws only ids that may be.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

import llmjp_ext
from benchmarks.harness import OURS, Case, missing
from llmjp_ext.reference.sample import probabilities

# Rows and ids.
CUDA_SHAPES = ((1, 50688), (64, 50688), (256, 50688), (1, 256000), (64, 256000))
CPU_SHAPES = ((1, 50688), (64, 50688))
QUICK_SHAPES = ((2, 512),)
OPTIONS: dict[str, dict[str, Any]] = {
    "argmax": {"temperature": 0.0},
    "temperature": {"temperature": 0.7},
    "top-p": {"temperature": 0.7, "top_p": 0.95},
    "top-k, top-p": {"temperature": 0.7, "top_k": 50, "top_p": 0.95},
}
TRANSFORMERS = "Transformers"
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


def transformers_chain(
    temperature: float, top_k: int = 0, top_p: float = 1.0
) -> Callable[[Tensor], Tensor]:
    """What `generate` does with the logits of its last position."""
    from transformers.generation.logits_process import (
        LogitsProcessorList,
        TemperatureLogitsWarper,
        TopKLogitsWarper,
        TopPLogitsWarper,
    )

    processors = LogitsProcessorList()
    if temperature not in (0.0, 1.0):
        processors.append(TemperatureLogitsWarper(temperature))
    if top_k:
        processors.append(TopKLogitsWarper(top_k))
    if top_p < 1:
        processors.append(TopPLogitsWarper(top_p))

    def run(logits: Tensor) -> Tensor:
        # generate copies the last position's logits to float32 before it processes them.
        scores = logits.to(torch.float32, copy=True)
        if temperature == 0:
            return scores.argmax(-1)
        none = torch.empty((logits.shape[0], 0), dtype=torch.int64, device=logits.device)
        probabilities_of_ids = processors(none, scores).softmax(-1)
        return torch.multinomial(probabilities_of_ids, 1)[:, 0]

    return run


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
    absent = {}
    if (reason := missing("transformers", "transformers")) is None:
        chain = transformers_chain(**options)
        candidates[TRANSFORMERS] = lambda: chain(logits)
    else:
        absent[TRANSFORMERS] = reason
    reason = missing("flashinfer", "flashinfer-python") if device.type == "cuda" else "needs CUDA"
    if reason is None and options["temperature"] == 0:
        reason = "samples only"
    if reason is None:
        candidates[FLASHINFER] = lambda: flashinfer(logits, **options)
    else:
        absent[FLASHINFER] = reason

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
        absent=absent,
    )


def cases(device: torch.device, quick: bool) -> Iterator[Case]:
    """Every choice of options at every shape."""
    torch.manual_seed(0)
    shapes = CUDA_SHAPES if device.type == "cuda" else CPU_SHAPES
    if quick:
        shapes = QUICK_SHAPES
    for rows, vocab in shapes:
        for name in OPTIONS:
            for dtype in (torch.float32, torch.bfloat16):
                yield sample_case(name, rows, vocab, dtype, device)
