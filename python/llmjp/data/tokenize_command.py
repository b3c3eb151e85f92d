"""The command `llmjp tokenize`: its flags, and what it prints."""

import argparse
import json
import sys
import time
from pathlib import Path

from llmjp.data.documents import SPLITS, Reading
from llmjp.data.indexed import dataset_exists
from llmjp.data.inputs import FORMATS, SUPPORTED, find_files
from llmjp.data.tokenize import (
    END_TOKENS,
    ON_ERROR,
    Summary,
    end_token_id,
    load_tokenizer,
    tokenize,
    usable_cores,
)
from llmjp.data.verify import verify
from llmjp.errors import UserError

HELP = """\
Turns text files into token files (PREFIX.bin and PREFIX.idx, Megatron's format) for training.

A run that was stopped (Ctrl-C, kill -9, a full disk) is continued by the same command. The result
depends neither on that nor on the number of workers.
"""
EXAMPLES = """\
examples:
  llmjp tokenize corpus/ --tokenizer llm-jp-tokenizer-v2.1 --out data/corpus
  llmjp tokenize 'wiki/**/*.jsonl.gz' web.parquet --json-key body --tokenizer tokenizer.json \\
      --out data/web --on-error skip
  llmjp tokenize corpus/ --tokenizer llm-jp-tokenizer-v2.1 --out data/corpus --verify
  llmjp tokenize src/ --format text --tokenizer tokenizer.model --out data/code
"""
_MEGABYTE = 1_000_000
_LARGEST = 2000  # MB: a document's ids must be countable in the index's 32 bits
_SHOWN = 5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EXAMPLES
    what = parser.add_argument_group("what is read")
    what.add_argument(
        "inputs",
        nargs="*",
        metavar="INPUT",
        help="files, folders (searched), patterns in quotes; told by their names: " + SUPPORTED,
    )
    what.add_argument(
        "--format", choices=FORMATS, help="what all inputs hold, whatever they are called"
    )
    what.add_argument(
        "--json-key",
        default="text",
        metavar="KEY",
        help="where the text stands in a line of JSON, the column of a Parquet file "
        "(default: text)",
    )
    what.add_argument(
        "--split",
        choices=SPLITS,
        default="file",
        help="what a document is in a file of plain text (default: the file)",
    )
    what.add_argument(
        "--on-error",
        choices=ON_ERROR,
        default="fail",
        help="at a record that gives no text (not JSON, no such key, not UTF-8, ...): stop with "
        "its file and line, or leave it out, count it and list it in PREFIX.skipped.jsonl "
        "(default: fail)",
    )
    what.add_argument(
        "--max-document",
        type=int,
        default=256,
        metavar="MB",
        help=f"longer ones are an error; bounds the memory, 1 to {_LARGEST} (default: 256)",
    )
    written = parser.add_argument_group("what is written")
    written.add_argument(
        "--tokenizer",
        required=True,
        metavar="PATH",
        help="a tokenizer.json, a SentencePiece .model, or a folder that holds a tokenizer.json",
    )
    written.add_argument(
        "--output",
        "--out",
        required=True,
        metavar="PREFIX",
        help="writes PREFIX.bin and PREFIX.idx; PREFIX.partial/ while the run lasts",
    )
    end = written.add_mutually_exclusive_group()
    end.add_argument(
        "--eod",
        metavar="TOKEN",
        help="token appended to each document; by default the one that the tokenizer appends "
        f"itself, else the first it has of {' '.join(END_TOKENS)}",
    )
    end.add_argument("--append-eod", action="store_true", help="append it: the default")
    end.add_argument("--no-eod", action="store_true", help="append none")
    written.add_argument(
        "--overwrite",
        action="store_true",
        help="replace PREFIX.bin and PREFIX.idx, once the new ones are complete",
    )
    written.add_argument(
        "--restart", action="store_true", help="begin anew instead of continuing a stopped run"
    )
    checked = parser.add_argument_group("what is checked")
    checked.add_argument(
        "--verify",
        action="store_true",
        help="after writing, or of a dataset that exists already: the index against the data, all "
        "ids against the vocabulary, the end of each document, and documents encoded anew from the "
        "inputs (without INPUT: the dataset for itself)",
    )
    checked.add_argument(
        "--verify-share",
        type=float,
        default=0.01,
        metavar="SHARE",
        help="of the documents that --verify encodes anew, 0 to 1 (default: 0.01)",
    )
    parser.add_argument(
        "--workers", type=int, metavar="N", help="processes (default: one per usable core)"
    )


def run(arguments: argparse.Namespace) -> int:
    """Runs the command; returns its exit code."""
    if arguments.workers is not None and arguments.workers < 1:
        raise UserError(f"--workers must be 1 or more, got {arguments.workers}")
    if not 1 <= arguments.max_document <= _LARGEST:
        raise UserError(f"--max-document must be 1 to {_LARGEST}, got {arguments.max_document}")
    if not 0 <= arguments.verify_share <= 1:
        raise UserError(f"--verify-share must be 0 to 1, got {arguments.verify_share}")
    exists = dataset_exists(arguments.output) and not arguments.overwrite
    if not arguments.inputs and not (arguments.verify and exists):
        raise UserError("name at least one INPUT; --verify alone needs a dataset that exists")
    tokenizer = load_tokenizer(arguments.tokenizer)
    reading = Reading(arguments.split, arguments.json_key, arguments.max_document * _MEGABYTE)
    if not (arguments.verify and exists):
        summary = tokenize(
            arguments.inputs,
            tokenizer,
            arguments.output,
            format=arguments.format,
            reading=reading,
            end_token=arguments.eod,
            append_end=not arguments.no_eod,
            on_error=arguments.on_error,
            workers=arguments.workers,
            overwrite=arguments.overwrite,
            restart=arguments.restart,
        )
        print_summary(arguments.output, summary)
    if arguments.verify:
        began = time.perf_counter()
        found = verify(
            arguments.output,
            tokenizer,
            None if arguments.no_eod else end_token_id(tokenizer, arguments.eod),
            find_files(arguments.inputs, arguments.format),
            reading=reading,
            share=arguments.verify_share,
            workers=arguments.workers or usable_cores(),
        )
        print(
            f"{arguments.output}: verified {found.documents:,} documents, {found.tokens:,} tokens; "
            f"{found.encoded:,} documents encoded anew are equal "
            f"(in {time.perf_counter() - began:.1f} s)"
        )
    return 0


def print_summary(output: str, summary: Summary) -> None:
    """Says what was done, where the time went, and what was left out."""
    rate = summary.text_bytes_now / 1e6 / max(summary.seconds, 1e-9)
    continued = " (a stopped run was continued)" if summary.resumed else ""
    packed = f"{summary.bytes_read / 1e6:,.1f} MB"
    if summary.text_bytes > 1.01 * summary.bytes_read:
        packed += f" ({summary.text_bytes / 1e6:,.1f} MB decompressed)"
    print(
        f"{output}: {summary.documents:,} documents, {summary.tokens:,} tokens from "
        f"{summary.files:,} files of {packed}{continued} "
        f"in {summary.seconds:.1f} s ({rate:,.1f} MB/s)"
    )
    spent = sum(summary.stages.values())
    if spent > 0:
        shares = ", ".join(
            f"{stage} {100 * part / spent:.0f}%" for stage, part in summary.stages.items()
        )
        workers = "1 worker" if summary.workers == 1 else f"{summary.workers} workers"
        print(f"time of {workers}: {shares}")
    if summary.empty:
        print(f"left out: {summary.empty:,} empty texts")
    if summary.skipped is not None:
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in sorted(summary.rejected.items()))
        count = sum(summary.rejected.values())
        print(f"skipped: {count:,} records ({kinds}), listed in {summary.skipped}")
        _show_first(summary.skipped)


def _show_first(path: Path) -> None:
    with path.open(encoding="utf-8") as stream:
        for line, _ in zip(stream, range(_SHOWN), strict=False):
            entry = json.loads(line)
            place = f"{entry['file']}:{entry['line']}" if entry["line"] else entry["file"]
            print(f"  {place}: {entry['message']}", file=sys.stderr)
