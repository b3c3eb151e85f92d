"""`llmjp tokenize` reads every format to the same documents, whatever the files are called."""

import gzip
import itertools
import random
import time
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from llmjp.data import segments, streams
from llmjp.data.documents import Reading, Span, SpanReader
from llmjp.data.inputs import InputFile, find_files
from llmjp.data.streams import Source
from llmjp.data.tokenize import load_tokenizer, tokenize
from llmjp.errors import UserError
from llmjp_ext import Tokenizer
from tokenize_runs import TEXTS, documents, expected, json_lines, run
from tokenizer_oracle import japanese_lines, trained_directory


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """The tokenizer trained on the spot."""
    return load_tokenizer(trained_directory())


def zstd(data: bytes) -> bytes:
    """Two frames and a skippable one between them, as `zstd` and `pzstd` leave them."""
    compressor = zstandard.ZstdCompressor()
    half = len(data) // 2
    skippable = b"\x50\x2a\x4d\x18\x03\x00\x00\x00abc"
    return compressor.compress(data[:half]) + skippable + compressor.compress(data[half:])


def two_members(data: bytes) -> bytes:
    """gzip files joined with `cat`."""
    return gzip.compress(data[:50]) + gzip.compress(data[50:])


@pytest.mark.parametrize("pack", [two_members, zstd])
def test_reading_ahead_does_not_show(tmp_path: Path, pack, monkeypatch) -> None:
    """Decompressed on a thread of its own a file has the same bytes, in reads of any size, and
    breaks off at the same place; the thread works while nobody waits for it."""
    monkeypatch.setattr(streams, "BLOCK", 1000)
    data = "\n".join(f"{i} 日本語の本を読む。" for i in range(2000)).encode()
    path = tmp_path / ("a.txt.gz" if pack is two_members else "a.txt.zst")
    for packed in (pack(data), pack(data)[:-9]):
        path.write_bytes(packed)
        (file,) = find_files([path])
        results = []
        for ahead in (False, True):
            got, sizes = b"", itertools.cycle((1, 999, 1000, 5000, 17))
            with Source(file, ahead) as source:
                try:
                    while part := source.read(next(sizes)):
                        got += part
                    results.append((got[: len(data) - 12_000], ""))
                    assert got == data and source.read(5) == b""
                except streams.DamagedFile as error:
                    results.append((got[: len(data) - 12_000], str(error)))
                assert source.bytes_taken() <= len(packed) and source.bytes_taken() == 0
        assert results[0] == results[1]
        assert ("not a whole" in results[0][1]) == (packed != pack(data))
    with Source(file, True) as source:
        source.read(10)
        end = time.monotonic() + 30
        while source._ahead._next.running() and time.monotonic() < end:
            time.sleep(0.001)
        assert len(source._ahead._next.result()) == 1000


def test_one_packed_file_is_shared_by_the_cores(
    tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With more cores than files one decompresses ahead and several tokenize: the same dataset."""
    lines = japanese_lines(9, 20_000)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(json_lines(lines).encode()))
    started = []
    monkeypatch.setattr(
        streams, "_Ahead", lambda read, start=streams._Ahead: started.append(1) or start(read)
    )
    for workers in (1, 3):
        tokenize([tmp_path / "a.jsonl.gz"], tokenizer, tmp_path / f"{workers}", workers=workers)
        assert len(started) == (workers > 1)
    assert (tmp_path / "1.bin").read_bytes() == (tmp_path / "3.bin").read_bytes()
    assert documents(tmp_path / "3") == expected(tokenizer, lines)


@pytest.mark.parametrize(
    ("name", "pack"),
    [
        ("a.jsonl", bytes),
        ("a.ndjson", bytes),
        ("a.json", bytes),
        ("A.JSONL.GZ", two_members),
        ("a.json.zst", zstd),
        ("a.jsonl.zstd", zstd),
    ],
)
@pytest.mark.parametrize("ending", [b"\n", b"\r\n"])
def test_json_lines(tmp_path: Path, tokenizer: Tokenizer, name: str, pack, ending: bytes) -> None:
    """One document a line; blank lines and empty texts are none; a byte order mark is none."""
    content = (
        b"\xef\xbb\xbf" + (json_lines(TEXTS[:2]) + "\n" + json_lines(["", *TEXTS[2:]])).encode()
    )
    (tmp_path / name).write_bytes(pack(content.replace(b"\n", ending).rstrip()))
    assert run(tmp_path / name, "--out", tmp_path / "o") == 0
    assert documents(tmp_path / "o") == expected(tokenizer, TEXTS)


@pytest.mark.parametrize("type", ["string", "large_string", "dictionary<string>"])
def test_parquet(tmp_path: Path, tokenizer: Tokenizer, type: str) -> None:
    """A row a document, over several row groups; any column of strings."""
    column = pyarrow.array([*TEXTS[:2], "", *TEXTS[2:]])
    column = column.dictionary_encode() if "dict" in type else column.cast(type)
    table = pyarrow.table({"id": range(5), "body": column})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet", row_group_size=2)
    assert run(tmp_path / "a.parquet", "--json-key", "body", "--out", tmp_path / "o") == 0
    assert documents(tmp_path / "o") == expected(tokenizer, TEXTS)


def test_large_parquet_files_are_cut_between_row_groups(
    tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Row groups are tasks of their own in a large file; any cut gives the same documents."""
    texts = japanese_lines(5, 600)
    table = pyarrow.table({"text": texts})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet", row_group_size=90)
    for size in (500, 4000):
        monkeypatch.setattr(segments, "SEGMENT", size)
        files = find_files([tmp_path / "a.parquet"])
        assert len(segments.plan(files, Reading())) > 1
        tokenize([tmp_path / "a.parquet"], tokenizer, tmp_path / f"o{size}", workers=2)
        assert documents(tmp_path / f"o{size}") == expected(tokenizer, texts)


def test_the_format_can_be_named(tmp_path: Path, tokenizer: Tokenizer) -> None:
    """--format reads files of any name, and in a folder all but hidden ones."""
    (tmp_path / "in" / ".git").mkdir(parents=True)
    (tmp_path / "in" / ".git" / "config").write_text("hidden")
    (tmp_path / "in" / "a.py").write_text(TEXTS[1])
    (tmp_path / "in" / "b").write_bytes(gzip.compress(b"x"))
    (tmp_path / "in" / "b").rename(tmp_path / "in" / "b.md.gz")
    assert run(tmp_path / "in", "--format", "text", "--out", tmp_path / "o") == 0
    assert documents(tmp_path / "o") == expected(tokenizer, [TEXTS[1], "x"])
    (tmp_path / "lines").write_text(json_lines(TEXTS))
    assert run(tmp_path / "lines", "--format", "json", "--out", tmp_path / "p") == 0
    assert documents(tmp_path / "p") == expected(tokenizer, TEXTS)


def test_patterns_are_sorted_and_add_up(tmp_path: Path, tokenizer: Tokenizer) -> None:
    """A quoted pattern, also through folders; one that matches nothing is an error."""
    for index, name in enumerate(["b/2.txt", "b/1.txt", "a.txt", "c.txt"]):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(TEXTS[index])
    inputs = [str(tmp_path / "**" / "[12a].txt"), str(tmp_path / "c.txt")]
    tokenize(inputs, tokenizer, tmp_path / "o")
    order = [TEXTS[2], TEXTS[1], TEXTS[0], TEXTS[3]]
    assert documents(tmp_path / "o") == expected(tokenizer, order)
    with pytest.raises(UserError, match="no file matches"):
        find_files([str(tmp_path / "*.jsonl")])


def test_the_end_token_can_be_left_out_or_named(tmp_path: Path, tokenizer: Tokenizer) -> None:
    """--no-eod appends nothing, --eod another token; sizes count what is appended."""
    (tmp_path / "a.jsonl").write_text(json_lines(TEXTS))
    plain = [ids[:-1] for ids in expected(tokenizer, TEXTS)]
    assert run(tmp_path / "a.jsonl", "--out", tmp_path / "o", "--no-eod") == 0
    assert documents(tmp_path / "o") == plain
    assert run(tmp_path / "a.jsonl", "--out", tmp_path / "p", "--eod", "</s|LLM-jp>") == 0
    assert documents(tmp_path / "p") == [[*ids, 2] for ids in plain]


def batches_of(path: Path, span: Span, reading: Reading, resume: int | None = None) -> list:
    """A span's batches."""
    return list(SpanReader(find_files([path])[0], span, reading).batches(resume))


@pytest.mark.parametrize("split", ["lines", "blank-lines"])
@pytest.mark.parametrize("ending", ["", "\n", "\n\n"])
def test_cuts_of_text_fall_between_documents(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, split: str, ending: str
) -> None:
    """Ranges of a file at any place and going on after any batch give each document once, with
    its line number, however blocks cut them."""
    monkeypatch.setattr(streams, "BLOCK", 7)
    monkeypatch.setattr("llmjp.data.documents.BLOCK", 7)
    rng = random.Random(11)
    lines = [rng.choice(["", "あ", "bb", "cccccccccccccccccccc", "\r"]) for _ in range(40)]
    path = tmp_path / "a.txt"
    path.write_bytes(("\n".join([*lines, "end"]) + ending).encode())
    reading = Reading(split, longest=1000)
    whole = batches_of(path, Span(0, 0, None), reading)
    texts = [text for batch in whole for text in batch.texts]
    plain = [line for line in [*lines, "end"] if line not in ("", "\r")]
    assert texts == plain or split == "blank-lines"
    assert "\n".join(texts).split("\n") == plain
    for number, batch in enumerate(whole):
        rest = batches_of(path, Span(0, 0, None), reading, batch.end)
        again = [text for each in whole[: number + 1] + rest for text in each.texts]
        assert again == texts, f"after batch {number}"
        counted = sum(each.lines for each in whole[: number + 1] + rest)
        assert counted == sum(each.lines for each in whole), f"after batch {number}"
    if split == "lines":
        size = path.stat().st_size
        for step in range(1, 30):
            parts = [
                batch
                for start in range(0, size, step)
                for batch in batches_of(path, Span(0, start, min(start + step, size)), reading)
            ]
            assert [text for part in parts for text in part.texts] == texts, f"step {step}"
            assert sum(part.lines for part in parts) == sum(each.lines for each in whole)


def test_names_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    """A compressed Parquet file, an unknown suffix, a suffix of compression alone."""
    for name in ("a.parquet.gz", "a.gz", "a", "a.csv"):
        (tmp_path / name).write_bytes(b"x")
        with pytest.raises(UserError, match=r"told by their names: .*\.parquet"):
            find_files([tmp_path / name])
    with pytest.raises(UserError, match="compressed inside"):
        find_files([tmp_path / "a.parquet.gz"], "parquet")
    file = find_files([tmp_path / "a.csv"], "text")[0]
    assert file == InputFile(file.path, "text", "", 1, file.modified_ns, True)
