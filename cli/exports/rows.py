"""A Kafka record as a line of an exported file, and back, byte for byte.

For: export-all and import. Not for: the events in the records.
"""

from __future__ import annotations

import base64
from typing import Any

import orjson

from broker.errors import ConfigurationError
from broker.ports import Record


def line(record: Record) -> bytes:
    """Encode a Kafka record as a JSON object. A key, a value or a header's value that is not UTF-8 is encoded as
    base64, in a field such as `value_base64`.
    """
    row: dict[str, Any] = {"offset": record.offset, "at_ms": record.timestamp}
    row |= _field("key", record.key) | _field("value", record.value)
    if record.headers:
        row["headers"] = [{"name": name, **_field("value", value)} for name, value in record.headers]
    return orjson.dumps(row)


def record(text: bytes) -> Record:
    """Decode a line of an exported file. Raises ConfigurationError if the line is no record."""
    try:
        row = orjson.loads(text)
        headers = tuple((one["name"], _bytes(one, "value")) for one in row.get("headers", ()))
        return Record(row["offset"], row["at_ms"], _bytes(row, "key"), _bytes(row, "value"), headers)
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigurationError(
            "an exported file has a line that is not a record, so the file was changed or is damaged. Use an "
            f"intact copy of the export. The error: {error}"
        ) from error


def _field(name: str, value: bytes | None) -> dict[str, str]:
    if value is None:
        return {}
    try:
        return {name: value.decode()}
    except UnicodeDecodeError:
        return {f"{name}_base64": base64.b64encode(value).decode()}


def _bytes(row: dict[str, Any], name: str) -> bytes | None:
    if name in row:
        return str(row[name]).encode()
    packed = row.get(f"{name}_base64")
    return None if packed is None else base64.b64decode(packed, validate=True)
