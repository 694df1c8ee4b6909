"""Claims of Idempotency-Keys: which request may put the messages of a key, and where the claims of the last day are.

For: the rule, which depends only on the order of the log; the ids of claimed messages; an index with 16 bytes for each
claim. Pure. Not for: reading the log (broker/kafka/claims.py), using a claim (broker/commands/idempotency.py).
"""

from __future__ import annotations

import hashlib
from array import array
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Final, NamedTuple

from broker.core.events import PutClaimed

KEPT_MS: Final = 24 * 3600 * 1000
# The most records of Idempotency-Keys in a process's memory. A record takes about 16 bytes for at least 24 hours.
CLAIMS_MAX: Final = 8_000_000
FEW: Final = 10_000
# A request that takes over an Idempotency-Key reuses the earlier request's message ids if they are under a minute old.
# A message id holds a time. A search for an old id would be slow, because it reads the log from that time on.
IDS_KEPT_MS: Final = 60_000
CLOCKS_MS: Final = 10_000  # the clocks of any two processes are assumed to differ by at most this
_RUN_MAX: Final = 1 << 16
_RUN_MS_MAX: Final = 3600 * 1000
_OFFSET_BITS: Final = 48
_PREFIX_BYTES: Final = 4


class Claim(NamedTuple):
    """The claims of one Idempotency-Key that is in use. A claim is an event that a request writes before it puts its
    messages.

    `first` is the claim of the first request with the key. `holder` is the newest valid claim: only the process that
    wrote this claim may put the messages now. `ids` has one claim for each set of message ids that the requests may
    have used, oldest first.
    """

    first: PutClaimed
    holder: PutClaimed
    ids: tuple[PutClaimed, ...]


def decide(claims: Sequence[PutClaimed], at_ms: int) -> Claim | None:
    """Return the valid claims of an Idempotency-Key at this time, or None if the key is free. `claims` are all claims
    of the key in the order of the log.

    The first claim has the `number` 1, and reserves the key for 24 hours. If the process of a claim does not put the
    messages in time, other processes may write claims whose `number` is higher by 1. The first of these claims in the
    log takes the key over.
    """
    held: Claim | None = None
    for claim in claims:
        if claim.number == 1:
            if held is None or claim.at_ms - held.first.at_ms >= KEPT_MS:
                held = Claim(claim, claim, (claim,))
        elif held is not None and claim.number == held.holder.number + 1 and claim.of == held.first.claim_id:
            again = claim.ids_seed == held.holder.ids_seed
            held = Claim(held.first, claim, held.ids if again else (*held.ids, claim))
    return None if held is None or at_ms - held.first.at_ms >= KEPT_MS else held


def random_bits(claim: PutClaimed, number: int) -> int:
    """Return the random bits for the id of message `number` in a request. Every process computes the same bits from the
    claim of the request's Idempotency-Key.
    """
    return int.from_bytes(hashlib.sha256(f"{claim.ids_seed}.{number}".encode()).digest()[:8])


def has_room(mine: int, all_of_them: int, *, claims_max: int = CLAIMS_MAX, few: int = FEW) -> bool:
    """Return whether an organization that has `mine` claims of Idempotency-Keys may store one more.

    All organizations together may store `claims_max` claims, and have stored `all_of_them`. The difference is the
    number of free places. An organization with fewer than `few` claims may store one more if it has fewer claims than
    there are free places. For any other organization, a quarter of `claims_max` does not count as free. For example, if
    60 of 100 places are free, the organization must have fewer than 60 - 25 = 35 claims.
    """
    free = claims_max - all_of_them
    return mine < free - claims_max // 4 or mine < min(free, few)


class _Owners:
    """A counter of each organization's claims of Idempotency-Keys. This class also gives each organization with claims
    a small integer. To save memory, the index of claims stores the integer instead of the organization's id. When an
    organization has no claims any more, another organization can get its integer.
    """

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}
        self._names: list[str] = []
        self._counts: list[int] = []
        self._free: list[int] = []

    def add(self, owner: str) -> int:
        """Count one more claim of an Idempotency-Key of an organization.

        Return the small integer that the index stores for this organization.
        """
        number = self._numbers.get(owner)
        if number is None:
            number = self._numbers[owner] = self._free.pop() if self._free else len(self._names)
            if number == len(self._names):
                self._names.append("")
                self._counts.append(0)
            self._names[number] = owner
        self._counts[number] += 1
        return number

    def remove(self, numbers: Iterable[int]) -> None:
        """Subtract removed claims from the organizations' counts. `numbers` has one item for each removed claim: the
        small integer that stands for the claim's organization.
        """
        for number, count in Counter(numbers).items():
            self._counts[number] -= count
            if not self._counts[number]:
                del self._numbers[self._names[number]]
                self._free.append(number)

    def count(self, owner: str) -> int:
        number = self._numbers.get(owner)
        return 0 if number is None else self._counts[number]


class _Run(NamedTuple):
    """A list of claims of Idempotency-Keys, sorted by the first 4 bytes of the hashes of the keys. The three arrays
    have one item for each claim: the 4 bytes, the claim's partition and offset in one integer, and the integer of the
    claim's organization. `until_ms` is the time of the newest claim. While claims are still added to a list, the list
    is not sorted, and its `until_ms` is 0.
    """

    prefixes: array[int]
    places: array[int]
    owners: array[int]
    until_ms: int


class ClaimIndex:
    """An in-memory index from each Idempotency-Key to the offsets of its claims in Kafka.

    The index stores only the first 4 bytes of each key's hash, so a search may also return claims of other keys. New
    claims are collected, and then sorted into a list of at most `run_max` claims. forget() drops a list when all of its
    claims are old.
    """

    def __init__(self, run_max: int = _RUN_MAX) -> None:
        self._run_max = run_max
        self.runs: list[_Run] = []
        self._owners = _Owners()
        self._since_ms = self._until_ms = 0  # times of the first and newest claim in the unsorted list `_recent`
        self._begin()

    def __len__(self) -> int:
        return len(self._recent.places) + sum(len(run.places) for run in self.runs)

    def count(self, owner: str) -> int:
        """Return how many claims of Idempotency-Keys this organization has."""
        return self._owners.count(owner)

    def add(self, digest: bytes, partition: int, offset: int, at_ms: int, owner: str) -> None:
        """Add a claim of an Idempotency-Key to the index. The claims of each partition must be added with ascending
        offsets. `digest` is the key's hash, and `owner` the id of the organization.
        """
        recent = self._recent
        if recent.places and (len(recent.places) >= self._run_max or at_ms - self._since_ms >= _RUN_MS_MAX):
            self._close_run()
            recent = self._recent
        if not recent.places:
            self._since_ms = self._until_ms = at_ms
        self._until_ms = max(self._until_ms, at_ms)
        prefix = _prefix(digest)
        self._before.append(self._latest.get(prefix, -1))
        self._latest[prefix] = len(recent.places)
        recent.prefixes.append(prefix)
        recent.places.append(partition << _OFFSET_BITS | offset)
        recent.owners.append(self._owners.add(owner))

    def places(self, digest: bytes) -> list[tuple[int, int]]:
        """Return the partition and offset of each claim in the index whose key's hash begins with the same 4 bytes as
        `digest`. Some of these claims may belong to other Idempotency-Keys. Within a partition, the offsets ascend.
        """
        return [(place >> _OFFSET_BITS, place & (1 << _OFFSET_BITS) - 1) for place in self._places(_prefix(digest))]

    def forget(self, before_ms: int) -> None:
        """Drop each list in which every claim of an Idempotency-Key is older than the time `before_ms`."""
        if self._recent.places and self._until_ms < before_ms:
            self._close_run()
        for run in self.runs:
            if run.until_ms < before_ms:
                self._owners.remove(run.owners)
        self.runs = [run for run in self.runs if run.until_ms >= before_ms]

    def _places(self, prefix: int) -> Iterator[int]:
        for prefixes, places, _, _ in self.runs:
            at = bisect_left(prefixes, prefix)
            while at < len(prefixes) and prefixes[at] == prefix:
                yield places[at]
                at += 1
        found, at = [], self._latest.get(prefix, -1)
        while at >= 0:
            found.append(self._recent.places[at])
            at = self._before[at]
        yield from reversed(found)

    def _begin(self) -> None:
        """Begin a new list of claims of Idempotency-Keys.

        `_latest` maps the first 4 bytes of a key's hash to the position of the newest claim with these bytes in the
        list. `_before` has, for each claim, the position of the previous claim with the same 4 bytes; -1 if there is
        none.
        """
        self._recent = _Run(array("I"), array("Q"), array("I"), 0)
        self._latest: dict[int, int] = {}
        self._before = array("i")

    def _close_run(self) -> None:
        prefixes, places, owners, _ = self._recent
        order = sorted(range(len(places)), key=prefixes.__getitem__)
        self.runs.append(
            _Run(
                array("I", map(prefixes.__getitem__, order)),
                array("Q", map(places.__getitem__, order)),
                array("I", map(owners.__getitem__, order)),
                self._until_ms,
            )
        )
        self._begin()


def _prefix(digest: bytes) -> int:
    return int.from_bytes(digest[:_PREFIX_BYTES])
