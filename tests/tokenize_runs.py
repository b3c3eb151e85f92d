"""What the tests of `llmjp tokenize` share: inputs, runs of the command, and datasets read back."""

import json
from pathlib import Path

from llmjp import cli
from llmjp.data.indexed import IndexedDataset
from llmjp_ext import Tokenizer
from tokenizer_oracle import trained_directory

EOD = 7
TEXTS = ["今日は\n良い天気です。", "def f(x):\n    return x", "ーーーーー", " 空白  から"]


def documents(prefix: Path) -> list[list[int]]:
    """The documents of a written dataset."""
    return [ids.tolist() for ids in IndexedDataset(prefix)]


def expected(tokenizer: Tokenizer, texts: list[str]) -> list[list[int]]:
    """Each text's own ids and the end-of-document id."""
    return [[*tokenizer.encode(text, add_special_tokens=False), EOD] for text in texts]


def run(*arguments: object) -> int:
    """The command as a user gives it."""
    return cli.main(["tokenize", *map(str, arguments), "--tokenizer", str(trained_directory())])


def json_lines(texts: list[str], key: str = "text") -> str:
    """A .jsonl file's content."""
    return "".join(json.dumps({key: text, "id": 1}) + "\n" for text in texts)


def files_below(folder: Path) -> dict[str, bytes]:
    """Every file of a folder and its content."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
