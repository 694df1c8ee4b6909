"""The decision whether this process traces with OpenTelemetry, from its environment variables.

For: OTEL_EXPORTER_OTLP_ENDPOINT turns tracing on. OTEL_SDK_DISABLED=true and OTEL_TRACES_EXPORTER=none turn it off.
Without tracing, no module of OpenTelemetry is imported. Not for: spans (cli/otel.py), storing and sending
`traceparent`, which works without tracing (broker/core/trace.py).
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

from cli.logs import Logger

if TYPE_CHECKING:
    from cli.otel import OtelTracing

_log = Logger(__name__)

_ENDPOINTS: Final = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")


def wanted(environment: Mapping[str, str]) -> bool:
    """Return whether the environment asks for tracing."""
    if environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return False
    if environment.get("OTEL_TRACES_EXPORTER", "otlp").strip().lower() == "none":
        return False
    return any(environment.get(name) for name in _ENDPOINTS)


@asynccontextmanager
async def tracing() -> AsyncIterator[OtelTracing | None]:
    """Export OpenTelemetry spans inside the `with` block. Yield None if the environment variables do not turn tracing
    on, or if OpenTelemetry's packages are not installed.
    """
    found = _start() if wanted(os.environ) else None
    try:
        yield found
    finally:
        if found is not None:
            await found.stop()


def _start() -> OtelTracing | None:
    try:
        from cli.otel import OtelTracing
    except ImportError as error:
        _log.warning("tracing.missing", reason=error, install="everput[otel]")
        return None
    return OtelTracing.start()
