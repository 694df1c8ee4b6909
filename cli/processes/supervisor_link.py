"""The socket between the supervisor and a process that it has started, used in the process.

For: lines of JSON. When Kafka is ready, the supervisor sends the address and password of the embedded Kafka, or null
for a cluster. The process sends its admin address, and `ready` or an error. The process ends when the supervisor has
ended. Not for: the supervisor's side of the socket (cli/processes/children.py).
"""

from __future__ import annotations

import json
import os
import socket
import threading
from concurrent.futures import Future

from broker.kafka.embedded.access import EmbeddedAccess

VARIABLE = "EVERPUT_SUPERVISOR_FD"


class Link:
    """The connection of a process to its supervisor."""

    def __init__(self, descriptor: int) -> None:
        self._socket = socket.socket(fileno=descriptor)
        self._socket.setblocking(True)
        self._socket.set_inheritable(False)
        self._go: Future[EmbeddedAccess | None] = Future()
        # Read the supervisor's lines in a thread, because the event loop may be busy, or may not run yet.
        threading.Thread(target=self._listen, name="link", daemon=True).start()

    @classmethod
    def from_environment(cls) -> Link | None:
        """Return the connection to the supervisor. Return None if no supervisor started this process."""
        descriptor = os.environ.pop(VARIABLE, None)
        return None if descriptor is None else cls(int(descriptor))

    def wait_for_go(self) -> EmbeddedAccess | None:
        """Block until Kafka is ready. Return the address and password of an embedded Kafka, or None for a cluster."""
        return self._go.result()

    def admin(self, url: str) -> None:
        """Tell the supervisor this process's admin address."""
        self._send({"admin": url})

    def ready(self) -> None:
        self._send({"ready": True})

    def failed(self, message: str) -> None:
        """Tell the supervisor why this process can't start."""
        self._send({"error": message})

    def _send(self, message: dict[str, object]) -> None:
        self._socket.sendall(json.dumps(message).encode() + b"\n")

    def _listen(self) -> None:
        try:
            with self._socket.makefile("rb") as lines:
                for text in lines:
                    embedded = json.loads(text)["embedded"]
                    self._go.set_result(None if embedded is None else EmbeddedAccess(**embedded))
        except OSError:
            pass
        # The socket to the supervisor was closed, so the supervisor has died.
        # An embedded Kafka dies with the supervisor.
        # So exit at once, without cleaning up.
        os._exit(1)
