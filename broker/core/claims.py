"""Claims: who may put the messages of an Idempotency-Key, and where the claims of the last day are. Pure.

For: the rule by which the log's order decides, the ids of claimed messages, and an index of 16 bytes a claim.
Not for: reading the log (broker/kafka/claims.py), what is done with a claim (broker/commands/idempotency.py).
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
CLAIMS_MAX: Final = 8_000_000  # The index holds this many claims of the last day, 16 bytes each.
FEW: Final = 10_000
# Later claims keep the same ids for this time, because a message is searched from its id's time on.
IDS_KEPT_MS: Final = 60_000
CLOCKS_MS: Final = 10_000  # The clocks of two API processes may differ by this much.
_RUN_MAX: Final = 1 << 16
_RUN_MS_MAX: Final = 3600 * 1000
_OFFSET_BITS: Final = 48
_PREFIX_BYTES: Final = 4


class Claim(NamedTuple):
    """An idempotency key that is taken.

    first: the claim of the first request.
    holder: the claim that may put the messages now.
    ids: the claims that the messages' ids may come from, oldest first; the holder's is the last.
    """

    first: PutClaimed
    holder: PutClaimed
    ids: tuple[PutClaimed, ...]


def decide(claims: Sequence[PutClaimed], at_ms: int) -> Claim | None:
    """Return the claim that holds an idempotency key at this time, or None when the key is free.

    claims: all claims of the key, in log order. The first one holds for a day. If its messages were not put in time,
        the first claim of the next number holds.
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
    """Return the random bits for the id of the request's message of this number. They are the same for each process
    that puts it.
    """
    return int.from_bytes(hashlib.sha256(f"{claim.ids_seed}.{number}".encode()).digest()[:8])


def has_room(mine: int, all_of_them: int, *, claims_max: int = CLAIMS_MAX, few: int = FEW) -> bool:
    """Return whether an organization with `mine` of all claims may have one more.

    It may have no more than are free, so an organization that comes later finds room, too. The last quarter is reserved
    for organizations with few claims.
    """
    free = claims_max - all_of_them
    return mine < free - claims_max // 4 or mine < min(free, few)


class _Owners:
    """A table of how many claims each organization has. A number stands for each organization, and is reused once its
    claims are gone.
    """

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}
        self._names: list[str] = []
        self._counts: list[int] = []
        self._free: list[int] = []

    def add(self, owner: str) -> int:
        """Count one more idempotency claim of an organization. Return a number that stands for the owner."""
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
        """Count one claim less for each occurrence of a number."""
        for number, count in Counter(numbers).items():
            self._counts[number] -= count
            if not self._counts[number]:
                del self._numbers[self._names[number]]
                self._free.append(number)

    def count(self, owner: str) -> int:
        number = self._numbers.get(owner)
        return 0 if number is None else self._counts[number]


class _Run(NamedTuple):
    """A sorted run of claims. Claims with the same prefix keep their order. until_ms: the time of the newest claim."""

    prefixes: array[int]
    places: array[int]
    owners: array[int]
    until_ms: int


class ClaimIndex:
    """An index from an idempotency key to the places of its claims in the log.

    It holds the first 4 bytes of each digest, so a look-up may return other keys' claims, too. New claims are gathered
    and then sorted into a run. Runs are dropped as a whole once they are old.

    run_max: the claims of a run.
    """

    def __init__(self, run_max: int = _RUN_MAX) -> None:
        self._run_max = run_max
        self.runs: list[_Run] = []
        self._owners = _Owners()
        self._since_ms = self._until_ms = 0  # of the recent ones
        self._begin()

    def __len__(self) -> int:
        return len(self._recent.places) + sum(len(run.places) for run in self.runs)

    def count(self, owner: str) -> int:
        """Count this organization's claims."""
        return self._owners.count(owner)

    def add(self, digest: bytes, partition: int, offset: int, at_ms: int, owner: str) -> None:
        """Add a claim, in log order of its partition. owner: the id of its organization."""
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
        """List (partition, offset) of the claims that may belong to this key, in log order for each partition."""
        return [(place >> _OFFSET_BITS, place & (1 << _OFFSET_BITS) - 1) for place in self._places(_prefix(digest))]

    def forget(self, before_ms: int) -> None:
        """Drop the runs that hold only older claims."""
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
        """Begin a new run.

        latest: by prefix, the newest row; before: by row, the row before it with the same prefix.
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
