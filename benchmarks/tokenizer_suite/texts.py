"""The texts that tokenizers are measured on, all from this machine and the same at every run.

Each kind of text comes in two halves that have no document, module or line in common: one that a
tokenizer has encoded before it is measured, and the one that is timed.

Japanese is JGLUE's where the test data is, else that of `llmjp demo`. Code is Python's standard
library. English is the language reference that `help()` shows and the descriptions of the installed
packages. Web-like text and repeated characters are made from these by a seeded generator.
"""

import functools
import importlib.metadata
import os
import random
import sysconfig
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from llmjp.demo.command import BUNDLED
from llmjp.tokenizer_training import train_tokenizer
from llmjp_ext import Tokenizer

ROOT = Path(__file__).resolve().parents[2]
MODEL = "llm-jp-tokenizer-v2.1/tokenizer.json"
SENTENCEPIECE_MODEL = "llm-jp-tokenizer-v2.1/code10k_en20k_ja30k.ver2.1.model"
TRAINED_PIECES = 8000
TRAINED_MODULES = 20  # of the standard library, in the text that TRAINED_PIECES are trained on
LINES_PER_DOCUMENT = 60  # of JGLUE's sentences: about 4.5 kB
# Longer modules come in parts: in long strings sentencepiece's sums in single precision lose the
# difference between pieces, its ids become others, and it could not be compared.
DOCUMENT_CHARACTERS = 20_000
PROMPT_CHARACTERS = 20
DRAWN_CHARACTERS = 1500  # of a document, about 4 kB
# Characters whose runs LLM-jp's pieces cut in several ways of equal score, and some others.
REPEATED = "ーあ=-a_*#.ｗ笑!。々█0"


class Halves(NamedTuple):
    """Texts of one kind, each once.

    Attributes:
        before: what a tokenizer has encoded before it is measured.
        timed: what it is measured on.
    """

    before: list[str]
    timed: list[str]

    def each(self, change: Callable[[list[str]], list[str]]) -> "Halves":
        """Both halves changed in the same way."""
        return Halves(change(self.before), change(self.timed))


class Material(NamedTuple):
    """A model, and Japanese text for it."""

    name: str
    json: Path
    sentencepiece: Path
    japanese: Halves

    def __hash__(self) -> int:
        return hash(self.json)


@functools.cache
def material() -> Material:
    """LLM-jp v2.1 and JGLUE where the test data is, else what can be had without it."""
    folder = Path(os.environ.get("LLMJP_TEST_DATA", ROOT.parent / "shared" / "data"))
    if (folder / MODEL).exists():
        japanese = japanese_documents(sorted((folder / "text").glob("*.txt")))
        return Material("LLM-jp v2.1", folder / MODEL, folder / SENTENCEPIECE_MODEL, japanese)
    holder = tempfile.TemporaryDirectory(prefix="llmjp-benchmark-")
    _KEEP_ALIVE.append(holder)
    text = Path(holder.name) / "code.txt"
    text.write_text("\n".join(code_documents().before[:TRAINED_MODULES]), encoding="utf-8")
    model = Path(holder.name) / "model"
    train_tokenizer([BUNDLED, text], TRAINED_PIECES, model, hard_vocab_limit=False)
    japanese = japanese_documents(sorted((BUNDLED / "ja").glob("*.txt")))
    name = "trained on the demo's text"
    return Material(name, model / "tokenizer.json", model / "tokenizer.model", japanese)


_KEEP_ALIVE: list[tempfile.TemporaryDirectory[str]] = []


@functools.cache
def compiled(model: Material) -> Path:
    """What save_compiled() makes of a model."""
    holder = tempfile.TemporaryDirectory(prefix="llmjp-benchmark-")
    _KEEP_ALIVE.append(holder)
    path = Path(holder.name) / "tokenizer.compiled"
    Tokenizer.from_file(model.json).save_compiled(path)
    return path


def japanese_documents(paths: Iterable[Path]) -> Halves:
    """Lines of Japanese text in documents of a few kB: of each file its first and second half."""
    seen: set[str] = set()
    halves = Halves([], [])
    step = LINES_PER_DOCUMENT
    for path in paths:
        lines = dict.fromkeys(path.read_text(encoding="utf-8").splitlines())
        unseen = [line for line in lines if line and line not in seen]
        seen.update(unseen)
        middle = len(unseen) // 2
        for half, own in zip(halves, (unseen[:middle], unseen[middle:]), strict=True):
            half += ["\n".join(own[i : i + step]) for i in range(0, len(own), step)]
    return halves


def alternate(texts: Iterable[str]) -> Halves:
    """Whole texts in turn to either half, in parts of bounded length."""
    halves = Halves([], [])
    for i, text in enumerate(dict.fromkeys(texts)):
        halves[i % 2].extend(parts_of(text))
    return halves


def drawn_documents(japanese: list[str], megabytes: float) -> list[str]:
    """More Japanese text than there is: each character is drawn from those that follow the two
    before it in real text. It has new words about as often as real text: as many bytes an id.
    """
    text = "\n".join(japanese) + "\n"
    context = start = text[:2]
    following: dict[str, list[str]] = {}
    for i in range(len(text) - 2):
        following.setdefault(text[i : i + 2], []).append(text[i + 2])
    draw = random.Random(0).random
    documents, left = [], megabytes * 1e6
    while left > 0:
        characters = []
        for _ in range(DRAWN_CHARACTERS):
            choices = following.get(context) or following[start]
            characters.append(choices[int(draw() * len(choices))])
            context = context[1] + characters[-1]
        documents.append("".join(characters))
        left -= len(documents[-1].encode())
    return documents


@functools.cache
def code_documents(everywhere: bool = False) -> Halves:
    """Modules of Python's standard library, in parts of bounded length.

    Args:
        everywhere: also those of its packages and tests, ten times as much.
    """
    texts = []
    library = Path(sysconfig.get_path("stdlib"))
    for path in sorted(library.rglob("*.py") if everywhere else library.glob("*.py")):
        if "site-packages" in path.parts:
            continue
        try:
            texts.append(path.read_text(encoding="utf-8"))
        except UnicodeDecodeError:
            continue
    return alternate(texts)


@functools.cache
def english_documents() -> Halves:
    """Python's reference as `help()` shows it, and the installed packages' descriptions."""
    from pydoc_data.topics import topics

    descriptions = set()
    for distribution in importlib.metadata.distributions():
        payload = distribution.metadata.get_payload()
        # Some are written in other languages, and not all are text.
        if isinstance(payload, str) and payload.isascii():
            descriptions.add(payload)
    return alternate([topics[name] for name in sorted(topics)] + sorted(descriptions))


def parts_of(text: str) -> list[str]:
    """A text in parts of bounded length."""
    return [text[i : i + DOCUMENT_CHARACTERS] for i in range(0, len(text), DOCUMENT_CHARACTERS)]


def lines_of(documents: Iterable[str]) -> list[str]:
    """The lines of documents that are not blank, each once."""
    lines = (line for text in documents for line in text.split("\n"))
    return list(dict.fromkeys(line for line in lines if line.strip()))


def lines_apart(documents: Halves) -> Halves:
    """Lines of either half; what both have is timed in neither."""
    before, timed = documents.each(lines_of)
    seen = set(before)
    return Halves(before, [line for line in timed if line not in seen])


def web_documents(japanese: Halves, megabytes: float) -> Halves:
    """Pages of markup around Japanese, English, links and a little code."""
    sources = zip(japanese, english_documents(), code_documents(), strict=True)
    before, timed = (
        web_pages(*map(lines_of, texts), megabytes, seed) for seed, texts in enumerate(sources)
    )
    return Halves(before, timed)


def web_pages(
    native: list[str], english: list[str], code: list[str], megabytes: float, seed: int
) -> list[str]:
    """Pages made of these lines."""
    draw = random.Random(seed)

    def link() -> str:
        path = "/".join(draw.choice(english).split()[0].strip("*`.,:()<>#") for _ in range(2))
        return f"https://www.example{draw.randrange(100)}.jp/{path}?id={draw.randrange(10**6)}"

    def block() -> str:
        kind = draw.randrange(10)
        if kind < 5:
            return f"<p>{''.join(draw.choices(native, k=4))}</p>"
        if kind < 7:
            return f'<p class="text-{draw.randrange(9)}">{" ".join(draw.choices(english, k=2))}</p>'
        if kind < 9:
            return f'  <li><a href="{link()}">{draw.choice(native)}</a> &raquo; {link()}</li>'
        return "<pre>\n" + "\n".join(draw.choices(code, k=4)) + "\n</pre>"

    pages, left = [], megabytes * 1e6
    while left > 0:
        blocks = "\n".join(block() for _ in range(15))
        pages.append(f"<html>\n<h1>{draw.choice(native)}</h1>\n{blocks}\n</html>\n")
        left -= len(pages[-1].encode())
    return pages


def tied_documents(japanese: Halves, megabytes: float) -> Halves:
    """Runs of one character each, of up to 2,000, behind prefixes of all lengths."""
    before, timed = (
        tied_runs(lines_of(half), megabytes, seed) for seed, half in enumerate(japanese)
    )
    return Halves(before, timed)


def tied_runs(native: list[str], megabytes: float, seed: int) -> list[str]:
    """Runs behind the beginnings of these lines."""
    draw = random.Random(seed)
    texts, left = [], megabytes * 1e6
    while left > 0:
        runs = (
            draw.choice(native)[: draw.randrange(12)]
            + draw.choice(REPEATED) * int(10 ** draw.uniform(0.5, 3.3))
            for _ in range(8)
        )
        texts.append("\n".join(runs))
        left -= len(texts[-1].encode())
    return texts


def first(texts: list[str], megabytes: float) -> list[str]:
    """As many texts from all over the list as have so many megabytes of UTF-8."""
    order = np.random.default_rng(0).permutation(len(texts))
    chosen: list[str] = []
    left = megabytes * 1e6
    for i in order.tolist():
        if left <= 0:
            break
        chosen.append(texts[i])
        left -= len(texts[i].encode())
    return chosen


def prompts(documents: list[str], count: int) -> list[str]:
    """So many different texts of 20 characters, as far as there are."""
    text = "".join(documents)
    step = PROMPT_CHARACTERS
    found = list(dict.fromkeys(text[i : i + step] for i in range(0, len(text) - step, step)))
    return [found[i] for i in np.random.default_rng(0).permutation(len(found))[:count]]
