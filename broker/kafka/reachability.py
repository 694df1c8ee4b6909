"""Finds which Kafka servers answer, and why others do not.

For: checking each server before a client starts, because a client would wait long for a silent server; and after a
client has failed on all servers without saying why. Not for: other settings of clients (client.py), waiting for a
cluster (admin.py).
"""

from __future__ import annotations

import asyncio
import ssl
from typing import Any, Final

from aiokafka import errors as kafka_errors
from aiokafka.conn import collect_hosts, create_conn
from aiokafka.protocol.metadata import MetadataRequest

from broker.errors import ConfigurationError
from broker.kafka.client import client_options
from broker.settings import KafkaSettings

_LOOK_S: Final = 5.0
_MOMENT_S: Final = 1.5


class _Wrong(Exception):
    """The error of a connection to Kafka that can't succeed until somebody changes a setting. The text says which
    setting.
    """


async def reachable(kafka: KafkaSettings, *, within_s: float = _MOMENT_S) -> dict[str, Any]:
    """Return the settings of the Kafka clients with only those bootstrap servers that answer within `within_s`.

    All servers stay in the list if none answers, or if there is only one.
    """
    return await of_those_that_answer(client_options(kafka), within_s=within_s)


async def of_those_that_answer(options: dict[str, Any], *, within_s: float = _MOMENT_S) -> dict[str, Any]:
    """Return the client options with only those bootstrap servers that answer within `within_s`. If no server answers,
    or there is only one, all servers stay in the options.
    """
    servers: list[str] = options["bootstrap_servers"]
    if len(servers) == 1:
        return options
    hosts = collect_hosts(servers, randomize=False)
    found = await asyncio.gather(*(_look(host, port, options, within_s=within_s) for host, port, _ in hosts))
    answer = [server for server, problem in zip(servers, found, strict=True) if not problem]
    return {**options, "bootstrap_servers": answer or servers}


async def why_not(options: dict[str, Any]) -> str:
    """Explain why bootstrap servers can't be reached: a reason for each server that does not answer. If all servers
    answer, return "it answers again".

    Raises ConfigurationError if no server answers, and the reason for one of them is a wrong setting: the password, the
    SASL mechanism, the security protocol, or a certificate that is not trusted.
    """
    hosts = collect_hosts(options["bootstrap_servers"], randomize=False)
    found = await asyncio.gather(*(_look(host, port, options) for host, port, _ in hosts))
    wrong = [problem for problem in found if isinstance(problem, _Wrong)]
    if wrong and all(found):
        raise ConfigurationError(str(wrong[0]))
    return "; ".join(str(problem) for problem in found if problem) or "it answers again"


async def _look(host: str, port: int, options: dict[str, Any], *, within_s: float = _LOOK_S) -> str | _Wrong:
    """Return what is wrong with a Kafka server; an empty text if it answers."""
    where = f"{host}:{port}"
    given = {name: value for name, value in options.items() if name != "bootstrap_servers"}
    try:
        async with asyncio.timeout(within_s):
            connection = await create_conn(host, port, request_timeout_ms=round(within_s * 1000), **given)
            try:
                await connection.send(MetadataRequest([]))
            finally:
                connection.close()
    except (kafka_errors.KafkaError, OSError, TimeoutError) as error:
        wrong = _what_is_wrong(where, options, error)
        return _short(where, error) if wrong is None else _Wrong(wrong)
    return ""


def _what_is_wrong(where: str, options: dict[str, Any], error: Exception) -> str | None:
    mechanism, user = options.get("sasl_mechanism"), options.get("sasl_plain_username")
    match error:
        case kafka_errors.SaslAuthenticationFailed():
            return (
                f"Kafka at {where} refuses the password of the user {user} ({mechanism}): check "
                "--kafka-sasl-username, --kafka-sasl-mechanism and EVERPUT_KAFKA_SASL_PASSWORD"
            )
        case kafka_errors.UnsupportedSaslMechanismError():
            return f"Kafka at {where} does not support the SASL mechanism {mechanism}: check --kafka-sasl-mechanism"
        case kafka_errors.IllegalSaslStateError():
            return f"Kafka at {where} does not use SASL on this port: check --kafka-security-protocol"
        case ssl.SSLCertVerificationError():
            return f"the certificate of Kafka at {where} is not trusted ({error.verify_message}): check --kafka-ca-file"
    return None


def _short(where: str, error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return f"{where}: no answer within {_LOOK_S:g} s"
    if isinstance(error, ConnectionRefusedError):
        return f"{where}: connection refused"
    if isinstance(error, kafka_errors.KafkaConnectionError | ConnectionResetError):
        return f"{where}: the server closes the connection; check --kafka-security-protocol and the client certificate"
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return f"{where}: {text}"
