"""Texts encoded as they come: the same ids, bounded look-ahead, errors that say where."""

import gzip
import itertools
import weakref
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from llmjp_ext import Tokenizer
from tokenizer_oracle import fuzz_texts, japanese_lines, load_both, model_file

THREADS = (1, 3)


@pytest.fixture(scope="module")
def ours() -> Tokenizer:
    """The tokenizer trained on the spot."""
    return load_both(model_file("trained"))[0]


def lists_of(chunks: Iterator[tuple[np.ndarray, np.ndarray]]) -> list[list[int]]:  # type: ignore[type-arg]
    """The ids of each text of ragged chunks."""
    return [
        ids[begin:end].tolist()
        for ids, offsets in chunks
        for begin, end in itertools.pairwise(offsets.tolist())
    ]


@pytest.mark.parametrize("threads", THREADS)
@pytest.mark.parametrize("chunk_characters", [1, 300, 1 << 20])
def test_iterators_give_the_ids_of_a_batch(
    ours: Tokenizer, threads: int, chunk_characters: int
) -> None:
    """Any size of chunk, any number of threads: encode_batch()'s ids in its order."""
    texts = ["", *fuzz_texts(31, 300), *japanese_lines(32, 100), ""]
    for special in (True, False):
        expected = ours.encode_batch(texts, special)
        options = {"num_threads": threads, "chunk_characters": chunk_characters}
        assert list(ours.encode_iter(iter(texts), special, **options)) == expected
        assert lists_of(ours.encode_ragged_iter(iter(texts), special, **options)) == expected
    literal = ["a<EOD|LLM-jp>b"]
    assert next(ours.encode_iter(literal, True, True)) == ours.encode(
        literal[0], encode_special_tokens=True
    )


@pytest.mark.parametrize("threads", THREADS)
def test_nothing_gives_nothing(ours: Tokenizer, threads: int) -> None:
    """No texts, no lists and no chunks."""
    assert list(ours.encode_iter([], num_threads=threads)) == []
    assert list(ours.encode_ragged_iter(iter(()), num_threads=threads)) == []


@pytest.mark.parametrize("threads", THREADS)
def test_look_ahead_is_bounded(ours: Tokenizer, threads: int) -> None:
    """An endless source is read two chunks and one text ahead of what was taken, at most."""
    taken = read = 0
    text = "本を読む。" * 10

    def endless() -> Iterator[str]:
        nonlocal read
        while True:
            read += 1
            yield text

    chunk = 20 * len(text)
    for _, offsets in itertools.islice(
        ours.encode_ragged_iter(endless(), num_threads=threads, chunk_characters=chunk), 30
    ):
        taken += len(offsets) - 1
        assert (read - taken) * len(text) <= 2 * (chunk + len(text)), (read, taken)


class Words(str):
    """A str that can be watched."""

    __slots__ = ("__weakref__",)


@pytest.mark.parametrize("threads", THREADS)
def test_texts_are_let_go(ours: Tokenizer, threads: int) -> None:
    """Texts are not kept once their ids have been taken: memory does not grow with the corpus."""
    alive: weakref.WeakSet[Words] = weakref.WeakSet()

    def watched() -> Iterator[str]:
        for i in range(400):
            words = Words(f"{i} 本を読む。")
            alive.add(words)
            yield words

    most = 0
    for _ in ours.encode_ragged_iter(watched(), num_threads=threads, chunk_characters=10 * 26):
        most = max(most, len(alive))
    assert most <= 40, "of 400 texts, in chunks of about ten"


@pytest.mark.parametrize("threads", THREADS)
@pytest.mark.parametrize("chunk_characters", [1, 200, 1 << 20])
@pytest.mark.parametrize("bad", ["\ud800", b"bytes", 7])
def test_a_bad_text_is_named(
    ours: Tokenizer, threads: int, chunk_characters: int, bad: object
) -> None:
    """All texts before it come out; then a TypeError with its index, and nothing more."""
    texts = japanese_lines(33, 40)
    source = [*texts[:23], bad, *texts[23:]]
    iterator = ours.encode_iter(
        source,  # type: ignore[arg-type]
        num_threads=threads,
        chunk_characters=chunk_characters,
    )
    got = []
    with pytest.raises(TypeError, match=r"^text 23\b.*(surrogate|bytes|int)"):
        got.extend(iterator)
    for ids, text in zip(got, texts[:23], strict=True):
        assert ids == ours.encode(text)
    assert next(iterator, None) is None


@pytest.mark.parametrize("threads", THREADS)
def test_a_failing_source_fails_in_its_place(ours: Tokenizer, threads: int) -> None:
    """What the source raises comes after the texts that it gave, unchanged."""

    def failing() -> Iterator[str]:
        yield from ("一", "二", "三")
        raise ConnectionResetError("gone")

    got = []
    with pytest.raises(ConnectionResetError, match="gone"):
        for ids in ours.encode_iter(failing(), num_threads=threads, chunk_characters=20):
            got.append(ids)
    assert got == ours.encode_batch(["一", "二", "三"])


@pytest.mark.parametrize("threads", THREADS)
def test_an_iterator_left_early_closes_its_source(ours: Tokenizer, threads: int) -> None:
    """close() ends the generator that the texts come from."""
    closed = False

    def source() -> Iterator[str]:
        nonlocal closed
        try:
            while True:
                yield "本"
        finally:
            closed = True

    iterator = ours.encode_ragged_iter(source(), num_threads=threads, chunk_characters=100)
    next(iterator)
    iterator.close()  # type: ignore[attr-defined]
    assert closed


@pytest.mark.parametrize("threads", THREADS)
@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("last", ["", "\n", "no newline"])
def test_a_file_gives_its_lines(
    ours: Tokenizer, tmp_path: Path, threads: int, zipped: bool, last: str
) -> None:
    """Plain or gzipped, with or without a last newline; only a newline ends a line."""
    lines = [*japanese_lines(34, 60), "", "a\rb\x0b\x0c\x85\u2028c", "crlf\r", "  indented"]
    content = ("\n".join(lines) + "\n" + last).encode()
    path = tmp_path / ("text.txt.gz" if zipped else "text.txt")
    path.write_bytes(gzip.compress(content) if zipped else content)
    expected = lines + ([last.removesuffix("\n")] if last else [])
    options = {"num_threads": threads, "chunk_characters": 500}
    assert lists_of(ours.encode_file(path, **options)) == ours.encode_batch(expected)  # type: ignore[arg-type]
    whole = ours.encode_file(str(path), False, keep_newlines=True, **options)  # type: ignore[arg-type]
    kept = content.decode().split("\n")
    kept = [line + "\n" for line in kept[:-1]] + kept[-1:] * (kept[-1] != "")
    assert lists_of(whole) == ours.encode_batch(kept, False)


def test_an_empty_file_gives_nothing(ours: Tokenizer, tmp_path: Path) -> None:
    """A file without a line."""
    (tmp_path / "empty").write_bytes(b"")
    assert list(ours.encode_file(tmp_path / "empty")) == []


@pytest.mark.parametrize("threads", THREADS)
def test_bytes_that_are_no_text_are_named(ours: Tokenizer, tmp_path: Path, threads: int) -> None:
    """File and line in one line; the lines before come out first."""
    path = tmp_path / "broken.txt"
    path.write_bytes("一\n二\n".encode() + b"\xe3\x81\n" + "四\n".encode())
    got = []
    with pytest.raises(ValueError, match=r"broken\.txt, line 3: .*utf-8") as caught:
        for ids, _ in ours.encode_file(path, num_threads=threads, chunk_characters=1):
            got.append(ids.tolist())
    assert got == ours.encode_batch(["一", "二"])
    assert len(str(caught.value).splitlines()) == 1


def test_a_file_is_closed(ours: Tokenizer, tmp_path: Path) -> None:
    """After the last chunk, and where the iterator is closed before it."""
    open_files = Path("/proc/self/fd")
    if not open_files.exists():
        pytest.skip("no /proc/self/fd on this system")
    path = tmp_path / "text.txt"
    path.write_text("\n".join(japanese_lines(35, 200)), encoding="utf-8")

    def is_open() -> bool:
        return any(file.resolve() == path for file in open_files.iterdir() if file.is_symlink())

    chunks = ours.encode_file(path, chunk_characters=100)
    next(chunks)
    assert is_open()
    chunks.close()  # type: ignore[attr-defined]
    assert not is_open()
    list(ours.encode_file(path))
    assert not is_open()


def test_settings_are_checked_at_the_call(ours: Tokenizer, tmp_path: Path) -> None:
    """Numbers out of range at once; a missing file with the first chunk."""
    with pytest.raises(ValueError, match="chunk_characters must be 1 or more, got 0"):
        ours.encode_ragged_iter([], chunk_characters=0)
    with pytest.raises(ValueError, match="num_threads must be 1 or more, got 0"):
        ours.encode_iter([], num_threads=0)
    with pytest.raises(TypeError, match="iterable of str, got one str"):
        ours.encode_iter("one text")
    with pytest.raises(FileNotFoundError, match="absent"):
        next(ours.encode_file(tmp_path / "absent"))
