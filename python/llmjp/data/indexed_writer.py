"""Writes Megatron's indexed datasets; llmjp.data.indexed describes the format and reads it."""

import contextlib
import errno
import fcntl
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from llmjp.data.indexed import (
    CHUNK,
    DTYPES,
    HEADER,
    MAGIC,
    SMALL_VOCABULARY,
    VERSION,
    Ids,
    dataset_exists,
    dataset_file,
    dataset_prefix,
)
from llmjp.errors import UserError

_LONGEST = np.iinfo(np.int32).max


class IndexedWriter:
    """Writes an indexed dataset: whole when the `with` block ends well, else not at all.

    Data goes to `PREFIX.bin.partial` and `PREFIX.idx.partial` and is renamed at the end, the index
    last; a dataset that is replaced loses its index first. So whoever finds an index finds all of
    its data, even after a power failure.
    """

    def __init__(
        self, prefix: str | os.PathLike[str], vocab_size: int, *, overwrite: bool = False
    ) -> None:
        """Starts a dataset of ids below `vocab_size`: uint16 below 65,500, else int32.

        Raises:
            UserError: the dataset exists and `overwrite` is false, or another process writes it.
            OSError: the folder cannot be written to.
        """
        if vocab_size < 1:
            raise ValueError(f"vocab_size must be positive, got {vocab_size}")
        self.prefix = dataset_prefix(prefix)
        if dataset_exists(self.prefix) and not overwrite:
            raise UserError(f"{self.prefix}.bin or .idx exists already; --overwrite replaces it")
        self.vocab_size = vocab_size
        self.dtype = id_type(vocab_size)
        self.document_count = 0
        self.token_count = 0
        self._sizes: list[npt.NDArray[np.int32]] = []
        self._partial = {
            suffix: dataset_file(self.prefix, suffix + ".partial") for suffix in _SUFFIXES
        }
        self.prefix.parent.mkdir(parents=True, exist_ok=True)
        self._stream: BinaryIO = _locked(self._partial[".bin"])

    def add(self, ids: npt.ArrayLike) -> None:
        """Appends one document of ids [tokens]."""
        ids = np.asarray(ids)
        self.add_ragged(ids.astype(np.int64) if ids.size == 0 else ids, np.array([0, ids.size]))

    def add_ragged(self, ids: Ids, offsets: npt.NDArray[np.int64]) -> None:
        """Appends documents: number i is ids[offsets[i]:offsets[i + 1]].

        Args:
            ids: [total] integers.
            offsets: [documents + 1] int64, from 0 to total, not falling.

        Raises:
            UserError: an id is not in the vocabulary, or a document is too long for the format.
            OSError: the disk is full, or cannot be written to.
        """
        sizes = np.diff(offsets)
        if ids.ndim != 1 or not np.issubdtype(ids.dtype, np.integer):
            raise TypeError(f"ids must be a row of integers, got {ids.dtype} {list(ids.shape)}")
        if offsets[0] != 0 or offsets[-1] != len(ids) or (sizes < 0).any():
            raise ValueError(f"offsets must rise from 0 to {len(ids)}")
        if len(sizes) and sizes.max() > _LONGEST:
            raise UserError(f"a document of {sizes.max()} tokens: the format holds {_LONGEST}")
        wrong = (ids < 0) | (ids >= self.vocab_size)
        if wrong.any():
            at = int(wrong.argmax())
            document = int(np.searchsorted(offsets, at, side="right")) - 1
            raise UserError(
                f"document {self.document_count + document}, token {at - int(offsets[document])}: "
                f"the id {ids[at]} is not below the vocabulary's size, {self.vocab_size}"
            )
        self._stream.write(np.ascontiguousarray(ids, dtype=self.dtype).data)
        self._sizes.append(sizes.astype(np.int32))
        self.document_count += len(sizes)
        self.token_count += len(ids)

    def __enter__(self) -> "IndexedWriter":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Finishes the dataset, or removes what was written after an error."""
        try:
            if kind is None:
                self._finish()
                return
        except BaseException:
            self._discard()
            raise
        self._discard()

    def _discard(self) -> None:
        for partial in self._partial.values():
            partial.unlink(missing_ok=True)
        # Closing flushes what a full disk could not take, and would fail a second time.
        with contextlib.suppress(OSError):
            self._stream.close()

    def _finish(self) -> None:
        synchronise(self._stream)
        with self._partial[".idx"].open("wb") as stream:
            self._write_index(stream)
            synchronise(stream)
        index = dataset_file(self.prefix, ".idx")
        index.unlink(missing_ok=True)
        dataset_file(self.prefix, ".range.json").unlink(missing_ok=True)
        self._partial[".bin"].replace(dataset_file(self.prefix, ".bin"))
        self._partial[".idx"].replace(index)
        self._stream.close()

    def _write_index(self, stream: BinaryIO) -> None:
        write_index(stream, self.vocab_size, self.document_count, lambda: self._sizes)


def write_index(
    stream: BinaryIO,
    vocab_size: int,
    documents: int,
    sizes: Callable[[], Iterable[npt.NDArray[np.int32]]],
) -> None:
    """Writes an index of documents that lie one after another, one sequence each.

    Args:
        stream: gets the index.
        vocab_size: decides the type of the ids; see id_type().
        documents: how many there are.
        sizes: gives their lengths in tokens, in order, in arrays of any length; called twice.

    Raises:
        OSError: the disk is full, or cannot be written to.
    """
    code = _type_code(vocab_size)
    stream.write(HEADER.pack(MAGIC, VERSION, code, documents, documents + 1))
    for part in sizes():
        stream.write(part.astype("<i4", copy=False).data)
    start = 0
    for part in sizes():
        ends = start + np.cumsum(part, dtype=np.int64) * DTYPES[code].itemsize
        starts = np.concatenate([[start], ends[:-1]]) if len(part) else ends
        stream.write(np.ascontiguousarray(starts, dtype="<i8").data)
        start = int(ends[-1]) if len(part) else start
    for begin in range(0, documents + 1, CHUNK):
        entries = np.arange(begin, min(begin + CHUNK, documents + 1), dtype="<i8")
        stream.write(entries.data)


def _type_code(vocab_size: int) -> int:
    return 8 if vocab_size < SMALL_VOCABULARY else 4


def id_type(vocab_size: int) -> np.dtype[Any]:
    """The type of ids below `vocab_size` in a file: uint16 below 65,500, else int32."""
    return DTYPES[_type_code(vocab_size)]


_SUFFIXES = (".bin", ".idx")


def _locked(path: Path) -> BinaryIO:
    """Opens a file for writing that no other process is writing, emptied of an older run's rest."""
    stream = path.open("ab")
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            stream.close()
            raise UserError(f"{path} is being written by another process") from None
        # A file system without locks: the check is worth having, not worth failing for.
    stream.truncate(0)
    return stream


def synchronise(stream: BinaryIO) -> None:
    """Returns when what was written is on the disk."""
    stream.flush()
    os.fsync(stream.fileno())
