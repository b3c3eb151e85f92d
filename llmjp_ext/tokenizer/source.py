"""What a tokenizer was made from, and the files that it is read from and written to."""

import contextlib
import json
import os
import secrets
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

COMPILED_MAGIC = b"LLMJPTOK"

NAMED_TOKENS = (
    "unk_token",
    "bos_token",
    "eos_token",
    "pad_token",
    "cls_token",
    "sep_token",
    "mask_token",
)
_OTHER_SETTINGS = ("model_max_length", "padding_side", "truncation_side", "chat_template")


@dataclass(frozen=True)
class Source:
    """The file that a tokenizer was made from.

    Attributes:
        data: its bytes.
        format: "json" or "sentencepiece".
        settings: what to_hf() hands on to Transformers, such as {"eos_token": "</s>"}.
    """

    data: bytes
    format: str
    settings: Mapping[str, Any] = field(default_factory=dict)

    def pack(self) -> bytes:
        """As the note of a compiled file: a line of JSON, then the data compressed."""
        head = {"format": self.format, "settings": dict(self.settings)}
        return json.dumps(head).encode() + b"\n" + zlib.compress(self.data, 6)

    @classmethod
    def unpack(cls, note: bytes) -> "Source":
        """Reverse of pack().

        Raises:
            ValueError: `note` is something else.
        """
        line, _, packed = note.partition(b"\n")
        try:
            head = json.loads(line)
            return cls(zlib.decompress(packed), head["format"], head["settings"])
        except (ValueError, KeyError, TypeError, zlib.error) as error:
            raise ValueError(f"compiled tokenizer: its source cannot be read: {error}") from None


def is_compiled(path: Path) -> bool:
    """Whether a file begins as a compiled tokenizer does."""
    with path.open("rb") as stream:
        return stream.read(len(COMPILED_MAGIC)) == COMPILED_MAGIC


def read_json_object(path: Path) -> dict[str, Any]:
    """The object of a JSON file.

    Raises:
        OSError: it cannot be read.
        ValueError: it holds no JSON object; the message names the file.
    """
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    if not isinstance(entries, dict):
        raise ValueError(f"{path}: expected an object, found {type(entries).__name__}")
    return entries


def read_settings(folder: Path) -> dict[str, Any]:
    """What the files beside a tokenizer.json say for Transformers alone; nothing without them.

    Raises:
        OSError, ValueError: as read_json_object().
    """
    settings: dict[str, Any] = {}
    configuration = folder / "tokenizer_config.json"
    if configuration.exists():
        entries = read_json_object(configuration)
        for name in NAMED_TOKENS:
            token = entries.get(name)
            content = token.get("content") if isinstance(token, dict) else token
            if isinstance(content, str):
                settings[name] = content
        settings.update((name, entries[name]) for name in _OTHER_SETTINGS if entries.get(name))
    template = folder / "chat_template.jinja"
    if template.exists():
        settings["chat_template"] = template.read_text(encoding="utf-8")
    return settings


def write_atomically(path: Path, data: bytes) -> None:
    """Writes a file under a temporary name beside it, then renames it: never half of it is seen.

    Who has the old file mapped keeps the old one.

    Raises:
        OSError: it cannot be written; nothing is left behind.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        with temporary.open("xb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
