"""Events as Parquet, with pyarrow, which comes with `pip install 'everput[parquet]'`.

For: the columns. Not for: which events (cli/export.py)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import orjson

from broker.errors import ConfigurationError

# What queries group and filter by; the whole event is there as JSON.
_PLACE: Final = {"topic": "string", "partition": "int32", "offset": "int64", "log_ms": "int64"}
_FIELDS: Final = {
    "type": "string",
    "at_ms": "int64",
    "actor": "string",
    "request_id": "string",
    "queue_id": "string",
    "listener_id": "string",
    "message_id": "string",
}


def check_installed() -> None:
    """ConfigurationError when pyarrow is missing."""
    try:
        import pyarrow.parquet  # noqa: F401 - large, and optional
    except ImportError:
        raise ConfigurationError("Parquet needs pyarrow: pip install 'everput[parquet]'") from None


def write(path: Path, lines: Sequence[bytes]) -> None:
    """lines: as `GET /v1/log` sends them."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows: list[dict[str, Any]] = [orjson.loads(line) for line in lines]
    columns: dict[str, list[Any]] = {name: [row[name] for row in rows] for name in _PLACE}
    columns |= {name: [row["event"].get(name) for row in rows] for name in _FIELDS}
    columns["event"] = [orjson.dumps(row["event"]).decode() for row in rows]
    kinds = {"string": pa.string(), "int32": pa.int32(), "int64": pa.int64()}
    schema = pa.schema([(name, kinds[kind]) for name, kind in {**_PLACE, **_FIELDS, "event": "string"}.items()])
    pq.write_table(pa.table(columns, schema=schema), path, compression="zstd")
