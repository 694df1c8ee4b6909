"""Free ports on loopback for the embedded Kafka.

For: choosing a port that stays usable, and checking that no other user's program listens on it. Not for: reserving it:
another program may bind it first.
"""

from __future__ import annotations

import os
import secrets
import socket
from contextlib import suppress
from pathlib import Path
from typing import Final

from broker.errors import ConfigurationError

# Use no ephemeral port for the embedded Kafka: systems give ephemeral ports to clients as source ports.
# If Kafka's port were ephemeral, a client that tries to connect while Kafka is down could get this port, too.
# A client whose source port is Kafka's port would connect to itself, and Kafka could not start on the port.
_PORTS: Final = range(20_000, 32_000)
_LISTENING: Final = "0A"


def free_port() -> int:
    """Return a free loopback port."""
    for _ in range(100):
        port = _PORTS[secrets.randbelow(len(_PORTS))]
        if is_free(port):
            return port
    raise ConfigurationError(
        f"none of 100 random ports from {_PORTS.start} to {_PORTS.stop - 1} is free on 127.0.0.1: stop programs that "
        "use these ports"
    )


def is_free(port: int) -> bool:
    """Return whether a server can listen on this port of 127.0.0.1 now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def listens_as_us(port: int) -> bool:
    """Return whether a program listens on this port, and all programs that do run as this user. Only Linux tells which
    users they are; on other systems, return True.
    """
    owners, told = set[int](), False
    for name in ("tcp", "tcp6"):
        with suppress(OSError):
            lines = Path("/proc/net", name).read_text(encoding="ascii").splitlines()[1:]
            told = True
            for line in lines:
                _, local, _, state, _, _, _, uid, *_ = line.split()
                if state == _LISTENING and int(local.rpartition(":")[2], 16) == port:
                    owners.add(int(uid))
    return owners == {os.geteuid()} or not told
