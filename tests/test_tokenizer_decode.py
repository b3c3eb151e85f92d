"""Decoding: the text of Hugging Face `tokenizers` for any ids, at once and as a stream."""

import itertools
import random

import numpy as np
import pytest
import tokenizers
import torch
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


@pytest.mark.parametrize(
    "text",
    [
        "👨‍👩‍👧‍👦 family",  # four people, joined by U+200D
        "🇯🇵🇺🇸",  # pairs of regional indicators
        "👍🏽 1️⃣ ❤️‍🔥",  # skin tone, keycap, variation selectors
        "が e\u0301 한국 𠮷野家",  # combining marks, Hangul, beyond U+FFFF
    ],
)
def test_stream_gives_all_that_is_complete_and_no_more(both: Both, text: str) -> None:
    """After each id the steps so far are the characters whose last byte has come, none held back,
    none cut."""
    ours, _ = both
    stream = ours.decode_stream()
    data, shown = b"", ""
    for id in ours.encode(text, add_special_tokens=False):
        token = ours.id_to_token(id) or ""
        is_byte = len(token) == 6 and token.startswith("<0x")
        data += bytes([int(token[1:5], 16)]) if is_byte else token.replace("▁", " ").encode()
        shown += stream.step(id)
        assert shown == data.decode("utf-8", "ignore").removeprefix(" ")
    assert stream.finish() == "" and shown == text


@pytest.mark.parametrize(
    ("data", "steps"),
    [
        (b"\xf0\x9f\x98A", ["", "", "", "\ufffd\ufffd\ufffdA"]),  # cut short by a character
        (b"\xc0\xaf", ["\ufffd", "\ufffd"]),  # an overlong form
        (b"\xed\xa0\x80", ["", "\ufffd\ufffd", "\ufffd"]),  # half a surrogate pair
        (b"\xf4\x90\x80\x80", ["", "\ufffd\ufffd", "\ufffd", "\ufffd"]),  # above U+10FFFF
        (b"\x80\xe3\x81\x82", ["\ufffd", "", "", "あ"]),  # a continuation first
    ],
)
def test_stream_replaces_bytes_as_soon_as_they_fit_nowhere(
    both: Both, data: bytes, steps: list[str]
) -> None:
    """Invalid sequences of each kind: U+FFFD for each byte, and what follows is not lost."""
    ours, _ = both
    stream = ours.decode_stream()
    assert [stream.step(ours.token_to_id(f"<0x{byte:02X}>") or 0) for byte in data] == steps
    assert stream.finish() == ""


@pytest.mark.parametrize("threads", [1, 2, 7, None])
def test_batches_of_lists_arrays_and_tensors(both: Both, threads: int | None) -> None:
    """decode_batch and decode_ragged: any container of ids, any number of threads, one result."""
    ours, oracle = both
    texts = [*fuzz_texts(22, 600), "", "日本語の本。" * 3000, *fuzz_texts(23, 600)]
    ids, offsets = ours.encode_ragged(texts)
    lists = [ids[begin:end].tolist() for begin, end in itertools.pairwise(offsets)]
    want = oracle.decode_batch(lists)
    tensors = [torch.tensor(each, dtype=torch.int64) for each in lists]
    for batch in (lists, iter(lists), [np.array(each, np.uint16) for each in lists], tensors):
        assert ours.decode_batch(batch, num_threads=threads) == want
    wide = ids.astype(np.int64)
    ends = torch.from_numpy(offsets)
    for flat in (ids, ids.astype(np.int32), ids.astype(">u4"), wide, wide.tolist()):
        assert ours.decode_ragged(flat, offsets, num_threads=threads) == want
    strided = np.repeat(wide, 2)[::2]
    for flat in (strided, torch.from_numpy(wide), torch.from_numpy(ids.astype(np.int32))):
        assert ours.decode_ragged(flat, ends, num_threads=threads) == want
    kept = oracle.decode_batch(lists, skip_special_tokens=False)
    assert ours.decode_ragged(ids, offsets, False, num_threads=threads) == kept
    assert ours.decode_ragged(ids, offsets[5:9], num_threads=threads) == want[5:8]
    assert ours.decode_ragged([], [0]) == ours.decode_batch([]) == []
    rows = np.arange(40, 640).reshape(20, 30)
    want = [ours.decode(row) for row in rows.tolist()]
    for batch in (rows, torch.from_numpy(rows), rows.T.copy().T, rows.astype(np.uint16)):
        assert ours.decode_batch(batch, num_threads=threads) == want
    assert ours.decode(torch.from_numpy(rows[0])) == want[0]
    assert ours.decode_batch(np.zeros((3, 0), np.int64)) == ["", "", ""]


def test_ragged_ids_that_are_none_are_refused(both: Both) -> None:
    """Offsets that fall or lead beyond the ids, negative ids, wrong kinds of arrays."""
    ours, _ = both
    ids = np.arange(40, 60)
    for offsets, words in (
        ([], "begin with"),
        ([0, 5, 3], "must not fall, got 5, 3 at 1"),
        ([0, 21], "within the ids, got 21 with 20 ids"),
        ([-1, 3], "negative"),
    ):
        for flat in (ids, ids.tolist()):
            with pytest.raises(ValueError, match=words):
                ours.decode_ragged(flat, offsets)
    for dtype in (np.int64, np.int32, np.int8):
        with pytest.raises(ValueError, match="must not be negative, got -3"):
            ours.decode_ragged(np.array([5, -3], dtype), [0, 2])
    with pytest.raises(ValueError, match="negative, got -3"):
        ours.decode_batch(np.array([[5, -3]]))
    for wrong in (ids.astype(float), ids.reshape(2, 10), torch.zeros(3), "abc", None):
        with pytest.raises(TypeError):
            ours.decode_ragged(wrong, [0, 2])  # type: ignore[arg-type]
    for wrong in (ids, ids.reshape(2, 5, 2), torch.zeros(2, 2), 5, None):
        with pytest.raises(TypeError):
            ours.decode_batch(wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="num_threads"):
        ours.decode_batch([[5]], num_threads=0)


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
