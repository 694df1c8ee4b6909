"""The worker: owns a share of the partitions, and delivers their messages to the listeners of the messages' queues.

For: joining the consumer group, taking partitions over and handing them over at a rebalance, stopping.
Not for: which listeners exist (roster.py), the state of owned partitions (assignment.py), reading new messages
(reading/tail_loop.py), sending (dispatch/), wiring a process (cli/processes/worker.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from functools import partial
from random import random
from typing import TypeVar

from broker.clock import now_ms
from broker.core.directory import Directory
from broker.core.entities import Listener
from broker.delivery.assignment import Assignment, Shared
from broker.delivery.background import Background
from broker.delivery.changes.honour import Taken
from broker.delivery.checkpoint.metrics import Condition, Metrics, condition, waiting
from broker.delivery.dispatch.connections import Network
from broker.delivery.dispatch.dispatcher import Dispatcher
from broker.delivery.dispatch.fairness import Sockets
from broker.delivery.dispatch.limits import Priority
from broker.delivery.dispatch.liveness import Liveness
from broker.delivery.dispatch.ticks import Ticks
from broker.delivery.ports import Ports
from broker.delivery.positions import Positions, read_positions
from broker.delivery.reading.partition import Partition
from broker.delivery.reading.tail_loop import TailLoop
from broker.delivery.roster import Means, Roster
from broker.delivery.tuning import TUNED, Tuning
from broker.errors import LogUnavailable
from broker.outbound.addresses import Resolver
from broker.outbound.connection import tls_context
from broker.outbound.mail import Mailer
from broker.ports import Count, DirectoryView, Tracing
from broker.sealing import Sealer
from broker.settings import Settings

log = logging.getLogger(__name__)

T = TypeVar("T")


class Worker:
    """A worker. It owns some partitions of the topic `messages` and sends their messages to the listeners. A worker
    process has one object of this class.
    """

    def __init__(
        self,
        settings: Settings,
        kafka: Ports,
        view: DirectoryView,
        sealer: Sealer,
        count: Count | None = None,  # adds to an organization's stored bytes
        *,
        tuning: Tuning = TUNED,
        network: Network | None = None,  # for tests
        tracing: Tracing | None = None,
        dice: Callable[[], float] = random,  # for the jitter of retries
    ) -> None:
        self.kafka, self.tuning, self._view = kafka, tuning, view
        self.metrics = Metrics()
        self._background = Background()
        self._loaded = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        mailer = None if settings.smtp is None else Mailer(settings.smtp)
        network = network or Network(
            Resolver(settings.allow_networks, mailer=mailer), Sockets(tuning=tuning), tls_context(), tracing=tracing
        )
        self._liveness = Liveness(network.resolver, network.tls, dice, tuning)
        self.ticks = Ticks(self._liveness, tuning)
        means = Means(network, dice, tuning, self.ticks, self._background.run)
        self.roster = Roster(kafka, view, sealer, means)
        self.tail_loop = TailLoop(kafka.membership, self.roster, tuning)
        self._shared = Shared(
            kafka=kafka,
            view=view,
            dispatchers=self.roster.dispatchers,
            metrics=self.metrics,
            tuning=tuning,
            retain_s=settings.retain_messages_s,
            count=count,
            run=self._background.run,
            lost=self._no_member,
        )
        self._begin_assignment()  # without partitions

    def _begin_assignment(self) -> Assignment:
        """Make a new assignment the current one, and return it. It has no partitions yet."""
        self.assignment = self.roster.assignment = Assignment(self._shared)
        return self.assignment

    @property
    def dispatchers(self) -> Mapping[str, Dispatcher]:
        """The worker's dispatchers, by listener id. Each dispatcher sends the messages of one listener."""
        return self.roster.dispatchers

    @property
    def _directory(self) -> Directory:
        return self._view.state

    async def start(self) -> None:
        """Join the consumer group, and wait until delivery has begun in the partitions that Kafka assigns to this
        worker. If Kafka assigns none, there is nothing more to wait for.

        Raises LogUnavailable if Kafka can't be reached. If one of the worker's loops fails meanwhile, raises the error
        of the loop.
        """
        await self.join()
        loops = {
            "roster": self.roster.run(),
            "tail": self.tail_loop.run(),
            "ticks": self.ticks.run(self.roster.dispatchers),
        }
        self._tasks = [asyncio.create_task(loop, name=name) for name, loop in loops.items()]
        loaded, failed = asyncio.create_task(self._loaded.wait()), asyncio.create_task(self.failed())
        try:
            await asyncio.wait([loaded, failed], return_when=asyncio.FIRST_COMPLETED)
            if failed.done():
                await failed
        finally:
            loaded.cancel()
            failed.cancel()

    async def join(self) -> None:
        """Join the consumer group. Raises LogUnavailable if Kafka does not answer."""
        await self.kafka.membership.start(self._gained, self._given_up)

    async def failed(self) -> None:
        """Wait until one of the worker's loops or background tasks fails, and raise its error. The process must then
        end and be started again.
        """
        done, _ = await asyncio.wait([*self._tasks, self._background.failed], return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()

    async def stop(self) -> None:
        """Start no more attempts, wait a limited time for the attempts in flight, make a final checkpoint, and leave
        the consumer group.
        """
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.assignment.pause()
        try:
            await self._let_go(list(self.assignment.partitions), at_end=True)
        finally:  # Leave the consumer group even after an error, so that the other workers need not wait.
            self._background.cancel()
            await self._liveness.stop()
            await self.kafka.membership.stop()
            await self.kafka.changes.stop()
            for dispatcher in self.roster.dispatchers.values():
                dispatcher.close()

    def lag(self, listener_id: str) -> int | None:
        """Estimate how many messages wait for a listener in all partitions. This worker counts the messages in its own
        partitions, and assumes that the other partitions have as many on average. Messages in the topic `outstanding`
        do not count.

        Return None if this worker does not serve the listener, or owns no partitions.
        """
        dispatcher, assignment = self.roster.dispatchers.get(listener_id), self.assignment
        if dispatcher is None or not assignment.partitions:
            return None
        return round(waiting(dispatcher, assignment.partitions) / assignment.share.partitions)

    async def assure(self) -> None:
        """Confirm that this worker still owns its partitions. Raises LogUnavailable if that is not certain."""
        await self.assignment.fence.assure()

    async def condition(self) -> Condition:
        """Return the state of the worker and of its listeners, for the metrics."""
        assignment, roster = self.assignment, self.roster
        now = await condition(
            roster.dispatchers.values(),
            assignment.partitions,
            assignment.outstanding,
            at_once=self.tuning.conditions_at_once,
        )
        now.listeners["unusable"] = len(roster.unusable & self._directory.listeners.keys())
        return now

    # Ownership

    def _gained(self, partitions: Collection[int]) -> None:
        """Begin to take over the partitions that the consumer group has assigned to this worker. Before this call, the
        worker has handed over all its earlier partitions.
        """
        assignment = self._begin_assignment()
        self.metrics.gained += 1
        log.info("worker.gained partitions=%s", sorted(partitions))
        if partitions:
            self._background.run(self._take_over(list(partitions), assignment))
        else:  # no partitions for this worker
            self._loaded.set()

    async def _given_up(self, partitions: Collection[int]) -> None:
        """Hand over all partitions. Kafka waits for the end of this method before it assigns them to other workers,
        unless the method takes longer than the session timeout.
        """
        await self._let_go(partitions)

    async def _let_go(self, partitions: Collection[int], *, at_end: bool = False) -> None:
        """Begin no more attempts, wait a limited time for the attempts in flight, make a final checkpoint, and forget
        the state of the partitions.
        """
        assignment = self.assignment
        try:
            if assignment.partitions:  # Without partitions, there are no attempts to wait for, and nothing to commit.
                await self._drain(assignment, at_end=at_end)
                await self._commit_last(assignment)
        finally:  # Even after an error, this worker must not deliver from partitions that another worker will own.
            if partitions:
                log.info("worker.gave_up partitions=%s", sorted(partitions))
            self._begin_assignment()
            assignment.drop()

    async def _commit_last(self, assignment: Assignment) -> None:
        in_doubt = any(dispatcher.busy for dispatcher in self.roster.dispatchers.values())
        checkpoints, committed = assignment.checkpoints, False
        try:
            async with asyncio.timeout(self.tuning.last_checkpoint_s_max):
                await checkpoints.last()
                if not in_doubt and not checkpoints.suspended:
                    await assignment.changes.hand_over()
                committed = True
                await checkpoints.once_more()
        except (LogUnavailable, TimeoutError) as error:
            if not committed:  # The next owner repeats uncommitted deliveries.
                log.warning("checkpoint.last_failed error=%s", error or "it took too long")

    def _no_member(self, assignment: Assignment) -> None:
        """Let no attempts begin, because the worker is no longer a member of the consumer group. Attempts begin again
        after Kafka has assigned partitions to this worker.
        """
        if assignment is self.assignment:
            self.roster.let_send(sending=False)

    async def _drain(self, assignment: Assignment, *, at_end: bool) -> None:
        """Begin no more HTTP attempts. Wait until the attempts in flight have ended, and until deliveries that move to
        the topic `outstanding` are stored there.

        Wait at most `drain_s` seconds if the process stops (`at_end`), else at most `hand_over_s` seconds. Do not wait
        for a listener if all of its attempts have run for over `hanging_s` seconds. If the process stops, this rule
        applies only to failing listeners. The partition's next owner repeats the attempts that have not ended.
        """
        time = asyncio.get_running_loop().time

        def promising(dispatcher: Dispatcher) -> bool:
            if at_end and dispatcher.limits.priority is not Priority.FAILING:
                # At shutdown, wait for a listener that is not failing, no matter how long its attempts have run.
                return dispatcher.busy > 0
            return dispatcher.connections.busy_since(time() - self.tuning.hanging_s)

        self.roster.let_send(sending=False)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.tuning.drain_s if at_end else self.tuning.hand_over_s):
                while assignment.leaving or any(map(promising, self.roster.dispatchers.values())):
                    await asyncio.sleep(self.tuning.tick_s)

    async def _take_over(self, partitions: list[int], assignment: Assignment) -> None:
        """Take the partitions over: read all committed offsets, add a dispatcher for each listener, and begin to
        deliver.
        """

        async def read() -> tuple[Positions, dict[int, Taken]]:
            assignment.share = await self.kafka.membership.share(partitions)
            positions = await read_positions(self.kafka, self._directory.listeners.values(), partitions)
            noted = await self.kafka.membership.notes(partitions)
            await asyncio.gather(
                *(
                    assignment.outstanding.read(one, partial(positions.streams, one), noted=noted.get(one, ""))
                    for one in partitions
                )
            )
            return positions, await assignment.changes.read(positions.lows(), positions.ends)

        async def record() -> bool:
            """Record in the log that this worker owns the partitions, just before the first attempt."""
            await assignment.changes.say_taken(partitions)
            return True

        found = await self._ask(assignment, read, "worker.waits_for_cursors")
        if found is None or not await self._add_dispatchers(found[0].listeners, assignment):
            return
        if await self._ask(assignment, record, "worker.waits_to_begin"):
            self._begin(assignment, *found)

    async def _ask(self, assignment: Assignment, ask: Callable[[], Awaitable[T]], waits: str) -> T | None:
        """Repeat a request to Kafka until it succeeds. Return None if the partitions were handed over meanwhile."""
        while assignment is self.assignment:
            try:
                answer = await ask()
            except LogUnavailable as error:
                log.warning("%s error=%s", waits, error)
                await asyncio.sleep(self.tuning.load_pause_s)
            else:
                return answer if assignment is self.assignment else None
        return None

    async def _add_dispatchers(self, listeners: Iterable[Listener], assignment: Assignment) -> bool:
        """Add a dispatcher for each of these listeners, with the listener's newest settings. Return False if a
        rebalance has begun meanwhile: some dispatchers may then be missing.
        """
        # Yield to the event loop here, and not in _begin(), which must run without interruption.
        for count, listener_id in enumerate([listener.id for listener in listeners], 1):
            if count % self.tuning.opened_at_once == 0:
                await asyncio.sleep(0)
                if assignment is not self.assignment:
                    return False
            listener_now = self._directory.listeners.get(listener_id)
            if listener_now is not None:
                self.roster.add(listener_now)
        return True

    def _begin(self, assignment: Assignment, positions: Positions, changes: dict[int, Taken]) -> None:
        """Start delivery to each listener at its committed offsets. Then begin to read new messages."""
        outstanding, roster, tails = assignment.outstanding, self.roster, dict[int, int]()
        positions.report_missing(now_ms() - self.tuning.no_cursor_ms)
        for number in positions.partitions:
            tails[number] = positions.tail(number, backlog_max=self.tuning.tail_backlog_max)
            assignment.partitions[number] = Partition(number, tails[number], self.tuning, held=assignment.held)
        assignment.changes.take_over(changes)
        roster.let_send(sending=True)
        for listener_id in [listener.id for listener in positions.listeners]:
            listener_now = self._directory.listeners.get(listener_id)
            if listener_now is not None:
                roster.place(listener_now, positions.of(listener_id))
        for number in positions.partitions:
            outstanding.take_over(number)
            self._background.run(outstanding.review(number, self._directory.damage, self._directory.given_up))
        assignment.changes.review_deliveries(changes)
        assignment.start()
        self.kafka.membership.begin(tails)
        for listener_id in self._directory.listeners.keys() - roster.dispatchers.keys():
            # Try to start this listener: it is new, or its secrets could not be decrypted before.
            roster.start(self._directory.listeners[listener_id])
        assignment.ended_listeners.look()
        self._loaded.set()
