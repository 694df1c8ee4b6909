"""The rule for which change of a message counts: a deletion is final, otherwise the last update for the present version
counts.

For: folding a message's changes in the order of the log. Pure. Not for: reading `changes` (broker/kafka/changes.py),
what a change means for deliveries (broker/delivery/changes/honour.py).
"""

from __future__ import annotations

from typing import Final, NamedTuple

from msgspec import UNSET, UnsetType

from broker.core.events import MessageChange, MessageDeleted

# Read changes from a message's time on, less this: API processes' clocks may differ by as much.
CLOCK_SKEW_MS: Final = 10 * 60_000


class Change(NamedTuple):
    """A change of a message: an update or a deletion.

    offset: the change's own, in its partition of `changes`.
    if_version: the change counts only if the message is at this version.
    """

    offset: int
    deleted: bool
    if_version: int | UnsetType = UNSET


def change(offset: int, event: MessageChange) -> Change:
    """Return the change that a record of `changes` holds."""
    return Change(offset, isinstance(event, MessageDeleted), event.if_version)


def version(offset: int | None) -> int:
    """Return a message's version: 1 as it was put, otherwise made from the offset of the change that counts."""
    return 1 if offset is None else offset + 2


def prevailing(known: Change | None, other: Change) -> Change | None:
    """Return the change that counts after one more change.

    known: the change that counts among all earlier ones in the log; None when there is none. The same change may be
        read again, and then changes nothing.
    """
    if known is not None and (known.deleted or other.offset <= known.offset):
        return known
    if other.if_version not in (UNSET, version(None if known is None else known.offset)):
        return known
    return other
