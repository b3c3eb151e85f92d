"""Tokenizer: ids of Japanese text and of code, whole documents and single lines.

With the test data: LLM-jp v2.1 on JGLUE's sentences and Python's standard library. Without it: a
tokenizer trained on the spot from the text of `llmjp demo` and some modules of the standard
library, on the demo's Japanese (a few documents, which it has been trained on) and the same
library. Each row names its model.

Every candidate's ids are compared with those of Hugging Face `tokenizers`, text by text, before
anything is timed. Lists of ids and flat arrays ("ragged") are different products: what a candidate
gives stands in its name.

Each repetition encodes the same texts. llmjp_ext remembers the ids of short units of text, so every
repetition gets a new tokenizer, loaded outside the measured time; "warm" is the same tokenizer
again. sentencepiece remembers nothing. `tokenizers` caches short strings from call to call, which
makes its figures better than a first pass over new text.
"""

import functools
import os
import sysconfig
import tempfile
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from benchmarks.harness import OURS, Candidate, Case, missing
from llmjp.demo.command import BUNDLED
from llmjp.tokenizer_training import train_tokenizer
from llmjp_ext import Tokenizer

ROOT = Path(__file__).resolve().parent.parent
MODEL = "llm-jp-tokenizer-v2.1/tokenizer.json"
SENTENCEPIECE_MODEL = "llm-jp-tokenizer-v2.1/code10k_en20k_ja30k.ver2.1.model"
TRAINED_PIECES = 8000
TRAINED_MODULES = 20  # of the standard library, in the text that TRAINED_PIECES are trained on
MEGABYTES = 1.0
QUICK_MEGABYTES = 0.02
LINES_PER_DOCUMENT = 60  # of JGLUE's sentences: about 4.5 kB
# Longer modules come in parts: in long strings sentencepiece's sums in single precision lose the
# difference between pieces, its ids become others, and it could not be compared.
DOCUMENT_CHARACTERS = 20_000

Ids = list[list[int]]


class Material(NamedTuple):
    """A model, and Japanese text for it."""

    name: str
    json: Path
    sentencepiece: Path
    japanese: list[str]


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
    text.write_text("\n".join(code_documents()[:TRAINED_MODULES]), encoding="utf-8")
    model = Path(holder.name) / "model"
    train_tokenizer([BUNDLED, text], TRAINED_PIECES, model, hard_vocab_limit=False)
    japanese = japanese_documents(sorted((BUNDLED / "ja").glob("*.txt")))
    name = "trained on the demo's text"
    return Material(name, model / "tokenizer.json", model / "tokenizer.model", japanese)


_KEEP_ALIVE: list[tempfile.TemporaryDirectory[str]] = []


def japanese_documents(paths: list[Path]) -> list[str]:
    """Lines of Japanese text in documents of a few kB."""
    lines: list[str] = []
    for path in paths:
        lines += path.read_text(encoding="utf-8").splitlines()
    step = LINES_PER_DOCUMENT
    return ["\n".join(lines[i : i + step]) for i in range(0, len(lines), step)]


def code_documents() -> list[str]:
    """Modules of Python's standard library, in parts of bounded length."""
    texts = []
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        step = DOCUMENT_CHARACTERS
        texts += [text[i : i + step] for i in range(0, len(text), step)]
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


def same_ids(expected: Ids) -> Callable[[Any], None]:
    """A check of lists, of our (ids, offsets), or of Transformers' encodings."""

    def check(result: Any) -> None:
        if isinstance(result, tuple):
            flat, offsets = result
            result = [flat[start:end].tolist() for start, end in pairwise(offsets)]
        assert len(result) == len(expected), f"{len(result)} texts, not {len(expected)}"
        differing = [i for i, ids in enumerate(result) if ids != expected[i]]
        assert not differing, (
            f"the ids of {len(differing)} of {len(expected)} texts are not those of tokenizers"
        )

    return check


def peers(model: Material, texts: list[str], threads: int) -> tuple[dict[str, Candidate], dict]:
    """The peers that are installed, and the others with the reason."""
    import tokenizers

    oracle = tokenizers.Tokenizer.from_file(str(model.json))
    parallelism = "true" if threads > 1 else "false"

    def set_threads() -> str:
        # Read at every call. Its pool of threads is one per core, and cannot be made anew.
        os.environ["TOKENIZERS_PARALLELISM"] = parallelism
        return parallelism

    def hugging_face(_: str) -> Ids:
        encoded = oracle.encode_batch_fast(texts, add_special_tokens=False)
        return [encoding.ids for encoding in encoded]

    present = {"tokenizers encode_batch_fast": Candidate(hugging_face, prepare=set_threads)}
    absent: dict[str, str] = {}
    if reason := missing("sentencepiece"):
        absent["sentencepiece"] = reason
    else:
        import sentencepiece

        processor = sentencepiece.SentencePieceProcessor(model_file=str(model.sentencepiece))
        present["sentencepiece"] = Candidate(lambda: processor.encode(texts, num_threads=threads))
    if reason := missing("transformers"):
        absent["transformers"] = reason
    else:
        fast = Tokenizer.from_pretrained(model.json.parent).to_hf()

        def transformers(_: str) -> Ids:
            ids: Ids = fast(texts, add_special_tokens=False, verbose=False)["input_ids"]
            return ids

        present["transformers"] = Candidate(transformers, prepare=set_threads)
    return present, absent


def encode_case(model: Material, name: str, texts: list[str], threads: int) -> Case:
    """Ids of all texts without special tokens, with so many threads."""
    import tokenizers

    oracle = tokenizers.Tokenizer.from_file(str(model.json))
    expected = [e.ids for e in oracle.encode_batch(texts, add_special_tokens=False)]
    present, absent = peers(model, texts, threads)
    size = sum(len(text.encode()) for text in texts)
    warm = Tokenizer.from_file(model.json)

    def fresh() -> Tokenizer:
        return Tokenizer.from_file(model.json)

    def lists(ours: Tokenizer) -> Ids:
        return ours.encode_batch(texts, add_special_tokens=False, num_threads=threads)

    def ragged(ours: Tokenizer) -> Any:
        return ours.encode_ragged(texts, add_special_tokens=False, num_threads=threads)

    return Case(
        name=name,
        shape=f"{model.name}, {len(texts)} texts, {size / 1e6:.2f} MB, threads {threads}",
        dtype="",
        candidates={
            OURS: Candidate(lists, prepare=fresh),
            f"{OURS} ragged": Candidate(ragged, prepare=fresh),
            f"{OURS} ragged, warm": Candidate(lambda: ragged(warm)),
            **present,
        },
        check=same_ids(expected),
        input_bytes=size,
        absent=absent,
        on_cpu=True,
    )


def cases(device: torch.device, quick: bool) -> Iterator[Case]:
    """Japanese and code, documents and lines, one thread and one per core."""
    model = material()
    megabytes = QUICK_MEGABYTES if quick else MEGABYTES
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    for language, documents in (("Japanese", model.japanese), ("code", code_documents())):
        lines = [line for text in documents for line in text.split("\n") if line]
        for kind, texts in (("documents", documents), ("lines", lines)):
            chosen = first(texts, megabytes)
            for threads in sorted({1, cores or 1}):
                yield encode_case(model, f"{language} {kind}", chosen, threads)
