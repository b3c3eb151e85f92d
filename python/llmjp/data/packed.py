"""Training samples packed across documents, in an order that needs no memory and no files.

One epoch is one stream: the split's documents in a shuffled order, one after another, each with
the end-of-text id that it carries. Sample i is tokens [i L, i L + L] of that stream, L + 1 of them
for L inputs and L targets, so that every token but the first is a target once. The samples are then
visited in a second shuffled order. Both orders are permutations computed from (seed, epoch) where
they are needed (llmjp.data.permutation): sample number n of a run is the same whoever asks,
whenever, on however many ranks, so that resuming needs one number.
"""

import functools
import hashlib
import os
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from llmjp.data.indexed import IndexedDataset
from llmjp.data.kept_arrays import kept_array
from llmjp.data.permutation import Permutation
from llmjp.errors import UserError

# Documents between two entries of the table that finds a token's document. A look-up adds up half
# of this many lengths; the table takes 8 / _STRIDE bytes a document.
_STRIDE = 256
_CHUNK = 1 << 18
# Computed pieces of the two orders that are kept: of the documents' at most _BLOCKS * _STRIDE
# documents (16 bytes each), of the samples' one, since samples are asked for one after another. A
# blend keeps as many for each fold of each source; in a large dataset a block hardly comes twice.
_BLOCKS = 256
_PLACES = 4096
# An epoch's table of so many documents and more is kept in the folder CACHE beside the data; _ORDER
# is in its name, for an order that is made in another way.
CACHE = "index-cache"
_KEPT = 1 << 20
_ORDER = "Feistel, SplitMix64 or MurmurHash3"
# The split must not move when the seed changes: a model continued under another seed would
# otherwise train on what it is validated with.
_SPLIT_SEED = 0
_STREAMS = {"split": 0, "documents": 1, "samples": 2}


class Documents:
    """The documents of several indexed datasets as one list."""

    def __init__(self, prefixes: Sequence[str | os.PathLike[str]]) -> None:
        """Opens the datasets.

        Raises:
            UserError: no dataset is given, or one is missing or damaged.
        """
        if not prefixes:
            raise UserError("no training data: name at least one dataset prefix")
        self.datasets = [IndexedDataset(prefix) for prefix in prefixes]
        counts = [len(dataset) for dataset in self.datasets]
        self._ends = np.cumsum(counts, dtype=np.int64)

    def __len__(self) -> int:
        """Number of documents."""
        return int(self._ends[-1])

    @property
    def token_count(self) -> int:
        """Tokens of all documents together."""
        return sum(dataset.token_count for dataset in self.datasets)

    def digest(self) -> str:
        """A few digits that other data, or the same in another order, would hardly have."""
        digest = hashlib.blake2b(digest_size=6)
        for dataset in self.datasets:
            digest.update(dataset.digest())
        return digest.hexdigest()

    def check_vocabulary(self, vocab_size: int) -> None:
        """IndexedDataset.check_vocabulary() of each dataset."""
        for dataset in self.datasets:
            dataset.check_vocabulary(vocab_size)

    def sizes(self, documents: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Tokens of the documents with these numbers, [n]."""
        if len(self.datasets) == 1:
            return self.datasets[0].document_sizes[documents].astype(np.int64)
        owners = np.searchsorted(self._ends, documents, side="right")
        sizes = np.empty(len(documents), np.int64)
        for owner in np.unique(owners):
            chosen = owners == owner
            dataset = self.datasets[owner]
            sizes[chosen] = dataset.document_sizes[documents[chosen] - self._first(owner)]
        return sizes

    def __getitem__(self, document: int) -> npt.NDArray[np.integer]:
        """The ids of one document."""
        owner = int(np.searchsorted(self._ends, document, side="right"))
        return self.datasets[owner][document - self._first(owner)]

    def _first(self, owner: int) -> int:
        return int(self._ends[owner]) - len(self.datasets[owner])


def split_ranges(documents: int, weights: Sequence[float]) -> list[tuple[int, int]]:
    """Shares of `documents` in proportion to `weights`, as ranges [first, end) one after another.

    A positive weight gets at least one document while there are enough for all; a zero gets none.

    Raises:
        ValueError: a weight is negative or all are zero.
    """
    if any(weight < 0 for weight in weights) or not sum(weights) > 0:
        raise ValueError(f"split weights must not be negative nor all zero, got {list(weights)}")
    wanted = [weight > 0 for weight in weights]
    spare = max(documents - sum(wanted), 0)  # beyond the one document each
    bounds = np.round(np.cumsum([0, *weights]) / sum(weights) * spare).astype(int)
    counts = np.diff(bounds)
    for index in range(len(weights)):
        if wanted[index] and counts.sum() < documents:
            counts[index] += 1
    ends = np.cumsum(counts)
    return [(int(end - count), int(end)) for end, count in zip(ends, counts, strict=True)]


class PackedDataset:
    """Samples of seq_length + 1 ids, numbered from 0 without end: epoch after epoch.

    Attributes:
        seq_length: L, inputs of a sample.
        document_count: documents of this split.
        token_count: tokens of this split, all documents together.
        samples_per_epoch: (token_count - 1) // L; up to L tokens at the end of an epoch's stream
            are left out, others each epoch.
    """

    def __init__(
        self,
        documents: Documents,
        seq_length: int,
        seed: int,
        *,
        split: tuple[float, ...] = (1.0,),
        part: int = 0,
        folds: int = 1,
        fold: int = 0,
        source: int = 0,
    ) -> None:
        """Takes part number `part` of the documents split in the proportions of `split`.

        Which documents belong to a part, and to a fold of it, depends on their number alone, not on
        `seed`: they are drawn from all over the data, in whatever order its sources lie there.

        Args:
            documents: the data.
            seq_length: L, at least 1.
            seed: decides the order of documents and samples.
            split: proportions such as (99, 1).
            part: which of them: 0 is the first.
            folds: the part is divided into so many of equally many documents, none in two.
            fold: which of them: 0 is the first.
            source: a number that decides the order too, for data that are drawn from side by side.

        Raises:
            UserError: the part holds fewer than L + 1 tokens.
            ValueError: an argument is out of range.
        """
        if seq_length < 1:
            raise ValueError(f"seq_length must be positive, got {seq_length}")
        self.seq_length = seq_length
        self.documents = documents
        self._key = (seed, source, fold)
        begin, end = split_ranges(len(documents), split)[part]
        first, last = split_ranges(end - begin, (1,) * folds)[fold]
        self._first = begin + first
        self.document_count = last - first
        self._split = Permutation(len(documents), (_SPLIT_SEED, 0, _STREAMS["split"]))
        self._epoch = -1
        self._order = Permutation(0, (0,))
        self._samples = Permutation(0, (0,))
        self._table = np.zeros(0, np.int64)
        self._block = functools.lru_cache(_BLOCKS)(self._compute_block)
        self._starts = functools.lru_cache(1)(self._compute_starts)
        self.token_count = self._lay_out(0)
        self.samples_per_epoch = max(self.token_count - 1, 0) // seq_length
        if self.samples_per_epoch == 0:
            raise UserError(
                f"{self.token_count} tokens in {self.document_count} documents do not fill one "
                f"sample of {seq_length} + 1: take a smaller seq_length or more data"
            )
        self._samples = self._sample_order(0)

    def __getitem__(self, sample: int) -> npt.NDArray[np.int64]:
        """Sample number `sample` of the run: [seq_length + 1] int64.

        Raises:
            IndexError: the number is negative.
        """
        if sample < 0:
            raise IndexError(f"samples are numbered from 0, asked for {sample}")
        epoch, place = divmod(sample, self.samples_per_epoch)
        if epoch != self._epoch:
            self._lay_out(epoch)
            self._samples = self._sample_order(epoch)
        start = int(self._starts(epoch, place // _PLACES)[place % _PLACES])
        return self._read(start, self.seq_length + 1)

    def batch(self, first: int, count: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Samples first to first + count - 1 as (inputs, labels), each [count, seq_length] int64.

        labels[i, t] is the token that follows inputs[i, t].
        """
        rows = np.stack([self[first + index] for index in range(count)])
        return rows[:, :-1], rows[:, 1:]

    def _lay_out(self, epoch: int) -> int:
        """Orders the documents of an epoch and tables their ends; returns the tokens of all."""
        self._epoch = epoch
        self._order = Permutation(self.document_count, (*self._key, epoch, _STREAMS["documents"]))
        if self.document_count < _KEPT:
            table = self._compute_table()
        else:
            data = self.documents
            what = (data.digest(), len(data), self._first, self.document_count, *self._key, epoch)
            name = hashlib.blake2b(
                repr((_ORDER, _STRIDE, what)).encode(), digest_size=12
            ).hexdigest()
            folder = data.datasets[0].prefix.parent / CACHE
            table = kept_array(folder / f"{name}.npy", self._compute_table)
        self._table = table[:-1]
        return int(table[-1])

    def _compute_table(self) -> npt.NDArray[np.int64]:
        """[i]: tokens before document i * _STRIDE of the epoch; at the end those of all."""
        count = self.document_count

        parts = [np.zeros(1, np.int64)]
        total = 0
        for begin in range(0, count, _CHUNK):
            sizes = self.documents.sizes(self._numbers(begin, min(begin + _CHUNK, count)))
            ends = total + np.cumsum(sizes)
            total = int(ends[-1])
            parts.append(ends[_STRIDE - 1 :: _STRIDE].copy())  # no view: it would keep all of ends
        return np.concatenate([*parts, [total]])

    def _sample_order(self, epoch: int) -> Permutation:
        return Permutation(self.samples_per_epoch, (*self._key, epoch, _STREAMS["samples"]))

    def _compute_starts(self, epoch: int, piece: int) -> npt.NDArray[np.int64]:
        """First token of each sample, for places piece * _PLACES and on; `epoch` is the cache's."""
        end = min((piece + 1) * _PLACES, self.samples_per_epoch)
        return self._samples(np.arange(piece * _PLACES, end)) * self.seq_length

    def _compute_block(
        self, epoch: int, block: int
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Numbers in the data of up to _STRIDE documents, and their ends counted from the block's
        first token; `epoch` is the cache's."""
        end = min((block + 1) * _STRIDE, self.document_count)
        numbers = self._numbers(block * _STRIDE, end)
        return numbers, np.cumsum(self.documents.sizes(numbers))

    def _numbers(self, begin: int, end: int) -> npt.NDArray[np.int64]:
        """Numbers in the data of documents begin to end - 1 of the epoch's order."""
        places = self._order(np.arange(begin, end))
        return self._split(places + self._first)

    def _read(self, start: int, length: int) -> npt.NDArray[np.int64]:
        """Tokens [start, start + length) of the epoch's stream."""
        sample = np.empty(length, np.int64)
        first = int(np.searchsorted(self._table, start, side="right")) - 1
        skipped = start - int(self._table[first])
        filled = 0
        for block in range(first, -(-self.document_count // _STRIDE)):
            numbers, ends = self._block(self._epoch, block)
            at = int(np.searchsorted(ends, skipped, side="right"))
            skipped -= int(ends[at - 1]) if at > 0 else 0
            for number in numbers[at:]:
                ids = self.documents[int(number)][skipped : skipped + length - filled]
                sample[filled : filled + len(ids)] = ids
                filled += len(ids)
                skipped = 0
                if filled == length:
                    return sample
        raise IndexError(f"tokens {start} to {start + length} are not in the stream")
