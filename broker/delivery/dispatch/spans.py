"""The trace spans of one listener's attempts.

For: beginning a span for each message of a request that is part of a trace, and ending it with the attempt's result.
Not for: the tracing itself (cli/tracing.py), the format of a `traceparent` (broker/core/trace.py).
"""

from __future__ import annotations

from collections.abc import Iterable

from broker.core.entities import Listener
from broker.delivery.dispatch.stream import Delivery
from broker.ports import Span, Tracing


class Spans:
    """The open trace spans of one listener's attempts. If tracing is off, there are none."""

    __slots__ = ("_tracing", "open")

    def __init__(self, tracing: Tracing | None) -> None:
        self._tracing = tracing
        self.open: dict[Delivery, Span] = {}

    def begin(self, delivery: Delivery, number: int, listener: Listener) -> str | None:
        """Begin the trace span of an attempt. Return the `traceparent` to send, or None if the message is not part of a
        trace.
        """
        message = delivery.message
        if message is None or message.traceparent is None:
            return None
        if self._tracing is None:
            return message.traceparent
        span = self._tracing.attempt(message.traceparent, listener, message.id.decode(), number)
        self.open[delivery] = span
        return span.traceparent

    def end(self, deliveries: Iterable[Delivery], status: int | None, error: str | None) -> None:
        """End the spans of these deliveries' attempts, if there are any."""
        if self.open:
            for delivery in deliveries:
                span = self.open.pop(delivery, None)
                if span is not None:
                    span.end(status=status, error=error)
