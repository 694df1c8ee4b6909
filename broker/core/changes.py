"""Which change of a message counts: being deleted is for good, else the latest update.

For: the rule, the same in whatever order the changes are read. Pure. Not for: reading `changes`
(broker/kafka/changes.py), what a change means for deliveries under way (broker/delivery/changes.py)."""

from __future__ import annotations

from typing import NamedTuple

from broker.core.events import MessageChange, MessageDeleted


class Change(NamedTuple):
    """offset: in its partition of `changes`."""

    offset: int
    deleted: bool


def change(offset: int, event: MessageChange) -> Change:
    """The change that a record of `changes` holds."""
    return Change(offset, isinstance(event, MessageDeleted))


def prevailing(known: Change | None, other: Change) -> Change:
    """Of two changes of one message, the one that counts: a deletion (the first), else the later update."""
    if known is None:
        return other
    if known.deleted or other.deleted:
        return min((one for one in (known, other) if one.deleted), key=lambda one: one.offset)
    return max(known, other)
