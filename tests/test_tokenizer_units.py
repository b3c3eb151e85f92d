"""The search by units gives the ids of the plain search, which is the definition, on every str.

The compiled module's own constructor can be asked for the plain search, and for a memory of units
so small that nearly everything collides in it.
"""

import random
import string

import numpy as np
import pytest

from llmjp_ext import _tokenizer
from tokenizer_oracle import (
    FUZZ_ATOMS,
    MODELS,
    fuzz_texts,
    japanese_lines,
    model_file,
    standard_library_texts,
)

Searches = tuple[_tokenizer.Tokenizer, list[_tokenizer.Tokenizer]]


@pytest.fixture(scope="module", params=MODELS)
def searches(request: pytest.FixtureRequest) -> Searches:
    """The plain search, and that by units with memories of 1, 4 and the ordinary number of sets."""
    data = model_file(request.param).read_bytes()
    plain = _tokenizer.Tokenizer(data, "json", units=False)
    return plain, [_tokenizer.Tokenizer(data, "json", memo_bits=bits) for bits in (0, 2, 15)]


def assert_same(searches: Searches, texts: list[str], hint: str) -> None:
    """Compares the ids of each text, and names the first that differs."""
    plain, others = searches
    expected = plain.encode_batch(texts, True, False, 1)
    for other in others:
        got = other.encode_batch(texts, True, False, 1)
        for text, want, ids in zip(texts, expected, got, strict=True):
            assert ids == want, f"{hint}: ids differ for {text[-300:]!r}"


@pytest.mark.parametrize("seed", range(20, 23))
def test_fuzz_texts(searches: Searches, seed: int) -> None:
    """Literals, runs, any characters at all."""
    assert_same(searches, fuzz_texts(seed, 6000), f"seed {seed}")


@pytest.mark.parametrize("seed", range(3))
def test_ties_after_prefixes_of_any_length(searches: Searches, seed: int) -> None:
    """Ties are settled by the rounding of a sum that the search by units has to find out first."""
    rng = random.Random(seed)
    prefixes = ["", "\n", " ", "東京", "한국어 ", "<0x41>", "🙏", "x = 1\n", "彼は本を読みました。"]
    texts = []
    for _ in range(1500):
        text = "".join(rng.choice(prefixes) * rng.randint(0, 40) for _ in range(3))
        for _ in range(rng.randint(1, 4)):
            text += rng.choice("ーあaw=笑草▁-…! ") * rng.randint(1, 90)
            text += rng.choice(["", "b", " ", "。", "ん", "<0x0A>", "\U0001f64f", "ー"])
        texts.append(text)
    assert_same(searches, texts, f"seed {seed}")


@pytest.mark.parametrize("character", [" ", "▁", "\n ", " \n", "\t", "-", "あ", "ー", "wa"])
def test_runs_of_every_length(searches: Searches, character: str) -> None:
    """Around the longest piece, the longest unit and the block of 64 characters."""
    texts = [
        before + character * n + after
        for n in range(1, 140)
        for before in ("", "a", "東")
        for after in ("", "self", "は", "▁x", "<0x41>", "🙏")
    ]
    assert_same(searches, texts, f"runs of {character!r}")


@pytest.mark.parametrize("seed", range(2))
def test_rulers_and_deep_indentation(searches: Searches, seed: int) -> None:
    """Long units, tied or not, more of them than are remembered, again after other prefixes."""
    rng = random.Random(seed)
    lines = []
    for _ in range(500):
        character = rng.choice("-=*#_~ ー笑1")
        before, after = rng.choice(["", "# ", "東京"]), rng.choice(["", "x", " word", "は", "!"])
        lines.append(before + character * rng.choice([rng.randint(2, 90), rng.randint(250, 262)]))
        lines[-1] += after
    texts = ["\n".join(rng.choices(lines, k=40)) for _ in range(60)] + lines
    assert_same(searches, texts, f"seed {seed}")


@pytest.mark.parametrize("width", [1, 2, 4])
def test_units_at_every_offset(searches: Searches, width: int) -> None:
    """Each way in which Python holds a str; units across the ends of blocks and of the text."""
    words = ["return", " internationalization", "  x", "(", "0x1F", "the ", "\n    ", "Größe", "\0"]
    words += {1: [], 2: ["日本語", "ありがとうございます", "、", "ﾊﾝｶｸ", "한"]}.get(
        width, ["🙏", "😍👍", "日本"]
    )
    rng = random.Random(width)
    texts = ["".join(rng.choice(words) for _ in range(n)) for n in range(40) for _ in range(30)]
    texts += ["x" * n + text for n in range(70) for text in texts[-3:]]
    assert_same(searches, texts, f"width {width}")


def test_real_text(searches: Searches) -> None:
    """Python sources and Japanese, line by line and in long strings, also with wide characters."""
    texts = standard_library_texts(40) + japanese_lines(5, 500)
    lines = [line for text in texts for line in text.split("\n")]
    long = ["\n".join(texts), "\n".join(texts)[:200_000] + "🙏", "".join(japanese_lines(6, 4000))]
    assert_same(searches, texts + lines[:20_000] + long, "text")


def test_a_long_string_without_a_place_to_cut(searches: Searches) -> None:
    """Wide text is taken in parts; one that has no cut in it goes to the plain search."""
    texts = [
        "😍" + "a" * 40_000,
        "😍" + "<0x41>" * 12_000,
        "あ" * 33_000 + "😍",
        "😍" + "1<0x41" * 9000,
    ]
    assert_same(searches, texts, "uncut")


def test_sums_beyond_the_exact_range_are_searched_plainly() -> None:
    """Where a sum is so large that its rounding might pass for a difference of scores."""
    data = model_file("trained").read_bytes()
    plain = _tokenizer.Tokenizer(data, "json", units=False)
    units = _tokenizer.Tokenizer(data, "json")
    rng = random.Random(0)
    pieces = [
        rng.choice(string.ascii_letters) + rng.choice([" ", "ー", "ーーーーー", ""])
        for _ in range(4000)
    ]
    text = "".join(pieces) * 700
    for one in (text, text + "🙏"):
        want, _ = plain.encode_ragged([one], True, False, 1)
        got, _ = units.encode_ragged([one], True, False, 1)
        assert np.array_equal(got, want)


def test_ids_do_not_depend_on_what_was_searched_before(searches: Searches) -> None:
    """The same texts in two orders, through a memory that the first order has filled."""
    plain, others = searches
    rng = random.Random(1)
    texts = ["".join(rng.choices(FUZZ_ATOMS, k=8)) for _ in range(4000)]
    expected = plain.encode_batch(texts, True, False, 1)
    for other in others:
        other.encode_batch(texts[::-1], True, False, 1)
        assert other.encode_batch(texts, True, False, 1) == expected, "seed 1"


def test_the_size_of_the_memory_is_checked() -> None:
    """It is a power of two that a machine can hold."""
    with pytest.raises(ValueError, match="memo_bits"):
        _tokenizer.Tokenizer(b"{}", "json", memo_bits=60)
