"""Texts encoded in chunks as they come, so that a corpus is never held in memory."""

import gzip
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

Result = TypeVar("Result")

CHUNK_CHARACTERS = 1 << 20

# What a text counts beyond its characters: many empty ones fill a chunk too.
_CHARACTERS_PER_TEXT = 16


def encode_chunks(
    encode: Callable[[list[str]], Result],
    texts: Iterable[str],
    chunk_characters: int,
    look_ahead: bool,
) -> Iterator[Result]:
    """encode() of chunks of texts, in order.

    Args:
        encode: gives the result of a chunk; raises TypeError where a text cannot be encoded.
        texts: read on the calling thread, and no further than one chunk ahead.
        chunk_characters: a chunk ends with the text that reaches this.
        look_ahead: encode a chunk on another thread while the next one is gathered and the one
            before is used.

    Raises:
        TypeError: an item is not a str or has a lone surrogate; the message has its index.
        ValueError: `chunk_characters` is below 1.
        Whatever `texts` raises. All texts before come out first.
    """
    if chunk_characters < 1:
        raise ValueError(f"chunk_characters must be 1 or more, got {chunk_characters}")
    if isinstance(texts, (str, bytes)):
        raise TypeError(f"texts must be an iterable of str, got one {type(texts).__name__}")
    return _encode_chunks(encode, texts, chunk_characters, look_ahead)


def _encode_chunks(
    encode: Callable[[list[str]], Result],
    texts: Iterable[str],
    chunk_characters: int,
    look_ahead: bool,
) -> Iterator[Result]:
    chunks = _chunks(texts, chunk_characters)
    if not look_ahead:
        for first, chunk in chunks:
            result, error = _encode_located(encode, first, chunk)
            if result is not None:
                yield result
            if error is not None:
                raise error
        return
    with ThreadPoolExecutor(1) as worker:
        pending: Future[tuple[Result | None, TypeError | None]] | None = None
        while True:
            failure: Exception | None = None
            following = None
            try:
                gathered = next(chunks, None)
                if gathered is not None:
                    first, chunk = gathered
                    following = worker.submit(_encode_located, encode, first, chunk)
            except Exception as error:
                failure = error
            if pending is not None:
                result, located = pending.result()
                if result is not None:
                    yield result
                if located is not None:
                    raise located
            if failure is not None:
                raise failure
            if following is None:
                return
            pending = following


def _chunks(texts: Iterable[str], characters: int) -> Iterator[tuple[int, list[str]]]:
    """Chunks with the index of their first text; an exception of `texts` comes after them."""
    chunk: list[str] = []
    first = size = 0
    iterator = iter(texts)
    failure: Exception | None = None
    while True:
        try:
            text = next(iterator)
        except StopIteration:
            break
        except Exception as error:
            failure = error
            break
        if not _is_text(text):
            index = first + len(chunk)
            failure = TypeError(f"text {index} must be str, got {type(text).__name__}")
            break
        chunk.append(text)
        size += len(text) + _CHARACTERS_PER_TEXT
        if size >= characters:
            yield first, chunk
            first, chunk, size = first + len(chunk), [], 0
    if chunk:
        yield first, chunk
    if failure is not None:
        raise failure


def _is_text(item: object) -> bool:
    return isinstance(item, str)


def _encode_located(
    encode: Callable[[list[str]], Result], first: int, chunk: list[str]
) -> tuple[Result | None, TypeError | None]:
    """The result of a chunk; or of the texts before one that fails, and an error with its index."""
    try:
        return encode(chunk), None
    except TypeError:
        for i, text in enumerate(chunk):
            try:
                text.encode()
            except UnicodeEncodeError as found:
                before = encode(chunk[:i]) if i > 0 else None
                return before, TypeError(
                    f"text {first + i} has the lone surrogate U+{ord(text[found.start]):04X} at "
                    f"character {found.start}, which cannot be encoded"
                )
        raise


def lines_of(path: Path, keep_newlines: bool) -> Iterator[str]:
    """Lines of a text file, of a gzipped one if it is named *.gz; they end at a newline alone.

    Raises:
        OSError: the file cannot be read.
        ValueError: a line is not valid UTF-8; the message names file and line.
    """
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as stream:
        for number, line in enumerate(stream, 1):
            try:
                text = line.decode("utf-8")
            except UnicodeDecodeError as error:
                raise ValueError(f"{path}, line {number}: {error}") from None
            yield text if keep_newlines else text.removesuffix("\n")
