"""Entity tags (RFC 9110, 8.8.3), and the conditions `If-Match` and `If-None-Match`.

For: the tag of an answer, and what the conditions mean. Not for: the version in a tag, which the fold counts
(broker/core/directory.py), or a change that another process makes first (broker/commands/context.py).

A tag is `"<version>.<digest of the answer>"`. `If-Match` compares only the version, because other parts of an answer,
such as a listener's lag, may differ between two requests without a change.
"""

from __future__ import annotations

import hashlib
import re
from typing import Any, Final, NamedTuple

_DIGEST_DIGITS: Final = 16
# This regular expression takes linear time on any input, because its repetitions are bounded and can't overlap.
_TAG = re.compile(rb'"(\d{1,18})\.[0-9a-f]{16}"')


class Item(NamedTuple):
    """The result of a handler whose answer has an entity tag. `fields` is the JSON of the answer."""

    fields: dict[str, Any]
    version: int


def entity_tag(item: Item, body: bytes) -> bytes:
    """Return the strong entity tag of this answer."""
    return b'"%d.%b"' % (item.version, hashlib.sha256(body).hexdigest()[:_DIGEST_DIGITS].encode())


def versions(if_match: bytes | None) -> frozenset[int] | None:
    """Return the versions in the tags of the header `If-Match` (RFC 9110, 13.1.1). A change is made only if the
    resource has one of these versions. Return None if the header is missing or is `*`: a change of any version is then
    allowed.

    Tags of an unknown format are left out. If no tag is left, the empty set is returned, and no change is made.
    """
    if if_match is None or if_match.strip() == b"*":
        return None
    return frozenset(int(found[1]) for tag in if_match.split(b",") if (found := _TAG.fullmatch(tag.strip())))


def is_known(if_none_match: bytes | None, tag: bytes) -> bool:
    """Return whether `If-None-Match` says that the client already has this answer (RFC 9110, 13.1.2, a weak
    comparison).
    """
    if if_none_match is None:
        return False
    known = (one.strip().removeprefix(b"W/") for one in if_none_match.split(b","))
    return any(one in (b"*", tag) for one in known)
