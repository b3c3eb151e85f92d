"""Blends of sources: exact shares, folds without a common document, no dependence on history."""

import itertools
from collections import Counter
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmjp.data.blend import Blend, Course, open_sources, validation_data
from llmjp.data.indexed_writer import IndexedWriter
from llmjp.data.interleaving import Interleaving
from llmjp.data.packed import Documents, PackedDataset
from llmjp.data.sources import parse_sources
from llmjp.errors import UserError

SOURCE = 10_000  # ids of source number i are from i * SOURCE on
LENGTH = 8  # of a sample
DOCUMENT = 10  # tokens of a document


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Datasets a, b, c of 400, 200 and 100 documents, whose ids count up."""
    folder = tmp_path_factory.mktemp("blend")
    for index, documents in enumerate((400, 200, 100)):
        with IndexedWriter(folder / "abc"[index], 1 << 20) as writer:
            for document in range(documents):
                first = index * SOURCE + document * DOCUMENT
                writer.add(np.arange(first, first + DOCUMENT))
    return folder


def blend(folder: Path, words: str, seed: int = 1, **how: Any) -> Blend:
    """A blend of datasets in the folder, named without it."""
    places = [word if word[0].isdigit() else f"{folder}/{word}" for word in words.split()]
    return Blend(open_sources(parse_sources(places)), LENGTH, seed, **how)


def source_of(row: np.ndarray) -> int:
    """Which source a sample is of; all its tokens are."""
    owners = set((row // SOURCE).tolist())
    assert len(owners) == 1, row
    return int(owners.pop())


def documents_of(rows: list[np.ndarray]) -> set[int]:
    """The documents that samples touch, by their first id."""
    return {int(token) // DOCUMENT * DOCUMENT for row in rows for token in row}


WEIGHTS = st.lists(st.integers(1, 10**6), min_size=1, max_size=12)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(WEIGHTS, st.integers(0, 10**12))
def test_shares_are_exact_to_two(weights: list[int], first: int) -> None:
    """Anywhere: each receiver has its share to within two, and numbers its own one by one."""
    dealt = Interleaving(weights)
    counts = dealt.counts(first)
    assert sum(counts) == first
    for number in range(first, first + 20):
        owner, rank = dealt[number]
        assert rank == counts[owner]
        counts[owner] += 1
        assert dealt.counts(number + 1) == counts
        for weight, count in zip(weights, counts, strict=True):
            assert abs(count - Fraction(weight * (number + 1), sum(weights))) < 2


@settings(max_examples=100, deadline=None, derandomize=True)
@given(WEIGHTS, st.integers(1, 1000))
def test_whole_shares_have_no_error(weights: list[int], times: int) -> None:
    """After as many numbers as the weights add up to, or a multiple, each has just its weight."""
    total = times * sum(weights)
    assert Interleaving(weights).counts(total) == [times * weight for weight in weights]


def test_without_weights_an_epoch_holds_each_sample_once(folder: Path) -> None:
    """All samples of all sources, none twice, evenly mixed."""
    data = blend(folder, "a b c")
    count = data.samples_per_epoch
    assert count == (4000 - 1) // 8 + (2000 - 1) // 8 + (1000 - 1) // 8
    rows = [data[index] for index in range(count)]
    targets = np.concatenate([row[1:] for row in rows])
    assert len(set(targets.tolist())) == len(targets) == LENGTH * count
    half = Counter(source_of(row) for row in rows[: count // 2])
    assert [half[index] for index in range(3)] == pytest.approx([250, 125, 62], abs=2)


def test_weights_are_shares_of_the_samples(folder: Path) -> None:
    """Any stretch of samples is blended by weight; a heavy source is repeated in new orders."""
    data = blend(folder, "6 c 3 a 1 b")
    owners = [source_of(data[index]) for index in range(2000)]
    for first in range(0, 2000, 100):
        found = Counter(owners[first : first + 100])
        assert [found[index] for index in range(3)] == pytest.approx([30, 10, 60], abs=4)
    own = blend(folder, "c")
    per_epoch = own.samples_per_epoch
    rows = [row.tolist() for index in range(2000) if source_of(row := data[index]) == 2]
    assert len(rows) > 5 * per_epoch
    epochs = [rows[first : first + per_epoch] for first in range(0, 5 * per_epoch, per_epoch)]
    for epoch in epochs:
        tokens = [token for row in epoch for token in row[1:]]
        assert len(set(tokens)) == len(tokens), "a token is a target twice in an epoch"
    assert all(left != right for left, right in itertools.pairwise(epochs))


def test_the_order_of_the_words_does_not_matter(folder: Path) -> None:
    """Sources are told apart by name."""
    one, other = blend(folder, "0.7 a 0.3 b"), blend(folder, "0.3 b 0.7 a")
    assert all(one[index].tolist() == other[index].tolist() for index in range(100))


def test_folds_share_no_document_and_cover_all(folder: Path) -> None:
    """Ten folds one after another: disjoint in documents of each source, the same for each seed."""
    how: dict[str, Any] = {"folds": 10, "split": (90, 10)}
    owners = []
    for seed in (1, 2):
        data = blend(folder, "a b c", seed, **how)
        assert len(data.folds) == 10
        first = 0
        per_fold = []
        for fold in data.folds:
            rows = [data[index] for index in range(first, first + fold.samples)]
            per_fold.append(documents_of(rows))
            first += fold.samples
        owners.append(per_fold)
        assert first == data.samples_per_epoch
    for left, right in itertools.combinations(owners[0], 2):
        assert not left & right
    # A fold's last few documents may be in the tokens that fill no sample, others in each order.
    for one, other in zip(*owners, strict=True):
        assert len(one ^ other) <= 6 and len(one & other) > 50
    sizes = [len(one) for one in owners[0]]
    assert max(sizes) - min(sizes) <= 6
    validation = validation_data(data.sources, LENGTH, 1, (90, 10))
    held = documents_of([row for part in validation for row in part.data.batch(0, 50)[0]])
    assert not held & set().union(*owners[0])


def test_folds_can_be_chosen(folder: Path) -> None:
    """Chosen folds hold the samples that all have there, in the order in which they are named."""
    whole = blend(folder, "0.5 a 0.5 c", folds=4)
    starts = np.cumsum([0, *(fold.samples for fold in whole.folds)]).tolist()
    part = blend(folder, "0.5 a 0.5 c", folds=4, chosen=[3, 1])
    assert part.samples_per_epoch == whole.folds[3].samples + whole.folds[1].samples
    expected = [
        whole[index].tolist() for fold in (3, 1) for index in range(*starts[fold : fold + 2])
    ]
    assert [part[index].tolist() for index in range(part.samples_per_epoch)] == expected


def test_a_light_source_goes_on_at_the_next_visit(folder: Path) -> None:
    """What a source did not give in one epoch of the blend it gives in the next."""
    data = blend(folder, "9 c 1 a", folds=2)
    taken = sum(fold.taken[0] for fold in data.folds)
    rows = [data[index] for index in range(2 * data.samples_per_epoch)]
    mine = [row for row in rows if source_of(row) == 0]
    assert len(mine) == 2 * taken
    tokens = [token for row in mine for token in row[1:].tolist()]
    assert len(set(tokens)) == len(tokens)


def test_final_data_follow_once(folder: Path) -> None:
    """After one epoch of the data come the final sources, and go on."""
    first, last = blend(folder, "a b", folds=2), blend(folder, "c")
    course = Course([first, last])
    assert course.samples == first.samples_per_epoch + last.samples_per_epoch
    owners = [source_of(course[index]) for index in range(course.samples + 50)]
    assert set(owners[: first.samples_per_epoch]) == {0, 1}
    assert set(owners[first.samples_per_epoch :]) == {2}
    inputs, labels = course.batch(first.samples_per_epoch - 2, 4)
    assert inputs.shape == labels.shape == (4, LENGTH)
    assert inputs[2].tolist() == last[0][:-1].tolist()


def test_a_sample_follows_from_its_number_alone(folder: Path) -> None:
    """Asked in any order, in parts, by another object: the same; another seed gives others."""
    how: dict[str, Any] = {"folds": 3, "split": (95, 5)}
    data = blend(folder, "2 a 1 b 1 c", **how)
    numbers = np.random.default_rng(0).permutation(3 * data.samples_per_epoch)[:200].tolist()
    rows = {number: data[number].tolist() for number in numbers}
    again = blend(folder, "2 a 1 b 1 c", **how)
    assert all(again[number].tolist() == rows[number] for number in sorted(rows))
    other = blend(folder, "2 a 1 b 1 c", 2, **how)
    assert sum(other[number].tolist() == rows[number] for number in rows) < 5


def test_validation_is_per_source(folder: Path) -> None:
    """Each source is validated with its own documents; shares follow the weights."""
    sources = open_sources(parse_sources(["3", f"{folder}/a", "1", f"{folder}/b"]))
    parts = validation_data(sources, LENGTH, 1, (90, 10))
    assert [(part.name, part.share) for part in parts] == [("a", 0.75), ("b", 0.25)]
    for index, part in enumerate(parts):
        assert {source_of(part.data[place]) for place in range(5)} == {index}
    assert validation_data(sources, 2000, 1, (90, 10)) == []
    by_size = open_sources(parse_sources([f"{folder}/a", f"{folder}/b"]))
    whole = validation_data(by_size, LENGTH, 1, None)
    assert [part.share for part in whole] == [2 / 3, 1 / 3]


def test_what_decides_the_samples_is_described(folder: Path, tmp_path: Path) -> None:
    """Weights and contents show in the description; the digest sees one changed id."""

    def described(prefix: Path, words: str) -> dict[str, str]:
        return Course([blend(prefix, words)]).describe()[0]

    told = described(folder, "0.5 a 0.5 b")
    assert told["a"].startswith("weight 1/2, 400 documents of 4,000 tokens, digest ")
    assert told != described(folder, "0.6 a 0.4 b")
    for name, changed in (("x", 0), ("y", 1)):
        (tmp_path / name).mkdir()
        with IndexedWriter(tmp_path / name / "a", 1 << 20) as writer:
            writer.add(np.arange(100) + changed * (np.arange(100) == 77))
    assert described(tmp_path / "x", "a") == described(tmp_path / "x", "a")
    assert described(tmp_path / "x", "a") != described(tmp_path / "y", "a")


def test_too_little_data_is_told_with_its_place(folder: Path) -> None:
    """The source and the fold."""
    with pytest.raises(UserError, match=r"source c, fold 0: .* in 1 documents do not fill one"):
        Blend(open_sources(parse_sources([f"{folder}/c"])), 10, 1, folds=100)
    # One fold, one source: what a packed dataset of the same documents gives.
    data, single = blend(folder, "b"), PackedDataset(Documents([folder / "b"]), LENGTH, 1)
    assert [data[index].tolist() for index in range(500)] == [
        single[index].tolist() for index in range(500)
    ]
