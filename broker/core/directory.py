"""The directory: accounts, organizations, keys, queues and listeners, folded from the `control` topic.

For: the state and the fold. The log's order decides: of two events that want one name the first counts and the
fold passes over the second, the same way in every process; the writer of the second looks and sees it lost.
Not for: accounts and sessions (broker/core/accounts.py), reading the log (projections/), writing to it
(broker/commands)."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from operator import attrgetter
from typing import Any, Final
from zlib import crc32

import msgspec
from msgspec import UNSET, UnsetType

from broker.core import events as ev
from broker.core.accounts import Account, Accounts, Session
from broker.core.cursor import Cursor
from broker.core.damage import Damage, DamagedRange
from broker.core.events import Event, ListenerSettings
from broker.core.origins import same_origin
from broker.core.redrives import NO_REDRIVES, Redrives
from broker.core.replays import Replay, Replays

DAY_MS: Final = 86_400_000
EXPIRED_KEYS_KEPT_MS: Final = 30 * 86_400_000  # An expired key is shown for this long, until another one is created.
REPLAY_HEADER: Final = "everput-replay"  # A receiver recognizes a replay by this header, which holds the replay's id.


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
class ApiKey:
    """An API key.

    last_used_at_ms: up to an hour behind; None before the first use.
    created_by: an event's actor.
    queue_ids: the queues that the key is for; None: all.
    expires_at_ms: the key is invalid from then on; None: never.
    """

    id: str
    organization_id: str
    name: str
    prefix: str
    secret_sha256: str
    scopes: tuple[str, ...]
    created_at_ms: int
    last_used_at_ms: int | None = None
    created_by: str = ""
    queue_ids: tuple[str, ...] | None = None
    expires_at_ms: int | None = None

    def has_expired(self, at_ms: int) -> bool:
        return self.expires_at_ms is not None and self.expires_at_ms <= at_ms

    def is_for(self, queue_id: str) -> bool:
        return self.queue_ids is None or queue_id in self.queue_ids


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
    """

    id: str
    organization_id: str
    name: str
    created_at_ms: int
    listeners: dict[str, Listener] = field(default_factory=dict)
    version: int = 1


class Directory:
    """The state folded from `control`. Everything is found by id; names are looked up within an organization or queue.

    initialized: the operator has created an organization or a key from the shell (`everput init`, the first start).
    damage: ranges of the log that can't be read.
    given_up: unreadable ranges that an operator has given up.
    """

    def __init__(self) -> None:
        self.initialized = False
        self.accounts = Accounts()
        self.organizations: dict[str, Organization] = {}
        self.keys: dict[str, ApiKey] = {}
        self.keys_by_sha256: dict[str, ApiKey] = {}
        self.queues: dict[str, Queue] = {}
        self.queues_by_name: dict[tuple[str, str], Queue] = {}
        self.listeners: dict[str, Listener] = {}  # including the stand-ins that running replays are delivered as
        self.listeners_by_name: dict[tuple[str, str], Listener] = {}
        self.replays = Replays()
        self.damage = Damage()
        self.given_up = Damage()
        self._queues_of: dict[str, dict[str, Queue]] = {}
        self._keys_of: dict[str, dict[str, ApiKey]] = {}
        self._organizations_of: dict[str, dict[str, None]] = {}  # their ids by account id
        self._founded: Counter[str] = Counter()  # organizations by the account that made them
        self._bytes_of: dict[str, Counter[int]] = {}  # as Organization.bytes_by_day, by tenant

    def queue(self, organization_id: str, queue_id: str) -> Queue | None:
        """Return the queue, if it belongs to this organization."""
        found = self.queues.get(queue_id)
        return found if found is not None and found.organization_id == organization_id else None

    def listener(self, organization_id: str, listener_id: str) -> Listener | None:
        """Return the listener, if it belongs to this organization."""
        found = self.listeners.get(listener_id)
        ours = found is not None and found.organization_id == organization_id and found.replay is None
        return found if ours else None

    def queues_of(self, organization_id: str) -> Iterator[Queue]:
        """Yield the organization's queues in the order of their creation."""
        return iter(self._queues_of.get(organization_id, {}).values())

    def queue_count(self, organization_id: str) -> int:
        return len(self._queues_of.get(organization_id, ()))

    def listener_count(self, organization_id: str) -> int:
        return sum(len(queue.listeners) for queue in self.queues_of(organization_id))

    def organizations_of(self, account_id: str) -> Iterator[Organization]:
        """Yield the account's organizations in the order in which it joined them."""
        return (self.organizations[each] for each in self._organizations_of.get(account_id, ()))

    def is_member(self, organization_id: str, account_id: str) -> bool:
        organization = self.organizations.get(organization_id)
        return organization is not None and account_id in organization.members

    def is_last(self, organization: Organization, account_id: str) -> bool:
        """Return whether the organization has no other member who can sign in."""
        others = (self.accounts.by_id[member] for member in organization.members if member != account_id)
        return all(other.blocked for other in others)

    def tenant_of(self, organization_id: str) -> str:
        """Return the tenant that the organization counts for: its founder, or else the organization itself."""
        organization = self.organizations.get(organization_id)
        return organization_id if organization is None else organization.founder or organization_id

    def founded_count(self, account_id: str) -> int:
        """Count the organizations that the account has created, whether it is still a member or not."""
        return self._founded[account_id]

    def bytes_of(self, tenant: str, at_ms: int) -> int:
        """Sum the recorded bytes of all organizations of a tenant, from the day of this time on."""
        day = at_ms // DAY_MS
        return sum(size for one, size in self._bytes_of.get(tenant, {}).items() if one >= day)

    def keys_of(self, organization_id: str) -> Iterator[ApiKey]:
        """Yield the organization's API keys in the order of their creation."""
        return iter(self._keys_of.get(organization_id, {}).values())

    def apply(self, event: Event) -> bool:
        """Fold one event. It never refuses: an event that makes no sense any more, such as a taken name, changes
        nothing.

        Return False when the event changed nothing.
        """
        match event:
            case ev.AccountDeleted():
                return self._account_deleted(event)
            case ev.AccountEvent() | ev.SessionCreated() | ev.SessionEnded():
                return self.accounts.apply(event)
            case ev.OrganizationCreated():
                return self._organization_created(event)
            case ev.OrganizationJoined():
                return self._organization_joined(event)
            case ev.OrganizationLeft():
                return self._organization_left(event)
            case ev.VolumeRecorded():
                return self._volume_recorded(event)
            case ev.KeyCreated():
                return self._key_created(event)
            case ev.KeyRevoked():
                return self._key_revoked(event)
            case ev.KeyUsed():
                return self._key_used(event)
            case ev.QueueCreated():
                return self._queue_created(event)
            case ev.QueueRenamed():
                return self._queue_renamed(event)
            case ev.QueueDeleted():
                return self._queue_deleted(event)
            case ev.ListenerCreated():
                return self._listener_created(event)
            case ev.ListenerUpdated():
                return self._listener_updated(event)
            case ev.ListenerSecretRotated():
                return self._listener_secret_rotated(event)
            case ev.ListenerResealed():
                return self._listener_resealed(event)
            case ev.ListenerPaused():
                return self._listener_paused(event, event.reason)
            case ev.ListenerResumed():
                return self._listener_paused(event, None)
            case ev.ListenerRedriven():
                return self._listener_redriven(event)
            case ev.ListenerDeleted():
                return self._listener_deleted(event)
            case ev.ReplayEvent():
                return self._replay(event)
            case ev.LogDamaged():
                return not self.given_up.covers(_range(event)) and self.damage.add(_range(event))
            case ev.LogMended():
                change = self.given_up.add if event.given_up else self.given_up.remove
                changed = change(_range(event))
                return self.damage.remove(_range(event)) or changed
            case _:
                return False

    def _organization_created(self, event: ev.OrganizationCreated) -> bool:
        if event.organization_id in self.organizations:
            return False
        by_shell = _by_shell(event)
        self.initialized = self.initialized or by_shell
        self.organizations[event.organization_id] = Organization(
            id=event.organization_id, name=event.name, founder=_account_of(event), by_shell=by_shell
        )
        if founder := _account_of(event):
            self._founded[founder] += 1
        return True

    def _organization_joined(self, event: ev.OrganizationJoined) -> bool:
        organization = self.organizations.get(event.organization_id)
        if organization is None or event.account_id in organization.members:
            return False
        if event.account_id not in self.accounts.by_id:
            return False
        members = (*organization.members, event.account_id)
        self.organizations[organization.id] = replace(organization, members=members)
        self._organizations_of.setdefault(event.account_id, {})[organization.id] = None
        return True

    def _organization_left(self, event: ev.OrganizationLeft) -> bool:
        organization = self.organizations.get(event.organization_id)
        if organization is None or event.account_id not in organization.members:
            return False
        if not event.even_if_last and self.is_last(organization, event.account_id):
            return False
        self._leave(organization, event.account_id)
        return True

    def _account_deleted(self, event: ev.AccountDeleted) -> bool:
        organizations = list(self.organizations_of(event.account_id))
        if not event.even_if_last and any(self.is_last(one, event.account_id) for one in organizations):
            return False
        for one in organizations:
            self._leave(one, event.account_id)
        return self.accounts.apply(event)

    def _leave(self, organization: Organization, account_id: str) -> None:
        members = tuple(member for member in organization.members if member != account_id)
        self.organizations[organization.id] = replace(organization, members=members)
        del self._organizations_of[account_id][organization.id]

    def _volume_recorded(self, event: ev.VolumeRecorded) -> bool:
        organization = self.organizations.get(event.organization_id)
        if organization is None:
            return False
        day = event.at_ms // DAY_MS
        size = organization.bytes_by_day.get(day, 0) + event.bytes
        days = {**organization.bytes_by_day, day: size}
        self.organizations[organization.id] = replace(organization, bytes_by_day=days)
        self._bytes_of.setdefault(self.tenant_of(organization.id), Counter())[day] += event.bytes
        return True

    def _key_created(self, event: ev.KeyCreated) -> bool:
        taken = event.key_id in self.keys or event.secret_sha256 in self.keys_by_sha256
        if taken or event.organization_id not in self.organizations:
            return False
        api_key = ApiKey(
            id=event.key_id,
            organization_id=event.organization_id,
            name=event.name,
            prefix=event.prefix,
            secret_sha256=event.secret_sha256,
            scopes=event.scopes,
            created_at_ms=event.at_ms,
            created_by=event.actor,
            queue_ids=event.queue_ids,
            expires_at_ms=event.expires_at_ms,
        )
        for other in list(self.keys_of(api_key.organization_id)):
            if other.has_expired(event.at_ms - EXPIRED_KEYS_KEPT_MS):
                self._forget_api_key(other)
        self.initialized = self.initialized or _by_shell(event)
        self._put_api_key(api_key)
        return True

    def _key_used(self, event: ev.KeyUsed) -> bool:
        api_key = self.keys.get(event.key_id)
        if (
            api_key is None
            or api_key.organization_id != event.organization_id
            or event.at_ms <= (api_key.last_used_at_ms or 0)
        ):
            return False
        self._put_api_key(replace(api_key, last_used_at_ms=event.at_ms))
        return True

    def _put_api_key(self, api_key: ApiKey) -> None:
        self.keys[api_key.id] = self.keys_by_sha256[api_key.secret_sha256] = api_key
        self._keys_of.setdefault(api_key.organization_id, {})[api_key.id] = api_key

    def _key_revoked(self, event: ev.KeyRevoked) -> bool:
        api_key = self.keys.get(event.key_id)
        if api_key is None or api_key.organization_id != event.organization_id:
            return False
        self._forget_api_key(api_key)
        return True

    def _forget_api_key(self, api_key: ApiKey) -> None:
        del (
            self.keys[api_key.id],
            self.keys_by_sha256[api_key.secret_sha256],
            self._keys_of[api_key.organization_id][api_key.id],
        )

    def _queue_created(self, event: ev.QueueCreated) -> bool:
        name = (event.organization_id, event.name)
        if name in self.queues_by_name or event.queue_id in self.queues:
            return False
        queue = Queue(
            id=event.queue_id,
            organization_id=event.organization_id,
            name=event.name,
            created_at_ms=event.at_ms,
        )
        self.queues[queue.id] = self.queues_by_name[name] = queue
        self._queues_of.setdefault(queue.organization_id, {})[queue.id] = queue
        return True

    def _queue_renamed(self, event: ev.QueueRenamed) -> bool:
        queue = self.queue(event.organization_id, event.queue_id)
        name = (event.organization_id, event.name)
        if queue is None or not _at(queue, event.if_version) or self.queues_by_name.get(name, queue) is not queue:
            return False
        del self.queues_by_name[queue.organization_id, queue.name]
        queue.name = event.name
        queue.version += 1
        self.queues_by_name[name] = queue
        return True

    def _queue_deleted(self, event: ev.QueueDeleted) -> bool:
        queue = self.queue(event.organization_id, event.queue_id)
        if queue is None or not _at(queue, event.if_version):
            return False
        del self.queues[queue.id], self.queues_by_name[queue.organization_id, queue.name]
        del self._queues_of[queue.organization_id][queue.id]
        for listener in queue.listeners.values():
            self._forget_listener(listener)
        return True

    def _listener_created(self, event: ev.ListenerCreated) -> bool:
        queue = self.queue(event.organization_id, event.queue_id)
        taken = event.listener_id in self.listeners or (event.queue_id, event.name) in self.listeners_by_name
        if queue is None or taken:
            return False
        self._put_listener(
            Listener(
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
        )
        return True

    def _listener_updated(self, event: ev.ListenerUpdated) -> bool:
        listener = self.listener(event.organization_id, event.listener_id)
        if listener is None or not _at(listener, event.if_version):
            return False
        holder = self.listeners_by_name.get((listener.queue_id, event.name), listener)
        if holder is not listener:
            return False
        del self.listeners_by_name[listener.queue_id, listener.name]
        self._put_listener(
            replace(
                listener,
                name=event.name,
                notify_url=event.notify_url,
                liveness_url=event.liveness_url,
                settings=event.settings,
            )
        )
        return True

    def _listener_secret_rotated(self, event: ev.ListenerSecretRotated) -> bool:
        listener = self.listener(event.organization_id, event.listener_id)
        if listener is None:
            return False
        ends_at_ms = event.former_end_at_ms
        former = [(sealed, min(ends, ends_at_ms)) for sealed, ends in listener.former_secrets]
        former.append((listener.sealed_secret, ends_at_ms))
        going_on = tuple((sealed, ends) for sealed, ends in former if ends > event.at_ms)
        self._put_listener(replace(listener, sealed_secret=event.sealed_secret, former_secrets=going_on))
        return True

    def _listener_resealed(self, event: ev.ListenerResealed) -> bool:
        listener = self.listener(event.organization_id, event.listener_id)
        if listener is None or event.sealed.keys().isdisjoint(listener.sealed()):
            return False
        now = {sealed: event.sealed.get(sealed, sealed) for sealed in listener.sealed()}
        headers = {name: now[sealed] for name, sealed in listener.settings.sealed_headers.items()}
        self._put_listener(
            replace(
                listener,
                sealed_secret=now[listener.sealed_secret],
                former_secrets=tuple((now[sealed], ends) for sealed, ends in listener.former_secrets),
                settings=msgspec.structs.replace(listener.settings, sealed_headers=headers),
            )
        )
        return True

    def _listener_paused(self, event: ev.ListenerPaused | ev.ListenerResumed, reason: str | None) -> bool:
        listener = self.listener(event.organization_id, event.listener_id)
        if listener is None:
            return False
        self._put_listener(replace(listener, paused=reason))
        return True

    def _listener_redriven(self, event: ev.ListenerRedriven) -> bool:
        listener = self.listener(event.organization_id, event.listener_id)
        if listener is None:
            return False
        self._put_listener(replace(listener, redrives=listener.redrives.and_of(event.message_ids)))
        return True

    def _listener_deleted(self, event: ev.ListenerDeleted) -> bool:
        listener = self.listener(event.organization_id, event.listener_id)
        if listener is None or not _at(listener, event.if_version):
            return False
        queue = self.queues[listener.queue_id]
        del queue.listeners[listener.id]
        queue.version += 1
        self._forget_listener(listener)
        return True

    def _forget_listener(self, listener: Listener) -> None:
        """Remove the listener's replays with it."""
        del self.listeners[listener.id], self.listeners_by_name[listener.queue_id, listener.name]
        for replay in self.replays.forget(listener.id):
            self.listeners.pop(replay.id, None)

    def _replay(self, event: ev.ReplayEvent) -> bool:
        if isinstance(event, ev.ReplayStarted) and self.listener(event.organization_id, event.listener_id) is None:
            return False
        replay = self.replays.apply(event)
        if replay is not None:
            self._deliver(replay)
        return replay is not None

    def _deliver(self, replay: Replay) -> None:
        """Add or remove the listener that stands for a replay, which exists while the replay runs."""
        if replay.ended is not None:
            self.listeners.pop(replay.id, None)
        else:
            self.listeners[replay.id] = _as_listener(replay, self.listeners[replay.listener_id])

    def _put_listener(self, listener: Listener) -> None:
        queue = self.queues[listener.queue_id]
        before = queue.listeners.get(listener.id)
        if before is not None:
            listener = replace(listener, version=before.version + 1)
        if before is None or before.name != listener.name:
            queue.version += 1
        queue.listeners[listener.id] = listener
        self.listeners[listener.id] = self.listeners_by_name[listener.queue_id, listener.name] = listener
        for replay in self.replays.of(listener.id):
            self._deliver(replay)

    def state_hash(self) -> str:
        """Return the SHA-256 of the whole state in a canonical order, so that equal folds have equal hashes."""
        everything = (
            self.initialized,
            self.accounts.everything(),
            [_with_names(one) for one in sorted(self.organizations.values(), key=lambda o: o.id)],
            sorted(self.keys.values(), key=lambda k: k.id),
            self.replays.everything(),
            *self.damage,
            *(("given up", *one) for one in self.given_up),
            [
                (
                    queue.id,
                    queue.organization_id,
                    queue.name,
                    queue.created_at_ms,
                    queue.version,
                    list(queue.listeners.values()),
                )
                for queue in sorted(self.queues.values(), key=lambda q: q.id)
            ],
        )
        return hashlib.sha256(msgspec.json.encode(everything, order="deterministic")).hexdigest()

    def digests(self) -> dict[str, str]:
        """Return a CRC of each field of everything in the state, by kind and id. difference() compares two of them."""
        things: dict[str, Iterable[Any]] = {
            "account": self.accounts.by_id.values(),
            "session": self.accounts.sessions.values(),
            "organization": self.organizations.values(),
            "key": self.keys.values(),
            "queue": self.queues.values(),
            "listener": (one for one in self.listeners.values() if one.replay is None),
            "replay": self.replays.everything(),
        }
        return {
            f"{noun} {one.id}": "".join([f"{crc32(_encode(value)):08x}" for value in _values[noun](one)])
            for noun, several in things.items()
            for one in several
        }


_FIELDS: Final[Mapping[str, Sequence[str]]] = {
    noun: [field.name for field in fields(kind)]
    for noun, kind in {
        "account": Account,
        "session": Session,
        "organization": Organization,
        "key": ApiKey,
        "queue": Queue,
        "listener": Listener,
        "replay": Replay,
    }.items()
}
_CRC_CHARS: Final = 8


_encode = msgspec.json.Encoder(order="deterministic").encode


def _queue_values(queue: Queue) -> list[Any]:
    """List a queue's values without its listeners, which have digests of their own."""
    return [queue.id, queue.organization_id, queue.name, queue.created_at_ms, [*queue.listeners], queue.version]


def _with_names(organization: Organization) -> Any:
    """Convert an organization for hashing, because JSON orders only texts as names."""
    return replace(organization, bytes_by_day={str(day): size for day, size in organization.bytes_by_day.items()})  # type: ignore[misc]


def _organization_values(organization: Organization) -> list[Any]:
    named = _with_names(organization)
    return [getattr(named, name) for name in _FIELDS["organization"]]


_values: Final[Mapping[str, Callable[[Any], Iterable[Any]]]] = {
    **{noun: attrgetter(*names) for noun, names in _FIELDS.items()},
    "organization": _organization_values,
    "queue": _queue_values,
}


def difference(thing: str, one: str, other: str) -> tuple[str, str, str] | None:
    """Find the first field that differs between two digests, and return it with both CRCs.

    Return None when the digests come from programs with different fields.
    """
    names = _FIELDS.get(thing.partition(" ")[0], ())
    if not len(one) == len(other) == len(names) * _CRC_CHARS:
        return None
    starts = range(0, len(one), _CRC_CHARS)
    pairs = ((one[at : at + _CRC_CHARS], other[at : at + _CRC_CHARS]) for at in starts)
    return next(((name, *pair) for name, pair in zip(names, pairs, strict=True) if pair[0] != pair[1]), None)


def _account_of(event: Event) -> str:
    """Return the id of the account that acted; empty if no account did."""
    kind, _, account_id = event.actor.partition(":")
    return account_id if kind == "account" else ""


def _by_shell(event: Event) -> bool:
    """Return whether the operator's shell wrote the event. The first versions left the shell's actor empty."""
    return event.actor in ("shell", "")


def _range(event: ev.LogDamaged | ev.LogMended) -> DamagedRange:
    return DamagedRange(event.topic, event.partition, event.first_offset, event.last_offset)


def _at(item: Queue | Listener, version: int | UnsetType) -> bool:
    return version is UNSET or item.version == version


def _as_listener(replay: Replay, listener: Listener) -> Listener:
    """Make the listener that stands for a replay. A replay to another URL does not depend on whether the listener is
    alive.
    """
    settings = listener.settings
    urls = (listener.notify_url, listener.liveness_url)
    if replay.notify_url is not None:
        urls = (replay.notify_url, replay.liveness_url or replay.notify_url)
        if not (replay.send_headers or same_origin(replay.notify_url, listener.notify_url)):
            settings = msgspec.structs.replace(settings, headers={}, sealed_headers={})
    return replace(
        listener,
        id=replay.id,
        notify_url=urls[0],
        liveness_url=urls[1],
        start_offsets=replay.start_offsets,
        settings=msgspec.structs.replace(
            settings,
            headers={**settings.headers, REPLAY_HEADER: replay.id},
            rate_per_s=settings.rate_per_s if replay.rate_per_s is None else replay.rate_per_s,
        ),
        created_at_ms=replay.created_at_ms,
        redrives=NO_REDRIVES,
        paused=replay.paused or (listener.paused if replay.notify_url is None else None),
        replay=replay,
    )
