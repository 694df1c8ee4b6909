"""Lists, a page at a time.

For: the parameters limit and cursor, the page they ask for, and the cursor of the next one; times in JSON.
Not for: what is listed."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Final, Protocol, TypeVar

from api.problems import BadParameter

_LIMIT_DEFAULT: Final = 100
_LIMIT_MAX: Final = 1000


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
    limit = _limit(query.get("limit"))
    after = _place(query["cursor"]) if "cursor" in query else None
    placed = sorted(items, key=lambda item: (item.created_at_ms, item.id))
    if after is not None:
        placed = [item for item in placed if (item.created_at_ms, item.id) > after]
    shown = placed[:limit]
    return shown, _cursor(shown[-1]) if len(placed) > limit else None


def moment(at_ms: int) -> str:
    """RFC 3339, UTC, with milliseconds."""
    return f"{datetime.fromtimestamp(at_ms // 1000, UTC):%Y-%m-%dT%H:%M:%S}.{at_ms % 1000:03d}Z"


def optional_moment(at_ms: int | None) -> str | None:
    """moment(), or None."""
    return None if at_ms is None else moment(at_ms)


def _limit(text: str | None) -> int:
    if text is None:
        return _LIMIT_DEFAULT
    if not (text.isascii() and text.isdigit() and len(text) <= 4 and 1 <= int(text) <= _LIMIT_MAX):
        raise BadParameter(f"limit must be a number from 1 to {_LIMIT_MAX}", parameter="limit")
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
        raise BadParameter("cursor must be one that a list gave", parameter="cursor")
    return int(at_ms), item_id
