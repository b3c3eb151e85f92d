"""What the tokenizer tests share: models trained on the spot, hard texts, and where real data is.

The oracle is Hugging Face `tokenizers`. The trained model needs no data: its text is composed here
and taken from Python's standard library, and holds the runs of one character that make exact ties.
"""

import functools
import os
import random
import sysconfig
import tempfile
from pathlib import Path

import pytest
import tokenizers

from llmjp.tokenizer_training import train_tokenizer
from llmjp_ext import Tokenizer

ROOT = Path(__file__).resolve().parents[1]

_SUBJECTS = (
    *("私", "彼女", "先生", "友だち", "猫", "犬"),
    *("鳥", "東京の人", "学生", "図書館", "新しい計算機", "言語モデル", "日本語"),
)
_OBJECTS = (
    *("本", "りんご", "手紙", "コーヒー", "写真", "データ"),
    *("電車", "音楽", "数学の問題", "プログラム", "昨日の新聞"),
)
_VERBS = (
    *("読みました", "食べている", "書いた", "待っています", "見つけた", "動かす"),
    *("作りたい", "送ってください"),
)
_RUNS = ("ー", "あ", "笑", "w", "!", "ああ", "草", "…", "=", "-")

FUZZ_ATOMS = (
    *"ab0(_\n\t\r\0\x7f<>▁ßé",
    *("あ", "ー", "笑", "日本", "です", "。", "漢字", "ｗ", "\u3000", "ありがとう", "読みました"),
    *("  ", "    ", "return", "def ", "self.", "the", "ing", "=", "-----", "\r\n"),
    *("<0x41>", "<0x0A>", "<0xe3>", "<0x", "<EOD|LLM-jp>", "<unk|LLM-jp>", "</s|LLM-jp>", "<s|LLM"),
    *("😍", "👍", "🙏🏽", "👨‍👩‍👧", "e\u0301", "\u200b", "\ufeff"),
    *("\U0010ffff", "\ufffd", "한", "ن"),
)


def fuzz_texts(seed: int, count: int) -> list[str]:
    """Texts made to hurt: literals, runs after prefixes of many lengths, any characters at all."""
    rng = random.Random(seed)

    def mix(most: int) -> str:
        return "".join(rng.choice(FUZZ_ATOMS) for _ in range(rng.randint(0, most)))

    def scalar() -> str:
        code = rng.randrange(0x110000 - 0x800)
        return chr(code if code < 0xD800 else code + 0x800)

    kinds = (
        lambda: mix(20),
        lambda: mix(5) + rng.choice(FUZZ_ATOMS) * rng.randint(1, 80) + mix(3),
        lambda: "".join(chr(rng.randrange(32, 127)) for _ in range(rng.randint(0, 60))),
        lambda: "".join(chr(rng.randrange(0x3040, 0x3100)) for _ in range(rng.randint(0, 40))),
        lambda: "".join(scalar() for _ in range(rng.randint(0, 30))),
    )
    return [rng.choice(kinds)() for _ in range(count)]


def standard_library_texts(count: int) -> list[str]:
    """Source files of Python's standard library, as code text."""
    folder = Path(sysconfig.get_path("stdlib"))
    texts = []
    for path in sorted(folder.glob("*.py")):
        try:
            texts.append(path.read_text(encoding="utf-8"))
        except UnicodeDecodeError:
            continue
    return texts[:count]


def japanese_lines(seed: int, count: int) -> list[str]:
    """Composed Japanese sentences, some with long runs of one character."""
    rng = random.Random(seed)
    lines = []
    for _ in range(count):
        line = f"{rng.choice(_SUBJECTS)}は{rng.choice(_OBJECTS)}を{rng.choice(_VERBS)}。"
        if rng.random() < 0.4:
            line += rng.choice(_RUNS) * rng.randint(1, 30)
        lines.append(line)
    return lines


@functools.cache
def trained_directory() -> Path:
    """Directory of a tokenizer trained once per test run: 2,000 pieces, in seconds."""
    holder = tempfile.TemporaryDirectory(prefix="llmjp-tokenizer-")
    _KEEP_ALIVE.append(holder)
    folder = Path(holder.name)
    text = folder / "text.txt"
    lines = japanese_lines(0, 3000) + standard_library_texts(8)
    text.write_text("\n".join(lines), encoding="utf-8")
    train_tokenizer([text], 2000, folder / "trained", num_threads=1)
    return folder / "trained"


_KEEP_ALIVE: list[tempfile.TemporaryDirectory[str]] = []


def data_folder() -> Path:
    """Folder of the real models and texts; skips the test with the reason where there is none."""
    folder = Path(os.environ.get("LLMJP_TEST_DATA", ROOT.parent / "shared" / "data"))
    if not (folder / "llm-jp-tokenizer-v2.1" / "tokenizer.json").exists():
        pytest.skip(f"no LLM-jp tokenizer in {folder} (set LLMJP_TEST_DATA)")
    return folder


@functools.cache
def load_both(path: Path) -> tuple[Tokenizer, tokenizers.Tokenizer]:
    """A tokenizer.json in ours and in the oracle."""
    return Tokenizer.from_file(path), tokenizers.Tokenizer.from_file(str(path))


MODELS = ("trained", "llm-jp-v2.1")


def model_file(name: str) -> Path:
    """The tokenizer.json of one of MODELS."""
    if name == "trained":
        return trained_directory() / "tokenizer.json"
    return data_folder() / "llm-jp-tokenizer-v2.1" / "tokenizer.json"
