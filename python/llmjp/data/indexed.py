"""Megatron's indexed datasets: token ids in `PREFIX.bin`, where each document lies in `PREFIX.idx`.

`.bin` holds the ids of all sequences one after another. `.idx` is little-endian throughout:

    offset  bytes  content
    0       9      the magic b"MMIDIDX\\0\\0"
    9       8      u64, the format's version: 1
    17      1      u8, the code of the ids' type (see DTYPES)
    18      8      u64, n: number of sequences
    26      8      u64, m: length of the list of documents
    34      4 n    int32, length of each sequence in tokens
    34+4n   8 n    int64, where each sequence starts in .bin, in bytes
    34+12n  8 m    int64, the first sequence of each document, then n: m is the documents plus one

The format is that of Megatron-LM, Megatron-DeepSpeed and their descendants. Some writers appended
an end-of-text id to each document without counting it; a reader must therefore trust lengths and
positions alone, and so does this one: bytes of `.bin` that no sequence covers are nobody's.
"""

import hashlib
import json
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from llmjp.data.files import keep
from llmjp.errors import UserError

MAGIC = b"MMIDIDX\0\0"
VERSION = 1
HEADER = struct.Struct("<9sQBQQ")
SMALL_VOCABULARY = 65500  # below it ids are uint16: the limit that Megatron's writers use
DTYPES: dict[int, np.dtype[Any]] = {
    1: np.dtype("<u1"),
    2: np.dtype("<i1"),
    3: np.dtype("<i2"),
    4: np.dtype("<i4"),
    5: np.dtype("<i8"),
    8: np.dtype("<u2"),
}
_FLOAT_CODES = (6, 7)
_DIGESTED = 256  # places that a digest looks at, and elements that it takes at each
CHUNK = 1 << 20  # elements looked at or written at a time: bounds memory, not speed

Ids = npt.NDArray[np.integer[Any]]


def dataset_prefix(path: str | os.PathLike[str]) -> Path:
    """The prefix that a user meant: `.bin` or `.idx` at the end is taken off."""
    path = Path(path)
    return path.with_suffix("") if path.suffix in (".bin", ".idx") else path


def dataset_file(prefix: Path, suffix: str) -> Path:
    """One of a dataset's files."""
    return prefix.with_name(prefix.name + suffix)


def dataset_exists(prefix: str | os.PathLike[str]) -> bool:
    """Whether either file of a dataset is there."""
    prefix = dataset_prefix(prefix)
    return dataset_file(prefix, ".bin").exists() or dataset_file(prefix, ".idx").exists()


class IndexedDataset:
    """The documents of an indexed dataset, memory-mapped: opening reads the index alone.

    Attributes:
        prefix: the path without `.bin` and `.idx`.
        dtype: type of the ids in the file, little-endian.
        sizes: [sequences] int32, tokens of each sequence.
        starts: [sequences] int64, where each sequence starts in `.bin`, in bytes.
        document_sizes: [documents] integer, tokens of each document.
    """

    def __init__(self, prefix: str | os.PathLike[str]) -> None:
        """Opens and validates `prefix`.idx and `prefix`.bin.

        Raises:
            UserError: a file is missing, or is not a whole and consistent indexed dataset.
            OSError: a file cannot be read.
        """
        self.prefix = dataset_prefix(prefix)
        self._index_path = dataset_file(self.prefix, ".idx")
        self._bin_path = dataset_file(self.prefix, ".bin")
        for path, other in ((self._index_path, ".bin"), (self._bin_path, ".idx")):
            if not path.is_file():
                raise UserError(
                    f"{path} does not exist: a dataset is PREFIX{path.suffix} and PREFIX{other}, "
                    "as 'llmjp tokenize --output PREFIX' writes them"
                )
        self.dtype, sequences, entries = self._read_header()
        index = np.memmap(self._index_path, dtype=np.uint8, mode="r")
        start = HEADER.size
        self.sizes: npt.NDArray[np.int32] = np.frombuffer(index, "<i4", sequences, start)
        start += 4 * sequences
        self.starts: npt.NDArray[np.int64] = np.frombuffer(index, "<i8", sequences, start)
        start += 8 * sequences
        self._documents: npt.NDArray[np.int64] = np.frombuffer(index, "<i8", entries, start)
        self._check_positions()
        self._check_documents()
        self._tokens: Ids = np.zeros(0, self.dtype)
        if self._bin_path.stat().st_size >= self.dtype.itemsize:
            self._tokens = np.memmap(self._bin_path, dtype=self.dtype, mode="r")
        self.document_sizes: Ids = self.sizes
        if not self._single:
            ends = np.concatenate([[0], np.cumsum(self.sizes, dtype=np.int64)])
            self.document_sizes = np.diff(ends[self._documents])

    def _read_header(self) -> tuple[np.dtype[Any], int, int]:
        path = self._index_path
        with path.open("rb") as stream:
            header = stream.read(HEADER.size)
        if not header.startswith(MAGIC):
            raise UserError(f"{path} is not a Megatron index: it does not start with {MAGIC!r}")
        if len(header) < HEADER.size:
            raise UserError(f"{path} is cut off: {len(header)} bytes, the header has {HEADER.size}")
        _, version, code, sequences, entries = HEADER.unpack(header)
        if version != VERSION:
            raise UserError(f"{path} has format version {version}; {VERSION} is supported")
        if code not in DTYPES:
            kind = "floating-point data" if code in _FLOAT_CODES else f"the unknown type {code}"
            raise UserError(f"{path} says {kind}; token ids have the type codes {sorted(DTYPES)}")
        expected = HEADER.size + 12 * sequences + 8 * entries
        length = path.stat().st_size
        if length != expected:
            raise UserError(
                f"{path} has {length} bytes, but {sequences} sequences and {entries} document "
                f"entries take {expected}: the file is damaged or cut off"
            )
        return DTYPES[code], sequences, entries

    def _read_index(self, dtype: str, offset: int, count: int) -> npt.NDArray[Any]:
        """A piece of the index, read rather than mapped: checking it all leaves nothing behind."""
        return np.fromfile(self._index_path, dtype, count, offset=offset)

    def _check_positions(self) -> None:
        """Every sequence lies within .bin, at a whole element."""
        width = self.dtype.itemsize
        length = self._bin_path.stat().st_size
        count = len(self.sizes)
        for begin in range(0, count, CHUNK):
            part = min(CHUNK, count - begin)
            sizes = self._read_index("<i4", HEADER.size + 4 * begin, part).astype(np.int64)
            starts = self._read_index("<i8", HEADER.size + 4 * count + 8 * begin, part)
            wrong = (sizes < 0) | (starts < 0) | (starts % width != 0)
            if wrong.any():
                at = int(wrong.argmax())
                raise UserError(
                    f"{self._index_path} is damaged: sequence {begin + at} has {sizes[at]} tokens "
                    f"at byte {starts[at]}, with {width} bytes a token"
                )
            outside = starts > length - sizes * width
            if outside.any():
                at = int(outside.argmax())
                raise UserError(
                    f"{self._bin_path} has {length} bytes, but sequence {begin + at} ends at byte "
                    f"{starts[at] + sizes[at] * width}: the file is cut off or not the index's own"
                )

    def _check_documents(self) -> None:
        """The list of documents covers the sequences in order."""
        entries = self._documents
        path = self._index_path
        if len(entries) == 0 or entries[0] != 0 or entries[-1] != len(self.sizes):
            raise UserError(
                f"{path} is damaged: its documents do not cover its {len(self.sizes)} sequences"
            )
        # One sequence a document is what nearly every dataset has. As many entries as sequences is
        # not enough to know: a document may be empty and another hold two.
        self._single = len(entries) == len(self.sizes) + 1
        offset = HEADER.size + 12 * len(self.sizes)
        for begin in range(0, len(entries), CHUNK):
            part = min(CHUNK + 1, len(entries) - begin)
            chunk = self._read_index("<i8", offset + 8 * begin, part)
            falls = np.diff(chunk) < 0
            if falls.any():
                at = begin + int(falls.argmax())
                raise UserError(f"{path} is damaged: document {at} ends before it starts")
            self._single = self._single and np.array_equal(chunk, np.arange(begin, begin + part))

    def __len__(self) -> int:
        """Number of documents."""
        return len(self._documents) - 1

    def __getitem__(self, document: int) -> Ids:
        """The ids of one document, [tokens], of type `dtype`; read-only where it is one sequence.

        Raises:
            IndexError: there is no such document.
        """
        if not 0 <= document < len(self):
            raise IndexError(f"{self.prefix} has {len(self)} documents, asked for {document}")
        if self._single:
            return self._sequence(document)
        first, last = int(self._documents[document]), int(self._documents[document + 1])
        parts = [self._sequence(sequence) for sequence in range(first, last)]
        return np.concatenate(parts) if parts else np.zeros(0, self.dtype)

    def _sequence(self, sequence: int) -> Ids:
        start = int(self.starts[sequence]) // self.dtype.itemsize
        return self._tokens[start : start + int(self.sizes[sequence])]

    def __iter__(self) -> Iterator[Ids]:
        """The documents in order."""
        return (self[document] for document in range(len(self)))

    @property
    def token_count(self) -> int:
        """Tokens of all documents together."""
        return int(self.sizes.sum(dtype=np.int64))

    def digest(self) -> bytes:
        """A digest of the lengths, and of ids from all over the data, that reads little of them."""
        digest = hashlib.blake2b(self.dtype.str.encode(), digest_size=16)
        for values in (self.document_sizes, self._tokens):
            digest.update(len(values).to_bytes(8, "little"))
            step = max(len(values) // _DIGESTED, 1)
            for begin in range(0, len(values), step):
                digest.update(values[begin : begin + _DIGESTED].tobytes())
        return digest.digest()

    def check_vocabulary(self, vocab_size: int) -> None:
        """Fails unless 0 <= id < vocab_size for every id; the range found is kept beside the files.

        The first call reads all of `.bin`; later ones read `PREFIX.range.json` while `.bin` is
        unchanged.

        Raises:
            UserError: an id is outside; the message names the dataset, the id and the vocabulary.
        """
        self.keep_id_range(*(found := self.id_range()))
        self.check_range(*found, vocab_size)

    def check_range(self, smallest: int, largest: int, vocab_size: int) -> None:
        """check_vocabulary() of a range that id_range() gave."""
        if smallest < 0:
            raise UserError(f"{self.prefix} holds the negative id {smallest}: it is damaged")
        if largest >= vocab_size:
            raise UserError(
                f"{self.prefix} holds the id {largest}, but the vocabulary has {vocab_size} ids "
                f"(0 to {vocab_size - 1}): it was made with another tokenizer"
            )

    @property
    def bin_bytes(self) -> int:
        """Size of .bin."""
        return self._bin_path.stat().st_size

    def known_range(self) -> tuple[int, int] | None:
        """The range of ids that is kept beside the files; None if there is none of this .bin."""
        try:
            text = dataset_file(self.prefix, ".range.json").read_text(encoding="utf-8")
            known = json.loads(text)
            if known["of"] == _range_key(self._bin_path, self.dtype):
                return int(known["smallest"]), int(known["largest"])
        except (OSError, ValueError, KeyError, TypeError):
            pass
        return None

    def id_range(self, part: int = 0, parts: int = 1) -> tuple[int, int]:
        """Smallest id, at most 0, and largest, -1 without any, of .bin or of a part of it.

        Args:
            part: which of as many equal parts of .bin; all of it where its range is known.
            parts: into how many it is cut, so that as many processes can read one each.
        """
        known = self.known_range()
        if known is not None:
            return known
        count = len(self._tokens)
        smallest, largest = 0, -1
        for begin in range(count * part // parts, end := count * (part + 1) // parts, CHUNK):
            chunk = self._tokens[begin : min(begin + CHUNK, end)]
            smallest = min(smallest, int(chunk.min()))
            largest = max(largest, int(chunk.max()))
        return smallest, largest

    def keep_id_range(self, smallest: int, largest: int) -> None:
        """Writes the range of all ids beside the dataset; a read-only folder goes without."""
        if self.known_range() != (smallest, largest):
            text = range_entry(self._bin_path, self.dtype, smallest, largest)
            keep(dataset_file(self.prefix, ".range.json"), lambda stream: stream.write(text))


def range_entry(path: Path, dtype: np.dtype[Any], smallest: int, largest: int) -> bytes:
    """What PREFIX.range.json holds for the ids' file `path`, under whatever name it lies now."""
    entry = {"of": _range_key(path, dtype), "smallest": smallest, "largest": largest}
    return json.dumps(entry).encode()


def _range_key(path: Path, dtype: np.dtype[Any]) -> dict[str, Any]:
    """What a kept range is of."""
    status = path.stat()
    return {"bytes": status.st_size, "modified_ns": status.st_mtime_ns, "type": dtype.str}
