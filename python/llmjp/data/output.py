"""The dataset that `llmjp tokenize` writes: grown segment by segment, and whole or not at all.

While a run lasts, `PREFIX.partial/` holds what there is: `bin`, `sizes` and `skipped`, to which
segments are appended in order; files of the segments that are waiting for their turn; a journal. A
segment is journalled when its files are complete. Now and then what has been appended is brought
to the disk, and after that a record says how much it is ("appended"). A later run with the same
inputs cuts the three files to the last such record, takes the segments that are waiting, if their
checksums are right, and does the rest. Nothing else is needed: a run may be killed at any moment.

At the end a record says that all is there; then the files are renamed to their places, the index
last. That is repeated if it was interrupted.
"""

import contextlib
import json
import os
import shutil
import time
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from llmjp.data import segments
from llmjp.data.documents import rejection
from llmjp.data.files import copy, locked, make_folders, rename, write_all
from llmjp.data.indexed import (
    CHUNK,
    dataset_exists,
    dataset_file,
    dataset_prefix,
    range_entry,
)
from llmjp.data.indexed_writer import id_type, synchronise, write_index
from llmjp.data.inputs import InputFile
from llmjp.data.journal import Journal
from llmjp.data.records import Rejected
from llmjp.data.segments import IDS, PARTS, REJECTED, SIZES, Segment
from llmjp.errors import UserError

JOURNAL_FORMAT = 2
SKIPPED_SUFFIX = ".skipped.jsonl"
_APPENDED = {IDS: "bin", SIZES: "sizes", REJECTED: "skipped"}
_SYNCHRONISE_SECONDS = 2.0  # what is appended meanwhile is appended again after a power failure


@dataclass
class Appended:
    """What has been appended so far; part of the journal.

    Attributes:
        task, number: of the segment that comes next.
        resume: where its task goes on; see Segment.
        sizes: bytes of bin, sizes and skipped.
        documents, tokens, empty, input_bytes, text_bytes, rejected: sums over segments.
        largest: the largest id.
        file, lines: the last input that was read, and how many of its lines.
    """

    task: int = 0
    number: int = 0
    resume: list[int | None] | None = None
    sizes: list[int] = field(default_factory=lambda: [0] * len(PARTS))
    documents: int = 0
    tokens: int = 0
    largest: int = -1
    empty: int = 0
    input_bytes: int = 0
    text_bytes: int = 0
    rejected: dict[str, int] = field(default_factory=dict)
    file: int = -1
    lines: int = 0


class Output:
    """An unfinished dataset, new or taken up again.

    Attributes:
        prefix: of the dataset.
        folder: where segments go.
        total: what has been appended.
        resumed: whether there was something to go on with.
        complete: whether all had been appended before, so that only publish() is left.
    """

    def __init__(
        self,
        prefix: str | os.PathLike[str],
        vocab_size: int,
        identity: dict[str, Any],
        files: list[InputFile],
        *,
        overwrite: bool = False,
        restart: bool = False,
    ) -> None:
        """Takes up the unfinished run of the same identity, or begins one.

        Args:
            prefix: the dataset's.
            vocab_size: decides the type of the ids.
            identity: what the result depends on besides the inputs: name and value, comparable.
            files: the inputs.
            overwrite: replace a dataset that exists, when the new one is complete.
            restart: throw away an unfinished run.

        Raises:
            UserError: the dataset exists, an unfinished run has another identity or is damaged, or
                another process is writing.
            OSError: the folder cannot be written to.
        """
        self.prefix = dataset_prefix(prefix)
        self.folder = dataset_file(self.prefix, ".partial")
        self.total = Appended()
        self.complete = False
        self._vocab_size = vocab_size
        self._files = files
        self._streams: dict[str, BinaryIO] = {}
        self._waiting: dict[tuple[int, int], Segment] = {}
        self._appended: list[Segment] = []  # since the last record of it
        self._recorded_at = time.monotonic()
        if dataset_exists(self.prefix) and not overwrite and not self.folder.exists():
            raise _exists(self.prefix)
        self._new_folders = make_folders(self.folder)
        self._lock = locked(self.folder)
        try:
            if restart:
                self._remove_files(keep=())
            self._journal = Journal(self.folder / "journal")
            header = {
                "format": [JOURNAL_FORMAT, segments.SEGMENT],
                **identity,
                "inputs": _described(files),
            }
            records = self._journal.records
            self.resumed = len(records) > 1  # a header alone says that nothing was done
            if self.resumed:
                self._check_identity(records[0], header)
                self.complete = records[-1].get("complete", False)
            else:
                self._journal.clear()
                self._journal.append(header)
            if dataset_exists(self.prefix) and not overwrite and not self.complete:
                if not self.resumed:  # what a killed run left when it had done all but tidying up
                    self.discard()
                raise _exists(self.prefix)
            self._take_up(records[1:])
        except BaseException:
            self._close()
            raise

    def _check_identity(self, old: dict[str, Any], new: dict[str, Any]) -> None:
        """The unfinished run must be of the same inputs, tokenizer and options."""
        then = (
            f"{self.folder} holds an unfinished run; repeat its command to continue it, "
            "or begin anew with --restart"
        )
        inputs = {path: rest for path, *rest in old.get("inputs", [])}
        for path, *rest in new["inputs"]:
            if path in inputs and inputs[path] != rest:
                raise UserError(f"{path} has changed since the run was begun: {then}")
        for name in {**old, **new}:
            if old.get(name) != new.get(name):
                words = _WORDS.get(name, f"{name} is")
                raise UserError(f"{words} not the same as when the run was begun: {then}")
        for file in self._files:
            if not file.regular:
                raise UserError(f"{file.path} is a pipe, which cannot be read again: {then}")

    def _take_up(self, records: list[dict[str, Any]]) -> None:
        """Goes on from the journal's records."""
        for record in records:
            if "appended" in record:
                self.total = Appended(**record["appended"])
        if self.complete:
            return
        for part, size in zip(PARTS, self.total.sizes, strict=True):
            path = self.folder / _APPENDED[part]
            path.touch()
            if (found := path.stat().st_size) < size:
                raise UserError(
                    f"{path} has {found} bytes, but {size} were written: the unfinished run is "
                    "damaged; begin anew with --restart"
                )
            stream = self._streams[part] = path.open("r+b", buffering=0)
            stream.truncate(size)
            stream.seek(size)
        for record in records:
            if "segment" in record:
                segment = Segment(**record["segment"])
                key = segment.task, segment.number
                if key >= (self.total.task, self.total.number) and self._is_whole(segment):
                    self._waiting[key] = segment
        expected = {
            segment.file(self.folder, part).name
            for segment in self._waiting.values()
            for part in PARTS
        }
        self._remove_files(keep=("journal", "lock", *_APPENDED.values(), *expected))
        self._append_in_order()

    def _is_whole(self, segment: Segment) -> bool:
        for part, size, checksum in zip(
            PARTS, segment.sizes_on_disk, segment.checksums, strict=True
        ):
            path = segment.file(self.folder, part)
            found, length = 0, 0
            if path.exists():
                with path.open("rb") as stream:
                    while data := stream.read(CHUNK):
                        found = zlib.crc32(data, found)
                        length += len(data)
            if (length, found) != (size, checksum):
                return False
        return True

    def open_tasks(self, count: int) -> list[tuple[int, int, list[int | None] | None]]:
        """What is left to do of `count` tasks: task, first segment, and where to go on."""
        left = []
        for task in range(self.total.task, count):
            at_border = task == self.total.task
            number = self.total.number if at_border else 0
            resume = self.total.resume if at_border else None
            while segment := self._waiting.get((task, number)):
                number, resume = number + 1, segment.resume
                if segment.last:
                    break
            else:
                left.append((task, number, resume))
        return left

    def finished(self) -> tuple[int, int, int]:
        """Documents, tokens, and bytes of input that are done, appended or waiting for it."""
        parts: list[Appended | Segment] = [self.total, *self._waiting.values()]
        return (
            sum(part.documents for part in parts),
            sum(part.tokens for part in parts),
            sum(part.input_bytes for part in parts),
        )

    def add(self, segment: Segment) -> None:
        """Takes a finished segment, in any order.

        Raises:
            UserError: its turn has come, and a record was rejected that must not be.
            OSError: the disk is full, or cannot be written to.
        """
        if segment.failure is None:
            self._journal.append({"segment": segment.as_record()})
        self._waiting[segment.task, segment.number] = segment
        self._append_in_order()

    def _append_in_order(self) -> None:
        while segment := self._waiting.get((self.total.task, self.total.number)):
            if segment.failure is not None:
                raise UserError(self._failure(segment))
            sizes = [
                size + self._append(segment, part)
                for part, size in zip(PARTS, self.total.sizes, strict=True)
            ]
            # At once: an interruption leaves either state, and bytes beyond it are cut off later.
            self.total = self._with(segment, sizes)
            self._appended.append(self._waiting.pop((segment.task, segment.number)))
        if time.monotonic() - self._recorded_at > _SYNCHRONISE_SECONDS:
            self._record()

    def _append(self, segment: Segment, part: str) -> int:
        """Appends one of a segment's files; gives the number of bytes."""
        size = segment.sizes_on_disk[PARTS.index(part)]
        if size == 0:
            return 0
        stream = self._streams[part]
        with segment.file(self.folder, part).open("rb", buffering=0) as source:
            if part == REJECTED:
                # A file's name may hold bytes that are not UTF-8.
                text = "".join(self._skipped(source, segment)).encode(errors="backslashreplace")
                write_all(stream, text)
                return len(text)
            copy(source, stream, size)
        return size

    def _skipped(self, source: BinaryIO, segment: Segment) -> Iterator[str]:
        """Lines for the report: rejected records with their file and line."""
        for line in source.read().splitlines():
            file, number, kind, message = json.loads(line)
            entry = {
                "file": str(self._files[file].path),
                "line": number and number + self._lines_before(segment, file),
                "kind": kind,
                "message": message,
            }
            yield json.dumps(entry, ensure_ascii=False) + "\n"

    def _lines_before(self, segment: Segment, file: int) -> int:
        """Lines of a file in the segments before this one, whose turn it is."""
        first = segment.lines[0][0] == file
        return self.total.lines if first and self.total.file == file else 0

    def _failure(self, segment: Segment) -> str:
        assert segment.failure is not None
        file, line, kind, message = segment.failure
        before = self._lines_before(segment, file)
        return rejection(self._files[file], before, Rejected(line, kind, message))

    def _with(self, segment: Segment, sizes: list[int]) -> Appended:
        """The total with one segment more."""
        total = self.total
        rejected = dict(total.rejected)
        for kind, count in segment.rejected.items():
            rejected[kind] = rejected.get(kind, 0) + count
        file, lines = total.file, total.lines
        for following, count in segment.lines:
            file, lines = following, count + (lines if following == file else 0)
        last = segment.last
        return Appended(
            task=segment.task + 1 if last else segment.task,
            number=0 if last else segment.number + 1,
            resume=segment.resume,
            sizes=sizes,
            documents=total.documents + segment.documents,
            tokens=total.tokens + segment.tokens,
            largest=max(total.largest, segment.largest),
            empty=total.empty + segment.empty,
            input_bytes=total.input_bytes + segment.input_bytes,
            text_bytes=total.text_bytes + segment.text_bytes,
            rejected=rejected,
            file=file,
            lines=lines,
        )

    def _record(self) -> None:
        """Journals what has been appended, once it is on the disk; then segments' files may go."""
        if not self._appended:
            return
        for stream in self._streams.values():
            os.fsync(stream.fileno())
        self._journal.append({"appended": asdict(self.total)})
        self._journal.synchronise()
        for segment in self._appended:
            for part in PARTS:
                segment.file(self.folder, part).unlink(missing_ok=True)
        self._appended = []
        self._recorded_at = time.monotonic()

    def finish(self) -> None:
        """Writes the index and puts the files in their places.

        Raises:
            OSError: the disk is full, or cannot be written to. The same command tries again.
        """
        if not self.complete:
            self._record()
            with (self.folder / "idx").open("wb") as stream:
                write_index(stream, self._vocab_size, self.total.documents, self._sizes)
                synchronise(stream)
            # What the trainer asks for: it need not read all ids to know.
            dtype = id_type(self._vocab_size)
            entry = range_entry(self.folder / "bin", dtype, 0, self.total.largest)
            (self.folder / "range").write_bytes(entry)
            self._journal.append({"complete": True})
            self._journal.synchronise()
            self.complete = True
        self._publish()

    def _sizes(self) -> Iterator[npt.NDArray[np.int32]]:
        with (self.folder / "sizes").open("rb") as stream:
            while data := stream.read(4 * CHUNK):
                yield np.frombuffer(data, np.int32)

    def _publish(self) -> None:
        """Renames the files; may be repeated."""
        index = self.folder / "idx"
        if index.exists():  # else it has been renamed, and that comes last
            final = dataset_file(self.prefix, ".idx")
            final.unlink(missing_ok=True)
            skipped = dataset_file(self.prefix, SKIPPED_SUFFIX)
            if self.total.rejected:
                rename(self.folder / "skipped", skipped)
            else:
                skipped.unlink(missing_ok=True)
            rename(self.folder / "bin", dataset_file(self.prefix, ".bin"))
            rename(self.folder / "range", dataset_file(self.prefix, ".range.json"))
            index.rename(final)
            descriptor = os.open(self.prefix.parent, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        # The journal last: as long as it is there the next run comes here again.
        self._remove_files(keep=("journal",))
        self._remove()

    @property
    def closed(self) -> bool:
        """Whether it has been finished, abandoned or discarded."""
        return self._lock.closed

    def abandon(self) -> bool:
        """Stops; whether there is something that a later run can go on with."""
        waiting = any(segment.failure is None for segment in self._waiting.values())
        if waiting or self.total.task or self.total.number or self.complete:
            with contextlib.suppress(OSError):  # a full disk, which is being reported
                self._record()
            self._close()
            return True
        self.discard()
        return False

    def discard(self) -> None:
        """Removes all that was written, and the folders made for it."""
        self._remove()
        for folder in self._new_folders:
            try:
                folder.rmdir()
            except OSError:
                break

    def _remove(self) -> None:
        # Without the journal what is left of the folder is nobody's.
        (self.folder / "journal").unlink(missing_ok=True)
        self._close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _remove_files(self, keep: tuple[str, ...]) -> None:
        for path in self.folder.iterdir():
            if path.name not in (*keep, "lock"):
                path.unlink()

    def _close(self) -> None:
        for stream in self._streams.values():
            stream.close()
        if hasattr(self, "_journal"):
            self._journal.close()
        self._lock.close()


_WORDS = {
    "format": "the program's version is",
    "inputs": "the inputs are",
    "tokenizer": "the tokenizer is",
}


def _exists(prefix: Path) -> UserError:
    return UserError(f"{prefix}.bin or .idx exists already; --overwrite replaces it")


def _described(files: list[InputFile]) -> list[list[Any]]:
    return [[str(file.path.absolute()), file.size, file.modified_ns] for file in files]
