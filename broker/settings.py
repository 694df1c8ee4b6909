"""The settings of every process.

For: their values after the command line and the environment were read. Not for: reading them (cli/options.py).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Final

Network = IPv4Network | IPv6Network

BATCH_PAUSE_MS: Final = 8
SECURITY_PROTOCOLS: Final = ("PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL")
SASL_MECHANISMS: Final = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512")


@dataclass(frozen=True, slots=True, kw_only=True)
class KafkaSettings:
    """The settings of the connection to Kafka and of its topics.

    Each topic except `control` and `statistics` has `partitions` partitions. New topics get the settings `replication`
    and `min_insync`, and existing topics must have at least these. With `flush_each_batch`, Kafka syncs every batch to
    disk before it acknowledges the batch: this is for a cluster with one broker.
    """

    bootstrap: str  # `host:port,host:port`
    security_protocol: str = "PLAINTEXT"  # one of SECURITY_PROTOCOLS
    sasl_mechanism: str | None = None  # one of SASL_MECHANISMS, or None
    sasl_username: str | None = None
    sasl_password: str | None = field(default=None, repr=False)
    ca_file: Path | None = None  # PEM file, like the next two
    cert_file: Path | None = None
    key_file: Path | None = None
    topic_prefix: str = "everput."  # The names of topics and consumer groups begin with this text.
    partitions: int = 16
    replication: int = 3
    min_insync: int = 2
    flush_each_batch: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class SmtpSettings:
    """The settings of the mail server to which e-mails are handed. With `tls`, the connection is encrypted from its
    beginning. Without `tls`, STARTTLS encrypts the connection if the server offers it.

    A password is sent only over an encrypted connection.
    """

    host: str
    port: int
    tls: bool
    sender: str  # the address in From
    username: str | None = None
    password: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class OidcSettings:
    """The settings of the OpenID Connect provider with which people sign in."""

    issuer: str  # exactly as in the provider's metadata
    client_id: str
    client_secret: str = field(repr=False)
    name: str  # on the button
    # The domains, in lower case, of e-mail addresses with which people can sign in through the provider.
    # If `domains` is empty, people with any e-mail domain can sign in through the provider.
    domains: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The settings of one process of Everput. A limit of None means no limit.

    The rate limits apply to each API process alone. After a pause, more may come at once: at least what the limit
    allows in ten seconds, or for `changes_per_min` in one minute.
    """

    kafka: KafkaSettings
    sealing_key: str = field(repr=False)  # encrypts listeners' secrets
    allow_networks: tuple[Network, ...] = ()  # private addresses for listeners
    public_url: str | None = None  # None: the request's address
    trusted_proxies: tuple[Network, ...] = ()  # proxies with X-Forwarded-For
    registration: bool = True  # accounts may be created
    # The most requests per second with an organization's API keys. All its members together have an equal limit.
    requests_per_s: float | None = None
    bytes_per_s: int | None = None  # bytes of an organization's messages
    queues_max: int = 10_000  # queues of one organization
    listeners_max: int = 10_000  # listeners of one organization
    # How many changes, such as of queues or listeners, one organization may make in a minute through each API process.
    # A change with a large body counts as several: one more for each full 4 KiB. Deletions and pauses do not count.
    changes_per_min: int | None = None
    # All organizations created by one account may store at most this many bytes together.
    organization_bytes_max: int | None = None
    retain_messages_s: int | None = None  # None keeps all messages
    append_timeout_ms: int = 5_000  # wait for Kafka's acknowledgement
    batch_pause_ms: int = BATCH_PAUSE_MS  # longest pause between two record batches of messages
    body_bytes_max: int = 8 << 20  # largest body of a request
    smtp: SmtpSettings | None = None  # None: no e-mail is sent
    oidc: OidcSettings | None = None  # None if people sign in with passwords only, without an OpenID Connect provider
