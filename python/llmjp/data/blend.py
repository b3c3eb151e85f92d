"""Training data of a run: sources blended by weight, in folds one after another.

Each source's training documents are divided into the same number of folds. A fold of the blend is
that fold of every source, dealt out in proportion to the weights (llmjp.data.interleaving), and is
as long as the samples that all its sources have together: without weights it holds each sample
once. When all folds have been visited they come again, with their documents and samples in another
order; a source goes on where its last visit of the fold ended, so that a light one gives what it
has not given yet. What a sample is, llmjp.data.packed says. Sample number n of a run is found from
n alone, whatever was asked for before, and is the same on any number of processes.
"""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from llmjp.data.interleaving import Interleaving
from llmjp.data.packed import Documents, PackedDataset
from llmjp.data.sources import Source
from llmjp.errors import UserError

Row = npt.NDArray[np.int64]


class OpenSource(NamedTuple):
    """A source with its documents at hand."""

    source: Source
    documents: Documents


def open_sources(sources: Sequence[Source]) -> list[OpenSource]:
    """Opens the datasets of sources.

    Raises:
        UserError: there is no source, only some have weights, or a dataset is missing or damaged.
    """
    return [OpenSource(source, Documents(source.prefixes)) for source in sources]


class Fold:
    """One fold of all sources, dealt out in proportion to their weights.

    Attributes:
        parts: the fold of each source.
        samples: how many samples the fold has; a visit takes as many.
        taken: how many of them are each source's.
    """

    def __init__(self, sources: Sequence[OpenSource], parts: Sequence[PackedDataset]) -> None:
        self.parts = list(parts)
        self.samples = sum(part.samples_per_epoch for part in parts)
        self._dealt = Interleaving(
            [
                part.samples_per_epoch if source.source.weight is None else source.source.weight
                for source, part in zip(sources, parts, strict=True)
            ]
        )
        self.taken = self._dealt.counts(self.samples)

    def sample(self, visit: int, place: int) -> Row:
        """Sample number `place` of the visit with this number, [seq_length + 1]."""
        owner, number = self._dealt[place]
        return self.parts[owner][visit * self.taken[owner] + number]


class Blend:
    """Samples of seq_length + 1 ids, numbered from 0 without end.

    Attributes:
        seq_length: L, inputs of a sample.
        sources: what is blended.
        folds: those that are visited, in order.
        document_count, token_count: of all folds that are visited.
        samples_per_epoch: samples of one visit of all these folds.
    """

    def __init__(
        self,
        sources: Sequence[OpenSource],
        seq_length: int,
        seed: int,
        *,
        split: tuple[float, ...] = (1.0,),
        folds: int = 1,
        chosen: Sequence[int] = (),
    ) -> None:
        """Takes the first part of each source's documents, split in the proportions of `split`.

        Args:
            sources: either all have a weight or none has.
            seq_length: L, at least 1.
            seed: decides the order of documents and samples.
            split: proportions such as (99, 1).
            folds: into how many folds each source's training documents are divided.
            chosen: those to visit, in order; none: all.

        Raises:
            UserError: a fold of a source holds fewer than L + 1 tokens.
        """
        self.seq_length = seq_length
        self.sources = list(sources)
        self.folds = []
        for fold in chosen or range(folds):
            parts = []
            for index, (source, documents) in enumerate(sources):
                try:
                    part = PackedDataset(
                        documents,
                        seq_length,
                        seed,
                        split=split,
                        folds=folds,
                        fold=fold,
                        source=index,
                    )
                except UserError as error:
                    place = f"source {source.name}" + (f", fold {fold}" if folds > 1 else "")
                    raise UserError(f"{place}: {error}") from None
                parts.append(part)
            self.folds.append(Fold(sources, parts))
        parts = [part for fold in self.folds for part in fold.parts]
        self.document_count = sum(part.document_count for part in parts)
        self.token_count = sum(part.token_count for part in parts)
        self._ends = list(itertools.accumulate(fold.samples for fold in self.folds))
        self.samples_per_epoch = self._ends[-1]

    def __getitem__(self, sample: int) -> Row:
        """Sample number `sample` of the run: [seq_length + 1] int64.

        Raises:
            IndexError: the number is negative.
        """
        if sample < 0:
            raise IndexError(f"samples are numbered from 0, asked for {sample}")
        visit, place = divmod(sample, self.samples_per_epoch)
        index = next(index for index, end in enumerate(self._ends) if place < end)
        fold = self.folds[index]
        return fold.sample(visit, place - (self._ends[index] - fold.samples))

    def report(self) -> list[str]:
        """A line for each source: what one epoch takes of it."""
        lines = []
        for index, (source, _) in enumerate(self.sources):
            held = sum(fold.parts[index].samples_per_epoch for fold in self.folds)
            taken = sum(fold.taken[index] for fold in self.folds)
            lines.append(
                f"{source.name}: {taken / self.samples_per_epoch:.2%} of the samples; "
                f"{taken:,} of its {held:,}, {taken / held:.2f} epochs of it"
            )
        return lines


class Course:
    """What a run trains on: a blend, and behind one epoch of it another blend, if there is one.

    Attributes:
        seq_length: L, inputs of a sample.
        blends: one or two.
        samples: of one epoch of each blend; after these the last blend goes on.
        document_count, token_count: of all blends.
    """

    def __init__(self, blends: Sequence[Blend]) -> None:
        """Args:
        blends: one or two, of the same seq_length.
        """
        self.blends = list(blends)
        self.seq_length = blends[0].seq_length
        self.samples = sum(blend.samples_per_epoch for blend in blends)
        self.document_count = sum(blend.document_count for blend in blends)
        self.token_count = sum(blend.token_count for blend in blends)

    def __getitem__(self, sample: int) -> Row:
        """Sample number `sample` of the run: [seq_length + 1] int64."""
        first = self.blends[0].samples_per_epoch
        if len(self.blends) == 1 or sample < first:
            return self.blends[0][sample]
        return self.blends[1][sample - first]

    def batch(self, first: int, count: int) -> tuple[Row, Row]:
        """Samples first to first + count - 1 as (inputs, labels), each [count, seq_length] int64.

        labels[i, t] is the token that follows inputs[i, t].
        """
        rows = np.stack([self[first + index] for index in range(count)])
        return rows[:, :-1], rows[:, 1:]

    def documents(self) -> list[Documents]:
        """The documents of each source."""
        return [source.documents for blend in self.blends for source in blend.sources]

    def describe(self) -> list[dict[str, str]]:
        """What decides the samples, in words: an entry for each source of each blend, by name."""
        return [
            {source.name: _description(source, documents) for source, documents in blend.sources}
            for blend in self.blends
        ]

    def report(self) -> list[str]:
        """Lines on each source where there are several, on folds, and on what follows."""
        lines = []
        for blend, when in zip(self.blends, ("", "at last "), strict=False):
            if len(blend.sources) > 1 or when:
                lines += [when + line for line in blend.report()]
            if len(blend.folds) > 1:
                counts = ", ".join(f"{fold.samples:,}" for fold in blend.folds)
                lines.append(f"{len(blend.folds)} folds of {counts} samples")
        return lines


def _description(source: Source, documents: Documents) -> str:
    weight = "by size" if source.weight is None else str(source.weight)
    return (
        f"weight {weight}, {len(documents):,} documents of {documents.token_count:,} tokens, "
        f"digest {documents.digest()}"
    )


class Validation(NamedTuple):
    """Validation samples of one source.

    Attributes:
        name: the source's.
        share: of this loss in that of the blend; all shares add up to 1.
        data: the samples.
    """

    name: str
    share: float
    data: PackedDataset


def validation_data(
    sources: Sequence[OpenSource], seq_length: int, seed: int, split: tuple[float, ...] | None
) -> list[Validation]:
    """What each source is validated with; none where it has less than a sample of it.

    Args:
        sources: those of training, or others.
        seq_length: L, at least 1.
        seed: decides the order of samples.
        split: the second part of each source's documents is taken; None: all of them.
    """
    parts: list[tuple[Source, PackedDataset]] = []
    for source, documents in sources:
        try:
            if split is None:
                data = PackedDataset(documents, seq_length, seed)
            else:
                data = PackedDataset(documents, seq_length, seed, split=split, part=1)
        except UserError:
            continue  # the report at the start of a run tells which sources have one
        parts.append((source, data))
    weights = [
        data.token_count if source.weight is None else source.weight for source, data in parts
    ]
    total = sum(weights)
    return [
        Validation(source.name, float(weight / total), data)
        for (source, data), weight in zip(parts, weights, strict=True)
    ]
