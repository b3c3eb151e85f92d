"""`llmjp tokenize --verify` finds every kind of damage, and nothing in what is right."""

import re
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from llmjp.data import segments
from llmjp.data.indexed import HEADER
from llmjp.data.indexed_writer import IndexedWriter
from tokenize_runs import documents, files_below, json_lines, run
from tokenizer_oracle import japanese_lines

LINES = japanese_lines(21, 900)


@pytest.fixture
def dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A dataset of two files of several segments, with a record that was skipped."""
    monkeypatch.setattr(segments, "SEGMENT", 20_000)
    monkeypatch.setattr("llmjp.data.streams.BLOCK", 3000)
    (tmp_path / "a.jsonl").write_text(json_lines(LINES[:500]) + "wrong\n")
    (tmp_path / "b.txt").write_text("\n".join(LINES[500:]))
    assert run(*command(tmp_path), "--on-error", "skip") == 0
    return tmp_path / "o"


def command(folder: Path) -> tuple[object, ...]:
    """The inputs and flags of the dataset."""
    return (folder / "a.jsonl", folder / "b.txt", "--split", "lines", "--out", folder / "o")


def test_what_is_right_passes(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """After writing and alone, a sample and all, with one worker and two; no file is left over."""
    before = files_below(dataset.parent)
    for arguments, encoded in (
        ((), range(2, 300)),
        (("--verify-share", 1), [900]),
        (("--verify-share", 1, "--workers", 2), [900]),
        (("--verify-share", 0), [0]),
    ):
        capsys.readouterr()
        assert run(*command(dataset.parent), "--verify", *arguments) == 0
        out = capsys.readouterr().out
        assert "o: verified 900 documents" in out
        assert int(out.split("tokens; ")[1].split()[0]) in encoded, out
    assert run("--verify", "--out", dataset) == 0
    assert "0 documents encoded anew" in capsys.readouterr().out
    assert files_below(dataset.parent) == before
    again = (*command(dataset.parent), "--on-error", "skip", "--overwrite", "--verify")
    assert run(*again) == 0
    out = capsys.readouterr().out
    assert "900 documents, " in out and "verified 900 documents" in out


def change_id(prefix: Path, place: int, id: int) -> None:
    """Another id at a place of .bin, which may be past its end."""
    with prefix.with_suffix(".bin").open("r+b") as stream:
        stream.seek(2 * place)
        stream.write(struct.pack("<H", id))


def ends(prefix: Path) -> np.ndarray:
    """Where each document ends, in tokens."""
    return np.cumsum([len(ids) for ids in documents(prefix)])


def cut(prefix: Path) -> None:
    path = prefix.with_suffix(".bin")
    path.write_bytes(path.read_bytes()[:-2])


def index_bytes(prefix: Path, offset: int, format: str, value: int) -> None:
    with prefix.with_suffix(".idx").open("r+b") as stream:
        stream.seek(offset)
        stream.write(struct.pack(format, value))


def rewrite(prefix: Path, change: Callable[[list[list[int]]], list[list[int]]], size: int) -> None:
    ids = documents(prefix)
    with IndexedWriter(prefix, size, overwrite=True) as writer:
        for document in change(ids):
            writer.add(document)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (cut, "o.bin has .* sequence 899 ends at"),
        (lambda o: change_id(o, int(ends(o)[-1]), 5), "o.bin holds .* ids, its index counts"),
        (lambda o: change_id(o, int(ends(o)[6]), 2000), "document 7 has the id 2000, .* has 2,000"),
        (lambda o: change_id(o, int(ends(o)[41]) - 1, 9), "document 41 does not end with the end"),
        (
            lambda o: change_id(o, int(ends(o)[698]), 300),
            r"document 699, .*what the input gives.*b",
        ),
        (
            lambda o: change_id(o, int(ends(o)[3]), 300),
            r"document 4, .*what the input gives.*a.json",
        ),
        (lambda o: index_bytes(o, HEADER.size, "<i", 1), "o.bin holds .* ids, its index counts"),
        (lambda o: index_bytes(o, HEADER.size + 4 * 900 + 80, "<q", 6), "document 10 does not fol"),
        (lambda o: index_bytes(o, 0, "<B", 0), "o.idx is not a Megatron index"),
        (lambda o: rewrite(o, lambda ids: ids[:-1], 2000), "899 documents, the input"),
        (lambda o: rewrite(o, lambda ids: [*ids, [7]], 2000), "901 documents, the input 900"),
        (lambda o: rewrite(o, lambda ids: [*ids[1:], ids[0]], 2000), "document 0, counted from 0"),
        (lambda o: rewrite(o, lambda ids: ids, 70_000), "holds int32 ids, .* has uint16"),
        (lambda o: o.with_suffix(".idx").unlink(), "o.idx does not exist"),
    ],
)
def test_each_kind_of_damage_is_found(
    dataset: Path, damage: Callable[[Path], None], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line that says what and where, and exit code 1."""
    damage(dataset)
    capsys.readouterr()
    assert run(*command(dataset.parent), "--verify", "--verify-share", 1) == 1
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1 and re.search(words, printed), printed
    assert not list(dataset.parent.glob(".*"))


def test_other_inputs_are_found(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A text that changed since, and the wrong tokenizer for the dataset."""
    path = dataset.parent / "b.txt"
    lines = path.read_text().split("\n")
    lines[100] = "入れ替えた"
    path.write_text("\n".join(lines))
    assert run(*command(dataset.parent), "--verify", "--verify-share", 1) == 1
    assert "document 600, counted from 0, is not what the input" in capsys.readouterr().err


def test_verification_needs_something(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without inputs there must be a dataset; a share is a share."""
    assert run("--verify", "--out", tmp_path / "o") == 1
    assert "name at least one INPUT" in capsys.readouterr().err
    assert run("--out", tmp_path / "o") == 1
    assert "name at least one INPUT" in capsys.readouterr().err
    (tmp_path / "a.txt").write_text("x")
    assert run(tmp_path / "a.txt", "--out", tmp_path / "o", "--verify-share", 2) == 1
    assert "must be 0 to 1, got 2" in capsys.readouterr().err
