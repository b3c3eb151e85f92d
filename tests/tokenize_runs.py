"""What the tests of `llmjp tokenize` share: inputs, runs of the command, and datasets read back."""

import itertools
import json
import multiprocessing
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from llmjp import cli
from llmjp.data import output, segments
from llmjp.data.indexed import IndexedDataset
from llmjp.data.journal import Journal
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
    """Every file of a folder and its content, but the time at which a range of ids was found."""
    found = {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    for name, content in found.items():
        if name.endswith(".range.json"):
            entry = json.loads(content)
            del entry["of"]["modified_ns"]
            found[name] = json.dumps(entry).encode()
    return found


def in_child(work: Callable[[], object]) -> int:
    """Runs something in a process of its own; its exit code, or the signal's number below zero."""
    child = multiprocessing.get_context("fork").Process(target=work)
    child.start()
    child.join(60)
    assert child.exitcode is not None, "the process does not end"
    return child.exitcode


@contextmanager
def counted(monkeypatch: pytest.MonkeyPatch, act: Callable[[int], None]) -> Iterator[None]:
    """Calls `act` with 1, 2, ... before everything that changes a run's files."""
    count = itertools.count(1)

    def wrap(owner: object, name: str) -> None:
        function = getattr(owner, name)

        def wrapped(*arguments: object, **named: object) -> object:
            act(next(count))
            return function(*arguments, **named)

        patch.setattr(owner, name, wrapped)

    with monkeypatch.context() as patch:
        wrap(Journal, "append")
        wrap(segments._Growing, "write")
        wrap(output, "copy")
        wrap(output, "write_index")
        wrap(output.shutil, "rmtree")
        wrap(os, "fsync")
        for name in ("unlink", "replace", "rename"):
            wrap(Path, name)
        yield
