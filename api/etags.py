"""Entity tags (RFC 9110, 8.8.3) and the conditions made of them.

For: the tag of an item's answer, what If-Match and If-None-Match mean. Not for: the version in it, which the fold
counts (broker/core/directory.py), or losing a race for it (broker/commands/context.py).

A tag is `"<version>.<digest of the answer>"`. A change asks for the version only: what an answer says beside the item's
own state (a listener's lag) may be another in the meantime.
"""

from __future__ import annotations

import hashlib
import re
from typing import Any, Final, NamedTuple

_DIGEST_DIGITS: Final = 16
# This pattern takes linear time: bounded repeats, each class excludes what follows it
_TAG = re.compile(rb'"(\d{1,18})\.[0-9a-f]{16}"')


class Item(NamedTuple):
    """The result of a handler whose answer has an entity tag. fields: the JSON."""

    fields: dict[str, Any]
    version: int


def entity_tag(item: Item, body: bytes) -> bytes:
    """Return the strong tag of this answer."""
    return b'"%d.%b"' % (item.version, hashlib.sha256(body).hexdigest()[:_DIGEST_DIGITS].encode())


def versions(if_match: bytes | None) -> frozenset[int] | None:
    """Return the versions that a change may be made to; None: any (RFC 9110, 13.1.1). A foreign tag allows none."""
    if if_match is None or if_match.strip() == b"*":
        return None
    return frozenset(int(found[1]) for tag in if_match.split(b",") if (found := _TAG.fullmatch(tag.strip())))


def is_known(if_none_match: bytes | None, tag: bytes) -> bool:
    """Return whether the client has this answer (RFC 9110, 13.1.2: a weak comparison)."""
    if if_none_match is None:
        return False
    known = (one.strip().removeprefix(b"W/") for one in if_none_match.split(b","))
    return any(one in (b"*", tag) for one in known)
