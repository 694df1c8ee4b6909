"""The limits of one listener: how many attempts a worker may have in flight for it, and when the next may begin.

For: combining concurrency, rate limit, circuit breaker, Retry-After and the listener's share of the worker's resources.
Not for: each of these (broker/core/flow.py, circuit.py), what all listeners share (fairness.py).
"""

from __future__ import annotations

from enum import IntEnum

from broker.core.circuit import Circuit, State
from broker.core.events import ListenerSettings
from broker.core.flow import Flow, Pace, Share
from broker.delivery.tuning import TUNED, Tuning


class Priority(IntEnum):
    """The priorities of listeners, highest first: fast, slow, failing. A worker divides attempts and memory in this
    order.
    """

    # FAST: the listener accepts messages, answers in less than `slow_ms` on average, and is not a replay.
    FAST = 0
    # SLOW: the listener accepts messages, but answers in `slow_ms` or more on average, or is a replay.
    SLOW = 1
    # FAILING: more than a quarter of the recent attempts fail, or the listener is new.
    # A listener is new until it answers this worker with a status below 500, and again after it was down.
    FAILING = 2


_FAST, _SLOW, _FAILING = Priority  # faster than an enumeration's attributes


class Limits:
    """The limits of one listener's attempts in a worker: how many may be in flight, and when the next may start."""

    priority: Priority
    # True for a slow or failing listener, whose attempts may start only while `permits` is above 0.
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
        self._replay = replay  # True for a replay, whose priority is never FAST.
        self.flow = Flow(settings.max_in_flight)
        self.share = tuning.attempts_max  # how many of the worker's attempts in flight may be for this listener
        self.permits = 1
        self.took_ms: float | None = None  # average ms of answers with a status below 500, and of timeouts; None if new
        self._samples = tuning.answers_weighed
        self.failing = 0.0  # moving average of the fraction of attempts that failed
        self._pace: Pace | None = None
        self._pushed_back_until_ms = 0
        self._too_early = False  # True if the rate limit allowed no attempt at the newest check
        self._judge()

    def update(self, settings: ListenerSettings, share: Share) -> None:
        """Apply changed settings of the listener, or a change in how many partitions this worker owns."""
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
        """Return how many attempts for the listener may be in flight now. Return 0 while the listener is down or has
        asked for a pause. For a slow or failing listener, return at most `busy` (the number in flight now) plus its
        permits.
        """
        if self._circuit.state is State.OPEN or self._pushed_back_until_ms:
            return 0
        most = min(self.able, self.share)
        return min(most, busy + self.permits) if self.low_priority else most

    @property
    def able(self) -> int:
        """The number of attempts that may be in flight by the limits of this listener alone. The worker's other
        listeners, the rate limit and a pause by `Retry-After` do not change this number.
        """
        most, allowance = self.flow.limit, self._circuit.allowance
        if allowance is not None and allowance < most:
            most = allowance
        return min(most, self._tuning.attempts_new_max) if self.new else most

    def may_begin(self, at_s: float) -> bool:
        """Return whether the rate limit allows an attempt now. This call does not count an attempt."""
        self._too_early = self._pace is not None and not self._pace.allows(at_s)
        return not self._too_early

    def begin(self, at_s: float, messages: int = 1) -> bool:
        """Count the start of one attempt with this many messages, and return True. Return False if the rate limit does
        not allow it yet.
        """
        if self._pace is not None:
            self._too_early = not self._pace.begin(at_s, messages)
            if self._too_early:
                return False
        # A fast listener keeps one permit, because it may become slow or failing before permits are divided again.
        self.permits = self.permits - 1 if self.low_priority else 1
        return True

    def took(self, took_ms: int) -> None:
        """Record how long an answer with a status below 500 took, in ms from the request to the end of the answer."""
        tuning = self._tuning
        known, took_ms = self.took_ms, min(took_ms, tuning.took_ms_max)
        if known is None:
            self.took_ms, self._samples = took_ms, 1
        else:
            # The plain mean of up to `answers_weighed` times. After that, each new time has the weight 1 /
            # `answers_weighed`.
            if self._samples < tuning.answers_weighed:
                self._samples += 1
            self.took_ms = known + (took_ms - known) / self._samples
        self._judge()

    def timed_out(self, took_ms: int) -> None:
        """Add an attempt that timed out to the average of answer times, as if an answer had taken `took_ms`. Do nothing
        if the listener is new: this worker has no answer below status 500 from the listener yet, or none since the
        listener was last down.
        """
        if not self.new:
            self.took(took_ms)

    def succeeded(self) -> None:
        """Record an attempt that the listener accepted."""
        self.flow.succeeded()
        if self.failing:
            failing = 0.0 if self.new else self.failing * (1 - 1 / self._tuning.answers_weighed)
            self.failing = failing if failing > 1 / 100 else 0.0
            self._judge()

    def failed(self) -> None:
        """Record an attempt that the listener did not accept, in the average `failing`. Then update the priority."""
        self.failing = 1.0 if self.new else self.failing + (1 - self.failing) / self._tuning.answers_weighed
        self._judge()

    @property
    def new(self) -> bool:
        """Whether this worker has got no answer with a status below 500 from the listener yet, or none since the
        listener was last down.
        """
        return self.took_ms is None

    def held_back(self, busy: int) -> bool:
        """Return whether the listener can't use more of the worker's attempts. The reason may be that the listener is
        down, has asked for a pause, is at its rate limit, or has as many attempts in flight as it can handle.
        """
        return (
            self._circuit.state is State.OPEN or self._pushed_back_until_ms > 0 or self._too_early or busy >= self.able
        )

    def let_wait(self, busy: int) -> bool:
        """Return whether no attempt for the listener can start soon, because the listener is down or has asked for a
        pause with `Retry-After`. Return True, too, if the listener is new and has as many attempts in flight as a new
        listener may have.

        A new listener has sent no answer below status 500 yet, or none since it was last down.
        """
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
        """Whether the listener answers fast on average. Such a listener may soon need as many messages as memory
        permits.
        """
        return self.took_ms is not None and self.took_ms < self._tuning.slow_ms

    def begin_anew(self) -> None:
        """Forget the averages of the listener's answers, because the listener is up again. One attempt may start at
        once.
        """
        self.took_ms, self.failing, self.permits = None, 0.0, 1
        self._judge()

    def pushed_back(self, at_ms: int, retry_after_s: int | None) -> None:
        """Slow down, because the listener is overloaded: it answered 429 or 503, or did not answer in time. If the
        listener has asked for a pause of `retry_after_s` seconds, start no attempt during the pause. A pause is cut to
        `push_back_s_max` seconds.
        """
        self.flow.pushed_back(at_ms)
        if retry_after_s:
            self._pushed_back_until_ms = at_ms + min(retry_after_s, self._tuning.push_back_s_max) * 1000

    def let_alone(self, at_ms: int) -> bool:
        """Return whether the listener has requested a pause with Retry-After that is not over yet. If the pause is
        over, attempts may begin again after this call.
        """
        if self._pushed_back_until_ms <= at_ms:
            self._pushed_back_until_ms = 0
        return self._pushed_back_until_ms > 0
