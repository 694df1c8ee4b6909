"""Listening sockets. The API's socket is bound once by the supervisor and shared by all API processes.

For: binding a socket, inheriting it, and its URL. Not for: serving on it (cli/processes/api.py). While one API process
is restarted, the others accept the connections, or the kernel holds them.
"""

from __future__ import annotations

import errno
import socket
from typing import Final

from broker.errors import ConfigurationError

BACKLOG: Final = 2048


def bind(host: str, port: int) -> socket.socket:
    """Bind a socket, and let it listen at once, so that early connections wait until the server accepts them. Raises
    ConfigurationError if the address can't be bound.
    """
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listening = socket.socket(family, kind, protocol)
        try:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind(place)
            listening.listen(BACKLOG)
        except OSError:
            listening.close()
            raise
    except OSError as error:
        advice = "another program uses the port, choose another one"
        if error.errno != errno.EADDRINUSE:
            advice = "choose another address or port"
        raise ConfigurationError(f"can't listen on {host} port {port}: {error.strerror or error}; {advice}") from error
    return listening


def inherited(descriptor: int) -> socket.socket:
    """Return the socket that the supervisor has bound."""
    listening = socket.socket(fileno=descriptor)
    listening.set_inheritable(False)
    return listening


def address(listening: socket.socket, host: str) -> str:
    """Return the URL of a socket, with its actual port."""
    port = listening.getsockname()[1]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
