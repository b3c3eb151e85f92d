"""SentencePiece .model files for tests: trained on the spot, real ones, and composed by hand."""

import random
import struct
from pathlib import Path

from tokenizer_oracle import data_folder, trained_directory

REAL_MODELS = {
    "llm-jp-v2.1": "llm-jp-tokenizer-v2.1/code10k_en20k_ja30k.ver2.1.model",
    "llm-jp-v3.1": "llm-jp-tokenizer-v3.1/llm-jp-tokenizer-100k.ver3.1.model",
}
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)


def model_path(name: str) -> Path:
    """The .model of the tokenizer trained on the spot, or of a real one."""
    if name == "trained":
        return trained_directory() / "tokenizer.model"
    return data_folder() / REAL_MODELS[name]


def varint(value: int) -> bytes:
    """The wire form of an unsigned number."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def field(number: int, content: bytes | int | float) -> bytes:
    """One field of a protocol-buffer message."""
    if isinstance(content, float):
        return bytes([number << 3 | 5]) + struct.pack("<f", content)
    if isinstance(content, int):
        return varint(number << 3) + varint(content)
    return varint(number << 3 | 2) + varint(len(content)) + content


def piece(text: str | bytes, score: float, kind: int = NORMAL) -> bytes:
    """A vocabulary entry."""
    spelled = text.encode() if isinstance(text, str) else text
    return field(1, field(1, spelled) + field(2, score) + field(3, kind))


UNKNOWN_PIECE = piece("<unk>", 0.0, UNKNOWN)
BYTES = b"".join(piece(f"<0x{byte:02X}>", 0.0, BYTE) for byte in range(256))
TRAINER = field(2, field(3, 1) + field(35, 1))  # Unigram, byte_fallback
NORMALIZER = field(3, field(3, 1) + field(4, 0) + field(5, 1))  # identity, "▁" before and for " "

_ALPHABET = ("a", "b", "▁", "あ", "\n", "é", "😍")
_STRANGERS = ("z", "한", "\0", "🙏", "<0x41>", " ")
ATOMS = (*_ALPHABET, *_STRANGERS)  # what texts for these vocabularies are made of


def random_model(rng: random.Random) -> bytes:
    """A vocabulary full of ties and oddities.

    Scores that add exactly or not at all, of the size of real ones or so large that a few
    characters pass the sum at which SentencePiece starts anew; pieces of all types; characters that
    only occur inside pieces.
    """
    scores = rng.choice(
        (
            lambda: -rng.randint(0, 8) / 2,
            lambda: -rng.random() * 20,
            lambda: -rng.randint(1, 40) * 1000.25,
            lambda: -rng.choice((0.1, 0.2, 0.3, 33_000.7)),
        )
    )
    texts = {*rng.sample(_ALPHABET, rng.randint(2, len(_ALPHABET)))}
    for _ in range(rng.randint(2, 60)):
        texts.add("".join(rng.choices(_ALPHABET, k=rng.choice((1, 2, 2, 3, 3, 4, 9)))))
    kinds = (NORMAL,) * 12 + (UNUSED, CONTROL) + (USER_DEFINED,) * rng.choice((0, 3))
    pieces = [piece(text, scores(), rng.choice(kinds)) for text in sorted(texts)]
    pieces.append(piece("a" * 10, scores()))
    return UNKNOWN_PIECE + b"".join(pieces) + BYTES + TRAINER + NORMALIZER


def random_text(rng: random.Random) -> str:
    """A text for random_model(): its characters, characters that it lacks, and runs."""
    parts = rng.choices(ATOMS, k=rng.randint(0, 30))
    if rng.random() < 0.5:
        parts.insert(rng.randint(0, len(parts)), rng.choice(_ALPHABET) * rng.randint(1, 300))
    return "".join(parts)
