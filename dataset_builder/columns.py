"""Columns of published tables: a declaration gives the Arrow schema, what ``datasets`` reads in it, and the arrays.

``datasets.Features`` and ``pyarrow.array`` do the same, but the first imports ``datasets`` and the second ``pandas``,
which costs every process of a build more than encoding a hundred slices.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

IMAGE = "image"  # encoded bytes


@dataclass(frozen=True)
class Many:
    """A list of ``of``: of any length, or always of ``length``."""

    of: Column
    length: int | None = None


Column: TypeAlias = "str | Many | Mapping[str, Column]"  # an Arrow type's name or ``IMAGE``; a list; a struct by field


def schema_of(columns: Mapping[str, Column]) -> Any:
    """Return the ``pyarrow.Schema`` of a table, equal to that of the ``datasets.Features`` of the same columns."""
    import pyarrow as pa

    features = {name: _feature(column) for name, column in columns.items()}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    return pa.schema({name: _arrow(column, pa) for name, column in columns.items()}, metadata)


def _feature(column: Column) -> dict[str, Any]:
    if isinstance(column, Many):
        length = {} if column.length is None else {"length": column.length}
        return {"feature": _feature(column.of), **length, "_type": "List"}
    if isinstance(column, Mapping):
        return {name: _feature(of) for name, of in column.items()}
    return {"_type": "Image"} if column == IMAGE else {"dtype": column, "_type": "Value"}


def _arrow(column: Column, pa: Any) -> Any:
    if isinstance(column, Many):
        return pa.list_(_arrow(column.of, pa), -1 if column.length is None else column.length)
    if isinstance(column, Mapping):
        return pa.struct({name: _arrow(of, pa) for name, of in column.items()})
    if column == IMAGE:
        return pa.struct({"bytes": pa.binary(), "path": pa.string()})
    return pa.type_for_alias(column)


def array_of(column: Column, values: Any) -> Any:
    """Return a ``pyarrow.Array`` of a sequence of Python values or, for numbers, of a numpy array.

    Only images may be ``None``.
    """
    import pyarrow as pa

    kind = _arrow(column, pa)
    if isinstance(column, Many):
        of = array_of(column.of, [value for many in values for value in many])
        if column.length is not None:
            return pa.FixedSizeListArray.from_arrays(of, type=kind)
        return pa.ListArray.from_arrays(array_of("int32", _offsets(values)), of, type=kind)
    if isinstance(column, Mapping):
        children = [array_of(of, [value[name] for value in values]) for name, of in column.items()]
        return pa.StructArray.from_arrays(children, fields=list(kind))
    if column == IMAGE:
        missing = array_of("bool", [value is None for value in values])
        children = [_variable(pa.binary(), [value or b"" for value in values], pa), pa.nulls(len(values), pa.string())]
        return pa.StructArray.from_arrays(children, fields=list(kind), mask=missing)
    if column == "string":
        return _variable(kind, [value.encode() for value in values], pa)
    numbers = np.ascontiguousarray(values, kind.to_pandas_dtype())
    stored = np.packbits(numbers, bitorder="little") if column == "bool" else numbers
    return pa.Array.from_buffers(kind, len(numbers), [None, pa.py_buffer(stored)])


def table_of(columns: Mapping[str, Column], rows: Sequence[Mapping[str, Any]]) -> Any:
    """Return the ``pyarrow.Table`` of rows."""
    import pyarrow as pa

    arrays = [array_of(column, [row[name] for row in rows]) for name, column in columns.items()]
    return pa.Table.from_arrays(arrays, schema=schema_of(columns))


def _variable(kind: Any, values: Sequence[bytes], pa: Any) -> Any:
    buffers = [None, pa.py_buffer(_offsets(values)), pa.py_buffer(b"".join(values))]
    return pa.Array.from_buffers(kind, len(values), buffers)


def _offsets(values: Sequence[Any]) -> Any:
    return np.concatenate([[0], np.cumsum([len(value) for value in values])]).astype(np.int32)
