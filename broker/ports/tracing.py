"""The protocols of tracing: the spans of puts, of appends to Kafka and of attempts.

For: cli/otel.py implements them; api and broker/delivery use them. Not for: any implementation.
"""

from __future__ import annotations

from typing import Protocol

from broker.core.entities import Listener, Queue


class Span(Protocol):
    """A span of a trace that has begun and not ended. `traceparent` identifies it for other services."""

    @property
    def traceparent(self) -> str: ...

    def end(self, *, status: int | None = None, error: str | None = None) -> None:
        """End the span. `status` is the HTTP status of the answer. If there was no answer, `error` is the reason."""


class Tracing(Protocol):
    """The part of a process that begins trace spans, if tracing is configured."""

    def put(self, parent: str | None, queue: Queue) -> Span:
        """Begin the trace span of a put. `parent` is the header `traceparent` of the client's request, or None."""

    def append(self, put: Span, queue: Queue) -> Span:
        """Begin the span of the append to Kafka, as a child of the put's span."""

    def attempt(self, parent: str, listener: Listener, message_id: str, number: int) -> Span:
        """Begin the span of an attempt. `parent` is the `traceparent` of the message's span. Usually, the attempt's
        span is a child of the message's span.

        If the attempt belongs to a replay, the attempt's span begins a new trace, with a link to the message's span.
        """
