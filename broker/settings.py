"""The settings of every process, one sentence for each.

For: the values, after the command line and the environment were read. Not for: reading them (cli/options.py).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path

Network = IPv4Network | IPv6Network


@dataclass(frozen=True, slots=True, kw_only=True)
class KafkaSettings:
    """The settings of the connection to Kafka and of its topics.

    bootstrap: `host:port,host:port`.
    security_protocol: PLAINTEXT, SSL, SASL_PLAINTEXT or SASL_SSL.
    sasl_mechanism: PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512.
    ca_file, cert_file, key_file: PEM, for SSL.
    topic_prefix: of every topic's and group's name.
    partitions: of all topics but `control`.
    replication, min_insync: what new topics get, and the least that existing ones may have.
    flush_each_batch: fsync before a record is acknowledged (`flush.messages=1`), for a single broker.
    """

    bootstrap: str
    security_protocol: str = "PLAINTEXT"
    sasl_mechanism: str | None = None
    sasl_username: str | None = None
    sasl_password: str | None = field(default=None, repr=False)
    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None
    topic_prefix: str = "everput."
    partitions: int = 16
    replication: int = 3
    min_insync: int = 2
    flush_each_batch: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The settings of a process.

    kafka: where the log is.
    allow_networks: listeners' addresses that are allowed although not public.
    sealing_key: a Fernet key (url-safe base64) that encrypts listeners' secrets in the log.
    public_url: the base of `_links`; None: the address of the request.
    trusted_proxies: networks of proxies whose client addresses are believed.
    registration: anybody who reaches the API may create an account.
    requests_per_s: of an organization's keys in one API process, with a burst of ten seconds; None for no limit.
    bytes_per_s: likewise, of the bodies of an organization's puts.
    queues_max, listeners_max: of one organization.
    changes_per_min: events that an organization may add to `control` through one API process; None for no limit.
    organization_bytes_max: what the organizations of one account may store together; None for no bound.
    retain_messages_s: older messages may be deleted; None keeps them for ever.
    append_timeout_ms: how long a request waits for Kafka's acknowledgement.
    body_bytes_max: of one request.
    """

    kafka: KafkaSettings
    sealing_key: str = field(repr=False)
    allow_networks: tuple[Network, ...] = ()
    public_url: str | None = None
    trusted_proxies: tuple[Network, ...] = ()
    registration: bool = True
    requests_per_s: float | None = None
    bytes_per_s: int | None = None
    queues_max: int = 10_000
    listeners_max: int = 10_000
    changes_per_min: int | None = None
    organization_bytes_max: int | None = None
    retain_messages_s: int | None = None
    append_timeout_ms: int = 5_000
    body_bytes_max: int = 8 << 20
