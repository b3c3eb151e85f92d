"""What the benchmarks of attention and of attention_varlen share: passes, peers, and the truth.

Operations are counted by the usual formula, 4 · tokens² · head_dim for a head in forward and 10 in
backward, halved by a causal mask. Bytes are q, k, v and out once, with their gradients in backward,
and lse.

Scores in float64 would not fit a GPU at 16k tokens. So the truth is computed in blocks of queries,
for as many heads as a number of scores allows, the first and the last among them.
"""

import contextlib
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.harness.case import OURS, Candidate, Case, accuracy_check, missing
from benchmarks.harness.report import one_line
from llmjp_ext.reference.attention import attention as definition
from llmjp_ext.testing import GRADIENT_FACTOR

SDPA = "F.scaled_dot_product_attention"
SDPA_FLASH = f"{SDPA}, FlashAttention-2"
SDPA_CUDNN = f"{SDPA}, cuDNN"
FLASH_2 = "flash-attn"
FLASH_3 = "fa3-fwd"
TORCH_VARLEN = "torch.nn.attention.varlen"
# This project's backward pass without a fixed order, beside the one that has it.
ANY_ORDER = f"{OURS} in any order"

SCORES_OF_BLOCK = 1 << 24
SCORES_OF_TRUTH = 1 << 30
GRADIENTS = ("dq", "dk", "dv")

Function = Callable[[Tensor, Tensor, Tensor], Tensor]
Index = tuple[int | slice, ...]


class Part(NamedTuple):
    """One sequence in the heads that share a key head.

    `queries` of q, dout, out and dq is [tokens, heads, head_dim]; `keys` of k, v and their
    gradients is [tokens, head_dim].
    """

    queries: Index
    keys: Index
    scores: int


def parts(sequences: Iterable[tuple[Index, int]], heads: int, kv_heads: int) -> list[Part]:
    """All parts of some sequences, each given by the index of its rows and their number."""
    group = heads // kv_heads
    return [
        Part(
            (*rows, slice(head * group, (head + 1) * group)), (*rows, head), group * length * length
        )
        for rows, length in sequences
        for head in range(kv_heads)
    ]


def chosen(every: Sequence[Part], most_scores: int = SCORES_OF_TRUTH) -> list[Part]:
    """The first and the last part and, evenly between them, no more than the scores allow."""
    average = max(1, sum(part.scores for part in every) // max(1, len(every)))
    count = min(len(every), max(2, most_scores // average))
    if count < 2:
        return list(every)
    return [every[i * (len(every) - 1) // (count - 1)] for i in range(count)]


@dataclass
class Work:
    """Self-attention of some tensors, and what its results are to be.

    Attributes:
        q, k, v: [batch, tokens, heads, head_dim], or packed [total, heads, head_dim].
        parts: those that are checked.
        causal: the mask.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    parts: Sequence[Part]
    causal: bool

    def __post_init__(self) -> None:
        self.leaves = [t.requires_grad_() for t in (self.q, self.k, self.v)]
        self.dout = torch.randn_like(self.q)

    @functools.cached_property
    def exact(self) -> dict[str, Tensor]:
        """out, dq, dk and dv of the checked parts in float64, behind one another."""
        return self._results(torch.float64)

    @functools.cached_property
    def plain(self) -> dict[str, Tensor]:
        """The same by plain PyTorch in the tensors' dtype."""
        return self._results(self.q.dtype)

    def check(self, names: Sequence[str], results: Tensor | Sequence[Tensor]) -> None:
        """Raises AssertionError unless these results keep the numerics rule."""
        tensors = [results] if isinstance(results, Tensor) else list(results)
        places = [
            [part.keys if name in ("dk", "dv") else part.queries for part in self.parts]
            for name in names
        ]
        given = [
            torch.cat([tensor[place].flatten() for place in own])
            for tensor, own in zip(tensors, places, strict=True)
        ]
        accuracy_check(
            {name: self.exact[name] for name in names},
            [self.plain[name] for name in names],
            dict.fromkeys(GRADIENTS, GRADIENT_FACTOR),
        )(given)

    def _results(self, dtype: torch.dtype) -> dict[str, Tensor]:
        found: dict[str, list[Tensor]] = {name: [] for name in ("out", *GRADIENTS)}
        for part in self.parts:
            for name, value in self._results_of(part, dtype).items():
                found[name].append(value.flatten())
        return {name: torch.cat(values) for name, values in found.items()}

    def _results_of(self, part: Part, dtype: torch.dtype) -> dict[str, Tensor]:
        q, dout = (t.detach()[part.queries][None].to(dtype) for t in (self.q, self.dout))
        k, v = (t.detach()[part.keys][None, :, None].to(dtype) for t in (self.k, self.v))
        tokens, group = q.shape[1:3]
        rows = max(1, SCORES_OF_BLOCK // (group * tokens))
        # Sums over the blocks must not be rounded to 16 bits again and again.
        sums = torch.float32 if dtype.itemsize < 4 else dtype
        dk, dv = (torch.zeros_like(t, dtype=sums) for t in (k, v))
        outs, dqs = [], []
        for first in range(0, tokens, rows):
            end = min(first + rows, tokens)
            seen = end if self.causal else tokens
            leaves = [
                t.detach().requires_grad_() for t in (q[:, first:end], k[:, :seen], v[:, :seen])
            ]
            out = definition(*leaves, causal=self.causal)[0]
            dq_block, dk_block, dv_block = torch.autograd.grad(out, leaves, dout[:, first:end])
            outs.append(out.detach())
            dqs.append(dq_block)
            dk[:, :seen] += dk_block
            dv[:, :seen] += dv_block
        values = (torch.cat(outs, 1), torch.cat(dqs, 1), dk.to(dtype), dv.to(dtype))
        return dict(zip(("out", *GRADIENTS), values, strict=True))


class Way(NamedTuple):
    """A candidate: a function, and the tensors that it is given."""

    function: Function
    work: Work


@dataclass(frozen=True)
class Passes:
    """The cases of one shape, forward and backward.

    Attributes:
        shape: as the tables have it.
        ways: by name.
        absent: peers that cannot run here at all, each with the reason.
        product_flops: operations of one product over the scores that the mask leaves.
        forward_only: names of the ways that have no backward.
        unordered: those that have none in a fixed order to be compared with.
    """

    shape: str
    ways: Mapping[str, Way]
    absent: Mapping[str, str]
    product_flops: int
    forward_only: Sequence[str] = (FLASH_3,)
    unordered: Sequence[str] = ()

    @property
    def _work(self) -> Work:
        return self.ways[OURS].work

    @property
    def _mask(self) -> str:
        return "causal" if self._work.causal else "full"

    def _case(self, name: str, candidates: Mapping[str, Candidate], absent, **amounts: int) -> Case:
        return Case(
            name=f"{name}, {self._mask}",
            shape=self.shape,
            dtype=str(self._work.q.dtype).removeprefix("torch."),
            candidates=candidates,
            check=lambda checked: checked[0](checked[1]),
            absent=absent,
            **amounts,
        )

    def forward(self) -> Case:
        """out of q, k and v."""
        ways, absent = self._present(lambda way: _forward(way)())
        q, k, v = self._work.leaves
        return self._case(
            "forward",
            {
                name: Candidate(_forward(way), as_result=_checked(way.work, ("out",)))
                for name, way in ways.items()
            },
            absent,
            bytes=2 * q.nbytes + k.nbytes + v.nbytes + self._lse_bytes,
            flops=2 * self.product_flops,
        )

    def backward(self, deterministic: bool = False) -> Case:
        """dq, dk and dv of out's gradient; the forward pass before it is not timed."""

        def candidate(way: Way, fixed: bool) -> Candidate:
            def run(out: Tensor) -> tuple[Tensor, ...]:
                with fixed_order(fixed):
                    return torch.autograd.grad(out, way.work.leaves, way.work.dout)

            def prepare() -> Tensor:
                with fixed_order(fixed):
                    return way.function(*way.work.leaves)

            return Candidate(run, prepare=prepare, as_result=_checked(way.work, GRADIENTS))

        def once(way: Way) -> None:
            tried = candidate(way, deterministic)
            tried.run(*tried.arguments())

        ways, absent = self._present(once, self.forward_only)
        if deterministic:
            ways = {name: way for name, way in ways.items() if name not in self.unordered}
        candidates = {name: candidate(way, deterministic) for name, way in ways.items()}
        if deterministic:
            candidates[ANY_ORDER] = candidate(self.ways[OURS], False)
        tensors = sum(t.nbytes for t in (*self._work.leaves, self._work.dout))
        return self._case(
            "backward, deterministic" if deterministic else "backward",
            candidates,
            absent,
            bytes=2 * tensors + self._lse_bytes,
            flops=5 * self.product_flops,
        )

    @property
    def _lse_bytes(self) -> int:
        return 4 * self._work.q.numel() // self._work.q.shape[-1]

    def _present(
        self, once: Callable[[Way], Any], without: Sequence[str] = ()
    ) -> tuple[dict[str, Way], dict[str, str]]:
        """The ways that can do a pass, and the peers that cannot, with what they say."""
        ways, absent = dict(self.ways), dict(self.absent)
        for name in self.ways:
            if name in without:
                absent[name] = "has no backward"
            elif name in PROBED and (reason := refusal(once, self.ways[name])):
                absent[name] = reason
            else:
                continue
            del ways[name]
        return ways, absent


def refusal(once: Callable[[Any], Any], way: Any) -> str | None:
    """What a peer says that does not take this shape, mask or order; None where it does."""
    try:
        once(way)
    except (RuntimeError, TypeError, ValueError, NotImplementedError, ImportError) as error:
        return one_line(error)
    return None


def _forward(way: Way) -> Callable[[], Tensor]:
    return torch.no_grad()(lambda: way.function(*way.work.leaves))


def _checked(work: Work, names: Sequence[str]) -> Callable[[Any], Any]:
    """A result with the check of its own work: candidates of a case may have different tensors."""
    return lambda result: (functools.partial(work.check, names), result)


@contextlib.contextmanager
def fixed_order(fixed: bool) -> Iterator[None]:
    """Within it PyTorch is asked for deterministic algorithms, without filling new tensors, which
    would be part of what is timed."""
    if not fixed:
        yield
        return
    filling = torch.utils.deterministic.fill_uninitialized_memory
    before = torch.are_deterministic_algorithms_enabled()
    torch.utils.deterministic.fill_uninitialized_memory = False
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
        torch.utils.deterministic.fill_uninitialized_memory = filling


def sdpa(causal: bool, backend: str | None = None) -> Function:
    """PyTorch's attention, by the backend of that name in SDPBackend where one is given."""

    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        heads_first = (t.transpose(1, 2) for t in (q, k, v))
        with _only(backend):
            out = F.scaled_dot_product_attention(*heads_first, is_causal=causal, enable_gqa=True)
        return out.transpose(1, 2)

    return run


def _only(backend: str | None) -> contextlib.AbstractContextManager[None]:
    if backend is None:
        return contextlib.nullcontext()
    from torch.nn.attention import SDPBackend, sdpa_kernel

    return sdpa_kernel(SDPBackend[backend])


def flash_2(causal: bool) -> Function:
    """The FlashAttention package."""

    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        from flash_attn import flash_attn_func

        result: Tensor = flash_attn_func(
            q, k, v, causal=causal, deterministic=torch.are_deterministic_algorithms_enabled()
        )
        return result

    return run


def flash_3(causal: bool) -> Function:
    """FlashAttention-3's forward pass as its wheel for CUDA 13 has it."""

    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        from fa3_fwd_interface import flash_attn_func

        result = flash_attn_func(q, k, v, causal=causal)
        out: Tensor = result[0] if isinstance(result, tuple) else result
        return out

    return run


# Peers that may not take a shape, a mask or a fixed order, and then say so.
PROBED = (SDPA_FLASH, SDPA_CUDNN, FLASH_2, FLASH_3, TORCH_VARLEN)


def gpu_peers(device: torch.device, causal: bool) -> tuple[dict[str, Function], dict[str, str]]:
    """The fused kernels of others for batches, and those that cannot run here with the reason."""
    functions = {
        SDPA_FLASH: (sdpa(causal, "FLASH_ATTENTION"), None),
        SDPA_CUDNN: (sdpa(causal, "CUDNN_ATTENTION"), None),
        FLASH_2: (flash_2(causal), "flash_attn"),
        FLASH_3: (flash_3(causal), "fa3_fwd_interface"),
    }
    present, absent = {}, {}
    for name, (function, module) in functions.items():
        reason = None if module is None else missing(module, name)
        if device.type != "cuda":
            reason = "needs CUDA"
        if reason is None:
            present[name] = function
        else:
            absent[name] = reason
    return present, absent


def bounds_of(lengths: Sequence[int]) -> list[int]:
    """Where packed sequences of these lengths begin and end."""
    return list(itertools.accumulate(lengths, initial=0))
