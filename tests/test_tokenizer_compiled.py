"""Compiled tokenizer files: the same tokenizer, mapped instead of parsed, and safe to load."""

import functools
import itertools
import json
import pickle
import random
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from compiled_files import HEADER, blocks_of, sealed
from llmjp_ext import Tokenizer
from tokenizer_oracle import (
    ROOT,
    data_folder,
    fuzz_texts,
    japanese_lines,
    standard_library_texts,
    trained_directory,
)

SOURCES = ("trained json", "trained model", "llm-jp-v2.1 json", "llm-jp-v2.1 model")


@functools.cache
def source_file(name: str) -> Path:
    """The file that one of SOURCES is."""
    is_json = name.endswith("json")
    if name.startswith("trained"):
        return trained_directory() / ("tokenizer.json" if is_json else "tokenizer.model")
    folder = data_folder() / "llm-jp-tokenizer-v2.1"
    return folder / "tokenizer.json" if is_json else next(folder.glob("*.model"))


@pytest.fixture(scope="module")
def small_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trained tokenizer, compiled."""
    path = tmp_path_factory.mktemp("compiled") / "trained.llmjptok"
    Tokenizer.from_file(source_file("trained json")).save_compiled(path)
    return path


@pytest.mark.parametrize("name", SOURCES)
def test_a_compiled_file_is_the_same_tokenizer(name: str, tmp_path: Path) -> None:
    """Ids, text, tokens and equality of the loaded file are those of its source, however read."""
    source = Tokenizer.from_file(source_file(name))
    path = tmp_path / "any-name"
    source.save_compiled(path)
    texts = fuzz_texts(5, 800) + japanese_lines(6, 300) + standard_library_texts(6)
    ids, offsets = source.encode_ragged(texts)
    pieces = [ids[offsets[i] : offsets[i + 1]] for i in range(len(texts))]
    for loaded in (Tokenizer.from_file(path), Tokenizer(path.read_bytes(), "compiled")):
        again, ends = loaded.encode_ragged(texts)
        assert again.tolist() == ids.tolist() and ends.tolist() == offsets.tolist()
        assert again.dtype == ids.dtype
        assert loaded.decode_batch(pieces) == source.decode_batch(pieces)
        for i in range(0, source.vocab_size, 37):
            token = source.id_to_token(i)
            assert loaded.id_to_token(i) == token
            assert token is None or loaded.token_to_id(token) == source.token_to_id(token)
        assert loaded.encode("a", pair="b") == source.encode("a", pair="b")
        text = "x</s|LLM-jp>y<EOD|LLM-jp>"
        assert loaded.encode(text, encode_special_tokens=True) == source.encode(
            text, encode_special_tokens=True
        )
        assert loaded == source and hash(loaded) == hash(source)


def test_compiling_repeats_bit_for_bit(small_file: Path, tmp_path: Path) -> None:
    """Compiling the source again, or the compiled tokenizer, writes the very same file."""
    for tokenizer in (
        Tokenizer.from_file(source_file("trained json")),
        Tokenizer.from_file(small_file),
    ):
        again = tmp_path / "again.llmjptok"
        tokenizer.save_compiled(again)
        assert again.read_bytes() == small_file.read_bytes()


def test_the_source_comes_along(tmp_path: Path) -> None:
    """to_hf() of a compiled tokenizer names the special tokens that the model folder named."""
    source = Tokenizer.from_pretrained(trained_directory())
    path = tmp_path / "trained.llmjptok"
    source.save_compiled(path)
    fast, expected = Tokenizer.from_file(path).to_hf(), source.to_hf()
    assert fast.special_tokens_map == expected.special_tokens_map
    assert fast("先生は本を読む。")["input_ids"] == source.encode("先生は本を読む。")


@pytest.mark.parametrize("used", [False, True])
def test_a_compiled_tokenizer_pickles_without_its_file(
    small_file: Path, tmp_path: Path, used: bool
) -> None:
    """The pickle holds the compiled bytes, and loads where the file is gone."""
    path = tmp_path / "copy.llmjptok"
    path.write_bytes(small_file.read_bytes())
    tokenizer = Tokenizer.from_file(path)
    if used:
        tokenizer.to_hf()
    data = pickle.dumps(tokenizer)
    path.unlink()
    copy = pickle.loads(data)
    assert small_file.read_bytes() in data
    assert copy == tokenizer and copy.encode("彼女は") == tokenizer.encode("彼女は")
    assert pickle.dumps(copy) == data


def test_the_file_is_mapped_and_shared(small_file: Path) -> None:
    """The process has the file in memory as a shared, read-only mapping while it is in use."""
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("no /proc/self/maps on this system")

    def mappings() -> list[str]:
        lines = maps.read_text().splitlines()
        return [line.split()[1] for line in lines if line.endswith(str(small_file))]

    tokenizer = Tokenizer.from_file(small_file)
    assert mappings() == ["r--s"]
    stream = tokenizer.decode_stream()
    del tokenizer
    assert mappings() == ["r--s"], "a stream goes on after the tokenizer"
    del stream
    assert mappings() == []


def test_saving_replaces_in_one_step(small_file: Path, tmp_path: Path) -> None:
    """Who has the old file loaded keeps it; a failure leaves nothing behind."""
    path = tmp_path / "t.llmjptok"
    path.write_bytes(small_file.read_bytes())
    loaded = Tokenizer.from_file(path)
    ids = loaded.encode("先生は本を読む。")
    Tokenizer.from_file(source_file("trained model")).save_compiled(path)
    assert loaded.encode("先生は本を読む。") == ids
    assert Tokenizer.from_file(path).encode("") == []  # a .model appends nothing
    with pytest.raises(OSError):
        loaded.save_compiled(tmp_path / "absent" / "t.llmjptok")
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError):
        loaded.save_compiled(tmp_path / "folder")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["folder", "t.llmjptok"]


def refused(path: Path, data: bytes, words: str) -> None:
    """Loading `data` as a file raises one line that starts with the path."""
    path.write_bytes(data)
    with pytest.raises(ValueError, match=words) as caught:
        Tokenizer.from_file(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and len(message.splitlines()) == 1, message


def test_damaged_files_are_refused(small_file: Path, tmp_path: Path) -> None:
    """Cut files, single flipped bits, other formats and byte orders: each names what is wrong."""
    data = small_file.read_bytes()
    path = tmp_path / "damaged.llmjptok"
    rng = random.Random(7)
    for length in (8, 31, 63, 64, 200, len(data) // 2, len(data) - 1, len(data) - 64):
        refused(path, data[:length], "cut short|bytes instead of")
    refused(path, data + bytes(64), "bytes instead of")
    for seed in range(40):
        at = rng.randrange(64, len(data))
        flipped = bytearray(data)
        flipped[at] ^= 1 << rng.randrange(8)
        with pytest.raises(ValueError, match="checksum"):
            Tokenizer(bytes(flipped), "compiled")
            pytest.fail(f"flip {seed}, byte {at}")
    refused(path, data[:8] + data[8:12][::-1] + data[12:], "byte order")
    refused(path, data[:12] + struct.pack("<I", 999) + data[16:], "format 999.*compile it anew")
    with pytest.raises(ValueError, match="does not begin"):
        Tokenizer(b"x" * 128, "compiled")


HOSTILE = """
import random, struct, sys
from pathlib import Path
sys.path[:0] = sys.argv[3:]
from llmjp_ext import Tokenizer
from compiled_files import blocks_of, sealed
from tokenizer_oracle import fuzz_texts

data = Path(sys.argv[1]).read_bytes()
assert sealed(data) == data
blocks = blocks_of(data)
texts = fuzz_texts(1, 60) + ["<0x41>" * 5, "あ" * 100, "ab" * 40, " " * 40]
refused = 0
for seed in range(int(sys.argv[2])):
    rng = random.Random(seed)
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 4, 64))):
        at, size, count = rng.choice(blocks[1:])
        if rng.random() < 0.1:
            struct.pack_into("<Q", changed, at + 8 * rng.randrange(2), rng.choice(
                (0, 1, 2, 4, 7, 1 << 32, 1 << 63, (1 << 64) - 1, rng.randrange(1 << 20))))
        elif count:
            width = min(size, 4) if size != 8 else 8
            place = at + 64 + rng.randrange(size * count // width) * width
            value = rng.choice((0, 1, 2, 255, 1 << 15, 1 << 31, (1 << 31) - 1, (1 << 64) - 1,
                                rng.randrange(1 << 12), rng.randrange(1 << 17)))
            changed[place : place + width] = (value % (1 << 8 * width)).to_bytes(width, "little")
    print("seed", seed, file=sys.stderr, flush=True)
    try:
        tokenizer = Tokenizer(sealed(bytes(changed)), "compiled")
    except ValueError:
        refused += 1
        continue
    for special in (False, True):
        ids = tokenizer.encode_batch(texts, encode_special_tokens=special, num_threads=1)
    tokenizer.encode("a", pair="b")
    try:
        tokenizer.decode_batch(ids, skip_special_tokens=False)
    except UnicodeDecodeError:
        pass
    tokenizer.token_to_id("a"), tokenizer.id_to_token(3), tokenizer.token_to_id("<0x41>")
print(refused)
"""


def test_hostile_files_never_crash(tmp_path: Path) -> None:
    """Tables changed at random, under a checksum that fits, are refused or give some ids."""
    folder = tmp_path / "small"
    folder.mkdir()
    small = folder / "small.llmjptok"
    hostile_source().save_compiled(small)
    count = 60
    folders = [str(folder) for folder in (ROOT, ROOT / "python", ROOT / "tests")]
    run = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", HOSTILE, str(small), str(count), *folders],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    assert 0 < int(run.stdout) < count


def test_pieces_that_are_not_utf8_are_refused(tmp_path: Path) -> None:
    """Bytes of the pieces' texts changed at random: refused where Python finds a piece invalid."""
    small = tmp_path / "small.llmjptok"
    hostile_source().save_compiled(small)
    data = small.read_bytes()
    (texts_at, _, size), (ends_at, _, count) = blocks_of(data)[1:3]
    texts_at, ends_at = texts_at + HEADER, ends_at + HEADER
    ends = (0, *struct.unpack_from(f"<{count}I", data, ends_at))
    assert ends[-1] == size
    rng = random.Random(11)
    bad = 0
    for trial in range(120):
        changed = bytearray(data)
        for _ in range(rng.choice((1, 1, 2, 3))):
            at = texts_at + rng.choice((0, 1, 1019, 1023, 1024, size - 1, rng.randrange(size)))
            changed[at] = rng.choice(
                (0x41, 0x80, 0x8F, 0x9F, 0xA0, 0xBF, 0xC1, 0xC2, 0xE0, 0xE3, 0xED, 0xF0, 0xF4, 0xF5)
            )
        pieces = [changed[texts_at + a : texts_at + b] for a, b in itertools.pairwise(ends)]
        try:
            for piece in pieces:
                piece.decode()
            valid = True
        except UnicodeDecodeError:
            valid = False
        bad += not valid
        try:
            Tokenizer(sealed(bytes(changed)), "compiled")
            message = ""
        except ValueError as error:
            message = str(error)
        assert ("not valid UTF-8" in message) == (not valid), f"trial {trial}: {message!r}"
    assert 0 < bad < 120


def hostile_source() -> Tokenizer:
    """A tokenizer of the trained one's first pieces, all of its kind and small."""
    document = json.loads(source_file("trained json").read_text("utf-8"))
    vocabulary = document["model"]["vocab"]
    document["model"]["vocab"] = [
        entry for i, entry in enumerate(vocabulary) if i < 400 or len(entry[0]) == 1
    ]
    return Tokenizer(json.dumps(document).encode(), "json")
