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

    `partitions` is for all topics but `control` and `statistics`. `replication` and `min_insync` apply to new topics,
    and are the least that existing topics may have. `flush_each_batch` syncs every batch to disk before it is
    acknowledged, for a cluster with one broker.
    """

    bootstrap: str  # `host:port,host:port`
    security_protocol: str = "PLAINTEXT"  # PLAINTEXT, SSL, SASL_PLAINTEXT or SASL_SSL
    sasl_mechanism: str | None = None  # PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512
    sasl_username: str | None = None
    sasl_password: str | None = field(default=None, repr=False)
    ca_file: Path | None = None  # PEM file, like the next two
    cert_file: Path | None = None
    key_file: Path | None = None
    topic_prefix: str = "everput."  # prefix of the names of topics and consumer groups
    partitions: int = 16
    replication: int = 3
    min_insync: int = 2
    flush_each_batch: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The settings of a process. None means no limit where a limit is expected.

    Rates are for one API process. Rate limits allow bursts of ten seconds.
    """

    kafka: KafkaSettings
    sealing_key: str = field(repr=False)  # Fernet key that encrypts listeners' secrets in the log
    allow_networks: tuple[Network, ...] = ()  # allowed addresses of listeners that are not public
    public_url: str | None = None  # base of `_links`; None: the address of the request
    trusted_proxies: tuple[Network, ...] = ()  # networks of proxies that may state the client's address
    registration: bool = True  # anybody who reaches the API may create an account
    requests_per_s: float | None = None  # requests of an organization's API keys
    bytes_per_s: int | None = None  # bytes of messages that an organization puts
    queues_max: int = 10_000  # of one organization
    listeners_max: int = 10_000  # of one organization
    changes_per_min: int | None = None  # events that an organization may add to `control`
    organization_bytes_max: int | None = None  # bytes that all organizations of one account may store
    retain_messages_s: int | None = None  # older messages may be deleted; None keeps all
    append_timeout_ms: int = 5_000  # how long a request waits for Kafka's acknowledgement
    body_bytes_max: int = 8 << 20  # largest body of a request
