"""The work of `llmjp tokenize`, cut into pieces that any process can do, in any order.

A corpus is cut into tasks, a task's result into segments of some ten megabytes of input. The cuts
depend on the files alone, never on how many processes work on them. Whoever works on a task leaves
each segment's ids in files of its own; appended in order they are the dataset. So no text and no
id passes from process to process, and what is done stays done when a run is stopped.
"""

import json
import time
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from llmjp.data import parquet
from llmjp.data.documents import Reading, Span, SpanReader, in_ranges
from llmjp.data.inputs import PARQUET, InputFile
from llmjp.data.records import Batch
from llmjp.data.streams import DamagedFile
from llmjp_ext import Tokenizer

SEGMENT = 1 << 24  # bytes of input (decompressed) in a segment: what a stopped run does again
_MOST_FILES = 1 << 12  # in a task: each takes time to open even if it is small
STAGES = ("reading", "decompressing", "parsing", "tokenizing", "writing", "waiting")
IDS, SIZES, REJECTED = PARTS = ("ids", "sizes", "rejected")

Task = list[Span]


def plan(files: list[InputFile], reading: Reading) -> list[Task]:
    """Cuts files into tasks, in order.

    Files whose lines can be read from anywhere are cut into ranges of SEGMENT bytes, Parquet files
    between row groups; other files stay whole. Small ones are put together.
    """
    tasks: list[Task] = []
    task: Task = []
    held = 0
    for index, file in enumerate(files):
        for span, size in _spans(index, file, reading):
            if task and (held + size > SEGMENT or len(task) >= _MOST_FILES):
                tasks.append(task)
                task, held = [], 0
            task.append(span)
            held += size
    return [*tasks, task] if task else tasks


def _spans(index: int, file: InputFile, reading: Reading) -> Iterator[tuple[Span, int]]:
    if in_ranges(file, reading):
        for start in range(0, file.size, SEGMENT):
            end = min(start + SEGMENT, file.size)
            yield Span(index, start, end), end - start
    elif file.format == PARQUET and file.size > SEGMENT:
        try:
            groups = parquet.row_groups(file.path)
        except DamagedFile:
            groups = [file.size]  # reported when it is read
        for number, size in enumerate(groups):
            yield Span(index, number, number + 1), size
    else:
        yield Span(index, 0, None), file.size if file.regular else SEGMENT


class Encoder:
    """Texts to the bytes of a dataset: each text's ids, then the end token."""

    def __init__(self, tokenizer: Tokenizer, end: int | None, threads: int = 1) -> None:
        """With `end` None nothing is appended. `threads` work on a batch, where cores are idle."""
        self._tokenizer = tokenizer
        self._end = end
        self.threads = threads
        # Where the template appends the very same token, the search writes it along.
        probe = "a"
        plain = tokenizer.encode(probe, add_special_tokens=False)
        self._by_template = end is not None and tokenizer.encode(probe) == [*plain, end]

    def encode(self, texts: list[str]) -> tuple[npt.NDArray[Any], npt.NDArray[np.int32]]:
        """Ids of all texts one after another, and how many each has."""
        ids: npt.NDArray[Any]
        ids, offsets = self._tokenizer.encode_ragged(
            texts, add_special_tokens=self._by_template, num_threads=self.threads
        )
        if self._end is not None and not self._by_template:
            ids = np.insert(ids, offsets[1:], self._end)
            offsets = offsets + np.arange(len(offsets))
        # uint16 and int32 hold what encode_ragged gives, for the vocabularies that it gives it for.
        return ids if ids.dtype == np.uint16 else ids.view(np.int32), np.diff(offsets).astype(
            np.int32
        )


@dataclass(frozen=True)
class Job:
    """What is the same for all tasks.

    Attributes:
        files: the inputs, in order.
        tasks: see plan().
        reading: how documents are taken out of files.
        encoder: gives the ids.
        folder: where the segments' files go.
        stop_at_rejected: a record without a text ends the task.
        share: of the batches whose texts are encoded; of others the sizes are -1.
    """

    files: list[InputFile]
    tasks: list[Task]
    reading: Reading
    encoder: Encoder
    folder: Path
    stop_at_rejected: bool
    share: float = 1.0

    def chooses(self, task: int, batch: int) -> bool:
        """Whether a task's `batch`-th batch is encoded: the first, and others spread evenly."""
        return self.share > 0 and (
            batch == 1 or zlib.crc32(b"%d %d" % (task, batch)) < self.share * (1 << 32)
        )


@dataclass
class Segment:
    """What is known of a finished segment; its ids, sizes and rejected records are in files.

    Attributes:
        task, number: which it is.
        last: whether the task ends with it.
        documents, tokens, empty: counted in it; `empty` are the texts that hold nothing.
        largest: the largest id in it; -1 if there is none.
        input_bytes: bytes on disk that were read for it.
        text_bytes: the same decompressed; of a Parquet file the column's.
        lines: [file, lines] for each file that it touches.
        rejected: number of records that gave no text, by kind.
        resume: [span, end of the last batch], where the task goes on, unless `last`.
        sizes_on_disk: bytes of its files, in the order of PARTS.
        checksums: CRC-32 of each of them.
        failure: [file, line, kind, message] of the record that ended the task.
        seconds: time by stage; not part of the result.
    """

    task: int
    number: int
    last: bool = False
    documents: int = 0
    tokens: int = 0
    largest: int = -1
    empty: int = 0
    input_bytes: int = 0
    text_bytes: int = 0
    lines: list[list[int]] = field(default_factory=list)
    rejected: dict[str, int] = field(default_factory=dict)
    resume: list[int | None] | None = None
    sizes_on_disk: list[int] = field(default_factory=lambda: [0] * len(PARTS))
    checksums: list[int] = field(default_factory=lambda: [0] * len(PARTS))
    failure: list[Any] | None = None
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))

    def as_record(self) -> dict[str, Any]:
        """For the journal; Segment(**record) gives it back."""
        record = asdict(self)
        del record["seconds"]
        return record

    def file(self, folder: Path, part: str) -> Path:
        """Where one of its PARTS lies."""
        return folder / f"{self.task:07d}-{self.number:06d}.{part}"


class _Growing:
    """A segment that is being written."""

    def __init__(self, folder: Path, task: int, number: int) -> None:
        self.segment = Segment(task, number)
        self._folder = folder
        self._streams: dict[str, BinaryIO] = {}

    def begin(self, file: int) -> None:
        """What follows comes from this file."""
        lines = self.segment.lines
        if not lines or lines[-1][0] != file:
            lines.append([file, 0])

    def write(self, part: str, data: memoryview | bytes) -> None:
        if part not in self._streams:
            self._streams[part] = self.segment.file(self._folder, part).open("wb", buffering=0)
        stream = self._streams[part]
        index = PARTS.index(part)
        self.segment.checksums[index] = zlib.crc32(data, self.segment.checksums[index])
        rest = memoryview(data).cast("B")
        self.segment.sizes_on_disk[index] += len(rest)
        while rest:  # a write may take less than all of it
            rest = rest[stream.write(rest) :]

    def close(self, seconds: dict[str, float]) -> Segment:
        """The segment, which gets the time spent so far."""
        for stream in self._streams.values():
            stream.close()
        self._streams = {}
        self.segment.seconds = dict(seconds)
        seconds.update(dict.fromkeys(STAGES, 0.0))
        return self.segment


def segments(
    job: Job, task: int, number: int = 0, resume: list[int | None] | None = None
) -> Iterator[Segment]:
    """Does a task; gives each segment when its files are complete.

    Args:
        job: what the task belongs to.
        task: index in `job.tasks`.
        number: of the first segment to do.
        resume: `resume` of the segment before it; None for the task's beginning.

    Raises:
        UserError: a package is missing, or a Parquet file has no such column.
        OSError: a file cannot be read or written.
    """
    seconds = dict.fromkeys(STAGES, 0.0)
    batches = 0
    growing = _Growing(job.folder, task, number)
    try:
        first, position = resume if resume is not None else (0, None)
        assert first is not None
        for index in range(first, len(job.tasks[task])):
            span = job.tasks[task][index]
            file = job.files[span.file]
            ahead = job.encoder.threads > 1 and file.regular  # nobody could end a wait for a pipe
            reader = SpanReader(file, span, job.reading, ahead)
            in_range = in_ranges(file, job.reading)
            growing.begin(span.file)
            lines = 0  # given by this reader
            for batch in _timed(reader, position, seconds):
                if growing.segment.text_bytes >= SEGMENT:
                    growing.segment.resume = [index, position]
                    yield growing.close(seconds)
                    number += 1
                    growing = _Growing(job.folder, task, number)
                    growing.begin(span.file)
                # A reader of a range reads beyond its end, which others do again.
                growing.segment.input_bytes += batch.size if in_range else reader.bytes_taken()
                batches += 1
                if not _add(growing, batch, batches, lines, job, seconds):
                    yield growing.close(seconds)
                    return
                lines += batch.lines
                position = batch.end
            position = None
        growing.segment.last = True
        yield growing.close(seconds)
    finally:
        growing.close(seconds)


def _timed(reader: SpanReader, position: int | None, seconds: dict[str, float]) -> Iterator[Batch]:
    batches = reader.batches(position)
    while True:
        reading, decompressing = reader.seconds_reading, reader.seconds_decompressing
        began = time.perf_counter()
        batch = next(batches, None)
        spent = time.perf_counter() - began
        reading = reader.seconds_reading - reading
        decompressing = reader.seconds_decompressing - decompressing
        seconds["reading"] += reading
        seconds["decompressing"] += decompressing
        seconds["parsing"] += spent - reading - decompressing
        if batch is None:
            return
        yield batch


def _add(
    growing: _Growing,
    batch: Batch,
    number: int,
    lines_before: int,
    job: Job,
    seconds: dict[str, float],
) -> bool:
    """Encodes a batch, the task's `number`-th, into a segment; whether the task goes on."""
    segment = growing.segment
    file, lines = segment.lines[-1]
    for rejected in batch.rejected:
        # Its line among those of this file in this segment; 0 stands for the file as a whole.
        line = rejected.line - lines_before + lines if rejected.line else 0
        place = [file, line, rejected.kind, rejected.message]
        if job.stop_at_rejected:
            segment.failure = place
            return False
        segment.rejected[rejected.kind] = segment.rejected.get(rejected.kind, 0) + 1
        growing.write(REJECTED, json.dumps(place).encode() + b"\n")
    began = time.perf_counter()
    if batch.texts and not job.chooses(segment.task, number):
        growing.write(SIZES, np.full(len(batch.texts), -1, np.int32).data)
    elif batch.texts:
        ids, sizes = job.encoder.encode(batch.texts)
        encoded = time.perf_counter()
        seconds["tokenizing"] += encoded - began
        growing.write(IDS, ids.data)
        growing.write(SIZES, sizes.data)
        seconds["writing"] += time.perf_counter() - encoded
        segment.tokens += len(ids)
        segment.largest = max(segment.largest, int(ids.max(initial=0)))
    segment.documents += len(batch.texts)
    segment.empty += batch.empty
    segment.lines[-1][1] += batch.lines
    segment.text_bytes += batch.size
    return True
