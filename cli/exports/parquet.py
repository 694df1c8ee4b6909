"""Events as Parquet files, written by pyarrow, which `pip install 'everput[parquet]'` installs.

For: the columns. Not for: which events (cli/exports/export.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec

from broker.errors import ConfigurationError


class _Fields(msgspec.Struct, gc=False):
    """The fields of an event that have columns of their own in a Parquet file.

    The file has more columns: the topic, partition, offset and log time of the event's record, and the whole event as
    JSON.
    """

    type: str
    at_ms: int
    actor: str = ""
    request_id: str = ""
    queue_id: str | None = None
    listener_id: str | None = None
    message_id: str | None = None


class _LogLine(msgspec.Struct, gc=False):
    topic: str
    partition: int
    offset: int
    log_ms: int
    event: msgspec.Raw


_line: Final = msgspec.json.Decoder(_LogLine)
_fields: Final = msgspec.json.Decoder(_Fields)
_NUMBERS: Final = {"partition": "int32", "offset": "int64", "log_ms": "int64", "at_ms": "int64"}


def check_installed() -> None:
    """Raise ConfigurationError if pyarrow is missing."""
    try:
        import pyarrow.parquet  # noqa: F401 - large, and optional
    except ImportError:
        raise ConfigurationError("Parquet needs pyarrow: pip install 'everput[parquet]'") from None


def rows(path: Path) -> int:
    """Count the rows of a Parquet file. Raises ConfigurationError if pyarrow is missing."""
    check_installed()
    import pyarrow.parquet as pq

    return int(pq.read_metadata(path).num_rows)


def write(path: Path, lines: Sequence[bytes]) -> None:
    """Write lines of `GET /v1/log` to a Parquet file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [_line.decode(line) for line in lines]
    events = [_fields.decode(row.event) for row in rows]
    places = [name for name in _LogLine.__struct_fields__ if name != "event"]
    columns = {name: [getattr(row, name) for row in rows] for name in places}
    columns |= {name: [getattr(event, name) for event in events] for name in _Fields.__struct_fields__}
    columns["event"] = [bytes(row.event) for row in rows]
    table = {name: pa.array(values, _NUMBERS.get(name, "string")) for name, values in columns.items()}
    pq.write_table(pa.table(table), path, compression="zstd")
