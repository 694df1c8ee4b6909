"""The circuit breaker of a listener: closed (attempts are made), open (only probes of its liveness_url), or probation.

For: the state that follows from answers and probes. Callers pass in the time. Not for: sending probes
(broker/delivery).

    closed --[some faults in a row]--> open --[a good probe]--> probation --[enough successes]--> closed
                                              ^-------[faults in a row]--'

TRIP_AFTER faults in a row open the circuit. For a new listener TRIP_AFTER_NEW are enough, because hundreds of new
listeners that are dead must not get five attempts each. While the circuit is open, no attempt is made. Probation allows
a few attempts, and twice as many after each success. It ends with as many faults in a row as for a new listener, so a
listener that fails half of its attempts passes. A listener whose liveness_url works while its notify_url fails is
probed less and less often.
"""

from __future__ import annotations

from enum import Enum
from typing import Final

TRIP_AFTER: Final = 5
TRIP_AFTER_NEW: Final = 2
PROBE_MS_FIRST: Final = 500
PROBE_MS_MAX: Final = 10_000
PROBATION_FIRST: Final = 2
PROBATION_DONE: Final = 16


class State(Enum):
    CLOSED = "closed"
    OPEN = "open"
    PROBATION = "probation"


class Circuit:
    """The circuit breaker of one listener. While the circuit breaker is open, no new attempt begins: the listener gets
    only probes.

    `allowance` is the largest number of attempts that may run at the same time; None means no limit. `down_since_ms` is
    the time at which the listener went down; 0 if it is not down. After a successful probe, `down_since_ms` keeps its
    value until an attempt ends without a fault of the listener.
    """

    __slots__ = ("allowance", "down_since_ms", "faults", "probe_at_ms", "relapses", "state")

    def __init__(self) -> None:
        self.state = State.CLOSED
        self.faults = 0
        # `relapses` counts the probes that succeeded, but whose following attempts opened the circuit breaker again.
        # `relapses` is set to 0 after a failed probe, in trip(), and when the circuit breaker closes.
        self.relapses = 0
        self.probe_at_ms = self.down_since_ms = 0
        self.allowance: int | None = None

    @property
    def alive(self) -> bool:
        """Whether the circuit breaker is open because attempts have failed, although the listener's newest probe
        succeeded before these attempts.
        """
        return self.state is State.OPEN and self.relapses > 0

    def succeeded(self) -> None:
        """Tell the circuit breaker that an attempt ended without a fault of the listener: the listener answered with a
        status below 500.
        """
        self.faults = 0
        if self.state is State.PROBATION and self.allowance is not None:
            self.down_since_ms = 0
            self.allowance *= 2
            if self.allowance >= PROBATION_DONE:
                self.state, self.allowance, self.relapses = State.CLOSED, None, 0

    def failed(self, at_ms: int, *, new: bool = False) -> bool:
        """Tell the circuit breaker that an attempt failed through a fault of the listener.

        Return whether this failure opened the circuit breaker. Usually, TRIP_AFTER failures in a row open it. Shortly
        after a successful probe, TRIP_AFTER_NEW failures in a row are enough. They are also enough if `new` is true:
        since the listener's creation, or since it was last down, this worker has got no answer with a status below 500
        from the listener.
        """
        self.faults += 1
        most = TRIP_AFTER_NEW if new or self.state is State.PROBATION else TRIP_AFTER
        if self.state is State.OPEN or self.faults < most:
            return False
        if self.state is State.PROBATION:
            self.relapses += 1
        self._open(at_ms, min(PROBE_MS_MAX, PROBE_MS_FIRST << min(self.relapses, 10)))
        return True

    def trip(self, at_ms: int) -> bool:
        """Open the circuit breaker immediately. The caller has found that the listener's tunnel can't be reached or has
        no client. Return False if the circuit breaker was open already.
        """
        self.relapses = 0
        if self.state is State.OPEN:
            return False
        self._open(at_ms, PROBE_MS_FIRST)
        return True

    def _open(self, at_ms: int, wait_ms: int) -> None:
        self.state, self.allowance, self.probe_at_ms = State.OPEN, 0, at_ms + wait_ms
        self.down_since_ms = self.down_since_ms or at_ms

    def probed(self, *, alive: bool, at_ms: int, interval_ms: int) -> bool:
        """Tell the circuit breaker the result of a probe. `alive` says whether the probe succeeded. Return True if
        attempts to the listener start again because of this probe. `interval_ms` is the wait before the next probe if
        this probe failed.
        """
        if self.state is not State.OPEN:
            return False
        if alive:
            self.state, self.allowance, self.faults = State.PROBATION, PROBATION_FIRST, 0
            return True
        # A failed probe resets the count of failures after successful probes.
        self.relapses = 0
        self.probe_at_ms = at_ms + interval_ms
        return False
