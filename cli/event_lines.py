"""Events as lines for people: one line for each event, cut to the terminal, with names instead of ids.

For: `everput log`. Not for: reading the log (log_client.py), the fields of events (broker/core/catalogue.py).
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, Final

import orjson

from broker.core.codec import CLASSES
from cli.short_ids import short_id
from cli.steps import result
from cli.visible import visible

Part = str | tuple[str, str]  # one part of an output line: a text, or a text with its color

_COMMON: Final = ("type", "v", "at_ms", "organization_id", "actor", "request_id")
# After time and type, an event's line has the id from the first of these fields that the event has, without a name.
# In an event's line, the other fields of _SUBJECTS are shown as NAME=ID.
_SUBJECTS: Final = ("message_id", "replay_id", "key_id", "account_id", "session_id")
_NAMED: Final = ("queue_id", "listener_id")
_VALUE_CHARS_MAX: Final = 60
_TYPE_WIDTH: Final = max(map(len, CLASSES))
# On a terminal with fewer than _WIDE columns, lines have no milliseconds, and fewer spaces between their parts.
# With fewer than _WIDE terminal columns, an event type longer than _NARROW_TYPE_WIDTH shifts the rest of its line.
# On a terminal with 80 columns, 52 are usually left after an event's time and type. A short id takes 22 of them.
_WIDE: Final = 120
_NARROW_TYPE_WIDTH: Final = len("delivery.attempted")
_COLORS: Final = {"parked": "red", "damaged": "red", "attempted": "yellow", "deleted": "magenta", "settled": "green"}


class EventLines:
    """The formatter of events as lines. It remembers the names of queues and listeners that events contain. Later lines
    show these names.

    `width` is the number of columns of the terminal. If the output is not a terminal, `width` is None, and lines and
    ids are not shortened. A VALUE in NAME=VALUE is always cut to 60 characters.
    """

    def __init__(self, names: dict[str, str], width: int | None) -> None:
        self._names = names
        self._width = width
        self._date = ""

    def of(self, event: dict[str, Any]) -> Iterator[list[Part]]:
        """Yield the lines of an event. Most events have one line. An event `deliveries.settled` has a line for each
        delivery, and an event `answers.kept` a line for each attempt.

        On a terminal, the first event of each day has a line with the date before it.
        """
        self._learn(event)
        if event["type"] == "deliveries.settled":
            for offset, at_ms, status, took_ms in event["rows"]:
                one = {name: value for name, value in event.items() if name != "rows"}
                details = f"attempt 1 delivered: {status} after {took_ms or 'under 1'} ms"
                yield from self._lines(at_ms, {**one, "offset": offset}, details, "green")
            return
        if event["type"] == "answers.kept":
            for line in _answered(event):
                rest = {name: value for name, value in event.items() if name not in ("attempts", "answers")}
                yield from self._lines(event["at_ms"], rest, line, "yellow")
            return
        details, color = "", _COLORS.get(event["type"].rpartition(".")[2], "")
        if event["type"] == "delivery.attempted":
            color = "green" if event["outcome"] == "delivered" else "yellow"
            event, details = _attempt(event)
        if event["type"] == "listener.tested":
            event, details = _tested(event)
        yield from self._lines(event["at_ms"], event, details, color)

    def _learn(self, event: Mapping[str, Any]) -> None:
        if event.get("name") and event["type"].startswith(("queue.", "listener.")):
            self._names[event.get("listener_id") or event.get("queue_id") or ""] = event["name"]

    def _lines(self, at_ms: int, event: Mapping[str, Any], details: str, color: str) -> Iterator[list[Part]]:
        at = datetime.fromtimestamp(at_ms // 1000, UTC)
        wide = self._width is None or self._width >= _WIDE
        time = f"{at:%H:%M:%S}.{at_ms % 1000:03d}" if wide else f"{at:%H:%M:%S}"
        if self._width is None:
            time = f"{at:%Y-%m-%d}T{time}Z"
        elif self._date != f"{at:%Y-%m-%d}":
            self._date = f"{at:%Y-%m-%d}"
            yield [f"{self._date} (UTC)"]
        subject = next((name for name in _SUBJECTS if event.get(name)), "")
        where = " > ".join(self._name(event[name]) for name in _NAMED if event.get(name))
        shown = (*_COMMON, subject, *_NAMED)
        fields = {name: value for name, value in event.items() if name not in shown and value not in ("", None)}
        # Put names late in the line: they can be long, and on a narrow terminal, the end of the line is cut off.
        rest = [self._id(event.get(subject, "")), details]
        rest.append(f"by {self._actor(event['actor'])}" if event["actor"] != "worker" else "")
        rest += [where, *(f"{name}={self._value(value)}" for name, value in fields.items())]
        if self._width is None and event["request_id"]:
            rest.append(f"request {event['request_id']}")
        kind = event["type"].ljust(_TYPE_WIDTH if wide else _NARROW_TYPE_WIDTH)
        gap = "  " if wide else " "
        text = " ".join(part for part in rest if part)
        if self._width is not None:
            text = fitted(text, self._width - len(time) - len(kind) - 2 * len(gap))
        yield [f"{time}{gap}", (kind, color) if color else kind, f"{gap}{text}"]

    def _name(self, text: str) -> str:
        name = self._names.get(text)
        if name is None:
            return self._id(text)
        return visible(name) if self._width is not None else f"{visible(name)} ({text})"

    def _id(self, text: str) -> str:
        return text if self._width is None else short_id(text)

    def _actor(self, actor: str) -> str:
        kind, colon, name = actor.partition(":")
        return f"{kind}{colon}{self._id(name)}"

    def _value(self, value: Any) -> str:
        text = visible(value if isinstance(value, str) else orjson.dumps(value).decode())
        return text if len(text) <= _VALUE_CHARS_MAX else text[:_VALUE_CHARS_MAX] + "…"


def fitted(text: str, columns: int) -> str:
    """Return a text, cut to `columns` columns of a terminal. If the text was cut, it ends with `…`. Wide characters
    take two columns.
    """
    used = 0
    for place, char in enumerate(text):
        wide = 0 if unicodedata.combining(char) else 2 if unicodedata.east_asian_width(char) in "WF" else 1
        if used + wide > columns:
            return text[: max(0, place - 1)] + "…"
        used += wide
    return text


def _attempt(event: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """Turn some fields of the event of a delivery attempt into a text for people. Return the event without these
    fields, and the text.
    """
    rest = dict(event)
    number, outcome, took_ms = (rest.pop(name) for name in ("number", "outcome", "took_ms"))
    status, error, next_at_ms = (rest.pop(name) for name in ("status", "error", "next_at_ms"))
    text = f"attempt {number} {outcome}: {result(status, error)} after {took_ms or 'under 1'} ms"
    if next_at_ms is not None:
        text += f", next in {(next_at_ms - event['at_ms']) / 1000:.1f} s"
    return rest, text


def _tested(event: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """Turn some fields of the event of a listener test into a text for people. Return the event without these fields,
    and the text.
    """
    rest = dict(event)
    status, error, took_ms, answers = (rest.pop(name) for name in ("status", "error", "took_ms", "answers"))
    text = f"{result(status, error)} after {took_ms or 'under 1'} ms"
    text += _durations([rest.pop(name) for name in ("dns_ms", "connect_ms", "tls_ms")])
    return rest, text + "".join(f", answer: {visible(' '.join(body.split()))}" for _, _, _, body, *_ in answers)


def _durations(durations: Iterable[int | None]) -> str:
    steps = zip(("DNS", "connect", "TLS"), durations, strict=True)
    return "".join(f", {name} {ms or 'under 1'} ms" for name, ms in steps if ms is not None)


def _answered(event: Mapping[str, Any]) -> Iterator[str]:
    """Yield a text for each attempt in an event `answers.kept`. The text has the message's offset, the attempt's
    number, the known durations of the attempt's steps, and the listener's answer if it is in the event.
    """
    answers = {one[0]: one for one in event["answers"]}
    for offset, number, answer_id, _, _, *durations in event["attempts"]:
        text = f"offset={offset} attempt {number}" + _durations(durations)
        if answer_id in answers:
            _, status, _, body, *_ = answers[answer_id]
            text += f", answer {answer_id}: {status} {visible(' '.join(body.split()))}"
        elif answer_id:
            text += f", answer {answer_id} as before"
        yield text
