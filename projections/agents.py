"""The Faust agents: they hand each record of a topic to the fold.

For: decoding, and never letting a record end the agent. An agent that raised would have its record acknowledged and
skipped, so it catches everything. Not for: what the events change (projections/directory.py)."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Any

from broker.core.events import decode
from broker.errors import UnknownEvent
from projections.directory import DirectoryProjection

log = logging.getLogger(__name__)


def fold_control(
    directory: DirectoryProjection, failed: Callable[[BaseException], None]
) -> Callable[[Any], Awaitable[None]]:
    """The agent that folds `control`.

    failed: told of an error in the fold itself. The state can't be trusted then, so the process has to end.
    """

    async def control(stream: Any) -> None:
        async for record in stream.noack().events():
            offset = record.message.offset
            try:
                directory.fold(offset, decode(record.message.value))
            except UnknownEvent as error:
                log.error("projection.event_unknown topic=control offset=%d error=%s", offset, error)  # noqa: TRY400
                directory.fold(offset, None)
            except Exception as error:
                log.exception("projection.fold_failed topic=control offset=%d", offset)
                failed(error)

    return control
