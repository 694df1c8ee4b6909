"""How Kafka clients connect: every wrong setting is named before anything is tried."""

from __future__ import annotations

from dataclasses import replace

import pytest

from broker.errors import ConfigurationError
from broker.kafka.client import client_options
from broker.settings import KafkaSettings

SETTINGS = KafkaSettings(bootstrap="kafka:9092")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"security_protocol": "TLS"}, "to one of PLAINTEXT, SSL"),
        ({"bootstrap": " , "}, "at least one"),
        ({"security_protocol": "SASL_SSL"}, "needs a SASL mechanism"),
        ({"security_protocol": "SASL_PLAINTEXT", "sasl_mechanism": "PLAIN"}, "user name and password"),
    ],
)
def test_settings_that_cannot_work_are_named(changes, said):
    with pytest.raises(ConfigurationError, match=said):
        client_options(replace(SETTINGS, **changes))


def test_tls_files_that_cannot_be_read_are_named(tmp_path):
    with pytest.raises(ConfigurationError, match=r"ca\.pem"):
        client_options(replace(SETTINGS, security_protocol="SSL", ca_file=tmp_path / "ca.pem"))


def test_every_client_gets_the_same_options():
    settings = replace(
        SETTINGS,
        bootstrap="one:9092, two:9092",
        security_protocol="SASL_SSL",
        sasl_mechanism="SCRAM-SHA-512",
        sasl_username="everput",
        sasl_password="secret",
    )
    options = client_options(settings)
    assert options.pop("ssl_context").check_hostname
    assert options == {
        "bootstrap_servers": ["one:9092", "two:9092"],
        "security_protocol": "SASL_SSL",
        "sasl_mechanism": "SCRAM-SHA-512",
        "sasl_plain_username": "everput",
        "sasl_plain_password": "secret",
    }
    assert "secret" not in repr(settings)
