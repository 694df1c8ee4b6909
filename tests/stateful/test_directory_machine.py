"""The fold of queues and listeners against a small model, with a second fold that lags and one that begins anew.

Here: who holds which name, at which version, and that nobody touches what is another organization's.
Not here: accounts, keys, secrets, replays (tests/unit/test_directory.py has the properties of all events)."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from broker.core import events as ev
from broker.core.codec import decode, encode
from broker.core.digests import state_hash
from broker.core.directory import Directory
from broker.core.events import Event, ListenerSettings

organizations = st.sampled_from(["acme", "acme", "acme", "other"])  # so that much of it counts
names = st.sampled_from(["a", "b", "c"])
which = st.integers(0, 3)  # of all that were ever made, by anybody, the newest first
versions = st.one_of(st.none(), st.integers(0, 1))  # none is asked for; the one before; the one that is


@dataclass
class Listener:
    name: str
    paused: bool = False
    version: int = 1


@dataclass
class Queue:
    organization: str
    name: str
    version: int = 1
    listeners: dict[str, Listener] = field(default_factory=dict)


class DirectoryMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.log: list[bytes] = []
        self.live, self.lagging, self.behind = Directory(), Directory(), 0
        self.queues: dict[str, Queue] = {}
        self.made: list[str] = ["no queue"]
        self.made_listeners: list[str] = ["no listener"]

    def happens(self, event: Event, *, counts: bool) -> None:
        self.log.append(encode(event))
        assert self.live.apply(event) == counts

    def version(self, now: int, asked: int | None) -> dict[str, int]:
        return {} if asked is None else {"if_version": now - 1 + asked}

    def queue(self, organization: str, which: int) -> tuple[str, Queue | None]:
        queue_id = self.made[::-1][which % len(self.made)]
        queue = self.queues.get(queue_id)
        return queue_id, queue if queue is not None and queue.organization == organization else None

    def listener(self, organization: str, which: int) -> tuple[str, Queue | None, Listener | None]:
        listener_id = self.made_listeners[::-1][which % len(self.made_listeners)]
        for queue in self.queues.values():
            if listener_id in queue.listeners and queue.organization == organization:
                return listener_id, queue, queue.listeners[listener_id]
        return listener_id, None, None

    @initialize()
    def there_is_something(self):
        """For one machine uses some of the rules only."""
        for queue in ("a", "b"):
            self.a_queue_is_created("acme", queue)
            for listener in ("a", "b"):
                self.a_listener_is_created("acme", 0, listener)

    @rule(organization=organizations, name=names)
    def a_queue_is_created(self, organization, name):
        queue_id = f"queue {len(self.made)}"
        taken = any((one.organization, one.name) == (organization, name) for one in self.queues.values())
        self.happens(
            ev.QueueCreated(at_ms=1, organization_id=organization, queue_id=queue_id, name=name), counts=not taken
        )
        self.made.append(queue_id)
        if not taken:
            self.queues[queue_id] = Queue(organization, name)

    @rule(organization=organizations, which=which, name=names, asked=versions)
    def a_queue_is_renamed(self, organization, which, name, asked):
        queue_id, queue = self.queue(organization, which)
        others = (one for one in self.queues.values() if one is not queue)
        taken = any((one.organization, one.name) == (organization, name) for one in others)
        if_version = self.version(queue.version if queue else 1, asked)
        counts = queue is not None and not taken and asked != 0
        event = ev.QueueRenamed(at_ms=1, organization_id=organization, queue_id=queue_id, name=name, **if_version)
        self.happens(event, counts=counts)
        if counts:
            queue.name = name
            queue.version += 1

    @rule(organization=organizations, which=which, asked=versions)
    def a_queue_is_deleted(self, organization, which, asked):
        queue_id, queue = self.queue(organization, which)
        if_version = self.version(queue.version if queue else 1, asked)
        counts = queue is not None and asked != 0
        event = ev.QueueDeleted(at_ms=1, organization_id=organization, queue_id=queue_id, **if_version)
        self.happens(event, counts=counts)
        if counts:
            del self.queues[queue_id]

    @rule(organization=organizations, which=which, name=names)
    def a_listener_is_created(self, organization, which, name):
        queue_id, queue = self.queue(organization, which)
        listener_id = f"listener {len(self.made_listeners)}"
        counts = queue is not None and name not in {one.name for one in queue.listeners.values()}
        event = ev.ListenerCreated(
            at_ms=1,
            organization_id=organization,
            queue_id=queue_id,
            listener_id=listener_id,
            name=name,
            notify_url="https://n.example",
            liveness_url="https://l.example",
            sealed_secret="sealed",
            start_offsets=(0,),
        )
        self.happens(event, counts=counts)
        self.made_listeners.append(listener_id)
        if counts:
            queue.listeners[listener_id] = Listener(name)
            queue.version += 1

    @rule(organization=organizations, which=which, name=names, asked=versions)
    def a_listener_is_updated(self, organization, which, name, asked):
        listener_id, queue, listener = self.listener(organization, which)
        taken = queue is not None and name in {one.name for one in queue.listeners.values() if one is not listener}
        if_version = self.version(listener.version if listener else 1, asked)
        counts = listener is not None and not taken and asked != 0
        event = ev.ListenerUpdated(
            at_ms=1,
            organization_id=organization,
            listener_id=listener_id,
            name=name,
            notify_url="https://n2.example",
            liveness_url="https://l2.example",
            settings=ListenerSettings(),
            **if_version,
        )
        self.happens(event, counts=counts)
        if counts:
            queue.version += listener.name != name
            listener.name = name
            listener.version += 1

    @rule(organization=organizations, which=which, paused=st.booleans())
    def a_listener_is_paused_or_resumed(self, organization, which, paused):
        listener_id, _, listener = self.listener(organization, which)
        common = {"at_ms": 1, "organization_id": organization, "listener_id": listener_id}
        event = ev.ListenerPaused(reason="410", **common) if paused else ev.ListenerResumed(**common)
        self.happens(event, counts=listener is not None)
        if listener is not None:
            listener.paused = paused
            listener.version += 1

    @rule(organization=organizations, which=which, asked=versions)
    def a_listener_is_deleted(self, organization, which, asked):
        listener_id, queue, listener = self.listener(organization, which)
        if_version = self.version(listener.version if listener else 1, asked)
        counts = listener is not None and asked != 0
        event = ev.ListenerDeleted(at_ms=1, organization_id=organization, listener_id=listener_id, **if_version)
        self.happens(event, counts=counts)
        if counts:
            del queue.listeners[listener_id]
            queue.version += 1

    @rule()
    def another_process_catches_up(self):
        for record in self.log[self.behind :]:
            self.lagging.apply(decode(record))
        self.behind = len(self.log)
        assert state_hash(self.lagging) == state_hash(self.live)

    @rule()
    def a_process_begins_anew(self):
        self.live = Directory()
        for record in self.log:
            self.live.apply(decode(record))

    @invariant()
    def all_is_as_the_model_has_it(self):
        found = {
            queue.id: Queue(
                queue.organization_id,
                queue.name,
                queue.version,
                {one.id: Listener(one.name, one.paused is not None, one.version) for one in queue.listeners.values()},
            )
            for queue in self.live.queues.values()
        }
        assert found == self.queues
        assert {name: queue.id for name, queue in self.live.queues_by_name.items()} == {
            (queue.organization, queue.name): queue_id for queue_id, queue in self.queues.items()
        }
        assert {name: one.id for name, one in self.live.listeners_by_name.items()} == {
            (queue_id, one.name): listener_id
            for queue_id, queue in self.queues.items()
            for listener_id, one in queue.listeners.items()
        }
        for organization in ("acme", "other"):
            mine = [queue.id for queue in self.live.queues_of(organization)]
            assert mine == [one for one, queue in self.queues.items() if queue.organization == organization]


DirectoryMachine.TestCase.settings = settings(max_examples=50, stateful_step_count=30, deadline=None)
TestDirectory = DirectoryMachine.TestCase
