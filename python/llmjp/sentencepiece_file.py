"""Writes SentencePiece `.model` files, which its library trains but does not compose.

The file is the protocol-buffer message ModelProto of sentencepiece_model.proto. The handful of
fields that say how a Unigram model cuts text are written directly: a dependency on protobuf and on
generated code would be more than the format.
"""

import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

NORMAL, UNKNOWN, CONTROL, BYTE = 1, 2, 3, 6  # ModelProto.SentencePiece.Type

_UNIGRAM = 1
_SPECIAL_FIELDS = {"<unk>": 40, "<s>": 41, "</s>": 42, "<pad>": 43}  # of TrainerSpec


@dataclass(frozen=True)
class Piece:
    """An entry of the vocabulary.

    Attributes:
        text: with "▁" for spaces.
        score: kept in single precision.
        kind: NORMAL, UNKNOWN, CONTROL or BYTE.
    """

    text: str
    score: float
    kind: int


def unigram_model(pieces: Sequence[Piece], special_ids: Mapping[str, int]) -> bytes:
    """A byte-fallback Unigram model that leaves the text as it is, but for spaces.

    Spaces become "▁", and one goes before the text. Pieces are found across spaces.

    Args:
        pieces: by id.
        special_ids: of "<unk>", "<s>", "</s>" and "<pad>".
    """
    entries = (
        _message(1, [_text(1, piece.text), _float(2, piece.score), _integer(3, piece.kind)])
        for piece in pieces
    )
    trainer = [
        _integer(3, _UNIGRAM),
        _integer(4, len(pieces)),
        _integer(22, 0),  # split_by_whitespace
        _integer(25, 1),  # split_digits
        _integer(26, 1),  # allow_whitespace_only_pieces
        _integer(35, 1),  # byte_fallback
        *(_integer(_SPECIAL_FIELDS[name], id) for name, id in special_ids.items()),
    ]
    normalizer = [
        _text(1, "identity"),
        _integer(3, 1),  # add_dummy_prefix
        _integer(4, 0),  # remove_extra_whitespaces
        _integer(5, 1),  # escape_whitespaces
    ]
    return b"".join([*entries, _message(2, trainer), _message(3, normalizer)])


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _integer(number: int, value: int) -> bytes:
    return _varint(number << 3) + _varint(value)


def _float(number: int, value: float) -> bytes:
    return _varint(number << 3 | 5) + struct.pack("<f", value)


def _delimited(number: int, content: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _text(number: int, text: str) -> bytes:
    return _delimited(number, text.encode("utf-8"))


def _message(number: int, fields: Iterable[bytes]) -> bytes:
    return _delimited(number, b"".join(fields))
