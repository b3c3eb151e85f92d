"""Arrays kept in files: made once by many processes, whole or absent, never a reason to fail."""

import multiprocessing
import time
from pathlib import Path

import numpy as np
import pytest

from llmjp.data import packed
from llmjp.data.indexed_writer import IndexedWriter
from llmjp.data.kept_arrays import kept_array
from llmjp.data.packed import CACHE, Documents, PackedDataset


def make(path: Path, log: Path, start: float) -> None:
    """What a process does: at a common moment it asks for the array, and logs if it computes."""

    def compute() -> np.ndarray:
        with log.open("a") as stream:
            stream.write("computed\n")
        time.sleep(0.2)  # the others come meanwhile
        return np.arange(1000)

    time.sleep(max(0.0, start - time.time()))
    assert np.array_equal(kept_array(path, compute), np.arange(1000))


def test_of_processes_that_ask_at_once_one_computes(tmp_path: Path) -> None:
    """Four processes, one computation, one result; nothing unfinished is left."""
    path, log = tmp_path / "cache" / "a.npy", tmp_path / "log"
    context = multiprocessing.get_context("fork")
    processes = [
        context.Process(target=make, args=(path, log, time.time() + 0.3)) for _ in range(4)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(30)
    assert [process.exitcode for process in processes] == [0] * 4
    assert log.read_text() == "computed\n"
    assert sorted(file.name for file in path.parent.iterdir()) == ["a.lock", "a.npy"]


@pytest.mark.parametrize("length", [0, 1, 60, 128, 135])
def test_a_damaged_file_is_made_anew(tmp_path: Path, length: int) -> None:
    """Cut off anywhere, or not an array at all: computed again and replaced."""
    path = tmp_path / "a.npy"
    kept_array(path, lambda: np.arange(5))
    whole = path.read_bytes()
    for content in (whole[:length], b"x" * length):
        path.write_bytes(content)
        assert kept_array(path, lambda: np.arange(5)).tolist() == [0, 1, 2, 3, 4]
        assert path.read_bytes() == whole


def test_where_nothing_can_be_kept_it_is_computed(tmp_path: Path) -> None:
    """A folder that cannot be made is no error."""
    (tmp_path / "file").write_text("")
    assert kept_array(tmp_path / "file" / "a.npy", lambda: np.arange(3)).tolist() == [0, 1, 2]


def test_kept_orders_are_the_computed_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Samples are the same with and without files; other data or seeds have files of their own."""
    rng = np.random.default_rng(1)
    for name in ("a", "b"):
        with IndexedWriter(tmp_path / name, 1000) as writer:
            for length in rng.integers(0, 30, 2000).tolist():
                writer.add(rng.integers(0, 1000, length))

    def samples(name: str, seed: int) -> list[list[int]]:
        data = PackedDataset(Documents([tmp_path / name]), 16, seed, folds=2, fold=1)
        return [data[index].tolist() for index in range(0, 2 * data.samples_per_epoch, 7)]

    cases = [("a", 1), ("a", 2), ("b", 1)]
    expected = [samples(*case) for case in cases]
    assert not (tmp_path / CACHE).exists()
    monkeypatch.setattr(packed, "_KEPT", 100)
    for _ in range(2):  # writing the files, then reading them
        assert [samples(*case) for case in cases] == expected
        assert len(list((tmp_path / CACHE).glob("*.npy"))) == 2 * len(cases)  # two epochs of each
    assert expected[0] != expected[1]
