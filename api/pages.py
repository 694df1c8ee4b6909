"""Lists, a page at a time.

For: the parameters limit and cursor, the page they ask for, and the cursor of the next one; times in JSON.
Not for: what is listed."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Final, NamedTuple, Protocol, TypeVar

import msgspec
import orjson

from api.problems import BadParameter

_LIMIT_DEFAULT: Final = 100
_LIMIT_MAX: Final = 1000
_MOMENT_MS_MAX: Final = 253_402_300_799_999  # the last of the year 9999: RFC 3339 has no other years


class Listed(Protocol):
    """What has a place in a list: by its time and, within that, its id."""

    @property
    def id(self) -> str: ...

    @property
    def created_at_ms(self) -> int: ...


T = TypeVar("T", bound=Listed)


def page(items: Iterable[T], query: Mapping[str, str]) -> tuple[list[T], str | None]:
    """The page, oldest first, and the cursor of the next one if there is more (BadParameter).

    A cursor names a place, not a thing: deleting what it was made from does not break it.
    """
    limit = page_limit(query)
    after = _place(query["cursor"]) if "cursor" in query else None
    placed = sorted(items, key=lambda item: (item.created_at_ms, item.id))
    if after is not None:
        placed = [item for item in placed if (item.created_at_ms, item.id) > after]
    shown = placed[:limit]
    return shown, _cursor(shown[-1]) if len(placed) > limit else None


class Span(NamedTuple):
    """Which messages a list is of: offsets [begin, end) by partition."""

    begin: tuple[int, ...]
    end: tuple[int, ...]

    def place(self) -> bytes:
        """For a page token."""
        return orjson.dumps([self.begin, self.end])


def span(place: bytes, ends: Sequence[int]) -> Span:
    """The span again (BadParameter: of another log). ends: of the log, by partition."""
    try:
        made = msgspec.json.decode(place, type=Span)
    except ValueError:
        raise BadParameter(
            "The cursor is not from this list. Take it from `_links.next`, or leave it out to start at the first page.",
            parameter="cursor",
        ) from None
    sizes = {len(made.begin), len(made.end)}
    if sizes != {len(ends)} or any(
        not 0 <= at <= end for offsets in made for at, end in zip(offsets, ends, strict=True)
    ):
        raise BadParameter(
            "The cursor is not from this list. Take it from `_links.next`, or leave it out to start at the first page.",
            parameter="cursor",
        )
    return made


def time_parameter(query: Mapping[str, str], name: str) -> int | None:
    """A time of the query in milliseconds since the UTC epoch, None when it is not there (BadParameter)."""
    if name not in query:
        return None
    try:
        return moment_ms(query[name])
    except ValueError:
        raise BadParameter(
            f"The parameter {name} must be a time such as 2026-01-31T12:00:00Z.", parameter=name
        ) from None


def flag_parameter(query: Mapping[str, str], name: str) -> bool:
    """Whether the query says so, `true` or `false`; false when it is not there (BadParameter)."""
    text = query.get(name, "false")
    if text not in ("true", "false"):
        raise BadParameter(f"The parameter {name} must be true or false.", parameter=name)
    return text == "true"


def moment(at_ms: int) -> str:
    """RFC 3339, UTC, with milliseconds; of a later year the end of 9999."""
    at_ms = min(at_ms, _MOMENT_MS_MAX)
    return f"{datetime.fromtimestamp(at_ms // 1000, UTC):%Y-%m-%dT%H:%M:%S}.{at_ms % 1000:03d}Z"


def moment_ms(text: str) -> int:
    """The milliseconds of an RFC 3339 time, 0 for one before 1970.

    ValueError when it is none, has no zone, or is one that UTC has no year for.
    """
    at = datetime.fromisoformat(text)
    if at.tzinfo is None or "T" not in text.upper():
        raise ValueError("a time has a date, a T, and a zone")
    at_ms = max(0, int(at.timestamp() * 1000))
    if at_ms > _MOMENT_MS_MAX:
        raise ValueError("in UTC this is after the year 9999")
    return at_ms


def optional_moment(at_ms: int | None) -> str | None:
    """moment(), or None."""
    return None if at_ms is None else moment(at_ms)


def page_limit(query: Mapping[str, str]) -> int:
    """How many a page may have (BadParameter)."""
    text = query.get("limit")
    if text is None:
        return _LIMIT_DEFAULT
    if not (text.isascii() and text.isdigit() and len(text) <= 4 and 1 <= int(text) <= _LIMIT_MAX):
        raise BadParameter(f"The parameter limit must be a number from 1 to {_LIMIT_MAX}.", parameter="limit")
    return int(text)


def _cursor(item: Listed) -> str:
    return base64.urlsafe_b64encode(f"{item.created_at_ms}.{item.id}".encode()).decode().rstrip("=")


def _place(cursor: str) -> tuple[int, str]:
    try:
        text = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True).decode()
    except (binascii.Error, ValueError):
        text = ""
    at_ms, _, item_id = text.partition(".")
    if not (at_ms.isascii() and at_ms.isdigit() and len(at_ms) <= 15):
        raise BadParameter(
            "The cursor is not from this list. Take it from `_links.next`, or leave it out to start at the first page.",
            parameter="cursor",
        )
    return int(at_ms), item_id
