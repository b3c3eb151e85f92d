"""Configurations that come with the package: `llmjp train --config NAME`, YAML files here."""

from pathlib import Path

_FOLDER = Path(__file__).parent


def names() -> list[str]:
    """Names of the configurations, sorted."""
    return sorted(path.stem for path in _FOLDER.glob("*.yaml"))


def find(name: str) -> Path | None:
    """The file of a configuration; None if there is none of that name."""
    return _FOLDER / f"{name}.yaml" if name in names() else None
