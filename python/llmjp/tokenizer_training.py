"""Trains tokenizers of the LLM-jp kind: byte-fallback Unigram, by SentencePiece.

train_tokenizer() writes the SentencePiece `.model` and the `tokenizer.json` made from it, whose ids
agree on all text that spells out no special token and no byte piece such as "<0x41>".
"""

import json
import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from llmjp_ext import Tokenizer

MODEL_FILE = "tokenizer.model"
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


def train_tokenizer(
    input_files: Iterable[str | os.PathLike[str]],
    vocab_size: int,
    output_dir: str | os.PathLike[str],
    *,
    character_coverage: float = 0.9995,
    max_piece_length: int = 16,
    hard_vocab_limit: bool = True,
    num_threads: int | None = None,
) -> Path:
    """Trains a tokenizer on text files and writes a directory that Transformers can load.

    The settings are those of LLM-jp's recipe that one training run can follow: identity
    normalisation, split digits, pieces of spaces only, a piece for the newline, byte fallback, and
    special tokens with ids 0 to 7 that are named `<name|LLM-jp>` in tokenizer.json.

    Args:
        input_files: UTF-8 text files; a line is a training sentence.
        vocab_size: pieces in all; 8 special, 1 newline and 256 byte pieces are among them.
        output_dir: gets tokenizer.model, tokenizer.json, tokenizer_config.json and
            special_tokens_map.json, each complete or not at all.
        character_coverage: share of the text's characters that get pieces; the rest become bytes.
        max_piece_length: of a piece, in characters.
        hard_vocab_limit: fail where the text does not support `vocab_size`; else take fewer pieces.
        num_threads: default: one per core.

    Returns:
        The path of tokenizer.json.

    Raises:
        ValueError: no text, or a vocabulary size that does not fit the text.
        OSError: a file cannot be read or written.
        ImportError: the `sentencepiece` package is not installed.
    """
    import sentencepiece

    paths = [Path(path) for path in input_files]
    if not paths:
        raise ValueError("training a tokenizer needs at least one text file")
    for path in paths:
        with path.open("rb"):
            pass  # an unreadable file fails here, with its name
    smallest = len(SPECIAL_TOKENS) + 257
    if vocab_size <= smallest:
        raise ValueError(f"vocab_size must be more than {smallest}, got {vocab_size}")

    output = Path(output_dir)
    output.mkdir(parents=True, exist_ok=True)
    # Inside the output directory: a full disk or missing rights show before old files are touched.
    with tempfile.TemporaryDirectory(dir=output, prefix=".training-") as work:
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=_lines(paths),
                model_prefix=str(Path(work) / "tokenizer"),
                model_type="unigram",
                vocab_size=vocab_size,
                character_coverage=character_coverage,
                max_sentencepiece_length=max_piece_length,
                hard_vocab_limit=hard_vocab_limit,
                num_threads=num_threads or os.cpu_count() or 1,
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
                    token
                    for token in SPECIAL_TOKENS
                    if token not in ("<unk>", "<s>", "</s>", "<pad>")
                ],
                max_sentence_length=1 << 20,
                minloglevel=2,
            )
        except RuntimeError as error:
            raise ValueError(f"training the tokenizer failed: {error}") from error
        model = Path(work) / MODEL_FILE
        files = {
            "tokenizer.json": convert_sentencepiece(model),
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
            (Path(work) / name).write_text(text, encoding="utf-8")
        Tokenizer.from_file(Path(work) / "tokenizer.json")
        for name in (MODEL_FILE, *files):
            (Path(work) / name).replace(output / name)
    return output / "tokenizer.json"


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


def _lines(paths: Iterable[Path]) -> Iterator[str]:
    for path in paths:
        with path.open(encoding="utf-8", newline="") as file:
            try:
                for line in file:
                    yield line.rstrip("\r\n")
            except UnicodeDecodeError as error:
                raise ValueError(f"{path}: not UTF-8 text: {error}") from None


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
