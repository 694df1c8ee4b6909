"""The result of an attempt and how long it took, in words. Not for: the answers that hold them (everput/answers)."""

from __future__ import annotations

from msgspec import UNSET

from everput.answers import AttemptFields, ListenerTestFields


def took(ms: int) -> str:
    """Return a duration as text. A duration that rounds to 0 ms is shown as `under 1 ms`."""
    return f"{ms} ms" if ms else "under 1 ms"


def result(status: int | None, error: str | None) -> str:
    """Return the result of an attempt as text: the HTTP status, or the reason why there was no answer. If the answer to
    a batch rejects the message, return the status and the reason.
    """
    return " ".join(str(one) for one in (status, error) if one is not None)


def steps(attempt: AttemptFields | ListenerTestFields) -> str:
    """Return the known durations of an attempt's steps as text, such as ` (DNS 3 ms, connect 5 ms)`. Return an empty
    text if no duration is known.
    """
    found = {"DNS": attempt.dns_ms, "connect": attempt.connect_ms, "TLS": attempt.tls_ms}
    said = ", ".join(f"{name} {took(ms)}" for name, ms in found.items() if ms is not UNSET)
    return f" ({said})" if said else ""
