"""Hashes of the directory, which show whether two processes have computed the same state from the log.

For: a hash of the whole state, and a checksum of each field to find where two states differ. Not for: comparing them
(cli/commands/verify.py).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields, replace
from operator import attrgetter
from typing import Any, Final
from zlib import crc32

import msgspec

from broker.core.accounts import Account, Session
from broker.core.api_keys import ApiKey
from broker.core.directory import Directory
from broker.core.entities import Listener, Organization, Queue
from broker.core.invitations import Invitation
from broker.core.replays import Replay

_TYPES: Final[Mapping[str, type[Any]]] = {
    "account": Account,
    "session": Session,
    "organization": Organization,
    "key": ApiKey,
    "invitation": Invitation,
    "queue": Queue,
    "listener": Listener,
    "replay": Replay,
}
_FIELDS: Final[Mapping[str, Sequence[str]]] = {
    noun: [field.name for field in fields(kind)] for noun, kind in _TYPES.items()
}


_CRC_CHARS: Final = 8


_encode = msgspec.json.Encoder(order="deterministic").encode


def _queue_values(queue: Queue) -> list[Any]:
    """Return the values of a queue from which its checksums are computed. The values contain only the ids of the
    queue's listeners, because each listener has checksums of its own.
    """
    return [
        *(queue.id, queue.organization_id, queue.name, queue.created_at_ms, [*queue.listeners], queue.version),
        queue.alerts,
    ]


def _with_names(organization: Organization) -> Any:
    """Return a copy of the organization in which all dictionary keys are text, because sorted JSON needs text keys."""
    return replace(organization, bytes_by_day={str(day): size for day, size in organization.bytes_by_day.items()})  # type: ignore[misc]


def _organization_values(organization: Organization) -> list[Any]:
    named = _with_names(organization)
    return [getattr(named, name) for name in _FIELDS["organization"]]


_values: Final[Mapping[str, Callable[[Any], Iterable[Any]]]] = {
    **{noun: attrgetter(*names) for noun, names in _FIELDS.items()},
    "organization": _organization_values,
    "queue": _queue_values,
}


def _key(pair: tuple[tuple[str, str], object]) -> tuple[str, str]:
    return pair[0]


def state_hash(directory: Directory) -> str:
    """Return a SHA-256 of the directory: the whole state that a process has computed from the topic `control`.

    Two processes with the same state get the same hash.
    """
    everything = (
        directory.initialized,
        directory.accounts.everything(),
        [_with_names(one) for one in sorted(directory.organizations.values(), key=lambda o: o.id)],
        sorted(directory.keys.values(), key=lambda k: k.id),
        directory.replays.everything(),
        *(("invitation", one) for one in directory.invitations.everything()),
        *directory.damage,
        *(("given up", *one) for one in directory.given_up),
        *(("alert", *key, one.latest, one.told) for key, one in sorted(directory.alerts.episodes.items(), key=_key)),
        [
            (
                queue.id,
                queue.organization_id,
                queue.name,
                queue.created_at_ms,
                queue.version,
                *([] if queue.alerts is None else [queue.alerts]),
                list(queue.listeners.values()),
            )
            for queue in sorted(directory.queues.values(), key=lambda q: q.id)
        ],
    )
    return hashlib.sha256(msgspec.json.encode(everything, order="deterministic")).hexdigest()


def fields_hash() -> str:
    """Return a short hash of the names and types of the fields of accounts, sessions, organizations, API keys,
    invitations, queues, listeners and replays. The state hashes of two programs can be compared only if the programs
    have the same hash of fields: with other fields, the same log may result in another state hash.
    """
    _, components = msgspec.json.schema_components(_TYPES.values())
    return f"{crc32(_encode({name: one['properties'] for name, one in components.items()})):08x}"


def digests(directory: Directory) -> dict[str, str]:
    """Return checksums of the fields of each account, session, organization, API key, invitation, queue, listener and
    replay. The result maps the kind and the id of an item, such as `queue <id>`, to a text with the checksums of the
    item's fields. difference() compares two such texts of the same item.
    """
    things: dict[str, Iterable[Any]] = {
        "account": directory.accounts.by_id.values(),
        "session": directory.accounts.sessions.values(),
        "organization": directory.organizations.values(),
        "key": directory.keys.values(),
        "invitation": directory.invitations.everything(),
        "queue": directory.queues.values(),
        "listener": (one for one in directory.listeners.values() if one.replay is None),
        "replay": directory.replays.everything(),
    }
    return {
        f"{noun} {one.id}": "".join([f"{crc32(_encode(value)):08x}" for value in _values[noun](one)])
        for noun, several in things.items()
        for one in several
    }


def difference(thing: str, one: str, other: str) -> tuple[str, str, str] | None:
    """Compare two digests of the same item, which digests() has returned in two processes. Return the name of the first
    field that differs, with both checksums. Return None if no field differs, or if a digest does not have one checksum
    for each field.
    """
    names = _FIELDS.get(thing.partition(" ")[0], ())
    if not len(one) == len(other) == len(names) * _CRC_CHARS:
        return None
    starts = range(0, len(one), _CRC_CHARS)
    pairs = ((one[at : at + _CRC_CHARS], other[at : at + _CRC_CHARS]) for at in starts)
    return next(((name, *pair) for name, pair in zip(names, pairs, strict=True) if pair[0] != pair[1]), None)
