"""`llmjp tokenizer-train`: trains tokenizers of the LLM-jp kind with SentencePiece.

This is one training on all text; llmjp.tokenizer_merging has one for each language.

train_tokenizer() writes the SentencePiece `.model` and the `tokenizer.json` made from it, whose ids
agree on all text that spells out no special token and no byte piece such as "<0x41>", but for runs
of one character whose exact ties the two formats round differently.
"""

import argparse
import json
import os
import re
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from llmjp.data.documents import Reading, read_texts
from llmjp.data.inputs import FORMATS, SUPPORTED, InputFile, find_files
from llmjp.errors import UserError
from llmjp_ext import Tokenizer

HELP = "Trains a byte-fallback Unigram tokenizer of the LLM-jp kind on text files."

MODEL_FILE = "tokenizer.model"
OUTPUT_FILES = (
    MODEL_FILE,
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
)
SPECIAL_TOKENS = ("<unk>", "<s>", "</s>", "<mask>", "<pad>", "<CLS>", "<SEP>", "<EOD>")
END_OF_TEXT = "<EOD|LLM-jp>"
SPACE_MARK = "▁"

_ROLES = {
    "unk_token": "<unk|LLM-jp>",
    "bos_token": "<s|LLM-jp>",
    "eos_token": END_OF_TEXT,
    "pad_token": "<pad|LLM-jp>",
    "cls_token": "<CLS|LLM-jp>",
    "sep_token": "<SEP|LLM-jp>",
    "eod_token": END_OF_TEXT,
    "mask_token": "<mask|LLM-jp>",
    "additional_special_tokens": ["</s|LLM-jp>"],
}


FIXED_PIECES = len(SPECIAL_TOKENS) + 1 + 256  # special, newline, bytes
_COVERAGES = (0.98, 1.0)  # what SentencePiece takes
_LONGEST_PIECE = 512
_MOST_THREADS = 1024
# SentencePiece skips lines beyond its limit (in bytes); longer ones are cut into several.
_SENTENCE_CHARACTERS = 1 << 16
_SENTENCE_BYTES = 4 * _SENTENCE_CHARACTERS
# From so many bytes on disk on (packed ones may be a gigabyte of text) SentencePiece counts in 64
# bits, as in LLM-jp's recipe: in 32 it refuses what has 2^31 characters. It takes more memory.
LARGE_CORPUS = 1 << 28


@dataclass(frozen=True)
class Summary:
    """What a training did.

    Attributes:
        pieces: size of the vocabulary, fixed pieces included.
        files: text files that were read.
        bytes_read: their size on disk.
        seconds: of reading, training and writing together.
    """

    pieces: int
    files: int
    bytes_read: int
    seconds: float


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument(
        "inputs",
        nargs="*",
        metavar="INPUT",
        help="of a single training: files, folders (searched), patterns in quotes; told by their "
        "names: " + SUPPORTED,
    )
    parser.add_argument(
        "--format", choices=FORMATS, help="what all inputs hold, whatever they are called"
    )
    parser.add_argument(
        "--output", required=True, metavar="DIR", help="folder that gets the tokenizer's files"
    )
    parser.add_argument(
        "--vocab-size",
        type=int,
        metavar="N",
        help=f"of a single training: pieces in all; {FIXED_PIECES} special, newline and byte "
        "pieces are among them",
    )
    parser.add_argument(
        "--allow-fewer",
        action="store_true",
        help="take fewer pieces where the text does not support --vocab-size",
    )
    parser.add_argument(
        "--character-coverage",
        type=float,
        default=0.9995,
        metavar="SHARE",
        help="share of the text's characters that get pieces; the rest become bytes",
    )
    parser.add_argument(
        "--max-piece-length",
        type=int,
        default=16,
        metavar="N",
        help="of a single training: characters of a piece",
    )
    parser.add_argument(
        "--language",
        action="append",
        default=[],
        metavar="NAME:PIECES:LONGEST:INPUT[,INPUT...]",
        help="instead of INPUT and --vocab-size, once for each language, as LLM-jp does: train "
        "PIECES pieces of at most LONGEST characters on these inputs, and merge all languages; "
        "those named ja or zh are taken to be written without spaces",
    )
    parser.add_argument(
        "--em-epochs",
        type=int,
        default=2,
        metavar="N",
        help="with --language: times that the merged pieces' scores are estimated anew on all text",
    )
    parser.add_argument(
        "--max-lines",
        type=int,
        metavar="N",
        help="train on a random sample of N lines: all lines are held in memory otherwise",
    )
    parser.add_argument(
        "--json-key",
        default="text",
        metavar="KEY",
        help="where the text stands in a line of JSON; the column of a Parquet file",
    )
    parser.add_argument("--threads", type=int, help="threads; by default one per usable core")
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="of the sample that --max-lines asks for"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace existing files in DIR")


def run(arguments: argparse.Namespace) -> int:
    """Runs the command; returns its exit code."""
    common: dict[str, Any] = {
        "character_coverage": arguments.character_coverage,
        "hard_vocab_limit": not arguments.allow_fewer,
        "max_lines": arguments.max_lines,
        "format": arguments.format,
        "json_key": arguments.json_key,
        "num_threads": arguments.threads,
        "seed": arguments.seed,
        "overwrite": arguments.overwrite,
    }
    if arguments.language:
        # Here, because it is made of this module's parts.
        from llmjp.tokenizer_merging import parse_language, train_merged_tokenizer

        if arguments.inputs or arguments.vocab_size is not None:
            raise UserError("--language takes the place of INPUT and --vocab-size, got both")
        languages = [parse_language(text) for text in arguments.language]
        summary: Summary = train_merged_tokenizer(
            languages, arguments.output, em_epochs=arguments.em_epochs, **common
        )
    elif not arguments.inputs or arguments.vocab_size is None:
        raise UserError("needed are INPUT and --vocab-size, or --language for each language")
    else:
        summary = train_tokenizer(
            arguments.inputs,
            arguments.vocab_size,
            arguments.output,
            max_piece_length=arguments.max_piece_length,
            **common,
        )
    print(
        f"{arguments.output}: {summary.pieces:,} pieces from {summary.files:,} files of "
        f"{summary.bytes_read / 1e6:,.1f} MB in {summary.seconds:.1f} s"
    )
    return 0


def train_tokenizer(
    inputs: Sequence[str | os.PathLike[str]],
    vocab_size: int,
    output_dir: str | os.PathLike[str],
    *,
    character_coverage: float = 0.9995,
    max_piece_length: int = 16,
    hard_vocab_limit: bool = True,
    max_lines: int | None = None,
    format: str | None = None,
    json_key: str = "text",
    num_threads: int | None = None,
    seed: int = 0,
    overwrite: bool = False,
) -> Summary:
    """Trains a tokenizer on text files and writes a folder that Transformers can load.

    The settings are those of LLM-jp's recipe that one training run can follow: identity
    normalisation, split digits, pieces of spaces only, a piece for the newline, byte fallback, and
    special tokens with ids 0 to 7 that are named `<name|LLM-jp>` in tokenizer.json.

    Args:
        inputs: files, folders and patterns; see llmjp.data.inputs.find_files(). A line is a
            training sentence.
        vocab_size: pieces in all; 8 special, 1 newline and 256 byte pieces are among them.
        output_dir: gets tokenizer.model, tokenizer.json, tokenizer_config.json and
            special_tokens_map.json. Nothing is written before all of them are complete.
        character_coverage: share of the text's characters that get pieces, 0.98 to 1; the rest
            become bytes.
        max_piece_length: of a piece, 1 to 512 characters.
        hard_vocab_limit: fail where the text does not support `vocab_size`; else take fewer pieces.
        max_lines: train on a random sample of so many lines; None takes all, held in memory.
        format: what the files hold, whatever they are called; see find_files().
        json_key: the key of the text in JSON lines, the column of a Parquet file.
        num_threads: default: one per usable core.
        seed: of the sample that `max_lines` asks for, 0 to 2^32 - 1.
        overwrite: replace a tokenizer that is in `output_dir`; other files there stay.

    Raises:
        UserError: a setting out of range, no text or a malformed file, a vocabulary size that does
            not fit the text, an output that exists, or the `sentencepiece` package is missing.
        OSError: a file cannot be read or written.
    """
    started = time.perf_counter()
    threads = usable_cores() if num_threads is None else num_threads
    check_settings(vocab_size, character_coverage, max_piece_length, max_lines, threads, seed)
    output = Path(output_dir)
    check_output(output, overwrite)
    files = find_files(inputs, format)
    total = sum(file.size for file in files)
    with (
        output_folder(output) as result,
        tqdm(total=total, unit="B", unit_scale=True, disable=not sys.stderr.isatty()) as progress,
    ):
        train_model(
            sentences_of(files, json_key, progress),
            result / MODEL_FILE,
            seed=seed,
            vocab_size=vocab_size,
            character_coverage=character_coverage,
            max_sentencepiece_length=max_piece_length,
            hard_vocab_limit=hard_vocab_limit,
            num_threads=threads,
            train_extremely_large_corpus=total >= LARGE_CORPUS,
            **({} if max_lines is None else {"input_sentence_size": max_lines}),
        )
        pieces = write_files(result)
    return Summary(pieces, len(files), total, time.perf_counter() - started)


def usable_cores() -> int:
    """Cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def check_settings(
    vocab_size: int,
    character_coverage: float,
    max_piece_length: int,
    max_lines: int | None,
    threads: int,
    seed: int,
) -> None:
    """Raises UserError for a setting that is out of range."""
    if vocab_size <= FIXED_PIECES:
        raise UserError(f"the vocabulary size must be more than {FIXED_PIECES}, got {vocab_size}")
    low, high = _COVERAGES
    if not low <= character_coverage <= high:
        raise UserError(
            f"the character coverage must be from {low} to {high}, got {character_coverage}"
        )
    if not 1 <= max_piece_length <= _LONGEST_PIECE:
        raise UserError(
            f"the longest piece must be of 1 to {_LONGEST_PIECE} characters, got {max_piece_length}"
        )
    if max_lines is not None and max_lines < 1:
        raise UserError(f"the number of lines must be 1 or more, got {max_lines}")
    if not 1 <= threads <= _MOST_THREADS:
        raise UserError(f"threads must be 1 to {_MOST_THREADS}, got {threads}")
    if not 0 <= seed < 1 << 32:
        raise UserError(f"the seed must be 0 to {(1 << 32) - 1}, got {seed}")


def check_output(output: Path, overwrite: bool) -> None:
    """Raises UserError where a tokenizer's folder may not be written."""
    if output.exists() and not output.is_dir():
        raise UserError(f"{output} is a file, not a folder")
    present = [name for name in OUTPUT_FILES if (output / name).exists()]
    if present and not overwrite:
        raise UserError(f"{output} already holds {', '.join(present)} (--overwrite replaces them)")


@contextmanager
def output_folder(output: Path) -> Iterator[Path]:
    """A folder beside `output`, whose files come to stand there once the block ends well."""
    output.parent.mkdir(parents=True, exist_ok=True)
    # Beside the output: a full disk or missing rights show before old files are touched.
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}-") as work:
        result = Path(work) / "tokenizer"
        result.mkdir()
        yield result
        if output.exists():
            for path in sorted(result.iterdir()):
                path.replace(output / path.name)
        else:
            result.rename(output)


def sentences_of(files: Iterable[InputFile], key: str, progress: "tqdm[Any]") -> Iterator[str]:
    """Lines of all files, cut where they are longer than SentencePiece takes."""
    for file in files:
        for text, taken in read_texts(file, Reading("lines", key)):
            for line in text.split("\n"):
                for start in range(0, len(line), _SENTENCE_CHARACTERS):
                    yield line[start : start + _SENTENCE_CHARACTERS]
            progress.update(taken)
    progress.set_description("training", refresh=True)


def train_model(sentences: Iterator[str], model: Path, *, seed: int, **settings: Any) -> None:
    """Trains the SentencePiece model and writes it to `model`."""
    try:
        import sentencepiece
    except ImportError:
        raise UserError("training a tokenizer needs the sentencepiece package") from None
    sentencepiece.set_random_generator_seed(seed)
    failures: list[Exception] = []

    def guarded() -> Iterator[str]:
        # SentencePiece reports an exception of its iterator as one of its own.
        try:
            yield from sentences
        except Exception as error:
            failures.append(error)
            raise

    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=guarded(),
            model_prefix=str(model.with_suffix("")),
            model_type="unigram",
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True,
            split_digits=True,
            byte_fallback=True,
            user_defined_symbols=["\n"],
            unk_id=0,
            bos_id=1,
            eos_id=2,
            pad_id=4,
            control_symbols=[
                token for token in SPECIAL_TOKENS if token not in ("<unk>", "<s>", "</s>", "<pad>")
            ],
            max_sentence_length=_SENTENCE_BYTES,
            minloglevel=2,
            **settings,
        )
    except Exception as error:
        if failures:
            raise failures[0] from None
        if isinstance(error, RuntimeError):
            raise UserError(_reason(str(error))) from None
        raise
    model.with_suffix(".vocab").unlink()


def _reason(message: str) -> str:
    """SentencePiece's message without the place in its source, in the words of our settings."""
    if "sentences_.empty()" in message:
        return "there is no text to train on"
    if found := re.search(r"too high \((\d+)\).* <= (\d+)", message):
        return (
            f"the text supports a vocabulary of {found[2]} pieces, asked for were {found[1]} "
            "(--allow-fewer takes what there is)"
        )
    if found := re.search(r"required_chars\. (\d+) vs (\d+)", message):
        return (
            f"a vocabulary of {found[1]} pieces is too small for the text's characters, which need "
            f"{found[2]} (or a lower --character-coverage)"
        )
    return "training failed: " + re.sub(r"^.*?\] ", "", " ".join(message.split()))


def write_files(folder: Path) -> int:
    """Writes what belongs beside the model; returns the number of pieces."""
    files = {
        "tokenizer.json": convert_sentencepiece(folder / MODEL_FILE),
        "tokenizer_config.json": {
            **_ROLES,
            "clean_up_tokenization_spaces": False,
            "model_max_length": int(1e30),  # none, as Transformers writes it
            "tokenizer_class": "PreTrainedTokenizerFast",
        },
        "special_tokens_map.json": _ROLES,
    }
    for name, content in files.items():
        text = json.dumps(content, ensure_ascii=False, indent=2) + "\n"
        (folder / name).write_text(text, encoding="utf-8")
    return Tokenizer.from_file(folder / "tokenizer.json").vocab_size


def convert_sentencepiece(model: str | os.PathLike[str]) -> dict[str, Any]:
    """The tokenizer.json of a SentencePiece Unigram model, as LLM-jp writes it.

    Control pieces `<name>` become special tokens `<name|LLM-jp>`, and `<EOD>` is appended to every
    text if the model has it. User-defined pieces keep the score 0 that the model file holds.

    Raises:
        ValueError: the model is damaged, or has something that Tokenizer does not support.
    """
    import sentencepiece

    Tokenizer.from_file(model)  # refuses what the conversion could not carry over
    processor = sentencepiece.SentencePieceProcessor(model_file=str(model))
    vocabulary: list[tuple[str, float]] = []
    added: list[dict[str, Any]] = []
    for id in range(processor.vocab_size()):
        piece = processor.id_to_piece(id)
        special = processor.is_control(id) or processor.is_unknown(id)
        if special:
            piece = _special_name(piece)
            added.append(
                {
                    "id": id,
                    "content": piece,
                    "single_word": False,
                    "lstrip": False,
                    "rstrip": False,
                    "normalized": False,
                    "special": True,
                }
            )
        vocabulary.append((piece, processor.get_score(id)))
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                _replace("(?<!\\n)^", SPACE_MARK),
                _replace(" ", SPACE_MARK),
            ],
        },
        "pre_tokenizer": None,
        "post_processor": _append_end_of_text(added),
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "ByteFallback"},
                _replace(SPACE_MARK, " "),
                {"type": "Fuse"},
                _replace("(?<!\\n)^ ", ""),
            ],
        },
        "model": {
            "type": "Unigram",
            "unk_id": processor.unk_id(),
            "vocab": vocabulary,
            "byte_fallback": True,
        },
    }


def _special_name(piece: str) -> str:
    if piece.startswith("<") and piece.endswith(">"):
        return f"{piece[:-1]}|LLM-jp>"
    return piece


def _replace(pattern: str, content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": {"Regex": pattern}, "content": content}


def _append_end_of_text(added: list[dict[str, Any]]) -> dict[str, Any] | None:
    ids = [entry["id"] for entry in added if entry["content"] == END_OF_TEXT]
    if not ids:
        return None

    def text(name: str, type_id: int) -> list[dict[str, Any]]:
        return [
            {"Sequence": {"id": name, "type_id": type_id}},
            {"SpecialToken": {"id": END_OF_TEXT, "type_id": type_id}},
        ]

    return {
        "type": "TemplateProcessing",
        "single": text("A", 0),
        "pair": text("A", 0) + text("B", 1),
        "special_tokens": {END_OF_TEXT: {"id": END_OF_TEXT, "ids": ids, "tokens": [END_OF_TEXT]}},
    }
