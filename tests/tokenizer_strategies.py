"""Hypothesis strategies for texts, vocabularies and ids that are hard for a tokenizer."""

from collections.abc import Sequence

from hypothesis import strategies as st

from tokenizer_oracle import FUZZ_ATOMS

_ANY = st.characters(exclude_categories=["Cs"])
_TYING = tuple("ーあaw=笑草-…!▁ \n0")


@st.composite
def _runs(draw: st.DrawFn) -> str:
    """A character, mostly one whose runs tie, up to 400 times."""
    character = draw(st.sampled_from(_TYING) | _ANY)
    return character * draw(st.integers(1, 40) | st.integers(41, 400))


def texts(words: Sequence[str] = ()) -> st.SearchStrategy[str]:
    """Texts of any length up to some thousand characters.

    Runs after whatever comes before, runs of spaces, control characters, spelled-out byte pieces
    and special tokens, whole and broken, characters beyond U+FFFF, combining ones, and `words`.
    """
    part = st.one_of(
        st.sampled_from(FUZZ_ATOMS),
        _runs(),
        st.integers(1, 60).map(lambda count: " " * count),
        st.characters(categories=["Cc", "Cf"]),
        st.integers(0, 255).map(lambda byte: f"<0x{byte:02X}>"),
        st.characters(min_codepoint=0x10000, exclude_categories=["Cs"]),
        st.characters(categories=["Mn", "Mc", "Me"]).map(lambda mark: "e" + mark),
        st.text(_ANY, max_size=8),
        *([st.sampled_from(words)] if words else []),
    )
    return st.lists(part, max_size=24).map("".join)


def seeds() -> st.SearchStrategy[int]:
    """Of a composed vocabulary: a failing example names it."""
    return st.integers(0, 2**32 - 1)


def ids(vocab_size: int, zero: int) -> st.SearchStrategy[list[int]]:
    """Ids of tokens, of the byte pieces from `zero` on in runs, of special tokens, of nothing."""
    byte = st.sampled_from((0x41, 0xE2, 0x96, 0x81, 0xE3, 0x82, 0xF0, 0x9F, 0x98, 0x80, 0xFF))
    one = st.one_of(
        st.integers(0, vocab_size + 9),
        (byte | st.integers(0, 255)).map(lambda value: zero + value),
        st.integers(0, 8),
    )
    return st.lists(one, max_size=30)
