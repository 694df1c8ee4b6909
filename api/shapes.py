"""The shapes of request bodies, and how a body becomes one of them.

For: JSON to a checked struct; where it does not fit, the RFC 6901 pointer to the place. Not for: rules that go beyond
a value's type and range (broker/commands/directory.py, broker/commands/puts.py), answers (queues.py, listeners.py,
messages.py)."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Annotated, Final, TypeVar

import msgspec
import orjson
from msgspec import UNSET, Meta, Struct, UnsetType

from api.problems import Malformed
from broker.commands.secrets import OVERLAP_S, OVERLAP_S_MAX
from broker.core.keys import SCOPES
from broker.core.names import NAME_CHARS_MAX, shortened
from broker.errors import Refused

_DAY_S: Final = 86_400
_DETAIL_CHARS_MAX: Final = 300  # of msgspec's message: it quotes the body, which may be long
# linear: sees at most _DETAIL_CHARS_MAX characters; the class excludes what follows it
_FIELD = re.compile(r"field `([^`]*)`")
# linear: as _FIELD
_STEP = re.compile(r"\.([^.\[]+)|\[([^\[\]]*)\]")

T = TypeVar("T")

# These constraints are for the reference: the values are checked where more is known (broker/commands/directory.py,
# broker/commands/puts.py).
Name = Annotated[str, Meta(extra_json_schema={"minLength": 1, "maxLength": NAME_CHARS_MAX})]
Url = Annotated[str, Meta(extra_json_schema={"format": "uri", "pattern": "^https?://"})]
Email = Annotated[str, Meta(extra_json_schema={"format": "email"})]
Begin = Annotated[str, Meta(description="`now`, `beginning`, or a time.")]


class NameBody(Struct, forbid_unknown_fields=True):
    """PUT of a queue, new or renamed."""

    name: Name


class AccountBody(Struct, forbid_unknown_fields=True):
    """PUT of an account, POST of a session."""

    email: Email
    password: str


class PasswordBody(Struct, forbid_unknown_fields=True):
    """POST of a password. password: the one until now."""

    password: str
    new_password: str


class DeletionBody(Struct, forbid_unknown_fields=True):
    """POST of an account's deletion. even_if_last: though an organization is left without a member who can sign in."""

    password: str
    even_if_last: bool = False


class KeyBody(Struct, forbid_unknown_fields=True):
    """PUT of a key. What is null is not restricted, but scopes, which then are the default."""

    name: Name
    scopes: Annotated[tuple[str, ...], Meta(extra_json_schema={"items": {"enum": [*SCOPES]}})] | None = None
    queues: Annotated[tuple[str, ...], Meta(description="The ids of the queues that it is for.")] | None = None
    expires_at: Annotated[datetime, Meta(tz=True, description="It is refused from then on.")] | None = None


class ListenerSettingsBody(Struct, forbid_unknown_fields=True, kw_only=True):
    """What may be said about a listener's deliveries. Not said: the default, or as it was. null: no limit."""

    max_in_flight: Annotated[int, Meta(ge=1, le=10_000)] | UnsetType = UNSET
    rate_per_s: Annotated[float, Meta(ge=0.001, le=1000000)] | UnsetType | None = UNSET
    timeout_ms: Annotated[int, Meta(ge=100, le=120_000)] | UnsetType = UNSET
    max_attempts: Annotated[int, Meta(ge=1, le=1000000)] | UnsetType | None = UNSET
    max_age_s: Annotated[int, Meta(ge=1, le=366 * _DAY_S)] | UnsetType = UNSET
    retry_first_ms: Annotated[int, Meta(ge=100, le=3_600_000)] | UnsetType = UNSET
    retry_max_s: Annotated[int, Meta(ge=1, le=7 * _DAY_S)] | UnsetType = UNSET
    headers: dict[str, str] | UnsetType = UNSET


class NewListenerBody(ListenerSettingsBody, forbid_unknown_fields=True, kw_only=True):
    """PUT of a new listener. begin: the field `from`."""

    name: Name
    notify_url: Url
    liveness_url: Url
    secret: str | None = None
    begin: Begin = msgspec.field(default="now", name="from")


class ListenerBody(ListenerSettingsBody, forbid_unknown_fields=True, kw_only=True):
    """PUT of an existing listener, in full or in part.

    notify_url: where its scheme, host or port changes, the values of `headers` must be given again, or `{}` for none.
    """

    name: Name | None = None
    notify_url: Url | None = None
    liveness_url: Url | None = None


class RotationBody(Struct, forbid_unknown_fields=True):
    """POST of a secret's rotation. overlap_s: how long the former secrets sign, too."""

    secret: str | None = None
    overlap_s: Annotated[int, Meta(ge=0, le=OVERLAP_S_MAX)] = OVERLAP_S


class RedriveBody(Struct, forbid_unknown_fields=True):
    """POST of a redrive. messages: ids; not said: all."""

    messages: Annotated[list[str], Meta(min_length=1, max_length=1000)] | None = None


class ReplayBody(Struct, forbid_unknown_fields=True, kw_only=True):
    """POST of a replay. begin: the field `from`, a time or `beginning`. to: now when it is not said.

    send_headers: send the listener's headers to a notify_url of another origin (scheme, host, port), too.
    """

    begin: str = msgspec.field(name="from")
    to: str | None = None
    only: str = "all"
    dry_run: bool = False
    rate_per_s: Annotated[float, Meta(ge=0.001, le=1000000)] | None = None
    notify_url: str | None = None
    liveness_url: str | None = None
    send_headers: bool = False


class MessageBody(Struct, forbid_unknown_fields=True):
    """PUT of a message."""

    data: str
    name: Name | None = None
    key: Name | None = None
    deliver_at: Annotated[datetime, Meta(tz=True)] | None = None


class MessageDataBody(Struct, forbid_unknown_fields=True):
    """PUT of a message that is there."""

    data: str


class BatchBody(Struct, forbid_unknown_fields=True):
    """POST of several messages."""

    messages: Annotated[list[MessageBody], Meta(min_length=1, max_length=1000)]


def parse(body: bytes, shape: type[T]) -> T:
    """The body as this shape (Malformed, Refused with the pointer).

    orjson first: it takes no lone surrogates, no invalid UTF-8, no NaN and no endless nesting, and reads to the end.
    """
    try:
        fields = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise Malformed(f"The body is not JSON: {error}") from None
    try:
        return msgspec.convert(fields, shape)
    except msgspec.ValidationError as error:
        raise _refusal(str(error)) from None


def _refusal(message: str) -> Refused:
    """Return msgspec's `Expected `str`, got `int` - at `$.data`` as a detail and a pointer.

    The message quotes the body, so only its end is taken for the place, and only where it is as short as places are.
    """
    detail, at, place = message.rpartition(" - at `")
    if not at or len(place) > _DETAIL_CHARS_MAX:
        detail, place = message, ""
    detail = shortened(detail, _DETAIL_CHARS_MAX)
    steps = _STEP.finditer(place.rstrip("`"))
    pointer = "".join("/" + _escaped(step[1] or step[2]) for step in steps if step[2] != "...")
    if (field := _FIELD.search(detail)) is not None:  # missing or unknown: the place is the field's own
        pointer += "/" + _escaped(field[1])
    return Refused(detail, pointer=pointer)


def _escaped(step: str) -> str:
    return step.replace("~", "~0").replace("/", "~1")
