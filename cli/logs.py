"""Log lines: one event each, on stderr, `moment LEVEL process event key=value …`.

For: the format and how loud each library is. Not for: what is logged, which every module decides for itself; no key,
secret or body of a message is ever among it."""

from __future__ import annotations

import logging
import sys
import time
from typing import Any

LEVELS = ("debug", "info", "warning", "error")

# Libraries that tell in many lines what one line of ours says. aiokafka reports each failed connection while Kafka is
# away; the callers log the outcome.
_QUIETER = {
    "aiokafka": logging.CRITICAL,
    "faust": logging.ERROR,
    "mode": logging.ERROR,
    "projections.app": logging.WARNING,  # the module of our faust.App, which tells its start and stop there
    "uvicorn": logging.WARNING,
    "httpx": logging.WARNING,
    "httpcore": logging.WARNING,
    "asyncio": logging.WARNING,
    "filelock": logging.WARNING,
}


def line(event: str, **fields: object) -> str:
    """`event key=value …`; None is left out, a text with spaces is quoted."""
    return " ".join([event, *(f"{name}={_value(value)}" for name, value in fields.items() if value is not None)])


def _value(value: object) -> str:
    text = str(value)
    return text if text and not any(c.isspace() or c in '"=' for c in text) else '"' + text.replace('"', "'") + '"'


class _Formatter(logging.Formatter):
    def __init__(self, process: str) -> None:
        super().__init__("%(asctime)s.%(msecs)03dZ %(levelname)s " + process + " %(message)s", "%Y-%m-%dT%H:%M:%S")

        self.converter = time.gmtime

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        record.message = " ".join(record.message.split("\n"))  # one event, one line; a traceback follows it
        return super().formatMessage(record)


def set_up(process: str, level: str) -> None:
    """Log to stderr from now on. process: who speaks, such as `worker-1`. level: one of LEVELS."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Formatter(process))
    logging.basicConfig(handlers=[handler], level=level.upper(), force=True)
    if level != "debug":
        for name, quiet in _QUIETER.items():
            logging.getLogger(name).setLevel(quiet)


class Logger:
    """A module's logger whose lines are events with fields."""

    def __init__(self, name: str) -> None:
        self._logger = logging.getLogger(name)

    def info(self, event: str, **fields: Any) -> None:
        self._logger.info("%s", line(event, **fields))

    def warning(self, event: str, **fields: Any) -> None:
        self._logger.warning("%s", line(event, **fields))

    def error(self, event: str, error: BaseException | None = None, **fields: Any) -> None:
        """error: its traceback follows the line."""
        self._logger.error("%s", line(event, **fields), exc_info=error)
