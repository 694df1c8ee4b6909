"""What the reference says of each operation, by method and path.

For: summary, shapes, parameters, problems and an example of every route there is; a test compares the two. Not for: the
routes themselves, their scopes and handlers (app.py), making a document of it (openapi.py)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from msgspec import Struct

from api import shapes
from everput import answers

_QUEUE: Final = "/v1/queues/{queue_id}"
_LISTENER: Final = _QUEUE + "/listeners/{listener_id}"
_MESSAGE: Final = _QUEUE + "/messages/{message_id}"
_REPLAY: Final = _LISTENER + "/replays/{replay_id}"
_KEYS: Final = "/v1/organizations/{organization_id}/keys"
_MEMBERS: Final = "/v1/organizations/{organization_id}/members"

BODY: Final = (400, 413, 415, 422)
OPEN: Final = "open"
KEY: Final = "key"  # or a session, with the organization it acts in
SESSION: Final = "session"
SESSION_OR_KEY: Final = "session or key"


# Operations that make or change something that is kept for ever: they count as stored, so an organization can be full.
CHANGES: Final = frozenset(
    {
        *("createQueue", "renameQueue", "createListener", "updateListener", "resumeListener", "rotateSecret"),
        *("redriveListener", "replayToListener", "pauseReplay", "resumeReplay", "createKey"),
    }
)


class Parameter(NamedTuple):
    """Of the query or, where `place` says so, a header. schema: JSON Schema."""

    name: str
    description: str
    schema: Mapping[str, Any]
    place: str = "query"


class Told(NamedTuple):
    """An operation. name: its operationId. asks: a session, either, or nobody, where its method has no scope.

    problems: beside those that every operation has. media: of the answer. example: a request's body.
    tagged: the answer has an ETag. sets_cookie: for a browser.
    makes: the parameter that names what was made, and where the answer has its value.
    """

    name: str
    summary: str
    answer: type[Struct]
    request: type[Struct] | None = None
    parameters: Sequence[Parameter] = ()
    problems: Sequence[int] = ()
    example: Mapping[str, Any] | None = None
    asks: str = KEY
    media: str = "application/json"
    tagged: bool = False
    sets_cookie: bool = False
    body_required: bool = True
    makes: tuple[str, str] | None = None


def parameters(method: str, path: str) -> frozenset[str]:
    """The names of the query's parameters: no others are taken."""
    told = TOLD.get((method, path))
    return frozenset() if told is None else frozenset(one.name for one in told.parameters if one.place == "query")


_TEXT: Final = MappingProxyType({"type": "string"})
_TIME: Final = MappingProxyType({"type": "string", "format": "date-time"})
_LIMIT = Parameter("limit", "How many a page may have.", {"type": "integer", "minimum": 1, "maximum": 1000})
_CURSOR = Parameter("cursor", "Where a page begins; `next` of the page before has it.", _TEXT)
_FROM = Parameter("from", "From this time on.", _TIME)
_TO = Parameter("to", "Before this time.", _TIME)
_PAGE = (_LIMIT, _CURSOR)
_AT = Parameter("at", "As it was at this time.", _TIME)
_TYPE = Parameter("type", "Types of events, with commas between them.", _TEXT)
_IF_MATCH = Parameter("If-Match", "An `ETag`: change only what it was the tag of.", _TEXT, "header")
_IF_NONE_MATCH = Parameter("If-None-Match", "An `ETag`: 304 if the answer is still the same.", _TEXT, "header")
_WHICH = Parameter(
    "which",
    "`this` session, the account's `others`, or `all` of them.",
    {"type": "string", "enum": ["this", "others", "all"], "default": "this"},
)
_EVEN_IF_LAST = Parameter(
    "even_if_last",
    "Do it although no other member is left who can sign in; else that is 422.",
    {"type": "boolean", "default": False},
)
_ONCE = Parameter(
    "Idempotency-Key",
    "Repeated with the same key within 24 hours, a request stores nothing and gets the first answer again.",
    {"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[ -~]*$"},
    "header",
)

_LISTENER_EXAMPLE: Final = {
    "name": "myapp.io/deletion-request-listener",
    "notify_url": "https://myapp.io/deletion/listener",
    "liveness_url": "https://myapp.io/live",
}
_MESSAGE_EXAMPLE: Final = {"data": '{ "userId": "481512342" }'}
_ACCOUNT_EXAMPLE: Final = {"email": "ann@myapp.io", "password": "correct horse battery"}

TOLD: Final[Mapping[tuple[str, str], Told]] = {
    ("PUT", "/v1/queues"): Told(
        "createQueue",
        "Make a queue",
        answers.QueueAnswer,
        shapes.NameBody,
        problems=BODY,
        example={"name": "myapp.io/deletion-request-queue"},
        tagged=True,
        makes=("queue_id", "/queue/id"),
    ),
    ("GET", "/v1/queues"): Told(
        "listQueues",
        "List the queues, oldest first",
        answers.QueuesAnswer,
        parameters=(*_PAGE, _AT, Parameter("name", "Only the queue of exactly this name.", _TEXT)),
        problems=(400, 422),
    ),
    ("GET", _QUEUE): Told(
        "getQueue",
        "A queue",
        answers.QueueAnswer,
        parameters=(_AT, _IF_NONE_MATCH),
        problems=(400, 404, 422),
        tagged=True,
    ),
    ("PUT", _QUEUE): Told(
        "renameQueue",
        "Rename a queue",
        answers.QueueAnswer,
        shapes.NameBody,
        (_IF_MATCH,),
        (404, 412, *BODY),
        {"name": "myapp.io/deletions"},
        tagged=True,
    ),
    ("DELETE", _QUEUE): Told(
        "deleteQueue",
        "Delete a queue; its listeners end and what is undelivered is cancelled",
        answers.QueueAnswer,
        parameters=(_IF_MATCH,),
        problems=(404, 412),
    ),
    ("PUT", _QUEUE + "/listeners"): Told(
        "createListener",
        "Make a listener; it gets every message that is put from now on",
        answers.NewListenerAnswer,
        shapes.NewListenerBody,
        problems=(404, *BODY),
        example=_LISTENER_EXAMPLE,
        tagged=True,
        makes=("listener_id", "/listener/id"),
    ),
    ("GET", _QUEUE + "/listeners"): Told(
        "listListeners",
        "List a queue's listeners, oldest first",
        answers.ListenersAnswer,
        parameters=(*_PAGE, _AT),
        problems=(400, 404, 422),
    ),
    ("GET", _LISTENER): Told(
        "getListener",
        "A listener, and how it is doing",
        answers.ListenerNowAnswer,
        parameters=(_AT, _IF_NONE_MATCH),
        problems=(400, 404, 422),
        tagged=True,
    ),
    ("PUT", _LISTENER): Told(
        "updateListener",
        "Change a listener, in full or in part; pending deliveries go to the new URL",
        answers.ListenerAnswer,
        shapes.ListenerBody,
        (_IF_MATCH,),
        (404, 412, *BODY),
        {"notify_url": "https://myapp.io/v2/deletion/listener", "max_in_flight": 8},
        tagged=True,
    ),
    ("DELETE", _LISTENER): Told(
        "deleteListener",
        "Delete a listener; its pending deliveries are cancelled",
        answers.ListenerAnswer,
        parameters=(_IF_MATCH,),
        problems=(404, 412),
    ),
    ("POST", _LISTENER + "/pause"): Told(
        "pauseListener", "Send a listener nothing for now", answers.ListenerAnswer, problems=(404,), tagged=True
    ),
    ("POST", _LISTENER + "/resume"): Told(
        "resumeListener",
        "Send a paused listener its messages again",
        answers.ListenerAnswer,
        problems=(404,),
        tagged=True,
    ),
    ("GET", _LISTENER + "/secret"): Told(
        "getSecret", "A listener's signing secret", answers.SecretAnswer, problems=(404,)
    ),
    ("POST", _LISTENER + "/secret/rotate"): Told(
        "rotateSecret",
        "Change a listener's signing secret; for a while the former one signs, too",
        answers.SecretAnswer,
        shapes.RotationBody,
        problems=(404, *BODY),
        example={"overlap_s": 3600},
        body_required=False,
    ),
    ("POST", _LISTENER + "/test"): Told(
        "testListener",
        "Send a listener one marked message, and say what it answered",
        answers.TrialAnswer,
        problems=(404, 429),
    ),
    ("GET", _LISTENER + "/deliveries"): Told(
        "listDeliveries",
        "List a listener's deliveries that are set aside to be tried later, having failed for a minute, or parked; "
        "a page may be short while there is a next one",
        answers.DeliveriesAnswer,
        parameters=(
            Parameter("state", "Only these.", {"type": "string", "enum": ["pending", "retrying", "parked"]}),
            *_PAGE,
        ),
        problems=(400, 404, 422),
    ),
    ("POST", _LISTENER + "/redrive"): Told(
        "redriveListener",
        "Try parked and retrying deliveries now: those of some messages, or all",
        answers.RedriveAnswer,
        shapes.RedriveBody,
        problems=(404, *BODY),
        example={"messages": ["0180994c-b6b2-7d0e-b7ad-414716e83386"]},
        body_required=False,
    ),
    ("POST", _LISTENER + "/replay"): Told(
        "replayToListener",
        "Deliver what was put in a time once more, or only count it",
        answers.ReplayBegunAnswer,
        shapes.ReplayBody,
        problems=(404, *BODY),
        example={"from": "2026-01-31T12:00:00Z", "only": "undelivered", "rate_per_s": 50},
        makes=("replay_id", "/replay/id"),
    ),
    ("GET", _LISTENER + "/replays"): Told(
        "listReplays", "A listener's replays, oldest first", answers.ReplaysAnswer, None, _PAGE, (400, 404, 422)
    ),
    ("GET", _REPLAY): Told("getReplay", "A replay and how far it is", answers.ReplayAnswer, problems=(404,)),
    ("DELETE", _REPLAY): Told("cancelReplay", "Deliver no more of a replay", answers.ReplayAnswer, problems=(404,)),
    ("POST", _REPLAY + "/pause"): Told("pauseReplay", "Pause a replay", answers.ReplayAnswer, problems=(404,)),
    ("POST", _REPLAY + "/resume"): Told("resumeReplay", "Resume a replay", answers.ReplayAnswer, problems=(404,)),
    ("PUT", _QUEUE + "/messages"): Told(
        "putMessage",
        "Put a message",
        answers.PutAnswer,
        shapes.MessageBody,
        (_ONCE,),
        (404, 409, 507, *BODY),
        _MESSAGE_EXAMPLE,
        makes=("message_id", "/message/id"),
    ),
    ("POST", _QUEUE + "/messages/batch"): Told(
        "putBatch",
        "Put up to 1,000 messages, all or none",
        answers.BatchAnswer,
        shapes.BatchBody,
        (_ONCE,),
        (404, 409, 507, *BODY),
        {"messages": [_MESSAGE_EXAMPLE, {"data": "second"}]},
    ),
    ("GET", _QUEUE + "/messages"): Told(
        "listMessages",
        "List a queue's messages, newest first; a page may be short while there is a next one",
        answers.MessagesAnswer,
        parameters=(_FROM, _TO, *_PAGE),
        problems=(400, 404, 422),
    ),
    ("GET", _MESSAGE): Told(
        "getMessage",
        "A message, and where it is with each listener",
        answers.MessageAnswer,
        parameters=(_IF_NONE_MATCH,),
        problems=(404,),
        tagged=True,
    ),
    ("PUT", _MESSAGE): Told(
        "updateMessage",
        "Change a message's data: what is not sent yet is sent with the new; the answer says who had it already",
        answers.ChangedMessageAnswer,
        shapes.MessageDataBody,
        (_IF_MATCH,),
        (404, 412, 507, *BODY),
        {"data": '{ "userId": "481512343" }'},
        tagged=True,
    ),
    ("DELETE", _MESSAGE): Told(
        "deleteMessage",
        "Delete a message: what is not sent yet is cancelled; the answer says who had it already",
        answers.ChangedMessageAnswer,
        parameters=(_IF_MATCH,),
        problems=(404, 412),
    ),
    ("PUT", "/v1/accounts"): Told(
        "createAccount",
        "Register",
        answers.AccountAnswer,
        shapes.AccountBody,
        problems=(403, 429, *BODY),
        example=_ACCOUNT_EXAMPLE,
        asks=OPEN,
    ),
    ("POST", "/v1/accounts/password"): Told(
        "changePassword",
        "Change the password; the account's other sessions end",
        answers.AccountAnswer,
        shapes.PasswordBody,
        problems=(429, *BODY),
        example={"password": "correct horse battery", "new_password": "wrong horse staple"},
        asks=SESSION,
    ),
    ("POST", "/v1/accounts/delete"): Told(
        "deleteAccount",
        "Delete the account; the answer names the organizations that nobody can sign in to any more",
        answers.DeletedAccountAnswer,
        shapes.DeletionBody,
        problems=(429, *BODY),
        example={"password": "correct horse battery"},
        asks=SESSION,
        sets_cookie=True,
    ),
    ("POST", "/v1/sessions"): Told(
        "startSession",
        "Sign in",
        answers.NewSessionAnswer,
        shapes.AccountBody,
        problems=(401, 403, 429, *BODY),
        example=_ACCOUNT_EXAMPLE,
        asks=OPEN,
        sets_cookie=True,
    ),
    ("GET", "/v1/sessions"): Told("getSession", "Who is signed in", answers.SessionAnswer, asks=SESSION),
    ("DELETE", "/v1/sessions"): Told(
        "endSession",
        "Sign out, here or elsewhere",
        answers.EndedSessionAnswer,
        parameters=(_WHICH,),
        asks=SESSION,
        sets_cookie=True,
    ),
    ("PUT", "/v1/organizations"): Told(
        "createOrganization",
        "Make an organization",
        answers.OrganizationAnswer,
        shapes.NameBody,
        problems=BODY,
        example={"name": "My App"},
        asks=SESSION,
        makes=("organization_id", "/organization/id"),
    ),
    ("GET", "/v1/organizations"): Told(
        "listOrganizations",
        "The organizations of the account, or the one of the key",
        answers.OrganizationsAnswer,
        asks=SESSION_OR_KEY,
    ),
    ("GET", _MEMBERS): Told(
        "listMembers", "List an organization's members", answers.MembersAnswer, problems=(404,), asks=SESSION
    ),
    ("DELETE", _MEMBERS + "/{account_id}"): Told(
        "removeMember",
        "Remove a member, or leave; keys stay, for they are the organization's",
        answers.MemberAnswer,
        parameters=(_EVEN_IF_LAST,),
        problems=(404,),
        asks=SESSION,
    ),
    ("PUT", _KEYS): Told(
        "createKey",
        "Make a key; the only answer that holds it",
        answers.NewKeyAnswer,
        shapes.KeyBody,
        problems=(404, *BODY),
        example={"name": "deploy", "scopes": ["queues", "messages"]},
        asks=SESSION_OR_KEY,
        makes=("key_id", "/key/id"),
    ),
    ("GET", _KEYS): Told(
        "listKeys",
        "List an organization's keys, oldest first",
        answers.KeysAnswer,
        parameters=(*_PAGE, _AT),
        problems=(400, 404, 422),
        asks=SESSION_OR_KEY,
    ),
    ("GET", _KEYS + "/{key_id}"): Told(
        "getKey", "A key", answers.KeyAnswer, parameters=(_AT,), problems=(400, 404, 422), asks=SESSION_OR_KEY
    ),
    ("DELETE", _KEYS + "/{key_id}"): Told(
        "revokeKey", "Revoke a key", answers.KeyAnswer, problems=(404,), asks=SESSION_OR_KEY
    ),
    ("GET", "/v1/log"): Told(
        "readLog",
        "The organization's events in one order, a line each",
        answers.LogLine,
        parameters=(
            _FROM,
            _TO,
            _TYPE,
            *(Parameter(name, f"Only events of this {name}.", _TEXT) for name in ("queue", "listener", "message")),
            Parameter("actor", "Only what it did: `key:<id>`, `account:<id>` or `worker`.", _TEXT),
            _CURSOR,
            Parameter("limit", "How many events.", {"type": "integer", "minimum": 1, "maximum": 1_000_000}),
        ),
        problems=(400, 404, 422),
        media="application/x-ndjson",
    ),
}
