"""Puts with an Idempotency-Key: for 24 hours, repeated requests with the same key store the messages only once, even
after crashes.

For: claiming the key, putting the claimed messages, and repeating the answer (docs/decisions/0044). Not for: which
claim holds a key (broker/core/claims.py), storing claims (broker/kafka/claims.py), the header (api/messages.py).

    claim appended -> it is the first in the log: the messages are appended with its ids -> answer
                   -> it is not the first, or the request is a repeat:
                          the messages are stored -> answer
                          they may still be stored -> KeyInFlight
                          they can't be stored any more -> a claim with the next number takes over
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple

import msgspec

from broker.clock import now_ms
from broker.commands.puts import Put, append_puts
from broker.core.claims import CLOCKS_MS, IDS_KEPT_MS, Claim, decide, random_bits
from broker.core.codec import decode_message, encode
from broker.core.entities import Queue
from broker.core.events import PutClaimed
from broker.core.ids import message_id
from broker.errors import KeyInFlight, KeyReused, LogUnavailable, ViewBehind
from broker.ports import ClaimLog, Count, MessageLog

_RANDOM_BYTES: Final = 16
_UNDER_WAY: Final = "Another request with this Idempotency-Key is in progress. Try again."


class Stored(NamedTuple):
    """A message that is stored in the log."""

    id: str
    name: str


class Idempotency:
    """The puts of requests with an Idempotency-Key. If a request is repeated within 24 hours, its messages are stored
    only once.

    Before a process puts the messages of a request, it writes a claim of the request's key to the log. If the process
    has not begun to put the messages `append_timeout_ms` after its claim, it puts none, because another process may
    take over the key. `check_room` is called with an organization's id, and raises StorageFull if the organization may
    not store more bytes. `count` is called with an organization's id and the bytes of each claim.
    """

    def __init__(
        self,
        claims: ClaimLog,
        messages: MessageLog,
        *,
        append_timeout_ms: int,
        clock: Callable[[], int] = now_ms,  # returns milliseconds since the epoch
        check_room: Callable[[str], None] = lambda _: None,
        count: Count = lambda _, __: None,
    ) -> None:
        self._claims = claims
        self._messages = messages
        self._append_timeout_ms = append_timeout_ms
        self._take_over_after_ms = 2 * append_timeout_ms + CLOCKS_MS
        self._clock = clock
        self._check_room = check_room
        self._count = count
        self._under_way: set[bytes] = set()

    async def put(
        self,
        queue: Queue,
        puts: Sequence[Put],
        *,
        idempotency_key: bytes,
        body_sha256: str,
        actor: str,
        request_id: str,
    ) -> list[Stored]:
        """Put the messages of a request, or return the messages that an earlier request with the same Idempotency-Key
        has put. `body_sha256` is a hash of the values that a repeated request must have in common with the first.

        Raises KeyInFlight while an earlier request with the key may still put its messages, and KeyReused if the key
        was used with another `body_sha256`. Raises ShareUsed if the organization has used too many keys. Raises
        StorageFull if the organization may not store more bytes, and Unavailable if Kafka does not answer.
        """
        digest = hashlib.sha256(queue.organization_id.encode() + b"\0" + idempotency_key).digest()
        at_ms = self._clock()
        claim = PutClaimed(
            at_ms=at_ms,
            organization_id=queue.organization_id,
            actor=actor,
            request_id=request_id,
            queue_id=queue.id,
            digest=digest.hex(),
            body_sha256=body_sha256,
            claim_id=_random_hex(),
            ids_at_ms=at_ms,
            ids_seed=_random_hex(),
            partition=self._messages.some_partition(),
        )
        if digest in self._under_way:
            raise KeyInFlight(_UNDER_WAY)
        self._under_way.add(digest)
        try:
            return await self._put(digest, claim, puts)
        finally:
            self._under_way.discard(digest)

    async def _put(self, digest: bytes, mine: PutClaimed, puts: Sequence[Put]) -> list[Stored]:
        held = decide(await self._claims.claims(digest), mine.at_ms)
        if held is None:
            held = await self._claim(digest, mine)
        if held.first.body_sha256 != mine.body_sha256:
            raise KeyReused(
                "This Idempotency-Key was used for a request with other values. Use a new key for each new request, "
                "and the same key only to repeat a request."
            )
        if held.holder.claim_id == mine.claim_id:
            return await self._append(held, puts, {})
        found = await self._find(held, puts)
        if len(found) == len(puts):
            return [found[number] for number in range(len(puts))]
        if mine.at_ms - held.holder.at_ms < self._take_over_after_ms:
            raise KeyInFlight(_UNDER_WAY)
        held = await self._claim(digest, _taking_over(held, mine))
        if held.holder.claim_id != mine.claim_id:
            raise KeyInFlight(_UNDER_WAY)
        return await self._append(held, puts, await self._find(held, puts))

    async def _claim(self, digest: bytes, mine: PutClaimed) -> Claim:
        """Append a claim: an event by which a request reserves an Idempotency-Key. Then return the valid claims of the
        key. The `holder` among these claims is the new claim, or one that was earlier in the log. Raises StorageFull if
        the organization may not store more bytes, and ShareUsed if the organization has used too many keys. Raises
        LogUnavailable if Kafka did not acknowledge the claim, and ViewBehind if the claim can't be read from Kafka yet.
        """
        self._check_room(mine.organization_id)
        self._count(mine.organization_id, len(encode(mine)))
        await self._claims.append(mine)
        held = decide(await self._claims.claims(digest), mine.at_ms)
        if held is None:
            raise ViewBehind(
                "The Idempotency-Key was stored, but is not readable yet, so this request put no messages. Repeat the "
                "request with the same Idempotency-Key; at first, the answer may be 409."
            )
        return held

    async def _append(self, held: Claim, puts: Sequence[Put], found: Mapping[int, Stored]) -> list[Stored]:
        """Put the messages that are not stored yet."""
        # Put the messages only soon after the claim. Later, another process may take over the Idempotency-Key.
        if self._clock() - held.holder.at_ms > self._append_timeout_ms:
            raise LogUnavailable(
                f"Over {self._append_timeout_ms / 1000:g} s have passed since this request stored its Idempotency-Key, "
                "so it put no messages. Repeat the request with the same Idempotency-Key; at first, the answer may be "
                "409."
            )
        missing = [number for number in range(len(puts)) if number not in found]
        for number in missing:
            puts[number].claimed(held.holder.ids_at_ms, random_bits(held.holder, number))
        await append_puts(self._messages, [puts[number] for number in missing], held.holder.partition)
        return [found.get(number) or Stored(put.id, put.name) for number, put in enumerate(puts)]

    async def _find(self, held: Claim, puts: Sequence[Put]) -> dict[int, Stored]:
        """Return those messages of a request that are already stored in the log. In the returned dict, the key of a
        message is its position in the request, counted from 0.
        """
        found: dict[int, Stored] = {}
        for claim in held.ids:
            wanted: dict[int, dict[str, int]] = {}
            for number, put in enumerate(puts):
                if number not in found:
                    partition = (
                        claim.partition if put.ordering_key is None else self._messages.partition_of(put.ordering_key)
                    )
                    bits = random_bits(claim, number)
                    made = message_id(at_ms=claim.ids_at_ms, partition=partition, random_bits=bits)
                    wanted.setdefault(partition, {})[made] = number
            for partition, numbers in wanted.items():
                there = await self._messages.find_all(
                    partition=partition,
                    at_ms=claim.ids_at_ms,
                    message_ids=numbers.keys(),
                    organization_id=claim.organization_id,
                )
                found |= {numbers[made]: Stored(made, decode_message(value).name) for made, (_, value) in there.items()}
        return found


def _taking_over(held: Claim, mine: PutClaimed) -> PutClaimed:
    """Return a claim with which this request takes over an Idempotency-Key from an earlier request. A claim is the
    event that a request writes before it puts its messages.

    If the message ids of the earlier request are less than IDS_KEPT_MS old, the new claim keeps these ids. If both
    requests then store a message, the two copies have the same id. Older ids are replaced by new ids, because an id
    contains a time, and a search for the id reads the log from that time on.
    """
    next_one: dict[str, Any] = {"number": held.holder.number + 1, "of": held.first.claim_id}
    if mine.at_ms - held.holder.ids_at_ms < IDS_KEPT_MS:
        ids = ("ids_at_ms", "ids_seed", "partition")
        next_one |= {field: getattr(held.holder, field) for field in ids}
    return msgspec.structs.replace(mine, **next_one)


def _random_hex() -> str:
    return os.urandom(_RANDOM_BYTES).hex()
