"""The redrives of a listener, and which deliveries each one concerns.

For: comparing the redrives with those that a worker had seen when it wrote a record to the topic `outstanding`.
Redrives are numbered by their order in the log and not by time, because clocks differ. Pure. Not for: what a redrive
does (broker/delivery/outstanding/redriving.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

# For each listener, a process remembers the 10,000 messages that redrives (requests to retry now) have named last.
MESSAGES_MAX: Final = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Redrives:
    """The redrives of a listener, numbered from 1. A redrive is a request to retry now, either all parked and retrying
    deliveries to the listener, or only those of the messages that the redrive names.

    `count` is the number of redrives so far. The redrives up to number `cancelled` were cancelled. `of_all` is the
    number of the newest redrive of all deliveries that was not cancelled; 0 if there is none. `of_messages` has the
    later redrives that name messages: for each message id, the number of the newest one. It has at most MESSAGES_MAX
    message ids.
    """

    count: int = 0
    of_all: int = 0
    of_messages: Mapping[str, int] = field(default_factory=dict)
    cancelled: int = 0

    def and_of(self, message_ids: Sequence[str]) -> Redrives:
        """Return the listener's redrives with another one added. The new redrive concerns the deliveries of these
        messages, or all deliveries if no message is named.
        """
        count = self.count + 1
        if not message_ids:
            return Redrives(count=count, of_all=count, cancelled=self.cancelled)
        named = {**self.of_messages, **dict.fromkeys(message_ids, count)}
        oldest_first = sorted(named.items(), key=lambda item: item[1])
        return replace(self, count=count, of_messages=dict(oldest_first[-MESSAGES_MAX:]))

    def cancel(self) -> Redrives:
        """Return the listener's redrives with all of them cancelled: they concern no delivery any more."""
        return Redrives(count=self.count, cancelled=self.count)

    def concern(self, message_id: str, *, since: int) -> bool:
        """Return whether a redrive newer than redrive number `since` concerns the delivery of this message."""
        return self.of_all > since or self.of_messages.get(message_id, 0) > since


NO_REDRIVES: Final = Redrives()
