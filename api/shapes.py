"""The shapes of request bodies, and the parser of a body.

For: turning JSON into a checked struct, or into an error with an RFC 6901 pointer to the wrong field. The docstrings
are the API reference's descriptions of the fields (openapi.py). Not for: rules beyond a value's type and range
(broker/commands), answers (everput/answers).
"""

from __future__ import annotations

import re
from datetime import datetime
from typing import Annotated, Any, Final, Literal, TypeVar

import msgspec
import orjson
from msgspec import UNSET, Meta, Struct, UnsetType

from api.problems import Malformed
from broker.commands.secrets import OVERLAP_S, OVERLAP_S_MAX
from broker.core.events import BatchSetting
from broker.core.keys import SCOPES
from broker.core.names import NAME_CHARS_MAX, shortened
from broker.core.roles import OWNER, ROLES
from broker.errors import Refused

_DAY_S: Final = 86_400
# Error messages of msgspec are cut to 300 characters, because they quote the client's body, which may be long.
_DETAIL_CHARS_MAX: Final = 300
_LARGE_BYTES: Final = 64 << 10  # of a request body
# This regular expression takes linear time: its repetition stands between backticks, and can't contain a backtick.
_FIELD = re.compile(r"field `([^`]*)`")
# This regular expression takes linear time: the repetition after a `.` contains no `.`, and that after a `[` no `[`.
_STEP = re.compile(r"\.([^.\[]+)|\[([^\[\]]*)\]")

T = TypeVar("T")

# The API reference shows the constraints in the types Name, Url, Role and Email, but msgspec does not check them.
# The commands check the constraints of these types: the commands' error texts are clearer than those of msgspec.
Name = Annotated[str, Meta(extra_json_schema={"minLength": 1, "maxLength": NAME_CHARS_MAX})]
Url = Annotated[str, Meta(extra_json_schema={"format": "uri", "pattern": "^(https?://|mailto:)"})]
Role = Annotated[str, Meta(extra_json_schema={"enum": [*ROLES]})]
Email = Annotated[str, Meta(extra_json_schema={"format": "email"})]


class AlertsBody(Struct, forbid_unknown_fields=True, kw_only=True):
    """The thresholds at which Everput alerts about a listener. A threshold of 0 switches the alert off. If a threshold
    is left out or null, the threshold of the listener's queue applies. If the queue has none either, the default
    applies.
    """

    lag_messages: Annotated[int, Meta(ge=0, le=2**53)] | None = None
    """The messages that wait for the listener. Default: 10,000."""
    lag_s: Annotated[int, Meta(ge=0, le=366 * _DAY_S)] | None = None
    """The age of the oldest waiting message, in seconds. Default: 900."""
    parked: Annotated[int, Meta(ge=0, le=2**53)] | None = None
    """The parked deliveries. Default: 1."""
    down_s: Annotated[int, Meta(ge=0, le=366 * _DAY_S)] | None = None
    """The seconds for which the listener is down. Default: 60."""
    failing_s: Annotated[int, Meta(ge=0, le=366 * _DAY_S)] | None = None
    """The seconds for which the listener is failing. Default: 300."""


class QueueBody(Struct, forbid_unknown_fields=True):
    """The body of a request to create a queue."""

    name: Name
    """The name, with 1 to 200 printable characters. The name `everput.alerts` is that of the organization's alerts."""
    alerts: AlertsBody | UnsetType = UNSET
    """The thresholds for alerts about the queue's listeners."""


class QueueChangeBody(Struct, forbid_unknown_fields=True):
    """The body of a request to change a queue. Fields that are left out keep their values."""

    name: Name | UnsetType = UNSET
    """The new name, with 1 to 200 printable characters."""
    alerts: AlertsBody | UnsetType = UNSET
    """The new thresholds for alerts about the queue's listeners, which replace the present ones."""


class NameBody(Struct, forbid_unknown_fields=True):
    """The body of a request to create an organization."""

    name: Name
    """The name, with 1 to 200 printable characters."""


class AccountBody(Struct, forbid_unknown_fields=True):
    """The body of a request to register or to sign in."""

    email: Email
    """The e-mail address of the account."""
    password: str
    """The password."""


class PasswordBody(Struct, forbid_unknown_fields=True):
    """The body of a request to change a password."""

    password: str
    """The current password."""
    new_password: str
    """The new password."""


class UnlinkBody(Struct, forbid_unknown_fields=True):
    """The body of a request to unlink the account from an OpenID Connect provider."""

    password: str
    """The account's password, with which the person signs in afterwards."""


class ResetBody(Struct, forbid_unknown_fields=True):
    """The body of a request to send a mail with which a person resets a password."""

    email: Email
    """The e-mail address of the account."""


class NewPasswordBody(Struct, forbid_unknown_fields=True):
    """The body of a request to set a new password with the token of a mail."""

    token: str
    """The token in the link of the mail."""
    new_password: str
    """The new password."""


class InvitationBody(Struct, forbid_unknown_fields=True):
    """The body of a request to invite somebody to an organization."""

    email: Email
    """The e-mail address of the person."""
    role: Role = OWNER
    """The role that the person gets. Default: `owner`."""


class SignInBody(Struct, forbid_unknown_fields=True):
    """The body of a request to begin to sign in with an OpenID Connect provider."""

    page: str = ""
    """The page of the console to come back to, such as `#/overview`. Default: the first page."""


class RoleBody(Struct, forbid_unknown_fields=True):
    """The body of a request to change a member's role."""

    role: Role
    """The new role."""


class TokenBody(Struct, forbid_unknown_fields=True):
    """The body of a request to accept an invitation."""

    token: str
    """The token in the link of the invitation."""


class InvitedAccountBody(TokenBody, forbid_unknown_fields=True):
    """The body of a request to register with an invitation."""

    password: str
    """The password of the new account."""


class DeletionBody(Struct, forbid_unknown_fields=True):
    """The body of a request to delete an account."""

    password: str
    """The current password."""
    even_if_last: bool = False
    """Delete the account even if it is the last owner of an organization who can sign in."""


class KeyBody(Struct, forbid_unknown_fields=True):
    """The body of a request to create an API key."""

    name: Name
    """The name: the program or person that uses the key."""
    scopes: Annotated[tuple[str, ...], Meta(extra_json_schema={"items": {"enum": [*SCOPES]}})] | None = None
    """The scopes of the key. Default: `queues` and `messages`."""
    queues: tuple[str, ...] | None = None
    """The IDs of the queues that the key is restricted to. Default: all queues."""
    expires_at: Annotated[datetime, Meta(tz=True)] | None = None
    """The time from which the key is refused. Default: never."""


class ListenerBatchBody(Struct, forbid_unknown_fields=True, kw_only=True):
    """The limits of a batch: a request to a listener that carries several messages."""

    max_messages: Annotated[int, Meta(ge=2, le=1000)] = BatchSetting().max_messages
    """The most messages in a request. Default: 100."""
    max_bytes: Annotated[int, Meta(ge=1 << 10, le=8 << 20)] = BatchSetting().max_bytes
    """The most bytes in the body of a request. A message that is larger is sent alone. Default: 1,048,576."""
    wait_ms: Annotated[int, Meta(ge=0, le=10_000)] = BatchSetting().wait_ms
    """The longest time that a message waits for others, in milliseconds. Default: 100."""


class ListenerSettingsBody(Struct, forbid_unknown_fields=True, kw_only=True):
    """The delivery settings of a listener. If a setting is left out, an existing listener keeps its value, and a new
    listener gets the default.
    """

    max_in_flight: Annotated[int, Meta(ge=1, le=10_000)] | UnsetType = UNSET
    """The most requests to the listener at a time, over all workers; each worker may send at least one. Default: 64."""
    rate_per_s: Annotated[float, Meta(ge=0.001, le=1000000)] | UnsetType | None = UNSET
    """The most deliveries per second; null for no limit. Default: no limit."""
    timeout_ms: Annotated[int, Meta(ge=100, le=120_000)] | UnsetType = UNSET
    """The time that an attempt may take, in milliseconds. Default: 15,000."""
    max_attempts: Annotated[int, Meta(ge=1, le=1000000)] | UnsetType | None = UNSET
    """The attempts after which a delivery is parked; null for no limit. Default: no limit."""
    max_age_s: Annotated[int, Meta(ge=1, le=366 * _DAY_S)] | UnsetType = UNSET
    """The seconds after its first attempt at which a failing delivery is parked. Default: 259,200 (72 hours)."""
    retry_first_ms: Annotated[int, Meta(ge=100, le=3_600_000)] | UnsetType = UNSET
    """The longest delay after the first failure, in milliseconds; it doubles with each further failure.
    Default: 1,000.
    """
    retry_max_s: Annotated[int, Meta(ge=1, le=7 * _DAY_S)] | UnsetType = UNSET
    """The longest delay between two attempts, in seconds. Default: 3,600."""
    headers: dict[str, str] | UnsetType = UNSET
    """The headers to add to each request, up to 32. The value `…` keeps the saved value of a header."""
    alerts: AlertsBody | UnsetType = UNSET
    """The thresholds for alerts about the listener, which replace the present ones."""
    format: Literal["standard", "slack"] | UnsetType = UNSET
    """The format of the requests: `standard`, or `slack` for Slack's incoming webhooks. Default: `standard`."""
    batch: ListenerBatchBody | UnsetType | None = UNSET
    """The limits of a request that carries several messages, `{}` for the default limits; null for one message in each
    request. Default: null.
    """


class NewListenerBody(ListenerSettingsBody, forbid_unknown_fields=True, kw_only=True):
    """The body of a request to create a listener."""

    name: Name
    """The name, unique in the queue."""
    notify_url: Url
    """The URL to which each message is sent by POST. A 2xx status accepts the message."""
    liveness_url: Url
    """The URL that is checked by GET while deliveries fail. A 2xx status resumes them."""
    secret: str | None = None
    """The signing secret, `whsec_…`. Default: a new one."""
    begin: str = msgspec.field(default="now", name="from")
    """The first message to deliver: `now`, `beginning`, or a time such as `2026-01-31T12:00:00Z`."""


class ListenerBody(ListenerSettingsBody, forbid_unknown_fields=True, kw_only=True):
    """The body of a request to change a listener. Fields that are left out keep their values."""

    name: Name | None = None
    """The new name, unique in the queue."""
    notify_url: Url | None = None
    """The new URL for messages. If its scheme, host or port changes, give the values of `headers` again, or `{}` for no
    headers.
    """
    liveness_url: Url | None = None
    """The new URL for liveness checks."""


class RotationBody(Struct, forbid_unknown_fields=True):
    """The body of a request to rotate a signing secret."""

    secret: str | None = None
    """The new secret, `whsec_…`. Default: a new one."""
    overlap_s: Annotated[int, Meta(ge=0, le=OVERLAP_S_MAX)] = OVERLAP_S
    """The seconds for which previous secrets sign, too. If a secret has leaked, use 0."""


class RedriveBody(Struct, forbid_unknown_fields=True):
    """The body of a request to retry deliveries now."""

    messages: Annotated[list[str], Meta(min_length=1, max_length=1000)] | None = None
    """The IDs of the messages to retry. Default: all parked and retrying deliveries."""


class ReplayBody(Struct, forbid_unknown_fields=True, kw_only=True):
    """The body of a request to start a replay or, with `dry_run`, only to count its messages."""

    begin: str = msgspec.field(name="from")
    """The start of the time range: a time, or `beginning`."""
    to: str | None = None
    """The end of the time range. Default: now."""
    only: str = "all"
    """The messages to deliver: `all`, those that `failed`, or those `undelivered`."""
    dry_run: bool = False
    """Count the messages and deliver none."""
    rate_per_s: Annotated[float, Meta(ge=0.001, le=1000000)] | None = None
    """The most deliveries per second. Default: the listener's own limit."""
    notify_url: str | None = None
    """The URL to deliver to. Default: the listener's own."""
    liveness_url: str | None = None
    """The URL to check while deliveries fail. Default: the listener's own."""
    send_headers: bool = False
    """Send the listener's headers even to a `notify_url` with another scheme, host or port."""


class MessageBody(Struct, forbid_unknown_fields=True):
    """The body of a request to put a message."""

    data: str
    """The data: any text up to 1 MiB of UTF-8."""
    name: Name | None = None
    """The name. Default: the queue's name, `-message-` and a short ID."""
    key: Name | None = None
    """The ordering key. Messages of a queue with the same key are delivered one at a time, in order."""
    deliver_at: Annotated[datetime, Meta(tz=True)] | None = None
    """The time before which the message is not delivered, at most 366 days ahead. Refused with `key`. Default: now."""


class MessageDataBody(Struct, forbid_unknown_fields=True):
    """The body of a request to change a message's data."""

    data: str
    """The new data: any text up to 1 MiB of UTF-8."""


class BatchBody(Struct, forbid_unknown_fields=True):
    """The body of a request to put several messages."""

    messages: Annotated[list[MessageBody], Meta(min_length=1, max_length=1000)]
    """The messages, 1 to 1,000."""


def parse(body: bytes, shape: type[T]) -> T:
    """Parse a JSON body into this class. Raises Malformed if the body is not JSON, and Refused with a JSON pointer if
    the body does not fit the class. orjson parses first, because it refuses lone surrogates, invalid UTF-8, NaN, deep
    nesting and trailing bytes.
    """
    if len(body) > _LARGE_BYTES:
        _check_shape(body, shape)
    try:
        fields = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise Malformed(f"The body is not valid JSON: {error}") from None
    try:
        return msgspec.convert(fields, shape)
    except msgspec.ValidationError as error:
        raise _refusal(str(error)) from None


def _check_shape(body: bytes, shape: type[Any]) -> None:
    """Raise Refused if a large body does not fit the class. msgspec stops at the first value that does not fit. orjson
    would first build objects of the whole body, which can take twenty times the memory of the body.
    """
    try:
        msgspec.json.decode(body, type=shape)
    except msgspec.ValidationError as error:
        raise _refusal(str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError):
        pass  # orjson then says what is wrong


def _refusal(message: str) -> Refused:
    """Turn a message of msgspec, such as "Expected `str`, got `int` - at `$.data`", into the error Refused with a JSON
    pointer.

    The message quotes the client's text, so only a short path at the very end of the message is used as the pointer.
    """
    detail, at, place = message.rpartition(" - at `")
    if not at or len(place) > _DETAIL_CHARS_MAX:
        detail, place = message, ""
    detail = shortened(detail, _DETAIL_CHARS_MAX)
    steps = _STEP.finditer(place.rstrip("`"))
    pointer = "".join("/" + _escaped(step[1] or step[2]) for step in steps if step[2] != "...")
    # If msgspec's error names a missing or unknown field, the JSON pointer ends with the name of this field.
    if (field := _FIELD.search(detail)) is not None:
        pointer += "/" + _escaped(field[1])
    return Refused(detail, pointer=pointer)


def _escaped(step: str) -> str:
    return step.replace("~", "~0").replace("/", "~1")
