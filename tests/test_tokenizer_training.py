"""llmjp tokenizer-train: what it writes loads everywhere with the same ids; its errors."""

import gzip
import json
import os
import re
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import sentencepiece
import tokenizers
import transformers
import zstandard

from llmjp import tokenizer_training
from llmjp.cli import main
from llmjp.tokenizer_training import OUTPUT_FILES, convert_sentencepiece
from llmjp_ext import Tokenizer
from tokenizer_oracle import fuzz_texts, japanese_lines, standard_library_texts, trained_directory


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """A text file that supports a vocabulary of 600 pieces."""
    path = tmp_path / "corpus.txt"
    path.write_text("\n".join(japanese_lines(4, 800)), "utf-8")
    return path


def train(*arguments: object) -> int:
    """Runs the command."""
    return main(["tokenizer-train", *map(str, arguments)])


def one_line_error(capsys: pytest.CaptureFixture[str]) -> str:
    """The command's error, without its prefix."""
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("llmjp: error: ")
    assert err.count("\n") == 1, err
    return err.removeprefix("llmjp: error: ").rstrip("\n")


def test_all_libraries_load_it_with_the_same_ids(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """llmjp_ext, tokenizers, AutoTokenizer and PreTrainedTokenizerFast, and sentencepiece where
    no literal of a special token or byte and no exact tie stands in the text."""
    output = tmp_path / "new" / "tokenizer"
    assert train(corpus, "--vocab-size", 500, "--output", output, "--threads", 1) == 0
    report = capsys.readouterr()
    assert report.err == ""
    assert report.out.count("\n") == 1
    assert f"{output}: 500 pieces from 1 files of 0.0 MB in " in report.out
    assert sorted(path.name for path in output.iterdir()) == sorted(OUTPUT_FILES)
    assert [path.name for path in output.parent.iterdir()] == ["tokenizer"]

    ours = Tokenizer.from_pretrained(output)
    oracle = tokenizers.Tokenizer.from_file(str(output / "tokenizer.json"))
    auto = transformers.AutoTokenizer.from_pretrained(output)
    fast = transformers.PreTrainedTokenizerFast.from_pretrained(output)
    assert ours.vocab_size == oracle.get_vocab_size() == len(auto) == len(fast) == 500
    for text in fuzz_texts(31, 500):
        ids = ours.encode(text)
        assert ids == oracle.encode(text).ids, repr(text)
        assert ids == auto(text)["input_ids"] == fast(text)["input_ids"], repr(text)
        decoded = ours.decode(ids)
        assert decoded == auto.decode(ids, skip_special_tokens=True), repr(text)
    for tokenizer in (auto, fast, ours.to_hf()):
        assert tokenizer.eos_token_id == 7
        assert tokenizer.pad_token_id == 4
        assert tokenizer.unk_token == "<unk|LLM-jp>"
    processor = sentencepiece.SentencePieceProcessor(model_file=str(output / "tokenizer.model"))
    lines = [line.rstrip("ーあ笑w!草…=-") for line in japanese_lines(5, 500)]
    assert processor.encode(lines) == ours.encode_batch(lines, add_special_tokens=False)


def test_the_recipe_is_followed(corpus: Path, tmp_path: Path) -> None:
    """Special ids, the newline and byte pieces, split digits, no piece longer than asked for."""
    tokenizer = Tokenizer.from_pretrained(trained_directory())
    names = ["unk", "s", "/s", "mask", "pad", "CLS", "SEP", "EOD"]
    assert [tokenizer.id_to_token(id) for id in range(8)] == [f"<{name}|LLM-jp>" for name in names]
    assert all(tokenizer.token_to_id(f"<0x{byte:02X}>") is not None for byte in range(256))
    pieces = [tokenizer.id_to_token(id) or "" for id in range(tokenizer.vocab_size)]
    assert pieces.count("\n") == 1
    assert not [piece for piece in pieces[8:] if "\n" in piece and piece != "\n"]
    words = [piece for piece in pieces[8:] if not piece.startswith("<0x")]
    assert not [piece for piece in words if len(piece) > 1 and any(map(str.isdigit, piece))]
    assert [piece for piece in words if len(piece) > 1 and set(piece) == {"▁"}]
    output = tmp_path / "short"
    arguments = ("--vocab-size", 380, "--max-piece-length", 2, "--character-coverage", 1)
    assert train(corpus, "--output", output, *arguments) == 0
    short = Tokenizer.from_pretrained(output)
    characters = set(corpus.read_text("utf-8")) - {"\n"}
    assert all(short.token_to_id(character) is not None for character in characters)
    learned = [short.id_to_token(id) or "" for id in range(8 + 257, short.vocab_size)]
    assert max(map(len, learned)) == 2


def test_inputs_of_all_kinds_are_read(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Folders, JSON lines under a key, Parquet, gzip, zstd, lines longer than SentencePiece takes,
    a sample; the way of counting that large corpora need changes nothing."""
    folder = tmp_path / "texts"
    folder.mkdir()
    lines = corpus.read_text("utf-8").split("\n")
    with gzip.open(folder / "a.jsonl.gz", "wt", encoding="utf-8") as file:
        file.writelines(json.dumps({"body": line}) + "\n" for line in lines)
    long = "".join(japanese_lines(7, 5000))
    assert len(long) > 70_000
    (folder / "b.txt").write_text(long + "魑魅魍魎。" * 20, "utf-8")
    table = pyarrow.table({"body": [lines[0] + "鸚鵡" * 20] * 2})
    pyarrow.parquet.write_table(table, folder / "c.parquet")
    packed = "\n".join([*lines[:50], "躊躇" * 20]).encode()
    (folder / "d.txt.zst").write_bytes(zstandard.compress(packed))
    (folder / "notes.md").write_text("not read: ☃", "utf-8")
    output = tmp_path / "out"
    arguments = ("--vocab-size", 420, "--json-key", "body", "--output", output)
    arguments = (*arguments, "--character-coverage", 1)
    assert train(folder, *arguments) == 0
    tokenizer = Tokenizer.from_pretrained(output)
    assert tokenizer.token_to_id("魍") is not None
    assert tokenizer.token_to_id("猫") is not None
    assert tokenizer.token_to_id("鸚") is not None and tokenizer.token_to_id("躇") is not None
    assert tokenizer.token_to_id("☃") is None
    before = (output / "tokenizer.json").read_bytes()
    monkeypatch.setattr(tokenizer_training, "LARGE_CORPUS", 0)
    assert train(folder, *arguments, "--overwrite") == 0
    assert (output / "tokenizer.json").read_bytes() == before
    assert train(folder, *arguments, "--max-lines", 200, "--overwrite", "--allow-fewer") == 0


def test_an_existing_tokenizer_stays_unless_told_otherwise(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Refused without --overwrite; with it, other files stay and a failure changes nothing."""
    output = tmp_path / "model"
    output.mkdir()
    (output / "config.json").write_text("{}")
    assert train(corpus, "--vocab-size", 450, "--output", output) == 0
    before = {path.name: path.read_bytes() for path in output.iterdir()}
    capsys.readouterr()
    assert train(corpus, "--vocab-size", 430, "--output", output) == 1
    assert "--overwrite" in one_line_error(capsys)
    assert train(corpus, "--vocab-size", 99_999, "--output", output, "--overwrite") == 1
    assert "supports a vocabulary of" in one_line_error(capsys)
    assert {path.name: path.read_bytes() for path in output.iterdir()} == before
    assert train(corpus, "--vocab-size", 430, "--output", output, "--overwrite") == 0
    assert Tokenizer.from_pretrained(output).vocab_size == 430
    assert (output / "config.json").read_text() == "{}"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["corpus.txt", "model"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--vocab-size", 265], "more than 265, got 265"),
        (["--vocab-size", -1], "got -1"),
        (["--vocab-size", 270], "too small for the text's characters"),
        (["--vocab-size", 50_000], "--allow-fewer"),
        (["--vocab-size", 400, "--character-coverage", 0.5], "0.98 to 1.0, got 0.5"),
        (["--vocab-size", 400, "--character-coverage", "nan"], "got nan"),
        (["--vocab-size", 400, "--max-piece-length", 0], "1 to 512 characters, got 0"),
        (["--vocab-size", 400, "--max-lines", 0], "got 0"),
        (["--vocab-size", 400, "--threads", 0], "1 to 1024, got 0"),
    ],
)
def test_settings_out_of_range_are_named(
    arguments: list[object],
    words: str,
    corpus: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """One line with what was given and what is possible; nothing is left on disk."""
    assert train(corpus, "--output", tmp_path / "out", *arguments) == 1
    assert words in one_line_error(capsys)
    assert [path.name for path in tmp_path.iterdir()] == ["corpus.txt"]


def test_inputs_that_cannot_be_used_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Missing, empty, not UTF-8, without the field, half a surrogate pair, an impossible output."""
    folder = tmp_path / "in"
    folder.mkdir()
    good = folder / "good.txt"
    good.write_text("hello world\n")
    contents = {
        "empty.txt": b"\n\n",
        "bytes.txt": b"good\n\xff\xfe\n",
        "field.jsonl": b'{"text": "good"}\n{"other": 1}\n',
        "half.jsonl": b'{"text": "good"}\n{"text": "a\\ud800"}\n',
        "cut.txt.gz": gzip.compress(b"hello world\n" * 1000)[:-9],
    }
    expected = {
        "empty.txt": "no text",
        "bytes.txt": "bytes.txt:2: not UTF-8",
        "field.jsonl": "field.jsonl:2: no key 'text'",
        "half.jsonl": "half.jsonl:2: the lone surrogate U+D800 at character 1",
        "cut.txt.gz": "cut.txt.gz is not a whole gzip file",
        "none.txt": "none.txt does not exist",
        ".": "not UTF-8",
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    for name, words in expected.items():
        assert train(folder / name, "--vocab-size", 300, "--output", tmp_path / "out") == 1
        assert words in one_line_error(capsys), name
    assert [path.name for path in tmp_path.iterdir()] == ["in"]
    assert train(good, "--vocab-size", 300, "--output", good) == 1
    assert "is a file" in one_line_error(capsys)
    assert train(good, "--vocab-size", 300, "--output", good / "x") == 1
    assert "good.txt" in one_line_error(capsys)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_an_output_without_rights_is_named(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A folder that may not be written is an error before any training."""
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    assert train(corpus, "--vocab-size", 400, "--output", locked / "out") == 1
    assert "locked" in one_line_error(capsys)


def test_conversion_refuses_what_is_not_supported(tmp_path: Path) -> None:
    """A model with SentencePiece's default normalisation is named as such."""
    prefix = tmp_path / "nmt"
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(japanese_lines(6, 300)),
        model_prefix=str(prefix),
        vocab_size=400,
        byte_fallback=True,
        minloglevel=2,
    )
    with pytest.raises(ValueError, match="nmt_nfkc"):
        convert_sentencepiece(prefix.with_suffix(".model"))


def test_conversion_of_code_keeps_the_ids() -> None:
    """Source files: .model and tokenizer.json agree in ours, a line at a time."""
    folder = trained_directory()
    model = Tokenizer.from_file(folder / "tokenizer.model")
    converted = Tokenizer.from_file(folder / "tokenizer.json")
    lines = [line for text in standard_library_texts(6) for line in text.split("\n")]
    lines = [line for line in lines if "<" not in line and "--" not in line and "==" not in line]
    for line in lines:
        assert model.encode(line) == converted.encode(line, add_special_tokens=False), repr(line)


def test_model_and_tokenizer_json_agree_on_any_text() -> None:
    """Newlines (a user-defined symbol), unknown characters (byte fallback), controls, spaces and
    runs: both files give the same ids in both libraries and in ours, but for exact ties, where
    equal sums show that either way is the best one."""
    folder = trained_directory()
    files = folder / "tokenizer.model", folder / "tokenizer.json"
    model = sentencepiece.SentencePieceProcessor(model_file=str(files[0]))
    converted = tokenizers.Tokenizer.from_file(str(files[1]))
    scores = np.array([model.get_score(id) for id in range(model.vocab_size())])
    literals = re.compile("<[^>]*>|▁")  # of which each file has its own
    texts = [literals.sub("\n", text) for text in fuzz_texts(41, 3000)]
    texts += ["\n".join(japanese_lines(seed, 5)) for seed in range(100)]
    oracle = [encoding.ids for encoding in converted.encode_batch(texts, add_special_tokens=False)]
    tied = 0
    for text, wanted, other in zip(texts, model.encode(texts), oracle, strict=True):
        if wanted != other:
            assert scores[wanted].sum() == pytest.approx(scores[other].sum(), rel=1e-6), repr(text)
            tied += 1
    assert tied < len(texts) / 20, tied
    assert Tokenizer.from_file(files[1]).encode_batch(texts, add_special_tokens=False) == oracle
    rounded = Tokenizer.from_file(files[0], float32_sums=True)
    assert rounded.encode_batch(texts) == model.encode(texts)
    newline, fallback = model.piece_to_id("\n"), model.piece_to_id("<0x00>")
    assert sum(newline in ids for ids in oracle) > 100
    assert sum(any(fallback <= id < fallback + 256 for id in ids) for ids in oracle) > 100
