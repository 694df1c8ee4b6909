"""Claims: who may put the messages of an Idempotency-Key, and where the claims of the last day are. Pure.

For: the rule by which the log's order decides, the ids of claimed messages, and an index of 16 bytes a claim.
Not for: reading the log (broker/kafka/claims.py), what is done with a claim (broker/idempotency.py).
"""

from __future__ import annotations

import hashlib
from array import array
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from broker.core.events import PutClaimed

KEPT_MS: Final = 24 * 3600 * 1000
IDS_KEPT_MS: Final = 60_000  # how long the claims after it have its ids: a message is looked for from its id's time on
CLOCKS_MS: Final = 10_000  # by how much the clocks of two API processes may differ
_RUN_MAX: Final = 1 << 16
_RUN_MS_MAX: Final = 3600 * 1000
_OFFSET_BITS: Final = 48
_PREFIX_BYTES: Final = 8


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


class ClaimIndex:
    """Where in the log each key's claims are, by the first 8 bytes of its digest: there may be others among them.

    Claims are gathered in a dict and then, sorted, in two arrays: a run. Runs that have become old go as a whole.
    """

    def __init__(self) -> None:
        self._recent: dict[int, list[int]] = {}
        self._recent_count = 0
        self._recent_since_ms = 0
        self._recent_until_ms = 0
        self._runs: list[tuple[array[int], array[int], int]] = []  # prefixes, places, the newest claim's time

    def __len__(self) -> int:
        return self._recent_count + sum(len(prefixes) for prefixes, _, _ in self._runs)

    def add(self, digest: bytes, partition: int, offset: int, at_ms: int) -> None:
        """A claim, as it comes in the log of its partition."""
        full = self._recent_count >= _RUN_MAX or at_ms - self._recent_since_ms >= _RUN_MS_MAX
        if self._recent and full:
            self._close_run()
        if not self._recent:
            self._recent_since_ms = self._recent_until_ms = at_ms
        self._recent_until_ms = max(self._recent_until_ms, at_ms)
        self._recent.setdefault(_prefix(digest), []).append(partition << _OFFSET_BITS | offset)
        self._recent_count += 1

    def places(self, digest: bytes) -> list[tuple[int, int]]:
        """(partition, offset) of the claims that may be this key's, those of one partition in log order."""
        return [(place >> _OFFSET_BITS, place & (1 << _OFFSET_BITS) - 1) for place in self._places(_prefix(digest))]

    def forget(self, before_ms: int) -> None:
        """Drop what is older, as far as whole runs are."""
        if self._recent and self._recent_until_ms < before_ms:
            self._close_run()
        self._runs = [run for run in self._runs if run[2] >= before_ms]

    def _places(self, prefix: int) -> Iterator[int]:
        for prefixes, places, _ in self._runs:
            at = bisect_left(prefixes, prefix)
            while at < len(prefixes) and prefixes[at] == prefix:
                yield places[at]
                at += 1
        yield from self._recent.get(prefix, ())

    def _close_run(self) -> None:
        rows = sorted((prefix, place) for prefix, places in self._recent.items() for place in places)
        prefixes, places = array("Q", (row[0] for row in rows)), array("Q", (row[1] for row in rows))
        self._runs.append((prefixes, places, self._recent_until_ms))
        self._recent = {}
        self._recent_count = 0


def _prefix(digest: bytes) -> int:
    return int.from_bytes(digest[:_PREFIX_BYTES])
