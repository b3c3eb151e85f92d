"""Texts out of blocks of JSON lines and plain text, and what is wrong with those that give none."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from operator import itemgetter

import orjson

from llmjp.data.streams import LineBlock

MALFORMED = "not JSON"
NO_KEY = "no such key"
NOT_A_STRING = "not a string"
NOT_UTF8 = "not UTF-8"
SURROGATE = "lone surrogate"
TOO_LONG = "too long"
DAMAGED = "damaged file"

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Rejected:
    """A record that gives no text.

    Attributes:
        line: counted from 1 at the place where its batch's file was begun to be read.
        kind: one of the constants above.
        message: what is wrong, without the place.
    """

    line: int
    kind: str
    message: str


@dataclass
class Batch:
    """The texts of some consecutive lines of a file.

    Attributes:
        texts: none is empty or holds a lone surrogate.
        lines: number of lines (of a Parquet file: rows), whatever they held.
        empty: how many records had an empty text.
        rejected: the records that gave none, in order.
        end: where the next batch of the file starts; what counts is up to the reader.
        size: bytes of text in memory, roughly.
    """

    texts: list[str]
    lines: int
    end: int
    size: int
    empty: int = 0
    rejected: list[Rejected] = field(default_factory=list)


class RecordError(Exception):
    """Why a record gives no text."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


def too_long(size: int, longest: int) -> RecordError:
    """Of a document of `size` bytes, or more."""
    return RecordError(
        TOO_LONG,
        f"a document of more than {size / 1e6:,.0f} MB; up to {longest / 1e6:,.0f} MB are taken "
        "(--max-document)",
    )


def decoded(data: bytes) -> str:
    """UTF-8 as text.

    Raises:
        RecordError: it is not UTF-8.
    """
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise RecordError(
            NOT_UTF8, f"not UTF-8: byte {data[error.start]:#04x} at offset {error.start}"
        ) from None


def split_lines(block: LineBlock, *, first: bool) -> list[bytes]:
    """A block's lines without their newlines, `first`: without the file's byte order mark."""
    data = block.data.removeprefix(_BYTE_ORDER_MARK) if first else block.data
    lines = data.split(b"\n")
    if not lines[-1]:
        lines.pop()
    return lines


def json_lines(block: LineBlock, line: int, longest: int, key: str) -> Batch:
    """The texts under `key` of a block of JSON lines whose first has the number `line`."""
    if block.oversized:
        return _oversized(block, line, longest)
    lines = split_lines(block, first=line == 1)
    try:
        texts = list(map(itemgetter(key), map(orjson.loads, lines)))  # no step in Python's own code
    except (ValueError, LookupError, TypeError):
        texts = None
    if texts is not None and set(map(type, texts)) <= {str}:
        batch = Batch(texts, len(lines), block.end, len(block.data))
        _drop_empty(batch)
        return batch
    return _one_by_one(block, lines, line, lambda data: _json_text(data, key))


def plain_lines(block: LineBlock, line: int, longest: int) -> Batch:
    """Each line of a block, without its end, is a document."""
    if block.oversized:
        return _oversized(block, line, longest)
    lines = split_lines(block, first=line == 1)
    try:
        texts = [each.decode("utf-8").removesuffix("\r") for each in lines]
    except UnicodeDecodeError:
        batch = _one_by_one(block, lines, line, lambda data: decoded(data).removesuffix("\r"))
        batch.empty = 0
        return batch
    batch = Batch(texts, len(lines), block.end, len(block.data))
    _drop_empty(batch)
    batch.empty = 0  # a blank line is no record
    return batch


def _oversized(block: LineBlock, line: int, longest: int) -> Batch:
    error = too_long(block.oversized, longest)
    return Batch([], 1, block.end, 0, rejected=[Rejected(line, error.kind, str(error))])


def _drop_empty(batch: Batch) -> None:
    if "" in batch.texts:
        texts = [text for text in batch.texts if text]
        batch.empty = len(batch.texts) - len(texts)
        batch.texts = texts


def _one_by_one(
    block: LineBlock, lines: list[bytes], line: int, text_of: Callable[[bytes], str | None]
) -> Batch:
    batch = Batch([], len(lines), block.end, len(block.data))
    for number, data in enumerate(lines, line):
        try:
            text = text_of(data)
        except RecordError as error:
            batch.rejected.append(Rejected(number, error.kind, str(error)))
            continue
        if text:
            batch.texts.append(text)
        elif text is not None:
            batch.empty += 1
    return batch


def _json_text(data: bytes, key: str) -> str | None:
    """The text of one line of JSON; None of a blank one.

    Raises:
        RecordError: there is none.
    """
    if not data.strip():
        return None
    try:
        record = orjson.loads(data)
    except orjson.JSONDecodeError:
        record = _python_json(data)
    if not isinstance(record, dict):
        raise RecordError(NO_KEY, f"{_json_type(record)} instead of an object with {key!r}")
    if key not in record:
        keys = ", ".join(map(repr, list(record)[:8]))
        raise RecordError(NO_KEY, f"no key {key!r} (--json-key names another), found: {keys}")
    text = record[key]
    if not isinstance(text, str):
        raise RecordError(NOT_A_STRING, f"{key!r} is {_json_type(text)}, not a string")
    return checked(text)


def checked(text: str) -> str:
    """The text itself.

    Raises:
        RecordError: it holds half of a surrogate pair, which JSON's escapes can spell.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        half = ord(text[error.start])
        raise RecordError(
            SURROGATE, f"the lone surrogate U+{half:04X} at character {error.start}"
        ) from None
    return text


def _python_json(data: bytes) -> object:
    """What Python's own reader takes beyond the standard: NaN, and halves of surrogate pairs."""
    try:
        return json.loads(decoded(data))
    except RecursionError:
        raise RecordError(MALFORMED, "not JSON that can be read: nested too deeply") from None
    except json.JSONDecodeError as error:
        hint = "; a file that is one JSON array is not JSON lines" if data.lstrip() == b"[" else ""
        raise RecordError(
            MALFORMED, f"not a line of JSON: {error.msg} at character {error.pos}{hint}"
        ) from None


def _json_type(value: object) -> str:
    names = {dict: "an object", list: "an array", bool: "a boolean", str: "a string"}
    return "null" if value is None else names.get(type(value), "a number")
