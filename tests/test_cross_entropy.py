"""cross_entropy on every backend that implements it: values, gradients, memory, tracing, errors.

Values and gradients follow the numerics rule of llmjp_ext.testing; failures print the seed.
"""

import math
import mmap
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch._dynamo.testing
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

import llmjp_ext
from llmjp_ext import _library
from llmjp_ext.ops import cross_entropy as module
from llmjp_ext.reference import cross_entropy as reference
from llmjp_ext.testing import GRADIENT_FACTOR, assert_accurate

FLOATS = [torch.float32, torch.float16, torch.bfloat16]

CASES = {
    "plain": {},
    "sum": {"reduction": "sum"},
    "none": {"reduction": "none"},
    "smoothing": {"label_smoothing": 0.1},
    "all smoothing": {"label_smoothing": 1.0},
    "z-loss": {"z_loss": 1e-2},
    "padded vocabulary": {"valid_vocab": 90},
    "all of it": {
        "label_smoothing": 0.2,
        "z_loss": 1e-3,
        "valid_vocab": 90,
        "ignore_index": 3,
        "reduction": "none",
    },
}


def plain(logits: Tensor, targets: Tensor, **options) -> tuple[Tensor, Tensor]:
    """What a PyTorch user writes without the op, in logits' dtype."""
    logits = logits[..., : options.pop("valid_vocab", None)]
    z_loss = options.pop("z_loss", 0.0)
    loss = F.cross_entropy(logits.movedim(-1, 1 if logits.ndim > 1 else 0), targets, **options)
    if z_loss:
        counted = targets != options.get("ignore_index", -100)
        z = z_loss * torch.logsumexp(logits, -1).square() * counted
        reduction = options.get("reduction", "mean")
        count = counted.sum() if reduction == "mean" else 1
        loss = loss + (z if reduction == "none" else z.sum() / count)
    return loss, loss


def run(function, logits: Tensor, targets: Tensor, dloss: Tensor, **options) -> list[Tensor]:
    """The loss, and the gradient of logits."""
    leaf = logits.detach().requires_grad_()
    loss = function(leaf, targets, **options)
    loss = loss[0] if isinstance(loss, tuple) else loss
    (loss * dloss.to(loss.dtype)).sum().backward()
    return [loss.detach(), leaf.grad]


def check(logits: Tensor, targets: Tensor, **options) -> None:
    """The rows' losses and the gradient by the numerics rule; the reduction exactly."""
    reduction = options.pop("reduction", "mean")
    dloss = torch.randn(targets.shape if reduction == "none" else (), device=logits.device) + 2
    results = [
        run(function, x, targets, dloss, **options, reduction=reduction)
        for function, x in (
            (llmjp_ext.cross_entropy, logits),
            (reference.cross_entropy, logits.double()),
            (plain, logits),
        )
    ]
    (loss, gradient), (_, exact_gradient), (_, plain_gradient) = results
    assert loss.dtype == torch.float32 and gradient.dtype == logits.dtype
    what = f"dlogits, {reduction}, {options}"
    assert_accurate(gradient, exact_gradient, plain_gradient, factor=GRADIENT_FACTOR, what=what)
    # A mean is one number, whose error in plain PyTorch may be nothing by chance.
    rows, exact, baseline = (
        function(x, targets, **options, reduction="none")
        for function, x in (
            (llmjp_ext.cross_entropy, logits),
            (reference.cross_entropy, logits.double()),
            (plain, logits),
        )
    )
    assert_accurate(rows, exact[0], baseline[0], what=f"loss, {options}")
    counted = (targets != options.get("ignore_index", -100)).sum()
    expected = {"none": rows, "sum": rows.sum(), "mean": rows.sum() / counted}
    assert torch.equal(loss, expected[reduction])


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients(device: str, case: str, dtype: torch.dtype) -> None:
    """Each option alone and together, with ignored rows, over one and two leading dimensions."""
    options = CASES[case]
    for shape in ((41, 101), (3, 15, 101)):
        logits = (torch.randn(shape) * 4).to(device, dtype)
        targets = torch.randint(0, 90, shape[:-1]).to(device)
        targets[..., 1:3] = options.get("ignore_index", -100)
        check(logits, targets, **options)


def test_one_row_without_a_leading_dimension(device: str) -> None:
    """[vocab] and a scalar target are a batch of one."""
    logits, target = torch.randn(50, device=device), torch.tensor(7, device=device)
    loss, gradient = run(llmjp_ext.cross_entropy, logits, target, torch.ones((), device=device))
    rows = run(llmjp_ext.cross_entropy, logits[None], target[None], torch.ones((), device=device))
    assert torch.equal(loss, rows[0]) and torch.equal(gradient, rows[1][0])


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_pytorch_implementation(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """What runs on CUDA without kernels, beside the native code of the CPU; rows that do not fill
    their last chunk."""
    monkeypatch.setattr(module, "_LOGITS_OF_CHUNK", 3 * 101)
    logits, targets = torch.randn(2, 5, 101).to(dtype), torch.randint(0, 90, (2, 5))
    targets[0, 2] = -100
    options = (-100, 0.1, 1e-3, 90)
    native = torch.ops.llmjp_ext.cross_entropy_fwd(logits, targets, *options)
    other = module._torch_fwd(logits, targets, *options)
    for a, b in zip(native, other, strict=True):
        torch.testing.assert_close(a[targets >= 0], b[targets >= 0])
    arguments = (torch.randn(2, 5), logits, targets, *native[1:], *options)
    expected = torch.ops.llmjp_ext.cross_entropy_bwd(*arguments)
    torch.testing.assert_close(module._torch_bwd(*arguments), expected)
    module._torch_bwd_inplace(*arguments)
    torch.testing.assert_close(logits, expected)


OF_AN_INSTRUCTION_SET = """
import sys, torch, llmjp_ext.ops
torch.set_num_threads(int(sys.argv[2]))
for logits, targets, dloss in (inputs := torch.load(sys.argv[1])):
    options = (-100, 0.1, 1e-3, logits.shape[1] - 2)
    loss, *statistics = torch.ops.llmjp_ext.cross_entropy_fwd(logits, targets, *options)
    dlogits = torch.ops.llmjp_ext.cross_entropy_bwd(dloss, logits, targets, *statistics, *options)
    logits.copy_(dlogits), dloss.copy_(loss)
torch.save(inputs, sys.argv[1])
"""


@pytest.mark.parametrize("name", ["generic", "avx2", "avx512"])
def test_every_instruction_set(name: str, tmp_path: Path) -> None:
    """Each keeps the numerics rule, and gives the same bits with one thread and with two."""
    inputs = []
    for dtype in FLOATS:
        for vocab in (5, 37, 1000, 3001):
            logits = (torch.randn(70, vocab) * 8).to(dtype)
            logits[1, : vocab // 2] = -math.inf
            logits[2, vocab // 2] = 150.0  # far above what came before
            targets = torch.randint(0, vocab - 2, (70,))
            targets[1], targets[3] = vocab - 3, -100
            inputs.append((logits, targets, torch.randn(70)))
    results = []
    for threads in "1", "2":
        path = tmp_path / threads
        torch.save(inputs, path)
        process = subprocess.run(
            [sys.executable, "-c", OF_AN_INSTRUCTION_SET, str(path), threads],
            env={**os.environ, "LLMJP_CPU_ISA": name},
            capture_output=True,
            text=True,
        )
        if "this CPU does not have instruction set" in process.stderr:
            pytest.skip(process.stderr.splitlines()[-1])
        assert process.returncode == 0, process.stderr
        results.append(torch.load(path))
    for (x, targets, dloss), (dlogits, _, loss), (again, _, _) in zip(
        inputs, *results, strict=True
    ):
        options = {"label_smoothing": 0.1, "z_loss": 1e-3, "valid_vocab": x.shape[1] - 2}
        exact, baseline = (
            run(function, x.to(kind), targets, dloss, **options, reduction="none")
            for function, kind in (
                (reference.cross_entropy, torch.float64),
                (plain, x.dtype),
            )
        )
        what = f"{name}, {list(x.shape)}"
        assert torch.equal(dlogits, again), what
        finite = exact[0].isfinite()  # label smoothing of -inf is an infinite loss
        assert finite.sum() >= len(loss) - 1
        assert_accurate(loss[finite], exact[0][finite], baseline[0][finite], what=f"loss, {what}")
        assert_accurate(dlogits, exact[1], baseline[1], factor=GRADIENT_FACTOR, what=what)


def test_conversions_of_16_bit_numbers(device: str, seed: int) -> None:
    """Every logit is read, and every gradient rounded, as torch converts them."""
    ops, options = _library.ops, (-100, 0.0, 0.0, None)
    count = 20000 if ops is torch.ops.llmjp_ext else 500
    for dtype in (torch.float16, torch.bfloat16):
        values = torch.randint(-(2**15), 2**15, (count,)).to(torch.int16).view(dtype)
        values = values[values.isfinite()].to(device)
        zeros = torch.zeros(len(values), dtype=torch.int64, device=device)
        _, largest, _ = ops.cross_entropy_fwd(values[:, None], zeros, *options)
        assert torch.equal(largest, values.float()), f"{dtype}, {seed=}"
        # Probabilities of 1 and 0, the target being the other one: the gradient is dloss.
        logits = torch.tensor([0.0, -math.inf], dtype=dtype, device=device).repeat(count, 1)
        dloss = torch.randint(-(2**31), 2**31, (count,)).to(torch.int32).view(torch.float32)
        dloss[: count // 2] = torch.randn(count // 2) * 2.0 ** torch.randint(-26, 17, (count // 2,))
        dloss = dloss.where(dloss.isfinite(), 1.0).to(device)
        zeros = torch.zeros(count, device=device)
        gradient = ops.cross_entropy_bwd(dloss, logits, (zeros + 1).long(), zeros, zeros, *options)
        assert torch.equal(gradient[:, 0], dloss.to(dtype)), f"{dtype}, {seed=}"


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_rows_of_every_alignment_and_length(device: str, dtype: torch.dtype) -> None:
    """Rows shorter than 16 bytes, of whole and of broken 16 bytes, and for either size of block.

    Odd widths put rows at every place against 16 bytes. valid_vocab ends within the unaligned
    start of some rows, within their 16-byte chunks or within what is left behind these.
    """
    check(torch.randn(9, 1).to(device, dtype), torch.zeros(9, dtype=torch.int64, device=device))
    widths = (2, 7, 8, 9, 33, 1024, 4099, 9001)
    for vocab, valid in [(width, width) for width in widths] + [(37, 3), (37, 30), (4099, 4090)]:
        logits = (torch.randn(9, vocab) * 3).to(device, dtype)
        targets = torch.randint(0, valid, (9,)).to(device)
        targets[4] = -100
        check(logits, targets, label_smoothing=0.1, valid_vocab=valid, reduction="none")


@pytest.mark.parametrize("vocab", [50688, 262145])
def test_large_vocabularies(device: str, vocab: int) -> None:
    """Rows that give every thread of a block many loads, one of them of an odd width."""
    logits = (torch.randn(2, vocab, device=device) * 2).bfloat16()
    targets = torch.tensor([vocab - 1, vocab // 3], device=device)
    check(logits, targets, label_smoothing=0.1, z_loss=1e-4, reduction="none")


def test_rows_beyond_32_bit_offsets(device: str) -> None:
    """Rows more than 2^31 elements apart, in memory of which nothing else is touched."""
    if device != "cpu":
        pytest.skip("would take 4 GiB of the GPU")
    apart = 2**31 + 8
    memory = torch.frombuffer(mmap.mmap(-1, 2 * (apart + 64)), dtype=torch.bfloat16)
    far = memory.as_strided((2, 64), (apart, 1))
    near = torch.randn(2, 64).bfloat16()
    far.copy_(near)
    targets = torch.tensor([3, 60])
    options = (-100, 0.1, 1e-3, None)
    ops = _library.ops
    expected = ops.cross_entropy_fwd(near, targets, *options)
    actual = ops.cross_entropy_fwd(far, targets, *options)
    assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))
    _, *statistics = actual
    ones = torch.ones(2)
    gradient = ops.cross_entropy_bwd(ones, near, targets, *statistics, *options)
    ops.cross_entropy_bwd_inplace(ones, far, targets, *statistics, *options)
    assert torch.equal(far, gradient)


def test_gradient_aligned_unlike_the_logits(device: str) -> None:
    """Slices of rows of an odd width: no 16 bytes begin at the same column in both."""
    for dtype in FLOATS:
        wide = torch.randn(3, 5, 1025, device=device).to(dtype)
        targets = torch.randint(0, 1025, (3, 4), device=device)
        check(wide[:, :-1], targets, z_loss=1e-3)
        check(wide[..., 1:], torch.randint(0, 1024, (3, 5), device=device), z_loss=1e-3)


def test_probabilities_that_vanish(device: str) -> None:
    """-inf logits have probability 0, also where they fill whole blocks of the row's start."""
    logits = torch.randn(4, 3000, device=device)
    logits[0, :2500] = -math.inf
    logits[1, ::2] = -math.inf
    logits[2] += 1000.0
    logits[3, :8] = -math.inf
    targets, ones = torch.tensor([2999, 1, 5, 2000], device=device), torch.ones(4, device=device)
    actual, exact, baseline = (
        run(function, x, targets, ones, reduction="none")
        for function, x in (
            (llmjp_ext.cross_entropy, logits),
            (F.cross_entropy, logits.double()),
            (F.cross_entropy, logits),
        )
    )
    assert_accurate(actual[0], exact[0], baseline[0], what="loss")
    assert_accurate(actual[1], exact[1], baseline[1], factor=GRADIENT_FACTOR, what="dlogits")


def test_rows_without_a_probability_are_nan(device: str) -> None:
    """As in torch: all logits -inf, one +inf, or one NaN; the other row stays as it is."""
    logits = torch.randn(4, 600, device=device)
    logits[0] = -math.inf
    logits[1, 300] = math.inf
    logits[2, 599] = math.nan
    targets = torch.zeros(4, dtype=torch.int64, device=device)
    loss, gradient = run(
        llmjp_ext.cross_entropy, logits, targets, torch.ones(4, device=device), reduction="none"
    )
    assert bool(loss[:3].isnan().all()) and bool(loss[3].isfinite())
    assert bool(gradient[:3].isnan().any(-1).all()) and bool(gradient[3].isfinite().all())


def test_kernels_answer_a_wrong_target_with_nan(device: str) -> None:
    """A kernel cannot raise: the row's loss and gradient are NaN, and no other memory is read."""
    if _library.ops is torch.ops.llmjp_ext and device == "cpu":
        pytest.skip("the CPU implementation raises ValueError")
    logits = torch.randn(5, 40, device=device)
    targets = torch.tensor([3, 30, -1, 2**60, -(2**60)], device=device)
    loss, gradient = run(
        llmjp_ext.cross_entropy,
        logits,
        targets,
        torch.ones(5, device=device),
        valid_vocab=30,
        reduction="none",
    )
    assert loss.isnan().tolist() == [False, True, True, True, True]
    assert bool(gradient[1:, :30].isnan().all()) and not gradient[:, 30:].any()
    assert bool(gradient[0].isfinite().all())


@pytest.mark.parametrize("copied", [False, True])
def test_inplace_backward_of_strided_logits(device: str, copied: bool) -> None:
    """Into a slice with two row strides, and where rows are columns of what lies in memory."""
    wide = torch.randn(3, 6, 24, device=device)
    logits = wide.transpose(1, 2) if copied else wide[:, :-1]
    targets = torch.randint(0, 5, logits.shape[:-1], device=device)
    ops, options = _library.ops, (-100, 0.1, 1e-3, None)
    loss, *statistics = ops.cross_entropy_fwd(logits, targets, *options)
    arguments = (torch.randn_like(loss), logits, targets, *statistics, *options)
    expected = ops.cross_entropy_bwd(*arguments)
    last = wide[:, -1].clone()
    ops.cross_entropy_bwd_inplace(*arguments)
    assert torch.equal(logits, expected)
    assert copied or torch.equal(wide[:, -1], last)


def test_the_native_op_refuses_what_would_read_beyond_memory(device: str) -> None:
    """Called past the Python checks, the bindings still guard shapes and dtypes."""
    ops, logits = _library.ops, torch.randn(3, 8, device=device)
    targets, numbers = torch.zeros(3, dtype=torch.int64, device=device), torch.ones(3).to(device)
    options = (-100, 0.0, 0.0)
    with pytest.raises(RuntimeError, match=r"targets must have shape \[3\], got \[2\]"):
        ops.cross_entropy_fwd(logits, targets[:2], *options, None)
    with pytest.raises(RuntimeError, match="targets must be int64, got Int"):
        ops.cross_entropy_fwd(logits, targets.int(), *options, None)
    with pytest.raises(RuntimeError, match="from 1 to 8, the classes of logits, got 9"):
        ops.cross_entropy_fwd(logits, targets, *options, 9)
    with pytest.raises(RuntimeError, match=r"log_sum must have shape \[3\], got \[1\]"):
        ops.cross_entropy_bwd(numbers, logits, targets, numbers, numbers[:1], *options, None)
    with pytest.raises(RuntimeError, match="largest must be float32 here, got float16"):
        ops.cross_entropy_bwd(numbers, logits, targets, numbers.half(), numbers, *options, None)


def test_strided_logits(device: str) -> None:
    """Sliced rows and columns, and leading dimensions that do not fold into one."""
    wide = torch.randn(3, 9, 80, device=device, dtype=torch.bfloat16)
    targets = torch.randint(0, 64, (3, 9), device=device)
    check(wide[:, :-1, :64], targets[:, 1:])
    check(wide.transpose(0, 1), targets.t())
    check(wide[0].t(), torch.randint(0, 9, (80,), device=device))


def test_z_loss_is_returned_apart(device: str) -> None:
    """It is the part of the loss that the loss without it lacks, in each reduction."""
    logits = torch.randn(6, 40, device=device, requires_grad=True)
    targets = torch.tensor([1, -100, 39, 0, 7, -100], device=device)
    for reduction in ("mean", "sum", "none"):
        loss, z = llmjp_ext.cross_entropy(
            logits, targets, z_loss=0.01, reduction=reduction, return_z_loss=True
        )
        without = llmjp_ext.cross_entropy(logits, targets, reduction=reduction)
        _, exact = reference.cross_entropy(
            logits.double(), targets, z_loss=0.01, reduction=reduction
        )
        _, single = reference.cross_entropy(logits, targets, z_loss=0.01, reduction=reduction)
        assert_accurate(z, exact, single, what=f"z, {reduction}")
        assert torch.allclose(loss - without, z, atol=1e-5) and not z.requires_grad


def test_padding_of_the_vocabulary_has_no_part(device: str) -> None:
    """Whatever stands in the columns from valid_vocab on, even NaN, changes nothing."""
    logits = torch.randn(5, 50, device=device)
    targets = torch.randint(0, 40, (5,), device=device)
    expected = run(llmjp_ext.cross_entropy, logits[:, :40], targets, torch.ones((), device=device))
    logits[:, 40:] = math.nan
    loss, gradient = run(
        llmjp_ext.cross_entropy, logits, targets, torch.ones((), device=device), valid_vocab=40
    )
    assert torch.equal(loss, expected[0]) and torch.equal(gradient[:, :40], expected[1])
    assert not gradient[:, 40:].any()


def test_ignored_rows_have_no_part(device: str) -> None:
    """An ignored row has loss 0 and gradient 0 even where its logits are NaN."""
    logits = torch.randn(4, 30, device=device)
    logits[2] = math.nan
    targets = torch.tensor([3, 29, -100, 0], device=device)
    loss, gradient = run(
        llmjp_ext.cross_entropy,
        logits,
        targets,
        torch.ones(4, device=device),
        z_loss=0.1,
        reduction="none",
    )
    assert loss[2] == 0 and not gradient[2].any() and bool(loss.isfinite().all())
    mean = llmjp_ext.cross_entropy(logits, targets, z_loss=0.1)
    assert torch.equal(mean, loss.sum() / 3)


def test_mean_over_nothing_is_nan(device: str) -> None:
    """As in torch, for no rows and for rows that are all ignored; their sum is 0."""
    logits = torch.randn(3, 8, device=device)
    ignored = torch.full((3,), -100, device=device)
    for x, targets in ((logits, ignored), (logits[:0], ignored[:0])):
        assert llmjp_ext.cross_entropy(x, targets).isnan()
        assert llmjp_ext.cross_entropy(x, targets, reduction="sum") == 0
        assert llmjp_ext.cross_entropy(x, targets, reduction="none").shape == targets.shape
    leaf = logits[:0].requires_grad_()
    llmjp_ext.cross_entropy(leaf, ignored[:0], reduction="sum").backward()
    assert leaf.grad.shape == (0, 8)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_inplace_backward_writes_over_the_logits(device: str, dtype: torch.dtype) -> None:
    """The same gradient, in the logits' own memory; a second backward is refused."""
    hidden = torch.randn(2, 7, 16, device=device, dtype=dtype, requires_grad=True)
    weight = torch.randn(40, 16, device=device, dtype=dtype)
    targets = torch.randint(0, 33, (2, 7), device=device)
    options = {"valid_vocab": 33, "z_loss": 1e-3}
    expected = torch.autograd.grad(
        llmjp_ext.cross_entropy(F.linear(hidden, weight), targets, **options), hidden
    )[0]
    logits = F.linear(hidden, weight)
    loss = llmjp_ext.cross_entropy(logits, targets, inplace_backward=True, **options)
    before = logits.detach().clone()
    seen = []
    logits.register_hook(lambda gradient: seen.append(gradient.data_ptr()))
    gradient = torch.autograd.grad(loss, hidden, retain_graph=True)[0]
    assert torch.equal(gradient, expected)
    assert seen == [logits.data_ptr()] and not torch.equal(before, logits)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(loss, hidden)


class LargestFloat32(TorchDispatchMode):
    """Notes the most elements of any float32 tensor that an operation makes."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for t in result if isinstance(result, tuple | list) else [result]:
            if isinstance(t, Tensor) and t.dtype == torch.float32:
                self.elements = max(self.elements, t.numel())
        return result


def test_no_float32_copy_of_the_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither direction holds more than a chunk of rows in float32."""
    monkeypatch.setattr(module, "_LOGITS_OF_CHUNK", 4 * 500)
    logits = torch.randn(64, 500).bfloat16()
    targets = torch.randint(0, 500, (64,))
    with LargestFloat32() as largest:
        arguments = (-100, 0.1, 1e-4, None)
        _loss, *statistics = module._torch_fwd(logits, targets, *arguments)
        module._torch_bwd(torch.ones(64), logits, targets, *statistics, *arguments)
    assert 500 <= largest.elements <= 4 * 500


def test_opcheck() -> None:
    """Schema, fake, autograd registration and dynamic AOT dispatch of the three ops."""
    ops = torch.ops.llmjp_ext
    logits, targets = torch.randn(2, 5, 24), torch.randint(0, 20, (2, 5))
    options = (-100, 0.1, 1e-3, 20)
    loss, *statistics = ops.cross_entropy_fwd(logits, targets, *options)
    for function, arguments in (
        (ops.cross_entropy_fwd, (logits, targets, *options)),
        (ops.cross_entropy_fwd, (logits[0, :0].half(), targets[0, :0], -100, 0.0, 0.0, None)),
        (ops.cross_entropy_bwd, (torch.ones_like(loss), logits, targets, *statistics, *options)),
        (ops.cross_entropy_bwd_inplace, (loss, logits.bfloat16(), targets, *statistics, *options)),
    ):
        torch.library.opcheck(function, arguments)


def test_compiles_whole_without_recompiling() -> None:
    """No graph break, and one graph for three lengths."""
    counter = torch._dynamo.testing.CompileCounter()
    compiled = torch.compile(llmjp_ext.cross_entropy, fullgraph=True, dynamic=True, backend=counter)
    for length in (3, 5, 9):
        logits, targets = torch.randn(2, length, 32), torch.randint(0, 30, (2, length))
        options = {"valid_vocab": 30, "z_loss": 1e-4}
        actual = compiled(logits, targets, **options)
        assert torch.equal(actual, llmjp_ext.cross_entropy(logits, targets, **options))
    assert counter.frame_count == 1, "recompiled for another length"


def test_compiled_gradients_are_eager_ones() -> None:
    """Through AOT autograd, where inplace_backward is passed over."""
    logits, targets, one = torch.randn(6, 32), torch.randint(0, 32, (6,)), torch.ones(())
    compiled = torch.compile(
        llmjp_ext.cross_entropy, fullgraph=True, dynamic=True, backend="aot_eager"
    )
    before = logits.clone()
    for options in ({"label_smoothing": 0.1}, {"inplace_backward": True}):
        actual = run(compiled, logits, targets, one, **options)
        options.pop("inplace_backward", None)
        for a, b in zip(
            actual, run(llmjp_ext.cross_entropy, logits, targets, one, **options), strict=True
        ):
            assert torch.equal(a, b)
    assert torch.equal(logits, before)


def test_autocast_changes_nothing(device: str) -> None:
    """bfloat16 logits are taken as they are, and the loss is float32."""
    logits = torch.randn(5, 32, device=device).bfloat16()
    targets = torch.randint(0, 32, (5,), device=device)
    one = torch.ones((), device=device)
    expected = run(llmjp_ext.cross_entropy, logits, targets, one, label_smoothing=0.1)
    with torch.autocast(device, dtype=torch.bfloat16):
        actual = run(llmjp_ext.cross_entropy, logits, targets, one, label_smoothing=0.1)
    assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))


def test_activation_checkpointing(device: str) -> None:
    logits = torch.randn(5, 32, device=device, requires_grad=True)
    targets = torch.randint(0, 32, (5,), device=device)
    expected = torch.autograd.grad(llmjp_ext.cross_entropy(logits, targets), logits)
    loss = checkpoint(llmjp_ext.cross_entropy, logits, targets, use_reentrant=False)
    assert torch.equal(torch.autograd.grad(loss, logits)[0], expected[0])


def ids(*values: int) -> Tensor:
    return torch.tensor(values)


@pytest.mark.parametrize(
    ("logits", "targets", "options", "error", "words"),
    [
        (torch.ones(2, 8).double(), ids(1, 2), {}, TypeError, "bfloat16, got torch.float64"),
        (torch.ones(2, 8), ids(1, 2).int(), {}, TypeError, "int64 class ids, got torch.int32"),
        (torch.ones(3, 8), ids(1, 2), {}, ValueError, r"targets' shape \[2\].*got \[3, 8\]"),
        (torch.ones(2, 8), ids(1, 2).to("meta"), {}, ValueError, "device cpu, got meta"),
        (torch.ones(2, 8), ids(1, 8), {}, ValueError, "from 0 to 7 or ignore_index -100, got 8"),
        (torch.ones(2, 8), ids(-1, 2), {}, ValueError, "ignore_index -100, got -1"),
        (torch.ones(2, 8), ids(1, 5), {"valid_vocab": 5}, ValueError, "from 0 to 4.*got 5"),
        (torch.ones(2, 8), ids(1, 2), {"valid_vocab": 9}, ValueError, "from 1 to 8.*got 9"),
        (torch.ones(2, 8), ids(1, 2), {"label_smoothing": 1.5}, ValueError, r"\[0, 1\], got 1.5"),
        (torch.ones(2, 8), ids(1, 2), {"z_loss": -1.0}, ValueError, "negative, got -1.0"),
        (torch.ones(2, 8), ids(1, 2), {"reduction": "max"}, ValueError, "got 'max'"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_errors_name_what_was_given(logits, targets, options, error, words) -> None:
    with pytest.raises(error, match=words):
        llmjp_ext.cross_entropy(logits, targets, **options)
