"""The header `traceparent` of W3C Trace Context (https://www.w3.org/TR/trace-context/, section 3.2).

For: reading it strictly, so that what a client sends can be stored and sent on. Not for: spans (cli/tracing.py).
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

HEADER: Final = b"traceparent"
_BYTES_MAX: Final = 128  # version 00 has 55 bytes
# This regular expression takes linear time on any input: each of its parts has a fixed length.
_PARTS: Final = re.compile(rb"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})")
_NO_VERSION: Final = b"ff"


class TraceParent(NamedTuple):
    """The ids of a trace and of a span in it, and the flags. All values are lower-case hex: 32, 16 and 2 digits."""

    trace_id: str
    span_id: str
    flags: str

    def __str__(self) -> str:
        return f"00-{self.trace_id}-{self.span_id}-{self.flags}"


def parse(value: bytes) -> TraceParent | None:
    """Parse the value of the header `traceparent`. Return None if the value is not valid: the header then counts as
    missing.

    A later version is read like version 00, as the specification says.
    """
    found = _PARTS.match(value) if len(value) <= _BYTES_MAX else None
    if found is None:
        return None
    version, trace_id, span_id, flags = found.groups()
    rest = value[found.end() :]
    if version == _NO_VERSION or (rest and (version == b"00" or not rest.startswith(b"-"))):
        return None
    if not trace_id.strip(b"0") or not span_id.strip(b"0"):
        return None
    return TraceParent(trace_id.decode(), span_id.decode(), flags.decode() if version == b"00" else _sampled(flags))


def _sampled(flags: bytes) -> str:
    """Return the trace flags for version 00 from those of a later version of the header. Keep only the lowest bit,
    `sampled`, because the meaning of the other bits is unknown.
    """
    return "01" if int(flags, 16) & 1 else "00"
