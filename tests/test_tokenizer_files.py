"""Damaged tokenizer files: each is a ValueError or OSError in one line that names the file."""

import copy
import json
import math
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llmjp_ext import Tokenizer
from tokenizer_oracle import trained_directory

Document = dict[str, Any]


def refused(path: Path, words: str | None = None) -> None:
    """Loading `path` raises one line that starts with the path and matches `words`."""
    with pytest.raises(ValueError, match=words) as caught:
        Tokenizer.from_file(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert len(message.splitlines()) == 1, message
    assert len(message) < 600, message


def small_document() -> Document:
    """A tokenizer.json of a dozen pieces with all that LLM-jp's has."""
    document: Document = json.loads((trained_directory() / "tokenizer.json").read_text("utf-8"))
    document["model"]["vocab"] = [*document["model"]["vocab"][:12], ["▁", -2.0], ["a", -3.5]]
    return document


def piece_at(index: int, value: object) -> Callable[[Document], None]:
    """A change of one vocabulary entry."""
    return lambda document: document["model"]["vocab"].__setitem__(index, value)


def model_with(**members: object) -> Callable[[Document], None]:
    """A change of members of "model"."""
    return lambda document: document["model"].update(members)


def without(*path: str) -> Callable[[Document], None]:
    """Removes the member that `path` leads to."""

    def change(document: Document) -> None:
        for key in path[:-1]:
            document = document[key]
        del document[path[-1]]

    return change


def top_with(**members: object) -> Callable[[Document], None]:
    """A change of top-level members."""
    return lambda document: document.update(members)


def added_with(**members: object) -> Callable[[Document], None]:
    """A change of the first added token."""
    return lambda document: document["added_tokens"][0].update(members)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (without("model"), "model"),
        (without("model", "type"), "type"),
        (without("model", "vocab"), "vocab"),
        (without("model", "unk_id"), "unk_id"),
        (without("model", "byte_fallback"), "byte_fallback"),
        (without("decoder"), "decoder"),
        (without("post_processor", "single"), "single"),
        (without("post_processor", "special_tokens"), "special_tokens"),
        (model_with(type="BPE"), "BPE"),
        (model_with(type=3), "model is 3"),
        (model_with(byte_fallback=False), "byte_fallback"),
        (model_with(byte_fallback="yes"), "byte_fallback"),
        (model_with(unk_id=None), "unk_id"),
        (model_with(unk_id=-1), "unk_id"),
        (model_with(unk_id=14), "unk_id is 14"),
        (model_with(unk_id=0.0), "unk_id"),
        (model_with(unk_id=1 << 40), "unk_id"),
        (model_with(vocab=[]), "empty"),
        (model_with(vocab={}), r"expected '\['"),
        (model_with(vocab=None), r"expected '\['"),
        (model_with(merges=[]), "merges"),
        (piece_at(13, ["▁", -3.5]), "twice"),
        (piece_at(13, ["b\n\u2028c", -3.5]), ""),
        (piece_at(13, ["a"]), "without a score"),
        (piece_at(13, []), "expected a piece"),
        (piece_at(13, ["a", -3.5, 1]), "more than"),
        (piece_at(13, [3, -3.5]), "expected a string"),
        (piece_at(13, ["a", "b"]), "expected a number"),
        (piece_at(13, ["a", None]), "expected a number"),
        (piece_at(13, {"a": -3.5}), r"expected '\['"),
        (top_with(truncation={"max_length": 5}), "truncation"),
        (top_with(padding={"strategy": "BatchLongest"}), "padding"),
        (top_with(pre_tokenizer={"type": "Metaspace"}), "pre_tokenizer"),
        (top_with(normalizer={"type": "NFKC"}), "NFKC"),
        (top_with(normalizer=3), "normalizer"),
        (top_with(normalizer=[]), "normalizer"),
        (top_with(normalizer={"type": "Sequence", "normalizers": 1}), "normalizers"),
        (top_with(normalizer={"type": "Prepend", "prepend": "_"}), "Prepend"),
        (top_with(decoder=None), "decoder"),
        (top_with(decoder={"type": "ByteLevel"}), "ByteLevel"),
        (top_with(decoder={"type": "Sequence", "decoders": [{"type": "Fuse"}]}), "incomplete"),
        (top_with(post_processor={"type": "BertProcessing"}), "BertProcessing"),
        (top_with(post_processor="x"), "post_processor"),
        (top_with(added_tokens={}), "added_tokens"),
        (top_with(added_tokens=[1]), "added_tokens"),
        (top_with(surprise=1), "surprise"),
        (added_with(id=5), "id 5"),
        (added_with(id=-1), "id"),
        (added_with(id=1e30), "id"),
        (added_with(content=""), "empty content"),
        (added_with(content="<other>"), "<other>"),
        (added_with(lstrip=True), "lstrip"),
        (added_with(special=1), "special"),
        (lambda document: document["added_tokens"].append(document["added_tokens"][0]), "twice"),
        (
            lambda document: document["post_processor"]["special_tokens"]["<EOD|LLM-jp>"].update(
                ids=[99]
            ),
            "id 99",
        ),
        (lambda document: document["post_processor"].update(single=[]), "each text once"),
    ],
)
def test_a_changed_document_is_refused(
    change: Callable[[Document], None], words: str, tmp_path: Path
) -> None:
    """Missing keys, wrong types, duplicates, ids out of range, what is not supported."""
    path = tmp_path / "tokenizer.json"
    document = small_document()
    path.write_text(json.dumps(document), "utf-8")
    assert Tokenizer.from_file(path).encode("a") == [12, 13, 7]
    changed = copy.deepcopy(document)
    change(changed)
    path.write_text(json.dumps(changed), "utf-8")
    if words:
        refused(path, words)
    else:  # a strange piece, not a fault
        assert Tokenizer.from_file(path).id_to_token(13) == "b\n\u2028c"


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("-3.5", "NaN", "expected a number"),
        ("-3.5", "-Infinity", "expected a number"),
        ("-3.5", "-1e999", "too large"),
        ("-3.5", "-" + "9" * 400, "too large"),
        ("-3.5", "-03.5", "leading zero"),
        ("-3.5", "-.5", "expected a number"),
        ("-3.5", "-3.", "digit"),
        ("-3.5", "-3.5e", "exponent"),
        ("-3.5", "-0x3", "expected"),
        ('"a"', r'"\ud800"', "surrogate"),
        ('"a"', r'"\ud800\u0041"', "surrogate"),
        ('"a"', r'"\q"', "escape"),
        ('"a"', '"\n"', "control character"),
        ('"a"', "'a'", "expected a string"),
        ('"version"', "version", "in quotes"),
        ('"version": "1.0"', '"version": "1.0", "version": "1.0"', "twice"),
        ('"type": "Unigram"', '"type": "Unigram", "type": "Unigram"', "twice"),
        ('"truncation": null', '"truncation": nul', "expected a value"),
        ('"truncation": null', '"truncation": ' + "[" * 100_000, "nesting"),
        ('"truncation": null', '"truncation": ' + '{"a":' * 100_000, "nesting"),
        ('"unk_id": 0', '"unk_id": ' + "[" * 100_000, "nesting"),
    ],
)
def test_a_changed_text_is_refused(old: str, new: str, words: str, tmp_path: Path) -> None:
    """What Python's json would not write: NaN, absurd numbers, broken strings, deep nesting."""
    path = tmp_path / "tokenizer.json"
    text = json.dumps(small_document(), ensure_ascii=False)
    assert text.count(old) >= 1
    path.write_text(text.replace(old, new), "utf-8")
    refused(path, words)


def test_extreme_scores_are_read_or_refused(tmp_path: Path) -> None:
    """The largest doubles are scores like others; the search stays defined."""
    path = tmp_path / "tokenizer.json"
    for score in ("-1e308", "-1e-320", "0", "-0.0", "1" + "0" * 300, "-1e-999999999999"):
        text = json.dumps(small_document(), ensure_ascii=False).replace("-3.5", score)
        path.write_text(text, "utf-8")
        tokenizer = Tokenizer.from_file(path)
        assert tokenizer.decode(tokenizer.encode("aa a" * 5)) == "aa a" * 5


def test_no_prefix_of_a_file_is_a_file(tmp_path: Path) -> None:
    """A tokenizer.json cut at any byte is refused: each byte of a small one, many of a real one."""
    path = tmp_path / "tokenizer.json"
    small = json.dumps(small_document(), ensure_ascii=False, indent=1).encode()
    for end in range(len(small)):
        with pytest.raises(ValueError):
            Tokenizer(small[:end], "json")
    whole = (trained_directory() / "tokenizer.json").read_bytes().rstrip()
    for end in range(0, len(whole), len(whole) // 60):
        path.write_bytes(whole[:end])
        refused(path)


def test_a_cut_model_file_is_refused_or_whole(tmp_path: Path) -> None:
    """A .model cut anywhere: what still reads as a message lacks trainer_spec or what follows."""
    path = tmp_path / "tokenizer.model"
    whole = (trained_directory() / "tokenizer.model").read_bytes()
    last = len(whole) - 400
    for end in (*range(300), *range(300, last, 997), *range(last, len(whole))):
        path.write_bytes(whole[:end])
        try:
            tokenizer = Tokenizer.from_file(path)
        except ValueError as error:
            assert str(error).startswith(f"{path}: ")
        else:  # cut after the last message that a tokenizer needs
            assert tokenizer.vocab_size == 2000
            assert end > last


FUZZ_SCRIPT = """
import random, sys
from llmjp_ext import Tokenizer
data, form, seed = open(sys.argv[1], "rb").read(), sys.argv[2], int(sys.argv[3])
rng = random.Random(seed)
loaded = refused = 0
for _ in range(int(sys.argv[4])):
    mutant = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        place = rng.randrange(len(mutant))
        kind = rng.randrange(4)
        if kind == 0:
            mutant[place] ^= 1 << rng.randrange(8)
        elif kind == 1:
            mutant[place] = rng.randrange(256)
        elif kind == 2:
            del mutant[place : place + rng.randint(1, 40)]
        else:
            mutant[place:place] = mutant[rng.randrange(len(mutant)) :][: rng.randint(1, 40)]
    try:
        tokenizer = Tokenizer(bytes(mutant), form)
    except ValueError as error:
        assert len(str(error)) < 600, error
        refused += 1
        continue
    loaded += 1
    ids = tokenizer.encode("a b<0x41>日本\\n" * 3, "ーーー")
    tokenizer.decode(ids)
    tokenizer.decode(range(tokenizer.vocab_size), skip_special_tokens=False)
print(loaded, refused)
"""


@pytest.mark.parametrize(
    ("name", "form", "count"),
    [("small", "json", 3000), ("trained", "json", 150), ("trained", "sentencepiece", 600)],
)
def test_flipped_bytes_never_crash(name: str, form: str, count: int, tmp_path: Path) -> None:
    """Mutants of a file, in a process of their own: refused, or loaded and used, never a crash."""
    path = tmp_path / "mutated"
    if name == "small":
        path.write_text(json.dumps(small_document(), ensure_ascii=False), "utf-8")
    else:
        kind = "tokenizer.json" if form == "json" else "tokenizer.model"
        path.write_bytes((trained_directory() / kind).read_bytes())
    seed = random.Random(f"{name} {form}").randrange(1 << 30)
    run = subprocess.run(
        [sys.executable, "-c", FUZZ_SCRIPT, str(path), form, str(seed), str(count)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert run.returncode == 0, f"seed {seed}, status {run.returncode}: {run.stderr[-2000:]}"
    loaded, refusals = map(int, run.stdout.split())
    assert loaded + refusals == count
    assert min(loaded, refusals) > 0, f"seed {seed}: {loaded} loaded, {refusals} refused"


def test_what_is_no_file_is_named(tmp_path: Path) -> None:
    """A missing file and a directory are OSErrors, an empty file and random bytes ValueErrors."""
    for missing in (tmp_path / "none.json", tmp_path / "none.model", tmp_path):
        with pytest.raises(OSError, match=missing.name):
            Tokenizer.from_file(missing)
    rng = random.Random(9)
    for suffix in (".json", ".model"):
        path = tmp_path / f"some{suffix}"
        for data in (b"", b"\0", b"\xff\xfe", b"null", b"[]", b"{}", rng.randbytes(500)):
            path.write_bytes(data)
            refused(path)
    with pytest.raises(ValueError, match="yaml"):
        Tokenizer(b"", "yaml")
    assert math.isfinite(Tokenizer.from_pretrained(trained_directory())._native.score(300))
