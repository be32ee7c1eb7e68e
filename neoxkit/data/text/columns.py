"""Rows of Parquet files, JSON arrays and datasets: {key: value} for the keys that are wanted, or for all (None)."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from neoxkit.data.text.sources import Dataset, Source
from neoxkit.data.text.streams import Stream, open_raw
from neoxkit.errors import DataError

Row = Any
"""A dict of the wanted keys that there are, with values that may be bytes of UTF-8; of an array, whatever it has."""

_ROWS = 1024  # of a Parquet file at a time: 4 bytes each, and each text that differs once


def parquet_rows(source: Source, keys: Sequence[str] | None, start: int) -> Iterator[tuple[Row, int]]:
    """The rows of a Parquet file from row `start` on, and with each the bytes of the file read so far.

    Columns are read as dictionaries, so that a text that a small file repeats a million times is there once.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    with open_raw(source) as raw:
        try:
            plain = pq.ParquetFile(raw)
            _check_columns(source, plain.schema_arrow, keys or ())
            file = pq.ParquetFile(raw, metadata=plain.metadata, read_dictionary=list(keys or ()))
            before = done = 0
            wanted = None if keys is None else list(keys)
            for number in range(file.num_row_groups):
                group = file.metadata.row_group(number)
                done += sum(group.column(k).total_compressed_size for k in range(group.num_columns))
                if before + group.num_rows <= start:
                    before += group.num_rows
                    continue
                for batch in file.iter_batches(_ROWS, row_groups=[number], columns=wanted):
                    skipped = max(0, min(start - before, batch.num_rows))
                    before += batch.num_rows
                    if keys is None:
                        yield from ((row, done) for row in batch.slice(skipped).to_pylist())
                        continue
                    columns = [_values(batch.column(key).slice(skipped)) for key in keys]
                    for values in zip(*columns, strict=True):
                        yield dict(zip(keys, values, strict=True)), done
        except pa.ArrowException as error:
            raise DataError(f"{source.where} is damaged, or no Parquet file: {_first(error)}", _AGAIN) from None
        except OSError as error:
            if error.errno is not None:
                raise
            raise DataError(f"{source.where} is damaged, or no Parquet file: {_first(error)}", _AGAIN) from None


_AGAIN = "copy or fetch it again, or leave it out"


def _first(error: Exception) -> str:
    return str(error).strip().splitlines()[0].rstrip(".")


def _check_columns(source: Source, schema: Any, keys: Sequence[str]) -> None:
    import pyarrow.types as types

    for key in keys:
        if key not in schema.names:
            raise DataError(f'{source.where} has no column "{key}"', f"name one with --key: {', '.join(schema.names)}")
        kind = schema.field(key).type
        kind = kind.value_type if types.is_dictionary(kind) else kind
        if not (types.is_string(kind) or types.is_large_string(kind) or types.is_binary(kind)):
            raise DataError(f'{source.where}: column "{key}" is of type {kind}, not text', "name another with --key")


def _values(column: Any) -> list[bytes | None]:
    """The bytes of each value: text that is no UTF-8 is one row's fault, and not that of the whole file."""
    import pyarrow as pa
    import pyarrow.types as types

    if types.is_dictionary(column.type):
        known = _values(column.dictionary)
        return [None if at is None else known[at] for at in column.indices.to_pylist()]
    plain: list[bytes | None] = column.cast(pa.large_binary()).to_pylist()
    return plain


def array_rows(stream: Stream, keys: Sequence[str] | None, longest: int, start: int) -> Iterator[tuple[Row, int]]:
    """The members of a file that is one JSON array, from number `start` on; of one object, that alone.

    Raises DataError where it is neither.
    """
    where = stream.source.where
    held: list[bytes] = []
    size = 0
    while data := stream.read(1 << 20):
        held.append(data)
        size += len(data)
        if size > longest:
            raise DataError(
                f"{where} is one JSON value of more than {longest:,} bytes, which is read whole",
                "write a JSON value a line; or raise --max-document of `neoxkit data tokenize`",
            )
    try:
        rows = json.loads(b"".join(held).decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{where} is no JSON: {error}", "write a JSON value a line, so that the others can be used"
        ) from None
    for row in (rows if isinstance(rows, list) else [rows])[start:]:
        yield _some(row, keys) if isinstance(row, dict) else row, stream.raw


def dataset_rows(source: Source, keys: Sequence[str] | None, start: int) -> Iterator[tuple[Row, int]]:
    """The rows of a dataset from row `start` on. Raises DataError when the library cannot find or read it."""
    from datasets import load_dataset

    assert isinstance(source.where, Dataset)
    name, config = source.where.named()
    try:
        rows = load_dataset(name, config, split=source.where.split, streaming=True)
        if rows.column_names is not None and keys is not None:
            if missing := [key for key in keys if key not in rows.column_names]:
                raise DataError(
                    f'{source.where} has no column "{missing[0]}"',
                    f"name one with --key: {', '.join(rows.column_names)}",
                )
            rows = rows.select_columns(list(keys))
        found = iter(rows.skip(start) if start else rows)
    except DataError:
        raise
    except Exception as error:  # whatever its many file systems and formats raise
        raise _failed(source, error) from error
    while True:
        try:
            row = next(found, None)
        except Exception as error:
            raise _failed(source, error) from error
        if row is None:
            return
        yield _some(row, keys), 0


def _some(row: Row, keys: Sequence[str] | None) -> Row:
    return row if keys is None else {key: row[key] for key in keys if key in row}


def _failed(source: Source, error: Exception) -> DataError:
    said = " ".join(str(error).split()) or type(error).__name__
    return DataError(f"{source.where}: {said}", "check the name, the split and the network")
