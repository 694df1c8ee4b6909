"""Reads which features a Kafka cluster has finalized. aiokafka leaves out this part of Kafka's answer about versions.

For: one request. Not for: what a feature is needed for (safety.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from io import BytesIO
from typing import Any, Final

from aiokafka.protocol.api import Request, RequestStruct, Response, ResponseHeader_v0
from aiokafka.protocol.types import CompactArray, CompactString, Int16, Int32, Schema, TaggedFields

_API_KEY: Final = 18
_FINALIZED_TAG: Final = 2
_FINALIZED: Final = CompactArray(
    ("name", CompactString("utf-8")), ("max_level", Int16), ("min_level", Int16), ("tags", TaggedFields)
)


class _Answer(Response):  # type: ignore[misc]
    API_KEY = _API_KEY
    API_VERSION = 3
    SCHEMA = Schema(
        ("error_code", Int16),
        (
            "api_versions",
            CompactArray(("api_key", Int16), ("min_version", Int16), ("max_version", Int16), ("tags", TaggedFields)),
        ),
        ("throttle_time_ms", Int32),
        ("tags", TaggedFields),
    )


class _Question(RequestStruct):  # type: ignore[misc]
    FLEXIBLE_VERSION = True
    API_KEY = _API_KEY
    API_VERSION = 3
    RESPONSE_TYPE = _Answer
    SCHEMA = Schema(("name", CompactString("utf-8")), ("version", CompactString("utf-8")), ("tags", TaggedFields))

    def parse_response_header(self, read_buffer: BytesIO | bytes) -> Any:
        # Kafka answers ApiVersions with the oldest response header, so that clients of all versions can read it.
        return ResponseHeader_v0.decode(read_buffer)


class FeaturesRequest(Request[_Question]):  # type: ignore[misc]
    """The Kafka request ApiVersions, version 3."""

    API_KEY = _API_KEY

    def build(self, request_struct_class: type[_Question]) -> _Question:
        return request_struct_class("everput", "0", {})


def finalized(answer: Any) -> Mapping[str, int]:
    """Return, by feature name, the level at which the cluster uses the feature now (the finalized level). Features at
    level 0 are missing in Kafka's answer.
    """
    packed = answer.tags.get(_FINALIZED_TAG)
    rows = [] if packed is None else _FINALIZED.decode(BytesIO(packed)) or []
    return {name: level for name, level, *_ in rows}
