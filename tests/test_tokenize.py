"""`llmjp tokenize`: the documents of every kind of file, their ids, and whole files or none."""

import gzip
import json
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
from llmjp.data import tokenize as module
from llmjp.data.indexed import IndexedDataset
from llmjp.data.text import Document
from llmjp.data.tokenize import end_token_id, load_tokenizer, tokenize
from llmjp.errors import UserError
from llmjp_ext import Tokenizer
from tokenizer_oracle import ROOT, data_folder, japanese_lines, trained_directory

EOD = 7
TEXTS = ["今日は\n良い天気です。", "def f(x):\n    return x", "ーーーーー", " 空白  から"]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """The tokenizer trained on the spot."""
    return load_tokenizer(trained_directory())


def documents(prefix: Path) -> list[list[int]]:
    """The documents of a written dataset."""
    return [ids.tolist() for ids in IndexedDataset(prefix)]


def expected(tokenizer: Tokenizer, texts: list[str]) -> list[list[int]]:
    """Each text's own ids and the end-of-document id."""
    return [[*tokenizer.encode(text, add_special_tokens=False), EOD] for text in texts]


def run(*arguments: object) -> int:
    """The command as a user gives it."""
    return cli.main(["tokenize", *map(str, arguments)])


def json_lines(texts: list[str], field: str = "text") -> str:
    """A .jsonl file's content."""
    return "".join(json.dumps({field: text, "id": 1}) + "\n" for text in texts)


@pytest.mark.parametrize("compressed", [False, True])
def test_json_lines_are_documents(tmp_path: Path, tokenizer: Tokenizer, compressed: bool) -> None:
    """One document a line, gzipped or not; blank lines and empty texts are none."""
    content = (json_lines(TEXTS[:2]) + "\n" + json_lines(["", *TEXTS[2:]])).encode()
    name, data = ("a.jsonl.gz", gzip.compress(content)) if compressed else ("a.jsonl", content)
    (tmp_path / name).write_bytes(data)
    assert run(tmp_path / name, "--tokenizer", trained_directory(), "--output", tmp_path / "o") == 0
    assert documents(tmp_path / "o") == expected(tokenizer, TEXTS)


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
    tokenize([tmp_path / "a.txt"], tokenizer, tmp_path / "o", split=split)
    assert documents(tmp_path / "o") == expected(tokenizer, texts)


def test_folders_are_searched_in_order(tmp_path: Path, tokenizer: Tokenizer) -> None:
    """Text files below a folder, sorted by path; other files are left alone; inputs add up."""
    (tmp_path / "in" / "b").mkdir(parents=True)
    (tmp_path / "in" / "c.txt").write_text(TEXTS[2])
    (tmp_path / "in" / "b" / "x.txt.gz").write_bytes(gzip.compress(TEXTS[1].encode()))
    (tmp_path / "in" / "a.JSONL").write_text(json_lines(TEXTS[:1], field="body"))
    (tmp_path / "in" / "image.png").write_bytes(b"\xff\xfe")
    (tmp_path / "last.txt").write_text(TEXTS[3])
    tokenize([tmp_path / "in", tmp_path / "last.txt"], tokenizer, tmp_path / "o", field="body")
    assert documents(tmp_path / "o") == expected(tokenizer, TEXTS)


def test_batches_and_threads_do_not_show(
    tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same bytes however many documents are encoded at once, over one thread or three."""
    (tmp_path / "a.jsonl").write_text(json_lines(japanese_lines(1, 500)))
    tokenize([tmp_path / "a.jsonl"], tokenizer, tmp_path / "whole", threads=1)
    monkeypatch.setattr(module, "_BATCH_CHARACTERS", 300)
    sizes = []
    encode = Tokenizer.encode_ragged

    def counted(self: Tokenizer, texts: list[str], **rest: object) -> object:
        sizes.append(sum(map(len, texts)))
        return encode(self, texts, **rest)

    monkeypatch.setattr(Tokenizer, "encode_ragged", counted)
    tokenize([tmp_path / "a.jsonl"], tokenizer, tmp_path / "parts", threads=3)
    assert len(sizes) > 10 and max(sizes) < 300 + 100, "a batch is not bounded"
    for suffix in (".bin", ".idx"):
        whole = (tmp_path / f"whole{suffix}").read_bytes()
        assert (tmp_path / f"parts{suffix}").read_bytes() == whole


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
        assert run(tmp_path / "a.txt", *split, "--tokenizer", model, "--output", output) == 0
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
        ("a.jsonl", b'{"text": "x"}\n\n{"body": "x"}\n', r"a.jsonl:3: no field 'text'"),
        ("a.jsonl", b"[1]\n", r"a.jsonl:1: no field 'text'"),
        ("a.jsonl", b'{"text": 5}\n', r"a.jsonl:1: field 'text' is int"),
        ("a.jsonl", b'{"text": "x"}\n{"text": "\\ud800"}\n', r"a.jsonl:2: .*surrogate"),
        ("a.jsonl", b'{"text": "\xff"}\n', r"a.jsonl:1: not UTF-8: byte 0xff at offset 10"),
        ("a.txt", b"ab\xe3\x81", r"a.txt: not UTF-8: byte 0xe3 at offset 2"),
        ("a.txt.gz", gzip.compress(b"abc" * 99)[:-9], r"a.txt.gz is not a whole gzip file"),
        ("a.txt.gz", b"not gzip", r"a.txt.gz is not a whole gzip file"),
        ("a.txt", b"", r"no text in .*a.txt"),
        ("a.pdf", b"x", r"a.pdf: files are told by their names: .txt, .jsonl"),
    ],
)
def test_bad_input_is_told_in_one_line(
    tmp_path: Path, name: str, content: bytes, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """File and line, what is wrong, exit code 1, and no output, not even a part."""
    (tmp_path / name).write_bytes(content)
    output = tmp_path / "out" / "o"
    assert run(tmp_path / name, "--tokenizer", trained_directory(), "--output", output) == 1
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


def test_a_full_disk_leaves_nothing(tmp_path: Path, tokenizer: Tokenizer) -> None:
    """A file size limit stops the writing half-way: one line, no files; an old output survives."""
    (tmp_path / "a.jsonl").write_text(json_lines(japanese_lines(3, 4000)))
    (tmp_path / "small.jsonl").write_text(json_lines(TEXTS))
    tokenize([tmp_path / "small.jsonl"], tokenizer, tmp_path / "old" / "o")
    limit = 20_000
    for folder in ("old", "new"):
        result = subprocess.run(
            command(
                *(tmp_path / "a.jsonl", "--tokenizer", trained_directory(), "--overwrite"),
                *("--output", tmp_path / folder / "o"),
            ),
            env=environment(),
            capture_output=True,
            text=True,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
        )
        assert result.returncode == 1, result.stderr
        assert result.stderr.count("\n") == 1 and "File too large" in result.stderr
    assert list((tmp_path / "new").iterdir()) == []
    assert sorted(path.name for path in (tmp_path / "old").iterdir()) == ["o.bin", "o.idx"]
    assert documents(tmp_path / "old" / "o") == expected(tokenizer, TEXTS)


def test_interruption_leaves_nothing(tmp_path: Path) -> None:
    """SIGINT in the middle of the work: exit code 130 and an empty folder."""
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
        while not (output / "o.bin.partial").exists():
            assert time.monotonic() < deadline, "the output was never begun"
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, printed = process.communicate(timeout=60)
    assert process.returncode == 130, printed
    assert "Traceback" not in printed
    assert list(output.iterdir()) == []


def test_batches_hold_whole_documents_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch ends once it has enough characters or documents, and none is empty."""
    monkeypatch.setattr(module, "_BATCH_CHARACTERS", 10)
    monkeypatch.setattr(module, "_BATCH_DOCUMENTS", 3)
    texts = ["123456789", "0", "a" * 50, "b", "c", "d", "e"]
    batches = module._batches(Document(text, "", 0) for text in texts)
    lengths = [[len(document.text) for document in batch] for batch in batches]
    assert lengths == [[9, 1], [50], [1, 1, 1], [1]]
