"""Packed samples: every token once an epoch, in an order that a seed decides, on any ranks."""

import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from llmjp.data import packed
from llmjp.data.indexed_writer import IndexedWriter
from llmjp.data.packed import Documents, PackedDataset, split_ranges
from llmjp.data.permutation import Permutation
from llmjp.errors import UserError

VOCABULARY = 1 << 20


def dataset(prefix: Path, lengths: Sequence[int], first: int = 0) -> Path:
    """A dataset whose ids count up from `first`, so that a token tells where it stood."""
    with IndexedWriter(prefix, VOCABULARY) as writer:
        for length in lengths:
            writer.add(np.arange(first, first + length))
            first += length
    return prefix


def random_lengths(seed: int, count: int) -> list[int]:
    """Document lengths with many short, some empty and a few long ones."""
    rng = np.random.default_rng(seed)
    return np.where(rng.random(count) < 0.1, 0, rng.geometric(0.05, count)).tolist()


@pytest.mark.parametrize("size", [*range(70), 255, 256, 257, 1000, 65537, 1 << 17])
def test_permutation_is_one(size: int) -> None:
    """Every number below the size is the image of exactly one."""
    images = Permutation(size, (1, size))(np.arange(size))
    assert np.array_equal(np.sort(images), np.arange(size))


def test_permutation_is_that_of_its_key() -> None:
    """One key always gives the same, in any batches; another gives another; no place is likely."""
    size = 5000
    images = Permutation(size, (1, 2))(np.arange(size))
    single = [int(Permutation(size, (1, 2))([place])[0]) for place in range(0, size, 500)]
    assert single == images[::500].tolist()
    other = Permutation(size, (1, 3))(np.arange(size))
    # Fixed points and agreements of two random permutations are Poisson with mean 1: more than 20
    # has a probability below 1e-20.
    assert (images == np.arange(size)).sum() < 20
    assert (images == other).sum() < 20
    # Where the elements of 10 equal ranges land, in 10 ranges: chi-square with 81 degrees of
    # freedom exceeds 200 with a probability below 1e-11.
    table, _, _ = np.histogram2d(np.arange(size), images, bins=10)
    assert ((table - size / 100) ** 2 / (size / 100)).sum() < 200


def test_permutation_takes_the_largest_sizes() -> None:
    """Sizes near 2**62 neither overflow nor leave their range; more is refused."""
    size = (1 << 62) - 12345
    images = Permutation(size, (7,))(np.arange(1000))
    assert len(set(images.tolist())) == 1000 and images.min() >= 0 and images.max() < size
    with pytest.raises(ValueError, match="size"):
        Permutation((1 << 62) + 1, (7,))
    with pytest.raises(IndexError):
        Permutation(10, (7,))([10])


@pytest.mark.parametrize("stride", [1, 4, 256])
@pytest.mark.parametrize("length", [1, 7, 64])
def test_an_epoch_holds_every_token_once_as_a_target(
    tmp_path: Path, length: int, stride: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All samples of an epoch in the stream's order are the documents, whole, one after another."""
    monkeypatch.setattr(packed, "_STRIDE", stride)
    monkeypatch.setattr(packed, "_CHUNK", 8 * stride)
    lengths = random_lengths(3, 300)
    documents = Documents([dataset(tmp_path / "a", lengths)])
    data = PackedDataset(documents, length, seed=5)
    total = sum(lengths)
    assert data.token_count == total and data.samples_per_epoch == (total - 1) // length
    for epoch in range(2):
        first = epoch * data.samples_per_epoch
        rows = [data[first + index] for index in range(data.samples_per_epoch)]
        assert all(len(row) == length + 1 for row in rows)
        targets = np.concatenate([row[1:] for row in rows])
        assert len(set(targets.tolist())) == len(targets), "a token is a target twice"
        assert total - len(targets) <= length, "more than one sample is left out"
        # Within a sample the ids count up but where a document ends.
        ends = set((np.cumsum(lengths) - 1).tolist())
        for row in rows:
            for left, right in itertools.pairwise(row):
                assert right == left + 1 or (left in ends and (right == 0 or right - 1 in ends))


def test_consecutive_samples_share_one_token(tmp_path: Path) -> None:
    """A sample's last token is the first of the next in the stream, so each gets predicted."""
    data = PackedDataset(Documents([dataset(tmp_path / "a", [1000])]), 10, seed=0)
    rows = sorted(data[index].tolist() for index in range(data.samples_per_epoch))
    assert rows == [list(range(start, start + 11)) for start in range(0, 990, 10)]


def test_order_depends_on_seed_and_epoch_alone(tmp_path: Path) -> None:
    """The same again when asked anew and backwards; others for another seed or epoch."""
    prefix = dataset(tmp_path / "a", random_lengths(1, 400))
    data = PackedDataset(Documents([prefix]), 16, seed=5)
    count = 2 * data.samples_per_epoch
    forward = [data[index].tolist() for index in range(count)]
    again = PackedDataset(Documents([prefix]), 16, seed=5)
    assert [again[index].tolist() for index in reversed(range(count))] == forward[::-1]
    other = PackedDataset(Documents([prefix]), 16, seed=6)
    half = data.samples_per_epoch
    agreements = sum(other[index].tolist() == forward[index] for index in range(half))
    agreements += sum(a == b for a, b in zip(forward[:half], forward[half:], strict=True))
    assert agreements <= 1
    assert sum(a < b for a, b in itertools.pairwise(forward)) < 0.6 * count


def test_batches_are_inputs_and_the_tokens_after_them(tmp_path: Path) -> None:
    """labels[i, t] is the token that follows inputs[i, t]; rows are the samples in order."""
    data = PackedDataset(Documents([dataset(tmp_path / "a", [500])]), 12, seed=1)
    inputs, labels = data.batch(3, 4)
    assert inputs.shape == labels.shape == (4, 12) and inputs.dtype == np.int64
    assert np.array_equal(labels, inputs + 1)
    assert np.array_equal(inputs, np.stack([data[index][:-1] for index in range(3, 7)]))


def test_several_datasets_are_one_list(tmp_path: Path) -> None:
    """Documents of all files are drawn; the result equals one file with all of them."""
    lengths = random_lengths(2, 90)
    whole = dataset(tmp_path / "whole", lengths)
    first = dataset(tmp_path / "first", lengths[:30])
    empty = dataset(tmp_path / "empty", [])
    second = dataset(tmp_path / "second", lengths[30:], first=sum(lengths[:30]))
    one = PackedDataset(Documents([whole]), 8, seed=0)
    many = PackedDataset(Documents([first, empty, second]), 8, seed=0)
    assert many.token_count == one.token_count
    for index in range(one.samples_per_epoch):
        assert many[index].tolist() == one[index].tolist()


def test_split_parts_share_no_document(tmp_path: Path) -> None:
    """99:1 gives two disjoint sets of whole documents, the same under every seed."""
    documents = Documents([dataset(tmp_path / "a", [20] * 400)])
    owners: list[set[int]] = []
    for part in range(2):
        per_seed = []
        for seed in (0, 1):
            data = PackedDataset(documents, 1, seed, split=(99, 1), part=part)
            rows = [data[index] for index in range(data.samples_per_epoch)]
            per_seed.append({int(token) // 20 for row in rows for token in row})
        assert per_seed[0] == per_seed[1]
        owners.append(per_seed[0])
    assert owners[0] & owners[1] == set() and owners[0] | owners[1] == set(range(400))
    assert len(owners[1]) == 5  # one each, then 99:1 of the other 398
    assert max(owners[1]) - min(owners[1]) > 50, "validation documents stand side by side"


@pytest.mark.parametrize(
    ("documents", "weights", "counts"),
    [
        (1000, (99, 1), [989, 11]),
        (10, (99, 1), [9, 1]),
        (2, (1, 1), [1, 1]),
        (1, (99, 1), [1, 0]),
        (0, (99, 1), [0, 0]),
        (10, (1, 0), [10, 0]),
        (7, (0, 1), [0, 7]),
    ],
)
def test_split_counts(documents: int, weights: tuple[int, ...], counts: list[int]) -> None:
    """Each positive weight gets a document where there are enough, a zero never."""
    ranges = split_ranges(documents, weights)
    assert [end - first for first, end in ranges] == counts
    assert ranges[0][0] == 0 and ranges[-1][1] == documents


def test_too_little_data_and_wrong_arguments_are_told(tmp_path: Path) -> None:
    """One line with the numbers."""
    documents = Documents([dataset(tmp_path / "a", [4, 4])])
    with pytest.raises(UserError, match=r"8 tokens in 2 documents do not fill .* 8 \+ 1"):
        PackedDataset(documents, 8, seed=0)
    assert PackedDataset(documents, 7, seed=0).samples_per_epoch == 1
    with pytest.raises(UserError, match="no training data"):
        Documents([])
    with pytest.raises(UserError, match=r"b\.idx does not exist"):
        Documents([tmp_path / "b"])
    with pytest.raises(ValueError, match="split"):
        split_ranges(10, (-1, 2))
    with pytest.raises(UserError, match="holds the id 7, but the vocabulary has 7"):
        documents.check_vocabulary(7)
