"""Reads the whole log again, and tells what is inconsistent.

For: the order of reading topics, partitions and cursors, which avoids false findings while the log is being written.
Not for: the rules (broker/core/checks.py), how findings are shown (cli/commands/verify.py).

The ends of `messages` are read first, so that `control` has the queues of all messages before these ends. A worker
records the outcome of a delivery before its cursor passes it, so cursors are read before outcomes. Outcomes may name
messages and listeners that are newer than what was read. These are looked up last.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Callable, Collection, Iterator
from typing import NamedTuple

from broker.core.checks import Checks, ControlChecks, Finding, MessageChecks, ReadableChecks
from broker.core.codec import decode
from broker.core.digests import digests, state_hash
from broker.core.events import ListenerCreated, ReplayStarted
from broker.core.outcome_checks import OutcomeChecks, noun_of, unaccounted
from broker.errors import LogDamaged, UnknownEvent
from broker.kafka.cursors import KafkaCursors
from broker.kafka.outstanding_sums import incomplete_copies
from broker.kafka.requests import KafkaRequests
from broker.kafka.scan import scan
from broker.kafka.topics import Topic, Topics, workers_group
from broker.ports import EARLIEST, LATEST, FetchResult, OffsetTooOld
from broker.settings import KafkaSettings


class State(NamedTuple):
    """A hash of the directory (all accounts, queues, listeners and so on) after the events before the offset `position`
    of the topic `control`. `digests` has checksums of the fields of each account, queue and so on. These checksums show
    in which field two directories differ.
    """

    position: int
    sha256: str
    digests: dict[str, str]


class Verifier:
    """The check of Everput's whole log, for `everput verify`.

    The check calls `read` with the number of offsets that it has just read, so that the caller can show progress. After
    findings() has ended, `control.state` is the directory: all accounts, queues, listeners and so on.
    """

    def __init__(
        self, kafka: KafkaSettings, requests: KafkaRequests, table: Topics, read: Callable[[int], None]
    ) -> None:
        self._requests = requests
        self._cursors = KafkaCursors(kafka, requests)
        self._read = read
        self._topics = {
            "control": table.control,
            "messages": table.messages,
            "outstanding": table.outstanding,
            "changes": table.changes,
            "deliveries": table.deliveries,
        }
        self._claims_topic = table.claims
        self._workers_group = workers_group(kafka)
        self.control = ControlChecks(0)
        self._damage: list[LogDamaged] = []  # unreadable ranges, not reported yet

    async def size(self) -> int:
        """Return the approximate number of offsets that findings() reads. Raises LogUnavailable if Kafka does not
        answer.
        """
        size = 0
        for topic in (*self._topics.values(), self._claims_topic):
            begins, ends = await self._bounds(topic)
            size += sum(ends) - sum(begins)
        return size

    async def findings(self, positions: Collection[int] = ()) -> AsyncGenerator[Finding | State, None]:
        """Check the log, and yield a Finding for each error, and for each part of the log that can't be checked.
        `positions` has offsets of the topic `control`: at each of these offsets, also yield a State (a hash of the
        directory). Raises LogUnavailable if Kafka does not answer.
        """
        messages = await self._bounds(self._topics["messages"])
        for name, topic in self._topics.items():
            for number, begin in enumerate((await self._bounds(topic))[0]):
                if begin > 0 and name != "outstanding":
                    what = f"the first record has offset {begin}: earlier records can't be checked"
                    yield Finding(name, number, None, what, wrong=False)
        async for one in self._fold_control(positions):
            yield one
        async for finding in self._claims():
            yield finding
        strangers: dict[str, Finding] = {}
        for number, (begin, end) in enumerate(zip(*messages, strict=True)):
            async for finding in self._partition(number, begin, end, strangers):
                yield finding
        if strangers:
            since = await self._receivers_since(self.control.end)
            for finding in (finding for one, finding in strangers.items() if one not in since):
                yield finding
        for topic in (*self._topics.values(), self._claims_topic):
            for number, (begin, end) in enumerate(zip(*await self._bounds(topic), strict=True)):
                with contextlib.suppress(LogDamaged):  # The unreadable range is already reported.
                    if topic is not self._topics["outstanding"]:
                        await self._requests.check_copies(topic.name, number, begin, end)
                        continue
                    for node in await incomplete_copies(self._requests, number):
                        what = f"the copy on broker {node} lacks deliveries that the partition's worker has noted"
                        yield Finding("outstanding", number, None, what)
        for topic_name, partition, offset, node in self._requests.bad_copies:
            what = f"the copy on broker {node} is damaged or incomplete; another broker has a good copy"
            yield Finding(topic_name, partition, offset, what)

    async def _fold_control(self, positions: Collection[int]) -> AsyncGenerator[Finding | State, None]:
        topic = self._topics["control"]
        ((begin,), (end,)) = await self._bounds(topic)
        self.control = checks = ControlChecks(begin)
        if begin in positions:
            yield State(begin, state_hash(checks.state), digests(checks.state))
        async for fetched in self._scan(topic, 0, begin, end):
            for finding in self._damaged(checks):
                yield finding
            for record in fetched.records:
                for finding in checks.check([record]):
                    yield finding
                if record.offset + 1 in positions:
                    yield State(record.offset + 1, state_hash(checks.state), digests(checks.state))
        for finding in (*self._damaged(checks), *checks.ended(end)):
            yield finding

    def _damaged(self, checks: Checks) -> Iterator[Finding]:
        """Yield findings about the unreadable ranges of the log that were found since the previous call."""
        while self._damage:
            one = self._damage.pop(0)
            yield checks.damaged(one.first, one.last)

    async def _claims(self) -> AsyncGenerator[Finding, None]:
        """Check that all records of the topic `claims` are readable. Their content is not checked, because no other
        topic refers to claims.
        """
        topic = self._claims_topic
        begins, ends = await self._bounds(topic)
        for number, (begin, end) in enumerate(zip(begins, ends, strict=True)):
            checks = ReadableChecks("claims", number, begin)
            async for fetched in self._scan(topic, number, begin, end):
                for finding in self._damaged(checks):
                    yield finding
                for record in fetched.records:
                    if not record.value:
                        yield checks.lost(record.offset)
            for finding in self._damaged(checks):
                yield finding

    async def _partition(
        self, number: int, begin: int, end: int, strangers: dict[str, Finding]
    ) -> AsyncGenerator[Finding, None]:
        listeners = self.control.state.listeners  # including running replays
        cursors = await self._cursors.load(listeners, [number])
        topic = self._topics["messages"]
        latest = (await self._requests.offsets(topic.name, {number: LATEST}))[number]
        messages = MessageChecks(number, begin, self.control.queues)
        async for finding in self._checked(messages, topic, begin, end):
            yield finding
        others: list[OutcomeChecks] = []
        for name in ("outstanding", "changes", "deliveries"):
            ((first,), (last,)) = await self._bounds(self._topics[name], number)
            changes = others[-1] if others else None
            checks = OutcomeChecks(name, messages, first, self.control.receivers, changes=changes)
            async for finding in self._checked(checks, self._topics[name], first, last):
                yield finding
            others.append(checks)
            for one, finding in checks.strangers.items():
                strangers.setdefault(one, finding)
        if any(checks.may_be_unseen() for checks in others):
            end = (await self._requests.offsets(topic.name, {number: LATEST}))[number]
            async for finding in self._checked(messages, topic, messages.end, end):
                # Report no errors in new messages here: their queues may be newer than this check's read of `control`.
                # The next run of `everput verify` checks the new messages again, and reports their errors.
                if not finding.wrong:
                    yield finding
            for checks in others:
                for finding in checks.unseen():
                    yield finding
        for finding in await self._lost_ends(number, latest):
            yield finding
        named, who = self.control.named.get(number, (0, ""))
        if named > latest:
            yield Finding("messages", number, None, f"the {who} names offset {named}, after the end of the topic")
        # Retention may have deleted messages during this check, while Kafka still has records about their deliveries.
        # Read the topic's first offset again: a message below this offset is not missing, but was deleted by retention.
        messages.begin = max(messages.begin, (await self._requests.offsets(topic.name, {number: EARLIEST}))[number])
        for listener in listeners.values():
            cursor = cursors[listener.id].get(number)
            place = listener.start_offsets[number] if cursor is None else cursor.top
            if place > latest:
                yield Finding(
                    "messages",
                    number,
                    None,
                    f"the cursor of the {noun_of(listener)} {listener.id} is at {place}, after the end of the topic",
                )
            lowest = place if cursor is None else cursor.offset
            if lowest < begin and listener.replay is None:
                what = (
                    f"the log begins at offset {begin}, "
                    f"but the listener {listener.id} has settled nothing from {lowest} on"
                )
                yield Finding("messages", number, None, what)
            for finding in unaccounted(listener, cursor, messages, others):
                yield finding

    async def _lost_ends(self, number: int, latest: int) -> list[Finding]:
        """Return a finding if workers have committed an offset beyond the end of this partition of `messages`, because
        Kafka has then lost messages. Otherwise return an empty list.
        """
        topic = self._topics["messages"].name
        rows = await self._requests.groups.committed(self._workers_group, topic, [number])
        tail = rows.get(number, (0, ""))[0]
        if (
            tail > latest
        ):  # New messages may have moved the partition's end since it was read, so read the end offset again.
            latest = (await self._requests.offsets(topic, {number: LATEST}))[number]
        if tail <= latest:
            return []
        return [Finding("messages", number, None, f"the workers have read to offset {tail}, after the end at {latest}")]

    async def _checked(self, checks: Checks, topic: Topic, begin: int, end: int) -> AsyncGenerator[Finding, None]:
        """Check a partition from the offset `begin` to the offset `end`, and yield the findings.

        For the topic `outstanding`, read on to its current end. If a delivery has a newer record after `end`, Kafka's
        compaction may have removed the delivery's record before `end`.
        """
        while True:
            reached = end
            try:
                async for fetched in self._scan(topic, checks.partition, begin, end):
                    for finding in self._damaged(checks):
                        yield finding
                    reached = fetched.end_offset
                    for finding in checks.check(fetched.records):
                        yield finding
            except OffsetTooOld:
                begin = (await self._requests.offsets(topic.name, {checks.partition: EARLIEST}))[checks.partition]
                checks.skip_to(begin)
                what = f"the records before offset {begin} were deleted during the check"
                yield Finding(checks.topic, checks.partition, None, what, wrong=False)
                continue
            if checks.topic != "outstanding" or reached <= end:
                break
            begin, end = end, reached
        for finding in (*self._damaged(checks), *checks.ended(end)):
            yield finding

    async def _receivers_since(self, begin: int) -> set[str]:
        """Return the ids of the listeners and replays that were created at or after the offset `begin` of `control`."""
        topic = self._topics["control"]
        ((_,), (end,)) = await self._bounds(topic)
        found: set[str] = set()
        async for fetched in scan(self._requests, topic.name, 0, begin, end, ahead=True):
            for record in fetched.records:
                with contextlib.suppress(UnknownEvent):
                    event = decode(record.value or b"")
                    if isinstance(event, ListenerCreated):
                        found.add(event.listener_id)
                    elif isinstance(event, ReplayStarted):
                        found.add(event.replay_id)
        return found

    async def _scan(self, topic: Topic, partition: int, at: int, end: int) -> AsyncGenerator[FetchResult, None]:
        async for fetched in scan(
            self._requests, topic.name, partition, at, end, damaged=self._damage.append, ahead=True
        ):
            self._read(min(fetched.next_offset, end) - at)
            at = fetched.next_offset
            yield fetched

    async def _bounds(self, topic: Topic, partition: int | None = None) -> tuple[list[int], list[int]]:
        """Return the first offset and the end offset of each partition of a topic."""
        wanted = range(topic.partitions) if partition is None else [partition]
        begins = await self._requests.offsets(topic.name, dict.fromkeys(wanted, EARLIEST))
        ends = await self._requests.offsets(topic.name, dict.fromkeys(wanted, LATEST))
        return [begins[number] for number in wanted], [ends[number] for number in wanted]
