"""`llmjp tokenize` needs the memory of its longest document, whatever the sizes of files."""

import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest
import zstandard

from llmjp.data.indexed import IndexedDataset
from tokenizer_oracle import ROOT, japanese_lines, trained_directory

MIB = 1 << 20
SCRIPT = """
import resource, sys
from llmjp import cli
from llmjp.data import segments
segments.SEGMENT = 1 << 21
code = cli.main(sys.argv[1:])
# Unlike getrusage()'s, this peak does not count what the process was before it became this one.
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
own = int(status["VmHWM"].split()[0])
print(max(own, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss))
sys.exit(code)
"""


def peak_memory(*arguments: object) -> int:
    """Peak bytes of one process among those of a run; see SCRIPT."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "python")])
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT, "tokenize", "--tokenizer", str(trained_directory())]
        + [str(argument) for argument in arguments],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    return int(result.stdout.splitlines()[-1]) * 1024


def write(path: Path, blocks: Iterable[bytes]) -> None:
    with path.open("wb") as stream:
        for block in blocks:
            stream.write(block)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> int:
    """Peak memory of a run on hardly anything."""
    folder = tmp_path_factory.mktemp("small")
    (folder / "a.jsonl").write_text('{"text": "a"}\n')
    return peak_memory(folder / "a.jsonl", "--out", folder / "o")


def test_files_of_any_size(tmp_path: Path, small: int) -> None:
    """Twenty times the bytes, plain and packed a thousandfold: a few blocks more, no more."""
    lines = [json.dumps({"text": line}) + "\n" for line in japanese_lines(1, 4000)]
    block = "".join(lines).encode()
    write(tmp_path / "a.jsonl", [block] * 100)
    packed = zstandard.ZstdCompressor().stream_writer
    with (tmp_path / "b.jsonl.zst").open("wb") as raw, packed(raw) as stream:
        for _ in range(100):
            stream.write(block)
    size = 100 * len(block)
    assert size > 40 * MIB and (tmp_path / "b.jsonl.zst").stat().st_size < size / 50
    for name in ("a.jsonl", "b.jsonl.zst"):
        peak = peak_memory(tmp_path / name, "--workers", 2, "--out", tmp_path / name[0])
        assert peak < small + 24 * MIB, (
            f"{name}: {peak / MIB:.0f} MiB, {small / MIB:.0f} for nothing"
        )
        assert len(IndexedDataset(tmp_path / name[0])) == 100 * 4000


def test_lines_that_are_too_long(tmp_path: Path, small: int) -> None:
    """A line a hundred times over the limit is passed over without being held."""
    write(
        tmp_path / "a.jsonl",
        [b'{"text": "a"}\n{"text": "', *[b"a" * MIB] * 100, b'"}\n{"text": "b"}\n'],
    )
    arguments = ("--on-error", "skip", "--max-document", 1, "--out", tmp_path / "o")
    peak = peak_memory(tmp_path / "a.jsonl", *arguments)
    assert peak < small + 16 * MIB, f"{peak / MIB:.0f} MiB, {small / MIB:.0f} for nothing"
    assert len(IndexedDataset(tmp_path / "o")) == 2


@pytest.mark.parametrize("character", ["a ", "あ", "a" * 99 + "😀"])
def test_long_documents(tmp_path: Path, small: int, character: str) -> None:
    """A document of n bytes takes at most 16 n more, wherever its characters stand in Unicode."""
    count = 12 * MIB // len(character.encode())
    text = character * count
    size = len(text.encode())
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": text}, ensure_ascii=False) + "\n")
    peak = peak_memory(tmp_path / "a.jsonl", "--out", tmp_path / "o")
    assert peak < small + 16 * size, f"{(peak - small) / size:.1f} times the document"
