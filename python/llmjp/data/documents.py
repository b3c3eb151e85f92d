"""Documents of input files, in batches: what a document is in which kind of file."""

from collections.abc import Iterator
from dataclasses import dataclass

from llmjp.data import records
from llmjp.data.inputs import JSON_LINES, PARQUET, InputFile
from llmjp.data.records import Batch, RecordError, Rejected
from llmjp.data.streams import BLOCK, DamagedFile, LineBlock, Source, first_line, line_blocks
from llmjp.errors import UserError

SPLITS = ("file", "lines", "blank-lines")


@dataclass(frozen=True)
class Reading:
    """How documents are taken out of files.

    Attributes:
        split: what a document is in plain text: the whole "file", each of its "lines", or what
            stands between "blank-lines". Line ends belong to none of the latter two.
        key: the key of the text in a line of JSON, the column in a Parquet file.
        longest: a document of more bytes is rejected, without ever being held in memory.
    """

    split: str = "file"
    key: str = "text"
    longest: int = 256_000_000


@dataclass(frozen=True)
class Span:
    """A part of an input file.

    Attributes:
        file: index in the list of files.
        start: lines that start at or after this byte belong to the span; in a Parquet file, row
            groups from this one on.
        end: ... and before this one; None for the end of the file.
    """

    file: int
    start: int
    end: int | None


def in_ranges(file: InputFile, reading: Reading) -> bool:
    """Whether any range of a file's bytes can be read for itself."""
    by_line = file.format == JSON_LINES or (file.format != PARQUET and reading.split == "lines")
    return by_line and not file.compression and file.regular


class SpanReader:
    """The batches of one span.

    Attributes:
        seconds_reading, seconds_decompressing: time spent in both.
    """

    def __init__(self, file: InputFile, span: Span, reading: Reading, ahead: bool = False) -> None:
        """Reads nothing yet. `ahead`: a compressed file is decompressed on a thread of its own."""
        self._file = file
        self._span = span
        self._reading = reading
        self._ahead = ahead
        self._source: Source | None = None
        self._rows_taken = 0
        self._seconds_rows = 0.0

    @property
    def seconds_reading(self) -> float:
        """Time spent in reading the file."""
        return self._seconds_rows + (self._source.seconds_reading if self._source else 0.0)

    @property
    def seconds_decompressing(self) -> float:
        """Time spent in decompressing (a Parquet file's is part of reading it)."""
        return self._source.seconds_decompressing if self._source else 0.0

    def bytes_taken(self) -> int:
        """Bytes of the file on disk read since the last call."""
        if self._source is not None:
            return self._source.bytes_taken()
        taken, self._rows_taken = self._rows_taken, 0
        return taken

    def batches(self, resume: int | None = None) -> Iterator[Batch]:
        """The documents in order.

        Args:
            resume: the `end` of the batch after which to go on; line numbers count from there.

        Raises:
            UserError: a package is missing, or a Parquet file has no such column.
            OSError: the file cannot be read.
        """
        try:
            if self._file.format == PARQUET:
                yield from self._rows(resume or 0)
                return
            with Source(self._file, self._ahead) as self._source:
                yield from self._texts(self._source, resume)
        except DamagedFile as error:
            rejected = [Rejected(0, records.DAMAGED, str(error))]
            yield Batch([], 0, -1, 0, rejected=rejected)

    def _texts(self, source: Source, resume: int | None) -> Iterator[Batch]:
        if resume is None:
            start = first_line(source, self._span.start, self._span.end)
        else:
            start = resume
            source.seek(resume)
        if start is None:
            return
        reading = self._reading
        if self._file.format != JSON_LINES and reading.split == "file":
            yield _whole_file(source, reading.longest)
            return
        blocks = line_blocks(source, start, self._span.end, reading.longest)
        if self._file.format != JSON_LINES and reading.split == "blank-lines":
            yield from _Paragraphs(start, reading.longest).batches(blocks)
            return
        line = 1
        for block in blocks:
            if self._file.format == JSON_LINES:
                batch = records.json_lines(block, line, reading.longest, reading.key)
            else:
                batch = records.plain_lines(block, line, reading.longest)
            line += batch.lines
            yield batch

    def _rows(self, resume: int) -> Iterator[Batch]:
        from llmjp.data.parquet import row_batches

        for batch, taken, seconds in row_batches(self._file, self._span, self._reading, resume):
            self._rows_taken += taken
            self._seconds_rows += seconds
            yield batch


def _whole_file(source: Source, longest: int) -> Batch:
    """The one document of a file."""
    parts: list[bytes] = []
    size = 0
    while size <= longest and (data := source.read(BLOCK)):
        parts.append(data)
        size += len(data)
    data = b"".join(parts)
    batch = Batch([], data.count(b"\n") + 1, size, size)
    try:
        if size > longest:
            raise records.too_long(longest, longest)
        text = records.decoded(data).removeprefix("\ufeff")
    except RecordError as error:
        batch.rejected.append(Rejected(0, error.kind, str(error)))
        return batch
    batch.texts = [text] if text else []
    return batch


class _Paragraphs:
    """Gathers lines to paragraphs, which may reach over any number of blocks."""

    def __init__(self, start: int, longest: int) -> None:
        self._longest = longest
        self._lines: list[str] = []
        self._size = 0
        self._begun_at = start  # offset of the paragraph's first line
        self._begun_line = 1
        self._position = start
        self._line = 1
        self._error: RecordError | None = None

    def batches(self, blocks: Iterator[LineBlock]) -> Iterator[Batch]:
        """One batch a block: the paragraphs that end in it."""
        for block in blocks:
            batch = self._begin()
            if block.oversized:
                self._open()
                self._error = records.too_long(block.oversized, self._longest)
                self._line += 1
            else:
                for line in records.split_lines(block, first=self._line == 1):
                    self._add(line, batch)
            self._position = block.end
            yield self._finished(batch)
        batch = self._begin()
        self._close(batch)
        if batch.texts or batch.rejected:
            yield self._finished(batch)

    def _begin(self) -> Batch:
        return Batch([], self._begun_line if self._in_paragraph else self._line, 0, 0)

    def _finished(self, batch: Batch) -> Batch:
        """The batch ends where the paragraph that is still open begins."""
        line = self._begun_line if self._in_paragraph else self._line
        batch.end = self._begun_at if self._in_paragraph else self._position
        batch.lines = line - batch.lines
        batch.size = sum(map(len, batch.texts))
        return batch

    @property
    def _in_paragraph(self) -> bool:
        return bool(self._lines) or self._error is not None

    def _open(self) -> None:
        if not self._in_paragraph:
            self._begun_at = self._position
            self._begun_line = self._line

    def _add(self, data: bytes, batch: Batch) -> None:
        try:
            text = records.decoded(data).removesuffix("\r")
            if not text.strip():
                self._close(batch)
            else:
                self._open()
                self._size += len(data) + 1
                if self._size > self._longest:
                    raise records.too_long(self._size, self._longest)
                if self._error is None:
                    self._lines.append(text)
        except RecordError as error:
            self._open()
            self._error = self._error or error
            self._lines = []
        self._position += len(data) + 1
        self._line += 1

    def _close(self, batch: Batch) -> None:
        if self._error is not None:
            error = self._error
            batch.rejected.append(Rejected(self._begun_line, error.kind, str(error)))
        elif self._lines:
            batch.texts.append("\n".join(self._lines))
        self._lines, self._size, self._error = [], 0, None


def read_texts(file: InputFile, reading: Reading) -> Iterator[tuple[str, int]]:
    """Each document of a file and the bytes of the file read since the last one.

    Raises:
        UserError: the first record that gives no text, with file and line.
        OSError: the file cannot be read.
    """
    reader = SpanReader(file, Span(0, 0, None), reading)
    line = 0
    for batch in reader.batches():
        for rejected in batch.rejected:
            raise UserError(rejection(file, line, rejected))
        taken = reader.bytes_taken()
        for text in batch.texts:
            yield text, taken
            taken = 0
        line += batch.lines


def rejection(file: InputFile, lines_before: int, rejected: Rejected) -> str:
    """A sentence with the place of a rejected record."""
    if rejected.kind == records.DAMAGED:
        return rejected.message
    place = f"{file.path}:{lines_before + rejected.line}" if rejected.line else str(file.path)
    return f"{place}: {rejected.message}"
