"""Checks a dataset: index against data, ids, end tokens, and ids against the input's text."""

import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from llmjp.data.documents import Reading
from llmjp.data.indexed import CHUNK, Ids, IndexedDataset, dataset_file, dataset_prefix
from llmjp.data.indexed_writer import id_type
from llmjp.data.inputs import InputFile
from llmjp.data.segments import IDS, PARTS, SIZES, Encoder, Job, Segment, plan
from llmjp.data.workers import Workers
from llmjp.errors import UserError
from llmjp_ext import Tokenizer


@dataclass(frozen=True)
class Verified:
    """What was found to be right.

    Attributes:
        documents, tokens: in the dataset; all were checked for themselves.
        encoded: documents that were also encoded anew from the input, and were equal.
    """

    documents: int
    tokens: int
    encoded: int


class _Comparison:
    """A dataset whose documents lie one after another in the file."""

    def __init__(self, prefix: Path) -> None:
        """Opens the dataset, which checks the index for itself.

        Raises:
            UserError: a file is missing, damaged, or holds what is not in the other.
        """
        self.path = dataset_file(prefix, ".bin")
        self.dataset = IndexedDataset(prefix)
        self.sizes = self.dataset.sizes
        self.tokens: Ids = np.zeros(0, self.dataset.dtype)
        if self.path.stat().st_size:
            self.tokens = np.memmap(self.path, self.dataset.dtype, "r")
        if self.dataset.token_count != len(self.tokens):
            raise UserError(
                f"{self.path} holds {len(self.tokens):,} ids, its index counts "
                f"{self.dataset.token_count:,}"
            )
        if len(self.dataset) != len(self.sizes):
            raise UserError(f"{prefix}.idx: {len(self.dataset):,} documents of several sequences")

    def check_ids(self, vocab_size: int, end: int | None) -> None:
        """Every id is in the vocabulary, and every document ends with the end token.

        Raises:
            UserError: something is not so; the message names the document.
        """
        if self.dataset.dtype != id_type(vocab_size):
            raise UserError(
                f"{self.path} holds {self.dataset.dtype} ids, a vocabulary of {vocab_size:,} has "
                f"{id_type(vocab_size)}"
            )
        token = 0
        width = self.dataset.dtype.itemsize
        for first in range(0, len(self.sizes), CHUNK):
            sizes = self.sizes[first : first + CHUNK].astype(np.int64)
            ends = token + np.cumsum(sizes)
            apart = self.dataset.starts[first : first + CHUNK] != (ends - sizes) * width
            if apart.any():
                at = first + int(apart.argmax())
                raise UserError(f"{self.path}: document {at:,} does not follow the one before it")
            if end is not None:
                wrong = (sizes == 0) | (self.tokens[np.maximum(ends, 1) - 1] != end)
                if wrong.any():
                    at = first + int(wrong.argmax())
                    raise UserError(
                        f"{self.path}: document {at:,} does not end with the end token, {end}"
                    )
            token = int(ends[-1])
        for first in range(0, len(self.tokens), CHUNK):
            chunk = self.tokens[first : first + CHUNK]
            outside = (chunk < 0) | (chunk >= vocab_size)
            if outside.any():
                place = first + int(outside.argmax())
                raise UserError(
                    f"{self.path}: document {self._document(place):,} has the id "
                    f"{self.tokens[place]}, the vocabulary has {vocab_size:,} ids"
                )

    def _document(self, token: int) -> int:
        """The document of a token, by its place in the file."""
        ends = np.cumsum(self.sizes, dtype=np.int64)
        return int(np.searchsorted(ends, token, side="right"))

    def check_segment(
        self,
        document: int,
        token: int,
        sizes: npt.NDArray[np.int32],
        ids: Ids,
    ) -> int:
        """Documents are those that were encoded anew; gives the number of their tokens.

        Args:
            document, token: where the first of them should stand.
            sizes: of each; below zero for one that was not encoded.
            ids: of those that were.

        Raises:
            UserError: they differ; the message names the first document that does.
        """
        stored = self.sizes[document : document + len(sizes)]
        if len(stored) < len(sizes):
            raise UserError(f"{self.path} holds {len(self.sizes):,} documents, the input more")
        known = sizes >= 0
        differs = known & (stored != sizes)
        if differs.any():
            raise _Different(document + int(differs.argmax()))
        ends = np.cumsum(stored, dtype=np.int64)
        keep = np.repeat(known, stored)
        found = self.tokens[token : token + int(ends[-1])] if len(ends) else self.tokens[:0]
        wrong = found[keep] != ids
        if wrong.any():
            place = int(np.flatnonzero(keep)[int(wrong.argmax())])
            raise _Different(document + int(np.searchsorted(ends, place, side="right")))
        return len(found)


class _Different(Exception):
    """A document's number."""

    def __init__(self, document: int) -> None:
        super().__init__(document)
        self.document = document


def verify(
    prefix: str | os.PathLike[str],
    tokenizer: Tokenizer,
    end: int | None,
    files: Sequence[InputFile] = (),
    *,
    reading: Reading | None = None,
    share: float = 0.01,
    workers: int = 1,
) -> Verified:
    """Checks a dataset; returns only if all is right.

    All of the index and all ids are read. From the input, all records are read, and a share of the
    documents is encoded anew and compared; records that give no text are passed over.

    Args:
        prefix: the dataset's.
        tokenizer: that it was made with.
        end: the id that ends each document; None if there is none.
        files: the inputs, in order; none checks the dataset for itself.
        reading: as it was made.
        share: of the documents, 0 to 1, chosen evenly over the input.
        workers: processes.

    Raises:
        UserError: something is wrong; the message names what, and the first document.
        OSError: a file cannot be read, or the folder has no room for what is compared.
    """
    prefix = dataset_prefix(prefix)
    comparison = _Comparison(prefix)
    comparison.check_ids(tokenizer.vocab_size, end)
    encoded = 0
    if files:
        # Beside the dataset, where there is room for a dataset.
        with tempfile.TemporaryDirectory(dir=prefix.parent, prefix=f".{prefix.name}-") as folder:
            tasks = plan(list(files), reading or Reading())
            job = Job(
                *(list(files), tasks, reading or Reading(), Encoder(tokenizer, end)),
                folder=Path(folder),
                stop_at_rejected=False,
                share=share,
            )
            encoded = _compare(comparison, job, workers)
    return Verified(len(comparison.sizes), len(comparison.tokens), encoded)


def _compare(comparison: _Comparison, job: Job, workers: int) -> int:
    waiting: dict[tuple[int, int], Segment] = {}
    turn = (0, 0)
    document = token = encoded = 0
    total = sum(file.size for file in job.files)
    shown = sys.stderr.isatty()
    with (
        Workers(job, [(task, 0, None) for task in range(len(job.tasks))], workers) as pool,
        tqdm(
            desc="verifying", total=total, unit="B", unit_scale=True, disable=not shown
        ) as progress,
    ):
        for finished in pool.segments():
            waiting[finished.task, finished.number] = finished
            while segment := waiting.pop(turn, None):
                paths = [segment.file(job.folder, part) for part in PARTS]
                sizes, ids = _content(job, segment, comparison.dataset.dtype)
                try:
                    token += comparison.check_segment(document, token, sizes, ids)
                except _Different as found:
                    names = ", ".join(str(job.files[file].path) for file, _ in segment.lines)
                    raise UserError(
                        f"{comparison.path}: document {found.document:,}, counted from 0, is not "
                        f"what the input gives there ({names})"
                    ) from None
                for path in paths:
                    path.unlink(missing_ok=True)
                document += len(sizes)
                encoded += int((sizes >= 0).sum())
                progress.update(segment.input_bytes)
                turn = (turn[0] + 1, 0) if segment.last else (turn[0], turn[1] + 1)
    if document != len(comparison.sizes):
        raise UserError(
            f"{comparison.path} holds {len(comparison.sizes):,} documents, the input {document:,}"
        )
    return encoded


def _content(
    job: Job, segment: Segment, dtype: np.dtype[np.integer]
) -> tuple[npt.NDArray[np.int32], Ids]:
    """A segment's sizes and ids."""
    sizes_path, ids_path = segment.file(job.folder, SIZES), segment.file(job.folder, IDS)
    sizes = np.fromfile(sizes_path, np.int32) if segment.documents else np.zeros(0, np.int32)
    ids = np.fromfile(ids_path, dtype) if segment.tokens else np.zeros(0, dtype)
    return sizes, ids
