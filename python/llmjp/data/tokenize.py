"""`llmjp tokenize`: turns text into an indexed dataset (llmjp.data.indexed) for training."""

import argparse
import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from llmjp.data.indexed import IndexedWriter
from llmjp.data.text import SPLITS, Document, find_files, read_documents
from llmjp.errors import UserError
from llmjp_ext import Tokenizer

HELP = "Turns text files into token files (PREFIX.bin and PREFIX.idx) for training."

# What is held in memory at a time: enough to keep all threads busy, whatever the corpus's size.
_BATCH_CHARACTERS = 1 << 22
_BATCH_DOCUMENTS = 1 << 16
# What ends a document in LLM-jp's Hugging Face files, in its SentencePiece files, and elsewhere.
_END_TOKENS = ("<EOD|LLM-jp>", "<EOD>", "</s>")


@dataclass(frozen=True)
class Summary:
    """What a run did."""

    files: int
    documents: int
    tokens: int
    bytes_read: int
    seconds: float


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument(
        "inputs",
        nargs="+",
        help="text files (.txt, .jsonl, also .gz) or folders, which are searched for such files",
    )
    parser.add_argument(
        "--tokenizer",
        required=True,
        help="a tokenizer.json, a SentencePiece .model, or a folder that holds a tokenizer.json",
    )
    parser.add_argument("--output", required=True, metavar="PREFIX", help="writes PREFIX.bin, .idx")
    parser.add_argument(
        "--split", choices=SPLITS, default="file", help="what a document is in a .txt file"
    )
    parser.add_argument("--field", default="text", help="the key of the text in a .jsonl file")
    parser.add_argument(
        "--eod",
        metavar="TOKEN",
        help="token appended to each document; by default the one that the tokenizer appends "
        f"itself, else the first it has of {' '.join(_END_TOKENS)}",
    )
    parser.add_argument("--threads", type=int, help="threads; by default one per usable core")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing PREFIX")


def run(arguments: argparse.Namespace) -> int:
    """Runs the command; returns its exit code."""
    if arguments.threads is not None and arguments.threads < 1:
        raise UserError(f"--threads must be 1 or more, got {arguments.threads}")
    summary = tokenize(
        arguments.inputs,
        load_tokenizer(arguments.tokenizer),
        arguments.output,
        split=arguments.split,
        field=arguments.field,
        end_token=arguments.eod,
        threads=arguments.threads,
        overwrite=arguments.overwrite,
    )
    rate = summary.tokens / max(summary.seconds, 1e-9)
    print(
        f"{arguments.output}: {summary.documents:,} documents, {summary.tokens:,} tokens from "
        f"{summary.files:,} files of {summary.bytes_read / 1e6:,.1f} MB "
        f"in {summary.seconds:.1f} s ({rate:,.0f} tokens/s)"
    )
    return 0


def load_tokenizer(path: str | os.PathLike[str]) -> Tokenizer:
    """A tokenizer from a file or a model folder.

    Raises:
        UserError: there is none, or it is damaged or not of a supported kind.
    """
    path = Path(path)
    try:
        if path.is_dir():
            return Tokenizer.from_pretrained(path)
        return Tokenizer.from_file(path)
    except FileNotFoundError:
        what = "holds no tokenizer.json" if path.is_dir() else "does not exist"
        raise UserError(f"tokenizer {path} {what}") from None
    except ValueError as error:
        raise UserError(str(error)) from None


def end_token_id(tokenizer: Tokenizer, token: str | None = None) -> int:
    """The id that ends a document.

    Args:
        tokenizer: whose vocabulary.
        token: the token; None takes the one that the tokenizer's template appends, else the first
            of `<EOD|LLM-jp>`, `<EOD>`, `</s>` that it has.

    Raises:
        UserError: the vocabulary has no such token.
    """
    if token is None:
        appended = tokenizer.encode("")
        if len(appended) == 1:
            return appended[0]
    for candidate in _END_TOKENS if token is None else (token,):
        id = tokenizer.token_to_id(candidate)
        if id is not None:
            return id
    missing = "none of " + ", ".join(_END_TOKENS) if token is None else f"no token {token!r}"
    raise UserError(f"the tokenizer has {missing}; --eod names the token that ends a document")


def tokenize(
    inputs: Sequence[str | os.PathLike[str]],
    tokenizer: Tokenizer,
    output: str | os.PathLike[str],
    *,
    split: str = "file",
    field: str = "text",
    end_token: str | None = None,
    threads: int | None = None,
    overwrite: bool = False,
) -> Summary:
    """Writes the indexed dataset `output` from text files: each document's ids, then the end token.

    Args:
        inputs: files and folders; see llmjp.data.text.find_files().
        tokenizer: gives the ids; its template's special tokens are not added.
        output: the dataset's prefix.
        split: what a document is in plain text; see llmjp.data.text.read_documents().
        field: the key of the text in JSON lines.
        end_token: appended to each document; see end_token_id().
        threads: default: one per usable core.
        overwrite: replace a dataset that exists.

    Raises:
        UserError: an input is missing or malformed, there is no document, or the output exists.
        OSError: a file cannot be read or written. Nothing is left of an unfinished output.
    """
    started = time.perf_counter()
    files = find_files(inputs)
    end = end_token_id(tokenizer, end_token)
    total = sum(path.stat().st_size for path in files)
    with (
        IndexedWriter(output, tokenizer.vocab_size, overwrite=overwrite) as writer,
        tqdm(total=total, unit="B", unit_scale=True, disable=not sys.stderr.isatty()) as progress,
    ):
        finished = 0
        for path in files:
            for batch in _batches(read_documents(path, split, field)):
                ids, offsets = _encode(tokenizer, batch, threads)
                writer.add_ragged(*_with_end(ids, offsets, end))
                progress.set_postfix_str(f"{writer.token_count:,} tokens", refresh=False)
                progress.update(finished + batch[-1].bytes_read - progress.n)
            finished += path.stat().st_size
            progress.update(finished - progress.n)
        if writer.document_count == 0:
            raise UserError(f"no text in {', '.join(str(name) for name in inputs)}")
    seconds = time.perf_counter() - started
    return Summary(len(files), writer.document_count, writer.token_count, total, seconds)


def _batches(documents: Iterator[Document]) -> Iterator[list[Document]]:
    """Groups of documents of one file, each of a bounded size unless one document exceeds it."""
    batch: list[Document] = []
    characters = 0
    for document in documents:
        batch.append(document)
        characters += len(document.text)
        if characters >= _BATCH_CHARACTERS or len(batch) >= _BATCH_DOCUMENTS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _encode(
    tokenizer: Tokenizer, batch: list[Document], threads: int | None
) -> tuple[npt.NDArray[np.integer], npt.NDArray[np.int64]]:
    texts = [document.text for document in batch]
    try:
        return tokenizer.encode_ragged(texts, add_special_tokens=False, num_threads=threads)
    except TypeError:
        for document in batch:
            try:
                tokenizer.encode(document.text)
            except TypeError as error:  # JSON's escapes can spell half of a surrogate pair
                raise UserError(f"{document.place}: {error}") from None
        raise


def _with_end(
    ids: npt.NDArray[np.integer], offsets: npt.NDArray[np.int64], end: int
) -> tuple[npt.NDArray[np.integer], npt.NDArray[np.int64]]:
    """The same documents with the id `end` after each."""
    return np.insert(ids, offsets[1:], end), offsets + np.arange(len(offsets))
