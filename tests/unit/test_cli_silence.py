"""No command is silent while no server answers: it ends and says so, or says what it waits for."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import click
import pytest
from test_cli_hostile_text import ERRORS_ONLY, LOCAL, SHOWING, commands

from cli.app import everput

FIRST_LINES = Path(__file__).with_name("first_lines.py")
# What a command asks that is not the API: Kafka, if it is told one.
OF_KAFKA = {
    **{f"accounts {name}": ("a@example.com",) for name in ("block", "end-sessions", "unblock")},
    "accounts delete": ("a@example.com", "--yes"),
    "accounts reset-password": ("a@example.com",),
    "accounts list": (),
    "organizations invitations": ("o",),
    "organizations invite": ("o", "a@example.com"),
    "organizations list": (),
    "organizations remove-member": ("o", "a@example.com"),
    "organizations revoke-invitation": ("i",),
    "organizations revoke-key": ("k",),
    "organizations set-role": ("o", "a@example.com", "auditor"),
    "init": (),
    "export-all": ("folder",),
}
# These ask nobody, or are servers themselves, which say what they wait for in their log.
OF_NOBODY = {
    *("serve", "api", "worker", "demo", "check", "events", "completion", "profiles list", "profiles use"),
    *("profiles remove", "import", "mend", "rotate-sealing-key", "verify"),
}


def first_lines(tmp_path: Path, url: str, asked: dict[str, Sequence[str]], *more: str) -> dict[str, str]:
    """The first line that each command prints."""
    (tmp_path / "file").write_text("line\n")
    names = {"FILE": str(tmp_path / "file"), "FOLDER": str(tmp_path / "folder"), "HOOK": "3000"}
    arguments = [[*name.split(), *(names.get(one, one) for one in given), *more] for name, given in asked.items()]
    kept = {name: value for name, value in os.environ.items() if not name.startswith("EVERPUT_")}
    done = subprocess.run(
        [sys.executable, str(FIRST_LINES)],
        input=json.dumps(arguments),
        stdout=subprocess.PIPE,
        env={**kept, "EVERPUT_URL": url, "EVERPUT_API_KEY": "k", "XDG_CONFIG_HOME": str(tmp_path)},
        cwd=tmp_path,
        text=True,
        check=True,
        timeout=300,
    )
    return dict(zip(asked, json.loads(done.stdout), strict=True))


@pytest.fixture
def refusing() -> str:
    """An address at which nothing listens."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return f"127.0.0.1:{taken.getsockname()[1]}"


def test_every_command_is_asked_here():
    asked = {*SHOWING, *ERRORS_ONLY, *OF_KAFKA, *OF_NOBODY}
    assert asked == set(commands(everput, click.Context(everput)))
    assert {*OF_KAFKA, *OF_NOBODY} == set(LOCAL)


def test_where_nothing_listens_every_command_says_so_at_once(refusing: str, tmp_path: Path):
    every = {**SHOWING, **ERRORS_ONLY}
    said = first_lines(tmp_path, f"http://{refusing}", every)
    # On a busy machine, even a refusal may take the second after which a command says what it waits for.
    late = {name: every[name] for name, line in said.items() if line.startswith("waiting for the API")}
    said |= first_lines(tmp_path, f"http://{refusing}", late)
    assert {name: line for name, line in said.items() if f"nothing answers at http://{refusing}" not in line} == {}


def test_where_nobody_answers_every_command_says_what_it_waits_for(tmp_path: Path):
    with socket.create_server(("127.0.0.1", 0), backlog=1000) as listening:
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        said = first_lines(tmp_path, url, {**SHOWING, **ERRORS_ONLY})
    assert {name: line for name, line in said.items() if not line.startswith(f"waiting for the API at {url}")} == {}


def test_where_no_kafka_is_every_operators_command_says_so(refusing: str, tmp_path: Path):
    said = first_lines(tmp_path, "http://127.0.0.1:1", OF_KAFKA, "--kafka", refusing)
    assert {name: line for name, line in said.items() if refusing not in line} == {}
