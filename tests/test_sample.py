"""sample on every backend that implements it: the distribution, ties, edge values, errors.

Draws are compared with Transformers' processors by a chi-square test from a fixed seed, whose
statistic has to stay below the value that a right sampler exceeds once in a million seeds.
"""

import math
from collections.abc import Iterator

import pytest
import torch
import torch._dynamo.testing
from torch import Tensor

import llmjp_ext
from llmjp_ext import _library
from llmjp_ext.ops import sample as module
from llmjp_ext.reference import sample as reference
from llmjp_ext.testing import simulated_kernels

FLOATS = [torch.float32, torch.float16, torch.bfloat16]

DEFAULTS = {
    "temperature": 1.0,
    "top_k": 0,
    "top_p": 1.0,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
}
CASES = {
    "plain": {},
    "temperature": {"temperature": 0.6},
    "top-k": {"top_k": 7},
    "top-p": {"top_p": 0.8},
    "min-p": {"min_p": 0.1},
    "penalty": {"repetition_penalty": 1.7},
    "top-k, then top-p": {"top_k": 9, "top_p": 0.7},
    "top-p, then min-p": {"top_p": 0.9, "min_p": 0.05, "temperature": 1.5},
    "all of it": {
        "temperature": 1.3,
        "top_k": 25,
        "top_p": 0.95,
        "min_p": 0.02,
        "repetition_penalty": 1.3,
    },
}


@pytest.fixture(params=["simt", pytest.param("cuda", marks=pytest.mark.gpu)])
def kernel_device(request: pytest.FixtureRequest) -> Iterator[str]:
    """The device of a test's tensors where the kernel runs: simulated, or on a GPU."""
    if request.param == "simt":
        with simulated_kernels():
            yield "cpu"
    else:
        yield request.param


def draws(device: str) -> int:
    """How many ids of one distribution a test draws: simulated threads are slow."""
    simulated = _library.ops is not torch.ops.llmjp_ext
    return {"cpu": 500 if simulated else 20000, "cuda": 1_000_000}[device]


def assert_drawn_from(ids: Tensor, p: Tensor, seed: int) -> None:
    """Pearson's chi-square of ids [draws] against the probabilities p [vocab]."""
    counts = torch.bincount(ids.cpu(), minlength=p.numel()).double()
    assert counts.numel() == p.numel() and not counts[p == 0].any(), f"an id of p = 0, seed {seed}"
    expected = p.double() * len(ids)
    rare = (expected < 5) & (p > 0)
    cells = torch.cat([counts[expected >= 5], counts[rare].sum()[None]])
    wanted = torch.cat([expected[expected >= 5], expected[rare].sum()[None]])
    cells, wanted = cells[wanted > 0], wanted[wanted > 0]
    freedom = len(cells) - 1
    if freedom == 0:
        return
    statistic = float(((cells - wanted).square() / wanted).sum())
    # Wilson and Hilferty: the cube root of chi-square / freedom is nearly normal; 4.75 sigma.
    spread = 2 / (9 * freedom)
    limit = freedom * (1 - spread + 4.75 * math.sqrt(spread)) ** 3
    assert statistic < limit, f"chi-square {statistic:.1f} of {freedom}, limit {limit:.1f}, {seed=}"


def transformers_probabilities(logits: Tensor, previous: Tensor, options: dict) -> Tensor:
    """What Transformers draws from; its order is checked by test_order_is_that_of_generate."""
    from transformers.generation.logits_process import (
        LogitsProcessorList,
        MinPLogitsWarper,
        RepetitionPenaltyLogitsProcessor,
        TemperatureLogitsWarper,
        TopKLogitsWarper,
        TopPLogitsWarper,
    )

    processors = LogitsProcessorList()
    for name, make in (
        ("repetition_penalty", RepetitionPenaltyLogitsProcessor),
        ("temperature", TemperatureLogitsWarper),
        ("top_k", TopKLogitsWarper),
        ("top_p", TopPLogitsWarper),
        ("min_p", MinPLogitsWarper),
    ):
        if name in options:
            processors.append(make(options[name]))
    return torch.softmax(processors(previous, logits), -1)


@pytest.mark.parametrize("case", CASES)
def test_draws_like_transformers(device: str, case: str, seed: int) -> None:
    """The reference is Transformers' distribution, and the draws are from it."""
    logits = torch.randn(1, 60) * 2
    previous = torch.randint(0, 60, (1, 12))
    options = CASES[case]
    theirs = transformers_probabilities(logits, previous, options)
    ours = reference.probabilities(logits, previous=previous, **options)
    assert torch.allclose(ours, theirs, atol=1e-6)
    count = draws(device)
    ids = llmjp_ext.sample(
        logits.to(device).expand(count, 60),
        previous=previous.to(device).expand(count, 12),
        **options,
    )
    assert ids.dtype == torch.int64 and ids.shape == (count,)
    assert_drawn_from(ids, ours[0], seed)


def test_a_million_draws(seed: int) -> None:
    """All filters at once: Transformers' distribution to the precision of a million ids."""
    logits, previous = torch.randn(1, 60) * 2, torch.randint(0, 60, (1, 12))
    options = CASES["all of it"]
    theirs = transformers_probabilities(logits, previous, options)
    calls, rows = 20, 50_000
    ids = [
        llmjp_ext.sample(logits.expand(rows, 60), previous=previous.expand(rows, 12), **options)
        for _ in range(calls)
    ]
    assert_drawn_from(torch.cat(ids), theirs[0], seed)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("case", CASES)
def test_kernel_draws_what_the_cpu_draws(
    kernel_device: str, case: str, dtype: torch.dtype, seed: int
) -> None:
    """The same seed and offset give the PyTorch implementation's ids, row by row."""
    rows, vocab = 24, 2301
    logits = (torch.randn(rows, vocab + 3) * 3).to(dtype)[:, 1:-2]
    previous = torch.randint(-1, vocab, (rows, 300))
    state = torch.tensor([seed, 3])
    numbers = [{**DEFAULTS, **CASES[case]}[name] for name in DEFAULTS]
    ours, theirs = (
        op.sample(
            logits.to(at), previous.to(at), state.to(at), *numbers, *[None] * 5, vocab - 1
        ).cpu()
        for op, at in ((_library.ops, kernel_device), (torch.ops.llmjp_ext, "cpu"))
    )
    assert torch.equal(ours, theirs), f"rows {(ours != theirs).nonzero()[:, 0].tolist()}, {seed=}"


@pytest.mark.parametrize("options", [{}, {"top_p": 0.9}], ids=["plain", "top-p"])
def test_more_ids_than_bins_of_neighbours(
    kernel_device: str, options: dict[str, float], seed: int
) -> None:
    """The draw's histogram has 2,048 bins of 128 neighbouring float32 ids, or else of several."""
    rows, vocab = 6, 300_001
    logits, state = torch.randn(rows, vocab), torch.tensor([seed, 5])
    numbers = [{**DEFAULTS, **options}[name] for name in DEFAULTS]
    ours, theirs = (
        op.sample(logits.to(at), None, state.to(at), *numbers, *[None] * 6).cpu()
        for op, at in ((_library.ops, kernel_device), (torch.ops.llmjp_ext, "cpu"))
    )
    assert torch.equal(ours, theirs), f"{ours.tolist()}, the CPU's {theirs.tolist()}, {seed=}"


@pytest.mark.parametrize(
    ("vocab", "length", "words"),
    [(2**23 + 1, 0, "at most 8388608 ids"), (2**22, 1, "ids need 5.* bytes of shared memory")],
    ids=["ids", "previous ids"],
)
def test_the_kernel_names_its_limits(
    kernel_device: str, vocab: int, length: int, words: str
) -> None:
    logits = torch.zeros(1, vocab, dtype=torch.float16, device=kernel_device)
    previous = torch.zeros(1, length, dtype=torch.int64, device=kernel_device)
    with pytest.raises(ValueError, match=words):
        llmjp_ext.sample(logits, previous=previous, repetition_penalty=1.2)


@pytest.mark.gpu
def test_cuda_graph_draws_anew(seed: int) -> None:
    """A captured call reads its seed from the device: every replay draws from its own."""
    generator = torch.Generator("cuda")
    logits = torch.randn(64, 50688, device="cuda", dtype=torch.bfloat16)
    warmth = torch.linspace(0.0, 1.5, 64, device="cuda")
    previous = torch.randint(0, 50688, (64, 100), device="cuda")

    def draw() -> Tensor:
        return llmjp_ext.sample(
            logits,
            temperature=warmth,
            top_k=50,
            top_p=0.95,
            previous=previous,
            repetition_penalty=1.2,
            generator=generator,
        )

    draw()
    graph = torch.cuda.CUDAGraph()
    graph.register_generator_state(generator)
    with torch.cuda.graph(graph):
        ids = draw()
    generator.manual_seed(seed)
    replays = []
    for _ in range(3):
        graph.replay()
        replays.append(ids.clone())
    generator.manual_seed(seed)
    assert all(torch.equal(replay, draw()) for replay in replays)
    assert not torch.equal(replays[0], replays[1])
    assert torch.equal(replays[0][0], replays[1][0]), "temperature 0 draws nothing"


def test_order_is_that_of_generate() -> None:
    """Transformers' own list for these options has the processors in the order used above."""
    from transformers import GenerationConfig, GPT2Config, GPT2LMHeadModel

    config = GenerationConfig(**CASES["all of it"], do_sample=True)
    small = GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=1, n_embd=4, vocab_size=8, n_positions=4))
    processors = small._get_logits_processor(config, input_ids_seq_length=1)
    assert [type(processor).__name__ for processor in processors] == [
        "RepetitionPenaltyLogitsProcessor",
        "TemperatureLogitsWarper",
        "TopKLogitsWarper",
        "TopPLogitsWarper",
        "MinPLogitsWarper",
    ]


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_options_by_row(
    device: str, dtype: torch.dtype, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each row follows its own numbers, also where top-p has to look beyond the largest logits."""
    monkeypatch.setattr(module, "_LARGEST_FIRST", 16)
    vocab = 150
    logits = (torch.randn(1, vocab) * 0.3).to(device, dtype)
    rows = [
        {"temperature": 0.0},
        {"temperature": 0.1, "top_k": 5},
        {"top_p": 0.9},
        {"top_p": 0.01, "repetition_penalty": 2.0},
        {"min_p": 0.75, "temperature": 0.5},
        {"top_k": 40, "top_p": 0.5, "min_p": 0.1},
    ]
    each = draws(device) // 10
    options = {
        name: torch.tensor(
            [row.get(name, default) for row in rows], device=device
        ).repeat_interleave(each)
        for name, default in DEFAULTS.items()
    }
    previous = torch.arange(0, vocab, 3, device=device)[None]
    ids = llmjp_ext.sample(
        logits.expand(len(rows) * each, vocab),
        previous=previous.expand(len(rows) * each, -1),
        **options,
    ).view(len(rows), each)
    for drawn, row in zip(ids, rows, strict=True):
        p = reference.probabilities(logits.cpu().float(), previous=previous.cpu(), **row)
        assert_drawn_from(drawn, p[0], seed)


def test_temperature_0_is_argmax(device: str) -> None:
    """The largest logit after the penalty, the first of equal ones, and nothing is drawn."""
    logits = torch.tensor([[1.0, 3.0, 3.0, 2.0], [5.0, 4.0, -1.0, 0.0]], device=device)
    previous = torch.tensor([[-1, -1], [0, 0]], device=device)
    state = torch.get_rng_state() if device == "cpu" else torch.cuda.get_rng_state()
    ids = llmjp_ext.sample(
        logits, temperature=0.0, top_k=1, previous=previous, repetition_penalty=2.0
    )
    assert ids.tolist() == [1, 1]
    after = torch.get_rng_state() if device == "cpu" else torch.cuda.get_rng_state()
    assert torch.equal(state, after)


def test_ties_are_kept(device: str) -> None:
    """All ids as large as the k-th, or as likely as the last of the top-p set, can be drawn."""
    logits = torch.tensor([[2.0, 1.0, 1.0, 1.0, 0.0]], device=device).expand(draws(device) // 4, 5)
    assert set(llmjp_ext.sample(logits, top_k=2).tolist()) == {0, 1, 2, 3}
    assert set(llmjp_ext.sample(logits, top_p=0.5).tolist()) == {0, 1, 2, 3}


def test_one_id_is_always_kept(device: str) -> None:
    logits = torch.randn(50, 30, device=device)
    best = logits.argmax(-1)
    for options in ({"top_p": 0.0}, {"top_k": 1}, {"min_p": 1.0}, {"temperature": 1e-30}):
        assert torch.equal(llmjp_ext.sample(logits, **options), best), options


def test_nan_and_infinities(device: str) -> None:
    """NaN counts as -inf, a row of -inf gives -1, +inf is drawn from alone."""
    inf, nan = math.inf, math.nan
    logits = torch.tensor(
        [[nan, 0.0, nan, -inf], [-inf, nan, -inf, nan], [0.0, inf, 5.0, inf]], device=device
    )
    for options in ({}, {"temperature": 0.0}, {"top_p": 0.9, "top_k": 3, "min_p": 0.1}):
        rows = [llmjp_ext.sample(logits, **options).tolist() for _ in range(50)]
        first, second, third = (set(column) for column in zip(*rows, strict=True))
        assert first == {1} and second == {-1} and third <= {1, 3}, options


def test_padding_of_the_vocabulary_is_never_drawn(device: str) -> None:
    """Ids from valid_vocab on, and ids of the penalty that are none, have no part."""
    rows = draws(device) // 5
    logits = torch.zeros(rows, 8, device=device)
    logits[:, 5:] = 30.0
    previous = torch.tensor([[7, -1, 100]], device=device).expand(rows, 3)
    ids = llmjp_ext.sample(
        logits, valid_vocab=5, previous=previous, repetition_penalty=3.0, top_k=50
    )
    assert set(ids.tolist()) == {0, 1, 2, 3, 4}


def test_generator_decides(device: str) -> None:
    """The same generator state gives the same ids; the default generator is used without one."""
    logits = torch.randn(64, 50, device=device)
    generator = torch.Generator(device)
    first, again = (llmjp_ext.sample(logits, generator=generator.manual_seed(5)) for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, llmjp_ext.sample(logits, generator=generator))
    torch.manual_seed(9)
    default = llmjp_ext.sample(logits)
    torch.manual_seed(9)
    assert torch.equal(default, llmjp_ext.sample(logits))
    # Rows are drawn independently: the same logits in all of them do not give one id.
    assert len(set(llmjp_ext.sample(logits[:1].expand(64, 50)).tolist())) > 1


def test_a_row_does_not_depend_on_the_others(device: str) -> None:
    """A row's id follows from the seed, its place and its logits, however many rows there are."""
    logits = torch.randn(9, 300, device=device)
    generator = torch.Generator(device)
    many, few = (
        llmjp_ext.sample(
            logits[:rows], top_p=0.9, temperature=2.0, generator=generator.manual_seed(3)
        )
        for rows in (9, 4)
    )
    assert torch.equal(many[:4], few)


def test_strided_and_empty_logits(device: str) -> None:
    """The last position of each sequence, taken without a copy; no rows give no ids."""
    logits = torch.randn(3, 5, 40, device=device)
    ids = llmjp_ext.sample(logits[:, -1], temperature=0.0)
    assert torch.equal(ids, logits[:, -1].argmax(-1))
    assert llmjp_ext.sample(logits[:0, -1]).shape == (0,)


def test_opcheck() -> None:
    """Schema, fake and dynamic AOT dispatch."""
    logits, state = torch.randn(3, 20), torch.tensor([4, 2])
    previous = torch.randint(0, 20, (3, 5))
    numbers = (0.7, 5, 0.9, 0.1, 1.2)
    by_row = [torch.tensor(column) for column in ([1.0, 0, 2], [3.0, 0, 0], [0.9, 1, 0.5])]
    nothing = [None] * 5
    op = torch.ops.llmjp_ext.sample
    torch.library.opcheck(op, (logits, previous, state, *numbers, *by_row, None, by_row[0], None))
    torch.library.opcheck(op, (logits.half(), None, state, *numbers, *nothing, 15))
    torch.library.opcheck(op, (logits, None, None, 0.0, 0, 1.0, 0.0, 1.0, *nothing, None))


def test_autocast_changes_nothing(device: str) -> None:
    """What is computed in float32 stays so: the same seed draws the same ids."""
    logits = torch.randn(200, 300, device=device)
    generator = torch.Generator(device)
    options = {"temperature": 0.7, "top_k": 90, "top_p": 0.95, "min_p": 0.01}
    expected = llmjp_ext.sample(logits, **options, generator=generator.manual_seed(5))
    with torch.autocast(device, dtype=torch.bfloat16):
        actual = llmjp_ext.sample(logits, **options, generator=generator.manual_seed(5))
    assert torch.equal(actual, expected)


def test_compiles_whole_without_recompiling() -> None:
    """No graph break, and one graph for three batch sizes."""
    counter = torch._dynamo.testing.CompileCounter()

    @torch.compile(fullgraph=True, dynamic=True, backend=counter)
    def function(logits: Tensor, temperature: Tensor) -> Tensor:
        greedy = llmjp_ext.sample(logits, temperature=0.0)
        return greedy + llmjp_ext.sample(logits, temperature=temperature, top_k=1)

    for rows in (3, 5, 9):
        logits = torch.randn(rows, 20)
        assert torch.equal(function(logits, torch.ones(rows)), 2 * logits.argmax(-1))
    assert counter.frame_count == 1, "recompiled for another batch"


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"logits": torch.ones(2, 8).double()}, TypeError, "bfloat16, got torch.float64"),
        ({"logits": torch.ones(8)}, ValueError, r"\[rows, vocab\].*got \[8\]"),
        ({"logits": torch.ones(2, 0)}, ValueError, r"at least one id, got \[2, 0\]"),
        ({"temperature": -0.5}, ValueError, "temperature must be at least 0, got -0.5"),
        ({"temperature": math.nan}, ValueError, "temperature must be at least 0, got nan"),
        ({"top_k": -1}, ValueError, "top_k must be at least 0, got -1"),
        ({"top_p": 1.5}, ValueError, "top_p must be from 0 to 1, got 1.5"),
        ({"min_p": -0.1}, ValueError, "min_p must be from 0 to 1, got -0.1"),
        ({"repetition_penalty": 0.0}, ValueError, "repetition_penalty must be above 0, got 0.0"),
        ({"top_p": torch.ones(3)}, ValueError, r"number or have shape \[2\].*got \[3\]"),
        ({"top_k": torch.ones(2, device="meta")}, ValueError, "device cpu, got meta"),
        ({"previous": torch.ones(2, 3)}, TypeError, "previous must be int64 ids"),
        ({"previous": torch.ones(3, 3).long()}, ValueError, r"shape \[2, length\], got \[3, 3\]"),
        ({"valid_vocab": 9}, ValueError, "from 1 to 8.*got 9"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_errors_name_what_was_given(options, error, words) -> None:
    with pytest.raises(error, match=words):
        llmjp_ext.sample(**{"logits": torch.ones(2, 8), **options})
