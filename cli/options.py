"""The options that the servers and the operators' commands share. Each is also an environment variable `EVERPUT_…`.

For: reading the options, turning them into `Settings`, and passing them to child processes. Not for: their meaning
(docs/operations.md for people, broker/settings.py for the code). None of these options is a secret, because other users
can see a command line. Secrets come from the environment or from a file (cli/files.py).
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit

import click

from broker.disk import Marks
from broker.errors import ConfigurationError
from broker.kafka.client import client_options
from broker.kafka.embedded.access import EmbeddedAccess, written_access
from broker.settings import BATCH_PAUSE_MS, SASL_MECHANISMS, SECURITY_PROTOCOLS, KafkaSettings, Network, Settings
from cli import logs
from cli.files import secret_setting
from cli.oidc import OIDC_SECRET, oidc_settings
from cli.processes.hosts import Hosts
from cli.smtp import SMTP_PASSWORD, smtp_settings

PARTITIONS_EMBEDDED: Final = 8
PARTITIONS_CLUSTER: Final = 64
REPLICATION: Final = 3
MIN_INSYNC: Final = 2
SASL_PASSWORD: Final = "EVERPUT_KAFKA_SASL_PASSWORD"  # noqa: S105 - the variable's name

# If strangers may register, REQUESTS_PER_S, BYTES_PER_S and CHANGES_PER_MIN limit each organization by default.
# If strangers may not register, organizations have no rate limits by default.
REQUESTS_PER_S: Final = 1_000.0
BYTES_PER_S: Final = 16 << 20
CHANGES_PER_MIN: Final = 600
# If registration is open, all organizations that one account created may store this many bytes together by default.
ORGANIZATION_BYTES_MAX: Final = 1 << 30


N = TypeVar("N", int, float)


def _parts(text: str) -> list[str]:
    return text.replace(",", " ").split()


class _Network(click.ParamType):
    """The type of an option whose value is a network such as `10.0.0.0/8`, or one address. The option's environment
    variable may hold several networks, separated by spaces or commas.
    """

    name = "cidr"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        try:
            return ip_network(value, strict=False)
        except ValueError:
            self.fail(f"{value!r} is not a network such as 10.0.0.0/8 or fd00::/8", param, ctx)

    def split_envvar_value(self, rv: str) -> Sequence[str]:
        return _parts(rv)


class _Host(click.ParamType):
    """The type of an option whose value is a host name. The option's environment variable may hold several host names,
    separated by spaces or commas.
    """

    name = "host"

    def split_envvar_value(self, rv: str) -> Sequence[str]:
        return _parts(rv)


_SECONDS_OF: Final = {"h": 3600, "d": 86_400}
# Messages are kept for at least two days, because a put can be repeated with its Idempotency-Key for 24 hours.
_RETAIN_S_MIN: Final = 2 * 86_400


class _Age(click.ParamType):
    """The type of an option whose value is an age of at least two days, such as `60h` or `30d`."""

    name = "age"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        # This regular expression takes linear time on any input, because its only repetition is bounded.
        if not re.fullmatch(r"[1-9][0-9]{0,5}[hd]", str(value)) or age_s(str(value)) < _RETAIN_S_MIN:
            self.fail(f"{value!r} is not a number of hours or days such as 30d, of 2d at least", param, ctx)
        return value


def age_s(text: str) -> int:
    """Convert an age such as `36h` or `30d` to seconds."""
    return int(text[:-1]) * _SECONDS_OF[text[-1]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The values of the shared options, one field for each option. A field is None if its option was not given and has
    no default value.
    """

    data_dir: Path
    host: str
    port: int
    admin_host: str
    admin_port: int
    tunnel_host: str
    tunnel_port: int
    kafka: str | None
    allow_network: tuple[Network, ...]
    public_url: str | None
    trusted_proxy: tuple[Network, ...]
    allowed_host: tuple[str, ...]
    registration: bool
    requests_per_s: float | None
    bytes_per_s: int | None
    queues_max: int
    listeners_max: int
    connections_max: int
    body_bytes_max: int
    append_timeout_ms: int
    batch_pause_ms: int
    disk_free_bytes_min: int
    disk_reserve_bytes: int
    changes_per_min: int | None
    organization_bytes_max: int | None
    retain_messages: str | None
    log_level: str
    log_format: str
    topic_prefix: str
    partitions: int | None
    replication: int | None
    min_insync: int | None
    flush_each_batch: bool | None
    kafka_security_protocol: str
    kafka_sasl_mechanism: str | None
    kafka_sasl_username: str | None
    kafka_ca_file: Path | None
    kafka_cert_file: Path | None
    kafka_key_file: Path | None
    smtp_url: str | None
    mail_from: str | None
    oidc_issuer: str | None
    oidc_client_id: str | None
    oidc_name: str | None
    oidc_domain: tuple[str, ...]

    def settings(self, *, sealing_key: str, embedded: EmbeddedAccess | None = None) -> Settings:
        """Return Everput's settings, made from these options and the sealing key. If `embedded` is given, the settings
        are for the embedded Kafka, which has one broker.

        Raises ConfigurationError if an option is missing or wrong, or if options contradict each other.
        """
        return Settings(
            kafka=self.kafka_settings(embedded),
            sealing_key=sealing_key,
            allow_networks=self.allow_network,
            public_url=self.public_url,
            trusted_proxies=self.trusted_proxy,
            registration=self.registration,
            requests_per_s=self._limit(self.requests_per_s, REQUESTS_PER_S),
            bytes_per_s=self._limit(self.bytes_per_s, BYTES_PER_S),
            queues_max=self.queues_max,
            listeners_max=self.listeners_max,
            append_timeout_ms=self.append_timeout_ms,
            batch_pause_ms=self.batch_pause_ms,
            changes_per_min=self._limit(self.changes_per_min, CHANGES_PER_MIN),
            organization_bytes_max=self._organization_bytes_max,
            retain_messages_s=None if self.retain_messages is None else age_s(self.retain_messages),
            body_bytes_max=self.body_bytes_max,
            smtp=smtp_settings(self.smtp_url, self.mail_from),
            oidc=oidc_settings(self),
        )

    def hosts(self) -> Hosts:
        """Return the host names that this process's servers accept in the header Host of requests. The servers also
        accept all IP addresses, and all names without a dot.
        """
        public = None if self.public_url is None else urlsplit(self.public_url).hostname
        own = (self.host, self.admin_host, self.tunnel_host, public)
        return Hosts([*self.allowed_host, *(name for name in own if name is not None)])

    def disk_marks(self) -> Marks:
        """Return two limits of free disk space, in bytes: `growth` and `reserve`. If less than `growth` is free, the
        API stores only urgent events, such as the revocation of an API key. If less than `reserve` is free, the API
        stores nothing.
        """
        return Marks(self.disk_free_bytes_min, min(self.disk_reserve_bytes, self.disk_free_bytes_min))

    def _limit(self, said: N | None, default: N) -> N | None:
        """Return the rate limit that applies, or None for no limit.

        `said` is the value of the option; 0 means no limit. If the option was not given, `said` is None. The limit is
        then `default` if strangers may register, and otherwise there is no limit.
        """
        limit = (default if self._open_to_strangers else None) if said is None else said
        return limit or None

    @property
    def _organization_bytes_max(self) -> int | None:
        """Return the most bytes that the organizations created by one account may store together. Return None if there
        is no limit.
        """
        said = self.organization_bytes_max
        return ((ORGANIZATION_BYTES_MAX if self.registration else None) if said is None else said) or None

    @property
    def _open_to_strangers(self) -> bool:
        """Return whether people on other machines may register an account. Return True if registration is open, and if
        --public-url is given or --host is not a loopback address.
        """
        return self.registration and (self.public_url is not None or not is_loopback(self.host))

    def kafka_settings(self, embedded: EmbeddedAccess | None = None) -> KafkaSettings:
        """Return the settings for the embedded Kafka if `embedded` is given, and otherwise for the Kafka that --kafka
        names.

        If --kafka is the address of the embedded Kafka in --data-dir, the settings contain the password of the embedded
        Kafka. Raises ConfigurationError if a setting is missing or wrong.
        """
        partitions = self.partitions
        if embedded is None and self.kafka is not None:
            embedded = written_access(self.data_dir / "kafka", bootstrap=self.kafka)
            partitions = partitions or (self.partitions_there() if embedded is not None else None)
        if embedded is not None:
            return embedded.settings(
                topic_prefix=self.topic_prefix,
                partitions=partitions or PARTITIONS_EMBEDDED,
                flush_each_batch=self.flush_each_batch is not False,
            )
        if self.kafka is None:
            raise ConfigurationError("no Kafka: give --kafka HOST:PORT or set EVERPUT_KAFKA")
        replication = self.replication or REPLICATION
        sasl = self.kafka_security_protocol.startswith("SASL")
        password = secret_setting(SASL_PASSWORD) if sasl else None
        if sasl and not (self.kafka_sasl_username and password):
            raise ConfigurationError(
                f"{self.kafka_security_protocol} needs --kafka-sasl-username, and the password in {SASL_PASSWORD} "
                f"or in the file that {SASL_PASSWORD}_FILE names"
            )
        settings = KafkaSettings(
            bootstrap=self.kafka,
            security_protocol=self.kafka_security_protocol,
            sasl_mechanism=(self.kafka_sasl_mechanism or "PLAIN") if sasl else None,
            sasl_username=self.kafka_sasl_username if sasl else None,
            sasl_password=password,
            ca_file=self.kafka_ca_file,
            cert_file=self.kafka_cert_file,
            key_file=self.kafka_key_file,
            topic_prefix=self.topic_prefix,
            partitions=partitions or PARTITIONS_CLUSTER,
            replication=replication,
            min_insync=self.min_insync or min(MIN_INSYNC, replication),
            flush_each_batch=bool(self.flush_each_batch),
        )
        client_options(settings)  # this call fails if a setting is not valid, or a PEM file can't be read
        return settings

    def partitions_there(self) -> int | None:
        """Return the number of partitions of the topics that the embedded Kafka has in the data directory, or None if
        there are no topics. They may be from a version of Everput with another default.
        """
        from broker.kafka.embedded.segments import partitions  # processes that do not call this need not load it

        log_dir = self.data_dir / "kafka" / "kafka"
        # After a crash or a disk fault, folders can be missing. So look for the highest number, in several topics.
        topics = ("messages", "changes", "deliveries", "outstanding")
        numbers = (number for name in topics for number, _ in partitions(log_dir, self.topic_prefix + name))
        return max(numbers, default=-1) + 1 or None

    def environment(self) -> dict[str, str]:
        """Return the environment variables with which a child process gets the same options as this process."""
        values = ((field.name, getattr(self, field.name)) for field in fields(self))
        return {variable(name): _text(value) for name, value in values if value is not None}


def is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def variable(name: str) -> str:
    """Return the environment variable of an option, such as EVERPUT_DATA_DIR for `data_dir`."""
    return "EVERPUT_" + name.upper()


def _text(value: object) -> str:
    if isinstance(value, tuple):
        return " ".join(str(one) for one in value)
    return str(value)


_file = click.Path(path_type=Path, exists=True, dir_okay=False)
_count = click.IntRange(min=1)

_ARGUMENTS: Final[Mapping[str, dict[str, Any]]] = {
    "data_dir": {
        "type": click.Path(path_type=Path, file_okay=False),
        "default": Path("data"),
        "metavar": "DIR",
        "help": "Data directory: keys, and the log of the embedded Kafka.",
    },
    "host": {"default": "127.0.0.1", "help": "Address to listen on."},
    "port": {"type": click.IntRange(0, 65535), "default": 8080, "help": "Port to listen on; 0 picks a free one."},
    "admin_host": {"default": "127.0.0.1", "help": "Address for health and metrics, which need no key."},
    "admin_port": {
        "type": click.IntRange(0, 65535),
        "default": 0,
        "help": "Port for health and metrics; 0 picks a free one, which the log names.",
    },
    "tunnel_host": {
        "default": "127.0.0.1",
        "help": "Address at which workers reach this API process, for the tunnels that are connected to it.",
    },
    "tunnel_port": {"type": click.IntRange(0, 65535), "default": 0, "help": "Port for tunnels; 0 picks a free one."},
    "kafka": {
        "metavar": "HOST:PORT,…",
        "help": "Existing Apache Kafka cluster. `everput serve` runs its own Kafka without it.",
    },
    "allow_network": {
        "type": _Network(),
        "multiple": True,
        "metavar": "CIDR",
        "help": "Allow listeners in this network, although it is not public. May be repeated.",
    },
    "public_url": {"metavar": "URL", "help": "URL under which clients reach the API, if it is behind a proxy."},
    "allowed_host": {
        "type": _Host(),
        "multiple": True,
        "metavar": "NAME",
        "help": "Host name under which requests are accepted, besides that of --public-url, IP addresses and names "
        "without a dot; * for any. May be repeated.",
    },
    "trusted_proxy": {
        "type": _Network(),
        "multiple": True,
        "metavar": "CIDR",
        "help": "Trust X-Forwarded-For and Forwarded of proxies in this network. May be repeated.",
    },
    "registration": {
        "is_flag": True,
        "default": True,
        "help": "Allow everybody who reaches the API to register an account.",
    },
    "requests_per_s": {
        "type": click.FloatRange(min=0),
        "help": "Most requests per second of an organization's keys, and as many of its members, to each API process, "
        f"in bursts of ten seconds; 0 for no limit. Default: {REQUESTS_PER_S:g} where strangers may register, that is "
        "with --registration and either a --public-url or a --host that is not loopback; otherwise no limit.",
        "show_default": False,
    },
    "bytes_per_s": {
        "type": click.IntRange(min=0),
        "help": "Most bytes per second that an organization may put to each API process, with bursts of ten "
        f"seconds; 0 for no limit. Default: {BYTES_PER_S >> 20} MiB where strangers may register (see above); "
        "otherwise no limit.",
        "show_default": False,
    },
    "queues_max": {"type": _count, "default": 10_000, "help": "Most queues of an organization."},
    "listeners_max": {"type": _count, "default": 10_000, "help": "Most listeners of an organization."},
    "changes_per_min": {
        "type": click.IntRange(min=0),
        "help": "Most changes per minute of queues, listeners, keys and replays by an organization through each API "
        f"process; 0 for no limit. Default: {CHANGES_PER_MIN} where strangers may register (see above); otherwise no "
        "limit.",
        "show_default": False,
    },
    "organization_bytes_max": {
        "type": click.IntRange(min=0),
        "help": "Bytes that all organizations made by one account may store together; 0 for no limit. Organizations "
        f"that the operator created have none. Default: {ORGANIZATION_BYTES_MAX >> 30} GiB with --registration, "
        "else no limit.",
        "show_default": False,
    },
    "connections_max": {"type": _count, "default": 10_000, "help": "Most client connections to one API process."},
    "body_bytes_max": {"type": _count, "default": 8 << 20, "help": "Largest request body, in bytes."},
    "append_timeout_ms": {
        "type": _count,
        "default": 5_000,
        "help": "Milliseconds for which a request waits for Kafka.",
    },
    "batch_pause_ms": {
        "type": click.IntRange(0, 100),
        "default": BATCH_PAUSE_MS,
        "help": "If four or more puts arrive at about the same time, collect further puts for up to this many "
        "milliseconds.",
    },
    "disk_free_bytes_min": {
        "type": click.IntRange(min=0),
        "default": 512 << 20,
        "help": "With less free space in DIR, requests that make the log grow are answered 503. Embedded Kafka only.",
    },
    "disk_reserve_bytes": {
        "type": click.IntRange(min=0),
        "default": 128 << 20,
        "help": "With less free space, the requests that --disk-free-bytes-min still allows are refused, too: revoking "
        "keys, signing in and out, deleting, pausing.",
    },
    "retain_messages": {
        "type": _Age(),
        "metavar": "AGE",
        "help": "Delete messages older than this, such as 30d; undelivered ones are kept for their listeners. "
        "Default: keep all messages.",
    },
    "log_level": {"type": click.Choice(logs.LEVELS), "default": "info", "help": "Lowest level of log lines to write."},
    "log_format": {
        "type": click.Choice(logs.FORMATS),
        "default": "text",
        "help": "Log lines as text or as JSON objects.",
    },
    "topic_prefix": {"default": "everput.", "help": "Prefix of the names of topics and groups in Kafka."},
    "partitions": {
        "type": click.IntRange(1, 4096),
        "help": f"Partitions of new topics; fixed from then on. Default: {PARTITIONS_EMBEDDED} in an embedded Kafka, "
        f"{PARTITIONS_CLUSTER} on a cluster.",
        "show_default": False,
    },
    "replication": {"type": _count, "help": f"Copies of each topic. Default: {REPLICATION}."},
    "min_insync": {"type": _count, "help": f"Copies that must acknowledge a write. Default: {MIN_INSYNC}."},
    "flush_each_batch": {
        "is_flag": True,
        "default": None,
        "help": "Sync each batch to disk before acknowledging it (flush.messages=1), for a single broker.",
    },
    "kafka_security_protocol": {
        "type": click.Choice(SECURITY_PROTOCOLS),
        "default": "PLAINTEXT",
        "help": "Protocol of --kafka.",
    },
    "kafka_sasl_mechanism": {"type": click.Choice(SASL_MECHANISMS), "help": "SASL mechanism. Default: PLAIN."},
    "kafka_sasl_username": {
        "help": f"SASL user. The password comes from {SASL_PASSWORD} or the file named by {SASL_PASSWORD}_FILE."
    },
    "kafka_ca_file": {"type": _file, "help": "CA certificates of the brokers, PEM."},
    "kafka_cert_file": {"type": _file, "help": "Client certificate, PEM."},
    "kafka_key_file": {"type": _file, "help": "Key of the client certificate, PEM."},
    "smtp_url": {
        "metavar": "URL",
        "help": "Mail server for alerts, invitations and password resets: smtp://[USER@]HOST[:PORT], with STARTTLS if "
        "it is offered, or smtps://…. "
        f"The password comes from {SMTP_PASSWORD} or the file named by {SMTP_PASSWORD}_FILE.",
    },
    "mail_from": {"metavar": "ADDRESS", "help": "Sender of e-mail."},
    "oidc_issuer": {
        "metavar": "URL",
        "help": "OpenID Connect provider with which people sign in to the console, as its metadata names it. Needs "
        "--oidc-client-id and --public-url; the provider sends browsers back to /console/oidc below it. The client "
        f"secret comes from {OIDC_SECRET} or the file named by {OIDC_SECRET}_FILE.",
    },
    "oidc_client_id": {"metavar": "ID", "help": "ID of this server at the OpenID Connect provider."},
    "oidc_name": {"metavar": "NAME", "help": "Name of the provider on the sign-in page. Default: the issuer's host."},
    "oidc_domain": {
        "metavar": "DOMAIN",
        "multiple": True,
        "default": (),
        "help": "Let only people with e-mail addresses of this domain sign in with the provider, and create their "
        "accounts even if registration is closed. May be repeated.",
    },
}


def _declaration(name: str) -> str:
    dashed = "--" + name.replace("_", "-")
    return f"{dashed}/--no-{dashed[2:]}" if _ARGUMENTS[name].get("is_flag") else dashed


def shared_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate a command so that it accepts the shared options. The command's function gets all their values in one
    argument, `options`.
    """

    @functools.wraps(command)
    def with_options(**values: Any) -> Any:
        mine = {field.name: values.pop(field.name) for field in fields(Options)}
        return command(options=Options(**mine), **values)

    decorated: Callable[..., Any] = with_options
    for name in reversed(list(_ARGUMENTS)):
        given = {"show_default": True, "show_envvar": True, "envvar": variable(name), **_ARGUMENTS[name]}
        given.pop("is_flag", None)
        decorated = click.option(_declaration(name), name, **given)(decorated)
    return decorated
