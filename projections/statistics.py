"""The Faust app that divides the counting of statistics among the workers' processes.

For: a Faust agent over `messages` and `deliveries`, whose consumer group gives each process some of the partitions, and
restarting it when it fails, because deliveries must continue. Not for: what is counted (broker/core/statistics.py),
reading and writing topics (broker/kafka/counting.py).

An event of this stream is a batch of records, because a Faust event costs about 60 µs, and a record that is read in a
batch 1 to 5 µs. So the consumer below fetches with the project's own batched reads, which also skip damaged records.
Faust does the membership, the assignment, the buffers and the agent. The stream is `noack`, and nothing is committed:
the records of `statistics` name the offsets that they cover, and counting continues there after a rebalance.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, Final

from faust.contrib.asgi import bind_to_running_loop
from faust.transport.drivers import aiokafka as driver
from faust.types import TP
from faust.types.tuples import ConsumerMessage

from broker.core.statistics import Lane
from broker.errors import LogUnavailable
from broker.kafka.counting import SOURCES, Counting, UncountedBatch
from broker.kafka.log import KafkaLog
from broker.kafka.reachability import reachable
from broker.kafka.topics import by_name, topics
from broker.settings import KafkaSettings
from projections.app import faust_app

log = logging.getLogger(__name__)

# If the statistics reader has nothing more to read, it pauses for 2 s: a few large reads take less work than many.
_IDLE_S: Final = 2.0
# If the statistics reader is behind, it pauses after each read for twice the read's duration: deliveries come first.
_DUTY: Final = 2.0
# aiokafka's consumer leaves its group if it is not polled for this time. Everput never polls it, so set ten years.
_NEVER_S: Final = 10 * 365 * 24 * 3600.0
_AGAIN_S: Final = 10.0  # pause after a failure
# If two rebalances follow each other quickly, Faust's consumer may stop asking for records forever.
# If Faust's consumer asks for no records for 60 s, Everput restarts the Faust app.
_STALLED_S: Final = 60.0
_LAST_WRITE_S: Final = 2.0
_STOP_S: Final = 3.0


class Statistics:
    """The counting of statistics in the partitions that this process owns in its consumer group."""

    def __init__(self, kafka: KafkaSettings, log: KafkaLog) -> None:
        self._kafka = kafka
        self._topics = {by_name(topics(kafka))[source].name: source for source in SOURCES}
        self.counting = Counting(kafka, log.requests, log.statistics)
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Start a background task that joins the consumer group and counts the statistics."""
        self._task = asyncio.create_task(self._run(), name="statistics")

    async def stop(self) -> None:
        """Leave the consumer group. Then try for two seconds to store the newest counts in Kafka.

        If the counts of some records can't be stored, no count is lost: the next process that gets the records'
        partition counts them again.
        """
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        with contextlib.suppress(LogUnavailable, TimeoutError):
            async with asyncio.timeout(_LAST_WRITE_S):
                await self.counting.write()

    async def _run(self) -> None:
        while True:
            try:
                await self._run_app()
            except Exception as error:  # noqa: BLE001 - Restart after any error of Faust.
                log.warning("statistics.failed again_s=%s error=%r", _AGAIN_S, error)
            await asyncio.sleep(_AGAIN_S)

    async def _run_app(self) -> None:
        """Run a Faust app until it ends, a batch can't be counted, or Faust asks for no records for _STALLED_S seconds.
        Then stop the app, and raise the error that was the reason.
        """
        group = f"{self._kafka.topic_prefix}statistics"
        app = faust_app(await reachable(self._kafka), group, broker_max_poll_interval=_NEVER_S)
        feed = _Feed(self.counting, self._topics)
        app.transport = _Transport(app.conf.broker_consumer, app, feed=feed)
        source = app.topic(*self._topics, key_serializer="raw", value_serializer="raw", value_type=bytes)
        app.agent(source, name="statistics")(_fold(self.counting, feed.failed))
        try:
            bind_to_running_loop(app)
            app.finalize()
            await app.start()
            ended = asyncio.ensure_future(app.wait_for_stopped(asyncio.get_running_loop().create_future()))
            try:
                ending = {ended, feed.broken}
                while not (await asyncio.wait(ending, timeout=_STALLED_S, return_when=asyncio.FIRST_COMPLETED))[0]:
                    if self.counting.lanes and time.monotonic() - feed.asked_s > _STALLED_S:
                        raise RuntimeError(
                            f"Faust, which counts the statistics, has asked for no records for {_STALLED_S:g} s, so it "
                            "is restarted"
                        )
            finally:
                ended.cancel()
            raise app.crash_reason or (feed.broken.result() if feed.broken.done() else RuntimeError("Faust stopped"))
        finally:
            stopping = asyncio.ensure_future(app.stop())
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait([stopping], timeout=_STOP_S)
            stopping.cancel()


def _fold(counting: Counting, failed: Callable[[BaseException], None]) -> Callable[[Any], Awaitable[None]]:
    """Return the Faust agent that counts the statistics. If a batch of records can't be counted, the agent calls
    `failed`, which must make the Faust app start again.
    """

    async def statistics(stream: Any) -> None:
        async for event in stream.noack().events():
            try:
                counting.fold(event.message.batch)
            except Exception as error:
                log.exception("statistics.fold_failed lane=%s begin=%d", *event.message.batch[:2])
                failed(error)

    return statistics


class _Feed:
    """The source from which the Faust consumer gets its messages. It reads batches of records from the partitions that
    the consumer group has assigned to this process.
    """

    def __init__(self, counting: Counting, names: Mapping[str, str]) -> None:
        self._counting = counting
        self._names = names
        self._topics = {source: name for name, source in names.items()}
        self.broken: asyncio.Future[BaseException] = asyncio.get_running_loop().create_future()
        self.asked_s = time.monotonic()  # when Faust last asked for records

    def failed(self, error: BaseException) -> None:
        if not self.broken.done():
            self.broken.set_result(error)

    async def fetch(self, active: Iterable[TP]) -> dict[TP, list[UncountedBatch]]:
        """Read new batches of records from the partitions `active`, pause, and return the batches by partition. If
        there are no new records, or if Kafka does not answer, return an empty dict after the pause.

        Before the read, write the counts to Kafka if they are due.
        """
        counting, self.asked_s = self._counting, time.monotonic()
        lanes = frozenset(Lane(self._names[tp.topic], tp.partition) for tp in active)
        try:
            if lanes != counting.lanes:
                await counting.assign(lanes)
                log.info("statistics.assigned lanes=%d", len(lanes))
            await counting.write_if_due()
            began = time.monotonic()
            batches = await counting.read()
            await asyncio.sleep(_DUTY * (time.monotonic() - began) if batches and counting.behind else _IDLE_S)
        except LogUnavailable as error:
            log.warning("statistics.waiting error=%s", error)
            await asyncio.sleep(_IDLE_S)
            return {}
        return {TP(self._topics[batch.lane.topic], batch.lane.partition): [batch] for batch in batches}

    def again(self) -> None:
        """Forget the batches of records that were fetched but not counted yet. The next fetch() fetches them again."""
        self._counting.forget_reads()


class _Message(ConsumerMessage):  # type: ignore[misc]
    """The Kafka message type of Faust with one more field, `batch`. The field holds a whole batch of Kafka records,
    which Faust then handles as one message.
    """

    __slots__ = ("batch",)


class _Listener(driver.ConsumerRebalanceListener):  # type: ignore[misc]
    async def on_partitions_assigned(self, assigned: Any) -> None:
        """Pause aiokafka's fetching from the assigned partitions, because Everput reads these partitions with its own
        fetch().
        """
        self._thread._ensure_consumer().pause(*assigned)  # noqa: SLF001 - Faust has no public method.
        await super().on_partitions_assigned(assigned)


class _Consumer(driver.Consumer):  # type: ignore[misc]
    RebalanceListener = _Listener

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._serial = itertools.count()

    async def _getmany(self, active_partitions: set[TP] | None, timeout: float) -> Any:  # noqa: ASYNC109, ARG002 - Faust's
        return await self.transport.feed.fetch(active_partitions or ())

    def _to_message(self, tp: TP, record: UncountedBatch) -> _Message:
        """Return a batch of records as a message for Faust. The message's offset is a new serial number, because a
        batch can be read again, such as after a rebalance. With its offset in Kafka, Faust would drop the batch the
        second time.
        """
        generation = self.app.consumer_generation_id  # Faust drops records of other generations.
        message = _Message(
            tp.topic, tp.partition, next(self._serial), 0.0, 0, None, None, None, None, tp=tp, generation_id=generation
        )
        message.batch = record
        return message

    async def seek_to_committed(self) -> Mapping[TP, int]:
        """Forget the batches of records that are not counted yet, and return no offsets. Faust calls this method after
        each rebalance to continue at committed offsets. This consumer group commits none, because the topic
        `statistics` says where counting continues.
        """
        self.transport.feed.again()
        return {}

    def highwater(self, tp: TP) -> int:  # noqa: ARG002 - Faust's
        return 0  # Only Faust's monitor uses this number.

    def verify_event_path(self, now: float, tp: TP) -> None:
        """Do nothing. Faust's own method would warn that aiokafka fetches no records. This is intended here: _Feed
        fetches the records instead.
        """


_Consumer.logger = driver.logger  # log errors only, as Faust does


class _Transport(driver.Transport):  # type: ignore[misc]
    Consumer = _Consumer

    def __init__(self, *args: Any, feed: _Feed, **options: Any) -> None:
        super().__init__(*args, **options)
        self.feed = feed
