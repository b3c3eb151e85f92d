"""Folders that one process writes, and bytes that get into files whole."""

import contextlib
import errno
import fcntl
import os
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from llmjp.errors import UserError

_LOCK_SECONDS = 10.0  # a killed run's processes end with the segment that they are at
_COPY = 1 << 20


def make_folders(folder: Path) -> list[Path]:
    """Makes a folder; gives those above it that did not exist, the innermost first."""
    missing = [parent for parent in folder.parents if not parent.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    return missing


def locked(folder: Path) -> BinaryIO:
    """Opens a folder's lock; only one process can, and those that it forks.

    Raises:
        UserError: another process holds it.
    """
    began = time.monotonic()
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            stream = (folder / "lock").open("ab")
        except FileNotFoundError:
            continue  # another run has just finished and removed the folder
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            stream.close()
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                raise
            if time.monotonic() - began > _LOCK_SECONDS:
                raise UserError(f"{folder} is being written by another process") from None
            time.sleep(0.05)
            continue
        try:
            if (folder / "lock").stat().st_ino == os.fstat(stream.fileno()).st_ino:
                return stream
        except FileNotFoundError:
            pass
        stream.close()


def keep(path: Path, write: Callable[[BinaryIO], object]) -> bool:
    """Writes a file that is whole under its name or absent, whoever writes it at the same time.

    Processes of several machines may share the folder and even their numbers, as containers do: the
    name under which each begins is its own.

    Returns:
        False where the folder cannot be written to, or the disk is full.
    """
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
    try:
        with partial.open("wb") as stream:
            write(stream)
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(path)
    except OSError:
        with contextlib.suppress(OSError):  # a read-only file system refuses even this
            partial.unlink(missing_ok=True)
        return False
    return True


def rename(source: Path, target: Path) -> None:
    """Renames a file that may have been renamed before."""
    if source.exists():
        source.replace(target)


def write_all(stream: BinaryIO, data: bytes) -> None:
    """Writes all of the data, though a write may take less."""
    rest = memoryview(data)
    while rest:
        rest = rest[stream.write(rest) :]


def copy(source: BinaryIO, target: BinaryIO, size: int) -> None:
    """Appends `size` bytes, within the kernel where the file system can."""
    left = size
    while left:
        try:
            copied = os.copy_file_range(source.fileno(), target.fileno(), left)
        except OSError as error:
            if error.errno not in (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
                raise
            data = source.read(min(left, _COPY))
            write_all(target, data)
            copied = len(data)
        if not copied:
            raise OSError(f"{source.name} has become shorter")
        left -= copied
