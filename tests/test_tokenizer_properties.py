"""Properties that hypothesis tries to refute: ids and text are those of the two libraries.

Hugging Face `tokenizers` is the oracle of a tokenizer.json, `sentencepiece` that of a .model in
single precision; of models trained on the spot, of real ones, and of vocabularies composed at
random. Examples are derived from the tests' names, so that every run tries the same ones;
tests/tokenizer_sweep.py goes on with others.
"""

import functools
import random
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
import sentencepiece
import tokenizers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from json_models import WORDS, random_document, save_with_added_tokens
from llmjp_ext import Tokenizer
from sentencepiece_models import ATOMS, REAL_MODELS, model_path, random_model
from tokenizer_oracle import (
    MODELS,
    data_folder,
    japanese_lines,
    load_both,
    model_file,
    standard_library_texts,
)
from tokenizer_strategies import ids, seeds, texts

SentencePiece = sentencepiece.SentencePieceProcessor


def examples(count: int) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """The settings of all tests here: so many examples, the same ones each time."""
    return settings(
        max_examples=count,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
    )


@pytest.fixture(scope="module", params=MODELS)
def both(request: pytest.FixtureRequest) -> tuple[Tokenizer, tokenizers.Tokenizer]:
    """A tokenizer.json in ours and in the oracle."""
    return load_both(model_file(request.param))


@pytest.fixture(scope="module", params=["trained", *REAL_MODELS])
def models(request: pytest.FixtureRequest) -> tuple[Tokenizer, SentencePiece]:
    """A .model in ours, which follows the oracle's rounding, and in the oracle."""
    path = model_path(request.param)
    return Tokenizer.from_file(path, float32_sums=True), SentencePiece(model_file=str(path))


@examples(350)
@given(text=texts(), special=st.booleans(), literal=st.booleans(), skip=st.booleans())
def test_texts_with_a_tokenizer_json(
    both: tuple[Tokenizer, tokenizers.Tokenizer],
    text: str,
    special: bool,
    literal: bool,
    skip: bool,
) -> None:
    """Ids with and without the template and the cut at special tokens; the text of these ids."""
    ours, oracle = both
    oracle.encode_special_tokens = literal
    try:
        want = oracle.encode(text, add_special_tokens=special).ids
    finally:
        oracle.encode_special_tokens = False
    got = ours.encode(text, add_special_tokens=special, encode_special_tokens=literal)
    assert got == want
    assert ours.decode(got, skip) == oracle.decode(got, skip_special_tokens=skip)


@examples(120)
@given(first=texts(), second=texts(), special=st.booleans())
def test_pairs_with_a_tokenizer_json(
    both: tuple[Tokenizer, tokenizers.Tokenizer], first: str, second: str, special: bool
) -> None:
    """Two texts, joined by the template."""
    ours, oracle = both
    want = oracle.encode(first, second, add_special_tokens=special).ids
    assert ours.encode(first, second, add_special_tokens=special) == want


@examples(350)
@given(data=st.data(), skip=st.booleans())
def test_any_ids_with_a_tokenizer_json(
    both: tuple[Tokenizer, tokenizers.Tokenizer], data: st.DataObject, skip: bool
) -> None:
    """The text of ids that no text has; steps of a stream are whole characters of it."""
    ours, oracle = both
    sequence = data.draw(ids(ours.vocab_size, ours.token_to_id("<0x00>") or 0))
    want = oracle.decode(sequence, skip_special_tokens=skip)
    assert ours.decode(sequence, skip) == want
    stream = ours.decode_stream(skip)
    joined = "".join([stream.step(id) for id in sequence]) + stream.finish()
    # Of a run of bytes with an error the oracle replaces all, a stream what fits nowhere.
    assert joined == want if "\ufffd" not in want else "\ufffd" in joined


@functools.cache
def composed_json(seed: int) -> tuple[Tokenizer, tokenizers.Tokenizer]:
    """A composed vocabulary with tokens added after training."""
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tokenizer.json"
        oracle = tokenizers.Tokenizer.from_str(random_document(rng))
        save_with_added_tokens(oracle, rng, path)
        return Tokenizer.from_file(path), tokenizers.Tokenizer.from_file(str(path))


@examples(150)
@given(seed=seeds(), batch=st.lists(texts(WORDS), min_size=1, max_size=6), literal=st.booleans())
def test_composed_tokenizer_jsons(seed: int, batch: list[str], literal: bool) -> None:
    """Any scores, marks, bytes and added tokens: ids of texts and pairs, and their text."""
    ours, oracle = composed_json(seed)
    oracle.encode_special_tokens = literal
    for text in batch:
        want = oracle.encode(text).ids
        assert ours.encode(text, encode_special_tokens=literal) == want, text
        for skip in (False, True):
            got = ours.decode(want, skip)
            assert got == oracle.decode(want, skip_special_tokens=skip), (want, skip)
    pair = batch[0], batch[-1]
    assert ours.encode(*pair, encode_special_tokens=literal) == oracle.encode(*pair).ids, pair


@examples(250)
@given(text=texts())
def test_texts_with_a_sentencepiece_model(
    models: tuple[Tokenizer, SentencePiece], text: str
) -> None:
    """Ids in single precision, and the text of these ids."""
    ours, oracle = models
    want = oracle.encode(text)
    assert ours.encode(text) == want
    assert ours.decode(want) == oracle.decode(want)


@examples(150)
@given(seed=seeds(), batch=st.lists(texts(ATOMS), min_size=1, max_size=6))
def test_composed_sentencepiece_models(seed: int, batch: list[str]) -> None:
    """Pieces of all types, scores that tie, do not add exactly, or pass 100,000 at once."""
    data = random_model(random.Random(seed))
    ours = Tokenizer(data, "sentencepiece", float32_sums=True)
    oracle = SentencePiece(model_proto=data)
    for text, want in zip(batch, oracle.encode(batch), strict=True):
        assert ours.encode(text) == want, text


def ten_megabytes() -> str:
    """One text with all that makes texts hard, at places far from its beginning."""
    rng = random.Random(10)
    code = "\n".join(standard_library_texts(60))
    parts, size = [], 0
    while size < 10_000_000:
        begin = rng.randrange(len(code) - 20_000)
        kinds = (
            code[begin : begin + rng.randint(1, 20_000)],
            "\n".join(japanese_lines(rng.randrange(100), 40)),
            rng.choice("ーあaw=笑草▁ 🙏") * rng.randint(1, 3000),
            "<0x41><EOD|LLM-jp>\0é\u0301👨‍👩‍👧" * rng.randint(1, 9),
        )
        part = rng.choice(kinds[:2] if rng.random() < 0.7 else kinds[2:])
        parts.append(part)
        size += len(part.encode())
    return "".join(parts)


def test_ten_megabytes_in_one_string() -> None:
    """Ids and text of one long string, shared by threads, are those of both libraries: with the
    real model, or the one trained on the spot where there is none."""
    try:
        data_folder()
        name = "llm-jp-v2.1"
    except pytest.skip.Exception:
        name = "trained"
    text = ten_megabytes()
    ours, oracle = load_both(model_file(name))
    got = ours.encode(text)
    assert got == oracle.encode_batch_fast([text])[0].ids
    assert ours.decode(got) == oracle.decode(got)
    path = model_path(name)
    want = SentencePiece(model_file=str(path)).encode(text)
    assert Tokenizer.from_file(path, float32_sums=True).encode(text) == want
