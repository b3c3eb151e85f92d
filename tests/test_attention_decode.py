"""attention_decode on every backend that implements it: values, appends, pages, tracing, errors.

Values follow the numerics rule of llmjp_ext.testing; failures print the seed.
"""

import math

import pytest
import torch
import torch._dynamo.testing
from torch import Tensor

import llmjp_ext
from attention_cases import FLOATS, SLOPES, lengths, on, runs_kernels
from llmjp_ext.reference import attention as reference_attention
from llmjp_ext.reference import attention_decode as reference
from llmjp_ext.testing import assert_accurate

LENGTHS = (11, 0, 29)
CAPACITY = 32


CASES = {
    "plain": {},
    "scale": {"scale": 0.2},
    "window": {"window": (6, 0)},
    "window, right open": {"window": (6, -1)},
    "softcap": {"softcap": 1.5},
    "alibi": {"alibi_slopes": SLOPES},
    "alibi a sequence": {"alibi_slopes": torch.linspace(0.05, 0.6, 12).view(3, 4)},
    "left padding": {"starts_k": lengths(4, 0, 12)},
    "all of it": {
        "scale": 0.3,
        "window": (9, 0),
        "softcap": 2.0,
        "alibi_slopes": SLOPES,
        "starts_k": lengths(4, 0, 22),
    },
}


def caches(
    device: str, dtype: torch.dtype, page: int | None, heads: int = 2, width: int = 16
) -> tuple[Tensor, Tensor, Tensor | None]:
    """k_cache, v_cache and, for pages, a block table in which no block is used twice."""
    shape, table = (3, CAPACITY, heads, width), None
    if page is not None:
        pages = CAPACITY // page
        shape = (3 * pages + 2, page, heads, width)
        table = torch.randperm(3 * pages + 2)[: 3 * pages].view(3, pages).int().to(device)
    k, v = (torch.randn(shape).to(device, dtype) for _ in range(2))
    return k, v, table


def double(options: dict[str, object]) -> dict[str, object]:
    return {
        k: v.double() if isinstance(v, Tensor) and v.is_floating_point() else v
        for k, v in options.items()
    }


def check(
    device: str,
    dtype: torch.dtype,
    tokens: int,
    new: int,
    options: dict[str, object],
    page: int | None = None,
    seqlens: tuple[int, ...] = LENGTHS,
) -> None:
    k_cache, v_cache, table = caches(device, dtype, page)
    q = torch.randn(3, tokens, 4, 16).to(device, dtype)
    options = {**on(device, options), "block_table": table}
    if new:
        options["k_new"], options["v_new"] = torch.randn(2, 3, new, 2, 16).to(device, dtype)
    filled = lengths(*seqlens).to(device)
    arguments = (q, k_cache, v_cache)
    exact = reference.attention_decode(*(t.double() for t in arguments), filled, **double(options))
    plain = reference.attention_decode(*arguments, filled, **options)
    out, lse = llmjp_ext.attention_decode(*arguments, filled, **options, return_lse=True)
    assert out.is_contiguous() and lse.dtype == torch.float32
    for name, a, e, p in zip(("out", "lse"), (out, lse), exact, plain, strict=True):
        assert_accurate(a, e, p, what=f"{name} of {tokens} tokens, {new} new, {options.keys()}")
    assert torch.equal(filled.cpu(), lengths(*seqlens))


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("page", [None, 8], ids=["contiguous", "paged"])
@pytest.mark.parametrize("case", CASES)
def test_values(device: str, case: str, page: int | None, dtype: torch.dtype) -> None:
    """Each option with one token and with several, each with and without an append."""
    if runs_kernels(device) and dtype == torch.float32:
        pytest.skip("the kernel takes float16 and bfloat16")
    for tokens, new in ((1, 1), (1, 0), (3, 3)):
        check(device, dtype, tokens, new, CASES[case], page)


def test_sequences_of_one_length(device: str) -> None:
    """Equal lengths are one batch, as in generation from prompts of one length."""
    for case in ("plain", "window", "softcap"):
        for tokens, new in ((1, 1), (4, 4), (2, 0)):
            check(device, torch.bfloat16, tokens, new, CASES[case], seqlens=(17, 17, 17))


def test_prompt_into_an_empty_cache(device: str) -> None:
    """As many tokens as keys: causal self-attention; fewer queries than new keys see them all."""
    check(device, torch.bfloat16, 9, 9, {}, seqlens=(0, 0, 0))
    check(device, torch.bfloat16, 2, 9, {}, seqlens=(0, 5, 0))


def test_tokens_without_keys(device: str) -> None:
    """A sequence whose cache is empty, or padded to its end, has out 0 and lse -inf."""
    k_cache, v_cache, _ = caches(device, torch.bfloat16, None)
    q = torch.randn(3, 1, 4, 16, device=device).bfloat16()
    out, lse = llmjp_ext.attention_decode(
        q,
        k_cache,
        v_cache,
        lengths(0, 5, 7).to(device),
        starts_k=lengths(0, 5, 2).to(device),
        return_lse=True,
    )
    assert not out[:2].any() and bool((lse[:2] == -math.inf).all())
    assert bool(out[2].any()) and bool(lse[2].isfinite().all())


@pytest.mark.parametrize("page", [None, 8], ids=["contiguous", "paged"])
def test_append_is_in_place_and_touches_nothing_else(device: str, page: int | None) -> None:
    """The new keys stand behind each sequence's own, over page borders; all else is as it was."""
    k_cache, v_cache, table = caches(device, torch.float16, page)
    before = k_cache.clone(), v_cache.clone()
    k_new, v_new = torch.randn(2, 3, 3, 2, 16).to(device, torch.float16)
    q = torch.randn(3, 1, 4, 16).to(device, torch.float16)
    filled = lengths(6, 0, 29).to(device)
    llmjp_ext.attention_decode(
        q, k_cache, v_cache, filled, k_new=k_new, v_new=v_new, block_table=table
    )
    for cache, old, new in ((k_cache, before[0], k_new), (v_cache, before[1], v_new)):
        for b, first in enumerate((6, 0, 29)):
            for i in range(3):
                place = (b, first + i)
                if table is not None:
                    place = (int(table[b, (first + i) // 8]), (first + i) % 8)
                assert torch.equal(cache[place], new[b, i])
                cache[place] = old[place]
        assert torch.equal(cache, old)


def test_generation_is_attention_over_all() -> None:
    """Token by token through the cache gives what causal attention gives at once."""
    q, k, v = (torch.randn(2, 12, h, 16) for h in (4, 2, 2))
    k_cache, v_cache = torch.full((2, 2, 12, 2, 16), math.nan)  # what is not filled is not read
    steps = [
        llmjp_ext.attention_decode(
            q[:, i : i + 1],
            k_cache,
            v_cache,
            lengths(i, i),
            k_new=k[:, i : i + 1],
            v_new=v[:, i : i + 1],
        )
        for i in range(12)
    ]
    expected = llmjp_ext.attention(q, k, v, causal=True)
    exact = reference_attention.attention(*(t.double() for t in (q, k, v)), causal=True)[0]
    assert_accurate(torch.cat(steps, 1), exact, expected, what="out")


def test_strided_cache(device: str) -> None:
    """One tensor for keys and values of all layers, and q as a slice of a projection."""
    everything = torch.randn(2, 3, CAPACITY, 2, 2, 16, device=device).bfloat16()
    k_cache, v_cache = everything[0, ..., 0, :], everything[1, ..., 1, :]
    q = torch.randn(3, 1, 8, 16, device=device).bfloat16()[:, :, 2:6]
    filled = lengths(9, 20, 3).to(device)
    out = llmjp_ext.attention_decode(q, k_cache, v_cache, filled)
    arguments = (q, k_cache, v_cache)
    exact = reference.attention_decode(*(t.double() for t in arguments), filled)[0]
    assert_accurate(out, exact, reference.attention_decode(*arguments, filled)[0], what="out")


def test_empty_batch_and_no_tokens() -> None:
    k_cache, v_cache, _ = caches("cpu", torch.float32, None)
    none = torch.randn(3, 0, 4, 16)
    assert llmjp_ext.attention_decode(none, k_cache, v_cache, lengths(1, 2, 3)).shape == none.shape
    empty = torch.randn(0, 1, 4, 16)
    out = llmjp_ext.attention_decode(empty, k_cache[:0], v_cache[:0], lengths())
    assert out.shape == empty.shape


def test_opcheck() -> None:
    """Schema with its two mutated caches, fake, and dynamic AOT dispatch."""
    k_cache, v_cache, table = caches("cpu", torch.float32, 8)
    q, k_new = torch.randn(3, 1, 4, 16), torch.randn(3, 1, 2, 16)
    arguments = (q, k_cache, v_cache, lengths(*LENGTHS), k_new, k_new.clone(), table)
    op = torch.ops.llmjp_ext.attention_decode
    torch.library.opcheck(op, (*arguments, None, lengths(1, 0, 2), None, 5, 0.0))
    k_cache, v_cache, _ = caches("cpu", torch.bfloat16, None)
    arguments = (q.bfloat16(), k_cache, v_cache, lengths(*LENGTHS), None, None, None)
    torch.library.opcheck(op, (*arguments, torch.rand(4), None, 0.3, -1, 1.0))


def test_compiles_whole_without_recompiling() -> None:
    """No graph break, the append seen by what follows, and one graph for three capacities."""
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")

    @torch.compile(fullgraph=True, dynamic=True, backend=counter)
    def step(q: Tensor, k_cache: Tensor, v_cache: Tensor, seqlens: Tensor, new: Tensor):
        out = llmjp_ext.attention_decode(q, k_cache, v_cache, seqlens, k_new=new, v_new=new)
        return out, k_cache.sum()

    graphs = []
    for capacity in (8, 12, 17):
        k_cache, v_cache = (torch.randn(3, capacity, 2, 16) for _ in range(2))
        q, new = torch.randn(3, 1, 4, 16), torch.randn(3, 1, 2, 16)
        eager = k_cache.clone(), v_cache.clone()
        expected = llmjp_ext.attention_decode(q, *eager, lengths(3, 0, 7), k_new=new, v_new=new)
        out, total = step(q, k_cache, v_cache, lengths(3, 0, 7), new)
        assert torch.equal(out, expected)
        assert torch.equal(k_cache, eager[0]) and torch.equal(v_cache, eager[1])
        assert torch.allclose(total, eager[0].sum(), atol=1e-4)
        graphs.append(len(counter.graphs))
    # A graph with mutated inputs may reach the backend twice at its first compilation.
    assert graphs[0] == graphs[-1], f"recompiled for another capacity: {graphs}"


def test_autocast_follows_the_cache(device: str) -> None:
    """q and the new keys take the caches' dtype, whatever autocast's is."""
    k_cache, v_cache, _ = caches(device, torch.float16, None)
    q, new = torch.randn(3, 1, 4, 16, device=device), torch.randn(3, 1, 2, 16, device=device)
    with torch.autocast(device, dtype=torch.bfloat16):
        out = llmjp_ext.attention_decode(
            q, k_cache, v_cache, lengths(*LENGTHS).to(device), k_new=new, v_new=new
        )
    assert out.dtype == torch.float16 and torch.equal(k_cache[1, 0], new[1, 0].half())


def good(**other: object) -> dict[str, object]:
    cache = torch.ones(2, 6, 2, 8)
    defaults = {"q": torch.ones(2, 1, 4, 8), "k_cache": cache, "v_cache": cache.clone()}
    return {**defaults, "cache_seqlens": lengths(1, 2), **other}


NEW = torch.ones(2, 1, 2, 8)


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        (good(q=torch.ones(2, 1, 4, 8).double()), TypeError, "float16 or bfloat16, got.*float64"),
        (good(q=torch.ones(2, 4, 8)), ValueError, r"tokens, heads, head_dim\], got"),
        (good(k_cache=torch.ones(2, 6, 2, 8).half()), TypeError, "k_cache must have q's dtype"),
        (good(v_cache=torch.ones(2, 6, 2, 9)), ValueError, r"v_cache must be \[batch, capacity"),
        (good(v_cache=torch.ones(2, 7, 2, 8)), ValueError, r"one shape.*\[2, 7, 2, 8\]"),
        (good(q=torch.ones(2, 1, 3, 8)), ValueError, "multiple of the caches', got 3 and 2"),
        (good(cache_seqlens=torch.tensor([1, 2])), TypeError, "cache_seqlens must be int32"),
        (good(cache_seqlens=lengths(1)), ValueError, r"shape \[2\].*got \[1\]"),
        (good(cache_seqlens=lengths(1, 7)), ValueError, "sequence 1 has 7 keys and 0 new.*of 6"),
        (good(k_new=NEW), ValueError, "k_new and v_new must be given together"),
        (good(k_new=NEW, v_new=NEW.half()), TypeError, "v_new must have the caches' dtype"),
        (good(k_new=NEW, v_new=NEW[..., :7]), ValueError, r"v_new must have shape \[2, 1, 2, 8\]"),
        (
            good(k_new=NEW, v_new=NEW, cache_seqlens=lengths(6, 2)),
            ValueError,
            "sequence 0 has 6 keys and 1 new ones, which do not fit its cache of 6",
        ),
        (good(block_table=torch.zeros(2, 1)), TypeError, "block_table must be int32"),
        (good(block_table=lengths(1, 1)), ValueError, r"shape \[2, pages\], got \[2\]"),
        (good(window=(3, 1)), ValueError, r"right side must be 0 or -1, got \(3, 1\)"),
        (good(softcap=-1.0), ValueError, "softcap must not be negative"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_errors_name_what_was_given(given, error, words) -> None:
    q, k_cache, v_cache, seqlens = (
        given.pop(name) for name in ("q", "k_cache", "v_cache", "cache_seqlens")
    )
    with pytest.raises(error, match=words):
        llmjp_ext.attention_decode(q, k_cache, v_cache, seqlens, **given)
