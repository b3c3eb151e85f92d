"""Attention on every backend where it is hard: lengths and head dimensions beside the tiles, every
option at once, memory in every order.

Problems are drawn from a seed that the failure names. `make sweep` draws many more of them.
"""

import random
from typing import Any

import pytest
import torch
from torch import Tensor

import llmjp_ext
from attention_cases import compare, lengths, run, runs_kernels
from llmjp_ext.ops._attention_torch import Dropout
from llmjp_ext.reference import attention as reference
from llmjp_ext.reference.attention_decode import attention_decode as decode_reference
from llmjp_ext.reference.attention_varlen import attention_varlen as varlen_reference
from llmjp_ext.testing import assert_accurate
from test_attention_varlen import Packing

pytestmark = pytest.mark.usefixtures("sums_in_any_order")

HEAD_DIMS = (8, 32, 40, 59, 72, 80, 96, 111, 136, 160, 192, 200, 224, 248, 256)
# Queries and keys: one of either, many of one and few of the other, about powers of two.
LENGTHS = ((1, 147), (1, 239), (3, 399), (399, 3), (113, 203), (108, 256), (97, 97))
LONG = ((3, 799), (799, 3), (1023, 1024), (1024, 1023))
LAYOUTS = ("as it is", "heads first", "wider rows", "odd rows", "expanded")
# Not 0: with a query's own key alone the softmax has no gradient, and delta's rounding is all that
# is left (docs/attention.md, "Numerics").
WINDOWS = (-1, 3, 20, 70, 500)
FEW, MANY = range(6), range(6, 150)


def laid_out(tensor: Tensor, layout: str) -> Tensor:
    """[..., tokens, heads, head_dim] with another order in memory; expanded, heads are the first
    one's."""
    if layout == "heads first":
        return tensor.transpose(-3, -2).contiguous().transpose(-3, -2)
    if layout == "expanded":
        return tensor[..., :1, :].contiguous().expand(tensor.shape)
    extra = {"wider rows": 8, "odd rows": 1}.get(layout, 0)
    wide = tensor.new_full((*tensor.shape[:-1], tensor.shape[-1] + extra), torch.nan)
    wide[..., extra:] = tensor
    return wide[..., extra:]


class Draw:
    """Everything that a problem needs, from one seed."""

    def __init__(self, seed: int, device: str) -> None:
        self.random = random.Random(seed)
        self.device = device
        torch.manual_seed(seed)
        self.dtype = self.random.choice((torch.float16, torch.bfloat16))
        self.kv_heads = self.random.choice((1, 1, 2))
        self.heads = self.kv_heads * self.random.choice((1, 2, 3))
        self.width = self.random.choice(HEAD_DIMS)

    def normal(self, *shape: int) -> Tensor:
        """Random values in a random order of memory."""
        values = torch.randn(*shape).to(self.device, self.dtype)
        return laid_out(values, self.random.choice(LAYOUTS))

    def sometimes(self, value: Any) -> Any:
        """The value, or None."""
        return value if self.random.random() < 0.5 else None

    def options(self, batch: int, longest: int) -> dict[str, Any]:
        """What attention, packed or not, takes of masks and formulas."""
        shape = self.random.choice(((self.heads,), (batch, self.heads)))
        return {
            "causal": self.random.random() < 0.5,
            "scale": self.sometimes(self.random.uniform(-0.3, 0.5)),
            "window": self.sometimes(tuple(self.random.choices(WINDOWS, k=2))),
            "softcap": self.random.choice((0.0, 0.0, 0.5, 30.0)),
            "alibi_slopes": self.sometimes((torch.rand(shape) / 4).to(self.device)),
        }


def judge(actual: list[Tensor], exact: list[Tensor], plain: list[Tensor], what: str) -> None:
    """Holds results to the numerics rule, but not dq and dk where no query sees two keys: they are
    rounding alone, of which test_one_key_for_many_queries says how much."""
    if not bool(exact[2].any()):
        actual = [*actual[:2], *exact[2:4], actual[4]]
    compare(actual, exact, plain, what)


def check(
    draw: Draw, tokens: int, keys: int, batch: int, options: dict[str, Any], p: float
) -> None:
    """out, lse and gradients of attention, by the numerics rule."""
    q = draw.normal(batch, tokens, draw.heads, draw.width)
    k, v = (draw.normal(batch, keys, draw.kv_heads, draw.width) for _ in range(2))
    dout = draw.normal(*q.shape)
    dlse = draw.sometimes(torch.randn(batch, draw.heads, tokens).to(draw.device))
    torch.manual_seed(7)
    state = torch.randint(2**63 - 1, (2,), device=draw.device)
    kept = Dropout.of_batch(state, p, q, k).scale(range(tokens), keys) if p else None

    def op(*leaves: Tensor):
        torch.manual_seed(7)
        return llmjp_ext.attention(*leaves, **options, dropout_p=p, return_lse=True)

    def truth(*leaves: Tensor):
        scale = None if kept is None else kept.to(leaves[0].dtype)
        return reference.attention(*leaves, **options, dropout_scale=scale)

    actual, plain = (run(f, [q, k, v], dout, dlse) for f in (op, truth))
    exact = run(truth, [t.double() for t in (q, k, v)], dout, dlse)
    judge(actual, exact, plain, f"{tokens} x {keys}, {draw.__dict__}, {options}, dropout {p}")


@pytest.mark.parametrize("pair", LENGTHS, ids=str)
def test_lengths(device: str, pair: tuple[int, int]) -> None:
    """Each pair with a causal mask and without, in one of the tiles."""
    for causal in (False, True):
        draw = Draw(hash(pair) + causal, device)
        draw.width = draw.random.choice((40, 64, 128, 200))
        check(draw, *pair, 1, {"causal": causal}, 0.0)


def test_one_key_for_many_queries(device: str) -> None:
    """A softmax of one key is 1 whatever the score: q and k get what float32's rounding leaves of
    two equal sums of `width` terms, v gets the sum of all gradients."""
    tokens, width = 239, 64
    q, dout = (torch.randn(1, tokens, 2, width).to(device, torch.bfloat16) for _ in range(2))
    k, v = (torch.randn(1, 1, 1, width).to(device, torch.bfloat16) for _ in range(2))

    def op(*leaves: Tensor):
        return llmjp_ext.attention(*leaves, scale=0.125, return_lse=True)

    out, lse, dq, dk, dv = run(op, [q, k, v], dout, None)
    assert torch.equal(out, v.expand(out.shape))
    scores = (q.double() * k.double()).sum(-1).transpose(1, 2) * 0.125
    assert_accurate(lse, scores, scores.bfloat16(), what="lse")
    exact = dout.double().sum((1, 2), keepdim=True)
    assert_accurate(dv, exact, exact.to(dv.dtype), what="dv")
    terms = (dout.double() * v.double()).abs().sum(-1, keepdim=True) * 0.125
    left = width * torch.finfo(torch.float32).eps * terms
    assert bool((dq.double().abs() <= left * k.double().abs()).all())
    assert bool((dk.double().abs() <= (left * q.double().abs()).sum((1, 2), keepdim=True)).all())


@pytest.mark.parametrize("width", HEAD_DIMS)
def test_head_dimensions(device: str, width: int) -> None:
    """Multiples of 8 between the tiles, and other numbers, which go through a padded copy."""
    draw = Draw(width, device)
    draw.width = width
    check(draw, 35, 41, 1, {"causal": True}, 0.0)


def check_random(seed: int, device: str) -> None:
    draw = Draw(seed, device)
    choice, batch = draw.random.choice, draw.random.choice((1, 2))
    tokens, keys = (choice((1, 2, 17, 33, 64, 70, 129, 150)) for _ in range(2))
    options = draw.options(batch, max(tokens, keys))
    places = (-3, 0, 5, keys // 2, keys, keys + 9)
    for name in ("starts_k", "seqlens_k"):
        options[name] = draw.sometimes(lengths(*(choice(places) for _ in range(batch))).to(device))
    check(draw, tokens, keys, batch, options, choice((0.0, 0.0, 0.3)))


@pytest.mark.parametrize("seed", FEW)
def test_random_problems(device: str, seed: int) -> None:
    """Options, dropout, padding, strides of inputs and gradients, a gradient of lse, at once."""
    check_random(seed, device)


def check_random_packed(seed: int, device: str) -> None:
    draw = Draw(1000 + seed, device)
    count = draw.random.randint(1, 4)
    queries = tuple(draw.random.choice((0, 1, 5, 33, 64, 100)) for _ in range(count))
    keys = (
        queries if draw.random.random() < 0.5 else tuple(draw.random.sample((0, 2, 40, 129), count))
    )
    packing = Packing(queries, keys, draw.random.choice((0, 3, 70)), draw.random.choice((0, 1, 70)))
    options = draw.options(count, max(1, *queries, *keys))
    q = draw.normal(packing.total("queries"), draw.heads, draw.width)
    k, v = (draw.normal(packing.total("keys"), draw.kv_heads, draw.width) for _ in range(2))
    dout = draw.normal(*q.shape)
    dlse = draw.sometimes(torch.randn(draw.heads, q.shape[0]).to(device))
    arguments = packing.arguments(device)

    def op(*leaves: Tensor):
        return llmjp_ext.attention_varlen(*leaves, *arguments, **options, return_lse=True)

    def truth(*leaves: Tensor):
        return varlen_reference(*leaves, *arguments[:2], **options)

    actual, plain = (run(f, [q, k, v], dout, dlse) for f in (op, truth))
    exact = run(truth, [t.double() for t in (q, k, v)], dout, dlse)
    judge(actual, exact, plain, f"{packing}, {draw.__dict__}, {options}")


@pytest.mark.parametrize("seed", FEW)
def test_random_packed_problems(device: str, seed: int) -> None:
    """The same of packed sequences, some of them empty, between rows of none."""
    check_random_packed(seed, device)


def check_random_decode(seed: int, device: str) -> None:
    draw = Draw(2000 + seed, device)
    choice, batch = draw.random.choice, draw.random.choice((1, 2, 3))
    draw.width = choice([width for width in HEAD_DIMS if width % 8 == 0])
    tokens = choice((1, 1, 2, 8, 19))
    new = choice((0, 1, tokens, tokens + 3))
    page, pages = choice((None, 1, 3, 7, 16, 24)), choice((3, 11))
    capacity = pages * (page or 16)
    most = capacity - new
    filled = [draw.random.randint(0, max(0, most)) for _ in range(batch)]
    new = min(new, capacity)
    options = draw.options(batch, capacity)
    del options["causal"]
    if options["window"] is not None:
        options["window"] = (options["window"][0], choice((0, -1)))
    options["starts_k"] = draw.sometimes(
        lengths(*(choice((-1, 0, 4, capacity)) for _ in range(batch))).to(device)
    )
    shape, table = (batch, capacity, draw.kv_heads, draw.width), None
    if page is not None:
        blocks = batch * pages + 2
        shape = (blocks, page, draw.kv_heads, draw.width)
        table = torch.randperm(blocks)[: batch * pages].view(batch, pages).int().to(device)
    caches = [laid_out(torch.randn(shape).to(device, draw.dtype), c) for c in (LAYOUTS[0],) * 2]
    q = draw.normal(batch, tokens, draw.heads, draw.width)
    if new:
        options["k_new"], options["v_new"] = (
            draw.normal(batch, new, draw.kv_heads, draw.width) for _ in range(2)
        )
    options["block_table"] = table
    seqlens = lengths(*filled).to(device)
    wide = {
        n: t.double() if isinstance(t, Tensor) and t.is_floating_point() else t
        for n, t in options.items()
    }
    exact = decode_reference(*(t.double() for t in (q, *caches)), seqlens, **wide)
    plain = decode_reference(q, *caches, seqlens, **options)
    actual = llmjp_ext.attention_decode(q, *caches, seqlens, **options, return_lse=True)
    for name, a, e, p in zip(("out", "lse"), actual, exact, plain, strict=True):
        what = f"{name} of {filled} + {new}, {tokens} tokens, page {page}, {draw.__dict__}"
        assert_accurate(a, e, p, what=what)


@pytest.mark.parametrize("seed", range(12))
def test_random_decode_problems(device: str, seed: int) -> None:
    """Pages of any size, several tokens and new keys, with every option."""
    check_random_decode(seed, device)


@pytest.mark.sweep
@pytest.mark.parametrize("seed", MANY)
def test_sweep(device: str, seed: int, monkeypatch) -> None:
    """Many more of the random problems, with sums in any order and in a fixed one."""
    for ordered in (False, True) if runs_kernels(device) else (False,):
        monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda o=ordered: o)
        check_random(seed, device)
        check_random_packed(seed, device)
    for again in range(3):
        check_random_decode(3 * seed + again, device)


@pytest.mark.sweep
@pytest.mark.parametrize("pair", LONG, ids=str)
@pytest.mark.parametrize("width", [64, 128, 256])
def test_long_sequences(device: str, pair: tuple[int, int], width: int) -> None:
    """Many tiles of queries and of keys, one of them not whole."""
    for causal in (False, True):
        draw = Draw(width + causal, device)
        draw.width, draw.heads, draw.kv_heads = width, 2, 1
        check(draw, *pair, 1, {"causal": causal}, 0.0)


def test_softcap_alibi_window_and_dropout_together(device: str) -> None:
    """Every formula of the general kernels at once, over several tiles, in each of them."""
    for width in (64, 128, 256):
        draw = Draw(width, device)
        draw.width, draw.heads, draw.kv_heads = width, 2, 1
        options = {
            "causal": True,
            "window": (50, 0),
            "softcap": 2.0,
            "alibi_slopes": torch.tensor([0.3, 0.05], device=device),
            "starts_k": lengths(3).to(device),
            "seqlens_k": lengths(125).to(device),
        }
        check(draw, 70, 130, 1, options, 0.2)


def test_float32_is_left_to_the_cpu(device: str) -> None:
    """Where the kernels serve, float32 is refused by its name."""
    if not runs_kernels(device):
        pytest.skip("float32 is what the CPU takes")
    ones = torch.ones(1, 2, 1, 8, device=device)
    with pytest.raises((TypeError, RuntimeError), match="float16 or bfloat16"):
        llmjp_ext.attention(ones, ones, ones)
