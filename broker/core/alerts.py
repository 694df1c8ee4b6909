"""Alerts: when an alert begins and ends, which alerts are open, and the message about an alert.

For: the rule (Trigger), the levels of a listener's conditions, and the state computed from the alerts' events.
Everything is pure; callers pass in the time. Not for: finding the facts and writing events and messages
(broker/alerts.py), a listener's health (health.py).

An alert has a kind and a subject: a listener, an API key, or an organization. It begins when its level has been HIGH
for some time, and ends when the level has been LOW for some time. BETWEEN the two thresholds nothing changes. The same
alert begins at most once in INTERVAL_MS. The state is in the events of `control`, so an alert continues after a
restart.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from typing import Any, Final

from msgspec import UNSET, UnsetType

from broker.core.alert_events import AlertCleared, AlertEvent, AlertRaised, AlertThresholds, AlertTold
from broker.core.damage import DamagedRange
from broker.core.event import Event

# Every organization's queue for alerts has this name. No other queue can have it.
ALERTS_QUEUE: Final = "everput.alerts"
INTERVAL_MS: Final = 10 * 60_000
# If a listener was healthy or replaying for this long, its alert of kind DOWN or FAILING ends, with a message.
BACK_MS: Final = 30_000
# If the level of an alert of kind LAG, PARKED, SECRET, KEY or DISK was LOW for this long, the alert ends.
CALM_MS: Final = 60_000
SECRET_SOON_MS: Final = 3_600_000
KEY_SOON_MS: Final = 3 * 86_400_000


class Kind(StrEnum):
    """The kinds of alerts."""

    DOWN = "listener.down"  # the listener is down
    FAILING = "listener.failing"  # the listener rejects too many attempts
    LAG = "listener.lag"  # too many messages wait for the listener, or its oldest one has waited too long
    PARKED = "listener.parked"  # too many deliveries are parked
    SECRET = "secret.expiring"  # noqa: S105 - the kind's name
    KEY = "key.expiring"  # an API key expires soon
    DAMAGED = "log.damaged"  # unreadable part of the log
    DISK = "disk.low"  # disk of the embedded Kafka


# This is the `type` in the message that Everput puts when an alert of kind DOWN or FAILING ends.
BACK: Final = "listener.back"
_HEALTH: Final = (Kind.DOWN, Kind.FAILING)
# When an alert of kind SECRET or KEY ends, Everput puts no message.
_SILENT_ENDS: Final = (Kind.SECRET, Kind.KEY)


class Level(IntEnum):
    """The level of an alert's condition: HIGH if the alert should begin, LOW if it should end, BETWEEN if neither. OFF
    means that the alert does not apply, for example because it is switched off. An open alert then ends without a
    message.
    """

    OFF = 0
    LOW = 1
    BETWEEN = 2
    HIGH = 3


@dataclass(frozen=True, slots=True)
class Reading:
    """The level of an alert's condition at one time, and how long a level must last until the alert begins or ends.

    The alert begins when the level has been HIGH for `hold_ms`, but at most once in INTERVAL_MS (10 minutes). The alert
    ends when the level has been LOW for `calm_ms`, or as soon as the level is OFF.
    """

    level: Level
    hold_ms: int = 0
    calm_ms: int = CALM_MS


@dataclass(frozen=True, slots=True, kw_only=True)
class Thresholds:
    """The thresholds from which alerts about a listener begin. With a threshold of 0, no alert begins."""

    lag_messages: int = 10_000  # messages that wait
    lag_s: int = 900  # age of the oldest waiting message
    parked: int = 1  # parked deliveries
    down_s: int = 60  # how long the listener is down
    failing_s: int = 300  # how long the listener is failing


DEFAULTS: Final = Thresholds()


def thresholds(*sources: AlertThresholds | UnsetType) -> Thresholds:
    """Return the alert thresholds for a listener. Each threshold comes from the first source that sets it. If no source
    sets it, the default applies.
    """
    set_ones: dict[str, int] = {}
    for source in sources:
        if source is UNSET or isinstance(source, UnsetType):
            continue
        for name in source.__struct_fields__:
            value = getattr(source, name)
            if value is not None:
                set_ones.setdefault(name, value)
    return Thresholds(**set_ones)


@dataclass(frozen=True, slots=True, kw_only=True)
class ListenerFacts:
    """The facts about a listener that its alerts depend on."""

    health: str = "healthy"  # a value of `Health`
    lag: int = 0  # at least this many messages wait
    oldest_at_ms: int | None = None  # when the oldest waiting message was put, in ms since the UTC epoch
    parked: int = 0  # parked deliveries
    error: str | None = None  # error or HTTP status of one of the latest failed attempts; None if none is known
    secret_ends_at_ms: int | None = None  # end of the next former secret


def readings(facts: ListenerFacts, limits: Thresholds, at_ms: int) -> dict[Kind, Reading]:
    """Return a reading for each kind of alert about a listener. A reading has the level of the alert's condition (HIGH,
    LOW, BETWEEN or OFF), and how long a level must last until the alert begins or ends. The levels come from a
    comparison of `facts` with the thresholds in `limits`.
    """
    age_ms = 0 if facts.oldest_at_ms is None else max(0, at_ms - facts.oldest_at_ms)
    lag = max(
        (_part(facts.lag, limits.lag_messages), _part(age_ms, limits.lag_s * 1000)),
        default=Level.OFF,
    )
    if facts.health == "paused" and lag is Level.HIGH:
        lag = Level.BETWEEN  # Somebody wanted messages to wait.
    ends_at_ms = facts.secret_ends_at_ms
    soon = ends_at_ms is not None and at_ms < ends_at_ms <= at_ms + SECRET_SOON_MS
    return {
        Kind.DOWN: Reading(_health_level(facts.health, "down", limits.down_s), limits.down_s * 1000, BACK_MS),
        Kind.FAILING: Reading(
            _health_level(facts.health, "failing", limits.failing_s), limits.failing_s * 1000, BACK_MS
        ),
        Kind.LAG: Reading(lag),
        Kind.PARKED: Reading(_part(facts.parked, limits.parked)),
        Kind.SECRET: Reading(Level.HIGH if soon else Level.LOW),
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class InstallationFacts:
    """The facts that alerts about the whole installation depend on: the unreadable ranges of the log, and the free
    bytes on the disk of the embedded Kafka. `free_bytes` is None if Kafka is not embedded. While `free_bytes` is below
    `refused_below`, the API refuses puts.
    """

    damaged: Sequence[DamagedRange] = ()
    free_bytes: int | None = None
    refused_below: int = 0

    def readings(self) -> dict[Kind, Reading]:
        """Return a reading for each kind of alert about the installation: DAMAGED and DISK. A reading has the level of
        the alert's condition (HIGH, LOW, BETWEEN or OFF), and how long a level must last until the alert begins or
        ends.
        """
        return {
            Kind.DAMAGED: Reading(Level.HIGH if self.damaged else Level.LOW, calm_ms=0),
            Kind.DISK: Reading(self._disk_level()),
        }

    def _disk_level(self) -> Level:
        if self.free_bytes is None:
            return Level.OFF
        if self.free_bytes < 2 * self.refused_below:
            return Level.HIGH
        return Level.BETWEEN if self.free_bytes < 3 * self.refused_below else Level.LOW

    def shown(self, kind: Kind, *, operator: bool) -> dict[str, int | str]:
        """Return the facts that an alert of this kind shows. Only alerts in the operator's organizations show the
        damaged offsets and the free bytes. All organizations share the partitions and the disk, so other organizations
        could learn from these numbers about each other.
        """
        shown: dict[str, int | str] = {}
        if kind is Kind.DISK or (operator and self.free_bytes is not None):
            shown["refused_below_mib"] = self.refused_below >> 20
        if operator:
            shown["ranges"] = len(self.damaged)
            if self.damaged:
                shown["first"] = str(self.damaged[0])
            if self.free_bytes is not None:
                shown["free_mib"] = self.free_bytes >> 20
        return shown


def _health_level(health: str, bad: str, limit: int) -> Level:
    if not limit:
        return Level.OFF
    if health == bad:
        return Level.HIGH
    return Level.LOW if health in ("healthy", "replaying") else Level.BETWEEN


def _part(value: int, limit: int) -> Level:
    """Return the level of a value: HIGH if it is the limit or more, LOW if it is below half of the limit, and BETWEEN
    otherwise. Return OFF if the limit is 0.
    """
    if not limit:
        return Level.OFF
    if value >= limit:
        return Level.HIGH
    return Level.LOW if value * 2 < limit else Level.BETWEEN


class Step(IntEnum):
    """The change of an alert: it begins or ends. END_QUIETLY is an end for which no message is sent."""

    BEGIN = 1
    END = 2
    END_QUIETLY = 3


@dataclass(slots=True)
class Trigger:
    """The state of one alert about one listener, API key or organization.

    `since_ms` is the time since which the level of the alert's condition is the same; 0 if this time is not known.
    """

    open: bool = False  # begun and not ended
    begun_at_ms: int = 0  # last beginning; 0 for never
    since_ms: int = 0
    _level: Level = Level.BETWEEN

    @property
    def pressing(self) -> bool:
        """Whether every check must include this alert: it is open, or its condition has the level HIGH."""
        return self.open or self._level is Level.HIGH

    def agrees(self, recorded: Trigger) -> bool:
        """Return whether this alert and the state of the alert in the log agree: both are open, or both are not, and
        both have the same time of the newest beginning.
        """
        return (self.open, self.begun_at_ms) == (recorded.open, recorded.begun_at_ms)

    def step(self, reading: Reading, at_ms: int) -> Step | None:
        """Update the alert with the newest level of its condition. Return the step if the alert begins or ends now.
        Otherwise return None. `at_ms` must not be lower than in an earlier call.
        """
        level = reading.level
        if level is not self._level:
            self._level, self.since_ms = level, at_ms
        lasted_ms = at_ms - self.since_ms
        if self.open:
            if level is Level.OFF:
                self.open = False
                return Step.END_QUIETLY
            if level is Level.LOW and lasted_ms >= reading.calm_ms:
                self.open = False
                return Step.END
            return None
        # If a wrong clock has set `begun_at_ms` far into the future, abs() lets the alert begin nevertheless.
        rested = not self.begun_at_ms or abs(at_ms - self.begun_at_ms) >= INTERVAL_MS
        if level is Level.HIGH and lasted_ms >= reading.hold_ms and rested:
            self.open, self.begun_at_ms = True, at_ms
            return Step.BEGIN
        return None


def steps(triggers: Mapping[Kind, Trigger], now: Mapping[Kind, Reading], at_ms: int) -> dict[Kind, Step]:
    """Update all alerts of one listener, API key or organization with the newest levels of their conditions. Return the
    step of each alert that begins or ends now.

    While a listener's alert DOWN is open, its alert FAILING does not begin. If the alert FAILING is open already, it
    ends with the step END_QUIETLY, for which no message is sent.
    """
    changed: dict[Kind, Step] = {}
    for kind, reading in now.items():
        taken = reading
        if kind is Kind.FAILING and (triggers[Kind.DOWN].open or changed.get(Kind.DOWN) is Step.END):
            taken = Reading(Level.OFF)
        step = triggers[kind].step(taken, at_ms)
        if step is not None:
            changed[kind] = Step.END_QUIETLY if step is Step.END and kind in _SILENT_ENDS else step
    return changed


# The fold


@dataclass(slots=True)
class Episode:
    """The newest episode of an alert: from its beginning (the event AlertRaised) to its end (the event AlertCleared).
    `latest` is the newer of these events in the log. `told` is True if Everput has put the message about `latest` on
    the queue `everput.alerts`, or puts none about this event.
    """

    latest: AlertEvent
    begun_at_ms: int  # when the alert began
    told: bool

    @property
    def open(self) -> bool:
        return isinstance(self.latest, AlertRaised)


@dataclass(slots=True)
class Alerts:
    """The newest state of each alert, computed from the events `alert.raised`, `alert.cleared` and `alert.told`. An
    alert has a kind, and a subject: a listener, an API key or an organization.
    """

    episodes: dict[tuple[str, str], Episode] = field(default_factory=dict)
    _by_id: dict[str, tuple[str, str]] = field(default_factory=dict)

    def apply(self, event: Event) -> bool:
        """Update the alerts with one event of the log. Return False if the event changes nothing.

        For example, the beginning of an alert changes nothing if the alert is open already.
        """
        if isinstance(event, AlertTold):
            episode = self.episodes.get(self._by_id.get(event.alert_id, ("", "")))
            if episode is None or episode.told:
                return False
            episode.told = True
            return True
        if not isinstance(event, AlertEvent):
            return False
        key = (event.alert, subject(event))
        episode = self.episodes.get(key)
        if isinstance(event, AlertRaised):
            if episode is not None and episode.open:
                return False
            if episode is not None:
                self._by_id.pop(episode.latest.alert_id, None)
            self.episodes[key] = Episode(event, event.at_ms, event.quiet)
            self._by_id[event.alert_id] = key
            return True
        if episode is None or not episode.open or episode.latest.alert_id != event.alert_id:
            return False
        episode.latest, episode.told = event, event.quiet
        return True

    def is_open(self, kind: Kind, subject_id: str) -> bool:
        """Return whether the alert has begun and not ended."""
        episode = self.episodes.get((kind, subject_id))
        return episode is not None and episode.open

    def is_told(self, kind: Kind, subject_id: str) -> bool:
        """Return whether Everput has put the message about the alert's newest event. Also return True if no message
        about this event is wanted, or if the alert never began.
        """
        episode = self.episodes.get((kind, subject_id))
        return episode is None or episode.told

    def forget(self, subject_id: str) -> None:
        """Forget the alerts of a deleted listener, API key or organization."""
        for kind in Kind:
            episode = self.episodes.pop((kind, subject_id), None)
            if episode is not None:
                self._by_id.pop(episode.latest.alert_id, None)

    def trigger(self, kind: Kind, subject_id: str) -> Trigger:
        """Return whether the alert is open, and when it last began, according to the events of the log."""
        episode = self.episodes.get((kind, subject_id))
        return Trigger() if episode is None else Trigger(open=episode.open, begun_at_ms=episode.begun_at_ms)


def subject(event: AlertEvent) -> str:
    """Return the id of the listener, API key or organization that an alert is about."""
    return event.listener_id or event.key_id or event.organization_id


# The message


def message(event: AlertEvent, names: Mapping[str, str], base_url: str | None) -> dict[str, Any]:
    """Return the content of the message about an alert, which docs/alerts.md describes.

    `names` has the names of the listener, the queue and the API key, by id. Links begin with `base_url`; without it,
    there is no link.
    """
    kind, ended = Kind(event.alert), isinstance(event, AlertCleared)
    return {
        "type": BACK if ended and kind in _HEALTH else kind.value,
        "state": "cleared" if ended else "raised",
        "id": event.alert_id,
        "at_ms": event.at_ms,
        "since_ms": event.began_at_ms,
        "listener": _named(event.listener_id, names),
        "queue": _named(event.queue_id, names),
        "key": _named(event.key_id, names),
        "facts": event.facts,
        "text": text(event, names),
        "link": None if base_url is None else base_url + _place(event),
    }


def _named(item_id: str, names: Mapping[str, str]) -> dict[str, str] | None:
    return {"id": item_id, "name": names.get(item_id, "")} if item_id else None


def _place(event: AlertEvent) -> str:
    of = f"/console#/o/{event.organization_id}"
    if event.listener_id:
        return f"{of}/queues/{event.queue_id}/listeners/{event.listener_id}"
    return f"{of}/keys" if event.key_id else f"{of}/log"


def text(event: AlertEvent, names: Mapping[str, str]) -> str:
    """Return one to three sentences that explain the alert to people."""
    facts, ended = event.facts, isinstance(event, AlertCleared)
    listener = f"The listener {names.get(event.listener_id, '')} of the queue {names.get(event.queue_id, '')}"
    match Kind(event.alert):
        case Kind.DOWN | Kind.FAILING if ended:
            return f"{listener} is back."
        case Kind.DOWN:
            return f"{listener} is down{_because(facts)}. {facts.get('lag', 0)} messages wait for it."
        case Kind.FAILING:
            return f"{listener} refuses messages{_because(facts)}."
        case Kind.LAG if ended:
            return f"{listener} has caught up."
        case Kind.LAG:
            oldest = f", the oldest for {facts['oldest_s']} s" if "oldest_s" in facts else ""
            return f"{facts.get('lag', 0)} messages wait{oldest}. {listener} lags."
        case Kind.PARKED if ended:
            return f"{listener} has {facts.get('parked', 0)} parked deliveries, which is below its threshold."
        case Kind.PARKED:
            return f"{listener} has {facts.get('parked', 0)} parked deliveries, which are not retried any more."
        case Kind.SECRET:
            return f"A former signing secret of the listener {names.get(event.listener_id, '')} soon stops signing."
        case Kind.KEY:
            return f"The API key {names.get(event.key_id, '')} soon ends."
        case Kind.DAMAGED if ended:
            return "No part of the log is damaged any more: each was repaired, or the operator gave it up."
        case Kind.DAMAGED if "ranges" in facts:  # for the operator
            return "A part of the log can't be read. See `everput mend`."
        case Kind.DAMAGED:
            return (
                "A part of the log can't be read. Messages in this part wait as parked deliveries with the error "
                "`damaged`, until the operator repairs it or gives it up."
            )
        case Kind.DISK:
            free = f" {facts['free_mib']} MiB are free." if "free_mib" in facts else ""
            if ended:
                return f"The disk has room again.{free}"
            limit = facts.get("refused_below_mib")
            refused = "" if limit is None else f" Puts are refused while less than {limit} MiB are free."
            return f"The disk is almost full.{free}{refused}"


def _because(facts: Mapping[str, int | str]) -> str:
    return f": {facts['error']}" if "error" in facts else ""
