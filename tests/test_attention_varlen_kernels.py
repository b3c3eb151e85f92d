"""What only attention_varlen's kernels have: sums in a fixed order, and checks of a direct call."""

import pytest
import torch
from torch import Tensor

import llmjp_ext
from attention_cases import lengths, run
from llmjp_ext.testing import simulated_kernels
from test_attention_varlen import Packing, check


def test_deterministic_gradients_repeat_bit_for_bit(kernel_device: str, monkeypatch) -> None:
    """Under torch.use_deterministic_algorithms, whichever block and thread comes first, several
    blocks of keys adding to a tile of dq; and they are those that each sequence has alone."""
    packing, heads = Packing((200, 9, 70), (200, 150, 300), before=3), (2, 1, 64)
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
    check(kernel_device, torch.bfloat16, packing, heads, {"causal": True})
    inputs = packing.tensors(heads, kernel_device, torch.bfloat16)
    arguments = packing.arguments(kernel_device)
    dout = torch.randn_like(inputs[0])

    def op(*leaves: Tensor):
        return llmjp_ext.attention_varlen(*leaves, *arguments, causal=True, return_lse=True)

    expected = run(op, inputs, dout, None)
    for a, b in zip(run(op, inputs, dout, None), expected, strict=True):
        assert torch.equal(a, b), f"seed {torch.initial_seed()}"

    def attention(*leaves: Tensor):
        return llmjp_ext.attention(*leaves, causal=True, return_lse=True)

    rows, keys = slice(212, 282), slice(353, 653)
    alone = [inputs[0][None, rows], inputs[1][None, keys], inputs[2][None, keys]]
    parts = [expected[0][rows], expected[1][:, rows], expected[2][rows]]
    parts += [gradient[keys] for gradient in expected[3:]]
    for a, b in zip(run(attention, alone, dout[None, rows], None), parts, strict=True):
        assert torch.equal(a[0], b), f"seed {torch.initial_seed()}"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"q": torch.ones(3, 4, 8)}, "q must be float16 or bfloat16 on CUDA, got float32"),
        ({"q": torch.ones(1, 3, 4, 8).half()}, r"q must be \[total, heads, head_dim\], got \[1, 3"),
        ({"dout": torch.ones(2, 4, 8).half()}, r"dout must have shape \[1, 3, 4, 8\], got"),
        ({"out": torch.ones(3, 2, 8).half()}, r"out must have shape \[1, 3, 4, 8\], got"),
        ({"lse": torch.ones(4, 2)}, r"lse must have shape \[4, 3\], got"),
        ({"k": torch.ones(5, 3, 8).half()}, r"v must have shape \[1, 5, 3, 8\]"),
        ({"cu_seqlens_q": torch.zeros(3)}, "cu_seqlens_q must be int32"),
        ({"cu_seqlens_q": lengths()}, r"cu_seqlens_q must be \[sequences \+ 1\], got shape \[0\]"),
        ({"cu_seqlens_k": lengths(0, 5)}, r"cu_seqlens_k must have shape \[3\], got \[2\]"),
        ({"alibi_slopes": torch.ones(3, 4)}, r"alibi_slopes must have shape \[2, 4\]"),
        ({"max_seqlen_k": -1}, "max_seqlen_k must not be negative, got -1"),
        ({"dropout_p": 0.5}, "dropout_p needs random_state"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_kernels_check_what_they_are_given(change, words) -> None:
    """A direct call of a raw op with what the public function would have refused."""
    inputs = {
        "q": torch.ones(3, 4, 8).half(),
        **dict.fromkeys(("k", "v"), torch.ones(5, 2, 8).half()),
    }
    options = {
        "cu_seqlens_q": lengths(0, 1, 3),
        "cu_seqlens_k": lengths(0, 4, 5),
        **dict.fromkeys(("alibi_slopes", "random_state")),
        "max_seqlen_q": 2,
        "max_seqlen_k": 4,
        "scale": None,
        "window_left": -1,
        "window_right": -1,
        "softcap": 0.0,
        "dropout_p": 0.0,
    }
    saved = {
        **dict.fromkeys(("dout", "out"), torch.ones(3, 4, 8).half()),
        "dlse": None,
        "lse": torch.ones(4, 3),
        "deterministic": False,
    }
    ops = torch.ops.llmjp_ext_simt
    with simulated_kernels():
        if not change.keys() & saved.keys():
            with pytest.raises(RuntimeError, match=f"attention_varlen_fwd: .*{words}"):
                ops.attention_varlen_fwd(**{**inputs, **options, **change})
        with pytest.raises(RuntimeError, match=f"attention_varlen_bwd: .*{words}"):
            ops.attention_varlen_bwd(**{**inputs, **options, **saved, **change})
