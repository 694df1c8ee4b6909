"""When a failed attempt is repeated.

For: exponential backoff with full jitter, and Retry-After. Not for: whether the listener is down (circuit.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """The rules for when a delivery is retried, and when it is parked.

    The wait before a retry is random. After the first failure, it is at most `delay_ms_first`. This limit doubles with
    each failure, up to `delay_ms_max`. No wait is shorter than `delay_ms_min`. A Retry-After in the answer can make a
    wait longer, but not longer than `delay_ms_max`.

    A delivery is parked if attempt number `max_attempts` fails, or if an attempt fails `max_age_ms` or longer after the
    first attempt. A redrive usually restarts the count of attempts and the time. It restarts neither for a delivery
    that is still in a worker's memory, usually for about a minute after its first attempt.
    """

    delay_ms_first: int = 1_000
    delay_ms_max: int = 3_600_000
    delay_ms_min: int = 100
    max_attempts: int | None = None  # None for no limit
    max_age_ms: int = 72 * 3_600_000  # then a failing delivery is parked


_DOUBLINGS_MAX: Final = 32  # far more than any delay_ms_max needs


def delay_ms(policy: RetryPolicy, number: int, *, retry_after_s: int | None, jitter: float) -> int:
    """Return how long to wait before the next attempt, in milliseconds.

    `number` is how many attempts were made so far. `retry_after_s` is the wait that the listener asked for with the
    header Retry-After (RFC 9110, 10.2.3). If it is longer than `delay_ms_max`, `delay_ms_max` is used. `jitter` is a
    random number in [0, 1), by which the longest possible wait is multiplied.
    """
    if number < 1:
        raise ValueError(f"the number of attempts must be at least 1, not {number}")
    longest = min(policy.delay_ms_max, policy.delay_ms_first << min(number - 1, _DOUBLINGS_MAX))
    asked = 0 if retry_after_s is None else min(retry_after_s * 1000, policy.delay_ms_max)
    return max(policy.delay_ms_min, asked, int(longest * jitter))


def next_at_ms(
    policy: RetryPolicy, number: int, *, since_ms: int, at_ms: int, retry_after_s: int | None, jitter: float
) -> int | None:
    """Return the time at which the next attempt is due. Return None if the delivery must be parked.

    `number` counts the attempts so far. The delivery's age counts from `since_ms`: the time of its first attempt or, if
    it is later, of its last redrive. `at_ms` is the time now.
    """
    if policy.max_attempts is not None and number >= policy.max_attempts:
        return None
    if at_ms - since_ms >= policy.max_age_ms:
        return None
    return at_ms + delay_ms(policy, number, retry_after_s=retry_after_s, jitter=jitter)
