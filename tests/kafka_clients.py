"""How tests connect to an embedded Kafka from outside: with another Kafka client, or with a command of ours. And a
connection of our own client, whose answers a test replaces."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from broker.kafka.embedded.access import EmbeddedAccess
from broker.settings import KafkaSettings


def librdkafka(kafka: KafkaSettings) -> dict[str, str]:
    """Settings for clients of confluent_kafka."""
    assert kafka.sasl_mechanism is not None
    assert kafka.sasl_username is not None
    assert kafka.sasl_password is not None
    return {
        "bootstrap.servers": kafka.bootstrap,
        "security.protocol": kafka.security_protocol,
        "sasl.mechanism": kafka.sasl_mechanism,
        "sasl.username": kafka.sasl_username,
        "sasl.password": kafka.sasl_password,
    }


def sasl_variables(kafka: KafkaSettings | EmbeddedAccess) -> dict[str, str]:
    """The environment of a command that is given `--kafka` with an embedded Kafka's address."""
    settings = kafka.settings() if isinstance(kafka, EmbeddedAccess) else kafka
    assert settings.sasl_mechanism is not None
    assert settings.sasl_username is not None
    assert settings.sasl_password is not None
    return {
        "EVERPUT_KAFKA_SECURITY_PROTOCOL": settings.security_protocol,
        "EVERPUT_KAFKA_SASL_MECHANISM": settings.sasl_mechanism,
        "EVERPUT_KAFKA_SASL_USERNAME": settings.sasl_username,
        "EVERPUT_KAFKA_SASL_PASSWORD": settings.sasl_password,
    }


class BrokerConnection:
    """The connection of an aiokafka client to a broker."""

    def __init__(self, client: Any, node: Any, group: Any) -> None:
        self.inner = client._conns[node, group]

    @property
    def oldest(self) -> tuple[Any, asyncio.Future[Any]]:
        """The request that waits longest for its answer, and the future of the answer."""
        _, request, answer, *_ = self.inner._requests[0]
        return request, answer

    def replace_frames(self, replaced: Callable[[bytes], bytes | None]) -> None:
        """Have the client read what is made of each frame of the broker, or nothing if that is None."""
        handle = self.inner._handle_frame

        def handle_other(frame: bytes) -> None:
            other = replaced(frame)
            if other is not None:
                handle(other)

        self.inner._handle_frame = handle_other

    def time_out(self, seconds: float) -> None:
        self.inner._request_timeout = seconds
