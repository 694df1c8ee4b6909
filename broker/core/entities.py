"""Organizations, queues and listeners, as the directory holds them.

For: their fields. Not for: API keys (api_keys.py), accounts (accounts.py), replays (replays.py), or the fold of events
(directory.py)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from broker.core.cursor import Cursor
from broker.core.events import AlertThresholds, ListenerSettings
from broker.core.redrives import NO_REDRIVES, Redrives
from broker.core.replays import Replay

DAY_MS: Final = 86_400_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Organization:
    """An organization: the tenant that owns queues, listeners and keys.

    members: the ids of its accounts, in the order in which they joined.
    founder: the id of the account that created it; empty if none did.
    by_shell: the operator created it from the shell, which is impossible over HTTP.
    bytes_by_day: recorded bytes of stored messages, by day since the UTC epoch.
    """

    id: str
    name: str
    members: tuple[str, ...] = ()
    founder: str = ""
    by_shell: bool = False
    bytes_by_day: Mapping[int, int] = field(default_factory=dict)

    def bytes_since(self, at_ms: int) -> int:
        """Sum the recorded bytes of messages that were stored on the day of this time or later."""
        day = at_ms // DAY_MS
        return sum(size for one, size in self.bytes_by_day.items() if one >= day)


@dataclass(frozen=True, slots=True, kw_only=True)
class Listener:
    """A listener of a queue, or the stand-in that a replay is delivered as.

    start_offsets: by partition of `messages`, the first offset that the listener gets.
    paused: the reason; None when it is not paused.
    version: 1, and one more with each change.
    former_secrets: (sealed, ends_at_ms) of former secrets that also sign until their end, oldest first.
    replay: the replay that this stands for; None for a real listener.
    """

    id: str
    organization_id: str
    queue_id: str
    name: str
    notify_url: str
    liveness_url: str
    sealed_secret: str
    start_offsets: tuple[int, ...]
    settings: ListenerSettings
    created_at_ms: int
    paused: str | None = None
    version: int = 1
    former_secrets: tuple[tuple[str, int], ...] = ()
    redrives: Redrives = NO_REDRIVES
    replay: Replay | None = None

    def sealed(self) -> Iterator[str]:
        """Yield each of the listener's encrypted texts."""
        yield self.sealed_secret
        yield from (sealed for sealed, _ in self.former_secrets)
        yield from self.settings.sealed_headers.values()

    @property
    def has_liveness_url(self) -> bool:
        """Whether there is a liveness_url. If not, probes ask the notify_url, which need not support GET."""
        replay = self.replay
        return replay is None or replay.notify_url is None or replay.liveness_url is not None

    def reach(self, partition: int, tail: int) -> int:
        """Return the offset up to which the stream of a partition reads: the tail, or the end of a replay."""
        return tail if self.replay is None else self.replay.end_offsets[partition]

    def stands_at(self, cursors: Mapping[int, Cursor], partition: int) -> Cursor:
        """Return the cursor of the stream of a partition: the committed one, or else where the listener began."""
        return cursors.get(partition) or Cursor(top=self.start_offsets[partition])


@dataclass(slots=True, kw_only=True)
class Queue:
    """A queue.

    listeners: by id, in the order of their creation.
    version: 1, and one more with each change, including changes of its listeners' names.
    alerts: the thresholds for alerts about its listeners; None: all are the defaults.
    """

    id: str
    organization_id: str
    name: str
    created_at_ms: int
    listeners: dict[str, Listener] = field(default_factory=dict)
    version: int = 1
    alerts: AlertThresholds | None = None
