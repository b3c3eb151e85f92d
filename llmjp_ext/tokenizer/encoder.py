"""From texts to ids: one text, batches, and texts as they come."""

import operator
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from llmjp_ext import _tokenizer
from llmjp_ext.tokenizer.iterators import CHUNK_CHARACTERS, encode_chunks, lines_of

SpanUnit = Literal["characters", "bytes"]
RaggedIds = tuple[npt.NDArray[np.uint16] | npt.NDArray[np.uint32], npt.NDArray[np.int64]]


class Encoder:
    """The half of a Tokenizer that encodes."""

    _native: _tokenizer.Tokenizer

    def encode(
        self,
        text: str,
        pair: str | None = None,
        add_special_tokens: bool = True,
        encode_special_tokens: bool = False,
    ) -> list[int]:
        """Ids of a text, or of a pair of texts.

        Args:
            text: any str without lone surrogates.
            pair: a second text, joined as the file's template for pairs says.
            add_special_tokens: add what the template adds (LLM-jp: <EOD|LLM-jp> after each text).
            encode_special_tokens: do not cut special tokens that are spelled out in the text; the
                search, which knows all pieces, still finds those that are pieces (LLM-jp: all).

        Raises:
            TypeError: `text` or `pair` is not a str, or has a lone surrogate.
        """
        return self._native.encode(text, pair, add_special_tokens, encode_special_tokens)

    def encode_batch(
        self,
        texts: Iterable[str],
        add_special_tokens: bool = True,
        encode_special_tokens: bool = False,
        num_threads: int | None = None,
    ) -> list[list[int]]:
        """encode() of each text, over `num_threads` threads (default: one per usable core).

        The result does not depend on the number of threads.

        Raises:
            TypeError: `texts` is one str, or an item is not a str or has a lone surrogate.
            ValueError: `num_threads` is below 1.
        """
        threads = thread_count(num_threads)
        return self._native.encode_batch(texts, add_special_tokens, encode_special_tokens, threads)

    def encode_ragged(
        self,
        texts: Iterable[str],
        add_special_tokens: bool = True,
        encode_special_tokens: bool = False,
        num_threads: int | None = None,
    ) -> tuple[npt.NDArray[np.uint16] | npt.NDArray[np.uint32], npt.NDArray[np.int64]]:
        """As encode_batch(), without a Python object per token.

        Returns:
            ids: [total], all texts' ids one after another; uint16 if the vocabulary is smaller
                than 65,500, else uint32.
            offsets: [len(texts) + 1], int64; text i has ids[offsets[i]:offsets[i + 1]].

        Raises:
            As encode_batch().
        """
        threads = thread_count(num_threads)
        return self._native.encode_ragged(texts, add_special_tokens, encode_special_tokens, threads)

    def encode_with_spans(
        self,
        text: str,
        pair: str | None = None,
        add_special_tokens: bool = True,
        encode_special_tokens: bool = False,
        unit: SpanUnit = "characters",
    ) -> tuple[list[int], list[tuple[int, int]]]:
        """encode(), and where in the text each id comes from.

        The spans are those that the tokenizer's own library calls offsets. An id that the template
        adds has (0, 0). The "▁" before a segment has no characters, and a "▁" of the text has those
        of its space. With a tokenizer.json every byte piece of a run of unknown characters has the
        whole run; with a SentencePiece model the last byte of a character has that character, and
        the bytes before it nothing.

        Args:
            text: any str without lone surrogates.
            pair: a second text; spans of its ids are spans in it.
            add_special_tokens: as in encode().
            encode_special_tokens: as in encode().
            unit: "characters", so that text[begin:end] is what an id covers, or "bytes" of the text
                as UTF-8.

        Returns:
            ids: what encode() gives.
            spans: (begin, end) of each.

        Raises:
            TypeError: `text` or `pair` is not a str, or has a lone surrogate.
            ValueError: `unit` is something else.
        """
        return self._native.encode_with_spans(
            text, pair, add_special_tokens, encode_special_tokens, _in_bytes(unit)
        )

    def encode_ragged_with_spans(
        self,
        texts: Iterable[str],
        add_special_tokens: bool = True,
        encode_special_tokens: bool = False,
        num_threads: int | None = None,
        unit: SpanUnit = "characters",
    ) -> tuple[
        npt.NDArray[np.uint16] | npt.NDArray[np.uint32],
        npt.NDArray[np.int64],
        npt.NDArray[np.int64],
    ]:
        """encode_ragged(), and where in its text each id comes from.

        Returns:
            ids: [total], as encode_ragged().
            offsets: [len(texts) + 1], int64, as encode_ragged().
            spans: [total, 2], int64; begin and end of each id in its own text, as
                encode_with_spans() gives them.

        Raises:
            As encode_batch(); ValueError: `unit` is something else.
        """
        in_bytes = _in_bytes(unit)
        threads = thread_count(num_threads)
        return self._native.encode_ragged_with_spans(
            texts, add_special_tokens, encode_special_tokens, threads, in_bytes
        )

    def encode_iter(
        self,
        texts: Iterable[str],
        add_special_tokens: bool = True,
        encode_special_tokens: bool = False,
        num_threads: int | None = None,
        *,
        chunk_characters: int = CHUNK_CHARACTERS,
    ) -> Iterator[list[int]]:
        """encode() of texts as they come: a list of ids for each, in order.

        As encode_ragged_iter(), which makes no Python object per token, in all else.
        """
        threads = thread_count(num_threads)
        chunks = encode_chunks(
            lambda chunk: self._native.encode_batch(
                chunk, add_special_tokens, encode_special_tokens, threads
            ),
            texts,
            chunk_characters,
            threads > 1,
        )
        return (ids for chunk in chunks for ids in chunk)

    def encode_ragged_iter(
        self,
        texts: Iterable[str],
        add_special_tokens: bool = True,
        encode_special_tokens: bool = False,
        num_threads: int | None = None,
        *,
        chunk_characters: int = CHUNK_CHARACTERS,
    ) -> Iterator[RaggedIds]:
        """encode_ragged() of texts as they come, in chunks of several texts, in order.

        No more is held in memory than two chunks of texts and three of ids; a chunk has
        `chunk_characters` characters and at most one text more. `texts` is read on the calling
        thread; with several threads a chunk is encoded while the next one is gathered and the one
        before is used.

        Args:
            texts: any iterable of str, such as a generator.
            add_special_tokens: as in encode().
            encode_special_tokens: as in encode().
            num_threads: as in encode_batch(); 1 starts no other thread.
            chunk_characters: size of a chunk; 1 makes each text a chunk.

        Yields:
            ids: [total] of the chunk, as encode_ragged().
            offsets: [texts of the chunk + 1], int64.

        Raises:
            TypeError: an item is not a str or has a lone surrogate; the message has its index. What
                `texts` raises goes through. Either way all texts before come out first.
            ValueError: `num_threads` or `chunk_characters` is below 1.
        """
        threads = thread_count(num_threads)
        return encode_chunks(
            lambda chunk: self._native.encode_ragged(
                chunk, add_special_tokens, encode_special_tokens, threads
            ),
            texts,
            chunk_characters,
            threads > 1,
        )

    def encode_file(
        self,
        path: str | os.PathLike[str],
        add_special_tokens: bool = True,
        encode_special_tokens: bool = False,
        num_threads: int | None = None,
        *,
        keep_newlines: bool = False,
        chunk_characters: int = CHUNK_CHARACTERS,
    ) -> Iterator[RaggedIds]:
        """encode_ragged_iter() of the lines of a UTF-8 text file, gzipped if named `*.gz`.

        The file is opened with the first chunk, and closed with the last one, an error, or the
        iterator. A line ends at "\\n" alone, and a "\\r" before it stays.

        Args:
            path: the file.
            add_special_tokens: as in encode(); each line is a text.
            encode_special_tokens: as in encode().
            num_threads: as in encode_batch().
            keep_newlines: leave the "\\n" at the end of each line.
            chunk_characters: as in encode_ragged_iter(). A longer line is a chunk of its own.

        Raises:
            OSError: the file cannot be read.
            ValueError: a line is not valid UTF-8; the message names file and line, and all lines
                before come out first. Or as in encode_ragged_iter().
        """
        return self.encode_ragged_iter(
            lines_of(Path(path), keep_newlines),
            add_special_tokens,
            encode_special_tokens,
            num_threads,
            chunk_characters=chunk_characters,
        )


def _in_bytes(unit: SpanUnit) -> bool:
    if unit not in ("characters", "bytes"):
        raise ValueError(f'unit must be "characters" or "bytes", got {unit!r}')
    return unit == "bytes"


def thread_count(requested: int | None) -> int:
    """`requested`, or one for each usable core.

    Raises:
        TypeError: it is no int.
        ValueError: it is below 1.
    """
    if requested is None:
        if hasattr(os, "sched_getaffinity"):
            return len(os.sched_getaffinity(0))
        return os.cpu_count() or 1
    try:
        count = operator.index(requested)
    except TypeError:
        got = type(requested).__name__
        raise TypeError(f"num_threads must be an int or None, got {got}") from None
    if count < 1:
        raise ValueError(f"num_threads must be 1 or more, got {count}")
    return min(count, sys.maxsize)  # there are never more threads than parts of the work
