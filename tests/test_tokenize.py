"""`llmjp tokenize`: the documents of every kind of file, their ids, and whole files or none."""

import gzip
import io
import os
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from llmjp import cli
from llmjp.data import segments
from llmjp.data.documents import Reading
from llmjp.data.indexed import IndexedDataset
from llmjp.data.tokenize import end_token_id, load_tokenizer, tokenize
from llmjp.errors import UserError
from llmjp_ext import Tokenizer
from tokenize_runs import EOD, TEXTS, documents, expected, json_lines, run
from tokenizer_oracle import ROOT, data_folder, japanese_lines, trained_directory


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """The tokenizer trained on the spot."""
    return load_tokenizer(trained_directory())


@pytest.mark.parametrize(
    ("split", "texts"),
    [
        ("file", ["一行目\n二行目\r\n\n三行目\n \n四\n五"]),
        ("lines", ["一行目", "二行目", "三行目", " ", "四", "五"]),
        ("blank-lines", ["一行目\n二行目", "三行目", "四\n五"]),
    ],
)
def test_plain_text_is_split_as_asked(
    tmp_path: Path, tokenizer: Tokenizer, split: str, texts: list[str]
) -> None:
    """A file, a line, or a paragraph is a document; line ends are text only in whole files."""
    (tmp_path / "a.txt").write_bytes("一行目\n二行目\r\n\n三行目\n \n四\n五".encode())
    tokenize([tmp_path / "a.txt"], tokenizer, tmp_path / "o", reading=Reading(split))
    assert documents(tmp_path / "o") == expected(tokenizer, texts)


def test_folders_are_searched_in_order(tmp_path: Path, tokenizer: Tokenizer) -> None:
    """Text files below a folder, sorted by path; other files are left alone; inputs add up."""
    (tmp_path / "in" / "b").mkdir(parents=True)
    (tmp_path / "in" / "c.txt").write_text(TEXTS[2])
    (tmp_path / "in" / "b" / "x.txt.gz").write_bytes(gzip.compress(TEXTS[1].encode()))
    (tmp_path / "in" / "a.JSONL").write_text(json_lines(TEXTS[:1], key="body"))
    (tmp_path / "in" / "image.png").write_bytes(b"\xff\xfe")
    (tmp_path / "last.txt").write_text(TEXTS[3])
    tokenize(
        [tmp_path / "in", tmp_path / "last.txt"],
        tokenizer,
        tmp_path / "o",
        reading=Reading(key="body"),
    )
    assert documents(tmp_path / "o") == expected(tokenizer, TEXTS)


def test_workers_and_cuts_do_not_show(
    tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same bytes from one process and from three, whatever pieces the input is cut into."""
    lines = japanese_lines(1, 2000)
    (tmp_path / "a.jsonl").write_text(json_lines(lines), encoding="utf-8")
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(json_lines(lines[::-1]).encode()))
    (tmp_path / "c.jsonl").write_text(json_lines(lines[:3]), encoding="utf-8")
    inputs = [tmp_path / name for name in ("a.jsonl", "b.jsonl.gz", "c.jsonl")]
    tokenize(inputs, tokenizer, tmp_path / "whole", workers=1)
    assert documents(tmp_path / "whole") == expected(tokenizer, lines + lines[::-1] + lines[:3])
    dataset = IndexedDataset(tmp_path / "whole")
    # The trainer finds the ids' range without reading them.
    assert dataset.known_range() == (0, max(int(ids.max()) for ids in dataset))
    for size, workers in ((1 << 25, 3), (777, 3), (4000, 2), (4000, 1), (100_000, 2)):
        monkeypatch.setattr(segments, "SEGMENT", size)
        output = tmp_path / f"parts-{size}-{workers}"
        summary = tokenize(inputs, tokenizer, output, workers=workers)
        assert summary.workers <= workers and summary.documents == 2 * len(lines) + 3
        for suffix in (".bin", ".idx"):
            whole = (tmp_path / f"whole{suffix}").read_bytes()
            assert output.with_name(output.name + suffix).read_bytes() == whole, (size, workers)


class Terminal(io.StringIO):
    """A stderr that somebody looks at."""

    def isatty(self) -> bool:
        return True


def test_progress_and_the_share_of_each_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a terminal: bytes done of all, time left, bytes a second, documents and tokens. In the
    end: MB/s, and shares of all stages, which are all of the time."""
    lines = japanese_lines(2, 20_000)
    (tmp_path / "a.jsonl").write_text(json_lines(lines), encoding="utf-8")
    monkeypatch.setattr(segments, "SEGMENT", 1 << 16)
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    assert run(tmp_path / "a.jsonl", "--out", tmp_path / "o", "--workers", 1) == 0
    bar = terminal.getvalue()
    done, rate = r"\d+%\|.*\| [\d.]+[kM]?/[\d.]+M", r"[\d.]+[kM]B/s"
    assert re.search(done + r" \[\d\d:\d\d<[\d:?]+, +" + rate, bar), bar
    assert f"{len(lines):,} documents, {IndexedDataset(tmp_path / 'o').token_count:,} tokens" in bar
    out = capsys.readouterr().out
    assert re.search(r" in [\d.]+ s \([\d,.]+ MB/s\)\n", out)
    shares = dict(re.findall(r"(\w+) (\d+)%", out))
    assert set(shares) == set(segments.STAGES)
    assert abs(sum(map(int, shares.values())) - 100) <= len(shares) / 2


def test_special_tokens_in_documents(tmp_path: Path, tokenizer: Tokenizer) -> None:
    """Spelled out in a document they get their ids, as in Hugging Face."""
    (tmp_path / "a.txt").write_text("a<EOD|LLM-jp>b")
    tokenize([tmp_path / "a.txt"], tokenizer, tmp_path / "o")
    assert documents(tmp_path / "o")[0].count(EOD) == 2


def test_real_tokenizer_files_work(tmp_path: Path) -> None:
    """LLM-jp's tokenizer.json, its folder and its .model: own ids and EOD, all uint16."""
    folder = data_folder() / "llm-jp-tokenizer-v2.1"
    texts = japanese_lines(2, 50)
    (tmp_path / "a.txt").write_text("\n".join(texts))
    models = [folder, folder / "tokenizer.json", next(folder.glob("*.model"))]
    for index, model in enumerate(models):
        output = tmp_path / str(index)
        split = ("--split", "lines")
        arguments = (tmp_path / "a.txt", *split, "--tokenizer", model, "--output", output)
        assert cli.main(["tokenize", *map(str, arguments)]) == 0
        assert documents(output) == expected(load_tokenizer(model), texts)
        assert IndexedDataset(output).dtype.itemsize == 2


def test_end_token_is_named_or_found(tokenizer: Tokenizer) -> None:
    """The template's own token; another by name; a name that does not exist is refused."""
    assert end_token_id(tokenizer) == EOD
    assert end_token_id(tokenizer, "</s|LLM-jp>") == 2
    with pytest.raises(UserError, match="no token '<end>'; --eod"):
        end_token_id(tokenizer, "<end>")


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.jsonl", b'{"text": "x"}\n{"text": \n', r"a.jsonl:2: not a line of JSON"),
        (
            "a.jsonl",
            b'{"text": "x"}\n\n{"body": "x"}\n',
            r"a.jsonl:3: no key 'text'.*found: 'body'",
        ),
        ("a.jsonl", b"[1]\n", r"a.jsonl:1: an array instead of an object with 'text'"),
        ("a.jsonl", b'{"text": 5}\n', r"a.jsonl:1: 'text' is a number, not a string"),
        ("a.jsonl", b'{"text": "x"}\n{"text": "\\ud800"}\n', r"a.jsonl:2: .*surrogate"),
        ("a.jsonl", b'{"text": "\xff"}\n', r"a.jsonl:1: not UTF-8: byte 0xff at offset 10"),
        ("a.txt", b"ab\xe3\x81", r"a.txt: not UTF-8: byte 0xe3 at offset 2"),
        ("a.txt.gz", gzip.compress(b"abc" * 99)[:-9], r"a.txt.gz is not a whole gzip file"),
        ("a.txt.gz", b"not gzip", r"a.txt.gz is not a whole gzip file"),
        ("a.txt", b"", r"no text in .*a.txt"),
        ("a.pdf", b"x", r"a.pdf: files are told by their names: .jsonl.*--format"),
    ],
)
def test_bad_input_is_told_in_one_line(
    tmp_path: Path, name: str, content: bytes, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """File and line, what is wrong, exit code 1, and no output, not even a part."""
    (tmp_path / name).write_bytes(content)
    output = tmp_path / "out" / "o"
    assert run(tmp_path / name, "--output", output) == 1
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1 and printed.startswith("llmjp: error: ")
    assert re.search(reason, printed), printed
    assert not output.parent.exists() or list(output.parent.iterdir()) == []


def test_missing_and_existing_files_are_told(tmp_path: Path, tokenizer: Tokenizer) -> None:
    """Missing inputs, folders without text, missing tokenizers, an output that is there."""
    (tmp_path / "a.txt").write_text("x")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"b\.txt does not exist"):
        tokenize([tmp_path / "b.txt"], tokenizer, tmp_path / "o")
    with pytest.raises(UserError, match="empty holds no file named"):
        tokenize([tmp_path / "empty"], tokenizer, tmp_path / "o")
    with pytest.raises(UserError, match=r"empty holds no tokenizer\.json"):
        load_tokenizer(tmp_path / "empty")
    with pytest.raises(UserError, match=r"t\.json does not exist"):
        load_tokenizer(tmp_path / "t.json")
    with pytest.raises(UserError, match=r"a\.txt: "):
        load_tokenizer(tmp_path / "a.txt")
    tokenize([tmp_path / "a.txt"], tokenizer, tmp_path / "o")
    with pytest.raises(UserError, match="exists already; --overwrite"):
        tokenize([tmp_path / "a.txt"], tokenizer, tmp_path / "o")
    before = documents(tmp_path / "o")
    (tmp_path / "a.txt").write_text("もっと長い文書")
    tokenize([tmp_path / "a.txt"], tokenizer, tmp_path / "o", overwrite=True)
    assert documents(tmp_path / "o") != before


def command(*arguments: object) -> list[str]:
    """The command as a process of its own."""
    return [sys.executable, "-m", "llmjp.cli", "tokenize", *map(str, arguments)]


def environment() -> dict[str, str]:
    """The checkout's packages, wherever the process runs."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "python")])}


def test_a_full_disk_can_be_continued(tmp_path: Path, tokenizer: Tokenizer) -> None:
    """A file size limit stops the writing half-way: one line; the old output survives; with more
    room the same command goes on."""
    lines = japanese_lines(3, 4000)
    (tmp_path / "a.jsonl").write_text(json_lines(lines))
    (tmp_path / "small.jsonl").write_text(json_lines(TEXTS))
    tokenize([tmp_path / "small.jsonl"], tokenizer, tmp_path / "o")
    arguments = (tmp_path / "a.jsonl", "--overwrite", "--output", tmp_path / "o")
    limit = 20_000
    result = subprocess.run(
        command(*arguments, "--tokenizer", trained_directory()),
        env=environment(),
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    assert result.returncode == 1, result.stderr
    assert result.stderr.count("\n") == 1 and "File too large" in result.stderr
    assert documents(tmp_path / "o") == expected(tokenizer, TEXTS)
    assert run(*arguments) == 0
    assert documents(tmp_path / "o") == expected(tokenizer, lines)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["a.jsonl", "o.bin", "o.idx", "o.range.json", "small.jsonl"]


def test_interruption_before_anything_is_done_leaves_nothing(tmp_path: Path) -> None:
    """SIGINT in the middle of the first segment: exit code 130 and an empty folder."""
    fifo = tmp_path / "a.txt"
    os.mkfifo(fifo)  # never ends, so that the interruption comes in the middle for certain
    output = tmp_path / "out"
    process = subprocess.Popen(
        command(
            *(fifo, "--split", "lines", "--tokenizer", trained_directory()),
            *("--output", output / "o"),
        ),
        env=environment(),
        stderr=subprocess.PIPE,
        text=True,
    )
    with fifo.open("w") as stream:  # returns once the command reads
        stream.write("一行目\n" * 10)
        stream.flush()
        deadline = time.monotonic() + 60
        while not (output / "o.partial" / "journal").exists():
            assert time.monotonic() < deadline, "the output was never begun"
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, printed = process.communicate(timeout=60)
    assert process.returncode == 130, printed
    assert "Traceback" not in printed and "interrupted: nothing was finished yet" in printed
    assert not output.exists()
