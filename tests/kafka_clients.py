"""How tests connect to an embedded Kafka from outside: with another Kafka client, or with a command of ours."""

from __future__ import annotations

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
