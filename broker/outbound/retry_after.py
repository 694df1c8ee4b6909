"""The header Retry-After of a listener's answer.

For: its value in seconds. Not for: when a listener may be asked to wait, and for how long at most
(broker/delivery/dispatch/limits.py).
"""

from __future__ import annotations

from email.utils import parsedate_to_datetime
from typing import Final

_RETRY_AFTER: Final = b"retry-after:"
_RETRY_AFTER_BYTES_MAX: Final = 64  # longest accepted value; dates have 29
_SECONDS_DIGITS_MAX: Final = 9


def retry_after_s(head: bytes, *, at_s: float) -> int | None:
    """Return how many seconds a Retry-After header asks to wait. The header holds a number of seconds or a date (RFC
    9110, 10.2.3). Return None if the head of the answer has no such header, or if its value is not valid.
    """
    for line in head.partition(b"\r\n\r\n")[0].split(b"\n"):
        if line[: len(_RETRY_AFTER)].lower() == _RETRY_AFTER:
            return _wait_s(line[len(_RETRY_AFTER) :].strip(b" \t\r"), at_s)
    return None


def _wait_s(value: bytes, at_s: float) -> int | None:
    """Return how many seconds the value of a Retry-After header asks to wait. Return None if the value has more than 64
    bytes, or is neither a date nor a number of seconds with at most nine digits.
    """
    if len(value) <= _SECONDS_DIGITS_MAX and value.isdigit():
        return int(value)
    if len(value) > _RETRY_AFTER_BYTES_MAX:
        return None
    try:
        return max(0, round(parsedate_to_datetime(value.decode("ascii")).timestamp() - at_s))
    except (ValueError, OverflowError):
        return None
