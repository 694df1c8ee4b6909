"""The answers to one listener's failed attempts, kept so that people can see why an attempt failed.

For: which answers are kept, in full or by reference, until the next checkpoint writes them (`answers.kept`). They are
bounded for each listener and minute; what is beyond the bounds is not kept. Only failed attempts come here, so an
attempt that succeeds costs nothing. Not for: parsing an answer (broker/outbound/answer.py), reading what was kept
(broker/kafka/answers.py).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Final

import orjson

from broker.clock import now_ms
from broker.core.catalogue import masked_url, shown_url
from broker.core.entities import Listener
from broker.core.events import AnsweredAttempt, AnswersKept, KeptAnswer
from broker.delivery.dispatch.stream import Attempt
from broker.outbound.answer import hidden, read_answer, secrets_of
from broker.outbound.connection import KEPT_BYTES_MAX, REUSED, Connection, Times
from broker.outbound.request import Opened, shown_headers

# Usually, a worker stores at most this many different HTTP answers of one listener in a minute.
# After a rebalance or a change of the listener, a worker counts stored and parsed HTTP answers from 0 again.
ANSWERS_MAX: Final = 20
BYTES_MAX: Final = 64 << 10  # A worker stores at most this many bytes of one listener's HTTP answers in a minute.
# Usually, a worker parses at most this many different HTTP answers of one listener in a minute.
PARSED_MAX: Final = 100
# Between two checkpoints, a worker keeps answers to at most this many attempts for each listener and partition.
ROWS_MAX: Final = 5_000
_MINUTE_MS: Final = 60_000
_ID_DIGITS: Final = 16
_CHANGES: Final = frozenset(("date", "age", "x-request-id"))  # headers that comparisons ignore

# A stored HTTP answer: its id, the partition of its record, and the time when it was stored
_Found = tuple[str, int, int]


class KeptAnswers:
    """The answers of one listener to failed attempts. Within limits, the answers are kept until a checkpoint writes
    them.
    """

    __slots__ = (
        "_answers",
        "_attempts",
        "_bytes",
        "_kept",
        "_parsed",
        "_request",
        "_secrets",
        "_since_ms",
        "_touch",
        "_url",
    )

    def __init__(self, touch: Callable[[int], bool]) -> None:
        # Usually, `touch(partition)` asks for a checkpoint of the partition soon, and returns True.
        # `touch(partition)` returns False if this worker does not deliver the partition's messages to the listener.
        self._touch = touch
        self._attempts: dict[int, list[AnsweredAttempt]] = {}  # by partition, not written yet
        self._answers: dict[int, list[KeptAnswer]] = {}
        self._since_ms = 0  # The minute to which the limits on stored HTTP answers apply began at this time.
        self._bytes = 0
        self._kept: dict[str, _Found] = {}  # by the answer's id
        # Maps the hash of each HTTP answer that was parsed in this minute to its stored copy.
        # An HTTP answer that was parsed, but is not stored, has the value None in this dict.
        self._parsed: dict[int, _Found | None] = {}

    def update(self, listener: Listener, opened: Opened) -> None:
        """Set the request headers and the URL that are stored with answers, from the listener's settings."""
        self._request = shown_headers(opened)
        self._secrets = secrets_of(value for _, value in opened.headers)
        self._url = hidden(masked_url(shown_url(listener.notify_url)), self._secrets)
        # Forget the stored answers, because their requests had the former settings.
        self._kept.clear()
        self._parsed.clear()

    def unanswered(self, attempts: Sequence[Attempt], times: Times) -> None:
        """Record how long the DNS look-up, connecting and the TLS handshake took for an attempt without an answer. Do
        nothing if the attempt used a connection that was open before. `attempts` has the attempt of each message in the
        request.
        """
        if times != REUSED:
            for partition, offset, number in attempts:
                if self._admits(partition):
                    self._attempts[partition].append((offset, number, "", 0, 0, *times))

    def answered(self, attempts: Sequence[Attempt], connection: Connection) -> None:
        """Call this when the status of an answer has arrived. When the answer or its connection has ended, the answer's
        beginning is kept for the next checkpoint, within the limits. `attempts` has the attempt of each message in the
        request.
        """
        times = connection.times if connection.used == 0 else REUSED
        connection.keep(lambda raw: self._ended(attempts, times, raw))

    def refused(self, attempts: Sequence[Attempt], raw: bytes) -> None:
        """Keep the listener's answer to a batch for the next checkpoint: the answer rejects the messages of these
        attempts. `raw` has the bytes of the answer, from its status line on.
        """
        self._ended(attempts, REUSED, raw[:KEPT_BYTES_MAX])

    def _ended(self, attempts: Sequence[Attempt], times: Times, raw: bytes) -> None:
        found, sought = None, False
        for partition, offset, number in attempts:
            if not self._admits(partition):
                continue
            # Keep the answer only if the attempt is kept, because the same event stores the attempt and the answer.
            if not sought:
                found, sought = self._find(partition, raw), True
            if found is not None or times != REUSED:
                self._attempts[partition].append((offset, number, *(found or ("", 0, 0)), *times))

    def _admits(self, partition: int) -> bool:
        """Return whether one more attempt of this partition can be kept until the next checkpoint writes it. Return
        False if too many attempts are kept already, or if this worker does not deliver the partition's messages to the
        listener.
        """
        attempts = self._attempts.setdefault(partition, [])
        return len(attempts) < ROWS_MAX and self._touch(partition)

    def _find(self, partition: int, raw: bytes) -> _Found | None:
        """Return the id, the partition and the time of the stored copy of this HTTP answer. If there is no copy, keep
        one for the next checkpoint to store. Return None if too many answers, or too many bytes of them, were parsed or
        stored in this minute.
        """
        at_ms = now_ms()
        if at_ms - self._since_ms >= _MINUTE_MS or at_ms < self._since_ms:
            self._since_ms, self._bytes = at_ms, 0
            self._kept.clear()
            self._parsed.clear()
        key = hash(raw)
        if key in self._parsed:
            return self._parsed[key]
        if len(self._parsed) >= PARSED_MAX:
            return None
        found = self._parsed[key] = self._keep(partition, raw, at_ms)
        return found

    def _keep(self, partition: int, raw: bytes, at_ms: int) -> _Found | None:
        answer = read_answer(raw, self._secrets)
        same = [one for one in answer.headers if one[0].lower() not in _CHANGES]
        text = orjson.dumps([answer.status, same, answer.body, self._url, self._request])
        answer_id = hashlib.sha256(text).hexdigest()[:_ID_DIGITS]
        found = self._kept.get(answer_id)
        if found is None and len(self._kept) < ANSWERS_MAX and self._bytes + len(text) <= BYTES_MAX:
            self._bytes += len(text)
            found = self._kept[answer_id] = answer_id, partition, at_ms
            kept = (answer_id, answer.status, answer.headers, answer.body, answer.cut, self._url, self._request)
            self._answers.setdefault(partition, []).append(kept)
        return found

    def forget(self, partition: int) -> None:
        """Drop the HTTP answers and connection times of a partition that are not written to Kafka yet, because the
        worker stops delivery of its messages to the listener.
        """
        self._attempts.pop(partition, None)
        self._answers.pop(partition, None)
        self._kept.clear()
        self._parsed.clear()

    def take(self, listener: Listener, partition: int, at_ms: int) -> list[AnswersKept]:
        """Remove and return what a checkpoint must write for this partition: the kept HTTP answers and connection times
        of failed attempts. The result is a list with one event, or an empty list if nothing was kept.
        """
        attempts = self._attempts.pop(partition, None)
        if not attempts:
            return []
        return [
            AnswersKept(
                at_ms=at_ms,
                organization_id=listener.organization_id,
                actor="worker",
                listener_id=listener.id,
                queue_id=listener.queue_id,
                partition=partition,
                attempts=tuple(attempts),
                answers=tuple(self._answers.pop(partition, ())),
            )
        ]
