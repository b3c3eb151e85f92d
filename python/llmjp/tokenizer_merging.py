"""Tokenizers of several languages: one training a language, merged, scores estimated anew.

That is how LLM-jp made its tokenizer v2.1. A language with little text, or with many characters,
keeps the number of pieces that it was given, which one training on all text would not grant it.
"""

import os
import sys
import time
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from llmjp.data.inputs import InputFile, find_files
from llmjp.errors import UserError
from llmjp.sentencepiece_file import BYTE, CONTROL, NORMAL, UNKNOWN, Piece, unigram_model
from llmjp.tokenizer_training import (
    LARGE_CORPUS,
    MODEL_FILE,
    SPACE_MARK,
    SPECIAL_TOKENS,
    Summary,
    check_output,
    check_settings,
    output_folder,
    sentences_of,
    train_model,
    usable_cores,
    write_files,
)
from llmjp_ext import Tokenizer

LONGEST_SPACES = 24
# What stands before the learned pieces, in the order of tokenizer v2.1.
_SPACES = [SPACE_MARK * count for count in range(LONGEST_SPACES, 0, -1)]
_BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
_NEWLINE = "\n"
_FIXED = [*SPECIAL_TOKENS, *_SPACES, _NEWLINE, *_BYTES]
_SPACES_SCORE = -1.0  # one piece for a run is better than two

# Languages whose texts have no spaces between words: a piece that begins with the space before it
# would only be found at the start of a text, and beside its twin without one.
_WITHOUT_SPACES = ("ja", "zh")
_MOST_EPOCHS = 1000
# The count of a piece that occurs nowhere, in occurrences: its score is below all others, but it
# can be found, and a character of its own stays better than bytes.
_VANISHED = 1e-6
_BATCH_CHARACTERS = 1 << 20


@dataclass(frozen=True)
class Language:
    """What one language brings into a merged tokenizer.

    Attributes:
        name: such as "ja", "en" or "code".
        pieces: vocabulary of its own training, in which 265 special, newline and byte pieces count.
        longest: piece, in characters.
        inputs: files, folders and patterns of its text; see llmjp.data.inputs.find_files().
        spaced: whether words are written apart. If not, no piece begins with the "▁" of a space;
            if so, none that else has only symbols and punctuation.
    """

    name: str
    pieces: int
    longest: int
    inputs: Sequence[str | os.PathLike[str]]
    spaced: bool = True


@dataclass(frozen=True)
class MergedSummary(Summary):
    """What a training of several languages did.

    Attributes:
        log_likelihoods: of all text (natural logarithm), before each epoch of EM.
    """

    log_likelihoods: tuple[float, ...] = ()


def parse_language(text: str) -> Language:
    """A language as the command line names it: NAME:PIECES:LONGEST:INPUT[,INPUT...].

    Raises:
        UserError: the text has another form.
    """
    name, *rest = text.split(":", 3)
    inputs = rest[2].split(",") if len(rest) == 3 else []
    if not name or not all(inputs) or not inputs or not all(_is_count(each) for each in rest[:2]):
        raise UserError(
            f"--language must be NAME:PIECES:LONGEST:INPUT[,INPUT...] such as "
            f"ja:30000:8:corpus/ja, got {text}"
        )
    return Language(name, int(rest[0]), int(rest[1]), inputs, spaced=name not in _WITHOUT_SPACES)


def _is_count(text: str) -> bool:
    return text.isascii() and text.isdigit()


def train_merged_tokenizer(
    languages: Sequence[Language],
    output_dir: str | os.PathLike[str],
    *,
    em_epochs: int = 2,
    character_coverage: float = 0.9995,
    hard_vocab_limit: bool = True,
    max_lines: int | None = None,
    format: str | None = None,
    json_key: str = "text",
    num_threads: int | None = None,
    seed: int = 0,
    overwrite: bool = False,
) -> MergedSummary:
    """Trains one tokenizer a language, merges their pieces and estimates their scores anew.

    Stages: a SentencePiece training for each language, as train_tokenizer() does it; the "▁"
    before pieces is dropped as Language.spaced says; special tokens (ids 0 to 7), runs of 24 to 1
    spaces, the newline, the bytes and then the languages' pieces are put one after another, each
    once. EM over all text then fits the scores: score = log(count / total), with the counts that
    are expected over all ways to cut each line (Kudo 2018). It starts from the mean of the
    languages' probabilities. In the end the special, newline and byte pieces get the score 0 and
    runs of spaces -1.

    The result is the same for the same text, settings, seed and number of threads.

    Args:
        languages: in the order of their pieces' ids.
        output_dir: as for train_tokenizer().
        em_epochs: 0 to 1000; each reads all text once, on one thread, whatever `max_lines` is.
        character_coverage: of each language's training.
        hard_vocab_limit: fail where a language's text does not support its pieces; else take fewer.
        max_lines: of each language's training.
        format: as for train_tokenizer().
        json_key: as for train_tokenizer().
        num_threads: as for train_tokenizer().
        seed: as for train_tokenizer().
        overwrite: as for train_tokenizer().

    Raises:
        UserError: as for train_tokenizer(), with the language; no language, or two of one name.
        OSError: a file cannot be read or written.
    """
    started = time.perf_counter()
    threads = usable_cores() if num_threads is None else num_threads
    if not 0 <= em_epochs <= _MOST_EPOCHS:
        raise UserError(f"the epochs of EM must be 0 to {_MOST_EPOCHS}, got {em_epochs}")
    _check_names(languages)
    files: list[list[InputFile]] = []
    for language in languages:
        with _named(language):
            check_settings(
                language.pieces, character_coverage, language.longest, max_lines, threads, seed
            )
            files.append(find_files(language.inputs, format))
    output = Path(output_dir)
    check_output(output, overwrite)
    with output_folder(output) as result:
        learned = []
        for language, own_files in zip(languages, files, strict=True):
            size = sum(file.size for file in own_files)
            with _named(language), _progress(size, language.name) as progress:
                train_model(
                    sentences_of(own_files, json_key, progress),
                    result / MODEL_FILE,
                    seed=seed,
                    vocab_size=language.pieces,
                    character_coverage=character_coverage,
                    max_sentencepiece_length=language.longest,
                    hard_vocab_limit=hard_vocab_limit,
                    num_threads=threads,
                    train_extremely_large_corpus=size >= LARGE_CORPUS,
                    **({} if max_lines is None else {"input_sentence_size": max_lines}),
                )
            learned.append(_probabilities(result / MODEL_FILE, language.spaced))
        pieces, scores = _merge(learned)
        every_file = [file for own_files in files for file in own_files]
        log_likelihoods = []
        for epoch in range(em_epochs):
            scores, log_likelihood = _epoch(
                pieces, scores, every_file, json_key, f"EM {epoch + 1}/{em_epochs}"
            )
            log_likelihoods.append(log_likelihood)
        (result / MODEL_FILE).write_bytes(_model(pieces, _final(scores)))
        write_files(result)
    return MergedSummary(
        len(pieces),
        len(every_file),
        sum(file.size for file in every_file),
        time.perf_counter() - started,
        tuple(log_likelihoods),
    )


def _check_names(languages: Sequence[Language]) -> None:
    if not languages:
        raise UserError("there is no language to train on")
    names = [language.name for language in languages]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"the language {name} is given {names.count(name)} times")


@contextmanager
def _named(language: Language) -> Iterator[None]:
    """Puts the language before an error's message."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{language.name}: {error}") from None


def _progress(size: int, stage: str) -> "tqdm[Any]":
    return tqdm(total=size, unit="B", unit_scale=True, desc=stage, disable=not sys.stderr.isatty())


def _probabilities(model: Path, spaced: bool) -> dict[str, float]:
    """The learned pieces of a model without the spaces to be dropped, which sum to 1."""
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor(model_file=str(model))
    found: dict[str, float] = {}
    for id in range(processor.vocab_size()):
        piece = processor.id_to_piece(id)
        special = processor.is_control(id) or processor.is_unknown(id) or processor.is_byte(id)
        if special or piece == _NEWLINE:
            continue
        piece = _without_space(piece, spaced)
        found[piece] = found.get(piece, 0.0) + float(np.exp(processor.get_score(id)))
    total = sum(found.values())
    return {piece: probability / total for piece, probability in found.items()}


def _without_space(piece: str, spaced: bool) -> str:
    """The piece without the "▁" before it, where a text of its kind would not need it."""
    bare = piece.lstrip(SPACE_MARK)
    if bare and (not spaced or all(unicodedata.category(each)[0] in "PS" for each in bare)):
        return bare
    return piece


def _merge(learned: Sequence[dict[str, float]]) -> tuple[list[str], npt.NDArray[np.float64]]:
    """All pieces in the order of their ids, and the logarithms of their mean probabilities."""
    fixed = set(_FIXED)
    normal = {
        piece: None
        for probabilities in learned
        for piece in probabilities
        if piece not in fixed and piece.strip(SPACE_MARK)
    }
    pieces = [*_FIXED, *normal]
    mean = np.array(
        [sum(each.get(piece, 0.0) for each in learned) / len(learned) for piece in pieces]
    )
    mean[mean == 0.0] = mean[mean > 0.0].min() / np.e  # runs of spaces that no language has
    return pieces, np.log(mean)


def _found_in_text(count: int) -> npt.NDArray[np.intp]:
    """Ids of the pieces that EM fits, of `count` pieces: all but special tokens and bytes."""
    first = len(SPECIAL_TOKENS)
    return np.r_[first : first + len(_SPACES) + 1, len(_FIXED) : count]


def _epoch(
    pieces: list[str],
    scores: npt.NDArray[np.float64],
    files: Sequence[InputFile],
    json_key: str,
    stage: str,
) -> tuple[npt.NDArray[np.float64], float]:
    """One epoch of EM: better scores, and the text's log-likelihood under the given ones."""
    # A character without a piece is a cut on its own, at a price that is the same in every epoch.
    tokenizer = Tokenizer(_model(pieces, np.zeros(len(pieces))), "sentencepiece")
    counts = np.zeros(len(pieces))
    log_likelihood = 0.0
    with _progress(sum(file.size for file in files), stage) as progress:
        for lines in _batches(sentences_of(files, json_key, progress)):
            batch_counts, batch_likelihood = tokenizer.expected_counts(lines, scores)
            counts += batch_counts
            log_likelihood += batch_likelihood
    fitted = _found_in_text(len(pieces))
    weights = np.maximum(counts[fitted], _VANISHED)
    better = scores.copy()
    better[fitted] = np.log(weights / weights.sum())
    return better, log_likelihood


def _batches(sentences: Iterator[str]) -> Iterator[list[str]]:
    """Sentences in lists of about _BATCH_CHARACTERS."""
    batch: list[str] = []
    size = 0
    for sentence in sentences:
        batch.append(sentence)
        size += len(sentence)
        if size >= _BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _final(scores: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Scores with those of the fixed pieces as LLM-jp sets them."""
    final = scores.copy()
    final[: len(_FIXED)] = 0.0
    first = len(SPECIAL_TOKENS)
    final[first : first + len(_SPACES)] = _SPACES_SCORE
    return final


def _model(pieces: list[str], scores: npt.NDArray[np.float64]) -> bytes:
    """The SentencePiece file of pieces that begin with the fixed ones."""
    kinds = [
        *(UNKNOWN, *[CONTROL] * (len(SPECIAL_TOKENS) - 1)),
        *[NORMAL] * (len(_SPACES) + 1),
        *[BYTE] * len(_BYTES),
        *[NORMAL] * (len(pieces) - len(_FIXED)),
    ]
    return unigram_model(
        [
            Piece(text, float(score), kind)
            for text, score, kind in zip(pieces, scores, kinds, strict=True)
        ],
        special_ids={
            name: SPECIAL_TOKENS.index(name) for name in ("<unk>", "<s>", "</s>", "<pad>")
        },
    )
