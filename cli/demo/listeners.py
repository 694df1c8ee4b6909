"""The listeners of `everput demo`: real HTTP servers in a process of their own.

For: taking deliveries, checking their signatures, counting, and refusing when a command says so. Commands arrive as
lines of JSON on stdin, and counts leave as lines of JSON on stdout. The process ends when stdin ends.
Not for: judging what they received (cli/demo/demo.py)."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any, Final

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from broker.core.signing import Signer, secret_bytes
from cli.processes.server import Server
from cli.processes.sockets import bind

REPORT_S: Final = 0.2
# Refuse a request if its timestamp is more than this many seconds before or after the present (Standard Webhooks).
CLOCK_SKEW_S: Final = 300
ENOUGH_S: Final = 0.5


class Listener:
    """A listener of the demo.

    `received` maps each message's id to how often the listener accepted the message. `refused` is the number of
    requests with a message that were answered 503. `probes` is the number of requests to the liveness URL.
    """

    def __init__(self, name: str, secret: str) -> None:
        self.name = name
        self.refusing = False
        self.received: Counter[str] = Counter()
        self.refused = self.again = self.forged = self.probes = 0
        self._signer = Signer(secret_bytes(secret))
        self.app = Starlette(
            routes=[Route("/notify", self._notify, methods=["POST"]), Route("/live", self._live, methods=["GET"])]
        )

    async def _notify(self, request: Request) -> Response:
        body = await request.body()
        if not self._signed(request, body):
            self.forged += 1
            return Response(status_code=401)
        if self.refusing:
            self.refused += 1
            return Response(status_code=503)
        self.again += request.headers.get("everput-attempt", "1") != "1"
        self.received[request.headers["webhook-id"]] += 1
        return Response(status_code=204)

    async def _live(self, _request: Request) -> Response:
        self.probes += 1
        return Response(status_code=503 if self.refusing else 204)

    def _signed(self, request: Request, body: bytes) -> bool:
        message_id, timestamp, signatures = (
            request.headers.get(f"webhook-{name}", "") for name in ("id", "timestamp", "signature")
        )
        if not timestamp.isdecimal() or abs(time.time() - int(timestamp)) > CLOCK_SKEW_S:
            return False
        wanted = self._signer.sign(message_id.encode(), timestamp.encode(), body)
        return wanted.decode() in signatures.split(" ")

    def counts(self) -> dict[str, Any]:
        return {
            "received": len(self.received),
            "duplicates": self.received.total() - len(self.received),
            "refused": self.refused,
            "again": self.again,
            "forged": self.forged,
            "probes": self.probes,
            "refusing": self.refusing,
        }


def _tell(message: dict[str, Any]) -> None:
    print(json.dumps(message), flush=True)


async def _obey(listeners: Sequence[Listener]) -> None:
    """Obey commands from stdin, one for each line. {"refuse": name} and {"accept": name} make a listener refuse or
    accept messages. {"everything": true} prints how often each listener got each message.
    """
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    by_name = {listener.name: listener for listener in listeners}
    while text := await reader.readline():
        order = json.loads(text)
        if "refuse" in order:
            by_name[order["refuse"]].refusing = True
        if "accept" in order:
            by_name[order["accept"]].refusing = False
        if "everything" in order:
            _tell({"everything": {listener.name: listener.received for listener in listeners}})


async def _report(listeners: Sequence[Listener]) -> None:
    while True:
        _tell({"counts": {listener.name: listener.counts() for listener in listeners}})
        await asyncio.sleep(REPORT_S)


async def _main(secrets: dict[str, str]) -> None:
    listeners = [Listener(name, secret) for name, secret in secrets.items()]
    sockets = [bind("127.0.0.1", 0) for _ in listeners]
    servers = [Server(listener.app) for listener in listeners]
    serving = [asyncio.create_task(server.serve(sockets=[one])) for server, one in zip(servers, sockets, strict=True)]
    _tell({"ports": {one.name: taken.getsockname()[1] for one, taken in zip(listeners, sockets, strict=True)}})
    report = asyncio.create_task(_report(listeners))
    await _obey(listeners)
    report.cancel()
    for server in servers:
        server.should_exit = True
    await asyncio.wait(serving, timeout=ENOUGH_S)
    os._exit(0)


if __name__ == "__main__":
    asyncio.run(_main(json.loads(os.environ["EVERPUT_DEMO_SECRETS"])))
