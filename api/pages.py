"""Lists in pages.

For: the parameters `limit` and `cursor`, the page that they select, the token of the next page, and times in JSON. Not
for: what is listed.
"""

from __future__ import annotations

import base64
import binascii
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from itertools import accumulate
from typing import Final, NamedTuple, Protocol, TypeVar

import msgspec
import orjson

from api.problems import BadParameter

_LIMIT_DEFAULT: Final = 100
_LIMIT_MAX: Final = 1000
# The last millisecond of the year 9999. RFC 3339 cannot express later years.
_TIME_MS_MAX: Final = 253_402_300_799_999


class Listed(Protocol):
    """The fields that every item of a list must have for page(). page() sorts items by creation time, and items of the
    same millisecond by id.
    """

    @property
    def id(self) -> str: ...

    @property
    def created_at_ms(self) -> int: ...


T = TypeVar("T", bound=Listed)


def page(
    items: Iterable[T], query: Mapping[str, str], *, size: Callable[[T], int] | None = None, size_max: int = 0
) -> tuple[list[T], str | None]:
    """Return one page of the items, oldest first, and the token of the next page. On the last page, the token is None.
    Raises BadParameter if the query's cursor or limit is not valid.

    If `size` is given, the sum of the sizes of a page's items is at most `size_max`. Only a page with a single item may
    be larger.

    A page token has the time and the id of the last item of a page. It stays valid if this item is deleted.
    """
    limit = page_limit(query)
    after = _position(query["cursor"]) if "cursor" in query else None
    in_order = sorted(items, key=lambda item: (item.created_at_ms, item.id))
    if after is not None:
        in_order = [item for item in in_order if (item.created_at_ms, item.id) > after]
    shown = in_order[:limit]
    if size is not None:
        sums = list(accumulate(map(size, shown)))
        shown = shown[: max(1, bisect_right(sums, size_max))]
    return shown, _page_token(shown[-1]) if len(in_order) > len(shown) else None


class Span(NamedTuple):
    """The range of messages that a list covers. In each partition, `begin` is the first offset of the range, and `end`
    is the offset after its last one.
    """

    begin: tuple[int, ...]
    end: tuple[int, ...]

    def position(self) -> bytes:
        """Encode the offsets for a page token."""
        return orjson.dumps([self.begin, self.end])


def span(position: bytes, ends: Sequence[int]) -> Span:
    """Decode the offsets in a page token. `ends` has the end offset of each partition of the topic `messages`. Raises
    BadParameter if an offset is above its partition's end, or if the token has another number of partitions.
    """
    try:
        made = msgspec.json.decode(position, type=Span)
    except ValueError:
        raise BadParameter(
            "The cursor is not valid for this list. Take it from the URL in `_links.next`, or leave it out to start at "
            "the first page.",
            parameter="cursor",
        ) from None
    sizes = {len(made.begin), len(made.end)}
    if sizes != {len(ends)} or any(
        not 0 <= at <= end for offsets in made for at, end in zip(offsets, ends, strict=True)
    ):
        raise BadParameter(
            "The cursor is not valid for this list. Take it from the URL in `_links.next`, or leave it out to start at "
            "the first page.",
            parameter="cursor",
        )
    return made


def time_parameter(query: Mapping[str, str], name: str) -> int | None:
    """Return a time in the query, in milliseconds since the epoch. Return None if the parameter is missing. Raises
    BadParameter if rfc3339_ms() does not accept the text.
    """
    if name not in query:
        return None
    try:
        return rfc3339_ms(query[name])
    except ValueError:
        raise BadParameter(
            f"The parameter `{name}` must be a time with a time zone, such as 2026-01-31T12:00:00Z.", parameter=name
        ) from None


def flag_parameter(query: Mapping[str, str], name: str, *, default: bool = False) -> bool:
    """Return whether a parameter of the query is `true`. A missing parameter has the value `default`. Raises
    BadParameter if the parameter is neither `true` nor `false`.
    """
    text = query.get(name, "true" if default else "false")
    if text not in ("true", "false"):
        raise BadParameter(f"The parameter `{name}` must be true or false.", parameter=name)
    return text == "true"


def rfc3339(at_ms: int) -> str:
    """Format a time by RFC 3339 in UTC with milliseconds. Times after the year 9999 become the end of 9999."""
    at_ms = min(at_ms, _TIME_MS_MAX)
    return f"{datetime.fromtimestamp(at_ms // 1000, UTC):%Y-%m-%dT%H:%M:%S}.{at_ms % 1000:03d}Z"


def rfc3339_ms(text: str) -> int:
    """Convert an RFC 3339 time to milliseconds since the epoch; times before 1970 become 0.

    Raises ValueError if the text is no time, has no time zone, or lies after the year 9999 in UTC.
    """
    at = datetime.fromisoformat(text)
    if at.tzinfo is None or "T" not in text.upper():
        raise ValueError("the time has no letter T between date and time of day, or no time zone")
    at_ms = max(0, int(at.timestamp() * 1000))
    if at_ms > _TIME_MS_MAX:
        raise ValueError("the time is after the year 9999 in UTC")
    return at_ms


def optional_rfc3339(at_ms: int | None) -> str | None:
    """Format a time as rfc3339() does. If the time is None, return None."""
    return None if at_ms is None else rfc3339(at_ms)


def page_limit(query: Mapping[str, str]) -> int:
    """Return how many items a page may have: the parameter `limit`, or 100 without it. Raises BadParameter if `limit`
    is not a whole number from 1 to 1,000.
    """
    text = query.get("limit")
    if text is None:
        return _LIMIT_DEFAULT
    if not (text.isascii() and text.isdigit() and len(text) <= 4 and 1 <= int(text) <= _LIMIT_MAX):
        raise BadParameter(f"The parameter `limit` must be a whole number from 1 to {_LIMIT_MAX}.", parameter="limit")
    return int(text)


def _page_token(item: Listed) -> str:
    return base64.urlsafe_b64encode(f"{item.created_at_ms}.{item.id}".encode()).decode().rstrip("=")


def _position(page_token: str) -> tuple[int, str]:
    try:
        text = base64.b64decode(page_token + "=" * (-len(page_token) % 4), altchars=b"-_", validate=True).decode()
    except (binascii.Error, ValueError):
        text = ""
    at_ms, _, item_id = text.partition(".")
    if not (at_ms.isascii() and at_ms.isdigit() and len(at_ms) <= 15):
        raise BadParameter(
            "The cursor is not valid for this list. Take it from the URL in `_links.next`, or leave it out to start at "
            "the first page.",
            parameter="cursor",
        )
    return int(at_ms), item_id
