"""Log lines as JSON: the same event and fields as in the text, whoever logs them and whatever they hold."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from typing import Any

import pytest

from cli import logs

Said = Callable[[Callable[[logging.Logger], None]], dict[str, Any]]
HOSTILE = '\x1b[2J" event=forged\n\ud800}'


@pytest.fixture
def said() -> Said:
    def said(say: Callable[[logging.Logger], None]) -> dict[str, Any]:
        lines: list[str] = []

        class Lines(logging.Handler):
            def emit(self, record: logging.LogRecord) -> None:
                lines.append(self.format(record))

        logger = logging.getLogger("tests.log_lines")
        logger.propagate = False
        handler = Lines()
        handler.setFormatter(logs.formatter("worker-1", "json"))
        logger.handlers = [handler]
        logger.setLevel("INFO")
        say(logger)
        (line,) = lines
        assert "\n" not in line
        return json.loads(line)

    return said


def test_a_template_of_ours_becomes_its_event_and_its_fields(said: Said):
    found = said(lambda log: log.warning("circuit.opened listener=%s open=%d error=%s", "l-1", 7, "HTTP 503"))
    assert found.pop("time").endswith("Z")
    assert found == {
        "level": "warning",
        "from": "worker-1",
        "event": "circuit.opened",
        "listener": "l-1",
        "open": 7,
        "error": "HTTP 503",
    }


def test_a_template_with_quotes_and_a_changing_event_does_too(said: Said):
    found = said(lambda log: log.info('disk.%s what="free bytes" reason="%s"', "low", "two words"))
    assert (found["event"], found["what"], found["reason"]) == ("disk.low", "free bytes", "two words")


def test_our_loggers_fields_keep_their_types_and_leave_out_none(said: Said):
    found = said(lambda _: logs.Logger("tests.log_lines").info("process.died", exit=-9, again_in_s=0.5, reason=None))
    assert (found["event"], found["exit"], found["again_in_s"]) == ("process.died", -9, 0.5)
    assert "reason" not in found


def test_what_a_library_says_is_a_message(said: Said):
    found = said(
        lambda log: log.warning(
            "Sending username and 50% of it",
        )
    )
    assert found["event"] == "library"
    assert found["message"] == "Sending username and 50% of it"
    found = said(lambda log: log.warning("Heartbeat failed for group %s because it is rebalancing", "g"))
    assert found["message"] == "Heartbeat failed for group g because it is rebalancing"


def test_foreign_text_is_one_value_and_shown_escaped(said: Said):
    found = said(lambda log: log.warning("attempt.settled error=%s", HOSTILE))
    assert found["event"] == "attempt.settled"
    assert set(found) == {"time", "level", "from", "event", "error"}
    assert "\x1b" not in found["error"]
    assert "\n" not in found["error"]


def test_a_field_is_never_taken_for_the_lines_own(said: Said):
    found = said(lambda _: logs.Logger("tests.log_lines").info("process.started", time="noon", level="loud"))
    assert (found["event"], found["level_"], found["time_"]) == ("process.started", "loud", "noon")


def test_an_error_comes_with_its_traceback(said: Said):
    def say(log: logging.Logger) -> None:
        try:
            int(HOSTILE)
        except ValueError:
            log.exception("log.append_failed")

    found = said(say)
    assert (found["event"], found["level"]) == ("log.append_failed", "error")
    assert "ValueError" in found["traceback"]
    assert "\x1b" not in found["traceback"]
