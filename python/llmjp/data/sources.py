"""Which data a run trains on: sources of datasets, and how much of each.

A source is one or more datasets that are drawn from as one. On the command line words name them:

    data/wiki data/web                    two sources, each token of both once an epoch
    0.7 data/ja 0.3 data/en               shares of the samples, as in Megatron
    0.7 ja=data/ja_wiki data/ja_cc 0.3 en=data/en      a weight covers all that follows it
    'data/code_*'                         one source of all datasets that match
    ja=data/ja_wiki ja=data/ja_cc         one source of both
"""

import glob
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from llmjp.data.indexed import dataset_exists, dataset_prefix
from llmjp.errors import UserError

_MEGATRON_SUFFIX = "_text_document"


@dataclass(frozen=True)
class Source:
    """Datasets that are drawn from as one list of documents.

    Attributes:
        name: what reports and metrics call it.
        prefixes: of the datasets.
        weight: share of the samples in proportion to the other sources'; None: as many as it has.
    """

    name: str
    prefixes: tuple[Path, ...]
    weight: Fraction | None


def parse_sources(words: Sequence[str]) -> list[Source]:
    """The sources that words name, in the order of their names.

    That order makes a run independent of the order in which its sources were written down.

    Raises:
        UserError: there is no word; weights are mixed with none, not positive, or name nothing; a
            pattern matches nothing; two sources have the same name, or the same dataset.
    """
    if not words:
        raise UserError("no training data: name at least one dataset prefix")
    groups = _groups(words)
    names = [_file_name(prefixes[0]) if name is None else name for name, _, prefixes in groups]
    sources = []
    for (given, weight, prefixes), name in zip(groups, names, strict=True):
        if given is None and names.count(name) > 1:
            name = str(prefixes[0])
        sources.append(Source(name, tuple(prefixes), weight))
    sources.sort(key=lambda source: source.name)
    seen: dict[Path, str] = {}
    for index, source in enumerate(sources):
        if index and sources[index - 1].name == source.name:
            raise UserError(f"two sources are called {source.name!r}: name them NAME=PREFIX")
        for prefix in source.prefixes:
            if prefix in seen:
                raise UserError(
                    f"data {prefix} is named twice, in {seen[prefix]} and {source.name}"
                )
            seen[prefix] = source.name
    return sources


def _groups(words: Sequence[str]) -> list[tuple[str | None, Fraction | None, list[Path]]]:
    """Name, weight and prefixes of each source, as they stand."""
    weighted = bool(words) and _weight(words[0]) is not None
    groups: list[tuple[str | None, Fraction | None, list[Path]]] = []
    for word in words:
        weight = _weight(word)
        if weight is not None:
            if not weighted:
                raise UserError(
                    f"data: the weight {word} comes after data without one; give each source a "
                    "weight, as in 0.7 data/ja 0.3 data/en, or none"
                )
            if weight <= 0:
                raise UserError(f"data: weights must be positive, got {word}")
            groups.append((None, weight, []))
            continue
        name, equals, rest = word.partition("=")
        named = bool(equals) and name != "" and "/" not in name
        prefixes = _prefixes(rest if named else word)
        if not weighted:
            same = next((group for group in groups if named and group[0] == name), None)
            if same is None:
                groups.append((name if named else None, None, prefixes))
            else:
                same[2].extend(prefixes)
            continue
        known, weight, before = groups[-1]
        if named and before and known != name:
            raise UserError(f"data: {word} names a source within another; it needs its own weight")
        groups[-1] = (name if named else known, weight, [*before, *prefixes])
    for _, weight, prefixes in groups:
        if not prefixes:
            raise UserError(f"data: no dataset follows the weight {float(weight or 0):g}")
    return groups


def _weight(word: str) -> Fraction | None:
    try:
        return None if "/" in word else Fraction(word)  # a/b is a path
    except ValueError:
        return None


def _prefixes(word: str) -> list[Path]:
    """The datasets that a word names: itself, or all that match it as a pattern."""
    if not glob.has_magic(word) or dataset_exists(word):
        return [dataset_prefix(word)]
    suffix = "" if word.endswith(".idx") else ".idx"
    pattern = word.removesuffix(".bin") + suffix
    found = sorted(glob.glob(pattern, recursive=True))  # noqa: PTH207 - absolute ones too
    if not found:
        raise UserError(f"data: no dataset matches {word!r} (looked for {pattern})")
    return [dataset_prefix(path) for path in found]


def _file_name(prefix: Path) -> str:
    return prefix.name.removesuffix(_MEGATRON_SUFFIX) or prefix.name


def source_words(place: str, value: Any) -> list[str]:
    """The words that a value of a YAML file stands for.

    Args:
        place: file and setting, for messages.
        value: a word; a list of words and weights; a mapping of prefixes to weights, or of names to
            prefixes, or of names to {weight: …, prefixes: …}.

    Raises:
        UserError: the value is none of these.
    """
    if isinstance(value, dict):
        words: list[str] = []
        for name, entry in value.items():
            words += _entry_words(f"{place}: {name}", str(name), entry)
        return words
    entries = value if isinstance(value, list) else [value]
    for entry in entries:
        if isinstance(entry, bool) or not isinstance(entry, (str, int, float)):
            raise UserError(f"{place} must be names of datasets and weights, got {value!r}")
    return [str(entry) for entry in entries]


def _entry_words(place: str, name: str, entry: Any) -> list[str]:
    """The words of one line of a mapping."""
    if isinstance(entry, (int, float)) and not isinstance(entry, bool):
        return [str(entry), name]
    weight: list[str] = []
    prefixes = entry
    if isinstance(entry, dict):
        unknown = [key for key in entry if key not in ("weight", "prefixes")]
        if unknown or "prefixes" not in entry:
            raise UserError(f"{place} must have 'prefixes' and may have 'weight', got {entry!r}")
        prefixes = entry["prefixes"]
        if entry.get("weight") is not None:
            weight = [str(entry["weight"])]
    prefixes = prefixes if isinstance(prefixes, list) else [prefixes]
    if not prefixes or not all(isinstance(prefix, str) for prefix in prefixes):
        raise UserError(f"{place} must name datasets, or be a weight, got {entry!r}")
    return [*weight, *(f"{name}={prefix}" for prefix in prefixes)]
