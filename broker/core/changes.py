"""The rule for which change of a message counts: a deletion is final, otherwise the last valid update counts.

For: the changes of one message in the order of the log. Pure. Not for: reading the topic `changes`
(broker/kafka/changes.py), what a change means for deliveries (broker/delivery/changes/honour.py).
"""

from __future__ import annotations

from typing import Final, NamedTuple

from msgspec import UNSET, UnsetType

from broker.core.events import MessageChange, MessageDeleted

# Everput assumes that clocks differ by at most this. A search for a message's changes begins this long before its put.
CLOCK_SKEW_MS: Final = 10 * 60_000


class Change(NamedTuple):
    """An update or deletion of a message.

    `offset` is the change's own offset in the topic `changes`. With `if_version`, the change has an effect only if the
    message has that version.
    """

    offset: int
    deleted: bool
    if_version: int | UnsetType = UNSET


def change(offset: int, event: MessageChange) -> Change:
    """Return the update or deletion that an event of the topic `changes` describes."""
    return Change(offset, isinstance(event, MessageDeleted), event.if_version)


def version(offset: int | None) -> int:
    """Return a message's version: 1 if its data was never changed. Otherwise, it is the offset of its newest valid
    change in the topic `changes`, plus 2, so that it is above 1.
    """
    return 1 if offset is None else offset + 2


def prevailing(known: Change | None, other: Change) -> Change | None:
    """Return which of two changes of a message is in effect: the earlier one, or the next one in the log. A deletion is
    final. A change for another version of the message has no effect. A change that is read a second time has no effect.
    """
    if known is not None and (known.deleted or other.offset <= known.offset):
        return known
    if other.if_version not in (UNSET, version(None if known is None else known.offset)):
        return known
    return other
