"""tokenizer.json files composed at random for tests, and texts for them."""

import json
import random
from pathlib import Path

import tokenizers

_ALPHABET = ("a", "b", "▁", "あ", "\n", "é", "😍", "<", "0", "x")
_ADDED = ("<|us", "<|user|>", "ab", "ああ", "b a", " a", "x", "<0x41>", "▁é")
_STRANGERS = ("z", "한", "\0", "🙏", "<0x41>", "<0xE3>", "<unk>", " ", " ", "\u0301", "\t")
WORDS = (*_ALPHABET, *_STRANGERS, *_ADDED)  # what texts for these vocabularies are made of


def random_document(rng: random.Random) -> str:
    """A small vocabulary as Hugging Face writes it.

    Scores that tie, that are single-precision numbers, or doubles of full length; pieces whose
    characters are no pieces; with all pieces of bytes, some or none; with or without the marks.
    """
    scores = rng.choice(
        (
            lambda: -rng.randint(0, 8) / 2,
            lambda: -rng.random() * 20,
            lambda: -rng.choice((3.1000061, 6.2000122, 9.3000183, 7.25)),
            lambda: -float(f"{rng.random() * 12:.6f}"),
        )
    )
    texts = {*rng.sample(_ALPHABET, rng.randint(2, len(_ALPHABET)))}
    for _ in range(rng.randint(2, 60)):
        texts.add("".join(rng.choices(_ALPHABET, k=rng.choice((1, 2, 2, 3, 3, 4, 9)))))
    for length in range(1, rng.choice((1, 2, 9))):
        texts.add("▁" * length)
    names = [f"<0x{byte:02X}>" for byte in range(256)]
    some = rng.choice((names, names, names, names[::3], []))
    words = sorted(texts - set(some))
    vocabulary = [["<unk>", scores()], *([name, 0.0] for name in some)]
    vocabulary += [[word, scores()] for word in words]
    mark = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    prefix = rng.choice(
        (
            {"type": "Replace", "pattern": {"Regex": "(?<!\\n)^"}, "content": "▁"},
            {"type": "Prepend", "prepend": "▁"},
        )
    )
    steps = rng.choice(([prefix, mark], [prefix, mark], [mark], [prefix], []))
    document = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": {"type": "Sequence", "normalizers": steps} if steps else None,
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "ByteFallback"},
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ],
        },
        "model": {"type": "Unigram", "unk_id": 0, "byte_fallback": True, "vocab": vocabulary},
    }
    return json.dumps(document, ensure_ascii=rng.random() < 0.5)


def save_with_added_tokens(
    oracle: tokenizers.Tokenizer, rng: random.Random, path: Path
) -> list[str]:
    """Adds some tokens, special or not, normalized or not; writes the file and returns them."""
    contents = rng.sample(_ADDED, rng.randint(0, 4))
    for content in contents:
        normalized = rng.random() < 0.5
        token = tokenizers.AddedToken(content, normalized=normalized)
        if rng.random() < 0.5:
            oracle.add_special_tokens([token])
        else:
            oracle.add_tokens([token])
    oracle.save(str(path))
    return contents


def added_texts(rng: random.Random) -> str:
    """A text of what the vocabularies and added tokens are made of, and of what they lack."""
    parts = rng.choices(WORDS, k=rng.randint(0, 25))
    if rng.random() < 0.4:
        parts.insert(rng.randint(0, len(parts)), rng.choice(_ALPHABET) * rng.randint(1, 200))
    return "".join(parts)
