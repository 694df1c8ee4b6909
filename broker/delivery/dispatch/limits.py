"""How many attempts of one listener a worker may have under way, and begin.

For: what the flow, the rate, the circuit, Retry-After and the worker's shares say of it, together. Not for: each of
these (broker/core/flow.py, circuit.py), what all listeners share (fairness.py).
"""

from __future__ import annotations

from broker.core.circuit import Circuit, State
from broker.core.events import ListenerSettings
from broker.core.flow import Flow, Pace, Share
from broker.delivery.tuning import TUNED, Tuning

FIRST, SLOW, FAILS = range(3)  # ranks


class Limits:
    """share: of the attempts that a worker has under way, what this listener may have. begins: attempts it may begin
    before there is more, if it gives way. took_ms: an answer that was no fault, on average; None: there was none yet.
    failing: the part of its attempts that were not taken, on average. replay: it is one, and gives way to normal
    deliveries however quickly it is answered.
    rank: FIRST, it is quick and takes what it gets. SLOW, so it is, or a replay. FAILS, it does, or is not known yet.
    What all of a worker share they have in this order. gives_way: what it may begin is counted, with all others such.
    """

    rank: int
    gives_way: bool

    __slots__ = (
        *("_circuit", "_pace", "_pushed_back_until_ms", "_replay", "_samples", "_too_early", "_tuning"),
        *("begins", "failing", "flow", "gives_way", "rank", "share", "took_ms"),
    )

    def __init__(
        self, circuit: Circuit, settings: ListenerSettings, tuning: Tuning = TUNED, *, replay: bool = False
    ) -> None:
        self._tuning = tuning
        self._circuit = circuit
        self._replay = replay
        self.flow = Flow(settings.max_in_flight)
        self.share = tuning.attempts_max
        self.begins = 1
        self.took_ms: float | None = None
        self._samples = tuning.answers_weighed
        self.failing = 0.0
        self._pace: Pace | None = None
        self._pushed_back_until_ms = 0
        self._too_early = False  # the last time that an attempt was asked for the rate did not allow it
        self._judge()

    def update(self, settings: ListenerSettings, share: Share) -> None:
        """The listener's settings, or this worker's share of all that it may have, have changed."""
        self.flow.resize(share.of(settings.max_in_flight))
        rate_per_s = (
            None
            if settings.rate_per_s is None
            else max(settings.rate_per_s * share.partitions, self._tuning.rate_min_per_s)
        )
        if rate_per_s is None:
            self._pace, self._too_early = None, False
        elif self._pace is None or self._pace.rate_per_s != rate_per_s:
            self._pace = Pace(rate_per_s, burst_s=self._tuning.rate_burst_s)

    def most(self, busy: int) -> int:
        """How many may be under way, so many being so now."""
        if self._circuit.state is State.OPEN or self._pushed_back_until_ms:
            return 0
        most = min(self.able, self.share)
        return min(most, busy + self.begins) if self.gives_way else most

    @property
    def able(self) -> int:
        """How many may be under way, whoever else wants to."""
        most, allowance = self.flow.limit, self._circuit.allowance
        if allowance is not None and allowance < most:
            most = allowance
        return min(most, self._tuning.attempts_new_max) if self.new else most

    def begin(self, at_s: float) -> bool:
        """Count one attempt that most() allows, if the rate does, too. at_s: the event loop's time."""
        if self._pace is not None:
            self._too_early = not self._pace.begin(at_s)
            if self._too_early:
                return False
        self.begins = self.begins - 1 if self.gives_way else 1  # one at once, should it give way from now on
        return True

    def took(self, took_ms: int) -> None:
        """An attempt was answered, and that was no fault. took_ms: until all of the answer was there."""
        tuning = self._tuning
        known, took_ms = self.took_ms, min(took_ms, tuning.took_ms_max)
        if known is None:
            self.took_ms, self._samples = took_ms, 1
        else:
            if self._samples < tuning.answers_weighed:  # the first may have been an exception
                self._samples += 1
            self.took_ms = known + (took_ms - known) / self._samples
        self._judge()

    def timed_out(self, took_ms: int) -> None:
        """An attempt was not answered: this makes one slow, not known."""
        if not self.new:
            self.took(took_ms)

    def succeeded(self) -> None:
        """An attempt was taken."""
        self.flow.succeeded()
        if self.failing:
            failing = 0.0 if self.new else self.failing * (1 - 1 / self._tuning.answers_weighed)
            self.failing = failing if failing > 1 / 100 else 0.0
            self._judge()

    def failed(self) -> None:
        """An attempt was not taken, for whatever reason."""
        self.failing = 1.0 if self.new else self.failing + (1 - self.failing) / self._tuning.answers_weighed
        self._judge()

    @property
    def new(self) -> bool:
        """Whether it has not answered yet, or not since it was down, or with faults only."""
        return self.took_ms is None

    def held_back(self, busy: int) -> bool:
        """Whether a larger share would not have it begin more, so many being under way.

        It is down, let alone, at its rate, or has all that it is able to.
        """
        return (
            self._circuit.state is State.OPEN or self._pushed_back_until_ms > 0 or self._too_early or busy >= self.able
        )

    def let_wait(self, busy: int) -> bool:
        """Whether it could not make use of what it may begin, so many being under way: before long, if not at once."""
        return self._circuit.state is State.OPEN or self._pushed_back_until_ms > 0 or (self.new and busy >= self.able)

    def _judge(self) -> None:
        took_ms = self.took_ms
        if took_ms is None or self.failing > self._tuning.failing:
            self.rank = FAILS
        else:
            self.rank = SLOW if took_ms >= self._tuning.slow_ms or self._replay else FIRST
        self.gives_way = self.rank != FIRST

    @property
    def quick(self) -> bool:
        """Whether it is known to answer soon: what it waits for may come at any moment."""
        return self.took_ms is not None and self.took_ms < self._tuning.slow_ms

    def begin_anew(self) -> None:
        """It is up again: what it took before says nothing of it now, and its first attempt is made at once."""
        self.took_ms, self.failing, self.begins = None, 0.0, 1
        self._judge()

    def pushed_back(self, at_ms: int, retry_after_s: int | None) -> None:
        """The listener has too much to do (429, 503, no answer in time). retry_after_s: how long to let it alone."""
        self.flow.pushed_back(at_ms)
        if retry_after_s:
            self._pushed_back_until_ms = at_ms + min(retry_after_s, self._tuning.push_back_s_max) * 1000

    def let_alone(self, at_ms: int) -> bool:
        """Whether the listener has asked to be let alone, and the time is not over."""
        if self._pushed_back_until_ms <= at_ms:
            self._pushed_back_until_ms = 0
        return self._pushed_back_until_ms > 0
