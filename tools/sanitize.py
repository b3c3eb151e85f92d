"""Runs every CUDA kernel on small shapes, for compute-sanitizer (tools/gpu_check.sh sanitize).

Shapes are chosen so that each path of a launcher is taken: every tile width, the looping kernels,
rows that are not 16-byte aligned, strided rows, with and without residual and bias, every
combination of dtypes, and so many rows that persistent blocks take several in turn. Results are
compared loosely with torch's own, to show that the kernels did run; tests/ compare exactly.
"""

import itertools
import sys

import torch
from torch import Tensor

import llmjp_ext

# The widest row of each tile, two unaligned ones, and rows wider than any tile: of float32 forward
# holds the first in registers, the next in shared memory, too, and of the last not all.
TILE_WIDTHS = (256, 512, 1024, 2048, 3072, 4096, 6144, 8192, 12288, 16384, 24576)
LAYER_NORM_WIDTHS = (7, 1023, *TILE_WIDTHS, 32768, 65536, 131072)
FLOAT32, FLOAT16, BFLOAT16 = torch.float32, torch.float16, torch.bfloat16
# Of x, residual and weight.
SAME_DTYPES = tuple((dtype,) * 3 for dtype in (FLOAT32, FLOAT16, BFLOAT16))
MIXED_DTYPES = (
    (FLOAT16, FLOAT16, FLOAT32),
    (FLOAT16, FLOAT32, FLOAT32),
    (BFLOAT16, BFLOAT16, FLOAT32),
    (BFLOAT16, FLOAT32, FLOAT32),
)
MIXED_WIDTHS = (1023, 2048, 32768)
ROWS = 5
CROSS_ENTROPY_VOCABULARIES = (1, 7, 1000, 1023, 50257, 50688)
# More rows than a GPU's persistent blocks take at once, at every width of a tile.
PERSISTENT_ELEMENTS = 1 << 22


def run_layer_norm(
    device: torch.device,
    rows: int,
    width: int,
    dtypes: tuple[torch.dtype, torch.dtype, torch.dtype],
    with_residual: bool,
) -> None:
    """Forward and backward of one layer_norm of strided rows."""
    x_dtype, residual_dtype, weight_dtype = dtypes
    padded = torch.randn(rows, width + 16, device=device, dtype=x_dtype)
    x = padded[:, :width].detach().requires_grad_()
    weight, bias = (
        torch.randn(width, device=device, dtype=weight_dtype, requires_grad=True) for _ in range(2)
    )
    used_bias = bias if width % 2 == 0 else None
    residual: Tensor | None = None
    if with_residual:
        residual = torch.randn(rows, width, device=device, dtype=residual_dtype).requires_grad_()
        y, r = llmjp_ext.layer_norm(x, weight, used_bias, residual=residual)
        (y.float().sum() + r.float().sum()).backward()
    else:
        y = llmjp_ext.layer_norm(x, weight, used_bias)
        y.float().sum().backward()
    row = x.detach().float() if residual is None else (x + residual).detach().float()
    shift = None if used_bias is None else used_bias.float()
    expected = torch.nn.functional.layer_norm(row, (width,), weight.float(), shift)
    torch.testing.assert_close(y.float(), expected, rtol=0.05, atol=0.05)
    for leaf in (x, weight, used_bias, residual):
        if leaf is not None:
            assert leaf.grad is not None
            assert bool(leaf.grad.isfinite().all())


def sanitize_layer_norm(device: torch.device) -> int:
    """Every path of layer_norm on `device`; returns the number of forward and backward calls."""
    few = [
        *itertools.product([ROWS], LAYER_NORM_WIDTHS, SAME_DTYPES),
        *itertools.product([ROWS], MIXED_WIDTHS, MIXED_DTYPES),
    ]
    many = [
        (PERSISTENT_ELEMENTS // width, width, dtypes)
        for width, dtypes in itertools.product(TILE_WIDTHS, (SAME_DTYPES[0], SAME_DTYPES[2]))
    ]
    for (rows, width, dtypes), with_residual in itertools.product([*few, *many], (False, True)):
        run_layer_norm(device, rows, width, dtypes, with_residual)
    return 2 * 2 * len(few + many)


def sanitize_rms_norm(device: torch.device) -> int:
    """Every path of rms_norm, which runs layer_norm's kernels compiled without the mean."""
    cases = [
        *itertools.product([ROWS], LAYER_NORM_WIDTHS, SAME_DTYPES, (False, True)),
        *itertools.product([ROWS], MIXED_WIDTHS, MIXED_DTYPES, (False, True)),
        (PERSISTENT_ELEMENTS // 2048, 2048, SAME_DTYPES[2], True),
    ]
    for rows, width, (x_dtype, residual_dtype, weight_dtype), with_residual in cases:
        x = torch.randn(rows, width + 16, device=device, dtype=x_dtype)[:, :width]
        x = x.detach().requires_grad_()
        weight = torch.randn(width, device=device, dtype=weight_dtype, requires_grad=True)
        row, residual = x.detach().float(), None
        if with_residual:
            residual = torch.randn(rows, width, device=device, dtype=residual_dtype)
            y, r = llmjp_ext.rms_norm(x, weight, residual=residual)
            row = (x + residual).detach().float()
            (y.float().sum() + r.float().sum()).backward()
        else:
            y = llmjp_ext.rms_norm(x, weight)
            y.float().sum().backward()
        expected = torch.nn.functional.rms_norm(row, (width,), weight.float(), 1e-6)
        torch.testing.assert_close(y.float(), expected, rtol=0.05, atol=0.05)
        for leaf in (x, weight):
            assert leaf.grad is not None
            assert bool(leaf.grad.isfinite().all())
    return 2 * len(cases)


def sanitize_norm_dropout(device: torch.device) -> int:
    """Every tile, wider rows and the looping kernels with dropout, forward and backward."""
    cases = list(itertools.product(LAYER_NORM_WIDTHS, MIXED_DTYPES + SAME_DTYPES))
    for width, (x_dtype, residual_dtype, weight_dtype) in cases:
        x = torch.ones(ROWS, width, device=device, dtype=x_dtype, requires_grad=True)
        residual = torch.randn(ROWS, width, device=device, dtype=residual_dtype)
        weight = torch.ones(width, device=device, dtype=weight_dtype, requires_grad=True)
        for norm in (
            lambda x, w, **options: llmjp_ext.layer_norm(x, w, None, **options),
            llmjp_ext.rms_norm,
        ):
            y, r = norm(x, weight, residual=residual, dropout_p=0.5)
            (y.float().sum() + r.float().sum()).backward()
            assert x.grad is not None
            assert bool(((x.grad == 0) == ((r.float() - residual.float()).abs() < 1)).all())
            x.grad = None
    return 4 * len(cases)


def sanitize_bias_gelu(device: torch.device) -> int:
    """Both functions, with and without a bias, aligned and not, few rows and many."""
    shapes = ((1, 8), (5, 1023), (9, 4096), (3001, 264), (PERSISTENT_ELEMENTS // 8192, 8192))
    dtypes = {(x, bias) for x, _, bias in (*SAME_DTYPES, *MIXED_DTYPES)}
    cases = list(itertools.product(shapes, sorted(dtypes, key=str), ("none", "tanh"), (0, 1)))
    for (rows, width), (x_dtype, bias_dtype), approximate, with_bias in cases:
        x = torch.randn(rows, width, device=device, dtype=x_dtype, requires_grad=True)
        bias = torch.randn(width, device=device, dtype=bias_dtype, requires_grad=True)
        y = llmjp_ext.bias_gelu(x, bias if with_bias else None, approximate=approximate)
        y.float().sum().backward()
        u = x.detach().float() + (bias.detach().float() if with_bias else 0.0)
        expected = torch.nn.functional.gelu(u, approximate=approximate)
        torch.testing.assert_close(y.float(), expected, rtol=0.05, atol=0.05)
        for leaf in (x, bias) if with_bias else (x,):
            assert leaf.grad is not None
            assert bool(leaf.grad.isfinite().all())
    return 2 * len(cases)


def sanitize_bias_dropout_add(device: torch.device) -> int:
    """With and without bias and dropout, aligned and not, few rows and many."""
    shapes = ((1, 8), (5, 1023), (9, 4096), (3001, 264), (PERSISTENT_ELEMENTS // 8192, 8192))
    cases = list(itertools.product(shapes, (*SAME_DTYPES, *MIXED_DTYPES), (0.0, 0.25), (0, 1)))
    for (rows, width), (x_dtype, row_dtype, bias_dtype), share, with_bias in cases:
        x = torch.randn(rows, width, device=device, dtype=x_dtype, requires_grad=True)
        residual = torch.randn(rows, width, device=device, dtype=row_dtype, requires_grad=True)
        bias = torch.randn(width, device=device, dtype=bias_dtype, requires_grad=True)
        r = llmjp_ext.bias_dropout_add(x, bias if with_bias else None, residual, dropout_p=share)
        r.float().sum().backward()
        assert x.grad is not None
        u = x.detach().float() + (bias.detach().float() if with_bias else 0.0)
        kept = x.grad.float() if share else torch.ones_like(u)
        torch.testing.assert_close(
            r.float(), u * kept + residual.detach().float(), rtol=0.05, atol=0.05
        )
        if with_bias:
            assert bias.grad is not None
            assert bool(bias.grad.isfinite().all())
    return 2 * len(cases)


def sanitize_swiglu(device: torch.device) -> int:
    """Halves of one tensor, aligned and not, few rows and many."""
    shapes = ((1, 8), (5, 1023), (9, 4096), (3001, 264), (PERSISTENT_ELEMENTS // 8192, 8192))
    cases = list(itertools.product(shapes, (FLOAT32, FLOAT16, BFLOAT16)))
    for (rows, width), dtype in cases:
        both = torch.randn(rows, 2 * width, device=device, dtype=dtype, requires_grad=True)
        gate, up = both.chunk(2, dim=-1)
        y = llmjp_ext.swiglu(gate, up)
        y.float().sum().backward()
        expected = torch.nn.functional.silu(gate.detach().float()) * up.detach().float()
        torch.testing.assert_close(y.float(), expected, rtol=0.05, atol=0.05)
        assert both.grad is not None
        assert bool(both.grad.isfinite().all())
    return 2 * len(cases)


def sanitize_rotary(device: torch.device) -> int:
    """Both layouts, whole and odd chunks, parts of heads, in place or not, angles shared or not."""
    shapes = ((64, 32), (128, 64), (128, 32), (37, 9), (256, 128), (80, 40))
    cases = list(
        itertools.product(shapes, (FLOAT32, FLOAT16, BFLOAT16), (False, True), (False, True))
    )
    for (head_dim, pairs), dtype, interleaved, shared in cases:
        packed = torch.randn(2, 65, 9, head_dim, device=device, dtype=dtype, requires_grad=True)
        angle = torch.randn(*((65, pairs) if shared else (2, 65, pairs)), device=device)
        cos, sin = angle.cos(), angle.sin()
        for inplace in (False, True):
            whole = packed * 1
            q, k = whole[:, :, :7], whole[:, :, 7:]
            turned = llmjp_ext.rotary(q, k, cos, sin, interleaved=interleaved, inplace=inplace)
            (turned[0].float().square().sum() + turned[1].float().square().sum()).backward()
            assert packed.grad is not None
            # A turn keeps lengths, so the gradient of their squares is twice the input.
            torch.testing.assert_close(packed.grad, 2 * packed.detach(), rtol=0.05, atol=0.05)
            packed.grad = None
    return 4 * len(cases)


def sanitize_cross_entropy(device: torch.device) -> int:
    """Both sizes of block, every alignment, padding, ignored and wrong targets, in place or not."""
    calls = 0
    for dtype, vocab, inplace in itertools.product(
        (FLOAT32, FLOAT16, BFLOAT16), CROSS_ENTROPY_VOCABULARIES, (False, True)
    ):
        for valid in {vocab, max(1, vocab - 13)}:
            leaf = torch.randn(9, vocab, device=device, dtype=dtype, requires_grad=True)
            logits = leaf * 1
            targets = torch.randint(0, valid, (9,), device=device)
            targets[3] = -100
            loss = llmjp_ext.cross_entropy(
                logits, targets, valid_vocab=valid, z_loss=1e-4, inplace_backward=inplace
            )
            loss.backward()
            expected = torch.nn.functional.cross_entropy(leaf[:, :valid].float(), targets)
            torch.testing.assert_close(loss, expected, rtol=0.05, atol=0.05)
            targets[5] = vocab
            wrong = llmjp_ext.cross_entropy(leaf, targets, label_smoothing=0.1, reduction="none")
            wrong.sum().backward()
            assert wrong.isnan().tolist() == [i == 5 for i in range(9)]
            calls += 4
    return calls


def sanitize_linear_cross_entropy(device: torch.device) -> int:
    """Several chunks, the last not full; weights of 16 bits and of 32; all reductions."""
    tokens, width, calls = 8200, 64, 0
    for dtype, vocab, reduction in itertools.product(
        (FLOAT32, FLOAT16, BFLOAT16), (1023, 50688), ("mean", "sum", "none")
    ):
        hidden = torch.randn(tokens, width, device=device, dtype=dtype, requires_grad=True)
        weight = torch.randn(vocab, width, device=device, dtype=dtype, requires_grad=True)
        targets = torch.randint(0, vocab - 13, (tokens,), device=device)
        loss = llmjp_ext.linear_cross_entropy(
            hidden, weight, targets, valid_vocab=vocab - 13, reduction=reduction
        )
        loss.sum().backward()
        logits = hidden.detach()[:64].float() @ weight.detach()[: vocab - 13].float().t()
        expected = torch.nn.functional.cross_entropy(logits, targets[:64], reduction="none")
        if reduction == "none":
            torch.testing.assert_close(loss[:64], expected, rtol=0.05, atol=0.05)
        for leaf in (hidden, weight):
            assert leaf.grad is not None
            assert bool(leaf.grad.isfinite().all())
        calls += 2
    return calls


def sanitize_sample(device: torch.device) -> int:
    """Both sizes of block, every alignment and filter; few candidates and many; previous ids."""
    filters: tuple[dict[str, float], ...] = (
        {"temperature": 0.0},
        {"temperature": 0.7},
        {"top_k": 50, "top_p": 0.9, "repetition_penalty": 1.2},
        {"temperature": 5.0, "top_k": 900, "min_p": 0.01},
        {"temperature": 5.0, "top_p": 0.99},
    )
    cases = list(
        itertools.product(
            (FLOAT32, FLOAT16, BFLOAT16), CROSS_ENTROPY_VOCABULARIES, filters, (False, True)
        )
    )
    for dtype, vocab, options, by_row in cases:
        logits = torch.randn(9, vocab, device=device, dtype=dtype)
        logits[4] = -torch.inf
        previous = torch.randint(-1, vocab, (9, 70), device=device)
        if by_row:
            numbers = {
                name: torch.full((9,), number, device=device) for name, number in options.items()
            }
            ids = llmjp_ext.sample(logits, previous=previous, **numbers)
        else:
            ids = llmjp_ext.sample(
                logits, previous=previous, valid_vocab=max(1, vocab - 13), **options
            )
        assert int(ids[4]) == -1
        others = torch.cat([ids[:4], ids[5:]])
        assert bool(((others >= 0) & (others < vocab)).all())
        if options == filters[0] and by_row:
            assert torch.equal(others, torch.cat([logits[:4], logits[5:]]).argmax(-1))
    return len(cases)


def check_attention(out: Tensor, lse: Tensor, leaves: list[Tensor]) -> None:
    """Values, and gradients through both of them with sums in any order and in a fixed one."""
    assert bool(out.isfinite().all())
    assert not bool(lse.isnan().any())
    given = torch.randn_like(out), torch.randn_like(lse)
    for fixed in (False, True):
        torch.use_deterministic_algorithms(fixed)
        gradients = torch.autograd.grad((out, lse), leaves, given, retain_graph=True)
        assert all(bool(gradient.isfinite().all()) for gradient in gradients)
    torch.use_deterministic_algorithms(False)


def sanitize_attention(device: torch.device) -> int:
    """Every tile of the kernels, with lengths and widths that end inside a tile."""
    lengths = ((1, 1), (17, 203), (128, 128), (300, 65))
    calls = 0
    for dtype, (tokens, keys), width in itertools.product(
        (FLOAT16, BFLOAT16), lengths, (40, 64, 128, 136, 256)
    ):
        packed = torch.randn(2, max(tokens, keys), 8, width, device=device, dtype=dtype)
        parts = packed[:, :tokens, :4], packed[:, :keys, 4:6], packed[:, :keys, 6:]
        q, k, v = leaves = [part.detach().requires_grad_() for part in parts]
        ends = torch.tensor([keys, keys // 2], device=device, dtype=torch.int32)
        slopes = torch.rand(4, device=device)
        for options in (
            {},
            {"causal": True},
            {"window": (9, 3), "seqlens_k": ends},
            {"softcap": 5.0, "alibi_slopes": slopes, "dropout_p": 0.3},
        ):
            out, lse = llmjp_ext.attention(q, k, v, return_lse=True, **options)
            check_attention(out, lse, leaves)
            calls += 1
            if not options:
                expected = torch.nn.functional.scaled_dot_product_attention(
                    *(t.detach().float().transpose(1, 2) for t in leaves), enable_gqa=True
                )
                torch.testing.assert_close(
                    out.float(), expected.transpose(1, 2), rtol=0.05, atol=0.05
                )
    return calls


def sanitize_attention_varlen(device: torch.device) -> int:
    """Packed sequences, some of them without queries or keys, between rows of none."""
    bounds_q = torch.tensor([3, 3, 20, 150, 153, 290], device=device, dtype=torch.int32)
    bounds_k = torch.tensor([0, 40, 40, 200, 290, 295], device=device, dtype=torch.int32)
    calls = 0
    for dtype, width in itertools.product((FLOAT16, BFLOAT16), (40, 64, 128, 136, 256)):
        packed = torch.randn(300, 8, width, device=device, dtype=dtype)
        parts = packed[:, :4], packed[:, 4:6], packed[:, 6:]
        leaves = [part.detach().requires_grad_() for part in parts]
        for options in (
            {},
            {"causal": True, "window": (60, 0)},
            {"softcap": 5.0, "alibi_slopes": torch.rand(4, device=device), "dropout_p": 0.3},
        ):
            out, lse = llmjp_ext.attention_varlen(
                *leaves, bounds_q, bounds_k, 137, 160, return_lse=True, **options
            )
            check_attention(out, lse, leaves)
            calls += 1
    return calls


def sanitize_attention_decode(device: torch.device) -> int:
    """Every tile of the decode kernels, one part and several, caches whole and in pages."""
    calls = 0
    for dtype, width, tokens, (heads, kv_heads), page in itertools.product(
        (FLOAT16, BFLOAT16), (40, 64, 128, 136, 256), (1, 3, 9), ((4, 4), (8, 1)), (None, 7)
    ):
        shape = (2, 700, kv_heads, width) if page is None else (210, page, kv_heads, width)
        k_cache, v_cache = torch.randn(2, *shape, device=device, dtype=dtype)
        table = None
        if page is not None:
            table = torch.randperm(210, device=device)[:200].view(2, 100).int()
        q = torch.randn(2, tokens, heads, width, device=device, dtype=dtype)
        k_new, v_new = torch.randn(2, 2, tokens, kv_heads, width, device=device, dtype=dtype)
        lengths = torch.tensor([690, 5], device=device, dtype=torch.int32)
        for options in (
            {"k_new": k_new, "v_new": v_new},
            {"window": (100, 0), "starts_k": lengths // 2},
            {"softcap": 5.0, "alibi_slopes": torch.rand(heads, device=device)},
        ):
            out, lse = llmjp_ext.attention_decode(
                q, k_cache, v_cache, lengths, block_table=table, return_lse=True, **options
            )
            assert bool(out.isfinite().all())
            assert not bool(lse.isnan().any())
            calls += 1
    return calls


def main() -> int:
    """Runs all kernels; exits with 1 where there is no GPU."""
    if not torch.cuda.is_available():
        print("tools/sanitize.py needs a CUDA GPU; none was found", file=sys.stderr)
        return 1
    torch.manual_seed(0)
    for name, sanitize in (
        ("layer_norm", sanitize_layer_norm),
        ("rms_norm", sanitize_rms_norm),
        ("norm dropout", sanitize_norm_dropout),
        ("bias_gelu", sanitize_bias_gelu),
        ("bias_dropout_add", sanitize_bias_dropout_add),
        ("swiglu", sanitize_swiglu),
        ("rotary", sanitize_rotary),
        ("cross_entropy", sanitize_cross_entropy),
        ("linear_cross_entropy", sanitize_linear_cross_entropy),
        ("sample", sanitize_sample),
        ("attention", sanitize_attention),
        ("attention_varlen", sanitize_attention_varlen),
        ("attention_decode", sanitize_attention_decode),
    ):
        calls = sanitize(torch.device("cuda"))
        torch.cuda.synchronize()
        print(f"{name}: {calls} calls")
    return 0


if __name__ == "__main__":
    sys.exit(main())
