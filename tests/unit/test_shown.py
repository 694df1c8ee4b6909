"""What `everput demo` and `everput put` show: on a terminal, which is a real one here, and elsewhere."""

from __future__ import annotations

import os
import pty
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO

import pytest

from cli.demo.view import Row, View
from cli.progress import Progress

MAIL = Row(name="mail", state="refuses", received=1_234, waiting=5, refused=7, retries=2, duplicates=1)
CRM = Row(name="crm", state="takes them", received=1_239, waiting=0, refused=0, retries=0, duplicates=0)
UP, CLEARED = "\x1b[1A", "\x1b[2K"  # so a table, or a bar, takes the place of the one before


@dataclass
class Terminal:
    master: int
    slave: IO[str]

    def shown(self) -> str:
        """Since it was asked last."""
        self.slave.flush()
        found = b""
        os.set_blocking(self.master, False)
        try:
            while part := os.read(self.master, 1 << 16):
                found += part
        except BlockingIOError:
            return found.decode()
        raise AssertionError("the terminal is closed")


@contextmanager
def on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[Terminal]:
    """It is stdout and stderr. Not a fixture: pytest would put its own in their place before the test."""
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "100")
    master, slave = pty.openpty()
    with os.fdopen(slave, "w", encoding="utf-8") as file, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", file)
        patch.setattr(sys, "stderr", file)
        yield Terminal(master, file)
    os.close(master)


def plain(text: str) -> str:
    """Without colours."""
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


def test_the_demo_shows_a_table_that_takes_its_own_place_on_a_terminal(monkeypatch: pytest.MonkeyPatch):
    with on_a_terminal(monkeypatch) as terminal:
        view = View(2_000)
        with view:
            view.show(1_239, [CRM, MAIL])
            first = terminal.shown()
            view.show(1_240, [CRM, MAIL])
            second = terminal.shown()
            view.say("mail is back")
            said = terminal.shown()
    assert "put 1,239 of 2,000" in first
    rows = [re.findall(r"[a-z][a-z ]*[a-z]|[\d,]+", line) for line in plain(first).splitlines()]
    assert ["listener", "state", "received", "waiting", "refused", "retries", "duplicates"] in rows
    assert ["crm", "takes them", "1,239", "0", "0", "0", "0"] in rows
    assert ["mail", "refuses", "1,234", "5", "7", "2", "1"] in rows
    assert UP not in first
    assert UP in second
    assert "put 1,240 of 2,000" in second
    assert "s  mail is back" in said


def test_the_demo_shows_a_line_a_second_elsewhere_and_the_last_one_at_once(capsys: pytest.CaptureFixture[str]):
    view = View(2_000)
    with view:
        for put in (1, 2, 3):
            view.show(put, [CRM, MAIL])
        view.show(4, [CRM, MAIL], now=True)
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(" | ")[0].partition(" s  ")[2] for line in lines] == ["put 1 of 2,000", "put 4 of 2,000"]
    assert "mail (refuses): received 1,234, waiting 5, refused 7, retries 2, duplicates 1" in lines[0]


def test_put_shows_a_bar_and_what_is_refused_above_it_on_a_terminal(monkeypatch: pytest.MonkeyPatch):
    with on_a_terminal(monkeypatch) as terminal:
        with Progress(total_bytes=1_000, shown=True) as progress:
            terminal.shown()
            progress.update(1_500, 3, 500)
            progress.say("line 7: not UTF-8")
        shown = terminal.shown()
    assert "line 7: not UTF-8" in shown
    *_, bar = re.findall(r"[\d,]+ put [^\r\n]*", plain(shown))
    assert re.match(r"1,500 put ━{20}╺━{19} [\d,]+/s 3 refused ", bar), "half of the bytes are read"
    assert CLEARED in shown


@pytest.mark.parametrize("shown", [True, False])
def test_put_shows_no_bar_where_it_is_not_wanted_or_there_is_no_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], shown: bool
):
    def put() -> None:
        with Progress(total_bytes=None, shown=shown) as progress:
            progress.update(5, 1, 10)
            progress.say("line 2: refused")

    if shown:
        put()
        assert capsys.readouterr().err == "line 2: refused\n"
    else:
        with on_a_terminal(monkeypatch) as terminal:
            put()
            assert terminal.shown() == "line 2: refused\r\n"
