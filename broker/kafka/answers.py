"""The stored answers to one message's failed attempts, read from the events `answers.kept` in the topic `deliveries`.

For: collecting references to answers while the message's partition is read, and then finding the answers. Not for:
which answers are stored (broker/delivery/dispatch/kept_answers.py).
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from dataclasses import replace
from typing import Final

from broker.core.codec import decode
from broker.core.events import AnsweredAttempt, AnswersKept, KeptAnswer
from broker.errors import UnknownEvent
from broker.kafka.requests import KafkaRequests
from broker.kafka.scan import scan
from broker.ports import Answer, Attempt
from broker.time_offsets import offsets_since

_READS_MAX: Final = 4  # reads of 1 MiB, per partition
_MARK: Final = b'"type":"answers.kept"'


class AnswersOfMessage:
    """The HTTP answers of some listeners to the failed attempts of one message, as Everput has stored them. First call
    collect() with each event `answers.kept` of the message's partition. Then call find() once. Then call of() for each
    attempt, which returns the attempt with its answer.
    """

    def __init__(self, offset: int, listener_ids: Collection[str]) -> None:
        self._offset = offset
        self._listener_ids = listener_ids
        self._attempts: dict[tuple[str, int], AnsweredAttempt] = {}  # by listener and number
        self._told: dict[tuple[str, str], KeptAnswer | None] = {}  # by listener and answer id

    def collect(self, event: AnswersKept) -> None:
        """Collect the message's failed attempts from an event, and the stored answers to these attempts."""
        if event.listener_id not in self._listener_ids:
            return
        for attempt in event.attempts:
            if attempt[0] == self._offset:
                self._attempts[event.listener_id, attempt[1]] = attempt
                if attempt[2]:
                    self._told.setdefault((event.listener_id, attempt[2]), None)
        self._tell(event)

    def _tell(self, event: AnswersKept) -> None:
        for answer in event.answers:
            if (event.listener_id, answer[0]) in self._told:
                self._told[event.listener_id, answer[0]] = answer

    def _missing(self) -> dict[int, int]:
        """Return the partitions that must be searched for stored HTTP answers, each with the time at which the search
        must begin.
        """
        since: dict[int, int] = {}
        for (listener_id, _), (_, _, answer_id, partition, at_ms, *_) in self._attempts.items():
            if answer_id and self._told[listener_id, answer_id] is None:
                since[partition] = min(at_ms, since.get(partition, at_ms))
        return since

    async def find(self, requests: KafkaRequests, topic: str) -> None:
        """Read the HTTP answers that collect() has not found. The event of each failed attempt says in which partition
        its answer was stored, and when. In each such partition, make at most four reads of 1 MiB, from the earliest
        time of a missing answer on. If these reads do not return an answer, of() returns the attempt without it.

        Raises LogUnavailable if Kafka does not answer.
        """
        since = self._missing()
        if since:
            begins = await offsets_since(requests, topic, since)
            await asyncio.gather(*(self._read(requests, topic, *begin) for begin in begins.items() if begin[1] >= 0))

    async def _read(self, requests: KafkaRequests, topic: str, partition: int, offset: int) -> None:
        async for fetched in scan(
            requests, topic, partition, offset, damaged=lambda _: None, reads_max=_READS_MAX, patience_s=None
        ):
            for record in fetched.records:
                if record.value is None or _MARK not in record.value[:64]:
                    continue
                try:
                    event = decode(record.value)
                except UnknownEvent:
                    continue
                if isinstance(event, AnswersKept):
                    self._tell(event)
            if partition not in self._missing():
                return

    def of(self, listener_id: str, attempt: Attempt) -> Attempt:
        """Return the attempt with the listener's stored answer, and with the durations of the DNS look-up, of
        connecting and of the TLS handshake. A value is None if it is not known, or if the attempt did not have this
        step.
        """
        found = self._attempts.get((listener_id, attempt.number))
        if found is None:
            return attempt
        answer_id, dns_ms, connect_ms, tls_ms = found[2], *found[5:]
        told = self._told.get((listener_id, answer_id))
        answer = None
        if told is not None:
            _, _, headers, body, cut, url, request_headers = told
            answer = Answer(headers=headers, body=body, cut=cut, url=url, request_headers=request_headers)
        return replace(attempt, dns_ms=dns_ms, connect_ms=connect_ms, tls_ms=tls_ms, answer=answer)
