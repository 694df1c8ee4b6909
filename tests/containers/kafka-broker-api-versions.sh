#!/usr/local/bin/python
"""In the place of Kafka's own, whose jar Everput does not need: it asks the broker for the same, ApiVersions."""

import socket
import struct
import sys

host, port = sys.argv[sys.argv.index("--bootstrap-server") + 1].split(":")
with socket.create_connection((host, int(port)), 10) as broker:
    broker.sendall(struct.pack(">ihhih", 10, 18, 0, 1, -1))
    size, correlation, error = struct.unpack(">iih", broker.recv(10, socket.MSG_WAITALL))
sys.exit((correlation, error) != (1, 0))
