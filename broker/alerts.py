"""Puts a message into an organization's queue `everput.alerts` when something needs people, and when it is over.

For: one worker's part of the work. It checks its share of the listeners, API keys and organizations, and records each
alert's beginning and end in `control`. Not for: putting the message (alert_messages.py), when an alert begins or ends
(broker/core/alerts.py), what a listener of the queue gets (broker/core/formats.py).

Each listener, API key and organization belongs to one partition of `messages`, by its id. The worker that owns this
partition checks the alerts about it. If two workers do so for a moment, the first event in the log counts.

Listeners of `everput.alerts` itself are never alerted about: a failing one would cause alerts without end.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final
from uuid import uuid4
from zlib import crc32

from broker.alert_messages import AlertMessages
from broker.clock import now_ms
from broker.commands.context import record
from broker.core.alerts import (
    ALERTS_QUEUE,
    KEY_SOON_MS,
    InstallationFacts,
    Kind,
    Level,
    ListenerFacts,
    Reading,
    Step,
    Trigger,
    readings,
    steps,
    thresholds,
)
from broker.core.codec import Fields
from broker.core.cursor import Cursor
from broker.core.directory import Directory
from broker.core.entities import Listener, Organization
from broker.core.events import AlertCleared, AlertRaised
from broker.core.health import Health, facts_of
from broker.errors import BrokerError
from broker.ports import Count, Cursors, DirectoryView, Log

log = logging.getLogger(__name__)

LOOK_S: Final = 10.0
# A worker checks at most this many listeners for alerts at the same time. More would delay deliveries.
_AT_ONCE: Final = 10
# With more than 10 listeners to check, a worker pauses after every 10, for 9 times as long as their check took.
_PAUSE_PART: Final = 9.0
# Each check includes all listeners with waiting messages, and all with an alert that is open or may begin soon.
# Each check includes at most this many listeners without waiting messages and without alerts, in turn.
_OTHERS_MAX: Final = 200
# If a listener answers 410, a worker pauses the listener. The reason for the pause begins with this text.
_GONE: Final = "the listener answered 410"
_BURST: Final = 100.0  # A worker begins at most this many alerts of one organization at once.
_PER_S: Final = 0.1  # After a burst of 100 alerts, a worker begins one alert of the organization every 10 s.
# In each check, a worker begins or ends at most about 100 alerts of the kinds `disk.low` and `log.damaged`.
# The limit of 100 alerts in each check does not apply to alerts of the operator's organizations.
# Without this limit, a full disk could begin alerts of all organizations at once. An alert takes 2 KiB in Kafka.
_SHARED_BURST: Final = 100.0
_SHARED_PER_S: Final = _SHARED_BURST / LOOK_S
_ORGANIZATIONS_AT_ONCE: Final = 500  # After checking this many organizations, yield.

# LocalLag takes a listener's id, and estimates how many messages wait for the listener in all partitions.
# LocalLag returns None if this worker does not serve the listener, or owns no partitions.
LocalLag = Callable[[str], int | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """The functions that give one worker the facts for its alerts.

    `owns` returns whether the worker owns a partition of `messages`. `assure` raises LogUnavailable if another worker
    may own the worker's partitions by now. `disk` returns the free bytes of the disk, and the number of free bytes
    below which puts are refused. If Kafka is not embedded, `disk` is None.
    """

    cursors: Cursors
    owns: Callable[[int], bool]
    assure: Callable[[], Awaitable[None]]
    lag: LocalLag
    disk: Callable[[], tuple[int, int]] | None = None


@dataclass(frozen=True, slots=True)
class Subject:
    """The subject of an alert: a listener, an API key, or a whole organization. `organization_id` is always set. For a
    listener, `listener_id` and `queue_id` are set. For an API key, `key_id` is set. The other ids are empty.
    """

    organization_id: str
    listener_id: str = ""
    queue_id: str = ""
    key_id: str = ""

    @property
    def id(self) -> str:
        return self.listener_id or self.key_id or self.organization_id


@dataclass(slots=True)
class _Allowance:
    """A token bucket that limits how many alerts begin or end: at most `burst` alerts at once, and `per_s` alerts a
    second after that.

    A worker has one bucket for each organization, for alerts that begin. It has one more bucket for alerts about the
    installation that begin or end, such as a nearly full disk. All organizations except the operator's share this
    bucket.
    """

    at_ms: int
    burst: float = _BURST
    per_s: float = _PER_S
    left: float = field(init=False)

    def __post_init__(self) -> None:
        self.left = self.burst

    def take(self, at_ms: int) -> bool:
        self.left = min(self.burst, self.left + max(0, at_ms - self.at_ms) / 1000 * self.per_s)
        self.at_ms = at_ms
        if self.left < 1:
            return False
        self.left -= 1
        return True


@dataclass(slots=True)
class AlertWatch:
    """The part of a worker that begins and ends alerts about listeners, API keys and organizations. Each listener, API
    key and organization belongs to one partition of the topic `messages`. The worker that owns this partition checks
    the alerts about it.

    `partitions` is the number of partitions of `messages`. Links in the alerts' messages begin with `public_url`. For
    each message, `count` is called with the organization's id and the size of the message's record in bytes.
    """

    log: Log
    view: DirectoryView
    sources: Sources
    partitions: int
    public_url: str | None = None
    count: Count | None = None
    _messages: AlertMessages = field(init=False)
    _triggers: dict[str, dict[Kind, Trigger]] = field(default_factory=dict)
    _allowances: dict[str, _Allowance] = field(default_factory=dict)
    # Listeners without alerts and waiting messages take turns: the next check begins at this position in their list.
    _others_checked: int = 0
    _shared: _Allowance = field(default_factory=lambda: _Allowance(0, _SHARED_BURST, _SHARED_PER_S))

    def __post_init__(self) -> None:
        self._messages = AlertMessages(
            self.log, self.view, self._home, self.sources.owns, self.sources.assure, self.public_url, self.count
        )

    @property
    def _directory(self) -> Directory:
        return self.view.state

    async def run(self) -> None:
        """Check all conditions for alerts every ten seconds."""
        while True:
            try:
                await self.look()
            except BrokerError as error:
                log.info("alerts.wait error=%s", error)
            except Exception:  # Log an unexpected error and continue, because the next check of the alerts may succeed.
                log.exception("alerts.failed")
            await asyncio.sleep(LOOK_S)

    async def look(self, at_ms: int | None = None) -> None:
        """Check the conditions of this worker's alerts once. Put messages about alerts that begin or end.

        Not all listeners are checked each time: _due() chooses them. `at_ms` is the current time; if it is None, the
        clock is read.

        Raises a BrokerError if Kafka does not answer. If Kafka does not answer for some listeners, the other listeners
        are checked first.
        """
        await self._messages.put_missing(at_ms or now_ms())
        await self._judge_installation(at_ms or now_ms())
        await self._judge_keys(at_ms or now_ms())
        due = self._due()
        time = asyncio.get_running_loop().time
        failure: BrokerError | None = None
        for several in _batches(due):
            began_s = time()
            try:
                await self._judge_listeners(several, at_ms)
            except BrokerError as error:
                failure = error
            if len(due) > _AT_ONCE:
                await asyncio.sleep((time() - began_s) * _PAUSE_PART)
        self._forget()
        if failure is not None:
            raise failure

    def _due(self) -> list[Listener]:
        """Return the listeners that this worker must check for alerts now. These are all its listeners for which
        messages wait in its partitions (not counting those in the topic `outstanding`), and all with an alert that is
        open or may begin soon. At most 200 other listeners are added, which take turns.

        Replays and the listeners of the queue for alerts are never checked.
        """
        pressing: list[Listener] = []
        others: list[Listener] = []
        alerted = {subject_id for (_, subject_id), one in self._directory.alerts.episodes.items() if one.open}
        for one in list(self._directory.listeners.values()):
            if self._is_watched(one):
                (pressing if one.id in alerted or self._presses(one) else others).append(one)
        if len(others) > _OTHERS_MAX:
            begin = self._others_checked % len(others)
            self._others_checked = begin + _OTHERS_MAX
            others = [*others[begin:], *others[:begin]][:_OTHERS_MAX]
        return [*pressing, *others]

    def _presses(self, listener: Listener) -> bool:
        """Return whether the next check for alerts must include this listener. Return True if messages wait for the
        listener in this worker's partitions, not counting those in the topic `outstanding`. Return True also if one of
        its alerts is open or may begin soon.
        """
        triggers = self._triggers.get(listener.id, {})
        return bool(self.sources.lag(listener.id)) or any(one.pressing for one in triggers.values())

    def _is_ours(self, subject_id: str) -> bool:
        return self.sources.owns(self._home(subject_id))

    def _home(self, subject_id: str) -> int:
        """Return the partition of `messages` to which a listener, an API key or an organization belongs. The worker
        that owns this partition checks its alerts.
        """
        return crc32(subject_id.encode()) % self.partitions

    def _is_watched(self, listener: Listener) -> bool:
        queue = self._directory.queues.get(listener.queue_id)
        return (
            listener.replay is None and queue is not None and queue.name != ALERTS_QUEUE and self._is_ours(listener.id)
        )

    # Facts

    async def _judge_listeners(self, several: Sequence[Listener], at_ms: int | None) -> None:
        """Check some listeners for alerts. If the cursors of a listener can't be read, check the other listeners first,
        and then raise the BrokerError.
        """
        loads = (self.sources.cursors.load([one.id], range(self.partitions)) for one in several)
        results = await asyncio.gather(*loads, return_exceptions=True)
        for listener_id, result in zip([one.id for one in several], results, strict=True):
            listener = self._directory.listeners.get(listener_id)
            if listener is not None and not isinstance(result, BaseException):
                facts = self._facts(listener, result[listener_id].values(), at_ms or now_ms())
                await self._judge_listener(listener, facts, at_ms or now_ms())
        for result in results:
            if isinstance(result, BaseException):
                raise result

    def _facts(self, listener: Listener, cursors: Collection[Cursor], at_ms: int) -> ListenerFacts:
        known = facts_of(cursors, at_ms)
        oldest = [one.oldest_at_ms for one in cursors if one.pending and one.oldest_at_ms is not None]
        waiting = sum(one.pending for one in cursors)
        gone = listener.paused is not None and listener.paused.startswith(_GONE)
        health = Health.DOWN if gone else known.health(paused=listener.paused is not None)
        ends = [ends_at_ms for _, ends_at_ms in listener.former_secrets if ends_at_ms > at_ms]
        return ListenerFacts(
            health=health.value,
            lag=max(waiting, self.sources.lag(listener.id) or 0),
            oldest_at_ms=min(oldest, default=None),
            parked=known.parked,
            error=next((one.error for one in cursors if one.error is not None), None),
            secret_ends_at_ms=min(ends, default=None),
        )

    async def _judge_listener(self, listener: Listener, facts: ListenerFacts, at_ms: int) -> None:
        queue = self._directory.queues[listener.queue_id]
        limits = thresholds(listener.settings.alerts, *(() if queue.alerts is None else (queue.alerts,)))
        known: dict[str, int | str] = {"health": facts.health, "lag": facts.lag, "parked": facts.parked}
        if facts.oldest_at_ms is not None:
            known["oldest_s"] = max(0, at_ms - facts.oldest_at_ms) // 1000
        if facts.error is not None:
            known["error"] = facts.error
        if facts.secret_ends_at_ms is not None:
            known["secret_ends_at_ms"] = facts.secret_ends_at_ms
        subject = Subject(listener.organization_id, listener_id=listener.id, queue_id=listener.queue_id)
        await self._judge(subject, readings(facts, limits, at_ms), known, at_ms)

    async def _judge_keys(self, at_ms: int) -> None:
        for key in list(self._directory.keys.values()):
            if key.expires_at_ms is None or not self._is_ours(key.id):
                continue
            left_ms = key.expires_at_ms - at_ms
            soon = 0 < left_ms <= min(KEY_SOON_MS, (key.expires_at_ms - key.created_at_ms) // 2)
            if soon or self._directory.alerts.is_open(Kind.KEY, key.id):
                reading = Reading(Level.HIGH if soon else Level.LOW)
                subject = Subject(key.organization_id, key_id=key.id)
                await self._judge(subject, {Kind.KEY: reading}, {"expires_at_ms": key.expires_at_ms}, at_ms)

    async def _judge_installation(self, at_ms: int) -> None:
        """Begin or end alerts about unreadable parts of the log and about the disk, for the organizations whose alerts
        this worker checks. Check the operator's organizations first.
        """
        state = self._directory
        free_bytes, refused_below = (None, 0) if self.sources.disk is None else self.sources.disk()
        facts = InstallationFacts(damaged=list(state.damage), free_bytes=free_bytes, refused_below=refused_below)
        now = facts.readings()
        organizations = sorted(state.organizations.values(), key=lambda one: not one.by_shell)
        for number, organization in enumerate(organizations, 1):
            if self._is_concerned(organization, now):
                for kind, reading in now.items():
                    shown = facts.shown(kind, operator=organization.by_shell)
                    await self._judge(Subject(organization.id), {kind: reading}, shown, at_ms)
            if number % _ORGANIZATIONS_AT_ONCE == 0:
                await asyncio.sleep(0)

    def _is_concerned(self, organization: Organization, now: Mapping[Kind, Reading]) -> bool:
        """Return whether this worker must now check an organization's alerts about the installation, such as a nearly
        full disk. Return True if one of these alerts is open, or may begin.

        Such an alert begins only for the operator's organizations, and for organizations that have a queue for alerts.
        Return False if another worker checks the organization's alerts.
        """
        state = self._directory
        if not self._is_ours(organization.id):
            return False
        if any(state.alerts.is_open(kind, organization.id) for kind in now):
            return True
        asked = organization.by_shell or (organization.id, ALERTS_QUEUE) in state.queues_by_name
        return asked and any(reading.level is Level.HIGH for reading in now.values())

    # Changes

    async def _judge(
        self, subject: Subject, now: Mapping[Kind, Reading], facts: Mapping[str, int | str], at_ms: int
    ) -> None:
        """Begin or end the alerts about the listener, API key or organization `subject`. `now` has the present reading
        for each kind of alert to check. The events about alerts that begin or end contain `facts`.
        """
        triggers = self._triggers.setdefault(subject.id, {})
        for kind in now:
            recorded = self._directory.alerts.trigger(kind, subject.id)
            # If another worker has begun or ended the alert meanwhile, use the alert's state from the log.
            if kind not in triggers or not triggers[kind].agrees(recorded):
                triggers[kind] = recorded
        before = {kind: replace(trigger) for kind, trigger in triggers.items()}
        for kind, step in steps(triggers, now, at_ms).items():
            try:
                if not self._may_change(kind, subject, step, at_ms):
                    triggers[kind] = before[kind]
                else:
                    began_at_ms = at_ms - now[kind].hold_ms if step is Step.BEGIN else at_ms
                    await self._record(kind, subject, step, began_at_ms, facts, at_ms)
            except BaseException:  # The next check tries again.
                del self._triggers[subject.id]
                raise

    def _may_change(self, kind: Kind, subject: Subject, step: Step, at_ms: int) -> bool:
        """Return whether the alert is allowed to begin or end now. If not, the next check tries again.

        Return False if the message about the alert's previous change is not put yet: that message would be lost,
        because only the newest change of an alert is remembered. Return False also if a rate limit is reached. One
        limit is for alerts of an organization that begin. The other is for alerts about the installation that begin or
        end, except in the operator's organizations.
        """
        if not self._directory.alerts.is_told(kind, subject.id):
            return False
        organization = self._directory.organizations.get(subject.id)
        if organization is not None and not organization.by_shell and not self._shared.take(at_ms):
            return False
        allowance = self._allowances.setdefault(subject.organization_id, _Allowance(at_ms))
        return step is not Step.BEGIN or allowance.take(at_ms)

    async def _record(
        self,
        kind: Kind,
        subject: Subject,
        step: Step,
        began_at_ms: int,
        facts: Mapping[str, int | str],
        at_ms: int,
    ) -> None:
        await self.sources.assure()
        episode = self._directory.alerts.episodes.get((kind, subject.id))
        fields: Fields = {
            "at_ms": at_ms,
            "organization_id": subject.organization_id,
            "actor": "worker",
            "alert": kind.value,
            "listener_id": subject.listener_id,
            "queue_id": subject.queue_id,
            "key_id": subject.key_id,
            "facts": dict(facts),
        }
        event: AlertRaised | AlertCleared
        if step is Step.BEGIN:
            event = AlertRaised(**fields, alert_id=str(uuid4()), began_at_ms=began_at_ms)
        elif episode is None or not episode.open:
            return
        else:
            latest = episode.latest
            quiet = step is Step.END_QUIETLY
            event = AlertCleared(**fields, alert_id=latest.alert_id, began_at_ms=latest.began_at_ms, quiet=quiet)
        if await record(self.log.control, self.view, event) and not event.quiet:
            await self._messages.put(event)

    def _forget(self) -> None:
        """Forget the alerts that this worker does not check any more: their listener, API key or organization was
        deleted, or another worker checks them now.
        """
        state = self._directory
        for subject_id in list(self._triggers):
            known = subject_id in state.listeners or subject_id in state.keys or subject_id in state.organizations
            if not (known and self._is_ours(subject_id)):
                del self._triggers[subject_id]


def _batches(several: Sequence[Listener]) -> Iterable[Sequence[Listener]]:
    return (several[begin : begin + _AT_ONCE] for begin in range(0, len(several), _AT_ONCE))
