"""Sources of training data: the words and YAML values that name them, and what is refused."""

from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from llmjp.data.indexed_writer import IndexedWriter
from llmjp.data.sources import parse_sources, source_words
from llmjp.errors import UserError


def parsed(*words: str) -> list[tuple[str, float | None, list[str]]]:
    """Name, weight and prefixes of the sources that words name."""
    return [
        (
            source.name,
            None if source.weight is None else float(source.weight),
            [str(prefix) for prefix in source.prefixes],
        )
        for source in parse_sources(words)
    ]


def test_words_name_sources() -> None:
    """Without weights and with them, Megatron's pairs among these, named and joined."""
    assert parsed("d/b", "d/a.idx") == [("a", None, ["d/a"]), ("b", None, ["d/b"])]
    assert parsed("0.7", "d/ja_text_document", "0.3", "d/en.bin") == [
        ("en", 0.3, ["d/en"]),
        ("ja", 0.7, ["d/ja_text_document"]),
    ]
    assert parsed("2", "ja=d/a", "d/b", "1e-1", "d/c") == [
        ("c", 0.1, ["d/c"]),
        ("ja", 2.0, ["d/a", "d/b"]),
    ]
    assert parsed("x=d/a", "d/c", "x=d/b") == [("c", None, ["d/c"]), ("x", None, ["d/a", "d/b"])]
    assert parsed("d/a", "e/a") == [("d/a", None, ["d/a"]), ("e/a", None, ["e/a"])]
    assert parsed("./7", "1/2") == [("2", None, ["1/2"]), ("7", None, ["7"])]
    assert parse_sources(["0.1", "d/a"])[0].weight == Fraction(1, 10)  # not the nearest double


def test_patterns_name_one_source(tmp_path: Path) -> None:
    """All datasets that match, by name; a dataset with the pattern's own name is itself."""
    for name in ("p_1", "p_0", "other", "p_*"):
        with IndexedWriter(tmp_path / name, 10) as writer:
            writer.add([1])
    folder = str(tmp_path)
    assert parsed(f"{folder}/p_[0-9]") == [("p_0", None, [f"{folder}/p_0", f"{folder}/p_1"])]
    found = [f"{folder}/p_*", f"{folder}/p_0", f"{folder}/p_1"]
    assert parsed("3", f"{folder}/p_?.idx") == [("p_*", 3.0, found)]
    assert parsed(f"{folder}/p_*") == [("p_*", None, [f"{folder}/p_*"])]


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ("", "no training data"),
        ("a 0.5 b", r"weight 0.5 comes after data without one"),
        ("0.5 a 0.5", "no dataset follows the weight 0.5"),
        ("0 a", "weights must be positive, got 0"),
        ("-1 a", "weights must be positive, got -1"),
        ("1 a x=b", "x=b names a source within another"),
        ("a a", "two sources are called 'a'"),
        ("x=a y=b z=a", "data a is named twice, in x and z"),
        ("1 a a", "data a is named twice"),
        ("none/*", r"no dataset matches 'none/\*' \(looked for none/\*\.idx\)"),
    ],
)
def test_mistakes_in_words_are_told(words: str, reason: str) -> None:
    """One line that says what was given."""
    with pytest.raises(UserError, match=reason) as caught:
        parse_sources(words.split())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("a", "a"),
        (["a", "b"], "a b"),
        ([0.7, "a", 1, "b"], "0.7 a 1 b"),
        ({"a": 0.7, "b": 3}, "0.7 a 3 b"),
        ({"x": ["a", "b"], "y": "c"}, "x=a x=b y=c"),
        ({"x": {"weight": 2, "prefixes": ["a", "b"]}}, "2 x=a x=b"),
        ({"x": {"prefixes": "a"}}, "x=a"),
    ],
)
def test_yaml_values_become_words(value: Any, words: str) -> None:
    """Each form of a file is the words that mean it."""
    assert source_words("f: data", value) == words.split()


@pytest.mark.parametrize(
    "value", [7.5j, True, [True], [["a"]], {"a": True}, {"a": {"weight": 1}}, {"a": []}, None]
)
def test_mistakes_in_yaml_are_told(value: Any) -> None:
    """The message begins with the place and has what was given."""
    with pytest.raises(UserError, match=r"^f: data.* got "):
        source_words("f: data", value)
