"""Spans: where in the text each id comes from, against the offsets of both libraries."""

import json

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import sentencepiece
import tokenizers

from llmjp_ext import Tokenizer
from tokenizer_oracle import (
    MODELS,
    fuzz_texts,
    japanese_lines,
    load_both,
    model_file,
    standard_library_texts,
    trained_directory,
)

Spans = list[tuple[int, int]]


def in_bytes(text: str, spans: Spans) -> Spans:
    """Spans of characters as spans of the text's UTF-8."""
    ends = np.cumsum([0, *(len(c.encode()) for c in text)]).tolist()
    return [(ends[begin], ends[end]) for begin, end in spans]


@pytest.mark.parametrize("name", MODELS)
def test_spans_are_hugging_faces_offsets(name: str) -> None:
    """Hard and ordinary texts: the ids are encode()'s, the spans the oracle's, in either unit."""
    ours, oracle = load_both(model_file(name))
    texts = fuzz_texts(21, 1500) + japanese_lines(22, 100) + standard_library_texts(2)
    for i, text in enumerate(texts):
        expected = oracle.encode(text)
        ids, spans = ours.encode_with_spans(text)
        assert (ids, spans) == (expected.ids, expected.offsets), f"text {i}: {text!r}"
        assert ids == ours.encode(text)
        _, spans = ours.encode_with_spans(text, unit="bytes")
        assert spans == in_bytes(text, expected.offsets), f"text {i}: {text!r}"


@hypothesis.settings(max_examples=300, deadline=None, derandomize=True)
@hypothesis.given(st.text(st.sampled_from("aあ龘\U0010ffff <0x41>|▁\nー"), max_size=24))
def test_spans_of_any_text(text: str) -> None:
    """Mixtures of known, unknown and literal pieces."""
    ours, oracle = load_both(model_file("trained"))
    assert ours.encode_with_spans(text)[1] == oracle.encode(text).offsets


@pytest.mark.parametrize("name", MODELS)
def test_spans_of_pairs_and_options(name: str) -> None:
    """Pairs, no special tokens added, special tokens left in the text."""
    ours, _ = load_both(model_file(name))
    oracle = tokenizers.Tokenizer.from_file(str(model_file(name)))
    texts = [*fuzz_texts(23, 200), "龘<unk|LLM-jp>龘龘<unk|LLM-jp>", "<unk|LLM-jp>", "<0x3C>龘"]
    for text, pair in zip(texts, reversed(texts), strict=True):
        both = oracle.encode(text, pair)
        assert ours.encode_with_spans(text, pair) == (both.ids, both.offsets), (text, pair)
        bare = oracle.encode(text, add_special_tokens=False)
        assert ours.encode_with_spans(text, add_special_tokens=False)[1] == bare.offsets, text
    oracle.encode_special_tokens = True
    for text in texts:
        expected = oracle.encode(text)
        ids, spans = ours.encode_with_spans(text, encode_special_tokens=True)
        assert (ids, spans) == (expected.ids, expected.offsets), text


def test_spans_with_added_tokens() -> None:
    """Tokens added after training, looked for in raw and in normalised text."""
    oracle = tokenizers.Tokenizer.from_file(str(model_file("trained")))
    oracle.add_tokens(["hello", "を読", tokenizers.AddedToken("raw one", normalized=False)])
    oracle.add_special_tokens([tokenizers.AddedToken("<extra>", normalized=True)])
    ours = Tokenizer(oracle.to_str().encode(), "json")
    atoms = ["hello", " hello", "を読", "raw one", "<extra>", " <extra>", "a", " ", "龘", "本"]
    for seed, text in enumerate(fuzz_texts(24, 300)):
        words = [atoms[ord(c) % len(atoms)] for c in text[:8]]
        mixed = "".join(words) + text[:4]
        expected = oracle.encode(mixed)
        ids, spans = ours.encode_with_spans(mixed)
        assert (ids, spans) == (expected.ids, expected.offsets), f"seed {seed}: {mixed!r}"


def test_unknown_runs_without_bytes() -> None:
    """Where a byte piece is missing the unknown id stands for the run, and has its span."""
    document = json.loads(model_file("trained").read_text("utf-8"))
    vocabulary = document["model"]["vocab"]
    for entry in vocabulary:
        if entry[0] == "<0xE9>":
            entry[0] = "<0xE9> "  # with a space: never found
    data = json.dumps(document)
    oracle = tokenizers.Tokenizer.from_str(data)
    ours = Tokenizer(data.encode(), "json")
    for text in ("龘", "a龘龘b", "龘 龘", "é龘", "龘é龘x本龘", "龘<0x41>龘"):
        expected = oracle.encode(text)
        assert ours.encode_with_spans(text) == (expected.ids, expected.offsets), text


@pytest.mark.parametrize("name", MODELS)
def test_spans_of_sentencepiece_models(name: str) -> None:
    """A .model's spans are the offsets that sentencepiece gives, in characters and in bytes."""
    folder = trained_directory() if name == "trained" else model_file(name).parent
    path = next(folder.glob("*.model"))
    ours = Tokenizer.from_file(path)
    oracle = sentencepiece.SentencePieceProcessor(model_file=str(path))
    compared = 0
    for i, text in enumerate(fuzz_texts(25, 600) + japanese_lines(26, 100)):
        expected = oracle.encode(text.replace("\0", ""), return_type="offset_mapping")
        ids, spans = ours.encode_with_spans(text.replace("\0", ""))
        if ids != expected["ids"]:
            continue  # a tie that single precision decides
        compared += 1
        assert spans == expected["offsets"], f"text {i}: {text!r}"
        _, spans = ours.encode_with_spans(text.replace("\0", ""), unit="bytes")
        assert spans == in_bytes(text.replace("\0", ""), expected["offsets"]), f"text {i}"
    assert compared > 650


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("unit", ["characters", "bytes"])
def test_ragged_spans_are_those_of_single_texts(threads: int, unit: str) -> None:
    """Over one or more threads: three arrays, of the texts one after another."""
    ours, _ = load_both(model_file("trained"))
    texts = ["", *fuzz_texts(27, 300), *standard_library_texts(4), ""]
    ids, offsets, spans = ours.encode_ragged_with_spans(
        iter(texts),
        num_threads=threads,
        unit=unit,  # type: ignore[arg-type]
    )
    plain, plain_offsets = ours.encode_ragged(texts)
    assert ids.tolist() == plain.tolist() and offsets.tolist() == plain_offsets.tolist()
    assert spans.shape == (len(ids), 2) and spans.dtype == np.int64
    for i, text in enumerate(texts):
        expected = ours.encode_with_spans(text, unit=unit)[1]  # type: ignore[arg-type]
        assert spans[offsets[i] : offsets[i + 1]].tolist() == [list(span) for span in expected]


def test_span_errors() -> None:
    """Another unit, and texts that encode() refuses."""
    ours, _ = load_both(model_file("trained"))
    with pytest.raises(ValueError, match=r'"characters" or "bytes", got .words.'):
        ours.encode_with_spans("a", unit="words")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="words"):
        ours.encode_ragged_with_spans(["a"], unit="words")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="lone surrogate"):
        ours.encode_with_spans("\ud800")
    with pytest.raises(TypeError, match="must be str, got bytes"):
        ours.encode_with_spans(b"a")  # type: ignore[arg-type]
    assert ours.encode_ragged_with_spans([])[2].shape == (0, 2)


def test_spans_cut_the_text() -> None:
    """In a text of known characters the spans are the text, piece by piece."""
    ours, _ = load_both(model_file("trained"))
    text = "先生は本を読みました。 return x"
    _, spans = ours.encode_with_spans(text, add_special_tokens=False)
    assert "".join(text[begin:end] for begin, end in spans) == text
