"""Every parser of text that comes from outside, and hostile texts for it; run as a program, it counts their cost.

For: test_linear.py, which runs it under Callgrind and compares PLACES with the code. Not for: what the parsers answer.

A parser gets texts of SIZES characters, each a small piece repeated, once each in a run. Between two runs the program
calls os.getppid(), which it does nowhere else: Callgrind dumps and zeroes its counts there, so a dump is a run's cost
in instructions.
"""

from __future__ import annotations

import asyncio
import gc
import os
import sys
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import suppress
from ipaddress import ip_network
from typing import Any, Final, NamedTuple

import orjson
from api_client import Api, make_api

import everput
from api.auth import Sessions, cookie
from api.clients import Clients
from api.damaged_ids import DamagedIds
from api.reference import OPERATION_DOCS
from api.tunnel import Tunnel, Tunnels
from broker.core import batching, codec, formats, ids, names, signing, trace
from broker.core.accounts import refuse_email
from broker.core.cursor import Cursor
from broker.outbound.addresses import Target, literal_address, refuse_url
from broker.outbound.answer import read_answer, read_body
from broker.outbound.connection import Connection
from broker.outbound.retry_after import retry_after_s
from broker.sealing import Sealer, new_sealing_key
from cli.listen.tunnel_client import _detail
from cli.options import _Age, _Host, _Network
from cli.processes.hosts import Hosts
from cli.processes.server import Server
from cli.times import Time
from cli.visible import visible, visible_json
from everput.answers import ProblemAnswer
from everput.client import _decoded

SIZES: Final = (500, 1000, 2000, 4000)
PIECES: Final = (
    *("a", " ", "\t", "0", "9", "-", ".", ".[", "[", "]", "`", "$", "\\", '"', "%", "%41", ";", "a=", "=;", ",", ", "),
    *(
        ":",
        "::",
        "/",
        "//",
        "@",
        "a@",
        "a.",
        "+",
        "*",
        "(",
        "{",
        "}",
        "&",
        "a&",
        "#",
        "?",
        "\x00",
        "\x1b",
        "é",
        "\u202e",
    ),
    *("W/", '"1.', "T00:", "1h", "evp_", "aA0_", "field `", " - at `$", "\r\n", "\r\n\r\n", "retry-after: "),
)
PIECES_OF_REQUESTS: Final = (".[", "`", "%", ",", "9", "aA0_", "\\", '"', "=;", "T00:", " - at `$", "\x00")


# By each run below that reaches it, the functions that parse: the test finds them in the code by what they call.
COVERED: Final[dict[str, str]] = {
    "cookie": "cookie",
    "answer": "Connection.data_received",
    "kept answer": "_Parsed.parse",
    "answer without length": "is_begun_object",
    "retry-after": "_wait_s",
    "host": "Hosts._accepts _is_address",
    "url": "parse_url refuse_url _is_name",
    "address": "literal_address",
    "email": "refuse_email",
    "message id": "parse_message_id parse_damaged_id DamagedIds.opened",
    "secret": "secret_bytes",
    "cursor metadata": "unpack",
    "event": "_decode_other",
    "tunnel": "Tunnel.answered",
    "signature": "verify",
    "signature's secret": "_secret_bytes",
    "batch": "verify_batch _batch_message",
    "batch's answer": "failed_ids",
    "shown": "visible",
    "slack": "slack alert_in mail_text",
    "traceparent": "parse",
    "shown JSON": "visible_json",
    "moment": "Time.convert",
    "age": "_Age.convert",
    "networks": "_Network.convert",
    "GET /v1/queues": "PageTokens.open request_id_of Call.query _position span rfc3339_ms versions",
    "GET /v1/log": "_actor find_queue",
    "GET /v1/queues/{queue_id}/statistics": "_step_ms",
    "PUT /v1/queues/{queue_id}/listeners": "parse _check_shape _refusal _check_headers",
    "PUT /v1/queues/{queue_id}/messages": "Messages._put_once",
    "GET /v1/queues/{queue_id}/listeners": "find_listener",
    "PUT /v1/queues/{queue_id}/listeners/{listener_id}": "_origin",
    "same origin": "Sessions.same_origin",
    "POST /v1/sessions/oidc": "OidcSignIn.start",
    "x-forwarded-for header": "parse_address _name",
    "forwarded header": "parse_address",
    "client's answer": "_decoded _problem",
    "tunnel's client": "_detail TunnelClient._serve",
}
# The functions that parse only what the program itself or its operator wrote, or what was parsed before.
OURS: Final[dict[str, str]] = {
    "smtp_settings": "the operator's option",
    "oidc_settings": "the operator's options",
    "is_https_or_loopback": "the operator's option, or a URL in the bounded metadata of the operator's provider",
    "Provider._ask": "a bounded answer of the operator's provider, orjson",
    "Attempts.__init__": "a URL that refuse_url() has seen",
    "Attempts.update": "a URL that refuse_url() has seen",
    "alive": "a URL that refuse_url() has seen",
    "try_out": "a URL that refuse_url() has seen",
    "Resolver.__init__.may_be_at": "an address that the system's resolver gives",
    "Clients.network": "an address that parse_address() has read",
    "Message.renewed": "a record that was encoded here",
    "Message.name_and_data": "a record that was encoded here",
    "ClaimsTopic.append": "a hash that was made here",
    "client_options": "the operator's option",
    "written_access": "the file that format() wrote",
    "made_password": "a file in the data directory",
    "Sealer.__init__": "the operator's key",
    "group_listener": "names of Kafka's groups; fixed lengths",
    "all_app.states": "the answers of this server's own processes",
    "Child._talk": "lines of a child process",
    "Link._listen": "lines of the supervisor",
    "_run": "a message of the supervisor",
    "_obey": "lines of the demo",
    "DemoListeners._listen": "lines of the demo",
    "DemoServer._read_log": "lines of our own log",
    "_teller": "times that the server wrote",
    "_teller.tells": "lines that the server wrote, orjson",
    "_ask": "lines that the server wrote, orjson",
    "_same": "times that the server wrote",
    "_export": "lines that the server wrote, orjson",
    "_check_owner": "an export's first line, orjson",
    "command": "lines that the server wrote, orjson",
    "load": "an export's manifest, msgspec",
    "Options.hosts": "the operator's option",
    "_range": "the operator's argument",
    "is_loopback": "the operator's option",
    "Address.convert": "the user's own option",
    "whole_id": "an ID that the user pasted; fixed length",
    "is_here": "a file in the user's working directory",
    "messages_in": "a body that the API made, orjson",
    "notifications": "a body that the API made, orjson",
    "_store_cursors": "lines of an export, orjson",
    "record": "lines of an export, orjson",
    "_bytes": "fields of an export",
    "_row": "times that the server wrote",
    "TunnelClient.__init__": "the operator's option",
}


def texts(size: int, *, before: str = "", pieces: Sequence[str] = PIECES) -> Iterator[str]:
    """Yield hostile texts of about size characters."""
    for piece in pieces:
        yield before + piece * (size // len(piece))


def each(parser: Callable[[str], Any], *, before: str = "") -> Callable[[int], Awaitable[None]]:
    """Return a run that hands all texts to a parser, whatever it answers or raises."""

    async def run(size: int) -> None:
        for text in texts(size, before=before):
            for whole in (text, text + "\x01" * 60):  # the second has no end that a pattern could find
                with suppress(Exception):
                    parser(whole)

    return run


class _Ear:
    """A connection's owner and transport, a WebSocket's tunnel: takes all and does nothing."""

    def __getattr__(self, name: str) -> Any:
        return self

    def __call__(self, *_: Any, **__: Any) -> None:
        return None


_TARGET: Final = Target(tls=False, host="x", port=80, authority="x", target="/")


def _answer(text: str) -> None:
    """Have a connection to a listener read this answer, in pieces."""
    connection = Connection(_Ear(), _TARGET)  # type: ignore[arg-type]
    connection.connection_made(_Ear())  # type: ignore[arg-type]
    connection.send(b"", object(), 0.0)
    data = text.encode()
    for start in range(0, len(data), 500):
        connection.data_received(data[start : start + 500])


class _Transport(_Ear):
    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return ("127.0.0.1", 1) if name in ("sockname", "peername") else default

    def is_closing(self) -> bool:
        return False


def _formats(text: str) -> None:
    body = orjson.dumps({"message": {"name": "n", "data": text}})
    formats.slack(body)
    formats.mail_text(body)


def _signature(text: str) -> None:
    signed = {"webhook-id": text, "webhook-timestamp": "1", "webhook-signature": text}
    for headers in (signed, {**signed, "webhook-timestamp": text}):
        with suppress(everput.InvalidSignature):
            everput.verify("whsec_" + "A" * 32, headers, b"")


def _batch(text: str) -> None:
    """Read a batch that is signed, so that its body is read."""
    body, key = text.encode(), b"\0" * 24
    headers = {
        "webhook-id": "batch_1",
        "webhook-timestamp": "1",
        "webhook-signature": signing.Signer(key).sign(b"batch_1", b"1", body).decode(),
    }
    with suppress(ValueError):
        everput.verify_batch(signing.secret_text(key), headers, body, now_s=1)


async def _no_content(_scope: Any, _receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 204, "headers": []})
    await send({"type": "http.response.body"})


class _Reader:
    """A server that reads requests without a socket, in pieces. It needs a running loop."""

    def __init__(self) -> None:
        self._server = Server(_no_content)
        self._server.config.load()

    def __call__(self, text: str) -> None:
        server = self._server
        connection = server.config.http_protocol_class(server.config, server.server_state, {})  # type: ignore[call-arg]
        connection.connection_made(_Transport())  # type: ignore[arg-type]
        data = text.encode() + b"\r\n\r\n"
        for start in range(0, len(data), 500):
            connection.data_received(data[start : start + 500])
        server.server_state.connections.clear()


def _ask(api: Api, method: str, path: str, told: Any) -> Callable[[int], Awaitable[None]]:
    """Have one operation read hostile texts: in its path, its query, its headers, and each field of its body."""

    async def request(text: str, body: bytes, query: bytes) -> None:
        plain = text.encode().translate(None, bytes(range(32)))
        headers = [(one.name.lower().encode(), plain) for one in told.parameters if one.place == "header"]
        headers += [(b"x-api-key", api.key.encode()), (b"content-type", b"application/json"), (b"x-request-id", plain)]
        sent = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive() -> Any:
            return sent.pop() if sent else {"type": "http.disconnect"}

        async def send(_message: Any) -> None: ...

        where = path.replace("{queue_id}", str(api.first_queue_id))
        scope = {
            "type": "http",
            "method": method,
            "path": where,
            "raw_path": where.encode(),
            "root_path": "",
            "scheme": "http",
            "query_string": query,
            "headers": headers,
            "server": ("x", 80),
            "client": ("x", 1),
        }
        await api.app(scope, receive, send)

    async def run(size: int) -> None:
        names_of = [one.name for one in told.parameters if one.place == "query"]
        for text in texts(size, pieces=PIECES_OF_REQUESTS):
            plain = text.encode().translate(None, bytes(range(33)))
            query = b"&".join(name.encode() + b"=" + plain for name in names_of)
            body = b""
            if told.example is not None:
                body = orjson.dumps({**told.example, **dict.fromkeys(told.example, text)})
            await request(text, body, query)
        for body in (orjson.dumps({text: 1}) for text in texts(size, before="x - at `$`", pieces=PIECES_OF_REQUESTS)):
            if told.example is not None:
                await request("", body, b"")

    return run


class TextParser(NamedTuple):
    """A function that reads a text. before: what makes it read further, put before each text."""

    read: Callable[[str], Any]
    before: str = ""


def text_parsers() -> dict[str, TextParser]:
    """Return the parsers that read a text alone, by their names in COVERED. Call it in a running loop."""
    tunnel = Tunnel(_Ear(), 1, _Ear())  # type: ignore[arg-type]
    hosts = Hosts(["*"])
    sessions = Sessions(_Ear(), "https://x")  # type: ignore[arg-type]
    clients = Clients([ip_network("127.0.0.0/8"), ip_network("::/0")])
    reader = _Reader()
    chunked = "PUT / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"

    def client(header: bytes) -> Callable[[str], Any]:
        return lambda text: clients.name({"client": ("127.0.0.1", 1), "headers": [(header, text.encode())]})

    def origin(text: str) -> bool:
        return sessions.same_origin({"scheme": "http", "headers": [(b"host", b"x"), (b"origin", text.encode())]})

    damaged_ids = DamagedIds(Sealer(new_sealing_key()))
    return {
        "cookie": TextParser(lambda text: cookie(f'a="{text}"', "a")),
        "retry-after": TextParser(
            lambda text: retry_after_s(text.encode(), at_s=0.0), "HTTP/1.1 429 X\r\nretry-after:"
        ),
        "answer": TextParser(_answer, "HTTP/1.1 429 X\r\n"),
        "kept answer": TextParser(
            lambda text: read_answer(text.encode(), ("secret", "Bearer secret")),
            "HTTP/1.1 422 X\r\ntransfer-encoding: chunked\r\n\r\n9\r\n",
        ),
        "answer without length": TextParser(
            lambda text: read_body(text.encode(), cut=False), "HTTP/1.1 200 X\r\n\r\n{"
        ),
        "chunked answer": TextParser(_answer, "HTTP/1.1 200 X\r\ntransfer-encoding: chunked\r\n\r\n1;"),
        "request line": TextParser(reader, "GET /"),
        "request head": TextParser(reader, "GET / HTTP/1.1\r\nhost: x\r\nx:"),
        "chunked request": TextParser(reader, chunked + "1;"),
        "trailers": TextParser(reader, chunked + "0\r\nx:"),
        "host": TextParser(lambda text: text.encode() in hosts),
        "url": TextParser(lambda text: refuse_url(text, ()), "http://"),
        "host name": TextParser(lambda text: refuse_url(text[:2000], ()), "http://a"),
        "address": TextParser(literal_address),
        "name": TextParser(names.refuse_name),
        "email": TextParser(refuse_email),
        "message id": TextParser(
            lambda text: (
                *(ids.parse_damaged_id(text), ids.parse_message_id(text)),
                damaged_ids.opened(text, "o"),
            )
        ),
        "secret": TextParser(signing.secret_bytes, "whsec_"),
        "cursor metadata": TextParser(lambda text: Cursor.from_metadata(0, text)),
        "event": TextParser(lambda text: codec.decode(text.encode()), '{"type":"queue.created","name":"'),
        "message": TextParser(
            lambda text: codec.decode_message(orjson.dumps({"type": "message.put", "data": text, text: 1}))
        ),
        "tunnel": TextParser(tunnel.answered, '{"number":"'),
        "tunnel's client": TextParser(lambda text: _detail(text.encode())),
        "signature": TextParser(_signature),
        "signature's secret": TextParser(lambda text: everput.verify(text, {}, b""), "whsec_"),
        "batch's answer": TextParser(lambda text: batching.failed_ids(text.encode()), '{"failed":["'),
        "batch": TextParser(_batch, '[{"id":"m","content_type":"a","attempt":1,"body":'),
        "shown": TextParser(visible),
        "slack": TextParser(_formats),
        "traceparent": TextParser(lambda text: trace.parse(text.encode()), "00-"),
        "shown JSON": TextParser(visible_json),
        "moment": TextParser(lambda text: Time().convert(text, None, None)),
        "age": TextParser(lambda text: _Age().convert(text, None, None)),
        "networks": TextParser(
            lambda text: [_Network().convert(one, None, None) for one in _Network().split_envvar_value(text)]
        ),
        "hosts": TextParser(_Host().split_envvar_value),
        "same origin": TextParser(origin),
        "x-forwarded-for header": TextParser(client(b"x-forwarded-for")),
        "forwarded header": TextParser(client(b"forwarded")),
        "client's answer": TextParser(lambda text: _decoded(text.encode(), ProblemAnswer), '{"title":"'),
    }


async def parsers() -> dict[str, Callable[[int], Awaitable[None]]]:
    """Return a run of hostile texts for each parser, by its name in COVERED."""
    runs = {name: each(parser.read, before=parser.before) for name, parser in text_parsers().items()}
    api = await make_api(tunnels=Tunnels("tunnel://127.0.0.1:7"))
    await api.queue()
    for (method, path), told in OPERATION_DOCS.items():
        if told.parameters or told.example is not None:
            runs[f"{method} {path}"] = _ask(api, method, path, told)
    return runs


async def _main(which: str) -> None:
    gc.disable()  # a collection would count as some parser's cost
    for name, run in (await parsers()).items():
        if which not in name:
            continue
        await run(SIZES[0])  # imports, caches
        for size in SIZES:
            os.getppid()
            await run(size)
        os.getppid()
        print(name, flush=True)


if __name__ == "__main__":
    asyncio.run(_main(sys.argv[1] if len(sys.argv) > 1 else ""))
