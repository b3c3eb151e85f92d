"""Tokenizer: ids and text through the public Python API, beside Hugging Face's and other libraries.

With the test data: LLM-jp v2.1. Without it: a tokenizer trained on the spot from the text of
`llmjp demo` and some modules of the standard library. Each row names its model and the number of
threads; benchmarks/tokenizer_suite/texts.py says where the texts come from.

Every candidate's result is compared with that of Hugging Face `tokenizers`, text by text, before
anything is timed. A peer that differs is timed all the same, and its rows say for how many texts.
Lists of ids and flat arrays are different products: what a candidate of ours gives stands in its
name; `tokenizers`, sentencepiece and kitoken give lists, splintr arrays.

The text that is timed is text that the tokenizer has not seen, in one of two states, the same for
ours and the peers':

- "after other text", the job of preparing a corpus: the tokenizer has encoded other text of the
  same kind, with no document or line in common, and so has filled what it remembers (llmjp_ext the
  ids of short units, others short strings) and the processor's caches. The strings were just made
  from JSON, as a reader of records leaves them. All of this is done anew for every repetition.
- "first call": the tokenizer was just loaded, remembers nothing, and the caches were overwritten.
"""

import functools
from collections.abc import Iterator
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
from benchmarks.tokenizer_suite.reference import Reference, cores, count_differing
from benchmarks.tokenizer_suite.texts import (
    Halves,
    Material,
    code_documents,
    compiled,
    drawn_documents,
    english_documents,
    first,
    lines_apart,
    material,
    prompts,
    tied_documents,
    web_documents,
)
from llmjp_ext import Tokenizer

RAGGED, LISTS = f"{OURS} encode_ragged", f"{OURS} encode_batch"
MEGABYTES = 2.0  # of one kind of text and half, at most: more than there is of JGLUE
QUICK_MEGABYTES = 0.05
# What several threads are given: a batch of a corpus, tens of milliseconds of work.
BATCH_MEGABYTES = 16.0
PROMPTS = 2000
QUICK_PROMPTS = 50
# Measured seconds for each candidate of a case: the whole run stays within five minutes.
BUDGET_SECONDS = 1.5
# Calls of ours in one repetition of a first call or of decoding, which then lasts 50 ms or so.
CALLS = 3


def fresh(model: Material) -> Tokenizer:
    """A tokenizer that remembers nothing yet."""
    return Tokenizer(compiled_bytes(model), "compiled")


@functools.cache
def compiled_bytes(model: Material) -> bytes:
    """A compiled file in memory: mapped anew, its pages would be part of the measured time."""
    return compiled(model).read_bytes()


def split_peers(peers: tuple[Peer, ...], threads: int) -> tuple[dict[str, Peer], dict[str, str]]:
    """The peers that can be measured here by name, and the others with the reason."""
    reasons = {peer.name: peer.absent(threads) for peer in peers}
    present = {peer.name: peer for peer in peers if reasons[peer.name] is None}
    return present, {name: reason for name, reason in reasons.items() if reason is not None}


def ours(
    reference: Reference, method: str, threads: int, first_call: bool = False, **options: Any
) -> Candidate:
    """encode_ragged or encode_batch of ours, with so many threads."""

    def encode(tokenizer: Tokenizer, texts: list[str]) -> Any:
        return getattr(tokenizer, method)(texts, add_special_tokens=False, num_threads=threads)

    return reference.candidate(
        lambda: fresh(reference.model), encode, first_call, as_result=as_lists, **options
    )


def encode_case(
    reference: Reference,
    name: str,
    threads: int,
    peers: tuple[Peer, ...] = PEERS,
    first_call: bool = False,
) -> Case:
    """Ids of all texts without special tokens, with so many threads, in one of the states."""
    model = reference.model
    present, absent = split_peers(peers, threads)
    calls = CALLS if first_call else 1

    def of_peer(peer: Peer) -> Candidate:
        return reference.candidate(
            lambda: peer.load(model, threads),
            lambda loaded, texts: peer.batch(loaded, texts, threads),
            first_call,
            as_result=peer.ids,
        )

    def of_ours(method: str) -> Candidate:
        rivals = tuple(present)
        return ours(reference, method, threads, first_call, calls=calls, against=rivals)

    return Case(
        name=f"first call: {name}" if first_call else name,
        shape=reference.shape(threads),
        dtype="",
        candidates={
            RAGGED: of_ours("encode_ragged"),
            LISTS: of_ours("encode_batch"),
            **{rival: of_peer(peer) for rival, peer in present.items()},
        },
        check=reference.differing,
        input_bytes=reference.size,
        absent=absent,
        on_cpu=True,
        items=len(reference.texts),
        facts={
            "kind": "first" if first_call else "encode",
            "model": model.name,
            "threads": threads,
        },
        budget_seconds=BUDGET_SECONDS,
    )


def labelled(method: str, threads: int) -> str:
    """A candidate's name where it is compared with itself."""
    return f"{OURS} {method}, {threads} thread{'s' if threads > 1 else ''}"


def threads_case(reference: Reference, name: str) -> Case:
    """One thread and all of them in the same rounds, after other text."""
    candidates = {}
    for method in ("encode_ragged", "encode_batch"):
        for threads in sorted({1, cores()}):
            against = (labelled(method, 1),) if threads > 1 else ()
            candidates[labelled(method, threads)] = ours(
                reference, method, threads, against=against
            )
    return Case(
        name=f"threads: {name}",
        shape=reference.shape(None),
        dtype="",
        candidates=candidates,
        check=reference.differing,
        input_bytes=reference.size,
        on_cpu=True,
        items=len(reference.texts),
        facts={"kind": "threads", "model": reference.model.name, "threads": None},
        budget_seconds=BUDGET_SECONDS,
    )


def decode_threads_case(reference: Reference, name: str) -> Case:
    """Texts of the ids by one thread and by all of them in the same rounds."""
    tokenizer = Tokenizer.from_file(reference.model.json)

    def candidate(threads: int) -> Candidate:
        return Candidate(
            lambda: tokenizer.decode_batch(reference.ids, num_threads=threads),
            against=(labelled("decode_batch", 1),) if threads > 1 else (),
        )

    return Case(
        name=f"threads: {name}",
        shape=reference.shape(None),
        dtype="",
        candidates={
            labelled("decode_batch", threads): candidate(threads)
            for threads in sorted({1, cores()})
        },
        check=lambda result: count_differing(result, reference.texts),
        input_bytes=reference.size,
        on_cpu=True,
        items=len(reference.texts),
        facts={"kind": "threads", "model": reference.model.name, "threads": None},
        budget_seconds=BUDGET_SECONDS,
    )


def memory_case(reference: Reference, name: str) -> Case:
    """What the memory of units does: empty, after other text of the kind, after the same text."""
    model, texts = reference.model, reference.texts
    befores = {"empty memory": [], "after other text": reference.before, "after the same": texts}
    empty = f"{RAGGED}, empty memory"
    return Case(
        name=f"memory: {name}",
        shape=reference.shape(1),
        dtype="",
        candidates={
            f"{RAGGED}, {state}": ours(
                Reference(model, Halves(before, texts)),
                "encode_ragged",
                1,
                against=(empty,) if before else (),
            )
            for state, before in befores.items()
        },
        check=reference.differing,
        input_bytes=reference.size,
        on_cpu=True,
        items=len(texts),
        facts={"kind": "memory", "model": model.name, "threads": 1},
        budget_seconds=BUDGET_SECONDS,
    )


def prompt_case(model: Material, count: int) -> Case:
    """Short texts one by one, after other text: what a call costs."""
    reference = Reference(model, model.japanese.each(lambda half: prompts(half, count)))
    present, absent = split_peers(PEERS, 1)

    def one_by_one(tokenizer: Tokenizer, texts: list[str]) -> Ids:
        return [tokenizer.encode(text, add_special_tokens=False) for text in texts]

    def of_peer(peer: Peer) -> Candidate:
        return reference.candidate(
            lambda: peer.load(model, 1),
            lambda loaded, texts: [peer.one(loaded, text) for text in texts],
        )

    return Case(
        name="prompts of 20 characters",
        shape=f"{model.name}, {len(reference.texts)} calls, 1 thread",
        dtype="",
        candidates={
            f"{OURS} encode": reference.candidate(
                lambda: fresh(model), one_by_one, against=tuple(present)
            ),
            **{rival: of_peer(peer) for rival, peer in present.items()},
        },
        check=reference.differing,
        input_bytes=reference.size,
        absent=absent,
        on_cpu=True,
        items=len(reference.texts),
        facts={"kind": "prompts", "model": model.name, "threads": 1},
        budget_seconds=BUDGET_SECONDS,
    )


def decode_case(reference: Reference, name: str) -> Case:
    """Texts of the ids, one list a text."""
    model = reference.model
    tokenizer = Tokenizer.from_file(model.json)
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
        shape=reference.shape(1),
        dtype="",
        candidates={
            f"{OURS} decode_batch": Candidate(
                lambda: tokenizer.decode_batch(reference.ids, num_threads=1),
                calls=CALLS,
                against=tuple(present),
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
    text = model.japanese.timed[0]
    expected = Reference(model, Halves([], [text])).ids
    present, absent = split_peers(tuple(peer for peer in PEERS if peer.loads == loads), 1)

    def loader(peer: Peer) -> Candidate:
        return Candidate(
            lambda: peer.load(model, 1),
            as_result=lambda loaded: peer.ids(peer.batch(loaded, [text], 1)),
        )

    def encoded(tokenizer: Tokenizer) -> Ids:
        return [tokenizer.encode(text, add_special_tokens=False)]

    file = compiled(model)
    mapped = f"{OURS} from_file, compiled"
    compiled_candidate = Candidate(
        lambda: Tokenizer.from_file(file), as_result=encoded, against=tuple(present)
    )
    return Case(
        name=f"load {loads}",
        shape=f"{model.name}, {path.stat().st_size / 1e6:.2f} MB",
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


def cases(device: torch.device, quick: bool) -> Iterator[Case]:
    """Kinds of text on one thread and one per core; then first calls, threads and all else."""
    model = material()
    most = QUICK_MEGABYTES if quick else MEGABYTES
    japanese = model.japanese.each(lambda half: first(half, most))
    code = code_documents().each(lambda half: first(half, most))
    english = english_documents().each(lambda half: first(half, most))
    halves = {
        "Japanese documents": japanese,
        "Japanese lines": lines_apart(japanese),
        "Japanese, one string": japanese.each(lambda half: ["\n".join(half)]),
        "English documents": english,
        "code documents": code,
        "code lines": lines_apart(code.each(lambda half: first(half, most / 2))),
        "web pages": web_documents(model.japanese, most),
        "repeated characters": tied_documents(model.japanese, most / 2),
    }
    references = {name: Reference(model, chosen) for name, chosen in halves.items()}
    for name, reference in references.items():
        for threads in sorted({1, cores()}):
            whole = threads == 1 and name in ("Japanese documents", "code documents")
            peers = (*PEERS, TRANSFORMERS) if whole else PEERS
            yield encode_case(reference, name, threads, peers)
    for name, reference in references.items():
        yield encode_case(reference, name, 1, first_call=True)
    for name in ("Japanese documents", "Japanese, one string", "code documents", "code lines"):
        yield threads_case(references[name], name)
    much = QUICK_MEGABYTES if quick else BATCH_MEGABYTES
    drawn = Reference(model, Halves(japanese.before, drawn_documents(model.japanese.timed, much)))
    library = code_documents(everywhere=True)
    modules = Reference(model, Halves(first(library.before, most), first(library.timed, much)))
    for name, reference in {"drawn Japanese": drawn, "all the library's code": modules}.items():
        yield threads_case(reference, name)
        yield decode_threads_case(reference, f"decoding {name}")
    for name in ("Japanese documents", "code documents"):
        yield memory_case(references[name], name)
    yield prompt_case(model, QUICK_PROMPTS if quick else PROMPTS)
    for name in ("Japanese documents", "code documents"):
        yield decode_case(references[name], name)
    for loads in (HUGGING_FACE.loads, SENTENCEPIECE.loads):
        yield load_case(model, loads)
