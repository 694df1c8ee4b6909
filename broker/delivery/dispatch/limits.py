"""How many attempts of one listener a worker may have under way, and begin.

For: what the flow, the rate, the circuit, Retry-After and the worker's shares say of it, together. Not for: each of
these (broker/core/flow.py, circuit.py), what all listeners share (fairness.py).
"""

from __future__ import annotations

from enum import IntEnum

from broker.core.circuit import Circuit, State
from broker.core.events import ListenerSettings
from broker.core.flow import Flow, Pace, Share
from broker.delivery.tuning import TUNED, Tuning


class Priority(IntEnum):
    """The priorities of listeners, the highest first; what a worker has is shared out in this order.

    FAST: accepts, and answers in under `slow_ms` on average.
    SLOW: accepts, but slowly; and each replay.
    FAILING: rejects more than a quarter of its attempts, or has not answered yet.
    """

    FAST = 0
    SLOW = 1
    FAILING = 2


_FAST, _SLOW, _FAILING = Priority  # an enumeration's attributes are slow


class Limits:
    """The limits of one listener's attempts in a worker.

    share: of the worker's attempts in flight.
    permits: attempts that a low-priority listener may start until more are dealt.
    took_ms: average duration of answers without fault; None before the first.
    failing: average part of attempts that were not accepted.
    replay: a replay has low priority, however fast its answers are.
    priority: fast accepts and answers quickly; slow accepts, but slowly, and so does a replay; failing rejects over a
        quarter of its attempts, or has not answered yet. Shared resources go out in this order.
    low_priority: the listener has low priority, so its starts are counted.
    """

    priority: Priority
    low_priority: bool

    __slots__ = (
        *("_circuit", "_pace", "_pushed_back_until_ms", "_replay", "_samples", "_too_early", "_tuning"),
        *("permits", "failing", "flow", "low_priority", "priority", "share", "took_ms"),
    )

    def __init__(
        self, circuit: Circuit, settings: ListenerSettings, tuning: Tuning = TUNED, *, replay: bool = False
    ) -> None:
        self._tuning = tuning
        self._circuit = circuit
        self._replay = replay
        self.flow = Flow(settings.max_in_flight)
        self.share = tuning.attempts_max
        self.permits = 1
        self.took_ms: float | None = None
        self._samples = tuning.answers_weighed
        self.failing = 0.0
        self._pace: Pace | None = None
        self._pushed_back_until_ms = 0
        self._too_early = False  # The rate limit refused the last attempt that was asked for.
        self._judge()

    def update(self, settings: ListenerSettings, share: Share) -> None:
        """Apply changed settings of the listener, or a changed share of this worker."""
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
        """Return how many attempts may be in flight. busy: how many are now."""
        if self._circuit.state is State.OPEN or self._pushed_back_until_ms:
            return 0
        most = min(self.able, self.share)
        return min(most, busy + self.permits) if self.low_priority else most

    @property
    def able(self) -> int:
        """The attempts that may be in flight, whatever other listeners want."""
        most, allowance = self.flow.limit, self._circuit.allowance
        if allowance is not None and allowance < most:
            most = allowance
        return min(most, self._tuning.attempts_new_max) if self.new else most

    def begin(self, at_s: float) -> bool:
        """Count one attempt that most() allows, if the rate limit allows it, too. at_s: the event loop's time."""
        if self._pace is not None:
            self._too_early = not self._pace.begin(at_s)
            if self._too_early:
                return False
        # Keep one start, in case the listener has low priority from now on.
        self.permits = self.permits - 1 if self.low_priority else 1
        return True

    def took(self, took_ms: int) -> None:
        """Record an answer without fault. took_ms: until the complete answer."""
        tuning = self._tuning
        known, took_ms = self.took_ms, min(took_ms, tuning.took_ms_max)
        if known is None:
            self.took_ms, self._samples = took_ms, 1
        else:
            if self._samples < tuning.answers_weighed:  # The first answers may have been an exception.
                self._samples += 1
            self.took_ms = known + (took_ms - known) / self._samples
        self._judge()

    def timed_out(self, took_ms: int) -> None:
        """Record an attempt without an answer. It makes a listener slow, but does not make it known."""
        if not self.new:
            self.took(took_ms)

    def succeeded(self) -> None:
        """Record an attempt that was accepted."""
        self.flow.succeeded()
        if self.failing:
            failing = 0.0 if self.new else self.failing * (1 - 1 / self._tuning.answers_weighed)
            self.failing = failing if failing > 1 / 100 else 0.0
            self._judge()

    def failed(self) -> None:
        """Record an attempt that was not accepted, for any reason."""
        self.failing = 1.0 if self.new else self.failing + (1 - self.failing) / self._tuning.answers_weighed
        self._judge()

    @property
    def new(self) -> bool:
        """Whether the listener has not answered yet, or not since it was down, or with faults only."""
        return self.took_ms is None

    def held_back(self, busy: int) -> bool:
        """Return whether a larger share would not start more attempts. busy: attempts in flight.

        Then the listener is down, asked for a pause, is at its rate limit, or has all that it can handle.
        """
        return (
            self._circuit.state is State.OPEN or self._pushed_back_until_ms > 0 or self._too_early or busy >= self.able
        )

    def let_wait(self, busy: int) -> bool:
        """Return whether the listener could not use what it may begin, now or soon. busy: attempts in flight."""
        return self._circuit.state is State.OPEN or self._pushed_back_until_ms > 0 or (self.new and busy >= self.able)

    def _judge(self) -> None:
        took_ms = self.took_ms
        if took_ms is None or self.failing > self._tuning.failing:
            self.priority = _FAILING
        else:
            self.priority = _SLOW if took_ms >= self._tuning.slow_ms or self._replay else _FAST
        self.low_priority = self.priority is not _FAST

    @property
    def quick(self) -> bool:
        """Whether the listener is known to answer soon, so that an answer may arrive at any moment."""
        return self.took_ms is not None and self.took_ms < self._tuning.slow_ms

    def begin_anew(self) -> None:
        """Forget the averages, because the listener is up again. Its first attempt starts at once."""
        self.took_ms, self.failing, self.permits = None, 0.0, 1
        self._judge()

    def pushed_back(self, at_ms: int, retry_after_s: int | None) -> None:
        """Slow down: the listener is overloaded (429, 503, no answer in time). retry_after_s: how long to send
        nothing.
        """
        self.flow.pushed_back(at_ms)
        if retry_after_s:
            self._pushed_back_until_ms = at_ms + min(retry_after_s, self._tuning.push_back_s_max) * 1000

    def let_alone(self, at_ms: int) -> bool:
        """Return whether the listener has asked for a pause that is not over."""
        if self._pushed_back_until_ms <= at_ms:
            self._pushed_back_until_ms = 0
        return self._pushed_back_until_ms > 0
