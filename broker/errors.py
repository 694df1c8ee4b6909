"""All errors that a caller may catch, in one class tree.

Not for: HTTP status codes (api/problems.py).
"""

from __future__ import annotations


class BrokerError(Exception):
    """The base class of the errors that say why Everput could not carry out a request.

    The error's own text is for logs and for the operator. `public` is the text for clients of the API. If `public` is
    None, clients get the error's own text.
    """

    code = "broker-error"
    public: str | None = None


class Refused(BrokerError):
    """The command was understood but is not acceptable.

    `pointer` names the wrong field in the request body (RFC 6901). `pointer` is None if no single field is wrong.
    """

    code = "refused"

    def __init__(self, detail: str, *, pointer: str | None = None) -> None:
        super().__init__(detail)
        self.pointer = pointer


class NameTaken(Refused):
    """The name is already in use."""

    code = "name-taken"


class QuotaReached(Refused):
    """The organization, account or listener has as many resources of this kind as it may have."""

    code = "quota-reached"


class KeyReused(Refused):
    """The Idempotency-Key belongs to another request."""

    code = "idempotency-key-reused"


class IdentityRefused(BrokerError):
    """A person could not sign in through an OpenID Connect provider.

    For example, the provider did not prove who the person is, or the person has no account here. `reason` is a short
    code for the console, which shows an explanation for it.
    """

    code = "identity-refused"

    def __init__(self, detail: str, *, reason: str) -> None:
        super().__init__(detail)
        self.reason = reason


class ShareUsed(BrokerError):
    """The organization has used its share of a resource that all organizations share.

    Clients should wait `retry_after_s` seconds before the next request.
    """

    code = "share-used"
    retry_after_s = 600


class KeyInFlight(BrokerError):
    """Another request with this Idempotency-Key is in progress.

    Clients should wait `retry_after_s` seconds before the next request.
    """

    code = "in-flight"
    retry_after_s = 1


class Changed(BrokerError):
    """The resource was changed since the client read it, or the client's account has lost the role of owner."""

    code = "precondition-failed"


class NotFound(BrokerError):
    """There is no such resource, or the client may not see it, for example because another organization owns it."""

    code = "not-found"


class Unavailable(BrokerError):
    """Everput can't answer at the moment.

    Clients should wait `retry_after_s` seconds before the next request. If the error's text has details that only the
    operator may know, such as offsets, `public` is the text for clients.
    """

    code = "unavailable"
    retry_after_s = 1

    def __init__(self, detail: str = "", *, public: str | None = None) -> None:
        super().__init__(*((detail,) if detail else ()))
        self.public = public or self.public


class Busy(Unavailable):
    """Too many requests of a costly kind, such as large reads, are running in this process at the moment."""

    code = "busy"
    retry_after_s = 2


class LogUnavailable(Unavailable):
    """Kafka can't be reached, a partition has no leader, or Kafka refused a request. This error is also raised if this
    process may have lost its partitions to another worker. If a write raises this error, the docstring of the writing
    method says whether records may have been stored.
    """

    code = "log-unavailable"


class LogDamaged(LogUnavailable):
    """Records of the log were altered or are missing on every broker that has a copy.

    `topic` is the topic's name in Kafka. The offsets from `first` to `last` are unreadable, or records are missing
    there. A reader can continue after `last`.
    """

    code = "log-damaged"
    public = (
        "A part of the log that this request needs is damaged and can't be read. The operator finds the damaged part "
        "with `everput verify`."
    )

    def __init__(self, topic: str, partition: int, first: int, last: int) -> None:
        super().__init__(
            f"{topic}/{partition} can't be read from offset {first} to {last}: records are damaged or missing on every "
            "broker; `everput verify` shows damaged records, and `everput mend` restores them from an export"
        )
        self.topic, self.partition, self.first, self.last = topic, partition, first, last


class Unreadable(Unavailable):
    """A newer version of Everput has written this message, so this server can't read it."""

    code = "unreadable"
    retry_after_s = 60


class DiskNearlyFull(Unavailable):
    """The disk of the embedded Kafka is nearly full. Nothing was stored."""

    code = "disk-nearly-full"
    retry_after_s = 10


class StorageFull(BrokerError):
    """The account that created the organization has reached its limit of stored bytes. Nothing was stored.

    The limit is for the sum of the bytes of all organizations that the account created.
    """

    code = "storage-full"


class InDoubt(Unavailable):
    """It is unknown whether the request had an effect. Usually, Kafka did not acknowledge an event in time."""

    code = "in-doubt"


class ViewBehind(Unavailable):
    """This process could not read the newest part of the log in time. Try again."""

    code = "view-behind"


class ConfigurationError(BrokerError):
    """A setting, a file or a Kafka cluster is wrong. The message says what to change."""

    code = "configuration"


class UnknownEvent(BrokerError):
    """The log has a record that this version of Everput can't decode.

    A newer version of Everput wrote the record, or it is no event of Everput.
    """

    code = "unknown-event"


class Suspended(BrokerError):
    """The process was suspended for so long that another worker may own its partitions.

    The process must end and be started again.
    """

    code = "suspended"
