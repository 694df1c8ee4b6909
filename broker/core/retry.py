"""When a failed attempt is made again.

For: exponential backoff with full jitter, and Retry-After. Not for: whether the listener is down (circuit.py)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """The rules of when a delivery is retried.

    delay_ms_first: the longest wait after the first failure; it doubles with each failure, up to delay_ms_max.
    delay_ms_min: the shortest wait.
    max_attempts: None for no limit.
    max_age_ms: the delivery is parked if it still fails so long after its first attempt.
    """

    delay_ms_first: int = 1_000
    delay_ms_max: int = 3_600_000
    delay_ms_min: int = 100
    max_attempts: int | None = None
    max_age_ms: int = 72 * 3_600_000


_DOUBLINGS_MAX: Final = 32  # far beyond any delay_ms_max


def delay_ms(policy: RetryPolicy, number: int, *, retry_after_s: int | None, jitter: float) -> int:
    """Return the wait until the next attempt, in milliseconds.

    number: attempts made so far, 1 after the first failure (ValueError below 1).
    retry_after_s: seconds that the listener asked for (RFC 9110, 10.2.3), capped at delay_ms_max; None when it did not.
    jitter: a random number in [0, 1).
    """
    if number < 1:
        raise ValueError("attempts are numbered from 1")
    longest = min(policy.delay_ms_max, policy.delay_ms_first << min(number - 1, _DOUBLINGS_MAX))
    asked = 0 if retry_after_s is None else min(retry_after_s * 1000, policy.delay_ms_max)
    return max(policy.delay_ms_min, asked, int(longest * jitter))


def next_at_ms(
    policy: RetryPolicy, number: int, *, since_ms: int, at_ms: int, retry_after_s: int | None, jitter: float
) -> int | None:
    """Return when the next attempt is due, or None when none is left and the delivery must be parked.

    number: attempts that count, from 1.
    since_ms: from when the delivery's age counts: the first attempt, or the last redrive.
    """
    if policy.max_attempts is not None and number >= policy.max_attempts:
        return None
    if at_ms - since_ms >= policy.max_age_ms:
        return None
    return at_ms + delay_ms(policy, number, retry_after_s=retry_after_s, jitter=jitter)
