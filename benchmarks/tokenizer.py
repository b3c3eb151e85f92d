"""Tokenizer: ids and text through the public Python API, beside Hugging Face's and other libraries.

With the test data: LLM-jp v2.1. Without it: a tokenizer trained on the spot from the text of
`llmjp demo` and some modules of the standard library. Each row names its model and the number of
threads; benchmarks/tokenizer_suite/texts.py says where the texts come from.

Every candidate's result is compared with that of Hugging Face `tokenizers`, text by text, before
anything is timed. A peer that differs is timed all the same, and its rows say for how many texts.
Lists of ids and flat arrays are different products: what a candidate of ours gives stands in its
name; `tokenizers`, sentencepiece and kitoken give lists, splintr arrays.

Text counts as unseen: llmjp_ext remembers the ids of short units of text, others short strings, so
every call gets a tokenizer that was just loaded, outside the measured time, ours and the peers'.
"""

import functools
import os
from collections.abc import Callable, Iterator
from typing import Any

import torch

from benchmarks.harness import OURS, Candidate, Case
from benchmarks.tokenizer_suite.peers import (
    HUGGING_FACE,
    PEERS,
    SENTENCEPIECE,
    TRANSFORMERS,
    Ids,
    Peer,
    as_lists,
)
from benchmarks.tokenizer_suite.texts import (
    Material,
    code_documents,
    compiled,
    english_documents,
    first,
    lines_of,
    material,
    prompts,
    tied_documents,
    web_documents,
)
from llmjp_ext import Tokenizer

RAGGED, LISTS = f"{OURS} encode_ragged", f"{OURS} encode_batch"
MEGABYTES = 4.0  # of one kind of text at most: all of JGLUE
QUICK_MEGABYTES = 0.05
PROMPTS = 2000
QUICK_PROMPTS = 50
# Measured seconds for each candidate of a case: the whole run stays within five minutes.
BUDGET_SECONDS = 1.5
# Calls of ours in one repetition, which then lasts 50 ms or so.
CALLS = 3


class Reference:
    """Ids of some texts by Hugging Face's library, found when they are first asked for."""

    def __init__(self, model: Material, texts: list[str]) -> None:
        self.model = model
        self.texts = texts
        self.size = sum(len(text.encode()) for text in texts)

    @functools.cached_property
    def ids(self) -> Ids:
        oracle = HUGGING_FACE.load(self.model, cores())
        encoded = oracle.encode_batch(self.texts, add_special_tokens=False)
        return [encoding.ids for encoding in encoded]

    def differing(self, result: Any) -> int:
        """The number of texts whose ids are others."""
        return count_differing(result, self.ids)


def fresh(model: Material) -> Tokenizer:
    """A tokenizer that remembers nothing yet."""
    return Tokenizer(compiled_bytes(model), "compiled")


@functools.cache
def compiled_bytes(model: Material) -> bytes:
    """A compiled file in memory: mapped anew, its pages would be part of the measured time."""
    return compiled(model).read_bytes()


def cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def count_differing(result: list[Any], expected: list[Any]) -> int:
    """How many items are not those expected."""
    assert len(result) == len(expected), f"{len(result)} results, not {len(expected)}"
    return sum(given != wanted for given, wanted in zip(result, expected, strict=True))


def split_peers(peers: tuple[Peer, ...], threads: int) -> tuple[dict[str, Peer], dict[str, str]]:
    """The peers that can be measured here by name, and the others with the reason."""
    reasons = {peer.name: peer.absent(threads) for peer in peers}
    present = {peer.name: peer for peer in peers if reasons[peer.name] is None}
    return present, {name: reason for name, reason in reasons.items() if reason is not None}


def encode_case(
    reference: Reference, name: str, threads: int, peers: tuple[Peer, ...] = PEERS
) -> Case:
    """Ids of all texts without special tokens, with so many threads."""
    model, texts = reference.model, reference.texts
    present, absent = split_peers(peers, threads)

    def load() -> Tokenizer:
        return fresh(model)

    def lists(ours: Tokenizer) -> Ids:
        return ours.encode_batch(texts, add_special_tokens=False, num_threads=threads)

    def ragged(ours: Tokenizer) -> Any:
        return ours.encode_ragged(texts, add_special_tokens=False, num_threads=threads)

    def of_peer(peer: Peer) -> Candidate:
        return Candidate(
            lambda loaded: peer.batch(loaded, texts, threads),
            prepare=lambda: peer.load(model, threads),
            as_result=peer.ids,
        )

    rivals = tuple(present)
    return Case(
        name=name,
        shape=shape(model, f"{len(texts)} texts, {reference.size / 1e6:.2f} MB", threads),
        dtype="",
        candidates={
            RAGGED: Candidate(ragged, load, as_lists, calls=CALLS, against=rivals),
            LISTS: Candidate(lists, load, calls=CALLS, against=rivals),
            **{rival: of_peer(peer) for rival, peer in present.items()},
        },
        check=reference.differing,
        input_bytes=reference.size,
        absent=absent,
        on_cpu=True,
        items=len(texts),
        facts={"kind": "encode", "model": model.name, "threads": threads},
        budget_seconds=BUDGET_SECONDS,
    )


def threads_case(reference: Reference, name: str) -> Case:
    """One thread and all of them in the same rounds."""
    model, texts = reference.model, reference.texts

    def call(method: str, threads: int) -> Callable[[Tokenizer], Any]:
        def run(ours: Tokenizer) -> Any:
            return getattr(ours, method)(texts, add_special_tokens=False, num_threads=threads)

        return run

    def labelled(method: str, threads: int) -> str:
        return f"{OURS} {method}, {threads} thread{'s' if threads > 1 else ''}"

    candidates = {}
    for method in ("encode_ragged", "encode_batch"):
        for threads in sorted({1, cores()}):
            candidates[labelled(method, threads)] = Candidate(
                call(method, threads),
                lambda: fresh(model),
                as_lists,
                calls=CALLS,
                against=(labelled(method, 1),) if threads > 1 else (),
            )
    return Case(
        name=f"threads: {name}",
        shape=shape(model, f"{len(texts)} texts, {reference.size / 1e6:.2f} MB", None),
        dtype="",
        candidates=candidates,
        check=reference.differing,
        input_bytes=reference.size,
        on_cpu=True,
        items=len(texts),
        facts={"kind": "threads", "model": model.name, "threads": None},
        budget_seconds=BUDGET_SECONDS,
    )


def memory_case(model: Material, name: str, texts: list[str]) -> Case:
    """What the memory of units does: empty, after other text of the kind, after the same text."""
    other, timed = texts[::2], texts[1::2]
    reference = Reference(model, timed)

    def after(seen: list[str]) -> Callable[[], Tokenizer]:
        def prepare() -> Tokenizer:
            ours = fresh(model)
            ours.encode_ragged(seen, num_threads=1)
            return ours

        return prepare

    def ragged(ours: Tokenizer) -> Any:
        return ours.encode_ragged(timed, add_special_tokens=False, num_threads=1)

    empty = f"{RAGGED}, empty memory"
    states = {f"{RAGGED}, after other text": other, f"{RAGGED}, after the same text": timed}
    return Case(
        name=f"memory: {name}",
        shape=shape(model, f"{len(timed)} texts, {reference.size / 1e6:.2f} MB", 1),
        dtype="",
        candidates={
            empty: Candidate(ragged, after([]), as_lists, calls=CALLS),
            **{
                state: Candidate(ragged, after(seen), as_lists, calls=CALLS, against=(empty,))
                for state, seen in states.items()
            },
        },
        check=reference.differing,
        input_bytes=reference.size,
        on_cpu=True,
        items=len(timed),
        facts={"kind": "memory", "model": model.name, "threads": 1},
        budget_seconds=BUDGET_SECONDS,
    )


def prompt_case(model: Material, count: int) -> Case:
    """Short texts one by one: what a call costs."""
    texts = prompts(model.japanese, count)
    reference = Reference(model, texts)
    present, absent = split_peers(PEERS, 1)

    def one_by_one(ours: Tokenizer) -> Ids:
        return [ours.encode(text, add_special_tokens=False) for text in texts]

    def of_peer(peer: Peer) -> Candidate:
        return Candidate(
            lambda loaded: [peer.one(loaded, text) for text in texts],
            prepare=lambda: peer.load(model, 1),
        )

    return Case(
        name="prompts of 20 characters",
        shape=shape(model, f"{len(texts)} calls", 1),
        dtype="",
        candidates={
            f"{OURS} encode": Candidate(one_by_one, lambda: fresh(model), against=tuple(present)),
            **{rival: of_peer(peer) for rival, peer in present.items()},
        },
        check=reference.differing,
        input_bytes=reference.size,
        absent=absent,
        on_cpu=True,
        items=len(texts),
        facts={"kind": "prompts", "model": model.name, "threads": 1},
        budget_seconds=BUDGET_SECONDS,
    )


def decode_case(reference: Reference, name: str) -> Case:
    """Texts of the ids, one list a text."""
    model = reference.model
    ours = Tokenizer.from_file(model.json)
    decoding = tuple(peer for peer in PEERS if peer.decode is not None)
    present, absent = split_peers(decoding, 1)

    @functools.cache
    def expected() -> list[str]:
        return HUGGING_FACE.load(model, 1).decode_batch(reference.ids)

    def of_peer(peer: Peer) -> Candidate:
        assert peer.decode is not None
        decode = peer.decode
        return Candidate(
            lambda loaded: decode(loaded, reference.ids, 1), prepare=lambda: peer.load(model, 1)
        )

    return Case(
        name=f"decode_batch: {name}",
        shape=shape(model, f"{len(reference.texts)} texts, {reference.size / 1e6:.2f} MB", 1),
        dtype="",
        candidates={
            f"{OURS} decode_batch": Candidate(
                lambda: ours.decode_batch(reference.ids), calls=CALLS, against=tuple(present)
            ),
            **{rival: of_peer(peer) for rival, peer in present.items()},
        },
        check=lambda result: count_differing(result, expected()),
        input_bytes=reference.size,
        absent=absent,
        on_cpu=True,
        items=len(reference.texts),
        facts={"kind": "decode", "model": model.name, "threads": 1},
        budget_seconds=BUDGET_SECONDS,
    )


def load_case(model: Material, loads: str) -> Case:
    """From the file to a tokenizer that encodes."""
    path = model.json if loads == "tokenizer.json" else model.sentencepiece
    text = model.japanese[0]
    expected = Reference(model, [text]).ids
    present, absent = split_peers(tuple(peer for peer in PEERS if peer.loads == loads), 1)

    def loader(peer: Peer) -> Candidate:
        return Candidate(
            lambda: peer.load(model, 1),
            as_result=lambda loaded: peer.ids(peer.batch(loaded, [text], 1)),
        )

    def encoded(ours: Tokenizer) -> Ids:
        return [ours.encode(text, add_special_tokens=False)]

    file = compiled(model)
    mapped = f"{OURS} from_file, compiled"
    compiled_candidate = Candidate(
        lambda: Tokenizer.from_file(file), as_result=encoded, against=tuple(present)
    )
    return Case(
        name=f"load {loads}",
        shape=shape(model, f"{path.stat().st_size / 1e6:.2f} MB", None),
        dtype="",
        candidates={
            f"{OURS} from_file": Candidate(
                lambda: Tokenizer.from_file(path),
                as_result=encoded,
                against=tuple(present),
            ),
            **({mapped: compiled_candidate} if loads == HUGGING_FACE.loads else {}),
            **{rival: loader(peer) for rival, peer in present.items()},
        },
        check=lambda result: count_differing(result, expected),
        absent=absent,
        on_cpu=True,
        items=1,
        facts={"kind": "load", "model": model.name, "threads": None},
        budget_seconds=BUDGET_SECONDS,
    )


def shape(model: Material, amount: str, threads: int | None) -> str:
    """Model, amount and threads, as titles have them."""
    words = [model.name, amount]
    if threads is not None:
        words.append(f"{threads} thread{'s' if threads > 1 else ''}")
    return ", ".join(words)


def cases(device: torch.device, quick: bool) -> Iterator[Case]:
    """Kinds of text on one thread and one per core; then threads, memory, calls, ids, files."""
    model = material()
    most = QUICK_MEGABYTES if quick else MEGABYTES
    japanese, code = first(model.japanese, most), first(code_documents(), most / 2)
    texts = {
        "Japanese documents": japanese,
        "Japanese lines": first(lines_of(japanese), most / 2),
        "Japanese, one string": ["\n".join(first(model.japanese, most / 2))],
        "English documents": first(english_documents(), most / 2),
        "code documents": code,
        "code lines": first(lines_of(code), most / 4),
        "web pages": web_documents(model.japanese, most / 2),
        "repeated characters": tied_documents(model.japanese, most / 4),
    }
    references = {name: Reference(model, chosen) for name, chosen in texts.items()}
    for name, reference in references.items():
        for threads in sorted({1, cores()}):
            whole = threads == 1 and name in ("Japanese documents", "code documents")
            peers = (*PEERS, TRANSFORMERS) if whole else PEERS
            yield encode_case(reference, name, threads, peers)
    for name in ("Japanese documents", "Japanese, one string", "code documents", "code lines"):
        yield threads_case(references[name], name)
    for name in ("Japanese documents", "code documents"):
        yield memory_case(model, name, texts[name])
    yield prompt_case(model, QUICK_PROMPTS if quick else PROMPTS)
    for name in ("Japanese documents", "code documents"):
        yield decode_case(references[name], name)
    for loads in (HUGGING_FACE.loads, SENTENCEPIECE.loads):
        yield load_case(model, loads)
