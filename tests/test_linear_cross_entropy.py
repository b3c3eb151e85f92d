"""linear_cross_entropy: values, gradients, memory, tracing, errors.

Values and gradients follow the numerics rule of llmjp_ext.testing; failures print the seed.
"""

import weakref

import pytest
import torch
import torch._dynamo.testing
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

import llmjp_ext
from llmjp_ext.ops import cross_entropy as cross_entropy_module
from llmjp_ext.ops import linear_cross_entropy as module
from llmjp_ext.reference import linear_cross_entropy as reference
from llmjp_ext.testing import GRADIENT_FACTOR, assert_accurate

FLOATS = [torch.float32, torch.float16, torch.bfloat16]
VOCAB, WIDTH = 203, 24
CASES = {
    "mean": {},
    "sum": {"reduction": "sum"},
    "none": {"reduction": "none"},
    "padded vocabulary": {"valid_vocab": 150, "z_loss": 1e-3},
    "none of all": {
        "label_smoothing": 0.2,
        "z_loss": 1e-3,
        "valid_vocab": 150,
        "ignore_index": 3,
        "reduction": "none",
    },
}


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several chunks of tokens and of columns, the last of each not full."""
    monkeypatch.setattr(module, "_CHUNK_BYTES", dict.fromkeys(("cpu", "cuda"), 17 * 256 * 4))
    monkeypatch.setattr(module, "_CPU_COLUMNS", 60)
    monkeypatch.setattr(cross_entropy_module, "_LOGITS_OF_CHUNK", 5 * 256)
    monkeypatch.setattr(module, "_SCALED_ELEMENTS", 900)


def plain(hidden: Tensor, weight: Tensor, targets: Tensor, *, bias=None, **options):
    """What a PyTorch user writes without the op, in hidden's dtype."""
    valid, z_loss = options.pop("valid_vocab", None), options.pop("z_loss", 0.0)
    logits = F.linear(hidden, weight, bias)[..., :valid].flatten(0, -2)
    flat = targets.flatten()
    rows = F.cross_entropy(logits, flat, **{**options, "reduction": "none"})
    counted = flat != options.get("ignore_index", -100)
    if z_loss:
        rows = rows + z_loss * torch.logsumexp(logits, -1).square() * counted
    reduction = options.get("reduction", "mean")
    if reduction == "none":
        return rows.view(targets.shape), None
    return (rows.sum() if reduction == "sum" else rows.sum() / counted.sum()), None


def run(function, inputs: list[Tensor], targets: Tensor, dloss: Tensor, **options) -> list[Tensor]:
    """The loss and the gradients of hidden, weight and, where there is one, bias."""
    leaves = [t.detach().requires_grad_() for t in inputs]
    bias = leaves[2] if len(leaves) > 2 else None
    loss = function(leaves[0], leaves[1], targets, bias=bias, **options)
    loss = loss[0] if isinstance(loss, tuple) else loss
    (loss * dloss.to(loss.dtype)).sum().backward()
    return [loss.detach(), *(leaf.grad for leaf in leaves)]


def drawn(device: str, dtype: torch.dtype, *shape: int, ids: int = VOCAB) -> tuple:
    """hidden, weight, bias and targets, two of each row ignored."""
    hidden, weight, bias = (
        torch.randn(size).to(device, dtype) for size in ((*shape, WIDTH), (VOCAB, WIDTH), (VOCAB,))
    )
    targets = torch.randint(0, ids, shape).to(device)
    targets[..., 1:3] = -100
    return [hidden, weight, bias], targets


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients(device: str, case: str, dtype: torch.dtype) -> None:
    """Every reduction and option over several chunks, for an incoming gradient that is not 1."""
    options = CASES[case]
    inputs, targets = drawn(device, dtype, 3, 13, ids=150)
    targets[targets == -100] = options.get("ignore_index", -100)
    if case == "sum":
        inputs.pop()  # without a bias
    shape = targets.shape if options.get("reduction") == "none" else ()
    dloss = torch.randn(shape, device=device) + 3
    actual, exact, baseline = (
        run(function, [t.to(kind) for t in inputs], targets, dloss, **options)
        for function, kind in (
            (llmjp_ext.linear_cross_entropy, dtype),
            (reference.linear_cross_entropy, torch.float64),
            (plain, dtype),
        )
    )
    assert actual[0].dtype == torch.float32
    names = ("loss", "dhidden", "dweight", "dbias")
    for name, a, e, b in zip(names, actual, exact, baseline, strict=False):
        factor = GRADIENT_FACTOR if name != "loss" else 2.0
        # One number's error in plain PyTorch may be nothing by chance; tests of rows judge it.
        if name != "loss" or a.ndim:
            assert_accurate(a, e, b, factor=factor, what=f"{name}, {case}")
        assert name == "loss" or a.dtype == dtype
    rows = run(llmjp_ext.linear_cross_entropy, inputs, targets, torch.ones((), device=device),
               **{**options, "reduction": "none"})[0]  # fmt: skip
    counted = (targets != options.get("ignore_index", -100)).sum()
    expected = {"none": rows, "sum": rows.sum(), "mean": rows.sum() / counted}
    assert torch.equal(actual[0], expected[options.get("reduction", "mean")])
    if valid := options.get("valid_vocab"):
        assert not actual[2][valid:].any() and not actual[3][valid:].any()


def test_rows_of_padding_are_not_read() -> None:
    """NaN in rows of weight from valid_vocab on changes nothing."""
    inputs, targets = drawn("cpu", torch.float32, 20, ids=150)
    one = torch.ones(())
    short = [inputs[0], inputs[1][:150], inputs[2][:150]]
    expected = run(llmjp_ext.linear_cross_entropy, short, targets, one)
    inputs[1][150:] = torch.nan
    actual = run(llmjp_ext.linear_cross_entropy, inputs, targets, one, valid_vocab=150)
    for a, e in zip(actual, expected, strict=True):
        assert torch.equal(a[:150] if a.shape[:1] == (VOCAB,) else a, e)


def test_float32_sums_of_16_bit_products() -> None:
    """Many tokens of one class: sums in bfloat16 would stop growing at 256 times a summand."""
    tokens = 3000
    hidden = torch.ones(tokens, 8, dtype=torch.bfloat16)
    weight = torch.zeros(4, 8, dtype=torch.bfloat16, requires_grad=True)
    targets = torch.zeros(tokens, dtype=torch.int64)
    llmjp_ext.linear_cross_entropy(hidden, weight, targets, reduction="sum").backward()
    expected = torch.tensor([-0.75, 0.25, 0.25, 0.25])[:, None] * tokens
    assert torch.equal(weight.grad.float(), expected.expand(4, 8).bfloat16().float())


def test_small_float16_gradients_wait_for_the_loss_scale() -> None:
    """A mean over many tokens, scaled as fp16 training does: nothing underflows before that."""
    hidden, weight = torch.randn(400, WIDTH).half(), (torch.randn(VOCAB, WIDTH) * 0.02).half()
    targets = torch.randint(0, VOCAB, (400,))
    scale = torch.tensor(1024.0)
    actual, exact, baseline = (
        run(function, [hidden.to(kind), weight.to(kind)], targets, scale)
        for function, kind in (
            (llmjp_ext.linear_cross_entropy, torch.float16),
            (reference.linear_cross_entropy, torch.float64),
            (plain, torch.float16),
        )
    )
    for name, a, e, b in zip(("dhidden", "dweight"), actual[1:], exact[1:], baseline[1:],
                             strict=True):  # fmt: skip
        assert_accurate(a, e, b, factor=GRADIENT_FACTOR, what=name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_a_second_backward_gives_the_same(dtype: torch.dtype, reduction: str) -> None:
    """With retain_graph: also bit for bit, and what the first handed out stays as it is."""
    inputs, targets = drawn("cpu", dtype, 40)
    leaves = [t.requires_grad_() for t in inputs]
    loss = llmjp_ext.linear_cross_entropy(*leaves[:2], targets, bias=leaves[2], reduction=reduction)
    total = (loss * 3).sum()
    first = torch.autograd.grad(total, leaves, retain_graph=True)
    kept = [g.clone() for g in first]
    second = torch.autograd.grad(total, leaves)
    for a, b, c in zip(first, kept, second, strict=True):
        assert torch.equal(a, b) and torch.equal(a, c)


def test_double_backward_is_refused() -> None:
    """A gradient of the gradient raises instead of being wrong."""
    hidden, weight = torch.randn(5, WIDTH, requires_grad=True), torch.randn(VOCAB, WIDTH)
    loss = llmjp_ext.linear_cross_entropy(hidden, weight, torch.zeros(5, dtype=torch.int64))
    gradient = torch.autograd.grad(loss, hidden, create_graph=True)[0]
    with pytest.raises(RuntimeError, match="differentiate twice"):
        gradient.sum().backward()


def test_frozen_inputs_cost_no_product(monkeypatch: pytest.MonkeyPatch) -> None:
    """The gradient of what requires none is None, and no product is computed for it."""
    inputs, targets = drawn("cpu", torch.float32, 10)
    everything = run(llmjp_ext.linear_cross_entropy, inputs, targets, torch.ones(()))[1:]
    products: list[int] = []
    add_product = module._add_product
    monkeypatch.setattr(module, "_add_product", lambda *a: (products.append(1), add_product(*a))[1])
    for wanted in range(3):
        products.clear()
        leaves = [t.detach().requires_grad_(i == wanted) for i, t in enumerate(inputs)]
        llmjp_ext.linear_cross_entropy(*leaves[:2], targets, bias=leaves[2]).backward()
        assert [leaf.grad is not None for leaf in leaves] == [i == wanted for i in range(3)]
        assert torch.equal(leaves[wanted].grad, everything[wanted])
        assert bool(products) == (wanted == 1)
    with torch.no_grad():
        products.clear()
        llmjp_ext.linear_cross_entropy(*leaves[:2], targets)
        assert not products


def test_tied_weight() -> None:
    """A weight that is the embedding too gets the sum of both gradients."""
    weight = torch.randn(VOCAB, WIDTH, requires_grad=True)
    ids, targets = torch.randint(0, VOCAB, (2, 50))

    def gradient(function) -> Tensor:
        return torch.autograd.grad(function(F.embedding(ids, weight), weight, targets), weight)[0]

    exact_weight = weight.detach().double().requires_grad_()
    exact = torch.autograd.grad(
        plain(F.embedding(ids, exact_weight), exact_weight, targets)[0], exact_weight
    )[0]
    baseline = gradient(lambda *arguments: plain(*arguments)[0])
    actual = gradient(llmjp_ext.linear_cross_entropy)
    assert_accurate(actual, exact, baseline, factor=GRADIENT_FACTOR, what="tied dweight")


def test_gradients_accumulate() -> None:
    """Two losses in one .grad, each scaled, are the sum of both gradients."""
    inputs, targets = drawn("cpu", torch.float32, 12)
    hidden, weight = inputs[0], inputs[1].requires_grad_()
    parts = []
    for scale in (0.5, 4.0):
        loss = llmjp_ext.linear_cross_entropy(hidden, weight, targets) * scale
        parts.append(torch.autograd.grad(loss, weight)[0])
        (llmjp_ext.linear_cross_entropy(hidden, weight, targets) * scale).backward()
    assert torch.equal(weight.grad, parts[0] + parts[1])


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_autocast(device: str, reduction: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Products in bfloat16 as those of a linear layer; gradients in each input's own dtype."""
    # A bfloat16 weight's gradient may be rounded once a chunk, a float32 weight's never is.
    monkeypatch.setattr(module, "_has_fast_products", lambda dtype: False)
    inputs, targets = drawn(device, torch.float32, 40)
    inputs = [inputs[0].bfloat16(), *inputs[1:]]
    dloss = torch.ones(targets.shape if reduction == "none" else (), device=device)
    with torch.autocast(device, dtype=torch.bfloat16):
        actual = run(llmjp_ext.linear_cross_entropy, inputs, targets, dloss, reduction=reduction)
    rounded = [t.bfloat16() for t in inputs]
    expected = run(llmjp_ext.linear_cross_entropy, rounded, targets, dloss, reduction=reduction)
    assert torch.equal(actual[0], expected[0])
    for gradient, t, e in zip(actual[1:], inputs, expected[1:], strict=True):
        assert gradient.dtype == t.dtype
        assert torch.equal(gradient.to(e.dtype), e)


def test_z_loss_is_returned_apart(device: str) -> None:
    """As cross_entropy of the logits returns it."""
    (hidden, weight, bias), targets = drawn(device, torch.float32, 30)
    for reduction in ("mean", "none"):
        options = {"z_loss": 0.01, "reduction": reduction, "return_z_loss": True}
        weight.requires_grad_()
        actual = llmjp_ext.linear_cross_entropy(hidden, weight, targets, bias=bias, **options)
        logits = F.linear(hidden, weight, bias)
        expected = llmjp_ext.cross_entropy(logits, targets, **options)
        assert not actual[1].requires_grad
        for a, e in zip(actual, expected, strict=True):
            torch.testing.assert_close(a, e)


def test_nothing_in_nothing_out(device: str) -> None:
    """No tokens, and only ignored ones: the mean is NaN as in torch, all gradients are 0."""
    weight = torch.randn(VOCAB, WIDTH, device=device)
    for tokens in (0, 4):
        hidden = torch.randn(2, tokens, WIDTH, device=device)
        targets = torch.full((2, tokens), -100, device=device)
        for reduction in ("mean", "sum", "none"):
            dloss = torch.ones((2, tokens) if reduction == "none" else (), device=device)
            loss, *gradients = run(
                llmjp_ext.linear_cross_entropy, [hidden, weight], targets, dloss,
                reduction=reduction,
            )  # fmt: skip
            assert bool(loss.isnan()) if reduction == "mean" else not loss.any()
            assert not any(bool(gradient.any()) for gradient in gradients)


def test_strided_inputs(device: str) -> None:
    """Shifted sequences and a transposed weight are what their copies are."""
    hidden = torch.randn(3, 14, WIDTH, device=device)[:, :-1]
    weight = torch.randn(WIDTH, VOCAB, device=device).t()
    targets = torch.randint(0, VOCAB, (3, 14), device=device)[:, 1:]
    one = torch.ones((), device=device)
    actual = run(llmjp_ext.linear_cross_entropy, [hidden, weight], targets, one)
    copies = [hidden.contiguous(), weight.contiguous()]
    expected = run(plain, copies, targets, one)
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e)


def test_results_repeat() -> None:
    """Bit for bit."""
    inputs, targets = drawn("cpu", torch.bfloat16, 60)
    once, again = (
        run(llmjp_ext.linear_cross_entropy, inputs, targets, torch.ones(())) for _ in range(2)
    )
    assert all(torch.equal(a, b) for a, b in zip(once, again, strict=True))


INSIDE = {
    torch.ops.llmjp_ext.linear_cross_entropy_fwd.default: module._forward,
    torch.ops.llmjp_ext.linear_cross_entropy_bwd.default: module._backward,
}


class LiveMemory(TorchDispatchMode):
    """Counts the bytes of what operations make and that is alive, on any device; keeps the most.

    The op's own inside is run under it too.
    """

    def __init__(self, *given: Tensor) -> None:
        super().__init__()
        self.given = {t.untyped_storage()._cdata for t in given}
        self.alive: list[weakref.ref[Tensor]] = []
        self.most_bytes = self.largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in INSIDE:
            with self:
                return INSIDE[func](*args, **(kwargs or {}))
        result = func(*args, **(kwargs or {}))
        results = result if isinstance(result, tuple | list) else [result]
        self.alive += [weakref.ref(t) for t in results if isinstance(t, Tensor)]
        tensors = [t for ref in self.alive if (t := ref()) is not None]
        self.alive = [weakref.ref(t) for t in tensors]
        storages = {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in tensors}
        made = [size for address, size in storages.items() if address not in self.given]
        self.most_bytes = max(self.most_bytes, sum(made))
        self.largest = max(self.largest, *made, 0)
        return result


def test_live_memory_sees_materialised_logits() -> None:
    """The measure itself: logits and their float32 gradient are found."""
    (hidden, weight, _), targets = drawn("cpu", torch.float32, 50)
    weight.requires_grad_()
    with LiveMemory(hidden, weight, targets) as memory:
        plain(hidden, weight, targets)[0].backward()
    assert memory.largest >= 50 * VOCAB * 4 and memory.most_bytes >= 2 * memory.largest


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_logits_are_never_whole(dtype: torch.dtype, reduction: str) -> None:
    """Beyond the float32 gradient of weight and the gradient of hidden there is a chunk's room."""
    (hidden, weight, _), targets = drawn("cpu", dtype, 2000)
    for t in (hidden, weight):
        t.requires_grad_()
    with LiveMemory(hidden, weight, targets) as memory:
        loss = llmjp_ext.linear_cross_entropy(hidden, weight, targets, reduction=reduction)
        loss.sum().backward()
    results = VOCAB * WIDTH * 4 + hidden.nbytes
    rows = 8 * 2000 * 4  # numbers of a row: loss, statistics, targets that count, dloss
    chunk = 17 * 256 * 4
    scaled = 4 * 2 * module._SCALED_ELEMENTS
    assert chunk < memory.largest <= max(VOCAB * WIDTH * 4, hidden.nbytes)
    assert memory.most_bytes <= results + rows + 3 * chunk + scaled < 2000 * VOCAB * dtype.itemsize


@pytest.mark.parametrize(("vocab", "width"), [(50688, 2048), (50688, 5120), (256_000, 2048)])
def test_half_a_gigabyte_beyond_the_weights_gradient(
    vocab: int, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """16k tokens, large vocabularies, bfloat16, a GPU's chunks: counted without any data."""
    monkeypatch.undo()
    monkeypatch.setitem(module._CHUNK_BYTES, "cpu", module._CHUNK_BYTES["cuda"])
    hidden = torch.empty(16384, width, dtype=torch.bfloat16, device="meta", requires_grad=True)
    weight = torch.empty(vocab, width, dtype=torch.bfloat16, device="meta", requires_grad=True)
    targets = torch.empty(16384, dtype=torch.int64, device="meta")
    options = (torch.bfloat16, -100, 0.0, 0.0, None)
    with LiveMemory(hidden, weight, targets) as memory:
        # Past the checks, which ask for the device's autocast: the meta device has none.
        loss, *_ = module._LinearCrossEntropy.apply(
            hidden, weight, None, targets, targets != -100, options, [True, True, False], "mean"
        )
        loss.backward()
    gradient = vocab * width * 4
    assert weight.grad.shape == weight.shape and weight.grad.dtype == torch.bfloat16
    assert hidden.nbytes < memory.most_bytes - gradient <= 500_000_000


def test_opcheck() -> None:
    """Schema, fake, autograd registration and dynamic AOT dispatch of both ops."""
    ops = torch.ops.llmjp_ext
    (hidden, weight, bias), targets = drawn("cpu", torch.bfloat16, 2, 5)
    for dtype, wanted in ((torch.bfloat16, [True] * 3), (torch.float32, [False, True, False])):
        inputs = (hidden.to(dtype), weight.to(dtype), bias.to(dtype), targets)
        options = (dtype, -100, 0.1, 1e-3, 203, wanted)
        _, largest, log_sum, *_ = ops.linear_cross_entropy_fwd(*inputs, *options)
        for function, arguments in (
            (ops.linear_cross_entropy_fwd, (*inputs, *options)),
            (ops.linear_cross_entropy_bwd,
             (torch.ones_like(largest), *inputs, largest, log_sum, *options)),
        ):  # fmt: skip
            torch.library.opcheck(function, arguments)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_compiled_gradients_are_eager_ones(reduction: str) -> None:
    """No graph break, nothing new for other lengths, and AOT autograd gives eager's gradients."""
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(
        llmjp_ext.linear_cross_entropy, fullgraph=True, dynamic=True, backend=counter
    )
    graphs = []
    for length in (3, 5, 9):
        inputs, targets = drawn("cpu", torch.bfloat16, 2, length)
        dloss = torch.full((2, length) if reduction == "none" else (), 3.0)
        actual, eager = (
            run(function, inputs, targets, dloss, reduction=reduction, valid_vocab=200 + 3)
            for function in (compiled, llmjp_ext.linear_cross_entropy)
        )
        assert all(torch.equal(a, b) for a, b in zip(actual, eager, strict=True))
        graphs.append(counter.frame_count)
    assert graphs[0] == graphs[-1], "recompiled for another length"


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_activation_checkpointing(reduction: str) -> None:
    """The same gradients."""
    (hidden, weight, _), targets = drawn("cpu", torch.float32, 20)
    weight.requires_grad_()

    def loss(h: Tensor, w: Tensor) -> Tensor:
        return llmjp_ext.linear_cross_entropy(h, w, targets, reduction=reduction).sum()

    expected = torch.autograd.grad(loss(hidden, weight), weight)
    actual = torch.autograd.grad(checkpoint(loss, hidden, weight, use_reentrant=False), weight)
    assert torch.equal(actual[0], expected[0])


H, W, T = torch.ones(2, 8), torch.ones(5, 8), torch.tensor([1, 2])


@pytest.mark.parametrize(
    ("inputs", "options", "error", "words"),
    [
        ((H.double(), W, T), {}, TypeError, "bfloat16, got torch.float64"),
        ((H, W.half(), T), {}, TypeError, "weight must have hidden's dtype torch.float32, got"),
        ((H, W, T), {"bias": torch.ones(5).half()}, TypeError, "bias must have hidden's dtype"),
        ((H, W, T.int()), {}, TypeError, "int64 class ids, got torch.int32"),
        ((H[:1], W, T), {}, ValueError, r"targets' shape \[2\].*got \[1, 8\]"),
        ((H, W[:, :7], T), {}, ValueError, r"\[vocab, 8\].*got \[5, 7\]"),
        ((H, W[:0], T), {}, ValueError, r"\[vocab, 8\].*got \[0, 8\]"),
        ((H, W, T), {"bias": torch.ones(4)}, ValueError, r"shape \[5\].*got \[4\]"),
        ((H, W.to("meta"), T), {}, ValueError, "hidden's device cpu, got meta"),
        ((H, W, T.to("meta")), {}, ValueError, "device cpu, got meta"),
        ((H, W, T + 3), {}, ValueError, "from 0 to 4 or ignore_index -100, got 5"),
        ((H, W, T), {"valid_vocab": 6}, ValueError, "linear_cross_entropy: valid.*to 5.*got 6"),
        ((H, W, T), {"label_smoothing": 2.0}, ValueError, r"\[0, 1\], got 2.0"),
        ((H, W, T), {"reduction": "max"}, ValueError, "got 'max'"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_errors_name_what_was_given(inputs, options, error, words) -> None:
    """One sentence with what was given and what is supported."""
    with pytest.raises(error, match=words):
        llmjp_ext.linear_cross_entropy(*inputs, **options)
