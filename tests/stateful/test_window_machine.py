"""One stream over a growing partition, against a model that knows every message's fate.

For: the window, the cursor and the readers' algorithm together (window.py, cursor.py, partition.Partition), with room
that comes and goes, a listener that goes down, messages that vanish from the log, and crashes. Limits are made small,
so that short runs overflow them. The last tests plant bugs: the same machine must find each.
"""

from __future__ import annotations

import logging
from types import SimpleNamespace
from unittest.mock import patch

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from broker.core import window as window_module
from broker.core.circuit import Circuit
from broker.core.cursor import Cursor
from broker.core.health import Recent
from broker.core.window import Window
from broker.delivery.dispatch import dispatcher
from broker.delivery.dispatch.stream import Delivery, Stream
from broker.delivery.reading.catch_up import CatchUp
from broker.delivery.reading.message import Message
from broker.delivery.reading.partition import Partition
from broker.delivery.tuning import Tuning

PARTITION = 0
TUNING = Tuning(ring_max=6)
OWN, OTHER = "own", "other"
ROUNDS_MAX = 500  # a run that needs more to deliver everything delivers it never


class ModelDispatcher:
    """Holds a bounded number of messages, as the real one does, and checks every message it is given."""

    def __init__(self, world: WindowMachine) -> None:
        self.world = world
        self.listener = SimpleNamespace(id="l", queue_id=OWN, replay=None, reach=lambda _partition, tail: tail)
        self.circuit = Circuit()
        self.recent: dict[int, Recent] = {}
        self.tuning = TUNING
        self.error = None
        self.assignment = SimpleNamespace(touched=lambda _stream: None)
        self.streams: dict[int, Stream] = {}
        self.behind: dict[Stream, None] = {}
        self.held: dict[int, Delivery] = {}
        self.settled: set[int] = set()

    stream = dispatcher.Dispatcher.stream

    def room(self) -> bool:
        return len(self.held) < self.world.room

    def room_for(self, _stream: object, _offset: int) -> bool:
        return self.room()

    def accept(self, delivery: Delivery, message: Message) -> None:
        offset = message.offset
        assert offset == delivery.offset
        assert self.world.log[offset]
        assert offset not in self.held, "it has this message already"
        assert offset not in self.settled, "settled already, and no crash since"
        assert not self.world.restored.settled(offset), "settled already, and committed before the crash"
        assert offset >= self.world.start, "it was put before the listener began"
        self.held[offset] = delivery


class WindowMachine(RuleBasedStateMachine):
    """log: by offset, whether the message is the stream's own. delivered: own offsets settled at least once."""

    window_class: type[Window] = Window

    def __init__(self) -> None:
        super().__init__()
        self.patches = [
            patch.object(window_module, "OPEN_MAX", 4),
            patch.object(window_module, "BEHIND_MAX", 3),
            patch.object(dispatcher, "Window", self.window_class),
        ]
        for each in self.patches:
            each.start()
        logging.disable(logging.ERROR)  # messages that vanish are reported, each of them
        self.log: list[bool] = []
        self.vanished: set[int] = set()
        self.delivered: set[int] = set()
        self.room = 3
        self.start = 0
        self.committed: tuple[int, str] | None = None
        self.restored = Cursor(top=0)
        self.dispatcher = ModelDispatcher(self)
        self.partition = Partition(PARTITION, 0, TUNING)

    def teardown(self) -> None:
        logging.disable(logging.NOTSET)
        for each in self.patches:
            each.stop()

    @property
    def window(self) -> Window[Delivery]:
        stream = self.dispatcher.streams.get(PARTITION)
        return self.window_class() if stream is None else stream.window

    def cursor(self) -> Cursor:
        """What a checkpoint would commit now."""
        stream = self.dispatcher.streams.get(PARTITION)
        tail = self.partition.tail
        return Cursor(top=tail) if stream is None else stream.cursor(tail)

    def messages(self, start: int, end: int) -> list[Message]:
        return [
            Message(offset, b"%d" % offset, OWN if own else OTHER, 1, b"{}")
            for offset, own in enumerate(self.log[start:end], start)
            if offset not in self.vanished
        ]

    # The log and its tail

    @initialize(before=st.lists(st.booleans(), max_size=10), data=st.data())
    def a_listener_begins(self, before, data):
        self.log += before
        self.start = data.draw(st.integers(0, len(before)), label="start")
        self.restored = Cursor(top=self.start)
        self.begin_at(data.draw(st.integers(0, len(before)), label="tail"))

    @rule(own=st.lists(st.booleans(), min_size=1, max_size=12))
    def messages_are_put(self, own):
        self.log += own

    @rule(count=st.integers(1, 12))
    def the_tail_moves_on(self, count):
        self.partition.feed(self.messages(self.partition.tail, self.partition.tail + count))

    @precondition(lambda self: self.window.behind or self.window.missing)
    @rule(data=st.data())
    def messages_vanish_from_the_log(self, data):
        noted = sorted({*self.window.behind, *self.window.missing})
        self.vanished |= data.draw(st.sets(st.sampled_from(noted), min_size=1, max_size=2))

    # The dispatcher

    @rule(room=st.integers(0, 8))
    def room_comes_and_goes(self, room):
        self.room = room

    @precondition(lambda self: self.dispatcher.held)
    @rule(data=st.data())
    def a_delivery_is_settled(self, data):
        self.settle(data.draw(st.sampled_from(sorted(self.dispatcher.held))))

    @rule(offset=st.integers(0, 40))
    def a_late_answer_changes_nothing(self, offset):
        if offset not in self.window.open:
            before = self.cursor()
            assert self.window.settle(offset) is None
            assert self.cursor() == before

    @precondition(lambda self: self.dispatcher.held)
    @rule(data=st.data())
    def the_listener_goes_down_and_messages_are_let_go(self, data):
        for offset in data.draw(st.sets(st.sampled_from(sorted(self.dispatcher.held)), min_size=1)):
            delivery = self.dispatcher.held.pop(offset)
            delivery.message = None
            delivery.stream.window.forget((offset,))
            self.dispatcher.behind[delivery.stream] = None

    # The readers

    @precondition(lambda self: self.window.wanted() is not None)
    @rule(before=st.integers(0, 6), length=st.integers(1, 15))
    def a_catch_up_reader_brings_a_stretch(self, before, length):
        self.catch_up(before, length)

    @precondition(lambda self: self.window.wanted() is not None)
    @rule()
    def the_ring_brings_what_it_has(self):
        self.partition.from_ring(self.dispatcher.streams[PARTITION])

    # Checkpoints and crashes

    @rule()
    def a_checkpoint_commits(self):
        cursor = self.cursor()
        self.committed = (cursor.offset, cursor.metadata())
        if self.window.idle(self.partition.tail):
            self.dispatcher.streams.pop(PARTITION, None)

    @rule(data=st.data())
    def the_worker_crashes_and_another_takes_over(self, data):
        self.begin_at(data.draw(st.integers(0, len(self.log)), label="tail"))

    @rule()
    def in_the_end_everything_is_delivered(self):
        self.room = 100
        for _ in range(ROUNDS_MAX):
            for offset in list(self.dispatcher.held):
                self.settle(offset)
            if self.partition.tail < len(self.log):
                self.partition.feed(self.messages(self.partition.tail, len(self.log)))
                self.partition.tail = len(self.log)  # what vanished at the end is passed, too
            elif self.window.wanted() is not None:
                self.catch_up(0, 5)
            elif not self.dispatcher.held:
                break
        assert self.unsettled() == set()
        assert self.window.attached
        assert self.cursor() == Cursor(top=max(len(self.log), self.window.begin))

    # What must hold at every moment

    @invariant()
    def every_own_offset_is_settled_open_behind_or_still_to_be_read(self):
        window, tail = self.window, self.partition.tail
        for offset in self.unsettled():
            read_later = offset >= tail and offset >= window.begin
            scanned_later = window.scan_from is not None and offset >= window.scan_from
            assert offset in window.open or offset in window.behind or read_later or scanned_later

    @invariant()
    def the_cursor_says_settled_only_of_what_is(self):
        cursor = self.cursor()
        again = Cursor.from_metadata(cursor.offset, cursor.metadata())
        assert not [offset for offset in self.unsettled() if cursor.settled(offset) or again.settled(offset)]
        assert not [offset for offset in self.unsettled() if offset < cursor.offset]

    @invariant()
    def open_offsets_are_below_those_behind_and_those_below_what_is_scanned(self):
        window = self.window
        places = [*sorted(window.open), *window.behind, *(() if window.scan_from is None else (window.scan_from,))]
        assert places[len(window.open) :] == sorted(set(places[len(window.open) :]))
        if len(window.open) < len(places):
            assert all(offset < places[len(window.open)] for offset in window.open)
        assert window.missing <= window.open.keys()

    @invariant()
    def its_memory_is_bounded(self):
        assert len(self.window.open) <= 4
        assert len(self.window.behind) <= 3

    @invariant()
    def what_is_open_is_held_or_noted_as_missing(self):
        assert self.window.open.keys() == self.dispatcher.held.keys() | self.window.missing

    # How it is done

    def unsettled(self) -> set[int]:
        own = {offset for offset, own in enumerate(self.log) if own and offset >= self.start}
        return own - self.delivered - self.vanished

    def settle(self, offset: int) -> None:
        delivery = self.dispatcher.held.pop(offset)
        assert delivery.stream.window.settle(offset) is delivery
        self.dispatcher.settled.add(offset)
        self.delivered.add(offset)

    def catch_up(self, before: int, length: int) -> None:
        """As CatchUp._serve, the read having begun a little before, for another stream."""
        stream = self.dispatcher.streams[PARTITION]
        wanted = stream.window.wanted()
        start = max(0, wanted - before)
        messages = self.messages(start, start + length)
        end = min(start + length, self.partition.tail)
        if start <= wanted < end:
            self.partition.bring(stream, messages, start, end)
            CatchUp.report_gone(stream, wanted, messages, end)

    def begin_at(self, tail: int) -> None:
        """As Worker._take_over and _place."""
        self.dispatcher = ModelDispatcher(self)
        self.partition = Partition(PARTITION, tail, TUNING)
        cursor = Cursor(top=self.start) if self.committed is None else Cursor.from_metadata(*self.committed)
        self.restored = cursor
        if cursor.top != tail or cursor.open:
            window = self.window_class()
            stream = self.dispatcher.streams[PARTITION] = Stream(self.dispatcher, PARTITION, window)
            window.restore(cursor, tail, [(offset, Delivery(stream, offset, None)) for offset in cursor.open])
        self.partition.place(self.dispatcher)


WindowMachine.TestCase.settings = settings(
    max_examples=100, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
TestWindow = WindowMachine.TestCase


class TopIgnoresBehind(Window):
    def top(self, tail):
        return max(tail, self.begin) if self.scan_from is None else self.scan_from


class CommitsPastOpen(Window):
    def opened(self):
        return ()


class TakesOutOfTurn(Window):
    def seen(self, offset, delivery):
        if offset >= self.begin and self.scan_from is None and delivery is not None:
            self.open[offset] = delivery
            return True
        return super().seen(offset, delivery)


class ForgetsWhereItBegan(Window):
    def restore(self, cursor, tail, opened):
        super().restore(cursor, tail, opened)
        self.begin = 0


class LosesWhatOverflows(Window):
    def seen(self, offset, delivery):
        taken = super().seen(offset, delivery)
        if self.behind:
            self.scan_from = None
        return taken


class ReattachesTooEarly(Window):
    def passed(self, start, end, tail):
        self.scan_from = None


class NeverReadsAgain(Window):
    def forget(self, offsets):
        pass


@pytest.mark.parametrize(
    "planted",
    [
        TopIgnoresBehind,
        CommitsPastOpen,
        TakesOutOfTurn,
        ForgetsWhereItBegan,
        LosesWhatOverflows,
        ReattachesTooEarly,
        NeverReadsAgain,
    ],
)
def test_the_machine_finds_a_planted_bug(planted):
    machine = type("Planted", (WindowMachine,), {"window_class": planted})
    quick = settings(
        max_examples=3_000,
        stateful_step_count=40,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
        report_multiple_bugs=False,
        print_blob=False,
        suppress_health_check=list(HealthCheck),
    )
    with pytest.raises(AssertionError):
        run_state_machine_as_test(machine, settings=quick)
