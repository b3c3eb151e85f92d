"""SentencePiece .model files: ids and text of the `sentencepiece` package, and what is refused."""

import random
import struct
from pathlib import Path

import pytest
import sentencepiece

from llmjp_ext import Tokenizer
from tokenizer_oracle import (
    data_folder,
    fuzz_texts,
    japanese_lines,
    standard_library_texts,
    trained_directory,
)

Both = tuple[Tokenizer, sentencepiece.SentencePieceProcessor]
REAL_MODELS = {
    "llm-jp-v2.1": "llm-jp-tokenizer-v2.1/code10k_en20k_ja30k.ver2.1.model",
    "llm-jp-v3.1": "llm-jp-tokenizer-v3.1/llm-jp-tokenizer-100k.ver3.1.model",
}


def model_path(name: str) -> Path:
    """The .model of the tokenizer trained on the spot, or of a real one."""
    if name == "trained":
        return trained_directory() / "tokenizer.model"
    return data_folder() / REAL_MODELS[name]


@pytest.fixture(scope="module", params=["trained", *REAL_MODELS])
def both(request: pytest.FixtureRequest) -> Both:
    """Each model in ours and in the oracle."""
    path = model_path(request.param)
    return Tokenizer.from_file(path), sentencepiece.SentencePieceProcessor(model_file=str(path))


@pytest.mark.parametrize("seed", range(3))
def test_fuzz_texts_give_sentencepieces_ids(both: Both, seed: int) -> None:
    """Literals, any characters, and runs whose exact ties single precision decides."""
    ours, oracle = both
    texts = fuzz_texts(100 + seed, 2500)
    for text, want, got in zip(texts, oracle.encode(texts), ours.encode_batch(texts), strict=True):
        assert got == want, f"seed {100 + seed}: {text!r}"


def test_runs_after_prefixes_give_sentencepieces_ids(both: Both) -> None:
    """Runs of one character after sums of many sizes: rounding to float decides every one."""
    ours, oracle = both
    prefixes = ["", "\n", "東京", "彼は本を読みました。" * 40, "x = 1\n" * 400]
    texts = [p + c * n for p in prefixes for c in "ーあaw=笑-(" for n in range(1, 70)]
    for text, want, got in zip(texts, oracle.encode(texts), ours.encode_batch(texts), strict=True):
        assert got == want, repr(text)


def test_real_text_gives_sentencepieces_ids(both: Both) -> None:
    """Japanese sentences and pieces of source files, of the length of documents."""
    ours, oracle = both
    code = "".join(standard_library_texts(30))
    texts = japanese_lines(3, 1000) + [code[i : i + 9000] for i in range(0, len(code), 9000)]
    for text, want, got in zip(texts, oracle.encode(texts), ours.encode_batch(texts), strict=True):
        assert got == want, repr(text)


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


def field(number: int, content: bytes | int | float) -> bytes:
    """One field of a protocol-buffer message."""
    if isinstance(content, float):
        return bytes([number << 3 | 5]) + struct.pack("<f", content)
    if isinstance(content, int):
        return varint(number << 3) + varint(content)
    return varint(number << 3 | 2) + varint(len(content)) + content


def varint(value: int) -> bytes:
    """The wire form of an unsigned number."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def piece(text: bytes, score: float, kind: int = 1) -> bytes:
    """A vocabulary entry."""
    return field(1, field(1, text) + field(2, score) + field(3, kind))


UNKNOWN = piece(b"<unk>", 0.0, 2)
TRAINER = field(2, field(3, 1) + field(35, 1))
NORMALIZER = field(3, field(3, 1) + field(4, 0) + field(5, 1))
PIECES = UNKNOWN + piece("▁".encode(), -1.0) + piece(b"a", -2.0)


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
        (PIECES + UNKNOWN + TRAINER + NORMALIZER, "one unknown piece"),
        (PIECES + piece(b"a", -3.0) + TRAINER + NORMALIZER, "twice"),
        (PIECES + piece(b"b", float("nan")) + TRAINER + NORMALIZER, "finite"),
        (PIECES + piece(b"b", float("-inf")) + TRAINER + NORMALIZER, "finite"),
        (PIECES + piece(b"\xff", -3.0) + TRAINER + NORMALIZER, "UTF-8"),
        (PIECES + piece(b"b", -3.0, 9) + TRAINER + NORMALIZER, "type 9"),
        (UNKNOWN + piece(b"a", -3.0, 4) + TRAINER + NORMALIZER, "no normal piece"),
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
