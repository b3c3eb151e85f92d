"""Bytes of input files: decompressed, in blocks of whole lines, in memory that does not grow.

Blocks are small enough to stay in a core's cache while they are parsed. What is held is one block,
or one line up to the limit that the caller sets: a longer line is passed over without being kept.
"""

import gzip
import io
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import BinaryIO

from llmjp.data.inputs import InputFile
from llmjp.errors import UserError

BLOCK = 1 << 18
# A zstd block of 4 bytes may stand for 128 KiB: little input at a time bounds what comes of it.
_COMPRESSED = 1 << 9
_LARGEST_WINDOW = 1 << 31  # what `zstd --long=31` asks for


class DamagedFile(Exception):
    """A compressed file that breaks off or is not of its kind; the message says which."""


class Source:
    """The bytes of a file, decompressed.

    Attributes:
        seconds_reading: time spent in reading the file.
        seconds_decompressing: time spent in decompressing. Where that is done ahead, on a thread of
            its own: time spent in waiting for it, reading included.
    """

    def __init__(self, file: InputFile, ahead: bool = False) -> None:
        """Opens the file. `ahead`: a compressed one is decompressed a block ahead, on a thread.

        Raises:
            UserError: a package that its compression needs is missing.
            OSError: it cannot be opened.
        """
        self.seconds_reading = 0.0
        self.seconds_decompressing = 0.0
        self._path = file.path
        self._bytes_read = 0  # written by whoever reads ahead
        self._bytes_told = 0
        self._raw = file.path.open("rb", buffering=0)
        self._stream: BinaryIO | gzip.GzipFile | _ZstdReader | None = None
        if file.compression == "gzip":
            self._stream = gzip.GzipFile(fileobj=_Measured(self))
        elif file.compression == "zstd":
            self._stream = _ZstdReader(self.read_raw)
        self._ahead = None if self._stream is None or not ahead else _Ahead(self._decompressed)

    def read(self, size: int) -> bytes:
        """At most `size` bytes; none at the end.

        Raises:
            DamagedFile: the compressed data breaks off, or is none.
            OSError: the file cannot be read.
        """
        if self._stream is None:
            return self.read_raw(size)
        began, read_before = time.perf_counter(), self.seconds_reading
        try:
            return self._ahead.read(size) if self._ahead else self._decompressed(size)
        finally:
            spent = time.perf_counter() - began
            self.seconds_decompressing += spent - (self.seconds_reading - read_before)

    def _decompressed(self, size: int) -> bytes:
        assert self._stream is not None
        try:
            return self._stream.read(size)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            kind = "zstd" if isinstance(self._stream, _ZstdReader) else "gzip"
            raise DamagedFile(f"{self._path} is not a whole {kind} file: {error}") from None

    def read_raw(self, size: int) -> bytes:
        """Bytes as they are on disk."""
        began = time.perf_counter()
        data = self._raw.read(size) or b""
        if self._ahead is None:  # else it is part of what is waited for
            self.seconds_reading += time.perf_counter() - began
        self._bytes_read += len(data)
        return data

    def seek(self, offset: int) -> None:
        """Goes on at byte `offset` of the decompressed data, which is not before the position."""
        if self._stream is None:
            self._raw.seek(offset)
            self._bytes_told = self._bytes_read
            return
        while offset > 0:
            data = self.read(min(offset, BLOCK))
            if not data:
                break
            offset -= len(data)

    def bytes_taken(self) -> int:
        """Bytes of the file on disk read since the last call."""
        total = self._bytes_read  # it may grow meanwhile
        taken, self._bytes_told = total - self._bytes_told, total
        return taken

    def __enter__(self) -> "Source":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Closes the file."""
        if self._ahead:
            self._ahead.close()
        self._raw.close()


class _Ahead:
    """Calls read() on a thread, one block ahead of what has been taken."""

    def __init__(self, read: Callable[[int], bytes]) -> None:
        self._read = read
        self._thread = ThreadPoolExecutor(1)
        self._next: Future[bytes] | None = None
        self._held = b""

    def read(self, size: int) -> bytes:
        if not self._held:
            block = self._next or self._thread.submit(self._read, BLOCK)
            self._held = block.result()
            self._next = self._thread.submit(self._read, BLOCK) if self._held else None
        data, self._held = self._held[:size], self._held[size:]
        return data

    def close(self) -> None:
        self._thread.shutdown()


class _Measured(io.RawIOBase):
    """A source's bytes on disk as a file object for gzip.GzipFile."""

    def __init__(self, source: Source) -> None:
        self._source = source

    def read(self, size: int = -1) -> bytes:
        return self._source.read_raw(size)


class _ZstdReader:
    """Decompresses zstd frames one after another, and notices one that breaks off."""

    def __init__(self, read: Callable[[int], bytes]) -> None:
        try:
            import zstandard
        except ImportError:
            raise UserError("reading .zst files needs the zstandard package") from None
        self._error = zstandard.ZstdError
        self._decompressor = zstandard.ZstdDecompressor(max_window_size=_LARGEST_WINDOW)
        self._read = read
        self._frame = self._decompressor.decompressobj()
        self._begun = False  # whether the frame has had data
        self._input = b""
        self._at = 0  # what of the input stands before it has been decompressed
        self._ready = bytearray()

    def read(self, size: int) -> bytes:
        while len(self._ready) < size and (data := self._next_input()):
            self._begun = True
            try:
                self._ready += self._frame.decompress(data)
            except self._error as error:
                raise zlib.error(str(error)) from None
        data = bytes(self._ready[:size])
        del self._ready[:size]
        if not data and self._begun and not self._frame.eof:
            raise EOFError("it ends in the middle of a frame")
        return data

    def _next_input(self) -> bytes:
        if self._frame.eof:
            self._at -= len(self._frame.unused_data)
        if self._at == len(self._input):
            self._input, self._at = self._read(BLOCK), 0
        data = self._input[self._at : self._at + _COMPRESSED]
        self._at += len(data)
        if data and self._frame.eof:
            self._frame = self._decompressor.decompressobj()
            self._begun = False
        return data


@dataclass(frozen=True)
class LineBlock:
    """Whole lines, or one that is too long to be kept.

    Attributes:
        data: the lines with their ends (the last of a file may lack one); empty if too long.
        end: offset in the file just after them.
        oversized: bytes of the one line that was too long, else 0.
    """

    data: bytes
    end: int
    oversized: int = 0


def first_line(source: Source, start: int, end: int | None) -> int | None:
    """Goes to the first line that starts in [start, end); its offset, or None if there is none."""
    if start == 0:
        return 0
    source.seek(start - 1)
    position = start - 1
    while end is None or position + 1 < end:
        data = source.read(BLOCK)
        if not data:
            return None
        found = data.find(b"\n")
        if found >= 0:
            position += found + 1
            if end is not None and position >= end:
                return None
            source.seek(position)
            return position
        position += len(data)
    return None


def line_blocks(source: Source, start: int, end: int | None, longest: int) -> Iterator[LineBlock]:
    """The lines that start in [start, end), in order.

    Args:
        source: stands at `start`, where a line starts.
        start: offset in the decompressed data.
        end: None for the end of the file.
        longest: a line of more bytes is passed over; at least BLOCK.

    Raises:
        DamagedFile: the data break off; what came before has been given.
    """
    position = start  # of the first byte that has not been given out
    parts: list[bytes] = []  # the beginning of a line
    held = 0  # its length, also when it has become too long to be kept
    while (end is None or position < end) and (data := source.read(BLOCK)):
        newline = data.find(b"\n")
        if newline >= 0 and held + newline > longest:
            held += newline
            position += held + 1
            yield LineBlock(b"", position, held)
            data = data[newline + 1 :]
            parts, held = [], 0
            if end is not None and position >= end:
                return
        cut = data.rfind(b"\n") + 1
        if cut:
            block = b"".join([*parts, data[:cut]]) if parts else data[:cut]
            if end is not None and position + len(block) >= end:
                # The line that starts last before `end` ends at the first newline from here on.
                last = block.find(b"\n", end - position - 1) + 1
                yield LineBlock(block[:last], position + last)
                return
            position += len(block)
            yield LineBlock(block, position)
            parts, held = [], 0
            data = data[cut:]
        held += len(data)
        if held > longest:
            parts = []
        elif data:
            parts.append(data)
    if held and (end is None or position < end):
        position += held
        if held > longest:
            yield LineBlock(b"", position, held)
        else:
            yield LineBlock(b"".join(parts), position)
