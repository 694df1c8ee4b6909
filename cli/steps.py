"""How long an attempt took, in words. Not for: the answers that hold the durations (everput/answers)."""

from __future__ import annotations

from msgspec import UNSET

from everput.answers import AttemptFields, TrialFields


def took(ms: int) -> str:
    """Return a duration as text. A duration that rounds to 0 ms is shown as `under 1 ms`."""
    return f"{ms} ms" if ms else "under 1 ms"


def steps(attempt: AttemptFields | TrialFields) -> str:
    """Return the known steps of an attempt, in parentheses after a space, or nothing."""
    found = {"DNS": attempt.dns_ms, "connect": attempt.connect_ms, "TLS": attempt.tls_ms}
    said = ", ".join(f"{name} {took(ms)}" for name, ms in found.items() if ms is not UNSET)
    return f" ({said})" if said else ""
