"""`llmjp tokenize` and records that give no text: named by file and line, or skipped and listed."""

import gzip
import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from llmjp.data import segments
from llmjp.data.tokenize import load_tokenizer
from tokenize_runs import documents, expected, files_below, json_lines, run
from tokenizer_oracle import japanese_lines, trained_directory

GOOD = ["良い一行", "もう一行"]
BAD = {
    b'{"text": ': ("not JSON", "not a line of JSON"),
    b'{"text": "a"} x': ("not JSON", "not a line of JSON"),
    b"[" * 100_000: ("not JSON", "nested too deeply"),
    b'{"body": "a"}': ("no such key", "no key 'text' (--json-key names another), found: 'body'"),
    b"[1, 2]": ("no such key", "an array instead of an object with 'text'"),
    b"null": ("no such key", "null instead of an object"),
    b'{"text": 5}': ("not a string", "'text' is a number, not a string"),
    b'{"text": null}': ("not a string", "'text' is null, not a string"),
    b'{"text": "\xff"}': ("not UTF-8", "byte 0xff at offset 10"),
    b'{"text": "a\\udc00b"}': ("lone surrogate", "U+DC00 at character 1"),
}


def skipped(prefix: Path) -> list[dict]:
    """The report of what was left out."""
    path = prefix.with_name(prefix.name + ".skipped.jsonl")
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("line", BAD, ids=lambda line: line[:20].decode(errors="replace"))
def test_each_kind_is_told_with_its_line(
    tmp_path: Path, line: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    """By default the first one stops the run, in one line; --on-error skip counts and lists it."""
    path = tmp_path / "a.jsonl"
    content = b'{"text": "good"}\n\n' + line + b'\n{"text": "next"}\n'
    path.write_bytes(content)
    kind, words = BAD[line]
    assert run(path, "--out", tmp_path / "o") == 1
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1 and "a.jsonl:3: " in printed
    assert words in printed
    assert files_below(tmp_path) == {"a.jsonl": content}
    assert run(path, "--out", tmp_path / "o", "--on-error", "skip") == 0
    assert f"skipped: 1 records (1 {kind}), listed in" in capsys.readouterr().out
    assert len(documents(tmp_path / "o")) == 2
    (entry,) = skipped(tmp_path / "o")
    assert (entry["file"], entry["line"], entry["kind"]) == (str(path), 3, kind)
    assert words in entry["message"]


def test_what_python_writes_is_read(tmp_path: Path) -> None:
    """NaN, large integers, escaped pairs of surrogates and deep objects are no mistakes."""
    lines = [
        '{"text": "a", "score": NaN}',
        '{"id": 123456789012345678901234567890, "text": "b"}',
        json.dumps({"text": "😀"}),
        '{"x": ' + "[" * 200 + "]" * 200 + ', "text": "c"}',
        '{"text": "old", "text": "the last counts"}',
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    assert run(tmp_path / "a.jsonl", "--out", tmp_path / "o") == 0
    texts = ["a", "b", "😀", "c", "the last counts"]
    assert documents(tmp_path / "o") == expected(load_tokenizer(trained_directory()), texts)


def test_lines_are_counted_over_all_cuts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Line numbers are the file's own, in the report and in the error that is told first, from any
    number of workers and whatever the input is cut into; the report is in order."""
    lines = [json.dumps({"text": text}) for text in japanese_lines(8, 3000)]
    wrong = [17, 1500, 1501, 2999]
    for number in wrong:
        lines[number - 1] = "wrong"
    content = "\n".join(lines).encode()
    (tmp_path / "a.jsonl").write_bytes(content)
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(content))
    (tmp_path / "c.jsonl.zst").write_bytes(zstandard.compress(content))
    names = ["a.jsonl", "b.jsonl.gz", "c.jsonl.zst"]
    inputs = [tmp_path / name for name in names]
    reports = []
    for size, workers in ((1 << 25, 1), (5000, 2), (1 << 15, 3)):
        monkeypatch.setattr(segments, "SEGMENT", size)
        output = tmp_path / f"o{size}"
        arguments = (*inputs, "--out", output, "--workers", workers)
        assert run(*arguments, "--on-error", "skip") == 0
        reports.append(skipped(output))
        places = [(Path(entry["file"]).name, entry["line"]) for entry in reports[-1]]
        assert places == [(name, line) for name in names for line in wrong], f"cut at {size}"
        assert run(*arguments, "--overwrite") == 1
        assert "a.jsonl:17: not a line of JSON" in capsys.readouterr().err
    assert reports[0] == reports[1] == reports[2]


def test_a_failed_run_goes_on_by_skipping(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What was done before the bad record is kept, and --on-error skip continues with it."""
    monkeypatch.setattr(segments, "SEGMENT", 5000)
    lines = japanese_lines(9, 1000)
    content = json_lines(lines[:900]) + "wrong\n" + json_lines(lines[900:])
    (tmp_path / "a.jsonl").write_text(content)
    arguments = (tmp_path / "a.jsonl", "--workers", 1, "--out", tmp_path / "o")
    assert run(*arguments) == 1
    assert "a.jsonl:901" in capsys.readouterr().err
    assert run(*arguments, "--on-error", "skip") == 0
    assert "a stopped run was continued" in capsys.readouterr().out
    assert len(documents(tmp_path / "o")) == 1000
    assert run(*arguments, "--overwrite") == 1  # and anew from the beginning: the same mistake
    assert "a.jsonl:901" in capsys.readouterr().err


def test_documents_beyond_the_limit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A longer line, file, paragraph or row is a mistake of its own kind, wherever it stands."""
    long = "あ" * 400_000  # 1.2 MB
    (tmp_path / "a.jsonl").write_text(json_lines([GOOD[0], long, GOOD[1]]).replace("\\u3042", "あ"))
    (tmp_path / "b.txt").write_text(long)
    (tmp_path / "c.txt").write_text(f"{GOOD[0]}\n\n{long}\n{long}\n\n{GOOD[1]}\n")
    pyarrow.parquet.write_table(
        pyarrow.table({"text": [GOOD[0], "a" * 1_100_000, GOOD[1]]}), tmp_path / "d.parquet"
    )
    for name, line, split in (
        ("a.jsonl", 2, "file"),
        ("c.txt", 3, "lines"),
        ("c.txt", 3, "blank-lines"),
        ("d.parquet", 2, "file"),
    ):
        output = tmp_path / f"{name}-{split}"
        arguments = ("--split", split, "--max-document", 1, "--on-error", "skip", "--out", output)
        assert run(tmp_path / name, *arguments) == 0
        entries = skipped(output)
        assert {entry["kind"] for entry in entries} == {"too long"}, name
        assert entries[0]["line"] == line, name
        assert len(documents(output)) == 2, name
    assert run(tmp_path / "b.txt", "--max-document", 1, "--out", tmp_path / "o") == 1
    assert "b.txt: a document of more than 1 MB; up to 1 MB" in capsys.readouterr().err
    assert run(tmp_path / "b.txt", "--max-document", 0, "--out", tmp_path / "o") == 1
    assert "1 to 2000, got 0" in capsys.readouterr().err


def test_damaged_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file that breaks off is told, or skipped from there on; what came before it counts."""
    content = json_lines(japanese_lines(4, 40_000)).encode()
    pyarrow.parquet.write_table(pyarrow.table({"text": GOOD}), tmp_path / "d.parquet")
    cut = {
        "a.jsonl.gz": gzip.compress(content)[:-9],
        "b.jsonl.zst": zstandard.compress(content)[:-9],
        "c.jsonl.zst": b"not zstd at all",
        "d.parquet": (tmp_path / "d.parquet").read_bytes()[:-9],
        "e.parquet": b"PAR1",
    }
    for name, data in cut.items():
        (tmp_path / name).write_bytes(data)
        assert run(tmp_path / name, "--out", tmp_path / "o", "--workers", 2) == 1
        printed = capsys.readouterr().err
        assert f"{name} is not a whole " in printed and printed.count("\n") == 1, printed
    (tmp_path / "z.jsonl").write_text(json_lines(GOOD))
    inputs = [tmp_path / name for name in cut]
    output = tmp_path / "o"
    assert run(*inputs, tmp_path / "z.jsonl", "--out", output, "--on-error", "skip") == 0
    assert [entry["kind"] for entry in skipped(output)] == ["damaged file"] * len(cut)
    assert len(documents(output)) > 10_000


def test_parquet_columns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A column that is missing or holds no strings stops the run; null is a record without text."""
    table = pyarrow.table({"text": ["a", None, "b"], "id": [1, 2, 3]})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    for key, words in (
        ("body", "no column 'body' (--json-key names another), found: text, id"),
        ("id", "the column 'id' holds int64, not string"),
    ):
        assert run(tmp_path / "a.parquet", "--json-key", key, "--out", tmp_path / "o") == 1
        assert words in capsys.readouterr().err
    assert run(tmp_path / "a.parquet", "--out", tmp_path / "o", "--on-error", "skip") == 0
    assert [(entry["line"], entry["kind"]) for entry in skipped(tmp_path / "o")] == [
        (2, "not a string")
    ]


def test_nothing_but_mistakes_is_no_dataset(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where every record was skipped there is no output, and the sentence says how many."""
    (tmp_path / "a.jsonl").write_text("x\ny\n")
    assert run(tmp_path / "a.jsonl", "--on-error", "skip", "--out", tmp_path / "o" / "o") == 1
    assert "a.jsonl; 2 records were skipped" in capsys.readouterr().err
    assert not (tmp_path / "o").exists()


def test_empty_texts_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """They are left out, and the summary says how many there were."""
    (tmp_path / "a.jsonl").write_text(json_lines(["", "a", "", ""]))
    assert run(tmp_path / "a.jsonl", "--out", tmp_path / "o") == 0
    assert "left out: 3 empty texts" in capsys.readouterr().out
    assert len(documents(tmp_path / "o")) == 1
