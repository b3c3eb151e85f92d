"""A file of records that survives a killed process: one line each, a checksum before it.

What a crash leaves half-written at the end is not a record; it is cut off before anything is added.
"""

import json
import os
import zlib
from pathlib import Path
from typing import Any


class Journal:
    """Appends records to a file that may hold some already.

    Attributes:
        records: those that the file held when it was opened.
    """

    def __init__(self, path: Path) -> None:
        """Opens the file, or makes it.

        Raises:
            OSError: it cannot be read or written.
        """
        self._stream = path.open("a+b", buffering=0)
        self._stream.seek(0)
        self.records, length = _parse(self._stream.read())
        self._stream.truncate(length)

    def append(self, record: dict[str, Any]) -> None:
        """Adds a record.

        Raises:
            OSError: the disk is full, or cannot be written to; the file is as before.
        """
        text = json.dumps(record, separators=(",", ":")).encode()
        line = b"%08x %s\n" % (zlib.crc32(text), text)
        length = os.fstat(self._stream.fileno()).st_size
        try:
            rest = line
            while rest:  # a write may take less than all of it
                rest = rest[self._stream.write(rest) :]
        except BaseException:
            self._stream.truncate(
                length
            )  # what is added later must not stand behind a damaged line
            raise

    def clear(self) -> None:
        """Removes all records."""
        self._stream.truncate(0)

    def synchronise(self) -> None:
        """Returns when all records are on the disk."""
        os.fsync(self._stream.fileno())

    def close(self) -> None:
        """Closes the file."""
        self._stream.close()


def _parse(data: bytes) -> tuple[list[dict[str, Any]], int]:
    """The records up to the first that is damaged, and their length in bytes."""
    records = []
    length = 0
    for line in data.splitlines(keepends=True):
        text = line[9:-1]
        if not line.endswith(b"\n") or line[:9] != b"%08x " % zlib.crc32(text):
            break
        records.append(json.loads(text))
        length += len(line)
    return records, length
