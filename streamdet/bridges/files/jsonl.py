"""Writes JSONL files: one JSON object per row, as they come, plain or compressed."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson

from streamdet.bridges.files.tables import TABLES, Column, Rows

SUFFIXES = {"none": ".jsonl", "gzip": ".jsonl.gz", "zstd": ".jsonl.zst"}
"""How the names of files end, by their compression."""

_GZIP_LEVEL = 4


def _zstd(content: bytes) -> bytes:
    import pyarrow as pa  # noqa: PLC0415 - JSONL without zstd needs no pyarrow

    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as file:
        file.write(content)
    return bytes(sink.getvalue())


# Of gzip and zstd, a file may be the compressed parts one after the other.
_COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "none": bytes,
    "gzip": lambda content: gzip.compress(content, _GZIP_LEVEL),
    "zstd": _zstd,
}


class JsonlFile:
    """One JSONL file on its way.

    Args:
        path: where it is written; hidden from readers.
        compression: "zstd", "gzip" or "none".
    """

    def __init__(self, path: Path, compression: str) -> None:
        self.path = path
        self._compress = _COMPRESS[compression]

    def append(self, rows: Rows) -> int:
        """Writes rows; returns their size in bytes before compression.

        Raises:
            OSError: there is no room for them.
        """
        columns = TABLES[rows.partition.table]
        names = [column.name for column in columns]
        values = [_as_json(column, of_column) for column, of_column in zip(columns, rows.columns, strict=True)]
        lines = b"".join(
            orjson.dumps(dict(zip(names, row, strict=True)), option=orjson.OPT_APPEND_NEWLINE)
            for row in zip(*values, strict=True)
        )
        with self.path.open("ab") as file:
            file.write(self._compress(lines))
        return len(lines)

    def finish(self, rows: Rows | None) -> None:
        """Writes the last rows.

        Raises:
            OSError: there is no room for them.
        """
        if rows is not None:
            self.append(rows)

    def discard(self) -> None:
        """Deletes what was written."""
        self.path.unlink(missing_ok=True)


def _as_json(column: Column, values: Any) -> Any:  # noqa: ANN401 - an array or a list of any values
    if column.type == "timestamp":
        return [_timestamp(value) for value in values]
    if isinstance(column.type, tuple):
        names = [inner.name for inner in column.type]
        return [[dict(zip(names, record, strict=True)) for record in records] for records in values]
    return values


def _timestamp(at: float) -> str:
    return datetime.fromtimestamp(round(at * 1e6) / 1e6, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
