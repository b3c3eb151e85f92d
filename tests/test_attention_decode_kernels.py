"""What only the decode kernel has: parts of the keys, CUDA graphs, checks of a direct call."""

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode

import llmjp_ext
from attention_cases import lengths
from llmjp_ext import _library
from llmjp_ext.reference import attention_decode as reference
from llmjp_ext.testing import assert_accurate, simulated_kernels

# batch, tokens, heads, kv_heads, head_dim, capacity: every tile, one part and several.
SHAPES = {
    "one query row": (1, 1, 1, 1, 64, 500),
    "grouped heads": (1, 1, 8, 1, 128, 300),
    "heads of their own": (2, 1, 3, 3, 128, 90),
    "several tokens": (1, 5, 8, 2, 128, 300),
    "64 rows": (1, 8, 8, 1, 64, 400),
    "a prompt": (1, 90, 2, 1, 64, 90),
    "wide heads": (1, 1, 4, 1, 256, 200),
    "wide heads, several tokens": (2, 7, 4, 1, 256, 100),
    "between tiles": (1, 1, 4, 2, 80, 300),
}


@pytest.fixture
def device(kernel_device: str) -> str:
    """Where the kernel runs."""
    return kernel_device


@pytest.mark.parametrize("page", [None, 16], ids=["contiguous", "paged"])
@pytest.mark.parametrize("shape", SHAPES)
def test_shapes(device: str, shape: str, page: int | None) -> None:
    """Every tile, with the numbers of parts that the device's multiprocessors ask for; what lies
    behind the keys of a sequence is NaN and must not be read."""
    batch, tokens, heads, kv_heads, width, capacity = SHAPES[shape]
    q = torch.randn(batch, tokens, heads, width).to(device, torch.bfloat16)
    new = torch.randn(2, batch, tokens, kv_heads, width).to(device, torch.bfloat16)
    filled = lengths(*(max(0, capacity - tokens - 41 * b) for b in range(batch))).to(device)
    caches = torch.full((2, batch, capacity, kv_heads, width), torch.nan)
    for b, length in enumerate(filled.tolist()):
        caches[:, b, :length] = torch.randn(2, length, kv_heads, width)
    caches = caches.to(device, torch.bfloat16)
    table = None
    if page is not None:
        pages = -(-capacity // page)
        table = torch.randperm(batch * pages).view(batch, pages).int().to(device)
        padded = torch.full((2, batch, pages * page, kv_heads, width), torch.nan)
        padded = padded.to(caches)
        padded[:, :, :capacity] = caches
        paged = torch.empty(2, batch * pages, page, kv_heads, width).to(caches)
        paged[:, table.long().flatten()] = padded.view(2, -1, page, kv_heads, width)
        caches = paged
    options = {"k_new": new[0], "v_new": new[1], "block_table": table}
    exact = reference.attention_decode(
        *(t.double() for t in (q, *caches)),
        filled,
        k_new=new[0].double(),
        v_new=new[1].double(),
        block_table=table,
    )
    plain = reference.attention_decode(q, *caches, filled, **options)
    actual = llmjp_ext.attention_decode(q, *caches, filled, **options, return_lse=True)
    for name, a, e, p in zip(("out", "lse"), actual, exact, plain, strict=True):
        assert_accurate(a, e, p, what=f"{name} of {shape}")
    again = llmjp_ext.attention_decode(q, *caches, filled, **options, return_lse=True)
    assert torch.equal(actual[0], again[0]) and torch.equal(actual[1], again[1])


@pytest.mark.parametrize("page", [None, 8], ids=["contiguous", "paged"])
def test_offsets_beyond_32_bits(device: str, page: int | None, monkeypatch) -> None:
    """Sequences, or blocks, 2^30 elements apart, of which only their own rows are touched."""
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)
    step = 2**30
    if device == "cuda" and torch.cuda.mem_get_info()[0] < 6 * step:
        pytest.skip("needs 6 GiB of free GPU memory")
    memory = torch.empty(2 * step + 4 * 2048, device=device, dtype=torch.bfloat16)
    far = [
        torch.as_strided(memory, (3, 8, 2, 64), (step, 128, 64, 1), 2048 * i).normal_()
        for i in range(2)
    ]
    near = [t.clone(memory_format=torch.contiguous_format) for t in far]
    q = torch.randn(3, 1, 4, 64, device=device).bfloat16()
    new = torch.randn(2, 3, 1, 2, 64, device=device).bfloat16()
    table = None if page is None else torch.tensor([[2], [0], [1]], device=device).int()

    def results(caches: list[Tensor]) -> list[Tensor]:
        filled = lengths(7, 0, 4).to(device)
        out = llmjp_ext.attention_decode(
            q, *caches, filled, k_new=new[0], v_new=new[1], block_table=table
        )
        return [out, *caches]

    for a, b in zip(results(far), results(near), strict=True):
        assert torch.equal(a, b)


def test_what_does_not_fit_is_nan(device: str) -> None:
    """Without a synchronisation nobody can be told: the sequence is NaN, and nothing is written."""
    q = torch.randn(2, 1, 4, 64, device=device).half()
    caches = torch.randn(2, 2, 8, 2, 64, device=device).half()
    before = caches.clone()
    new = torch.randn(2, 2, 1, 2, 64, device=device).half()
    out, lse = llmjp_ext.attention_decode(
        q, *caches, lengths(8, 3).to(device), k_new=new[0], v_new=new[1], return_lse=True
    )
    assert bool(out[0].isnan().all()) and bool(lse[0].isnan().all())
    assert bool(out[1].isfinite().all()) and bool(lse[1].isfinite().all())
    before[:, 1, 3] = new[:, 1, 0]
    assert torch.equal(caches, before)


@pytest.mark.gpu
@pytest.mark.parametrize("page", [None, 16], ids=["contiguous", "paged"])
def test_cuda_graph_with_lengths_that_grow(page: int | None) -> None:
    """One captured step decodes token after token; each replay is what an eager call gives, without
    a synchronisation with the host."""
    batch, heads, kv_heads, width, capacity = 3, 8, 2, 128, 512
    q = torch.empty(batch, 1, heads, width, device="cuda", dtype=torch.bfloat16)
    new = torch.empty(2, batch, 1, kv_heads, width, device="cuda", dtype=torch.bfloat16)
    filled = lengths(0, 100, 430).cuda()
    table, shape = None, (batch, capacity, kv_heads, width)
    if page is not None:
        table = torch.randperm(batch * capacity // page).view(batch, -1).int().cuda()
        shape = (batch * capacity // page, page, kv_heads, width)
    caches = torch.randn(2, *shape, device="cuda").bfloat16()
    eager = caches.clone()

    def step(caches: Tensor) -> tuple[Tensor, Tensor]:
        return llmjp_ext.attention_decode(
            q, *caches, filled, k_new=new[0], v_new=new[1], block_table=table, return_lse=True
        )

    step(caches.clone())
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out, lse = step(caches)
    caches.copy_(eager)
    for _ in range(60):
        q.normal_()
        new.normal_()
        graph.replay()
        torch.cuda.set_sync_debug_mode("error")
        try:
            expected = step(eager)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert torch.equal(out, expected[0]) and torch.equal(lse, expected[1])
        assert torch.equal(caches, eager)
        filled += 1


@pytest.mark.gpu
def test_caches_that_the_kernel_cannot_read_in_place() -> None:
    """The public function refuses them before anything is launched."""
    q, filled = torch.ones(2, 1, 4, 12).cuda().half(), lengths(1, 2).cuda()
    cache = torch.ones(2, 6, 2, 12).cuda().half()
    with pytest.raises(ValueError, match="multiple of 8 up to 256 on CUDA, got 12"):
        llmjp_ext.attention_decode(q, cache, cache.clone(), filled)
    with pytest.raises(ValueError, match=r"k_cache's strides.*\[144, 24, 12, 1\]"):
        llmjp_ext.attention_decode(q[..., :8], cache[..., :8], cache.clone()[..., :8], filled)


def test_a_dimension_of_one_element_may_have_any_stride() -> None:
    """Nobody steps along it: one key head of a cache that was laid out for more of them."""
    if not _library.has_cuda_kernel("attention_decode"):
        pytest.skip("this build holds no CUDA kernels")
    with FakeTensorMode():  # of a GPU that need not be there
        memory = torch.empty(2, 96, device="cuda", dtype=torch.float16)
        caches = memory.as_strided((2, 2, 6, 1, 8), (96, 48, 8, 3, 1)).unbind()
        q = torch.empty(2, 1, 4, 8, device="cuda", dtype=torch.float16)
        filled = torch.empty(2, device="cuda", dtype=torch.int32)
        assert llmjp_ext.attention_decode(q, *caches, filled).shape == q.shape


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"q": torch.ones(2, 1, 4, 8)}, "q must be float16 or bfloat16 on CUDA, got float32"),
        ({"q": torch.ones(2, 4, 8).half()}, r"four dimensions, got \[2, 4, 8\]"),
        ({"k_cache": torch.ones(3, 6, 2, 8).half()}, r"k_cache must have shape \[2, 6, 2, 8\]"),
        ({"v_cache": torch.ones(2, 6, 2, 8)}, "v_cache must be float16 here, got float32"),
        ({"q": torch.ones(2, 1, 3, 8).half()}, "multiple of the caches', got 3 and 2"),
        (
            {
                "q": torch.ones(2, 1, 4, 12).half(),
                "k_cache": torch.ones(2, 6, 2, 12).half(),
                "v_cache": torch.ones(2, 6, 2, 12).half(),
            },
            "head_dim must be a multiple of 8 up to 256 on CUDA, got 12",
        ),
        (
            {"k_cache": torch.ones(2, 6, 2, 12).half()[..., :8]},
            r"k_cache's rows must begin at multiples of 16 bytes.*\[144, 24, 12, 1\]",
        ),
        (
            {"v_cache": torch.ones(2, 6, 2, 16).half()[..., ::2]},
            "v_cache's last dimension must be contiguous on CUDA, got stride 2",
        ),
        (
            {"k_cache": torch.ones(193).half()[1:].view(2, 6, 2, 8)},
            "k_cache's rows must begin.*address 2 bytes behind one",
        ),
        ({"cache_seqlens": torch.ones(2)}, "cache_seqlens must be int32"),
        ({"starts_k": lengths(1)}, r"starts_k must have shape \[2\], got \[1\]"),
        ({"k_new": torch.ones(2, 1, 2, 8).half()}, "k_new and v_new must be given together"),
        (
            dict.fromkeys(("k_new", "v_new"), torch.ones(2, 1, 1, 8).half()),
            r"k_new must have shape \[2, 1, 2, 8\]",
        ),
        ({"block_table": lengths(0, 0)}, r"block_table must be \[batch, pages\], got \[2\]"),
        ({"block_table": torch.zeros(2, 1)}, "block_table must be int32"),
        ({"alibi_slopes": torch.ones(3)}, r"alibi_slopes must have shape \[4\]"),
        ({"window_left": -2}, "window_left must be at least -1, got -2"),
        ({"softcap": -1.0}, "softcap must not be negative"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_kernel_checks_what_it_is_given(change, words) -> None:
    """A direct call of the raw op with what the public function would have refused."""
    arguments = {
        "q": torch.ones(2, 1, 4, 8).half(),
        "k_cache": torch.ones(2, 6, 2, 8).half(),
        "v_cache": torch.ones(2, 6, 2, 8).half(),
        "cache_seqlens": lengths(1, 2),
        **dict.fromkeys(("k_new", "v_new", "block_table", "alibi_slopes", "starts_k", "scale")),
        "window_left": -1,
        "softcap": 0.0,
        **change,
    }
    with simulated_kernels(), pytest.raises(RuntimeError, match=words):
        torch.ops.llmjp_ext_simt.attention_decode(**arguments)
