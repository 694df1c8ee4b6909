"""The access to the embedded Kafka: one user, whose password is in a file of Kafka's directory.

For: creating and reading the password, and storing it in Kafka (docs/security.md). Not for: starting Kafka
(process.py), the SASL settings of a cluster (client.py).
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from aiokafka import errors as kafka_errors
from aiokafka.conn import create_conn
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.metadata import MetadataRequest
from aiokafka.protocol.types import CompactArray, CompactBytes, CompactString, Int8, Int16, Int32, Schema, TaggedFields

from broker.errors import ConfigurationError, LogUnavailable
from broker.private_files import read_secret, refuse_shared_file, write_private, write_secret
from broker.settings import KafkaSettings

USER: Final = "everput"
MECHANISM: Final = "SCRAM-SHA-256"
LISTENER: Final = "CLIENT"
_SHA_256: Final = 1  # Kafka's number for SCRAM-SHA-256
# This is the smallest number of SCRAM iterations that Kafka allows. It is enough for a password of 256 random bits.
_ITERATIONS: Final = 4096

# Exceptions that mean that a server is unreachable, does not answer as Kafka does, or does not know Everput's password.
NO_ANSWER: Final = (kafka_errors.KafkaError, OSError, TimeoutError, ValueError, KeyError, AssertionError)

_CLIENT_PROPERTIES: Final = f"""\
bootstrap.servers={{bootstrap}}
security.protocol=SASL_PLAINTEXT
sasl.mechanism={MECHANISM}
sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required \
username="{USER}" password="{{password}}";
"""


@dataclass(frozen=True, slots=True)
class EmbeddedAccess:
    """The address of an embedded Kafka (`127.0.0.1:port`), and the password of its user `everput`."""

    bootstrap: str
    password: str = field(repr=False)

    def settings(self, **more: Any) -> KafkaSettings:
        """Return the settings with which clients connect to this Kafka, which has one broker. `more` has further fields
        of KafkaSettings.
        """
        return KafkaSettings(
            bootstrap=self.bootstrap, replication=1, min_insync=1, **sasl(MECHANISM, USER, self.password), **more
        )


def sasl(mechanism: str, user: str, password: str) -> dict[str, Any]:
    """Return the fields of KafkaSettings for a connection that uses SASL, but no TLS."""
    return {
        "security_protocol": "SASL_PLAINTEXT",
        "sasl_mechanism": mechanism,
        "sasl_username": user,
        "sasl_password": password,
    }


def password_file(directory: Path) -> Path:
    """Return the path of the embedded Kafka's password file."""
    return directory / "password"


def made_password(directory: Path) -> str:
    """Return the password of the embedded Kafka in this directory. Create the password if there is none.

    Raises ConfigurationError if other users can read or write the password file, or if the file does not hold a
    password that Everput made.
    """
    path = password_file(directory)
    refuse_shared_file(path)
    password = read_secret(path)
    if password is None:
        password = secrets.token_urlsafe(32)
        write_secret(path, password)
    # This regular expression takes linear time on any input: it is one set of characters, repeated at most 200 times.
    if not re.fullmatch(r"[A-Za-z0-9_-]{16,200}", password):
        raise ConfigurationError(
            f"{path} does not hold a password that Everput made: delete the file, and the next start creates a new one"
        )
    return password


def write_client_properties(directory: Path, access: EmbeddedAccess) -> None:
    """Write client.properties, the file that lets Kafka's own tools connect (`--command-config`)."""
    text = _CLIENT_PROPERTIES.format(bootstrap=access.bootstrap, password=access.password)
    write_private(directory / "client.properties", text)


def written_access(directory: Path, *, bootstrap: str | None = None) -> EmbeddedAccess | None:
    """Return the address and password of the Kafka that runs in this directory, or last ran there.

    Return None if no Kafka ever ran there. With `bootstrap`, return None if Kafka had another address. Raises
    ConfigurationError if the password file is missing.
    """
    try:
        text = (directory / "kafka.properties").read_text(encoding="utf-8")
    except OSError:
        return None
    # Only our own text: this regular expression searches kafka.properties, a file that Everput itself has written.
    found = re.search(r"^advertised\.listeners=[A-Z]+://(\S+)$", text, re.MULTILINE)
    if found is None or bootstrap not in (None, found[1]):
        return None
    password = read_secret(password_file(directory))
    if password is None:
        raise ConfigurationError(
            f"{password_file(directory)} is missing: start `everput serve`, or restart it if it is running"
        )
    return EmbeddedAccess(found[1], password)


async def ask(options: dict[str, Any], *, timeout_s: float) -> bool:
    """Connect to a Kafka server, and authenticate as the `options` say. Return whether the server names at least one
    Kafka broker.

    Raises SaslAuthenticationFailed if the server does not know the user or the password. Raises another exception in
    NO_ANSWER if the server can't be reached, or does not answer as Kafka does. The `options` are the options of
    aiokafka's function create_conn().
    """
    connection = await create_conn(**options, request_timeout_ms=round(timeout_s * 1000))
    try:
        answer = await connection.send(MetadataRequest([]))
    finally:
        connection.close()
    return bool(answer.brokers)


async def tell_password(options: dict[str, Any], password: str, *, timeout_s: float) -> None:
    """Store the password of the Kafka user `everput` in Kafka. The `options` of the connection name another user, which
    Kafka already knows.

    Raises LogUnavailable if Kafka refuses to store the password, and an exception in NO_ANSWER if Kafka does not
    answer.
    """
    connection = await create_conn(**options, request_timeout_ms=round(timeout_s * 1000))
    try:
        answer = await connection.send(_AlterUserScramCredentials(password))
    finally:
        connection.close()
    for _, code, message, _ in answer.results:
        if code != 0:
            reason = message or kafka_errors.for_code(code).__name__
            raise LogUnavailable(f"the embedded Kafka refused to store the password: {reason}; Everput will try again")


# aiokafka has no class for Kafka's request AlterUserScramCredentials (https://kafka.apache.org/protocol, key 51).
# The fields of a request AlterUserScramCredentials include secrets, and must never be logged.
class _AlterUserScramCredentialsResponse(Response):  # type: ignore[misc]
    API_KEY = 51
    API_VERSION = 0
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        (
            "results",
            CompactArray(
                ("user", CompactString("utf-8")),
                ("error_code", Int16),
                ("error_message", CompactString("utf-8")),
                ("tags", TaggedFields),
            ),
        ),
        ("tags", TaggedFields),
    )


class _AlterUserScramCredentialsV0(RequestStruct):  # type: ignore[misc]
    API_KEY = 51
    API_VERSION = 0
    RESPONSE_TYPE = _AlterUserScramCredentialsResponse
    FLEXIBLE_VERSION = True
    SCHEMA = Schema(
        ("deletions", CompactArray(("user", CompactString("utf-8")), ("mechanism", Int8), ("tags", TaggedFields))),
        (
            "upsertions",
            CompactArray(
                ("user", CompactString("utf-8")),
                ("mechanism", Int8),
                ("iterations", Int32),
                ("salt", CompactBytes),
                ("salted_password", CompactBytes),
                ("tags", TaggedFields),
            ),
        ),
        ("tags", TaggedFields),
    )


class _AlterUserScramCredentials(Request[_AlterUserScramCredentialsV0]):  # type: ignore[misc]
    API_KEY = 51

    def __init__(self, password: str) -> None:
        salt = os.urandom(16)
        salted = hashlib.pbkdf2_hmac("sha256", password.encode(), salt, _ITERATIONS)
        self._upsertion: tuple[Any, ...] = (USER, _SHA_256, _ITERATIONS, salt, salted, {})

    def build(self, request_struct_class: type[_AlterUserScramCredentialsV0]) -> _AlterUserScramCredentialsV0:
        return request_struct_class([], [self._upsertion], {})
