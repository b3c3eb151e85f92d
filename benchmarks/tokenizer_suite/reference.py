"""Texts with the ids that Hugging Face's library gives them, and candidates that encode them."""

import functools
import os
from collections.abc import Callable
from typing import Any

import orjson

from benchmarks.harness import Candidate
from benchmarks.tokenizer_suite.peers import HUGGING_FACE, Ids
from benchmarks.tokenizer_suite.texts import Halves, Material


def cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def count_differing(result: list[Any], expected: list[Any]) -> int:
    """How many items are not those expected."""
    assert len(result) == len(expected), f"{len(result)} results, not {len(expected)}"
    return sum(given != wanted for given, wanted in zip(result, expected, strict=True))


class Reference:
    """Texts and their ids by Hugging Face's library, found when they are first asked for.

    Attributes:
        model: whose ids.
        texts: what is timed.
        before: other texts of the kind.
        size: UTF-8 bytes of `texts`.
    """

    def __init__(self, model: Material, halves: Halves) -> None:
        self.model = model
        self.before, self.texts = halves
        self._json = orjson.dumps(self.texts)
        self.size = sum(len(text.encode()) for text in self.texts)

    @functools.cached_property
    def ids(self) -> Ids:
        oracle = HUGGING_FACE.load(self.model, cores())
        encoded = oracle.encode_batch(self.texts, add_special_tokens=False)
        return [encoding.ids for encoding in encoded]

    def shape(self, threads: int | None) -> str:
        """Model, amount and threads, as titles have them."""
        words = [self.model.name, f"{len(self.texts)} texts, {self.size / 1e6:.2f} MB"]
        if threads is not None:
            words.append(f"{threads} thread{'s' if threads > 1 else ''}")
        return ", ".join(words)

    def differing(self, result: Any) -> int:
        """The number of texts whose ids are others."""
        return count_differing(result, self.ids)

    def candidate(
        self,
        load: Callable[[], Any],
        encode: Callable[[Any, list[str]], Any],
        first_call: bool = False,
        **options: Any,
    ) -> Candidate:
        """What encodes the texts, in one of the two states.

        Args:
            load: a tokenizer that remembers nothing.
            encode: encodes texts with it.
            first_call: the state; else after other text.
            options: of the Candidate.
        """

        def prepare() -> tuple[Any, list[str]]:
            loaded = load()
            if not first_call:
                encode(loaded, self.before)
            return loaded, orjson.loads(self._json)

        return Candidate(
            lambda prepared: encode(*prepared), prepare, warm=not first_call, **options
        )
