"""Every instruction set finds the same cuts between units, hence the same ids, as plain loads do.

The compiled module's constructor takes the set's name; so does the environment.
"""

import os
import random
import subprocess
import sys

import pytest

from llmjp_ext import _tokenizer
from tokenizer_oracle import (
    MODELS,
    fuzz_texts,
    japanese_lines,
    model_file,
    standard_library_texts,
)

VARIABLE = "LLMJP_TOKENIZER_ISA"


@pytest.fixture(scope="module", params=MODELS)
def generic(request: pytest.FixtureRequest) -> tuple[str, _tokenizer.Tokenizer]:
    """A model's name, and its tokenizer with plain loads."""
    data = model_file(request.param).read_bytes()
    return request.param, _tokenizer.Tokenizer(data, "json", isa="generic")


def texts_of_every_kind() -> list[str]:
    """Real text, generated text, every length of rest of a block, every character of the plane."""
    rng = random.Random(0)
    plane = [chr(c) for c in range(0x10000) if not 0xD800 <= c < 0xE000]
    narrow = plane[:256]
    texts = fuzz_texts(31, 3000) + standard_library_texts(25) + japanese_lines(7, 600)
    texts += ["".join(plane), "".join(rng.sample(plane, len(plane)))]
    texts += [a + b for a in narrow for b in narrow[::5]]
    for size in range(200):
        texts.append("".join(rng.choices(narrow, k=size)))
        texts.append("".join(rng.choices(plane, k=size)))
        texts.append("".join(rng.choices("あいうのはが、。日本語a b", k=size)))
        texts.append("".join(rng.choices("etaoin _.(=\n", k=size)))
    return texts


@pytest.mark.parametrize("isa", ["avx2", "avx512"])
def test_ids_are_those_of_plain_loads(generic: tuple[str, _tokenizer.Tokenizer], isa: str) -> None:
    """Texts of one and of two bytes a character, at all positions within and across blocks."""
    if isa not in _tokenizer.supported_isas():
        pytest.skip(f"this CPU does not have {isa}")
    model, plain = generic
    other = _tokenizer.Tokenizer(model_file(model).read_bytes(), "json", isa=isa)
    assert other.isa == isa and plain.isa == "generic"
    texts = texts_of_every_kind()
    expected = plain.encode_batch(texts, True, False, 1)
    for text, want, got in zip(
        texts, expected, other.encode_batch(texts, True, False, 1), strict=True
    ):
        assert got == want, f"{isa}, seeds 0, 7, 31: ids differ for {text[:300]!r}"


def test_plain_loads_are_always_there() -> None:
    """They come first, and what is taken when nobody asks is one of those that the CPU has."""
    names = _tokenizer.supported_isas()
    assert names[0] == "generic" and set(names) <= {"generic", "avx2", "avx512"}
    assert _tokenizer.default_isa() in names


def test_an_unknown_set_is_refused() -> None:
    """The error names what was asked for and what there is."""
    with pytest.raises(ValueError, match='unknown instruction set "mmx"; supported here: generic'):
        _tokenizer.Tokenizer(b"{}", "json", isa="mmx")


@pytest.mark.parametrize("isa", ["generic", "sse9"])
def test_the_environment_chooses(isa: str) -> None:
    """A name that is known is taken and reported; another is an error that names the variable."""
    script = "from llmjp_ext import _tokenizer; print(_tokenizer.default_isa())"
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, VARIABLE: isa},
        capture_output=True,
        text=True,
        check=False,
    )
    if isa == "generic":
        assert done.stdout.strip() == "generic", done.stderr
    else:
        assert done.returncode != 0 and f'{VARIABLE}: unknown instruction set "sse9"' in done.stderr
