"""`llmjp tokenize`: turns text into an indexed dataset (llmjp.data.indexed) for training."""

import hashlib
import os
import pickle
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

from llmjp.data.documents import Reading
from llmjp.data.inputs import find_files
from llmjp.data.output import SKIPPED_SUFFIX, Output
from llmjp.data.segments import STAGES, Encoder, Job, plan
from llmjp.data.workers import Workers
from llmjp.errors import UserError
from llmjp_ext import Tokenizer

ON_ERROR = ("fail", "skip")
# What ends a document in LLM-jp's Hugging Face files, in its SentencePiece files, and elsewhere.
END_TOKENS = ("<EOD|LLM-jp>", "<EOD>", "</s>")


@dataclass(frozen=True)
class Summary:
    """What a run did, with what an earlier run did that it continued.

    Attributes:
        files: input files.
        documents: written; `empty` texts are none.
        tokens: written, end tokens included.
        bytes_read: of the files, on disk; `text_bytes` when decompressed.
        empty: texts that hold nothing, left out.
        rejected: records left out, by kind; `skipped` is the file that lists them, if any.
        seconds: this run took; it read `bytes_now` and `text_bytes_now`.
        stages: seconds that each stage took in all workers together.
        workers: that shared the work.
        resumed: whether a stopped run was continued.
    """

    files: int
    documents: int
    tokens: int
    bytes_read: int
    text_bytes: int
    empty: int
    rejected: dict[str, int]
    skipped: Path | None
    seconds: float
    bytes_now: int
    text_bytes_now: int
    stages: dict[str, float] = field(default_factory=dict)
    workers: int = 1
    resumed: bool = False


class Interrupted(KeyboardInterrupt):
    """Ctrl-C, with a sentence how to continue."""


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
    for candidate in END_TOKENS if token is None else (token,):
        id = tokenizer.token_to_id(candidate)
        if id is not None:
            return id
    missing = "none of " + ", ".join(END_TOKENS) if token is None else f"no token {token!r}"
    raise UserError(
        f"the tokenizer has {missing}; --eod names the token that ends a document, --no-eod "
        "appends none"
    )


def usable_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def tokenize(
    inputs: Sequence[str | os.PathLike[str]],
    tokenizer: Tokenizer,
    output: str | os.PathLike[str],
    *,
    format: str | None = None,
    reading: Reading | None = None,
    end_token: str | None = None,
    append_end: bool = True,
    on_error: str = "fail",
    workers: int | None = None,
    overwrite: bool = False,
    restart: bool = False,
) -> Summary:
    """Writes the indexed dataset `output` from text files: each document's ids, then the end token.

    A run that was stopped, whatever stopped it, is continued by the same call. The result does not
    depend on that, nor on the number of workers.

    Args:
        inputs: files, folders and patterns; see llmjp.data.inputs.find_files().
        tokenizer: gives the ids; its template's special tokens are not added.
        output: the dataset's prefix.
        format: what the files hold, whatever they are called; see find_files().
        reading: what a document is, and where its text stands.
        end_token: appended to each document; see end_token_id().
        append_end: whether it is.
        on_error: "fail" at the first record that gives no text, or "skip" such records, which are
            then listed in `output`.skipped.jsonl.
        workers: processes; default: one per usable core.
        overwrite: replace a dataset that exists, once the new one is complete.
        restart: throw away what a stopped run has done.

    Raises:
        UserError: an input is missing, malformed or has changed since the run was begun, there is
            no document, the output exists, or another process writes it.
        OSError: a file cannot be read or written.
        Interrupted: Ctrl-C.
    """
    began = time.perf_counter()
    reading = reading or Reading()
    files = find_files(inputs, format)
    end = end_token_id(tokenizer, end_token) if append_end else None
    tasks = plan(files, reading)
    identity = {
        "tokenizer": hashlib.sha256(pickle.dumps(tokenizer)).hexdigest(),
        "the end token": end,
        "--split": reading.split,
        "--json-key": reading.key,
        "--max-document": reading.longest,
        "--format": format,
    }
    total = sum(file.size for file in files)
    seconds = dict.fromkeys(STAGES, 0.0)
    count = min(workers or usable_cores(), max(len(tasks), 1))
    # Fewer tasks than cores (large compressed files): the cores share each batch instead.
    encoder = Encoder(tokenizer, end, max(1, (workers or usable_cores()) // count))
    writing = Output(
        *(output, tokenizer.vocab_size, identity, files), overwrite=overwrite, restart=restart
    )
    try:
        job = Job(files, tasks, reading, encoder, writing.folder, on_error == "fail")
        if job.stop_at_rejected and writing.total.rejected:
            raise UserError(
                f"the unfinished run {writing.folder} has skipped "
                f"{sum(writing.total.rejected.values()):,} records; repeat it with --on-error skip,"
                " or begin anew with --restart"
            )
        (*_, done), text_bytes = writing.finished(), 0
        with (
            Workers(job, writing.open_tasks(len(tasks)), count) as pool,
            tqdm(
                total=total,
                initial=done,
                unit="B",
                unit_scale=True,
                disable=not sys.stderr.isatty(),
            ) as progress,
        ):
            for segment in pool.segments():
                writing.add(segment)
                text_bytes += segment.text_bytes
                for stage, spent in segment.seconds.items():
                    seconds[stage] += spent
                documents, tokens, read = writing.finished()
                progress.set_postfix_str(
                    f"{documents:,} documents, {tokens:,} tokens", refresh=False
                )
                progress.update(min(read, total) - progress.n)
        if writing.total.documents == 0:
            writing.discard()
            rejected = sum(writing.total.rejected.values())
            skipped = f"; {rejected:,} records were skipped" if rejected else ""
            raise UserError(f"no text in {', '.join(str(name) for name in inputs)}{skipped}")
        writing.finish()
    except KeyboardInterrupt:
        kept = writing.abandon()
        raise Interrupted(
            f"the same command continues with what {writing.folder} holds"
            if kept
            else "nothing was finished yet, nothing is left behind"
        ) from None
    except BaseException:
        if not writing.closed:
            writing.abandon()
        raise
    result = writing.total
    report = writing.prefix.with_name(writing.prefix.name + SKIPPED_SUFFIX)
    return Summary(
        files=len(files),
        documents=result.documents,
        tokens=result.tokens,
        bytes_read=total,
        text_bytes=result.text_bytes,
        empty=result.empty,
        rejected=result.rejected,
        skipped=report if result.rejected else None,
        seconds=time.perf_counter() - began,
        bytes_now=total - min(done, total),
        text_bytes_now=text_bytes,
        stages=seconds,
        workers=count,
        resumed=writing.resumed,
    )
