"""The tokenizers that llmjp_ext is compared with: how each is loaded, called, and its ids read.

Each is called in the fastest way that its documentation offers. None has to be installed.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from benchmarks.harness import missing
from benchmarks.tokenizer_suite.texts import Material
from llmjp_ext import Tokenizer

Ids = list[list[int]]


def as_lists(result: Any) -> Ids:
    """Lists of ids out of (ids, offsets), or out of arrays' bytes a text."""
    if isinstance(result, tuple):
        flat, offsets = result
        if isinstance(flat, bytes):
            flat, offsets = np.frombuffer(flat, np.uint32), np.frombuffer(offsets, np.uint64)
        return [flat[start:end].tolist() for start, end in pairwise(offsets.tolist())]
    if result and isinstance(result[0], bytes):
        return [np.frombuffer(ids, np.uint32).tolist() for ids in result]
    ids: Ids = result
    return ids


@dataclass(frozen=True)
class Peer:
    """One tokenizer.

    Attributes:
        name: what its rows are called; "sentencepiece", or with the method that is called.
        module: what is imported. `package` is what to install where the name is another.
        load: a new tokenizer from a model's files, for so many threads.
        loads: what it loads, "tokenizer.json" or ".model".
        batch: ids of texts, with so many threads.
        one: ids of one text.
        decode: texts of sequences of ids, or None where it has nothing for many.
        ids: makes lists of what `batch` returns, without ids that could not be declined.
        threaded: whether more than one thread does anything for it.
    """

    name: str
    module: str
    load: Callable[[Material, int], Any]
    loads: str
    batch: Callable[[Any, list[str], int], Any]
    one: Callable[[Any, str], list[int]]
    decode: Callable[[Any, Ids, int], list[str]] | None
    package: str | None = None
    ids: Callable[[Any], Ids] = as_lists
    threaded: bool = True

    def absent(self, threads: int = 1) -> str | None:
        """Why it cannot be measured here, or None."""
        if reason := missing(self.module, self.package):
            return reason
        if threads > 1 and not self.threaded:
            return "uses one thread only"
        return None


def _load_hugging_face(model: Material, threads: int) -> Any:
    import tokenizers

    # Read at every call. Its pool of threads is one per core, and cannot be made anew.
    os.environ["TOKENIZERS_PARALLELISM"] = "true" if threads > 1 else "false"
    return tokenizers.Tokenizer.from_file(str(model.json))


def _load_sentencepiece(model: Material, threads: int) -> Any:
    import sentencepiece

    return sentencepiece.SentencePieceProcessor(model_file=str(model.sentencepiece))


def _load_splintr(model: Material, threads: int) -> Any:
    import splintr

    return splintr.from_json(str(model.json))


def _splintr_batch(splintr: Any, texts: list[str], threads: int) -> Any:
    # Its batches always use all cores; one text at a time is what it offers for one thread.
    if threads > 1:
        return splintr.encode_batch_flat(texts)
    return [splintr.encode_flat(text) for text in texts]


def _splintr_ids(result: Any) -> Ids:
    # The end-of-text token cannot be declined where an array is wanted.
    return [ids[:-1] for ids in as_lists(result)]


def _load_kitoken(model: Material, threads: int) -> Any:
    import kitoken

    return kitoken.Kitoken.from_sentencepiece_file(str(model.sentencepiece))


def _load_transformers(model: Material, threads: int) -> Any:
    os.environ["TOKENIZERS_PARALLELISM"] = "true" if threads > 1 else "false"
    return Tokenizer.from_pretrained(model.json.parent).to_hf()


HUGGING_FACE = Peer(
    name="tokenizers",
    module="tokenizers",
    load=_load_hugging_face,
    loads="tokenizer.json",
    batch=lambda peer, texts, threads: [
        encoding.ids for encoding in peer.encode_batch_fast(texts, add_special_tokens=False)
    ],
    one=lambda peer, text: peer.encode(text, add_special_tokens=False).ids,
    decode=lambda peer, ids, threads: peer.decode_batch(ids),
)
SENTENCEPIECE = Peer(
    name="sentencepiece",
    module="sentencepiece",
    load=_load_sentencepiece,
    loads=".model",
    batch=lambda peer, texts, threads: peer.encode(texts, num_threads=threads),
    one=lambda peer, text: peer.encode(text),
    decode=lambda peer, ids, threads: peer.decode(ids, num_threads=threads),
)
SPLINTR = Peer(
    name="splintr",
    module="splintr",
    package="splintr-rs",
    load=_load_splintr,
    loads="tokenizer.json",
    batch=_splintr_batch,
    one=lambda peer, text: peer.encode_raw(text),
    decode=None,
    ids=_splintr_ids,
)
KITOKEN = Peer(
    name="kitoken",
    module="kitoken",
    load=_load_kitoken,
    loads=".model",
    batch=lambda peer, texts, threads: peer.encode_all(texts),
    one=lambda peer, text: peer.encode(text),
    decode=lambda peer, ids, threads: [text.decode("utf-8") for text in peer.decode_all(ids)],
    threaded=False,
)
TRANSFORMERS = Peer(
    name="transformers",
    module="transformers",
    load=_load_transformers,
    loads="tokenizer.json",
    batch=lambda peer, texts, threads: peer(texts, add_special_tokens=False, verbose=False)[
        "input_ids"
    ],
    one=lambda peer, text: peer.encode(text, add_special_tokens=False),
    decode=lambda peer, ids, threads: peer.batch_decode(ids),
)

PEERS = (HUGGING_FACE, SENTENCEPIECE, SPLINTR, KITOKEN)
