"""What commands show on a terminal: lines that fit, short ids that can be pasted, names, and colors where wanted."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_cli_connection import where_of
from test_cli_resources import Run, run  # noqa: F401 - a fixture

from cli.event_lines import EventLines, fitted
from cli.short_ids import short_id, whole_id

COLUMNS = 80
COLOR = re.compile(r"\x1b\[[0-9;]*m")


@given(st.uuids())
def test_a_short_id_is_the_whole_id_again_and_a_word_that_a_shell_leaves_alone(value: UUID):
    short = short_id(str(value))
    assert re.fullmatch("[1-9A-HJ-NP-Za-km-z]{22}", short)
    assert whole_id(short) == str(value)


@pytest.mark.parametrize("text", ["", "orders", "damaged-1-2-3", str(UUID(int=7)).upper()[:-1], "z" * 22, "l" * 22])
def test_what_is_no_id_stays_as_it_is(text: str):
    assert short_id(text) == text
    assert whole_id(text) == text


@pytest.mark.parametrize(
    ("text", "columns", "shown"),
    [
        ("abc", 3, "abc"),
        ("abcd", 3, "ab…"),
        ("日本語", 6, "日本語"),
        ("日本語", 5, "日…"),
        ("e\u0301" * 3, 3, "e\u0301" * 3),
    ],
)
def test_a_text_is_cut_to_the_columns_that_it_takes(text: str, columns: int, shown: str):
    assert fitted(text, columns) == shown


def test_names_that_events_tell_are_shown_from_then_on():
    common = {"at_ms": 1, "actor": "shell", "request_id": "", "queue_id": str(UUID(int=1))}
    paused = {**common, "type": "listener.paused", "listener_id": str(UUID(int=2))}
    lines = EventLines({}, 200)
    list(lines.of({**common, "type": "queue.created", "name": "orders"}))
    (before,) = lines.of(paused)
    assert f"orders > {short_id(str(UUID(int=2)))}" in str(before)
    list(lines.of({**paused, "type": "listener.created", "name": "billing"}))
    assert "orders > billing" in str(list(lines.of(paused)))
    whole = EventLines({str(UUID(int=2)): "billing"}, None)
    assert f"billing ({UUID(int=2)})" in str(list(whole.of(paused)))


def on_a_terminal(where: dict[str, str], *arguments: str, **environment: str) -> str:
    """What a command shows on a terminal of 80 columns."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, COLUMNS, 0, 0))
    plain = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "COLUMNS", "FORCE_COLOR")}
    with subprocess.Popen(
        [sys.executable, "-m", "cli.app", *arguments],
        stdout=theirs,
        stderr=subprocess.PIPE,
        env={**plain, "TERM": "xterm", **where, **environment},
    ) as process:
        os.close(theirs)
        shown = b""
        try:
            while part := os.read(ours, 1 << 16):
                shown += part
        except OSError:  # the terminal was closed
            pass
        _, stderr = process.communicate(timeout=60)
    os.close(ours)
    assert process.returncode == 0, stderr
    return shown.decode().replace("\r\n", "\n")


@pytest.fixture(scope="module")
def told(run: Run) -> dict[str, str]:  # noqa: F811 - the fixture
    """Where the API is, with a queue, a listener and a message in it."""
    run("queues", "create", "terminal")
    urls = ["--notify-url", "http://127.0.0.1:8/n", "--liveness-url", "http://127.0.0.1:8/l"]
    run("listeners", "create", "terminal", "billing", *urls)
    run("messages", "put", "terminal", "x" * 500, "--name", "n" * 100)
    return where_of(run)


def test_the_messages_of_a_queue_are_a_line_each_with_an_id_to_paste(told: dict[str, str]):
    (line,) = on_a_terminal(told, "messages", "list", "terminal").splitlines()
    assert len(line) <= COLUMNS
    short = line.split()[0]
    shown = on_a_terminal(told, "messages", "get", "terminal", short)
    assert whole_id(short) in shown
    assert all(len(one) <= COLUMNS for one in shown.splitlines())
    assert "pending" in COLOR.sub("", shown) or "billing" in shown


def test_at_80_columns_the_queues_and_the_status_are_blocks_with_whole_names(told: dict[str, str], run: Run):  # noqa: F811 - the fixture
    name = "myapp.io/deletion-request-queue"
    run("queues", "create", name)
    urls = ["--notify-url", "http://127.0.0.1:8/n", "--liveness-url", "http://127.0.0.1:8/l"]
    run("listeners", "create", name, "http://127.0.0.1:3000/ on host", *urls)
    queues = on_a_terminal(told, "queues", "list")
    assert re.search(rf"^ name +{name} *$", queues, re.MULTILINE)
    assert re.search(r"^ listeners +http://127\.0\.0\.1:3000/ on host *$", queues, re.MULTILINE)
    status = COLOR.sub("", on_a_terminal(told, "status", name))
    assert re.search(rf"^ queue +{name} *$", status, re.MULTILINE)
    assert re.search(r"^ state +new *$", status, re.MULTILINE)
    assert all(len(line) <= COLUMNS for line in (queues + status).splitlines())
    run("queues", "delete", name, "--yes")


def test_the_log_is_a_line_an_event_that_fits_with_names_and_ids_to_paste(told: dict[str, str]):
    lines = COLOR.sub("", on_a_terminal(told, "log")).splitlines()
    date, *events = lines
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \(UTC\)", date)
    assert all(len(line) <= COLUMNS for line in lines)
    (put,) = (line for line in events if "message.put" in line)
    short = put.split("message.put")[1].split()[0]
    assert re.fullmatch(rf"\d\d:\d\d:\d\d message\.put {{8}}{short} by key:\w{{20,22}}.*…", put)
    (story,) = COLOR.sub("", on_a_terminal(told, "log", "--message", short)).splitlines()[1:]
    assert story == put
    of_listener = COLOR.sub("", on_a_terminal(told, "log", "--listener", "billing"))
    assert "listener.created" in of_listener
    assert "message.put" not in of_listener


def test_colors_are_for_terminals_that_want_them(told: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    get = ("messages", "get", "terminal", on_a_terminal(told, "messages", "list", "terminal").split()[0])
    coloured = on_a_terminal(told, *get)
    plain = on_a_terminal(told, *get, NO_COLOR="1")
    assert COLOR.search(plain) is None
    assert COLOR.sub("", coloured) == plain
    piped = subprocess.run(
        [sys.executable, "-m", "cli.app", *get], env={**os.environ, **told}, capture_output=True, text=True, check=True
    ).stdout
    assert COLOR.search(piped) is None


def test_several_deliveries_in_one_event_are_a_line_each():
    common = {"actor": "worker", "request_id": "", "listener_id": "l", "partition": 0}
    rows = [[1, 10, 200, 3], [2, 11, 204, 4]]
    settled = {"type": "deliveries.settled", "at_ms": 5, "rows": rows, **common}
    first, second = list(EventLines({"l": "billing"}, 200).of(settled))[1:]
    assert "attempt 1 delivered: 200 after 3 ms billing" in str(first)
    assert "attempt 1 delivered: 204 after 4 ms" in str(second)


def test_at_80_columns_the_id_and_the_outcome_of_an_attempt_are_whole():
    message_id, names = (
        str(UUID(int=3)),
        {"q": "myapp.io/deletion-request-queue", "l": "http://127.0.0.1:3000/ on host"},
    )
    common = {"actor": "worker", "request_id": "", "queue_id": "q", "listener_id": "l", "message_id": message_id}
    ended = {"number": 1, "outcome": "delivered", "status": 200, "error": "", "next_at_ms": None}
    attempted = {"type": "delivery.attempted", "at_ms": 5, "took_ms": 12, **ended, **common}
    _, line = list(EventLines(names, COLUMNS).of(attempted))
    text = "".join(part if isinstance(part, str) else part[0] for part in line)
    assert f"delivery.attempted {short_id(message_id)} attempt 1 delivered: 200 " in text
    assert len(text) <= COLUMNS


def test_a_message_that_the_answer_to_a_batch_rejects_has_both_the_status_and_the_error():
    common = {"actor": "worker", "request_id": "", "listener_id": "l", "partition": 0, "offset": 1, "message_id": "m"}
    failed = {"number": 2, "outcome": "failed", "status": 200, "error": "failed-in-batch", "next_at_ms": None}
    attempted = {"type": "delivery.attempted", "at_ms": 5, "took_ms": 3, **failed, **common}
    (line,) = EventLines({"l": "billing"}, None).of(attempted)
    assert "attempt 2 failed: 200 failed-in-batch after 3 ms" in str(line)
