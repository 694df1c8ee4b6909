"""The directory: organizations, keys, queues and listeners, folded from the `control` topic.

For: the state and the fold. The log's order decides: of two events that want one name the first counts and the
fold passes over the second, the same way in every process; the writer of the second looks and sees it lost.
Not for: reading the log (projections/), writing to it (broker/commands.py)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import msgspec

from broker.core import events as ev
from broker.core.events import Event, ListenerSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class Organization:
    id: str
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    id: str
    organization_id: str
    name: str
    prefix: str
    secret_sha256: str
    scopes: tuple[str, ...]
    created_at_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Listener:
    """start_offsets: by partition of `messages`, the first offset it gets. paused: why, None when it is not."""

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


@dataclass(slots=True, kw_only=True)
class Queue:
    """listeners: by id, in the order they were created."""

    id: str
    organization_id: str
    name: str
    created_at_ms: int
    listeners: dict[str, Listener] = field(default_factory=dict)


class Directory:
    """The state. Everything is found by id; a name is looked up within its organization or queue."""

    def __init__(self) -> None:
        self.organizations: dict[str, Organization] = {}
        self.keys: dict[str, Key] = {}
        self.keys_by_sha256: dict[str, Key] = {}
        self.queues: dict[str, Queue] = {}
        self.queues_by_name: dict[tuple[str, str], Queue] = {}
        self.listeners: dict[str, Listener] = {}

    def queue(self, organization_id: str, queue_id: str) -> Queue | None:
        """The queue, if it is this organization's."""
        found = self.queues.get(queue_id)
        return found if found is not None and found.organization_id == organization_id else None

    def queues_of(self, organization_id: str) -> Iterator[Queue]:
        """In the order they were created."""
        return (queue for queue in self.queues.values() if queue.organization_id == organization_id)

    def apply(self, event: Event) -> None:
        """Fold one event; never refuses: what makes no sense any more (a taken name, an id that is gone) changes nothing."""
        match event:
            case ev.OrganizationCreated():
                self.organizations.setdefault(
                    event.organization_id, Organization(id=event.organization_id, name=event.name)
                )
            case ev.KeyCreated():
                if event.key_id not in self.keys and event.organization_id in self.organizations:
                    key = Key(
                        id=event.key_id,
                        organization_id=event.organization_id,
                        name=event.name,
                        prefix=event.prefix,
                        secret_sha256=event.secret_sha256,
                        scopes=event.scopes,
                        created_at_ms=event.at_ms,
                    )
                    self.keys[key.id] = self.keys_by_sha256[key.secret_sha256] = key
            case ev.KeyRevoked():
                if (revoked := self.keys.pop(event.key_id, None)) is not None:
                    del self.keys_by_sha256[revoked.secret_sha256]
            case ev.QueueCreated():
                name = (event.organization_id, event.name)
                if name not in self.queues_by_name and event.queue_id not in self.queues:
                    queue = Queue(
                        id=event.queue_id,
                        organization_id=event.organization_id,
                        name=event.name,
                        created_at_ms=event.at_ms,
                    )
                    self.queues[queue.id] = self.queues_by_name[name] = queue
            case ev.QueueRenamed():
                renamed = self.queue(event.organization_id, event.queue_id)
                name = (event.organization_id, event.name)
                if renamed is not None and name not in self.queues_by_name:
                    del self.queues_by_name[renamed.organization_id, renamed.name]
                    renamed.name = event.name
                    self.queues_by_name[name] = renamed
            case ev.QueueDeleted():
                if self.queue(event.organization_id, event.queue_id) is not None:
                    gone = self.queues.pop(event.queue_id)
                    del self.queues_by_name[gone.organization_id, gone.name]
                    for listener_id in gone.listeners:
                        del self.listeners[listener_id]
            case ev.ListenerCreated():
                self._listener_created(event)
            case ev.ListenerUpdated():
                self._listener_changed(
                    event.listener_id,
                    name=event.name,
                    notify_url=event.notify_url,
                    liveness_url=event.liveness_url,
                    settings=event.settings,
                )
            case ev.ListenerPaused():
                self._listener_changed(event.listener_id, paused=event.reason)
            case ev.ListenerResumed():
                self._listener_changed(event.listener_id, paused=None)
            case ev.ListenerDeleted():
                if (ended := self.listeners.pop(event.listener_id, None)) is not None:
                    del self.queues[ended.queue_id].listeners[ended.id]
            case _:
                pass

    def _listener_created(self, event: ev.ListenerCreated) -> None:
        queue = self.queue(event.organization_id, event.queue_id)
        if queue is None or event.listener_id in self.listeners:
            return
        if any(other.name == event.name for other in queue.listeners.values()):
            return
        listener = Listener(
            id=event.listener_id,
            organization_id=event.organization_id,
            queue_id=event.queue_id,
            name=event.name,
            notify_url=event.notify_url,
            liveness_url=event.liveness_url,
            sealed_secret=event.sealed_secret,
            start_offsets=event.start_offsets,
            settings=event.settings,
            created_at_ms=event.at_ms,
        )
        queue.listeners[listener.id] = self.listeners[listener.id] = listener

    def _listener_changed(self, listener_id: str, **values: object) -> None:
        listener = self.listeners.get(listener_id)
        if listener is None:
            return
        siblings = self.queues[listener.queue_id].listeners
        name = values.get("name", listener.name)
        if any(other.name == name and other.id != listener_id for other in siblings.values()):
            return
        siblings[listener_id] = self.listeners[listener_id] = replace(listener, **values)  # type: ignore[arg-type]

    def state_hash(self) -> str:
        """SHA-256 over everything, in a canonical order: equal folds have equal hashes."""
        everything = (
            sorted(self.organizations.values(), key=lambda o: o.id),
            sorted(self.keys.values(), key=lambda k: k.id),
            [
                (queue.id, queue.organization_id, queue.name, queue.created_at_ms, list(queue.listeners.values()))
                for queue in sorted(self.queues.values(), key=lambda q: q.id)
            ],
        )
        return hashlib.sha256(msgspec.json.encode(everything, order="deterministic")).hexdigest()
