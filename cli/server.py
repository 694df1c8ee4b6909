"""An HTTP server on a socket that is bound already: uvicorn with our settings.

For: the API processes and the listeners of `everput demo`. Not for: signals (the process has its own) or the app."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterator
from typing import Any, Final

import uvicorn

from cli.listen import BACKLOG

KEEP_ALIVE_S: Final = 75  # longer than the 60 s after which common proxies drop their side
FINISH_S: Final = 7  # for running requests, after should_exit


class Server(uvicorn.Server):
    """app: ASGI. accepts: called once when requests are taken. Await serve(sockets=[…]); set should_exit to end it."""

    def __init__(self, app: Any, *, accepts: Callable[[], None] = lambda: None) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                loop="none",
                http="httptools",
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                backlog=BACKLOG,
                timeout_keep_alive=KEEP_ALIVE_S,
                timeout_graceful_shutdown=FINISH_S,
            )
        )
        self._accepts = accepts

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._accepts()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield
