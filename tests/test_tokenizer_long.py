"""One long text over threads: chunks searched apart give the ids of the plain search from left to
right, which is the definition.

The compiled module's own constructor can be asked for chunks of a few characters, so that every
short text has many borders.
"""

import random

import numpy as np
import pytest

from llmjp_ext import _tokenizer
from tokenizer_oracle import (
    FUZZ_ATOMS,
    MODELS,
    fuzz_texts,
    japanese_lines,
    load_both,
    model_file,
    standard_library_texts,
)

CHUNKS = (1, 2, 7, 33, 200)
SPECIAL = "<EOD|LLM-jp>"
Searches = tuple[_tokenizer.Tokenizer, dict[int, _tokenizer.Tokenizer]]


@pytest.fixture(scope="module", params=MODELS)
def searches(request: pytest.FixtureRequest) -> Searches:
    """The plain search, and the search by units in chunks of so many characters."""
    data = model_file(request.param).read_bytes()
    plain = _tokenizer.Tokenizer(data, "json", units=False)
    return plain, {chunk: _tokenizer.Tokenizer(data, "json", chunk=chunk) for chunk in CHUNKS}


def assert_same(searches: Searches, texts: list[str], hint: str) -> None:
    """Compares the ids of each text, with and without the appended token."""
    plain, chunked = searches
    for special in (True, False):
        expected = plain.encode_batch(texts, special, False, 1)
        for chunk, one in chunked.items():
            got = one.encode_batch(texts, special, False, 2)
            for text, want, ids in zip(texts, expected, got, strict=True):
                assert ids == want, f"{hint}, chunk {chunk}: ids differ for {text!r}"


@pytest.mark.parametrize("seed", range(2))
def test_fuzz_texts(searches: Searches, seed: int) -> None:
    """Literals, runs, special tokens, unknown characters, in all three widths."""
    assert_same(searches, fuzz_texts(seed + 70, 1500), f"seed {seed + 70}")


@pytest.mark.parametrize("seed", range(3))
def test_ties_on_both_sides_of_borders(searches: Searches, seed: int) -> None:
    """Ties depend on a sum that began chunks ago, over pieces, bytes of unknown characters,
    spelled-out byte pieces, other ties, and special tokens, behind which it begins anew."""
    rng = random.Random(seed)
    between = [
        "",
        "\n",
        "。",
        "東京",
        "한국",
        "<0x41>",
        "🙏",
        " ",
        "    ",
        SPECIAL,
        "x = 1\n",
        "本を読む",
    ]
    texts = []
    for _ in range(250):
        text = ""
        for _ in range(rng.randint(2, 12)):
            text += rng.choice("ーあaw=笑草▁-…! ") * rng.randint(1, 60)
            text += rng.choice(between) * rng.randint(1, 5)
        texts.append(text)
    assert_same(searches, texts, f"seed {seed}")


@pytest.mark.parametrize("run", [" ", SPECIAL, "<0x41>", "<0x4", "<", "ー", "\U0001f64f", "  \n"])
def test_runs_across_borders(searches: Searches, run: str) -> None:
    """Spaces, special tokens and byte pieces wherever a border would fall, whole and cut short."""
    texts = [before + run * n + after
             for n in range(1, 40)
             for before in ("", "a", "ーーーーー東京", "\U0001f64f")
             for after in ("", "self", "ーーーーー", "|LLM-jp>", "1>x" * 9)]  # fmt: skip
    assert_same(searches, texts, f"runs of {run!r}")


def test_long_real_texts_over_threads(searches: Searches) -> None:
    """Several ordinary chunks a text, among short texts, as lists, as arrays, and one alone."""
    plain, _ = searches
    pieces = [*standard_library_texts(40), "\n".join(japanese_lines(8, 4000)), *FUZZ_ATOMS]
    code = "".join(pieces[:40])[:400_000]
    japanese = "\n".join(japanese_lines(8, 9000))
    texts = ["", code, "日本", japanese + code[:9000] + "=" * 300 + japanese[:5000], *pieces[-9:]]
    texts += [SPECIAL.join([japanese[:70_000], code[:80_000], code[-90_000:]]) + "🙏"]
    expected = plain.encode_batch(texts, True, False, 1)
    ordinary = _tokenizer.Tokenizer(plain_data(searches), "json")
    for threads in (2, 5):
        assert ordinary.encode_batch(texts, True, False, threads) == expected
        ids, offsets = ordinary.encode_ragged(texts, True, False, threads)
        assert np.array_equal(ids, [id for each in expected for id in each])
        assert offsets.tolist() == [0, *np.cumsum([len(each) for each in expected])]
    assert [ordinary.encode(text, None, True, False) for text in texts] == expected


def plain_data(searches: Searches) -> bytes:
    """The file of which the fixture's tokenizers were made."""
    size = searches[0].vocab_size
    return next(
        data
        for data in (model_file(name).read_bytes() for name in MODELS)
        if _tokenizer.Tokenizer(data, "json").vocab_size == size
    )


def test_sums_beyond_the_exact_range() -> None:
    """A segment whose sum grows so large that the plain search goes on with it, chunk by chunk, up
    to a special token, behind which all is as before.
    """
    data = model_file("trained").read_bytes()
    plain = _tokenizer.Tokenizer(data, "json", units=False)
    ordinary = _tokenizer.Tokenizer(data, "json")
    rng = random.Random(0)
    pieces = [
        rng.choice("abcdefghijk") + rng.choice([" ", "ーーー", "ーーーーー", ""])
        for _ in range(4000)
    ]
    text = "".join(pieces) * 400
    texts = [f"{text}{SPECIAL}{text[:99_999]}{SPECIAL}", "日本"]
    want, _ = plain.encode_ragged(texts, True, False, 1)
    got, _ = ordinary.encode_ragged(texts, True, False, 2)
    assert np.array_equal(got, want), "seed 0"


def test_surrogates_in_chunks_are_refused(searches: Searches) -> None:
    """In what a chunk searches itself and in what it leaves open, alone and behind others."""
    _, chunked = searches
    for text in ("本" * 300 + "\ud800" + "本" * 50, "ー" * 300 + "<0x41>\udfff" + "ー" * 99):
        for one in chunked.values():
            with pytest.raises(TypeError, match="lone surrogate"):
                one.encode_ragged(["日本", text], True, False, 2)


def test_a_single_text_is_the_oracles() -> None:
    """encode() of one text so long that threads share it, against Hugging Face's library."""
    ours, oracle = load_both(model_file("trained"))
    text = (
        "".join(standard_library_texts(30))[:150_000] + "=" * 77 + "".join(japanese_lines(2, 500))
    )
    assert len(text) > 2**17
    assert ours.encode(text) == oracle.encode(text).ids


def test_the_size_of_chunks_is_checked() -> None:
    """No chunk is empty."""
    with pytest.raises(ValueError, match="chunk"):
        _tokenizer.Tokenizer(b"{}", "json", chunk=0)
