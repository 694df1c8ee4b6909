"""The directory: accounts, organizations, API keys, queues and listeners, computed from the events of the topic
`control`.

For: the state, and how an event changes it. If two events want the same name, the first one in the log gets it, and
every process ignores the second. The process that wrote the second event notices this when it reads the event back.

Not for: accounts and sessions (accounts.py), organizations and their members (organizations.py), reading the log
(projections/), writing to it (broker/commands).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Final

import msgspec
from msgspec import UNSET, UnsetType

from broker.core import events as ev
from broker.core.accounts import Accounts
from broker.core.alerts import Alerts
from broker.core.api_keys import ApiKey, ApiKeys
from broker.core.damage import Damage, DamagedRange
from broker.core.entities import Listener, Queue
from broker.core.events import Event
from broker.core.organizations import Organizations, by_shell
from broker.core.origins import same_origin
from broker.core.redrives import NO_REDRIVES
from broker.core.replays import Replay, Replays

# The name of the HTTP header that holds the replay's id, on requests that a replay sends.
REPLAY_HEADER: Final = "everput-replay"


class Directory:
    """The state that is computed from the events of the topic `control`: accounts, organizations, invitations, API
    keys, queues, listeners, replays, unreadable ranges of the log, and alerts.

    `initialized` says that a command of the operator has created an organization or an API key. `damage` holds the
    unreadable ranges of the log that can still be restored. `given_up` holds those that are lost: an operator gave them
    up, or retention deleted them. `alerts` holds the newest state of each alert.
    """

    def __init__(self) -> None:
        self.initialized = False
        self.accounts = Accounts()
        self._organizations = organizations = Organizations(self.accounts)
        self.organizations = organizations.by_id
        self.organizations_of, self.founded_count = organizations.of_account, organizations.founded_count
        self.is_member, self.is_last = organizations.is_member, organizations.is_last
        self.role_of, self.scopes_of = organizations.role_of, organizations.scopes_of
        self.tenant_of, self.bytes_of = organizations.tenant_of, organizations.bytes_of
        self.invitations = organizations.invitations
        self._api_keys = ApiKeys()
        self.keys = self._api_keys.by_id
        self.keys_by_sha256 = self._api_keys.by_sha256
        self.queues: dict[str, Queue] = {}
        self.queues_by_name: dict[tuple[str, str], Queue] = {}
        self.listeners: dict[str, Listener] = {}  # includes a temporary listener for each replay that has not ended
        self.listeners_by_name: dict[tuple[str, str], Listener] = {}
        self.replays = Replays()
        self.damage = Damage()
        self.given_up = Damage()
        self.alerts = Alerts()
        self._queues_of: dict[str, dict[str, Queue]] = {}

    def queue(self, organization_id: str, queue_id: str) -> Queue | None:
        """Return the queue with this ID. Return None if the organization has no such queue."""
        found = self.queues.get(queue_id)
        return found if found is not None and found.organization_id == organization_id else None

    def listener(self, organization_id: str, listener_id: str) -> Listener | None:
        """Return the listener with this ID. Return None if the organization has none, or if the ID is of a replay."""
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

    def keys_of(self, organization_id: str) -> Iterator[ApiKey]:
        """Yield the organization's API keys in the order of their creation."""
        return self._api_keys.of(organization_id)

    def apply(self, event: Event) -> bool:
        """Update the directory with one event of the log. Return False if nothing changed.

        An event that is not valid any more changes nothing. For example, another queue may have got the name of a new
        queue first. Every process gets the same result.
        """
        match event:
            case ev.AccountDeleted():
                return self._organizations.account_deleted(event) and self.accounts.apply(event)
            case ev.AccountBlocked():
                blocked = self.accounts.apply(event)
                if blocked:
                    self.invitations.forget_all_by(event.account_id)
                return blocked
            case ev.AccountEvent() | ev.SessionCreated() | ev.SessionEnded():
                return self.accounts.apply(event)
            case ev.OrganizationCreated():
                created = self._organizations.apply(event)
                self.initialized = self.initialized or (created and by_shell(event))
                return created
            case ev.OrganizationJoined() | ev.OrganizationLeft() | ev.InvitationEvent() | ev.VolumeRecorded():
                return self._organizations.apply(event)
            case ev.MemberRoleChanged():
                return self._organizations.apply(event)
            case ev.KeyCreated():
                created = event.organization_id in self.organizations and self._api_keys.apply(event)
                self.initialized = self.initialized or (created and by_shell(event))
                return created
            case ev.KeyRevoked():
                revoked = self._api_keys.apply(event)
                if revoked:
                    self.alerts.forget(event.key_id)
                return revoked
            case ev.KeyUsed():
                return self._api_keys.apply(event)
            case ev.QueueAlertsSet():
                return self._queue_alerts_set(event)
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
            case ev.ListenerPaused() | ev.ListenerResumed():
                return self._listener_paused(event)
            case ev.ListenerRedriven() | ev.ListenerRedrivesCancelled():
                return self._listener_redriven(event)
            case ev.ListenerDeleted():
                return self._listener_deleted(event)
            case ev.ReplayEvent():
                return self._replay(event)
            case ev.AlertEvent() | ev.AlertTold():
                return self._alert(event)
            case ev.LogDamaged():
                return not self.given_up.covers(_range(event)) and self.damage.add(_range(event))
            case ev.LogMended():
                change = self.given_up.add if event.given_up else self.given_up.remove
                changed = change(_range(event))
                return self.damage.remove(_range(event)) or changed
            case _:
                return False

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

    def _queue_alerts_set(self, event: ev.QueueAlertsSet) -> bool:
        queue = self.queue(event.organization_id, event.queue_id)
        if queue is None or not _at(queue, event.if_version):
            return False
        queue.alerts = event.alerts
        queue.version += 1
        return True

    def _alert(self, event: ev.AlertEvent | ev.AlertTold) -> bool:
        """Update the alerts with an event. An alert about a deleted listener or API key changes nothing."""
        if isinstance(event, ev.AlertEvent):
            gone = event.listener_id and event.listener_id not in self.listeners
            if gone or (event.key_id and event.key_id not in self.keys):
                return False
        return self.alerts.apply(event)

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

    def _listener_paused(self, event: ev.ListenerPaused | ev.ListenerResumed) -> bool:
        reason = event.reason if isinstance(event, ev.ListenerPaused) else None
        listener = self.listener(event.organization_id, event.listener_id)
        if listener is None:
            return False
        self._put_listener(replace(listener, paused=reason))
        return True

    def _listener_redriven(self, event: ev.ListenerRedriven | ev.ListenerRedrivesCancelled) -> bool:
        listener = self.listener(event.organization_id, event.listener_id)
        if listener is None:
            return False
        redrives = listener.redrives
        redrives = redrives.and_of(event.message_ids) if isinstance(event, ev.ListenerRedriven) else redrives.cancel()
        self._put_listener(replace(listener, redrives=redrives))
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
        """Remove a listener, and its replays with it."""
        del self.listeners[listener.id], self.listeners_by_name[listener.queue_id, listener.name]
        self.alerts.forget(listener.id)
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
        """Create, change or remove the temporary listener of a replay, through which the replay's messages are
        delivered. A replay that has ended has no temporary listener.
        """
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


def _range(event: ev.LogDamaged | ev.LogMended) -> DamagedRange:
    return DamagedRange(event.topic, event.partition, event.first_offset, event.last_offset)


def _at(item: Queue | Listener, version: int | UnsetType) -> bool:
    return version is UNSET or item.version == version


def _as_listener(replay: Replay, listener: Listener) -> Listener:
    """Return a temporary listener for a replay of `listener`'s messages. Workers deliver to it as to any listener.

    While `listener` is paused, a replay without a `notify_url` of its own is paused, too.
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
