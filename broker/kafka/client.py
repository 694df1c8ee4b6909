"""The connection settings of every Kafka client of this program.

For: turning KafkaSettings into aiokafka's keyword arguments, the same for producer, consumer, admin client and raw
client. Not for: further settings of a producer or consumer (producer.py, tail.py), the topics (topics.py, admin.py).
"""

from __future__ import annotations

import re
import ssl
from typing import Any, Final

from broker.errors import ConfigurationError
from broker.settings import SASL_MECHANISMS, SECURITY_PROTOCOLS, KafkaSettings

# If a Kafka broker does not answer within 15 s, producers and Faust ask which broker leads the partition now.
# With the default timeouts, a Kafka broker that hangs would stop aiokafka's producer for 40 s, and Faust for 90 s.
ANSWER_MS: Final = 15_000
# This regular expression takes linear time: a repetition never matches the character that follows it (`]` or `:`).
_SERVER: Final = re.compile(r"(?:\[[0-9A-Fa-f:.]+\]|[^\s:/\[\]@]+):[0-9]{1,5}")


def client_options(kafka: KafkaSettings) -> dict[str, Any]:
    """Turn Everput's Kafka settings into keyword arguments for the aiokafka clients.

    Raises ConfigurationError for a missing or invalid server, an invalid protocol or SASL mechanism, a missing SASL
    name or password, or an unreadable PEM file.
    """
    protocol = kafka.security_protocol
    if protocol not in SECURITY_PROTOCOLS:
        raise ConfigurationError(
            f"Kafka has no security protocol {protocol!r}: set --kafka-security-protocol to one of "
            f"{', '.join(SECURITY_PROTOCOLS)}"
        )
    servers = [server for server in (part.strip() for part in kafka.bootstrap.split(",")) if server]
    if not servers:
        raise ConfigurationError("no Kafka server is set; give --kafka at least one as host:port")
    for server in servers:
        if not _SERVER.fullmatch(server) or int(server.rpartition(":")[2]) not in range(1, 65_536):
            raise ConfigurationError(f"the server {server!r} in --kafka is not valid; write it as host:port")
    options: dict[str, Any] = {"bootstrap_servers": servers, "security_protocol": protocol}
    if protocol.startswith("SASL_"):
        options |= _sasl(kafka)
    if protocol.endswith("SSL"):
        options["ssl_context"] = _ssl_context(kafka)
    return options


def _sasl(kafka: KafkaSettings) -> dict[str, Any]:
    if kafka.sasl_mechanism not in SASL_MECHANISMS:
        raise ConfigurationError(
            f"{kafka.security_protocol} needs a SASL mechanism: set --kafka-sasl-mechanism to one of "
            f"{', '.join(SASL_MECHANISMS)}"
        )
    if not kafka.sasl_username or not kafka.sasl_password:
        raise ConfigurationError(
            f"{kafka.security_protocol} needs a SASL user name and password: set --kafka-sasl-username and "
            "EVERPUT_KAFKA_SASL_PASSWORD"
        )
    return {
        "sasl_mechanism": kafka.sasl_mechanism,
        "sasl_plain_username": kafka.sasl_username,
        "sasl_plain_password": kafka.sasl_password,
    }


def _ssl_context(kafka: KafkaSettings) -> ssl.SSLContext:
    """Create the TLS settings for Kafka. Host names are checked. Without `ca_file` the system's CA certificates are
    trusted.
    """
    try:
        context = ssl.create_default_context(cafile=kafka.ca_file)
        if kafka.cert_file is not None:
            context.load_cert_chain(kafka.cert_file, kafka.key_file)
    except (OSError, ssl.SSLError) as error:
        files = ", ".join(str(file) for file in (kafka.ca_file, kafka.cert_file, kafka.key_file) if file is not None)
        raise ConfigurationError(
            f"the TLS files for Kafka ({files}) can't be used: {error}; check them and the options --kafka-*-file"
        ) from error
    return context
