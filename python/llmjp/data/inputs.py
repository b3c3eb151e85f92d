"""Which files a command reads, and what each of them holds, told by their names."""

import glob
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from llmjp.errors import UserError

JSON_LINES = "json"
TEXT = "text"
PARQUET = "parquet"
FORMATS = (JSON_LINES, TEXT, PARQUET)
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd", ".zstd": "zstd"}
# What a folder is searched for.
SUFFIXES = {".jsonl": JSON_LINES, ".ndjson": JSON_LINES, ".txt": TEXT, ".parquet": PARQUET}
# JSON lines are also published as .json; in a folder such a file is more often a description.
_NAMED_SUFFIXES = {**SUFFIXES, ".json": JSON_LINES}
SUPPORTED = f"{', '.join(_NAMED_SUFFIXES)}, all but .parquet also with .gz or .zst"


@dataclass(frozen=True)
class InputFile:
    """A file to read.

    Attributes:
        path: as it was named, or found below what was named.
        format: one of FORMATS.
        compression: "gzip", "zstd", or "" for none.
        size: bytes on disk; 0 for a pipe.
        modified_ns: time of its last change, in nanoseconds since 1970; 0 for a pipe.
        regular: a file that can be read again from anywhere; a pipe cannot.
    """

    path: Path
    format: str
    compression: str
    size: int
    modified_ns: int
    regular: bool


def find_files(
    inputs: Sequence[str | os.PathLike[str]], format: str | None = None
) -> list[InputFile]:
    """The files that were named; of folders all below with a supported suffix, sorted by path.

    Args:
        inputs: files, folders, and patterns such as "data/**/*.jsonl.gz" where no such file exists.
        format: one of FORMATS: what all files hold whatever they are called, a folder's too (but
            for those whose names begin with a dot); None tells it by the names.

    Raises:
        UserError: an input does not exist, has no supported suffix or cannot be read, a pattern
            matches nothing, or a folder holds no such file.
    """
    files: list[InputFile] = []
    for name in inputs:
        path = Path(name)
        if path.is_dir():
            files += _below(path, format)
        elif path.exists():
            files.append(_described(path, format))
        elif glob.has_magic(str(name)):
            found = sorted(glob.glob(str(name), recursive=True))  # noqa: PTH207 - absolute ones too
            matches = [Path(match) for match in found if not Path(match).is_dir()]
            if not matches:
                raise UserError(f"no file matches {name}")
            files += [_described(match, format) for match in matches]
        else:
            raise UserError(f"{path} does not exist")
    return files


def _below(folder: Path, format: str | None) -> list[InputFile]:
    def wanted(path: Path) -> bool:
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        return not hidden if format is not None else _by_name(path, SUFFIXES) is not None

    found = sorted(path for path in folder.rglob("*") if path.is_file() and wanted(path))
    if not found:
        what = f"named {', '.join(SUFFIXES)}" if format is None else "at all"
        raise UserError(f"{folder} holds no file {what}")
    return [_described(path, format) for path in found]


def _by_name(path: Path, suffixes: dict[str, str]) -> tuple[str, str] | None:
    """Format and compression, or None where the name tells none."""
    name = path.name.lower()
    compression = next((kind for end, kind in COMPRESSIONS.items() if name.endswith(end)), "")
    if compression:
        name = name.rpartition(".")[0]
    format = suffixes.get(os.path.splitext(name)[1])  # noqa: PTH122 - a name, not a path
    if format is None or (compression and format == PARQUET):
        return None
    return format, compression


def _described(path: Path, format: str | None) -> InputFile:
    told = _by_name(path, _NAMED_SUFFIXES)
    if format is not None:
        compression = next(
            (v for k, v in COMPRESSIONS.items() if path.name.lower().endswith(k)), ""
        )
        if compression and format == PARQUET:
            raise UserError(f"{path}: Parquet files are compressed inside, not as a whole")
        told = format, compression
    if told is None:
        raise UserError(
            f"{path}: files are told by their names: {SUPPORTED} (--format names it for others)"
        )
    if not os.access(path, os.R_OK):
        raise UserError(f"{path} may not be read")
    status = path.stat()
    regular = stat.S_ISREG(status.st_mode)
    size, modified_ns = (status.st_size, status.st_mtime_ns) if regular else (0, 0)
    return InputFile(path, told[0], told[1], size, modified_ns, regular)
