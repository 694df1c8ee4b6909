"""Every command that shows text from outside, against an API whose every text tries to drive the terminal."""

from __future__ import annotations

import asyncio
import logging
import re
import socket
import threading
from collections.abc import Callable, Iterator
from itertools import zip_longest
from typing import Any, NamedTuple

import click
import orjson
import pytest
from click.testing import CliRunner, Result
from msgspec import inspect
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket

from cli import logs
from cli.app import everput
from cli.processes.server import Server
from cli.visible import visible
from everput import answers

ID = "5f0e6f0a-33c1-4a8e-8f1d-b5b9f6f0c001"
MESSAGE_ID = "019b76d9-0000-7000-8000-000000000001"
TIME = "2026-01-31T12:00:00.000Z"
HOSTILE = "[/nope]:bomb:[red]\x1b]0;x\x07\x9b31m\u202e\u2066\u200f\r\x00"
VISIBLE = r"[/nope]:bomb:[red]\x1b]0;x\x07\x9b31m\u202e\u2066\u200f\r\x00"
FORGED = "x\neverput: all is well"  # in an error: a second line that looks like the program's own
# As in cli/visible.py, written again: a test that asks the program what is dangerous can't fail.
DANGEROUS = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")

WIDE = {"COLUMNS": "2000"}  # so that no cell is folded
URLS = ("--notify-url", "http://127.0.0.1:8/n", "--liveness-url", "http://127.0.0.1:8/l")
SHOWING = {
    "queues list": (),
    "queues get": ("q",),
    "queues create": ("q",),
    "queues rename": ("q", "r"),
    "queues delete": ("q", "--yes"),
    "queues alerts": ("q",),
    "listeners list": ("q",),
    "listeners get": ("q", ID),
    "listeners create": ("q", "l", *URLS),
    "listeners update": ("q", ID, "--name", "m"),
    "listeners delete": ("q", ID, "--yes"),
    "listeners pause": ("q", ID),
    "listeners resume": ("q", ID),
    "listeners test": ("q", ID),
    "listeners secret": ("q", ID),
    "listeners rotate-secret": ("q", ID),
    "messages list": ("q",),
    "messages get": ("q", MESSAGE_ID),
    "messages put": ("q", "data"),
    "messages update": ("q", MESSAGE_ID, "data"),
    "messages delete": ("q", MESSAGE_ID, "--yes"),
    "keys list": (),
    "keys get": (ID,),
    "keys create": ("k",),
    "keys revoke": (ID, "--yes"),
    "parked": ("q", ID),
    "replays": ("q", ID),
    "replay": ("q", ID, "--from", "beginning"),
    "show queue": ("q",),
    "status": (),
    "log": (),
    "listen": ("q", "--to", "HOOK", "--once", "--body"),
    "login": (),
}
# These show of the API's answers their errors alone.
ERRORS_ONLY = {"stats": ("q",), "put": ("q", "FILE"), "redrive": ("q", ID), "export": ("FOLDER",)}
# These ask no API: they show nothing from outside, or print it by cli/printing.py as the others do, which ruff checks.
LOCAL = (
    *(f"accounts {name}" for name in ("block", "delete", "end-sessions", "list", "reset-password", "unblock")),
    *(f"organizations {name}" for name in ("invitations", "invite", "list", "remove-member")),
    *(f"organizations {name}" for name in ("revoke-invitation", "revoke-key", "set-role")),
    *("serve", "api", "worker", "init", "rotate-sealing-key", "verify"),
    *("export-all", "check", "import", "mend", "events", "completion", "demo"),
    *(f"profiles {name}" for name in ("list", "use", "remove")),
)


def filled(kind: inspect.Type) -> Any:
    """A value of this type in which every text that may be any text is hostile."""
    match kind:
        case inspect.Metadata():
            return TIME if (kind.extra_json_schema or {}).get("format") == "date-time" else filled(kind.type)
        case inspect.UnionType():
            return filled(next(one for one in kind.types if not isinstance(one, inspect.NoneType)))
        case inspect.StrType():
            return HOSTILE if kind.pattern is None else ID
        case inspect.BoolType():
            return True
        case inspect.IntType() | inspect.FloatType():
            return 1
        case inspect.ListType():
            return [filled(kind.item_type)]
        case inspect.DictType():
            return {HOSTILE: filled(kind.value_type)}
        case inspect.StructType():
            return {one.encode_name: filled(one.type) for one in kind.fields if one.encode_name != "next"}
        case inspect.AnyType():
            return HOSTILE
    raise AssertionError(kind)


def merged(one: Any, other: Any) -> Any:
    if isinstance(one, dict) and isinstance(other, dict):
        return {name: merged(one.get(name), other.get(name)) for name in {**one, **other}}
    if isinstance(one, list) and isinstance(other, list):
        return [merged(*pair) for pair in zip_longest(one, other)]
    return other if one is None else one


def all_answers() -> dict[str, Any]:
    """One object with the fields of every answer: each request finds in it the answer that it expects."""
    whole: dict[str, Any] = {}
    for kind in vars(answers).values():
        if isinstance(kind, type) and issubclass(kind, answers.Answer) and kind.__name__.endswith("Answer"):
            whole = merged(whole, filled(inspect.type_info(kind)))
    return whole


EVENT = {"type": HOSTILE, "v": 1, "at_ms": 0, "organization_id": ID, "actor": HOSTILE, "request_id": HOSTILE}
LOG = orjson.dumps({"event": {**EVENT, "name": HOSTILE, "data": HOSTILE, HOSTILE: 1}}) + (
    b'\n{"cursor":"c","complete":true}\n'
)


async def answer(request: Request) -> Response:
    if request.url.path == "/hook":
        return Response()
    if "refuses" in request.headers["x-api-key"]:
        problem = {"type": "/problems/no", "title": HOSTILE, "status": 422, "detail": f"{HOSTILE} {FORGED}"}
        return Response(orjson.dumps(problem), 422, media_type="application/problem+json")
    if request.url.path == "/v1/log":
        return Response(LOG, media_type="application/x-ndjson")
    return Response(orjson.dumps(all_answers()), media_type="application/json")


async def listen(socket: WebSocket) -> None:
    await socket.accept()
    if "refuses" in socket.headers["x-api-key"]:
        await socket.close(4401, f"{VISIBLE} {FORGED}"[:100])
        return
    await socket.send_text(orjson.dumps({"type": "listening", "listener": {"id": ID, "name": HOSTILE}}).decode())
    headers = {"webhook-id": MESSAGE_ID, "everput-attempt": "1"}
    await socket.send_text(orjson.dumps({"type": "message", "number": 1, "headers": headers, "body": HOSTILE}).decode())
    await socket.receive_text()
    await socket.close()


@pytest.fixture(autouse=True)
def own_profiles(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


class Api(NamedTuple):
    url: str
    invoke: Callable[..., Result]


@pytest.fixture(scope="module")
def api() -> Iterator[Api]:
    listening = socket.create_server(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{listening.getsockname()[1]}"
    started = threading.Event()
    routes = [
        WebSocketRoute("/{path:path}", listen),
        Route("/{path:path}", answer, methods=["GET", "PUT", "POST", "DELETE"]),
    ]
    server = Server(Starlette(routes=routes), accepts=started.set, websockets=True)
    thread = threading.Thread(target=asyncio.run, args=[server.serve(sockets=[listening])])
    thread.start()
    assert started.wait(30)

    def invoke(*arguments: str, key: str = "takes") -> Result:
        return CliRunner().invoke(everput, arguments, env={"EVERPUT_URL": url, "EVERPUT_API_KEY": key, **WIDE})

    yield Api(url, invoke)
    server.should_exit = True
    thread.join()


def commands(group: click.Group, context: click.Context, path: str = "") -> Iterator[str]:
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if isinstance(command, click.Group):
            yield from commands(command, context, f"{path}{name} ")
        else:
            yield f"{path}{name}"


def test_every_command_is_listed_here():
    assert {*SHOWING, *ERRORS_ONLY, *LOCAL} == set(commands(everput, click.Context(everput)))


def is_safe(result: Result) -> None:
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exc_info
    for text in (result.stdout, result.stderr):
        assert DANGEROUS.search(text) is None, ascii(text)


@pytest.mark.parametrize("command", SHOWING)
def test_a_command_shows_text_from_outside_as_it_is_and_escaped(api: Api, command: str):
    arguments = [f"{api.url}/hook" if one == "HOOK" else one for one in SHOWING[command]]
    result = api.invoke(*command.split(), *arguments)
    is_safe(result)
    shown = re.sub(r"\s+", "", result.stdout)
    assert VISIBLE in shown or (command == "log" and VISIBLE[:50] in shown), result.output


@pytest.mark.parametrize("command", [*SHOWING, *ERRORS_ONLY])
def test_a_command_shows_an_error_of_the_api_escaped_and_without_a_line_of_its_own(api: Api, command: str, tmp_path):
    (tmp_path / "lines").write_text("one\n")
    places = {"HOOK": f"{api.url}/hook", "FILE": str(tmp_path / "lines"), "FOLDER": str(tmp_path / "export")}
    arguments = [places.get(one, one) for one in {**SHOWING, **ERRORS_ONLY}[command]]
    result = api.invoke(*command.split(), *arguments, key="refuses")
    is_safe(result)
    assert result.exit_code in (1, 2)
    assert VISIBLE[:50] in re.sub(r"\s+", "", result.stderr), result.output
    assert "everput: all is well" not in result.stderr.splitlines()


@pytest.mark.parametrize("command", sorted({*SHOWING} - {"listen", "login"}))
def test_json_stays_the_json_of_the_api(api: Api, command: str):
    result = api.invoke(*command.split(), *SHOWING[command], "--json")
    is_safe(result)
    assert HOSTILE in texts([orjson.loads(line) for line in result.stdout.encode().split(b"\n") if line])


def texts(value: Any) -> set[str]:
    """All texts in a value."""
    if isinstance(value, str):
        return {value}
    parts = [*value, *value.values()] if isinstance(value, dict) else value if isinstance(value, list) else ()
    return {text for part in parts for text in texts(part)}


def test_a_log_line_of_a_process_shows_text_from_outside_escaped():
    formatter = logs.TextFormatter("api")
    record = logging.makeLogRecord({"msg": "%s", "args": (logs.line("attempt.settled", error=HOSTILE),)})
    with pytest.raises(ValueError) as caught:
        int(HOSTILE)
    record.exc_info = (caught.type, caught.value, caught.tb)
    text = formatter.format(record)
    assert DANGEROUS.search(text) is None
    assert text.count(VISIBLE) == 2
    assert len(text.splitlines()) > 2  # the traceback keeps its lines


def test_layout_keeps_tabs_and_line_ends_and_nothing_else():
    assert visible("a\tb\nc\r\x1b", layout=True) == "a\tb\nc\\r\\x1b"
    assert visible("a\tb\nc") == "a\\tb\\nc"
    assert visible("ü ✓ [x] \\ \udcff") == "ü ✓ [x] \\ \\udcff"
