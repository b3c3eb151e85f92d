"""Decoding: the text of Hugging Face `tokenizers` for any ids, at once and as a stream."""

import random

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from llmjp_ext import Tokenizer
from tokenizer_oracle import MODELS, fuzz_texts, load_both, model_file

Both = tuple[Tokenizer, tokenizers.Tokenizer]


@pytest.fixture(scope="module", params=MODELS)
def both(request: pytest.FixtureRequest) -> Both:
    """Each model in ours and in the oracle."""
    return load_both(model_file(request.param))


def random_ids(rng: random.Random, ours: Tokenizer) -> list[int]:
    """Ids of any piece, of byte pieces alone, of special tokens, and of nothing."""
    zero = ours.token_to_id("<0x00>")
    assert zero is not None
    kinds = (
        lambda: rng.randrange(ours.vocab_size + 50),
        lambda: zero + rng.randrange(256),
        lambda: zero + rng.choice((0x41, 0xE3, 0x81, 0x82, 0xF0, 0x9F, 0x98, 0x80, 0xE2, 0x96)),
        lambda: rng.randrange(9),
    )
    return [rng.choice(kinds)() for _ in range(rng.randint(0, 14))]


@pytest.mark.parametrize("seed", range(2))
def test_any_ids_give_the_oracles_text(both: Both, seed: int) -> None:
    """Byte runs valid or not, special tokens, leading spaces, ids that nothing has."""
    ours, oracle = both
    rng = random.Random(seed)
    for _ in range(6000):
        ids = random_ids(rng, ours)
        for skip in (True, False):
            expected = oracle.decode(ids, skip_special_tokens=skip)
            assert ours.decode(ids, skip) == expected, f"seed {seed}: {ids}"


def test_texts_come_back(both: Both) -> None:
    """decode(encode(text)) is the oracle's, in batches, from lists and from arrays."""
    ours, oracle = both
    sequences = ours.encode_batch(fuzz_texts(21, 2000))
    expected = oracle.decode_batch(sequences)
    assert ours.decode_batch(sequences) == expected
    for dtype in (np.uint16, np.int64):
        arrays = [np.array(ids, dtype) for ids in sequences[:300]]
        assert ours.decode_batch(arrays) == expected[:300]
    assert ours.decode(np.array(sequences[0], np.int32)[::1]) == expected[0]
    assert ours.decode(tuple(sequences[1])) == expected[1]


@settings(max_examples=400, deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=40))
def test_stream_equals_decode(text: str) -> None:
    """The joined steps of a stream are decode()'s text, for the ids of any text."""
    ours = load_both(model_file("trained"))[0]
    ids = ours.encode(text)
    for skip in (True, False):
        stream = ours.decode_stream(skip)
        steps = [stream.step(id) for id in ids]
        assert "".join(steps) + stream.finish() == ours.decode(ids, skip)


def test_stream_gives_characters_as_soon_as_they_are_complete(both: Both) -> None:
    """Text written in byte pieces appears at each character's last byte, then errors as U+FFFD."""
    ours, _ = both

    def ids(data: bytes) -> list[int]:
        return [ours.token_to_id(f"<0x{byte:02X}>") or 0 for byte in data]

    stream = ours.decode_stream()
    assert [stream.step(id) for id in ids("é🙏".encode())] == ["", "é", "", "", "", "🙏"]
    assert [stream.step(id) for id in ids(b"\xe3\x81A\xff")] == ["", "", "\ufffd\ufffdA", "\ufffd"]
    assert stream.step(ids(b"\xf0")[0]) == ""
    assert stream.finish() == "\ufffd"
    space = ours.token_to_id("▁") or 0
    assert [stream.step(space), stream.step(space), stream.finish()] == ["", " ", ""]


def test_ids_that_nothing_has_are_dropped(both: Both) -> None:
    """Beyond the vocabulary, beyond 32 and 64 bits, in lists, arrays and streams."""
    ours, _ = both
    ids = ours.encode("日本", add_special_tokens=False)
    size = ours.vocab_size
    for beyond in (size, size + 1, 2**31, 2**32 + 5, 2**63 - 1, 2**63, 2**64, 10**30):
        assert ours.decode([*ids, beyond]) == "日本"
        assert ours.decode_stream().step(beyond) == ""
        assert ours.id_to_token(beyond) is None
    assert ours.decode(np.array([*ids, 2**64 - 1], np.uint64)) == "日本"
    assert ours.decode(np.array([*ids, 2**63 - 1], np.int64)) == "日本"
    assert ours.decode([]) == ours.decode(np.array([], np.int64)) == ""


def test_ids_of_any_integer_type(both: Both) -> None:
    """Arrays of each integer type, strided, reversed, read-only or of foreign byte order; iterables
    and integers of NumPy."""
    ours, oracle = both
    ids = [9, 3, 7, 50, 60, 11, 33, 40]
    expected = oracle.decode(ids)
    for dtype in ("i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", ">i4", ">u2", ">u8"):
        array = np.array(ids, dtype)
        assert ours.decode(array) == expected, dtype
        doubled = np.repeat(array, 2)
        assert ours.decode(doubled[::2]) == expected, dtype
        assert ours.decode(array[::-1]) == oracle.decode(ids[::-1]), dtype
        array.flags.writeable = False
        assert ours.decode(array) == expected, dtype
    assert ours.decode(iter(ids)) == expected  # type: ignore[arg-type]
    assert ours.decode([np.uint16(id) for id in ids]) == expected
    assert ours.decode_batch(np.array([ids, ids])) == [expected] * 2


def test_ids_that_are_no_ids_are_refused(both: Both) -> None:
    """Negative ids, floats, strings and arrays of the wrong kind raise in one line."""
    ours, _ = both
    for negative in (-3, -(2**31), -(2**63), -(2**64), -(10**30)):
        with pytest.raises(ValueError, match=f"must not be negative, got {negative}"):
            ours.decode([1, negative])
        with pytest.raises(ValueError, match="negative"):
            ours.decode_stream().step(negative)
        assert ours.id_to_token(negative) is None
    for array in (np.array([1, -3], "i1"), np.array([1, -3], ">i8")):
        with pytest.raises(ValueError, match="-3"):
            ours.decode(array)
    wrong = (["a"], [1.5], [None], 5, None, np.zeros(3), np.zeros((2, 2), np.int64))
    more = (np.array(5), np.array([True]), np.array(["1"]), np.array([1], object))
    for value in (*wrong, *more):
        with pytest.raises(TypeError) as caught:
            ours.decode(value)  # type: ignore[arg-type]
        assert "\n" not in str(caught.value)
        with pytest.raises(TypeError):
            ours.decode_batch([[1], value])  # type: ignore[list-item]
    for step in (1.5, "a", None):
        with pytest.raises(TypeError):
            ours.decode_stream().step(step)  # type: ignore[arg-type]


def test_a_list_that_changes_while_it_is_read(both: Both) -> None:
    """An id whose conversion empties the list: nothing beyond its end is read."""
    ours, oracle = both

    class Shrinking:
        def __index__(self) -> int:
            ids.clear()
            return 50

    ids: list[object] = [Shrinking(), *range(40, 400)]
    assert ours.decode(ids) == oracle.decode([50])  # type: ignore[arg-type]
