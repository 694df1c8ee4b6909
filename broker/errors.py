"""The one error tree. For: what a caller may catch. Not for: HTTP status codes (api/problems.py knows those)."""

from __future__ import annotations


class BrokerError(Exception):
    """Everput could not do what was asked."""

    code = "broker-error"


class Refused(BrokerError):
    """The command was understood and is not acceptable.

    pointer: the RFC 6901 place in the request body that is at fault, None when it is no one field.
    """

    code = "refused"

    def __init__(self, detail: str, *, pointer: str | None = None) -> None:
        super().__init__(detail)
        self.pointer = pointer


class NameTaken(Refused):
    """The name is in use already."""

    code = "name-taken"


class QuotaReached(Refused):
    """There is as much of this as there may be."""

    code = "quota-reached"


class KeyReused(Refused):
    """The Idempotency-Key belongs to another request."""

    code = "idempotency-key-reused"


class ShareUsed(BrokerError):
    """The organization has used its share of what all have. retry_after_s: when to come again, in seconds."""

    code = "share-used"
    retry_after_s = 600


class InFlight(BrokerError):
    """A request with this Idempotency-Key is under way. retry_after_s: when to come again, in seconds."""

    code = "in-flight"
    retry_after_s = 1


class Changed(BrokerError):
    """It is at another version than the change was meant for."""

    code = "precondition-failed"


class NotFound(BrokerError):
    """Nothing of this id exists, or it belongs to another organization."""

    code = "not-found"


class Unavailable(BrokerError):
    """Everput can't answer now. retry_after_s: when to come again, in seconds."""

    code = "unavailable"
    retry_after_s = 1


class Busy(Unavailable):
    """Too many ask for much to be read."""

    code = "busy"
    retry_after_s = 2


class LogUnavailable(Unavailable):
    """Kafka can't be reached or has no leader; nothing was stored."""

    code = "log-unavailable"


class LogDamaged(LogUnavailable):
    """Records of the log were altered or are missing on every broker that has a copy; none of their data is used.

    topic: its name in Kafka. first, last: the offsets that can't be read; reading goes on after the last.
    """

    code = "log-damaged"

    def __init__(self, topic: str, partition: int, first: int, last: int) -> None:
        super().__init__(
            f"{topic}/{partition} can't be read from offset {first} to {last}: what is there is not what was written"
        )
        self.topic, self.partition, self.first, self.last = topic, partition, first, last


class DiskNearlyFull(Unavailable):
    """There is too little room where the embedded Kafka writes; nothing was stored."""

    code = "disk-nearly-full"
    retry_after_s = 10


class StorageFull(BrokerError):
    """The organization stores as many bytes of messages as it may; nothing was stored."""

    code = "storage-full"


class InDoubt(Unavailable):
    """Kafka did not acknowledge in time: the event may have been stored all the same."""

    code = "in-doubt"


class ViewBehind(Unavailable):
    """The projection has not caught up with the log in time."""

    code = "view-behind"


class ConfigurationError(BrokerError):
    """A setting, a file or a Kafka cluster is not as it must be; the message says what to change."""

    code = "configuration"


class UnknownEvent(BrokerError):
    """The log holds an event of a type or version that this program does not know; a newer one wrote it."""

    code = "unknown-event"


class Suspended(BrokerError):
    """The process did not run for so long that its partitions may be another worker's; it must begin anew."""

    code = "suspended"
