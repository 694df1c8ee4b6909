"""Spans of puts, appends and attempts with OpenTelemetry, exported by OTLP over HTTP.

For: ports.Tracing. The packages are those of the extra `otel`; only cli/tracing.py imports this module. Not for: when a
process traces (cli/tracing.py).
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import (
    Link,
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    StatusCode,
    TraceFlags,
    set_span_in_context,
)
from opentelemetry.trace import Span as OtelSpan

from broker import ports
from broker.core import trace
from broker.core.entities import Listener, Queue
from cli.logs import Logger

_log = Logger(__name__)

_ERROR_STATUS: Final = 300  # if the HTTP status of a span is 300 or higher, the span is marked as an error


@dataclass(frozen=True, slots=True)
class Span:
    """A running span (see ports.Span)."""

    otel: OtelSpan

    @property
    def traceparent(self) -> str:
        place = self.otel.get_span_context()
        return f"00-{place.trace_id:032x}-{place.span_id:016x}-{place.trace_flags:02x}"

    def end(self, *, status: int | None = None, error: str | None = None) -> None:
        """See ports.Span."""
        if status is not None:
            self.otel.set_attribute("http.response.status_code", status)
            if status >= _ERROR_STATUS:
                error = str(status)
        if error is not None:
            self.otel.set_attribute("error.type", error)
            self.otel.set_status(StatusCode.ERROR)
        self.otel.end()


class OtelTracing:
    """The tracing of one process (ports.Tracing)."""

    def __init__(self, provider: TracerProvider) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("everput")

    @classmethod
    def start(cls) -> OtelTracing:
        """Start the exporter."""
        named = "OTEL_SERVICE_NAME" in os.environ or "service.name=" in os.environ.get("OTEL_RESOURCE_ATTRIBUTES", "")
        provider = TracerProvider(
            resource=Resource.create({} if named else {"service.name": "everput"}), shutdown_on_exit=False
        )
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        _log.info("tracing.started")
        return cls(provider)

    async def stop(self) -> None:
        """Export the spans that have ended and are not exported yet, and stop the exporter."""
        await asyncio.to_thread(self._provider.shutdown)

    def put(self, parent: str | None, queue: Queue) -> Span:
        """See ports.Tracing."""
        return self._span("everput put", SpanKind.SERVER, parent, _of_queue(queue.id, queue.name))

    def append(self, put: ports.Span, queue: Queue) -> Span:
        """See ports.Tracing."""
        return self._span("everput append", SpanKind.PRODUCER, put.traceparent, _of_queue(queue.id, queue.name))

    def attempt(self, parent: str, listener: Listener, message_id: str, number: int) -> Span:
        """See ports.Tracing."""
        attributes: dict[str, Any] = {
            "messaging.system": "everput",
            "messaging.operation.type": "process",
            "messaging.message.id": message_id,
            "everput.queue.id": listener.queue_id,
            "everput.listener.id": listener.id if listener.replay is None else listener.replay.listener_id,
            "everput.listener.name": listener.name,
            "everput.attempt.number": number,
        }
        if listener.replay is None:
            return self._span("everput attempt", SpanKind.CLIENT, parent, attributes)
        attributes["everput.replay.id"] = listener.id
        return self._span("everput attempt", SpanKind.CLIENT, None, attributes, link=parent)

    def _span(
        self, name: str, kind: Any, parent: str | None, attributes: Mapping[str, Any], *, link: str | None = None
    ) -> Span:
        above, linked = _context(parent), _context(link)
        context = Context() if above is None else set_span_in_context(NonRecordingSpan(above), Context())
        links = [] if linked is None else [Link(linked)]
        return Span(self._tracer.start_span(name, context, kind, attributes, links))


def _of_queue(queue_id: str, name: str) -> dict[str, str]:
    return {
        "messaging.system": "everput",
        "messaging.operation.type": "send",
        "messaging.destination.name": name,
        "everput.queue.id": queue_id,
    }


def _context(traceparent: str | None) -> SpanContext | None:
    """Convert a `traceparent` to OpenTelemetry's context. Return None if the `traceparent` is missing or not valid."""
    place = None if traceparent is None else trace.parse(traceparent.encode())
    if place is None:
        return None
    flags = TraceFlags(int(place.flags, 16))
    return SpanContext(int(place.trace_id, 16), int(place.span_id, 16), is_remote=True, trace_flags=flags)
