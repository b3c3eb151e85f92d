"""The bundled text of the demo: enough of it, clean, varied, and of the kinds that it claims.

Folders name the kinds: ja (Japanese prose), en (English prose), code (Python, C, shell, SQL). Prose
documents are separated by one blank line; a file of code is one document.
"""

import ast
import itertools
import re
from collections import Counter
from pathlib import Path

import pytest

TEXT = Path(__file__).resolve().parents[1] / "python" / "llmjp" / "demo" / "text"
FILES = sorted(path for path in TEXT.rglob("*") if path.is_file())
PYTHON = [path for path in FILES if path.name.endswith(".py.txt")]
KINDS = {"ja": (0.55, 0.68), "en": (0.15, 0.25), "code": (0.15, 0.25)}
LEAST_BYTES = 66_000
LONGEST_LINE = 400
# Lines below this length are headings, greetings and turns of dialogue, which may come back.
SHORTEST_PARAGRAPH = 30
MACHINE_PATH = re.compile(r"(?<![\w.])/(?:work|home|root|tmp|usr|opt|mnt|Users|var)\b|[A-Z]:\\")
JAPANESE = re.compile(r"[\u3000-\u30ff\u3400-\u9fff\uff00-\uffef]")


def name(path: Path) -> str:
    """The file's path below the text folder, for test names and messages."""
    return path.relative_to(TEXT).as_posix()


def read(path: Path) -> str:
    """The file as it lies on disk: no translation of line ends."""
    return path.read_bytes().decode("utf-8")


def prose() -> list[Path]:
    """The files whose documents are separated by blank lines."""
    return [path for path in FILES if name(path).split("/")[0] in ("ja", "en")]


def repeated(parts: list[str]) -> list[str]:
    """Everything that occurs more than once."""
    return [part for part, count in Counter(parts).items() if count > 1]


def test_size_and_shares_of_kinds():
    sizes = Counter()
    for path in FILES:
        sizes[name(path).split("/")[0]] += path.stat().st_size
    total = sizes.total()
    assert total >= LEAST_BYTES, f"{total} bytes"
    assert set(sizes) == set(KINDS), f"folders {sorted(sizes)}"
    for kind, (least, most) in KINDS.items():
        assert least <= sizes[kind] / total <= most, f"{kind}: {sizes[kind]} of {total} bytes"


@pytest.mark.parametrize("path", FILES, ids=name)
def test_file_is_clean(path: Path):
    data = path.read_bytes()
    text = data.decode("utf-8")
    assert not data.startswith(b"\xef\xbb\xbf"), "byte order mark"
    odd = {c for c in text if c != "\n" and (not c.isprintable() and c != "\u3000")}
    assert not odd, f"control or invisible characters {sorted(map(ascii, odd))}"
    assert text.endswith("\n") and not text.endswith("\n\n"), "one newline at the end"
    assert not text.startswith("\n"), "blank line at the start"
    lines = text.split("\n")
    trailing = [number for number, line in enumerate(lines, 1) if line != line.rstrip()]
    assert not trailing, f"blanks at the end of lines {trailing}"
    longest = max(len(line) for line in lines)
    assert longest <= LONGEST_LINE, f"a line of {longest} characters"
    assert not MACHINE_PATH.search(text), MACHINE_PATH.findall(text)


def test_machine_paths_are_recognised():
    for planted in ("see /home/someone/x", "open(/tmp/a)", "C:\\data"):
        assert MACHINE_PATH.search(planted), planted
    for innocent in ("#!/bin/sh", "m/s", "and/or", "1/2", "5 // 60"):
        assert not MACHINE_PATH.search(innocent), innocent


@pytest.mark.parametrize("path", prose(), ids=name)
def test_prose_is_of_its_language(path: Path):
    text = "".join(read(path).split())
    share = len(JAPANESE.findall(text)) / len(text)
    if name(path).startswith("ja/"):
        assert share > 0.9, f"{share:.0%} Japanese characters"
        for script in ("[\u3041-\u309f]", "[\u30a0-\u30ff]", "[\u4e00-\u9fff]", "、", "。"):
            assert re.search(script, text), f"no {script}"
    else:
        assert share < 0.02, f"{share:.0%} Japanese characters"


def test_prose_documents_are_separated_by_one_blank_line():
    for path in prose():
        assert "\n\n\n" not in read(path), name(path)


def test_nothing_is_repeated():
    documents = [part for path in prose() for part in read(path).strip().split("\n\n")]
    assert not repeated(documents)
    lines = itertools.chain.from_iterable(part.split("\n") for part in documents)
    assert not repeated([line for line in lines if len(line) >= SHORTEST_PARAGRAPH])
    code = [path for path in FILES if path not in prose()]
    blocks = [part.strip("\n") for path in code for part in re.split(r"\n{2,}", read(path))]
    assert not repeated([block for block in blocks if "\n" in block])


@pytest.mark.parametrize("path", PYTHON, ids=name)
def test_python_is_valid_and_documented(path: Path):
    tree = ast.parse(read(path), filename=name(path))
    assert ast.get_docstring(tree), "no module docstring"


def test_code_has_every_language():
    for ending in (".py.txt", ".c.txt", ".sh.txt", ".sql.txt"):
        assert any(path.name.endswith(ending) for path in FILES), f"no {ending}"
