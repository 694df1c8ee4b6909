"""What another user of the machine gets out of an embedded Kafka: `python -m tests.kafka.stranger` prints it as JSON.

Run by root, it becomes the user `nobody` first, once all it needs is imported. Its arguments: the data directory, the
ports of the client and of the controller listener, the pid of Kafka, and passwords to try."""

from __future__ import annotations

import asyncio
import concurrent.futures.thread  # noqa: F401 - `nobody` may not be able to read it when it is needed
import json
import os
import sys
from pathlib import Path
from typing import Any

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.conn import create_conn
from aiokafka.protocol.admin import CreateTopicsRequest

NOBODY = 65534


async def told(port: int, **sasl: str) -> str:
    """`answered` if Kafka did what it was asked for, which both listeners do, else the error's name."""
    try:
        connection = await create_conn("127.0.0.1", port, request_timeout_ms=10_000, **sasl)
        try:
            await connection.send(CreateTopicsRequest([], timeout=1_000, validate_only=True))
        finally:
            connection.close()
    except Exception as error:  # noqa: BLE001 - whatever it is
        return type(error).__name__
    return "answered"


async def puts_and_reads(port: int) -> list[str]:
    """Produce and consume without a password, as the forger of a key did."""
    found = []
    for client in (AIOKafkaProducer, AIOKafkaConsumer):
        one = client(bootstrap_servers=f"127.0.0.1:{port}", request_timeout_ms=10_000)
        try:
            await one.start()
            found.append("connected")
        except Exception as error:  # noqa: BLE001 - likewise
            found.append(type(error).__name__)
        finally:
            await one.stop()
    return found


def readable(path: Path) -> bool:
    try:
        path.read_bytes() if path.is_file() else list(path.iterdir())
    except (OSError, PermissionError):
        return False
    return True


async def main(directory: str, port: str, controller_port: str, pid: str, *passwords: str) -> dict[str, Any]:
    found: dict[str, Any] = {"uid": os.geteuid(), "connected": {}}
    for name, where in (("client", int(port)), ("controller", int(controller_port))):
        found["connected"][f"{name} without a password"] = await told(where)
        for mechanism in ("PLAIN", "SCRAM-SHA-256"):
            for user in ("everput", "kafka", "admin"):
                for number, password in enumerate(passwords):
                    sasl = {"sasl_mechanism": mechanism, "sasl_plain_username": user, "sasl_plain_password": password}
                    answer = await told(where, security_protocol="SASL_PLAINTEXT", **sasl)
                    found["connected"][f"{name} {mechanism} {user} {number}"] = answer
    found["produced and consumed"] = await puts_and_reads(int(port))
    names = ("password", "client.properties", "kafka.properties", "kafka.log", "kafka.out", "kafka", ".")
    paths = [Path(directory, name) for name in names] + [Path("/proc", pid, "environ")]
    found["read"] = [str(path) for path in paths if readable(path)]
    found["command line"] = Path("/proc", pid, "cmdline").read_bytes().decode()
    return found


if __name__ == "__main__":
    if os.geteuid() == 0:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
    print(json.dumps(asyncio.run(main(*sys.argv[1:]))))
