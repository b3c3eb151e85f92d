"""SentencePiece .model files: ids and text of the `sentencepiece` package, and what is refused."""

import pickle
import random
from pathlib import Path

import numpy as np
import pytest
import sentencepiece

from llmjp_ext import Tokenizer, _tokenizer
from sentencepiece_models import (
    BYTE,
    BYTES,
    NORMALIZER,
    REAL_MODELS,
    TRAINER,
    UNKNOWN,
    UNKNOWN_PIECE,
    USER_DEFINED,
    field,
    model_path,
    piece,
    random_model,
    random_text,
)
from tokenizer_oracle import (
    data_folder,
    fuzz_texts,
    japanese_lines,
    standard_library_texts,
)

Oracle = sentencepiece.SentencePieceProcessor
Both = tuple[Tokenizer, Oracle]


@pytest.fixture(scope="module", params=["trained", *REAL_MODELS])
def name(request: pytest.FixtureRequest) -> str:
    """Each model in turn."""
    return str(request.param)


@pytest.fixture(scope="module")
def both(name: str) -> Both:
    """A model in ours, which follows the oracle's rounding, and in the oracle."""
    path = model_path(name)
    return Tokenizer.from_file(path, float32_sums=True), Oracle(model_file=str(path))


def hard_texts(seed: int) -> dict[str, list[str]]:
    """Texts by kind: made to hurt, runs after sums of many sizes, real ones."""
    prefixes = ["", "\n", "東京", "彼は本を読みました。" * 40, "x = 1\n" * 400]
    code = "".join(standard_library_texts(30))
    return {
        "fuzz": fuzz_texts(seed, 4000),
        "runs": [p + c * n for p in prefixes for c in "ーあaw=笑-(" for n in range(1, 70)],
        "Japanese": japanese_lines(3, 1000),
        "code": [code[i : i + 9000] for i in range(0, len(code), 9000)],
    }


def assert_same_ids(both: Both, texts: list[str], hint: str) -> None:
    """Compares ids text by text and names the first text that differs."""
    ours, oracle = both
    for text, want, got in zip(texts, oracle.encode(texts), ours.encode_batch(texts), strict=True):
        assert got == want, f"{hint}: ids differ for {text[:200]!r}, {len(text)} characters"


@pytest.mark.parametrize("kind", ["fuzz", "runs", "Japanese", "code"])
def test_float32_sums_give_sentencepieces_ids(both: Both, kind: str) -> None:
    """Literals, any characters, ties that rounding to float decides, real text."""
    assert_same_ids(both, hard_texts(100)[kind], f"{kind}, seed 100")


def test_float32_sums_give_sentencepieces_ids_of_long_strings(both: Both) -> None:
    """Sums far beyond 100,000, where SentencePiece subtracts them and rounds once more."""
    rng = random.Random(6)
    prefixes = ["z" * 9000, "".join(standard_library_texts(4)), "".join(japanese_lines(8, 4000))]
    texts = [p + c * rng.randint(5, 20_000) for p in prefixes for c in "あ=w-"]
    texts.append("".join(standard_library_texts(40)))
    assert_same_ids(both, texts, "seed 6")


@pytest.mark.parametrize("seed", range(60))
def test_float32_sums_give_sentencepieces_ids_with_any_vocabulary(seed: int) -> None:
    """Composed models: user-defined and unused pieces, scores that tie or pass 100,000 at once."""
    rng = random.Random(seed)
    data = random_model(rng)
    both = (
        Tokenizer(data, "sentencepiece", float32_sums=True),
        Oracle(model_proto=data),
    )
    assert_same_ids(both, [random_text(rng) for _ in range(60)], f"seed {seed}")


def sums(ids: list[int], scores: np.ndarray, unknown: float, zero: int) -> tuple[float, float]:
    """The score of a path, and the most that single precision may get wrong about it.

    Of n additions each errs by 2^-24 of a sum that is at most the whole one, since no score is
    positive. Double precision adds the scores exactly. An unknown character is its bytes here.
    """
    values = scores[ids]
    is_byte = (np.array(ids) >= zero) & (np.array(ids) < zero + 256)
    starts = is_byte & ((np.array(ids) - zero) & 0xC0 != 0x80)
    values = np.where(is_byte, np.where(starts, unknown, 0.0), values)
    total = float(values.sum())
    return total, len(ids) * abs(total) / 2**24


@pytest.mark.parametrize("kind", ["fuzz", "runs", "Japanese", "code"])
def test_exact_sums_differ_from_sentencepiece_only_where_it_rounds(name: str, kind: str) -> None:
    """By default ids are the best ones exactly; others of the oracle's score less or the same,
    and no less than its rounding explains. On composed Japanese and on most code there are none."""
    path = model_path(name)
    ours, oracle = Tokenizer.from_file(path), Oracle(model_file=str(path))
    scores = np.array([oracle.get_score(id) for id in range(oracle.vocab_size())])
    is_normal = [
        not (oracle.is_control(id) or oracle.is_byte(id) or oracle.is_unknown(id))
        for id in range(oracle.vocab_size())
    ]
    unknown = float(np.float32(scores[is_normal].min()) - np.float32(10))
    zero = oracle.piece_to_id("<0x00>")
    texts = hard_texts(105)[kind]
    differing = 0
    for text, theirs, got in zip(
        texts, oracle.encode(texts), ours.encode_batch(texts), strict=True
    ):
        if got == theirs:
            continue
        differing += 1
        best, error = sums(got, scores, unknown, zero)
        other, other_error = sums(theirs, scores, unknown, zero)
        assert other <= best <= other + error + other_error, f"{kind}, seed 105: {text[:200]!r}"
    assert differing < len(texts) / (1.5 if kind == "runs" else 20), differing


@pytest.mark.parametrize("seed", range(200, 240))
def test_exact_sums_by_units_are_the_plain_search(seed: int) -> None:
    """Composed models, whether or not their scores and characters allow the search by units."""
    rng = random.Random(seed)
    data = random_model(rng)
    texts = [random_text(rng) for _ in range(60)]
    plain = _tokenizer.Tokenizer(data, "sentencepiece", units=False)
    units = _tokenizer.Tokenizer(data, "sentencepiece", memo_bits=4)
    for text in texts:
        want = plain.encode(text, None, True, False)
        assert units.encode(text, None, True, False) == want, f"seed {seed}: {text!r}"


def test_user_defined_pieces_win_and_longer_ones_first() -> None:
    """Whatever their scores: SentencePiece's rule, in exact sums too."""
    vocabulary = [
        piece("▁", -1.0),
        *(piece(text, -2.0) for text in ("a", "b", "abb", "babb")),
        *(piece(text, -30.0, USER_DEFINED) for text in ("ab", "ba", "aba")),
    ]
    data = UNKNOWN_PIECE + b"".join(vocabulary) + BYTES + TRAINER + NORMALIZER
    oracle = Oracle(model_proto=data)
    for text in ("ab", "aba", "abab", "bab", "xabax", "aabb"):
        want = oracle.encode(text)
        for float32_sums in (False, True):
            ours = Tokenizer(data, "sentencepiece", float32_sums=float32_sums)
            assert ours.encode(text) == want, text


def test_a_model_and_the_tokenizer_json_made_from_it_agree() -> None:
    """LLM-jp v2.1: the same ids but for literals, and for exact ties, which the tokenizer.json's
    rounding settles by what stands before them."""
    folder = data_folder() / "llm-jp-tokenizer-v2.1"
    model = Tokenizer.from_file(model_path("llm-jp-v2.1"))
    converted = Tokenizer.from_file(folder / "tokenizer.json")
    scores = np.array([model._native.score(id) for id in range(model.vocab_size)])
    texts = [line for text in standard_library_texts(60) for line in text.split("\n")]
    japanese = (data_folder() / "text" / "jcommonsenseqa-v1.1-train.txt").read_text("utf-8")
    texts += japanese.split("\n")[::5]
    tied = 0
    for text, got, other in zip(
        texts,
        model.encode_batch(texts),
        converted.encode_batch(texts, add_special_tokens=False),
        strict=True,
    ):
        if got != other:
            assert scores[got].sum() == scores[other].sum(), text
            tied += 1
    assert tied < len(texts) / 100
    assert model.encode("<0x41>") != converted.encode("<0x41>", add_special_tokens=False)


def test_the_option_is_kept_and_only_for_sentencepiece(name: str, tmp_path: Path) -> None:
    """Pickling and compiling keep it; other files are not asked for such sums."""
    path = model_path(name)
    texts = hard_texts(107)["runs"]
    for float32_sums in (False, True):
        ours = Tokenizer.from_file(path, float32_sums=float32_sums)
        want = ours.encode_batch(texts)
        assert pickle.loads(pickle.dumps(ours)).encode_batch(texts) == want
        ours.save_compiled(tmp_path / "compiled")
        assert Tokenizer.from_file(tmp_path / "compiled").encode_batch(texts) == want
    exact = Tokenizer.from_file(path).encode_batch(texts)
    assert exact != Tokenizer.from_file(path, float32_sums=True).encode_batch(texts)
    converted = model_path("trained").with_name("tokenizer.json")
    for path in (converted, tmp_path / "compiled"):
        with pytest.raises(ValueError, match="float32_sums is for SentencePiece"):
            Tokenizer.from_file(path, float32_sums=True)


def test_decoding_gives_sentencepieces_text(both: Both) -> None:
    """Any ids but the unknown piece, which SentencePiece spells " ⁇ ": byte runs valid or not."""
    ours, oracle = both
    rng = random.Random(5)
    zero = oracle.piece_to_id("<0x00>")
    unknown = oracle.unk_id()
    hard = (0x41, 0xE3, 0x81, 0x82, 0xF0, 0x9F, 0x98, 0x80, 0xED, 0xA0, 0xC0, 0xFF)
    kinds = (
        lambda: rng.randrange(unknown + 1, ours.vocab_size),
        lambda: zero + rng.randrange(256),
        lambda: zero + rng.choice(hard),
    )
    for _ in range(6000):
        ids = [rng.choice(kinds)() for _ in range(rng.randint(0, 14))]
        assert ours.decode(ids) == oracle.decode(ids), f"seed 5: {ids}"
        stream = ours.decode_stream()
        assert "".join([stream.step(id) for id in ids]) + stream.finish() == ours.decode(ids)
    texts = fuzz_texts(104, 1000)
    sequences = oracle.encode(texts)
    assert ours.decode_batch(sequences) == oracle.decode(sequences)


def test_pieces_and_special_ids_are_sentencepieces(both: Both) -> None:
    """Names, sizes and lookups; nothing is added to a text; control pieces may be dropped."""
    ours, oracle = both
    assert ours.vocab_size == oracle.vocab_size()
    for id in range(ours.vocab_size):
        assert ours.id_to_token(id) == oracle.id_to_piece(id)
    assert ours.encode("日本語", add_special_tokens=True) == oracle.encode("日本語")
    assert ours.encode("a", "b") == oracle.encode("a") + oracle.encode("b")
    assert ours.decode([1, 2]) == ""
    assert ours.decode([1], skip_special_tokens=False) == oracle.id_to_piece(1)


def test_a_model_file_has_no_hugging_face_form(both: Both) -> None:
    """to_hf() says what to do instead."""
    with pytest.raises(NotImplementedError, match="convert"):
        both[0].to_hf()


PIECES = UNKNOWN_PIECE + piece("▁", -1.0) + piece("a", -2.0) + BYTES


def test_a_model_composed_by_hand_is_read() -> None:
    """The smallest model that is supported: what the refused ones below differ from."""
    tokenizer = Tokenizer(PIECES + TRAINER + NORMALIZER, "sentencepiece")
    assert tokenizer.encode("a a") == [1, 2, 1, 2]
    assert tokenizer.decode([1, 2, 1, 2]) == "a a"


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "no vocabulary"),
        (PIECES, "is missing"),
        (TRAINER + NORMALIZER, "no vocabulary"),
        (PIECES + field(2, field(3, 2) + field(35, 1)) + NORMALIZER, "BPE"),
        (PIECES + field(2, field(3, 99) + field(35, 1)) + NORMALIZER, "99"),
        (PIECES + field(2, field(3, 1)) + NORMALIZER, "byte_fallback"),
        (PIECES + field(2, field(35, 1) + field(24, 1)) + NORMALIZER, "suffix"),
        (PIECES + TRAINER + field(3, field(4, 1)), "remove_extra_whitespaces"),
        (PIECES + TRAINER + field(3, field(1, b"nmt") + field(2, b"x")), "nmt"),
        (PIECES + TRAINER + NORMALIZER + field(5, field(2, b"x")), "denormalizer"),
        (PIECES + TRAINER + NORMALIZER + field(9, 1), "unknown field 9"),
        (PIECES + TRAINER + NORMALIZER + field(1, 7), "field 1"),
        (PIECES + piece("<other>", 0.0, UNKNOWN) + TRAINER + NORMALIZER, "one unknown piece"),
        (PIECES + piece(b"a", -3.0) + TRAINER + NORMALIZER, "twice"),
        (PIECES + piece(b"b", float("nan")) + TRAINER + NORMALIZER, "finite"),
        (PIECES + piece(b"b", float("-inf")) + TRAINER + NORMALIZER, "finite"),
        (PIECES + piece(b"\xff", -3.0) + TRAINER + NORMALIZER, "UTF-8"),
        (PIECES + piece(b"b", -3.0, 9) + TRAINER + NORMALIZER, "type 9"),
        (
            UNKNOWN_PIECE + piece("a", -3.0, USER_DEFINED) + BYTES + TRAINER + NORMALIZER,
            "no normal",
        ),
        (UNKNOWN_PIECE + piece("a", 10.0) + BYTES + TRAINER + NORMALIZER, "scores of 10"),
        (UNKNOWN_PIECE + piece("a", -1.0) + TRAINER + NORMALIZER, "256 byte pieces, found 0"),
        (PIECES + piece("<0xff>", 0.0, BYTE) + TRAINER + NORMALIZER, "not named <0x00>"),
        (PIECES + piece("", -3.0) + TRAINER + NORMALIZER, "is empty"),
        (PIECES + piece("a\0", -3.0) + TRAINER + NORMALIZER, "null character"),
        (PIECES + piece("a" * 8000, -3.0) + TRAINER + NORMALIZER, "8000 bytes"),
        (PIECES + TRAINER + NORMALIZER + b"\x0a\xff\xff\xff\xff\x0f", "longer than"),
        (PIECES + TRAINER + NORMALIZER + b"\xff" * 11, "64 bits"),
        (PIECES + TRAINER + NORMALIZER + b"\x0b", "wire type"),
        (PIECES + TRAINER + NORMALIZER + b"\x02", "field number"),
    ],
)
def test_models_that_are_not_supported_are_named(data: bytes, words: str, tmp_path: Path) -> None:
    """One line that says what is wrong and in which file."""
    path = tmp_path / "some.model"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=words) as caught:
        Tokenizer.from_file(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)
