"""Indexed datasets: the format's bytes, what is refused, files whole or absent."""

import errno
import struct
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest

from llmjp.data.files import keep
from llmjp.data.indexed import IndexedDataset
from llmjp.data.indexed_writer import IndexedWriter
from llmjp.errors import UserError

DOCUMENTS = [[5, 6, 7], [], [65534 - 40, 0], [1] * 10]


def write(prefix: Path, documents: list[list[int]], vocab_size: int = 65499) -> Path:
    """A dataset of the given documents."""
    with IndexedWriter(prefix, vocab_size) as writer:
        for document in documents:
            writer.add(document)
    return prefix


def message(prefix: Path) -> str:
    """The one line that opening a damaged dataset gives."""
    with pytest.raises(UserError) as caught:
        IndexedDataset(prefix)
    text = str(caught.value)
    assert "\n" not in text and str(prefix) in text
    return text


def test_files_have_the_formats_exact_bytes(tmp_path: Path) -> None:
    """Every byte of .idx and .bin, packed here by hand from Megatron's layout."""
    prefix = write(tmp_path / "a", [[3, 4], [5]], vocab_size=100)
    assert (tmp_path / "a.bin").read_bytes() == struct.pack("<3H", 3, 4, 5)
    assert (tmp_path / "a.idx").read_bytes() == (
        b"MMIDIDX\x00\x00"
        + struct.pack("<QBQQ", 1, 8, 2, 3)
        + struct.pack("<2i", 2, 1)
        + struct.pack("<2q", 0, 4)
        + struct.pack("<3q", 0, 1, 2)
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.bin", "a.idx"]
    assert IndexedDataset(prefix).dtype == np.dtype("<u2")


@pytest.mark.parametrize(
    ("vocab_size", "dtype"), [(50570, "<u2"), (65499, "<u2"), (65500, "<i4"), (99574, "<i4")]
)
def test_documents_come_back(tmp_path: Path, vocab_size: int, dtype: str) -> None:
    """Round trip, with an empty document, in the id type that the vocabulary asks for."""
    documents = [*DOCUMENTS[:2], [vocab_size - 1, 0], DOCUMENTS[3]]
    dataset = IndexedDataset(write(tmp_path / "a", documents, vocab_size))
    assert dataset.dtype == np.dtype(dtype)
    assert [ids.tolist() for ids in dataset] == documents
    assert len(dataset) == 4 and dataset.token_count == 15
    assert dataset.document_sizes.tolist() == [3, 0, 2, 10]
    dataset.check_vocabulary(vocab_size)


def test_a_dataset_without_documents_opens(tmp_path: Path) -> None:
    """No document is a valid dataset: both files are written and read."""
    dataset = IndexedDataset(write(tmp_path / "a", []))
    assert len(dataset) == 0 and dataset.token_count == 0
    dataset.check_vocabulary(1)


def test_ragged_batches_equal_single_documents(tmp_path: Path) -> None:
    """add_ragged() in batches of any size writes the bytes that add() writes."""
    write(tmp_path / "single", DOCUMENTS)
    with IndexedWriter(tmp_path / "ragged", 65499) as writer:
        writer.add_ragged(np.array(DOCUMENTS[0], np.uint16), np.array([0, 3, 3]))
        writer.add_ragged(np.zeros(0, np.uint32), np.array([0]))
        rest = np.array(DOCUMENTS[2] + DOCUMENTS[3], np.uint32)
        writer.add_ragged(rest, np.array([0, 2, 12]))
    for suffix in (".bin", ".idx"):
        single = (tmp_path / f"single{suffix}").read_bytes()
        assert (tmp_path / f"ragged{suffix}").read_bytes() == single


def test_positions_are_trusted_not_end_of_text_ids(tmp_path: Path) -> None:
    """Sequences that drift, as a known faulty writer left them, are read by size and position."""
    ids = np.array([10, 11, 7, 20, 21, 22, 7], "<u2")  # two documents, each with an uncounted 7
    (tmp_path / "a.bin").write_bytes(ids.tobytes())
    (tmp_path / "a.idx").write_bytes(
        b"MMIDIDX\0\0"
        + struct.pack("<QBQQ", 1, 8, 2, 3)
        + struct.pack("<2i", 2, 3)
        + struct.pack("<2q", 0, 4)
        + struct.pack("<3q", 0, 1, 2)
    )
    assert [part.tolist() for part in IndexedDataset(tmp_path / "a")] == [[10, 11], [7, 20, 21]]


def test_documents_of_several_sequences_are_joined(tmp_path: Path) -> None:
    """The list of documents, not of sequences, says what a document is."""
    (tmp_path / "a.bin").write_bytes(np.arange(6, dtype="<i4").tobytes())
    (tmp_path / "a.idx").write_bytes(
        b"MMIDIDX\0\0"
        + struct.pack("<QBQQ", 1, 4, 3, 4)
        + struct.pack("<3i", 2, 3, 1)
        + struct.pack("<3q", 0, 8, 20)
        + struct.pack("<4q", 0, 2, 2, 3)
    )
    dataset = IndexedDataset(tmp_path / "a.idx")
    assert [ids.tolist() for ids in dataset] == [[0, 1, 2, 3, 4], [], [5]]
    assert dataset.document_sizes.tolist() == [5, 0, 1]
    with pytest.raises(IndexError):
        dataset[3]


@pytest.mark.parametrize("suffix", [".bin", ".idx"])
def test_every_truncation_is_told(tmp_path: Path, suffix: str) -> None:
    """Cutting a file at any byte gives one line with the file's name."""
    prefix = write(tmp_path / "a", DOCUMENTS)
    path = tmp_path / f"a{suffix}"
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        assert path.name in message(prefix)
    path.unlink()
    assert "does not exist" in message(prefix)


@pytest.mark.parametrize(
    ("offset", "value", "expected"),
    [
        (0, b"X", "not a Megatron index"),
        (9, b"\x02", "format version 2"),
        (17, b"\x06", "floating-point"),
        (17, b"\x63", "unknown type 99"),
        (18, b"\x09", "9 sequences"),
        (34, struct.pack("<i", -1), "sequence 0 has -1 tokens"),
        (34, struct.pack("<i", 99), "sequence 0 ends at byte 198"),
        (34 + 16 + 8, struct.pack("<q", -2), "sequence 1"),
        (34 + 16, struct.pack("<q", 1), "at byte 1, with 2 bytes a token"),
        (34 + 48, struct.pack("<q", 1), "do not cover its 4 sequences"),
        (34 + 48 + 8, struct.pack("<q", 3), "document 1 ends before it starts"),
        (34 + 48 + 32, struct.pack("<q", 3), "do not cover its 4 sequences"),
    ],
)
def test_damage_is_told(tmp_path: Path, offset: int, value: bytes, expected: str) -> None:
    """Each field of the index with a value that cannot be is named."""
    prefix = write(tmp_path / "a", DOCUMENTS)
    content = bytearray((tmp_path / "a.idx").read_bytes())
    content[offset : offset + len(value)] = value
    (tmp_path / "a.idx").write_bytes(content)
    assert expected in message(prefix)


def test_writer_refuses_ids_outside_the_vocabulary(tmp_path: Path) -> None:
    """The message has the id, its document and place; no file is left."""
    for bad in (10, -1):
        with (
            pytest.raises(UserError, match=rf"document 2, token 1: the id {bad} .* 10"),
            IndexedWriter(tmp_path / "a", 10) as writer,
        ):
            writer.add([1, 2])
            writer.add_ragged(np.array([3, 4, bad, 5]), np.array([0, 1, 4]))
    assert list(tmp_path.iterdir()) == []


def test_reader_refuses_ids_outside_the_vocabulary(tmp_path: Path) -> None:
    """The largest id is found, remembered, and found anew when the data changes."""
    prefix = write(tmp_path / "a", [[1, 99, 2]], vocab_size=100)
    dataset = IndexedDataset(prefix)
    dataset.check_vocabulary(100)
    for _ in range(2):  # the second time from PREFIX.range.json
        with pytest.raises(UserError, match=r"a holds the id 99, but the vocabulary has 99 ids"):
            dataset.check_vocabulary(99)
    assert (tmp_path / "a.range.json").exists()
    (tmp_path / "a.bin").write_bytes(struct.pack("<3H", 1, 500, 2))
    with pytest.raises(UserError, match="holds the id 500"):
        IndexedDataset(prefix).check_vocabulary(100)
    (tmp_path / "a.range.json").write_text("not json")
    with pytest.raises(UserError, match="holds the id 500"):
        IndexedDataset(prefix).check_vocabulary(100)


@pytest.mark.parametrize("parts", [1, 2, 5, 96])
def test_processes_share_the_reading_of_ids(tmp_path: Path, parts: int) -> None:
    """The ranges of all parts are together that of all ids; once kept, each part is told it all."""
    ids = np.random.default_rng(parts).integers(-5, 1000, 80)
    prefix = write(tmp_path / "a", [[0] * 10] * 8, vocab_size=70_000)
    (tmp_path / "a.bin").write_bytes(ids.astype("<i4").tobytes())
    dataset = IndexedDataset(prefix)
    shares = [dataset.id_range(part, parts) for part in range(parts)]
    whole = min(low for low, _ in shares), max(high for _, high in shares)
    assert whole == (min(ids.min(), 0), ids.max()) and dataset.known_range() is None
    dataset.keep_id_range(*whole)
    assert dataset.known_range() == whole == dataset.id_range(parts - 1, parts)


def test_a_read_only_folder_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing can be written there, nor removed: ids are checked all the same."""
    dataset = IndexedDataset(write(tmp_path / "a", [[1, 99, 2]], vocab_size=100))

    def refused(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    for name in ("open", "unlink", "replace"):
        monkeypatch.setattr(Path, name, refused)
    dataset.check_vocabulary(100)
    monkeypatch.undo()
    assert dataset.known_range() is None


def test_two_that_write_a_file_at_once_leave_it_whole(tmp_path: Path) -> None:
    """Even with one process number, as in two containers: the last one's content, and no other."""
    path = tmp_path / "file"

    def slowly(stream: BinaryIO) -> None:
        stream.write(b"first ")
        assert keep(path, lambda other: other.write(b"second")) and path.read_bytes() == b"second"
        stream.write(b"whole")

    assert keep(path, slowly) and path.read_bytes() == b"first whole"
    assert list(tmp_path.iterdir()) == [path]


def test_existing_data_is_replaced_only_on_request(tmp_path: Path) -> None:
    """Without overwrite nothing is touched; with it all of the old is gone, its id range too."""
    prefix = write(tmp_path / "a", DOCUMENTS)
    IndexedDataset(prefix).check_vocabulary(65499)
    before = (tmp_path / "a.bin").read_bytes()
    with pytest.raises(UserError, match="--overwrite"):
        IndexedWriter(prefix, 10)
    assert (tmp_path / "a.bin").read_bytes() == before
    with IndexedWriter(prefix, 10, overwrite=True) as writer:
        writer.add([1])
        assert (tmp_path / "a.bin").read_bytes() == before  # until the very end
    assert [ids.tolist() for ids in IndexedDataset(prefix)] == [[1]]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.bin", "a.idx"]


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    """A second writer of the same dataset is refused and does the first no harm."""
    with IndexedWriter(tmp_path / "a", 10) as writer:
        writer.add([1, 2])
        with pytest.raises(UserError, match="being written by another process"):
            IndexedWriter(tmp_path / "a", 10)
        writer.add([3])
    assert [ids.tolist() for ids in IndexedDataset(tmp_path / "a")] == [[1, 2], [3]]


@pytest.mark.parametrize("failure", [KeyboardInterrupt(), OSError(errno.ENOSPC, "no space")])
def test_nothing_is_left_of_an_unfinished_dataset(
    tmp_path: Path, failure: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An interruption while documents come, or a failure while the index is written."""
    with pytest.raises(type(failure)), IndexedWriter(tmp_path / "a", 10) as writer:
        writer.add([1])
        raise failure
    assert list(tmp_path.iterdir()) == []

    def fail(*_: object) -> None:
        raise failure

    monkeypatch.setattr(IndexedWriter, "_write_index", fail)
    with pytest.raises(type(failure)), IndexedWriter(tmp_path / "a", 10) as writer:
        writer.add([1])
    assert list(tmp_path.iterdir()) == []


def test_remains_of_a_killed_writer_do_no_harm(tmp_path: Path) -> None:
    """A .partial file that a killed process left is emptied, not appended to."""
    (tmp_path / "a.bin.partial").write_bytes(b"rest of an older run")
    assert [ids.tolist() for ids in IndexedDataset(write(tmp_path / "a", [[1, 2]]))] == [[1, 2]]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.bin", "a.idx"]
