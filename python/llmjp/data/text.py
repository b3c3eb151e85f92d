"""Documents of text files: plain text and JSON lines, gzipped or not."""

import gzip
import json
import os
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from llmjp.errors import UserError

SUFFIXES = (".txt", ".jsonl", ".txt.gz", ".jsonl.gz")
SPLITS = ("file", "lines", "blank-lines")


@dataclass(frozen=True)
class Document:
    """A document and where it came from.

    Attributes:
        text: the text, never empty.
        place: `file` or `file:line`, for messages.
        bytes_read: bytes of the file on disk that had been read when it was complete.
    """

    text: str
    place: str
    bytes_read: int


def find_files(inputs: Sequence[str | os.PathLike[str]]) -> list[Path]:
    """The files that were named, and those with a supported suffix below named folders, sorted.

    Raises:
        UserError: an input does not exist, has another suffix, or is a folder without text files.
    """
    files: list[Path] = []
    for name in inputs:
        path = Path(name)
        if path.is_dir():
            found = sorted(p for p in path.rglob("*") if p.is_file() and _is_text(p))
            if not found:
                raise UserError(f"{path} holds no file named {', '.join(SUFFIXES)}")
            files += found
        elif not path.exists():
            raise UserError(f"{path} does not exist")
        elif not _is_text(path):
            raise UserError(f"{path}: files are told by their names: {', '.join(SUFFIXES)}")
        else:
            files.append(path)
    return files


def _is_text(path: Path) -> bool:
    return path.name.lower().endswith(SUFFIXES)


def read_documents(path: Path, split: str, field: str) -> Iterator[Document]:
    """The documents of one file, in order; empty ones are left out.

    Args:
        path: a file that find_files() returned.
        split: what a document is in plain text: the whole "file", each of its "lines", or what
            stands between "blank-lines". Line ends belong to none of the latter two.
        field: the key of the text in a line of JSON.

    Raises:
        UserError: the file is damaged, is not UTF-8, or a line of JSON lacks the field.
        OSError: the file cannot be read.
    """
    name = path.name.lower()
    with path.open("rb") as raw:
        stream: BinaryIO | gzip.GzipFile = raw
        if name.endswith(".gz"):
            stream = gzip.GzipFile(fileobj=raw)
        try:
            if name.removesuffix(".gz").endswith(".jsonl"):
                yield from _json_lines(path, stream, raw, field)
            elif split == "file":
                text = _decoded(stream.read(), str(path))
                if text:
                    yield Document(text, str(path), _position(raw))
            else:
                yield from _plain_lines(path, stream, raw, join=split == "blank-lines")
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise UserError(f"{path} is not a whole gzip file: {error}") from None


def _position(raw: BinaryIO) -> int:
    """Bytes read so far, for the progress bar; a pipe does not tell."""
    return raw.tell() if raw.seekable() else 0


def _json_lines(
    path: Path, stream: BinaryIO | gzip.GzipFile, raw: BinaryIO, field: str
) -> Iterator[Document]:
    for number, line in enumerate(stream, 1):
        place = f"{path}:{number}"
        if not line.strip():
            continue
        try:
            record = json.loads(_decoded(line, place))
        except json.JSONDecodeError as error:
            raise UserError(f"{place}: not a line of JSON: {error}") from None
        if not isinstance(record, dict) or field not in record:
            raise UserError(f"{place}: no field {field!r} (--field names another)")
        text = record[field]
        if not isinstance(text, str):
            raise UserError(f"{place}: field {field!r} is {type(text).__name__}, not a string")
        if text:
            yield Document(text, place, _position(raw))


def _plain_lines(
    path: Path, stream: BinaryIO | gzip.GzipFile, raw: BinaryIO, *, join: bool
) -> Iterator[Document]:
    paragraph: list[str] = []
    first = 0
    for number, line in enumerate(stream, 1):
        place = f"{path}:{number}"
        text = _decoded(line, place).removesuffix("\n").removesuffix("\r")
        if not join:
            if text:
                yield Document(text, place, _position(raw))
        elif text.strip():
            first = first if paragraph else number
            paragraph.append(text)
        elif paragraph:
            yield Document("\n".join(paragraph), f"{path}:{first}", _position(raw))
            paragraph = []
    if paragraph:
        yield Document("\n".join(paragraph), f"{path}:{first}", _position(raw))


def _decoded(data: bytes, place: str) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{place}: not UTF-8: byte {data[error.start]:#04x} at offset {error.start}"
        ) from None
