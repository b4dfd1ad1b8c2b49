"""Writes Parquet files. The one module of streamdet that imports pyarrow.

A Parquet file is written as a whole, when all of its rows are there: an open one takes 100 KB of memory, and a
descriptor, for each of thousands of partitions. Rows that cannot wait in memory so long wait in a file of their own,
as Arrow messages.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import ipc, parquet

from streamdet import __version__
from streamdet.bridges.files.tables import TABLES, Column, Partition, Rows, TableName

_SIMPLE = {
    "timestamp": pa.timestamp("us", tz="UTC"),
    "double": pa.float64(),
    "integer": pa.int64(),
    "text": pa.string(),
    "boolean": pa.bool_(),
    "texts": pa.list_(pa.string()),
}
_ROW_GROUP_ROWS = 1 << 20


def _type(column: Column) -> pa.DataType:
    if isinstance(column.type, str):
        return _SIMPLE[column.type]
    return pa.list_(pa.struct([pa.field(inner.name, _type(inner), nullable=False) for inner in column.type]))


SCHEMAS: dict[TableName, pa.Schema] = {
    table: pa.schema([pa.field(column.name, _type(column), nullable=column.optional) for column in columns])
    for table, columns in TABLES.items()
}
"""The Arrow schema of each table."""


class ParquetFile:
    """One Parquet file on its way.

    Args:
        path: where it is written; hidden from readers.
        partition: that it belongs to.
        compression: "zstd", "gzip" or "none".
    """

    def __init__(self, path: Path, partition: Partition, compression: str) -> None:
        self.path = path
        self._waiting = path.with_name(f"{path.name.removesuffix('.part')}.rows.part")
        self._compression = compression
        self._schema = SCHEMAS[partition.table].with_metadata(
            {"streamdet": __version__, "table": partition.table, "stream": partition.stream}
        )

    def append(self, rows: Rows) -> int:
        """Keeps rows until the file is written; returns their size in bytes.

        Raises:
            OSError: there is no room for them.
        """
        message = self._batch(rows).serialize()
        with self._waiting.open("ab") as file:
            file.write(message)
        return int(message.size)

    def finish(self, rows: Rows | None) -> None:
        """Writes the file: the rows that were kept, and the last ones.

        Raises:
            OSError: there is no room for it.
        """
        batches = self._kept()
        if rows is not None:
            batches.append(self._batch(rows))
        table = pa.Table.from_batches(batches, self._schema)
        parquet.write_table(
            table, self.path, compression=self._compression, row_group_size=_ROW_GROUP_ROWS, store_schema=False
        )
        self._waiting.unlink(missing_ok=True)

    def discard(self) -> None:
        """Deletes what was written."""
        for path in (self.path, self._waiting):
            path.unlink(missing_ok=True)

    def _kept(self) -> list[pa.RecordBatch]:
        if not self._waiting.exists():
            return []
        batches = []
        with pa.memory_map(str(self._waiting)) as source:
            while source.tell() < source.size():
                batches.append(ipc.read_record_batch(ipc.read_message(source), self._schema))
        return batches

    def _batch(self, rows: Rows) -> pa.RecordBatch:
        columns = TABLES[rows.partition.table]
        arrays = [_array(column, values) for column, values in zip(columns, rows.columns, strict=True)]
        return pa.RecordBatch.from_arrays(arrays, schema=self._schema)


def _array(column: Column, values: Any) -> pa.Array:  # noqa: ANN401 - an array or a list of any values
    if column.type == "timestamp":
        return pa.array(np.rint(np.frombuffer(values) * 1e6).astype(np.int64)).cast(_SIMPLE["timestamp"])
    if isinstance(column.type, tuple):
        names = [inner.name for inner in column.type]
        values = [[dict(zip(names, record, strict=True)) for record in records] for records in values]
    return pa.array(values, _type(column))
