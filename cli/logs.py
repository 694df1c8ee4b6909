"""Log lines on stderr, one for each event: `time LEVEL process event key=value …`, or a JSON object.

For: the format, the level of each library, and writing in a thread, so that a slow reader of stderr delays nothing.
Lines that do not fit the queue are dropped and counted. Not for: what is logged, which every module decides. No API
key, secret or body of a message is ever logged.
"""

from __future__ import annotations

import json
import logging
import queue
import shlex
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from io import FileIO
from itertools import islice
from typing import Any, Final

from cli.visible import visible

LINES_MAX: Final = 10_000  # the most log lines that may wait to be written; further lines are dropped
_LAST_S: Final = 2.0  # the most seconds that a process waits at its end until all log lines are written
_LOOK_S: Final = 0.005
_STDERR: Final = 2

LEVELS = ("debug", "info", "warning", "error")
FORMATS = ("text", "json")

# The lowest level of the lines that each of these loggers writes, unless Everput's own log level is debug.
# At any level below CRITICAL, aiokafka logs each failed connection while Kafka is down. So its level is CRITICAL.
_QUIETER = {
    "aiokafka": logging.CRITICAL,
    "faust": logging.ERROR,
    "mode": logging.ERROR,
    "projections.app": logging.WARNING,  # the name of the logger for the start and stop of Everput's Faust app
    "uvicorn": logging.WARNING,
    "httpx": logging.WARNING,
    "httpcore": logging.WARNING,
    "asyncio": logging.WARNING,
    "filelock": logging.WARNING,
}
# The debug lines of aiokafka.conn contain requests with passwords. So this logger never writes debug lines.
_NEVER_DEBUG = {"aiokafka.conn": logging.INFO}


def line(event: str, **fields: object) -> str:
    """Format a log line as `event key=value …`. Leave out fields that are None. Put a value into quotes if it is empty,
    or has white space, `=` or a quote.
    """
    return " ".join([event, *(f"{name}={_value(value)}" for name, value in fields.items() if value is not None)])


def _value(value: object) -> str:
    text = str(value)
    return text if text and not any(c.isspace() or c in '"=' for c in text) else '"' + text.replace('"', "'") + '"'


class TextFormatter(logging.Formatter):
    def __init__(self, process: str) -> None:
        super().__init__("%(asctime)s.%(msecs)03dZ %(levelname)s " + process + " %(message)s", "%Y-%m-%dT%H:%M:%S")

        self.converter = time.gmtime

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        # Write an event as one line. If an error is logged, its traceback follows on further lines.
        record.message = visible(" ".join(record.message.split("\n")))
        return super().formatMessage(record)

    def formatException(self, ei: Any) -> str:  # noqa: N802 - logging's name
        return visible(super().formatException(ei), layout=True)


class _JsonFormatter(TextFormatter):
    """The formatter of a log line as one JSON object: time, level, from (the process), event, and the event's fields.

    Lines of libraries often do not have the form `event key=value`. Such a line gets the event `library`, the field
    `message` with the line's text, and the field `logger`. Numbers and booleans stay as they are. Every other value
    becomes text.
    """

    def __init__(self, process: str) -> None:
        super().__init__(process)
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        event, values = getattr(record, "everput_event", None) or _named(record)
        shown: dict[str, Any] = {
            "time": f"{self.formatTime(record, self.datefmt)}.{record.msecs:03.0f}Z",
            "level": record.levelname.lower(),
            "from": self._process,
            "event": event,
        }
        for name, value in values.items():
            if value is not None:
                # If a field of the event is named like a field that every line has, such as `time`, append `_`.
                shown[f"{name}_" if name in shown else name] = (
                    value if isinstance(value, int | float) else visible(str(value))
                )
        if record.exc_info:
            shown["traceback"] = self.formatException(record.exc_info)
        return json.dumps(shown)


def _named(record: logging.LogRecord) -> tuple[str, dict[str, object]]:
    """Return the event and the fields of a log line in the form `event key=%s …`. For any other line, return the event
    `library`, with the line's logger and text as fields.
    """
    arguments = iter(record.args if isinstance(record.args, tuple) else ())
    try:
        first, *rest = shlex.split(str(record.msg))
        pairs = [(name, template) for name, found, template in (part.partition("=") for part in rest) if found]
        if len(pairs) == len(rest):
            event = _filled(first, arguments)
            return str(event), {name: _filled(template, arguments) for name, template in pairs}
    except (ValueError, TypeError):
        pass
    return "library", {"logger": record.name, "message": record.getMessage()}


def _filled(template: str, arguments: Iterator[object]) -> object:
    """Fill a template with its arguments, and return the text. If the template is only `%d` or `%s`, return the
    argument as it is, for example as a number.
    """
    used = tuple(islice(arguments, template.count("%")))
    return used[0] if used and template in ("%d", "%s") else template % used


class Writer(logging.Handler):
    """A log handler that writes in a thread. So the event loop goes on if stderr is a pipe that nobody reads.

    While `lines_max` lines wait to be written, further lines are dropped and counted. The module `logging` calls
    `flush` when the process ends, also after an error.
    """

    def __init__(self, fd: int, *, lines_max: int = LINES_MAX) -> None:
        super().__init__()
        # Do not use sys.stderr: at the process's end, Python needs its lock, which the writing thread may hold.
        self._file = FileIO(fd, "w", closefd=False)
        self._lines: queue.Queue[bytes] = queue.Queue(lines_max)
        self._left_out = 0
        threading.Thread(target=self._write, name="log", daemon=True).start()

    @property
    def unwritten(self) -> int:
        """The number of log lines that are not written yet."""
        return self._lines.unfinished_tasks

    def emit(self, record: logging.LogRecord) -> None:
        """Put a line into the queue for writing."""
        try:
            text = self.format(record)
        except Exception:  # noqa: BLE001 - as all handlers do
            self.handleError(record)
            return
        if self._left_out:
            left_out = {"levelname": "WARNING", "msg": "log.left_out lines=%d", "args": (self._left_out,)}
            text = f"{self.format(logging.makeLogRecord(left_out))}\n{text}"
        try:
            self._lines.put_nowait(f"{text}\n".encode(errors="backslashreplace"))
        except queue.Full:
            self._left_out += 1
        else:
            self._left_out = 0

    def flush(self) -> None:
        """Wait until all log lines are written, but at most _LAST_S seconds."""
        until_s = time.monotonic() + _LAST_S
        while self._lines.unfinished_tasks and time.monotonic() < until_s:
            time.sleep(_LOOK_S)

    def _write(self) -> None:
        while True:
            rest = self._lines.get()
            with suppress(OSError):  # the reader of stderr has gone
                while rest:
                    rest = rest[self._file.write(rest) or 0 :]
            self._lines.task_done()


def formatter(process: str, form: str) -> logging.Formatter:
    """Return the formatter for log lines of this process."""
    return _JsonFormatter(process) if form == "json" else TextFormatter(process)


def set_up(process: str, level: str, form: str = "text") -> None:
    """Write the log lines of this process from `level` on to stderr from now on. Some loggers of libraries have a
    higher level of their own.

    `process` is the name in each line, such as `worker-1`. `level` is one of LEVELS, and `form` one of FORMATS.
    """
    handler = Writer(_STDERR)
    handler.setFormatter(formatter(process, form))
    logging.basicConfig(handlers=[handler], level=level.upper(), force=True)
    lowest = logging.getLogger().level
    for name, quiet in (_NEVER_DEBUG if level == "debug" else _QUIETER).items():
        logging.getLogger(name).setLevel(max(quiet, lowest))


def set_up_quietly(process: str, level: str) -> None:
    """Call set_up() for a command that prints its own result: at the default level `info`, write only warnings and
    errors.
    """
    set_up(process, "warning" if level == "info" else level)


class Logger:
    """A module's logger whose lines are events with fields."""

    def __init__(self, name: str) -> None:
        self._logger = logging.getLogger(name)

    def info(self, event: str, **fields: Any) -> None:
        self._say(logging.INFO, event, fields)

    def warning(self, event: str, **fields: Any) -> None:
        self._say(logging.WARNING, event, fields)

    def error(self, event: str, error: BaseException | None = None, **fields: Any) -> None:
        """Log an error, and the traceback of the exception if one is given."""
        self._say(logging.ERROR, event, fields, error)

    def _say(self, level: int, event: str, fields: dict[str, Any], error: BaseException | None = None) -> None:
        if self._logger.isEnabledFor(level):
            self._logger.log(
                level, "%s", line(event, **fields), exc_info=error, extra={"everput_event": (event, fields)}
            )
