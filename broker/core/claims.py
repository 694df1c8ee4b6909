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
CLAIMS_MAX: Final = 8_000_000  # of the last day, 16 bytes each
FEW: Final = 10_000
IDS_KEPT_MS: Final = 60_000  # how long the claims after it have its ids: a message is looked for from its id's time on
CLOCKS_MS: Final = 10_000  # by how much the clocks of two API processes may differ
_RUN_MAX: Final = 1 << 16
_RUN_MS_MAX: Final = 3600 * 1000
_OFFSET_BITS: Final = 48
_PREFIX_BYTES: Final = 4


class Claim(NamedTuple):
    """A key that is taken. first: by whom, for what; holder: who may put its messages now.

    ids: the claims whose ids its messages may have, oldest first. The holder's is the last.
    """

    first: PutClaimed
    holder: PutClaimed
    ids: tuple[PutClaimed, ...]


def decide(claims: Sequence[PutClaimed], at_ms: int) -> Claim | None:
    """The claim that holds at this time, of all claims of one key in log order; None when the key is free.

    The first has it for a day. Where it did not bring its messages, whoever takes it over first has it next.
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
    """Of the id of the request's message of this number: the same for whoever puts it."""
    return int.from_bytes(hashlib.sha256(f"{claim.ids_seed}.{number}".encode()).digest()[:8])


def has_room(mine: int, all_of_them: int) -> bool:
    """Whether an organization that has so many claims may have one more, of so many that there are.

    No more than are still free: whoever comes later finds room, too. The last quarter is for those who have few.
    """
    free = CLAIMS_MAX - all_of_them
    return mine < free - CLAIMS_MAX // 4 or mine < min(free, FEW)


class _Owners:
    """How many claims each organization has. A number stands for it, and for another one when it has none any more."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}
        self._names: list[str] = []
        self._counts: list[int] = []
        self._free: list[int] = []

    def add(self, owner: str) -> int:
        """Its number; it has one claim more."""
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
        """One claim less for each time that a number is there."""
        for number, count in Counter(numbers).items():
            self._counts[number] -= count
            if not self._counts[number]:
                del self._numbers[self._names[number]]
                self._free.append(number)

    def count(self, owner: str) -> int:
        number = self._numbers.get(owner)
        return 0 if number is None else self._counts[number]


class _Run(NamedTuple):
    """Claims, sorted by prefix, those of one prefix as they came. until_ms: the newest claim's time."""

    prefixes: array[int]
    places: array[int]
    owners: array[int]
    until_ms: int


class ClaimIndex:
    """Where in the log each key's claims are, by the first 4 bytes of its digest: there may be others among them.

    Claims are gathered as they come and then, sorted, are a run. Runs that have become old go as a whole.
    """

    def __init__(self) -> None:
        self._runs: list[_Run] = []
        self._owners = _Owners()
        self._since_ms = self._until_ms = 0  # of the recent ones
        self._begin()

    def __len__(self) -> int:
        return len(self._recent.places) + sum(len(run.places) for run in self._runs)

    def count(self, owner: str) -> int:
        """How many are this organization's."""
        return self._owners.count(owner)

    def add(self, digest: bytes, partition: int, offset: int, at_ms: int, owner: str) -> None:
        """A claim, as it comes in the log of its partition. owner: the id of its organization."""
        recent = self._recent
        if recent.places and (len(recent.places) >= _RUN_MAX or at_ms - self._since_ms >= _RUN_MS_MAX):
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
        """(partition, offset) of the claims that may be this key's, those of one partition in log order."""
        return [(place >> _OFFSET_BITS, place & (1 << _OFFSET_BITS) - 1) for place in self._places(_prefix(digest))]

    def forget(self, before_ms: int) -> None:
        """Drop what is older, as far as whole runs are."""
        if self._recent.places and self._until_ms < before_ms:
            self._close_run()
        for run in self._runs:
            if run.until_ms < before_ms:
                self._owners.remove(run.owners)
        self._runs = [run for run in self._runs if run.until_ms >= before_ms]

    def _places(self, prefix: int) -> Iterator[int]:
        for prefixes, places, _, _ in self._runs:
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
        """latest: by prefix, the newest row of the recent ones; before: by row, the one before it of its prefix."""
        self._recent = _Run(array("I"), array("Q"), array("I"), 0)
        self._latest: dict[int, int] = {}
        self._before = array("i")

    def _close_run(self) -> None:
        prefixes, places, owners, _ = self._recent
        order = sorted(range(len(places)), key=prefixes.__getitem__)
        self._runs.append(
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
