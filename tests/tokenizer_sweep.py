"""Random comparisons with the libraries, for as long as wanted.

    python tests/tokenizer_sweep.py --minutes 10 [--seed 7]

Rounds alternate between kinds of comparison; each has a seed of its own, which is printed where ids
or text differ, together with the text. `--seed S` begins with round S, so that the same command
with `--rounds 1` repeats one. Ends with status 1 at the first difference.
"""

import argparse
import itertools
import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import sentencepiece
import tokenizers

from json_models import added_texts, random_document, save_with_added_tokens
from llmjp_ext import Tokenizer, _tokenizer
from sentencepiece_models import random_model, random_text
from tokenizer_oracle import FUZZ_ATOMS, fuzz_texts, load_both, model_file

Round = Callable[[int], int]


class Difference(Exception):
    """Ids or text that are not the oracle's."""


def expect(got: object, want: object, what: str) -> None:
    """Raises Difference where the two are not equal."""
    if got != want:
        raise Difference(f"{what}: got {got!r:.400}, want {want!r:.400}")


def long_text(rng: random.Random) -> str:
    """Some hundred thousand characters: literals, runs of all lengths, words."""
    parts = []
    for _ in range(rng.randint(100, 3000)):
        parts.append(rng.choice(FUZZ_ATOMS) * rng.choice((1, 1, 2, 7, rng.randint(1, 300))))
    return "".join(parts)


def texts_against_tokenizers(seed: int) -> int:
    """The model trained on the spot: texts, decoding, pairs, special tokens as text."""
    ours, oracle = load_both(model_file("trained"))
    rng = random.Random(seed)
    texts = [*fuzz_texts(seed, 400), long_text(rng)]
    for text, ids in zip(texts, ours.encode_batch(texts), strict=True):
        expect(ids, oracle.encode(text).ids, f"ids of {text!r:.2000}")
        for skip in (False, True):
            want = oracle.decode(ids, skip_special_tokens=skip)
            expect(ours.decode(ids, skip), want, f"text of {text!r:.2000}")
    first, second = rng.sample(texts, 2)
    expect(ours.encode(first, second), oracle.encode(first, second).ids, f"{first!r}, {second!r}")
    return len(texts)


def vocabularies_against_tokenizers(seed: int) -> int:
    """A composed tokenizer.json, with tokens added after training."""
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tokenizer.json"
        oracle = tokenizers.Tokenizer.from_str(random_document(rng))
        save_with_added_tokens(oracle, rng, path)
        ours = Tokenizer.from_file(path)
    texts = [added_texts(rng) for _ in range(100)]
    for text in texts:
        oracle.encode_special_tokens = rng.random() < 0.3
        got = ours.encode(text, encode_special_tokens=oracle.encode_special_tokens)
        expect(got, oracle.encode(text).ids, f"ids of {text!r}")
    return len(texts)


def vocabularies_against_sentencepiece(seed: int) -> int:
    """A composed .model in single precision; exactly, by units and plainly."""
    rng = random.Random(seed)
    data = random_model(rng)
    oracle = sentencepiece.SentencePieceProcessor(model_proto=data)
    rounded = Tokenizer(data, "sentencepiece", float32_sums=True)
    plain = _tokenizer.Tokenizer(data, "sentencepiece", units=False)
    isa = rng.choice(_tokenizer.supported_isas())
    units = _tokenizer.Tokenizer(data, "sentencepiece", memo_bits=rng.choice((0, 4)), isa=isa)
    texts = [random_text(rng) * rng.choice((1, 1, 30)) for _ in range(100)]
    for text, want in zip(texts, oracle.encode(texts), strict=True):
        expect(rounded.encode(text), want, f"ids in single precision of {text!r:.2000}")
        expect(
            units.encode(text, None, True, False),
            plain.encode(text, None, True, False),
            f"exact ids by units ({isa}) of {text!r:.2000}",
        )
    return len(texts)


ROUNDS: tuple[Round, ...] = (
    texts_against_tokenizers,
    vocabularies_against_tokenizers,
    vocabularies_against_sentencepiece,
)


def main() -> int:
    """Runs rounds until the time is up or something differs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=0, help="of the first round")
    parser.add_argument("--rounds", type=int, help="stop after so many")
    options = parser.parse_args()
    start = shown = time.monotonic()
    compared = 0
    for number in itertools.count():
        now = time.monotonic()
        if number == options.rounds or now - start > 60 * options.minutes:
            print(f"{number} rounds, {compared} texts, no difference")
            return 0
        if now - shown > 10:
            shown = now
            print(f"{number} rounds, {compared} texts, {now - start:.0f} s", flush=True)
        seed = options.seed + number
        kind = ROUNDS[seed % len(ROUNDS)]
        try:
            compared += kind(seed)
        except Difference as difference:
            print(f"{kind.__name__}: --seed {seed} --rounds 1: {difference}")
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
