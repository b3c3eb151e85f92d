"""The text column of Parquet files, in batches of bounded size."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmjp.data import records
from llmjp.data.inputs import InputFile
from llmjp.data.records import Batch, RecordError, Rejected
from llmjp.data.streams import DamagedFile
from llmjp.errors import UserError

if TYPE_CHECKING:
    from llmjp.data.documents import Reading, Span

_BATCH = 1 << 20  # bytes of text aimed at in a batch
_MOST_ROWS = 1 << 13


def row_groups(path: Path) -> list[int]:
    """Bytes of each row group on disk.

    Raises:
        DamagedFile: the file is no whole Parquet file.
        UserError: the pyarrow package is missing.
    """
    metadata = _open(path).metadata
    return [size_on_disk(metadata.row_group(index)) for index in range(metadata.num_row_groups)]


def _open(path: Path) -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise UserError("reading .parquet files needs the pyarrow package") from None
    try:
        return pyarrow.parquet.ParquetFile(path, memory_map=True)
    except (pyarrow.ArrowInvalid, pyarrow.ArrowNotImplementedError) as error:
        reason = str(error).split(". ", 1)[0]
        raise DamagedFile(f"{path} is not a whole Parquet file: {reason}") from None


def row_batches(
    file: InputFile, span: "Span", reading: "Reading", resume: int
) -> Iterator[tuple[Batch, int, float]]:
    """Batches of the span's rows after the first `resume`, with bytes and seconds of reading each.

    `end` of a batch counts the span's rows before it and in it.

    Raises:
        DamagedFile: the file is damaged.
        UserError: it has no such column of strings, or the pyarrow package is missing.
    """
    parquet = _open(file.path)
    names = parquet.schema_arrow.names
    if reading.key not in names:
        raise UserError(
            f"{file.path}: no column {reading.key!r} (--json-key names another), "
            f"found: {', '.join(names)}"
        )
    kind = str(parquet.schema_arrow.field(reading.key).type)
    if "string" not in kind:
        raise UserError(f"{file.path}: the column {reading.key!r} holds {kind}, not string")
    metadata = parquet.metadata
    column = next(
        index
        for index in range(metadata.num_columns)
        if metadata.schema.column(index).path.partition(".")[0] == reading.key
    )
    last = metadata.num_row_groups if span.end is None else span.end
    done = 0
    for index in range(span.start, last):
        group = metadata.row_group(index)
        if done + group.num_rows <= resume:
            done += group.num_rows
            continue
        size = group.column(column).total_uncompressed_size
        rows = max(1, min(_MOST_ROWS, _BATCH * group.num_rows // max(size, 1)))
        taken = size_on_disk(group)
        for table, seconds in _tables(parquet, file, index, rows, reading.key):
            skip = max(0, resume - done)
            done += table.num_rows
            if skip < table.num_rows:
                line = 1 + max(0, done - table.num_rows - resume)
                share = taken * table.num_rows // group.num_rows
                batch = _batch(table.column(0), skip, line, done, reading)
                yield batch, share, seconds


def size_on_disk(group: Any) -> int:
    """Bytes of all columns of a row group."""
    return sum(group.column(index).total_compressed_size for index in range(group.num_columns))


def _tables(
    parquet: Any, file: InputFile, group: int, rows: int, key: str
) -> Iterator[tuple[Any, float]]:
    import pyarrow

    tables = parquet.iter_batches(rows, row_groups=[group], columns=[key], use_threads=False)
    while True:
        began = time.perf_counter()
        try:
            table = next(tables, None)
        except (pyarrow.ArrowException, OSError) as error:
            raise DamagedFile(f"{file.path} is not a whole Parquet file: {error}") from None
        if table is None:
            return
        yield table, time.perf_counter() - began


def _batch(column: Any, skip: int, line: int, end: int, reading: "Reading") -> Batch:
    batch = Batch([], len(column) - skip, end, int(column.nbytes))
    try:
        values = column.slice(skip).to_pylist()
    except UnicodeDecodeError:
        values = [_value(cell) for cell in column.slice(skip)]
    for number, value in enumerate(values, line):
        if isinstance(value, str) and len(value) <= reading.longest:
            if value:
                batch.texts.append(value)
            else:
                batch.empty += 1
            continue
        if isinstance(value, RecordError):
            error = value
        elif isinstance(value, str):
            error = records.too_long(len(value), reading.longest)
        else:
            error = RecordError(records.NOT_A_STRING, f"{reading.key!r} is null, not a string")
        batch.rejected.append(Rejected(number, error.kind, str(error)))
    return batch


def _value(cell: Any) -> object:
    try:
        return cell.as_py()
    except UnicodeDecodeError as error:
        return RecordError(records.NOT_UTF8, f"not UTF-8: offset {error.start}")
