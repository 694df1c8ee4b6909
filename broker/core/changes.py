"""The rule for which change of a message counts: a deletion is final, otherwise the last valid update counts.

For: the changes of one message in the order of the log. Pure. Not for: reading the topic `changes`
(broker/kafka/changes.py), what a change means for deliveries (broker/delivery/changes/honour.py).
"""

from __future__ import annotations

from typing import Final, NamedTuple

from msgspec import UNSET, UnsetType

from broker.core.events import MessageChange, MessageDeleted

# Everput assumes that the clocks of its processes differ by at most CLOCK_SKEW_MS (ten minutes).
# A search for a message's changes begins ten minutes before the message was put, because the clocks may differ.
CLOCK_SKEW_MS: Final = 10 * 60_000


class Change(NamedTuple):
    """An update or deletion of a message.

    `offset` is the change's own offset in the topic `changes`. If `if_version` is set, the change has an effect only if
    the message has this version.
    """

    offset: int
    deleted: bool
    if_version: int | UnsetType = UNSET


def change(offset: int, event: MessageChange) -> Change:
    """Return the update or deletion that an event of the topic `changes` describes."""
    return Change(offset, isinstance(event, MessageDeleted), event.if_version)


def version(offset: int | None) -> int:
    """Return a message's version: `offset` + 2, or 1 if the message was never changed. `offset` is the offset in the
    topic `changes` of the message's change that is in effect; None if the message was never changed.
    """
    return 1 if offset is None else offset + 2


def prevailing(known: Change | None, other: Change) -> Change | None:
    """Return which of two changes of a message is in effect. `other` is the message's next change in the log, and
    usually the result. `known` is the change that was in effect before; None if there was none. Return `known` if
    `known` is a deletion, if the `if_version` of `other` is not the message's version, or if `other` was read before.
    """
    if known is not None and (known.deleted or other.offset <= known.offset):
        return known
    if other.if_version not in (UNSET, version(None if known is None else known.offset)):
        return known
    return other
