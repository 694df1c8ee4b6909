"""The operations of the API reference, by method and path.

For: summary, bodies, parameters, errors and example of every route. A test compares them with the routes. Not for:
descriptions (descriptions.py), the scopes and handlers of routes (app.py), the OpenAPI document (openapi.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from msgspec import Struct

from api import shapes
from broker.commands.listing import STATES
from broker.core.names import NAME_CHARS_MAX
from broker.core.roles import MEMBERS
from everput import answers

_QUEUE: Final = "/v1/queues/{queue_id}"
_LISTENER: Final = _QUEUE + "/listeners/{listener_id}"
_MESSAGE: Final = _QUEUE + "/messages/{message_id}"
_REPLAY: Final = _LISTENER + "/replays/{replay_id}"
_KEYS: Final = "/v1/organizations/{organization_id}/keys"
_MEMBERS: Final = "/v1/organizations/{organization_id}/members"
_INVITATIONS: Final = "/v1/organizations/{organization_id}/invitations"

BODY: Final = (400, 413, 415, 422)
OPEN: Final = "open"
KEY: Final = "key"  # The operation needs an API key, or a session and the header `Everput-Organization`.
SESSION: Final = "session"
SESSION_OR_KEY: Final = "session or key"

# Each of these operations stores an event that is never deleted from the log.
# If the tenant's stored bytes are at least 10 % above their limit, these operations are answered 507.
CHANGES: Final = frozenset(
    {
        *("createQueue", "renameQueue", "createListener", "updateListener", "resumeListener", "rotateSecret"),
        *("redriveListener", "replayToListener", "resumeReplay", "createKey", "changeMember", "testListener"),
    }
)


class Parameter(NamedTuple):
    """A parameter of an operation. `place` is `query`, `header` or `path`. `schema` is the parameter's JSON Schema."""

    name: str
    description: str
    schema: Mapping[str, Any]
    place: str = "query"


class OperationDoc(NamedTuple):
    """The documentation of one operation of the API, from which the OpenAPI document is created."""

    # The `operationId` of the operation.
    name: str
    # The operation's summary has at most six words, and its first word is a verb.
    summary: str
    answer: type[Struct]
    request: type[Struct] | None = None
    parameters: Sequence[Parameter] = ()
    # The error statuses of this operation. openapi.py adds further statuses that many operations share.
    problems: Sequence[int] = ()
    example: Mapping[str, Any] | None = None
    # The credentials that the operation requires: KEY, SESSION, SESSION_OR_KEY, or OPEN for none.
    asks: str = KEY
    # The scope that the handler itself requires of a role or an API key; None if the handler requires none.
    needs: str | None = None
    media: str = "application/json"
    # Whether the answer has an `ETag`.
    tagged: bool = False
    sets_cookie: bool = False
    body_required: bool = True
    # If the operation creates a resource: the path parameter for its id, and a JSON pointer to the id in the answer.
    makes: tuple[str, str] | None = None


def parameters(method: str, path: str) -> frozenset[str]:
    """Return the names of the query parameters that an operation accepts. A request with another query parameter is
    refused.
    """
    doc = OPERATION_DOCS.get((method, path))
    return frozenset() if doc is None else frozenset(one.name for one in doc.parameters if one.place == "query")


_TEXT: Final = MappingProxyType({"type": "string"})
_TIME: Final = MappingProxyType({"type": "string", "format": "date-time"})
_NAME_TEXT: Final = MappingProxyType({"type": "string", "minLength": 1, "maxLength": NAME_CHARS_MAX})
_LIMIT = Parameter(
    "limit", "The most items on a page. Default: 100.", {"type": "integer", "minimum": 1, "maximum": 1000}
)
_PAGE_TOKEN = Parameter("cursor", "The start of the page, from `_links.next` of the page before.", _TEXT)
_FROM = Parameter("from", "Start of the time range, for example `2026-01-31T12:00:00Z`.", _TIME)
_TO = Parameter("to", "End of the time range, excluded.", _TIME)
_PAGE = (_LIMIT, _PAGE_TOKEN)
_AT = Parameter("at", "Show the state at this past time, for example `2026-01-31T12:00:00Z`.", _TIME)
_TYPE = Parameter("type", "Event types, separated by commas, for example `queue,message.put`.", _TEXT)
_IF_MATCH = Parameter(
    "If-Match",
    "The `ETag` of an earlier answer. The request is refused with 412 if the resource has changed since.",
    _TEXT,
    "header",
)
_IF_NONE_MATCH = Parameter(
    "If-None-Match",
    "The `ETag` of an earlier answer. If the resource has not changed since, the answer is 304.",
    _TEXT,
    "header",
)
_WHICH = Parameter(
    "which",
    "The sessions to end: `this` one, the account's `others`, or `all`.",
    {"type": "string", "enum": ["this", "others", "all"], "default": "this"},
)
_EVEN_IF_LAST = Parameter(
    "even_if_last",
    "Remove the member even if no other owner can sign in. Otherwise such a request is refused with 422.",
    {"type": "boolean", "default": False},
)
_HEALTH = Parameter(
    "health",
    "Show how many listeners of each queue are in each state, and their parked and retrying deliveries.",
    {"type": "boolean", "default": False},
)
_BACKLOG = Parameter(
    "backlog",
    "Show how many messages wait for each queue's listeners, and since when. This reads the log, so it takes longer.",
    {"type": "boolean", "default": False},
)
_BACKLOG_OF_EACH: Final = (
    "Show how many messages wait for each listener, and since when. This reads the log, so it takes longer."
)
_MESSAGE_FILTERS = (
    Parameter(
        "state",
        "Only messages with a delivery in this state. `scheduled`: pending until the message's `deliver_at`.",
        {"type": "string", "enum": list(STATES)},
    ),
    Parameter("listener", "Only deliveries to the listener with this ID, and the messages that it gets.", _TEXT),
    Parameter("name", "Only messages with exactly this name.", _NAME_TEXT),
    Parameter("key", "Only messages with exactly this ordering key.", _NAME_TEXT),
    Parameter(
        "q",
        "Only messages whose name or ordering key contains this text, in upper or lower case, or whose ID begins with "
        "it. A whole message ID finds only the message with this ID.",
        _NAME_TEXT,
    ),
    Parameter(
        "deliveries",
        "Show the state of each message's delivery to each listener.",
        {"type": "boolean", "default": False},
    ),
    Parameter(
        "data",
        "Show the data of each message. Otherwise the data is empty, and only `size` tells of it.",
        {"type": "boolean", "default": True},
    ),
)
_STATISTICS = (
    Parameter("from", "The start of the time range; default: an hour before its end. Kept for 30 days.", _TIME),
    Parameter("to", "The end of the time range; default: now.", _TIME),
    Parameter(
        "step",
        "The length of a step, in minutes, hours or days; at most 1,500 steps. Default: by the time range.",
        {"type": "string", "pattern": "^[1-9][0-9]{0,3}[mhd]$", "examples": ["1m", "6h", "1d"]},
    ),
)
_ONCE = Parameter(
    "Idempotency-Key",
    "A new text for each put, such as a UUID. A request repeated with the same key within 24 hours stores nothing and "
    "gets the first answer again.",
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

OPERATION_DOCS: Final[Mapping[tuple[str, str], OperationDoc]] = {
    ("PUT", "/v1/queues"): OperationDoc(
        "createQueue",
        "Create a queue",
        answers.QueueAnswer,
        shapes.QueueBody,
        problems=BODY,
        example={"name": "myapp.io/deletion-request-queue"},
        tagged=True,
        makes=("queue_id", "/queue/id"),
    ),
    ("GET", "/v1/queues"): OperationDoc(
        "listQueues",
        "List queues",
        answers.QueuesAnswer,
        parameters=(*_PAGE, _AT, Parameter("name", "Only the queue with exactly this name.", _TEXT), _HEALTH, _BACKLOG),
        problems=(400, 422),
    ),
    ("GET", _QUEUE): OperationDoc(
        "getQueue",
        "Get a queue",
        answers.QueueAnswer,
        parameters=(_AT, _IF_NONE_MATCH),
        problems=(400, 404, 422),
        tagged=True,
    ),
    ("PUT", _QUEUE): OperationDoc(
        "renameQueue",
        "Change a queue",
        answers.QueueAnswer,
        shapes.QueueChangeBody,
        (_IF_MATCH,),
        (404, 412, *BODY),
        {"name": "myapp.io/deletions"},
        tagged=True,
    ),
    ("DELETE", _QUEUE): OperationDoc(
        "deleteQueue",
        "Delete a queue",
        answers.QueueAnswer,
        parameters=(_IF_MATCH,),
        problems=(404, 412),
    ),
    ("PUT", _QUEUE + "/listeners"): OperationDoc(
        "createListener",
        "Create a listener",
        answers.NewListenerAnswer,
        shapes.NewListenerBody,
        problems=(404, *BODY),
        example=_LISTENER_EXAMPLE,
        tagged=True,
        makes=("listener_id", "/listener/id"),
    ),
    ("GET", _QUEUE + "/listeners"): OperationDoc(
        "listListeners",
        "List a queue's listeners",
        answers.ListenersAnswer,
        parameters=(*_PAGE, _BACKLOG._replace(description=_BACKLOG_OF_EACH), _AT),
        problems=(400, 404, 422),
    ),
    ("GET", _LISTENER): OperationDoc(
        "getListener",
        "Get a listener and its state",
        answers.ListenerNowAnswer,
        parameters=(_AT, _IF_NONE_MATCH),
        problems=(400, 404, 422),
        tagged=True,
    ),
    ("PUT", _LISTENER): OperationDoc(
        "updateListener",
        "Change a listener",
        answers.ListenerAnswer,
        shapes.ListenerBody,
        (_IF_MATCH,),
        (404, 412, *BODY),
        {"notify_url": "https://myapp.io/v2/deletion/listener", "max_in_flight": 8},
        tagged=True,
    ),
    ("DELETE", _LISTENER): OperationDoc(
        "deleteListener",
        "Delete a listener",
        answers.ListenerAnswer,
        parameters=(_IF_MATCH,),
        problems=(404, 412),
    ),
    ("POST", _LISTENER + "/pause"): OperationDoc(
        "pauseListener", "Pause a listener", answers.ListenerAnswer, problems=(404,), tagged=True
    ),
    ("POST", _LISTENER + "/resume"): OperationDoc(
        "resumeListener",
        "Resume a listener",
        answers.ListenerAnswer,
        problems=(404,),
        tagged=True,
    ),
    ("GET", _LISTENER + "/secret"): OperationDoc(
        "getSecret", "Get a listener's signing secret", answers.SecretAnswer, problems=(404,)
    ),
    ("POST", _LISTENER + "/secret/rotate"): OperationDoc(
        "rotateSecret",
        "Rotate a listener's signing secret",
        answers.SecretAnswer,
        shapes.RotationBody,
        problems=(404, *BODY),
        example={"overlap_s": 3600},
        body_required=False,
    ),
    ("POST", _LISTENER + "/test"): OperationDoc(
        "testListener",
        "Send a test message",
        answers.ListenerTestAnswer,
        problems=(404, 429),
    ),
    ("GET", _LISTENER + "/deliveries"): OperationDoc(
        "listDeliveries",
        "List scheduled, retrying and parked deliveries",
        answers.DeliveriesAnswer,
        parameters=(
            Parameter(
                "state", "Only deliveries in this state.", {"type": "string", "enum": ["pending", "retrying", "parked"]}
            ),
            *_PAGE,
        ),
        problems=(400, 404, 422),
    ),
    ("GET", "/v1/overview"): OperationDoc(
        "getOverview",
        "Get an organization's overview",
        answers.OverviewAnswer,
        parameters=_STATISTICS,
        problems=(422,),
    ),
    ("GET", _QUEUE + "/statistics"): OperationDoc(
        "getQueueStatistics",
        "Get a queue's statistics",
        answers.StatisticsAnswer,
        parameters=_STATISTICS,
        problems=(404, 422),
    ),
    ("GET", _LISTENER + "/statistics"): OperationDoc(
        "getListenerStatistics",
        "Get a listener's statistics",
        answers.StatisticsAnswer,
        parameters=_STATISTICS,
        problems=(404, 422),
    ),
    ("POST", _LISTENER + "/redrive"): OperationDoc(
        "redriveListener",
        "Retry deliveries now",
        answers.RedriveAnswer,
        shapes.RedriveBody,
        problems=(404, *BODY),
        example={"messages": ["0180994c-b6b2-7d0e-b7ad-414716e83386"]},
        body_required=False,
    ),
    ("DELETE", _LISTENER + "/redrive"): OperationDoc(
        "cancelRedrives", "Cancel a listener's redrives", answers.RedriveAnswer, problems=(404,)
    ),
    ("POST", _LISTENER + "/replay"): OperationDoc(
        "replayToListener",
        "Replay messages of a time range",
        answers.ReplayBegunAnswer,
        shapes.ReplayBody,
        problems=(404, *BODY),
        example={"from": "2026-01-31T12:00:00Z", "only": "undelivered", "rate_per_s": 50},
        makes=("replay_id", "/replay/id"),
    ),
    ("GET", _LISTENER + "/replays"): OperationDoc(
        "listReplays", "List a listener's replays", answers.ReplaysAnswer, None, _PAGE, (400, 404, 422)
    ),
    ("GET", _REPLAY): OperationDoc("getReplay", "Get a replay and its progress", answers.ReplayAnswer, problems=(404,)),
    ("DELETE", _REPLAY): OperationDoc("cancelReplay", "Cancel a replay", answers.ReplayAnswer, problems=(404,)),
    ("POST", _REPLAY + "/pause"): OperationDoc("pauseReplay", "Pause a replay", answers.ReplayAnswer, problems=(404,)),
    ("POST", _REPLAY + "/resume"): OperationDoc(
        "resumeReplay", "Resume a replay", answers.ReplayAnswer, problems=(404,)
    ),
    ("PUT", _QUEUE + "/messages"): OperationDoc(
        "putMessage",
        "Put a message",
        answers.PutAnswer,
        shapes.MessageBody,
        (_ONCE,),
        (404, 409, 507, *BODY),
        _MESSAGE_EXAMPLE,
        makes=("message_id", "/message/id"),
    ),
    ("POST", _QUEUE + "/messages/batch"): OperationDoc(
        "putBatch",
        "Put several messages",
        answers.BatchAnswer,
        shapes.BatchBody,
        (_ONCE,),
        (404, 409, 507, *BODY),
        {"messages": [_MESSAGE_EXAMPLE, {"data": "second"}]},
    ),
    ("GET", _QUEUE + "/messages"): OperationDoc(
        "listMessages",
        "List a queue's messages",
        answers.MessagesAnswer,
        parameters=(_FROM, _TO, *_MESSAGE_FILTERS, *_PAGE),
        problems=(400, 404, 422),
    ),
    ("GET", _MESSAGE): OperationDoc(
        "getMessage",
        "Get a message and its deliveries",
        answers.MessageAnswer,
        parameters=(_IF_NONE_MATCH,),
        problems=(404,),
        tagged=True,
    ),
    ("PUT", _MESSAGE): OperationDoc(
        "updateMessage",
        "Change a message's data",
        answers.ChangedMessageAnswer,
        shapes.MessageDataBody,
        (_IF_MATCH,),
        (404, 412, 507, *BODY),
        {"data": '{ "userId": "481512343" }'},
        tagged=True,
    ),
    ("DELETE", _MESSAGE): OperationDoc(
        "deleteMessage",
        "Delete a message",
        answers.ChangedMessageAnswer,
        parameters=(_IF_MATCH,),
        problems=(404, 412),
    ),
    ("PUT", "/v1/accounts"): OperationDoc(
        "createAccount",
        "Register an account",
        answers.AccountAnswer,
        shapes.AccountBody,
        problems=(403, 429, *BODY),
        example=_ACCOUNT_EXAMPLE,
        asks=OPEN,
    ),
    ("POST", "/v1/accounts/password"): OperationDoc(
        "changePassword",
        "Change the password",
        answers.AccountAnswer,
        shapes.PasswordBody,
        problems=(429, *BODY),
        example={"password": "correct horse battery", "new_password": "wrong horse staple"},
        asks=SESSION,
    ),
    ("POST", "/v1/accounts/password-reset"): OperationDoc(
        "askForPasswordReset",
        "Send a password reset",
        answers.ResetAskedAnswer,
        shapes.ResetBody,
        problems=(403, 429, *BODY),
        example={"email": "ann@myapp.io"},
        asks=OPEN,
    ),
    ("PUT", "/v1/accounts/password-reset"): OperationDoc(
        "resetPassword",
        "Change a forgotten password",
        answers.AccountAnswer,
        shapes.NewPasswordBody,
        problems=(429, *BODY),
        example={"token": "AbCd…", "new_password": "wrong horse staple"},
        asks=OPEN,
    ),
    ("POST", "/v1/accounts/unlink"): OperationDoc(
        "unlinkIdentity",
        "Unlink the OpenID Connect provider",
        answers.AccountAnswer,
        shapes.UnlinkBody,
        problems=(429, *BODY),
        example={"password": "correct horse battery"},
        asks=SESSION,
    ),
    ("POST", "/v1/accounts/delete"): OperationDoc(
        "deleteAccount",
        "Delete the account",
        answers.DeletedAccountAnswer,
        shapes.DeletionBody,
        problems=(429, *BODY),
        example={"password": "correct horse battery"},
        asks=SESSION,
        sets_cookie=True,
    ),
    ("POST", "/v1/sessions"): OperationDoc(
        "startSession",
        "Sign in",
        answers.NewSessionAnswer,
        shapes.AccountBody,
        problems=(401, 403, 429, *BODY),
        example=_ACCOUNT_EXAMPLE,
        asks=OPEN,
        sets_cookie=True,
    ),
    ("POST", "/v1/sessions/oidc"): OperationDoc(
        "startOidc",
        "Sign in with a provider",
        answers.SignInUrlAnswer,
        shapes.SignInBody,
        problems=(403, 429, *BODY),
        example={"page": "#/overview"},
        asks=OPEN,
        sets_cookie=True,
    ),
    ("GET", "/v1/sessions"): OperationDoc(
        "getSession", "Get the session and its account", answers.SessionAnswer, asks=SESSION
    ),
    ("DELETE", "/v1/sessions"): OperationDoc(
        "endSession",
        "Sign out",
        answers.EndedSessionAnswer,
        parameters=(_WHICH,),
        asks=SESSION,
        sets_cookie=True,
    ),
    ("PUT", "/v1/organizations"): OperationDoc(
        "createOrganization",
        "Create an organization",
        answers.OrganizationAnswer,
        shapes.NameBody,
        problems=BODY,
        example={"name": "My App"},
        asks=SESSION,
        makes=("organization_id", "/organization/id"),
    ),
    ("GET", "/v1/organizations"): OperationDoc(
        "listOrganizations",
        "List organizations",
        answers.OrganizationsAnswer,
        asks=SESSION_OR_KEY,
    ),
    ("GET", _MEMBERS): OperationDoc(
        "listMembers", "List an organization's members", answers.MembersAnswer, problems=(404,), asks=SESSION
    ),
    ("PUT", _MEMBERS + "/{account_id}"): OperationDoc(
        "changeMember",
        "Change a member's role",
        answers.MemberAnswer,
        shapes.RoleBody,
        problems=(404, 412, *BODY),
        example={"role": "operator"},
        asks=SESSION,
        needs=MEMBERS,
    ),
    ("DELETE", _MEMBERS + "/{account_id}"): OperationDoc(
        "removeMember",
        "Remove a member",
        answers.MemberAnswer,
        parameters=(_EVEN_IF_LAST,),
        problems=(404, 412, 422),
        asks=SESSION,
        needs=MEMBERS,
    ),
    ("PUT", _INVITATIONS): OperationDoc(
        "createInvitation",
        "Create an invitation",
        answers.NewInvitationAnswer,
        shapes.InvitationBody,
        problems=(404, 429, *BODY),
        example={"email": "bob@myapp.io", "role": "developer"},
        asks=SESSION,
        needs=MEMBERS,
        makes=("invitation_id", "/invitation/id"),
    ),
    ("GET", _INVITATIONS): OperationDoc(
        "listInvitations",
        "List open invitations",
        answers.InvitationsAnswer,
        problems=(404,),
        asks=SESSION,
        needs=MEMBERS,
    ),
    ("DELETE", _INVITATIONS + "/{invitation_id}"): OperationDoc(
        "revokeInvitation",
        "Revoke an invitation",
        answers.InvitationAnswer,
        problems=(404,),
        asks=SESSION,
        needs=MEMBERS,
    ),
    ("POST", "/v1/invitations/accept"): OperationDoc(
        "acceptInvitation",
        "Accept an invitation",
        answers.AcceptedInvitationAnswer,
        shapes.TokenBody,
        problems=(429, *BODY),
        example={"token": "evi_…"},
        asks=SESSION,
    ),
    ("POST", "/v1/invitations/register"): OperationDoc(
        "registerInvited",
        "Register with an invitation",
        answers.InvitedAccountAnswer,
        shapes.InvitedAccountBody,
        problems=(429, *BODY),
        example={"token": "evi_…", "password": "correct horse battery"},
        asks=OPEN,
    ),
    ("PUT", _KEYS): OperationDoc(
        "createKey",
        "Create an API key",
        answers.NewKeyAnswer,
        shapes.KeyBody,
        problems=(404, *BODY),
        example={"name": "deploy", "scopes": ["queues", "messages"]},
        asks=SESSION_OR_KEY,
        needs="keys",
        makes=("key_id", "/key/id"),
    ),
    ("GET", _KEYS): OperationDoc(
        "listKeys",
        "List API keys",
        answers.KeysAnswer,
        parameters=(*_PAGE, _AT),
        problems=(400, 404, 422),
        asks=SESSION_OR_KEY,
        needs="keys",
    ),
    ("GET", _KEYS + "/{key_id}"): OperationDoc(
        "getKey",
        "Get an API key",
        answers.KeyAnswer,
        parameters=(_AT,),
        problems=(400, 404, 422),
        asks=SESSION_OR_KEY,
        needs="keys",
    ),
    ("DELETE", _KEYS + "/{key_id}"): OperationDoc(
        "revokeKey", "Revoke an API key", answers.KeyAnswer, problems=(404,), asks=SESSION_OR_KEY, needs="keys"
    ),
    ("GET", "/v1/changes"): OperationDoc(
        "watchChanges",
        "Read changes as they happen",
        answers.ChangesEvent,
        parameters=(
            Parameter(
                "Last-Event-ID",
                "The `id` of the last event that the client has received. The first event then has the changes since.",
                _TEXT,
                "header",
            ),
        ),
        media="text/event-stream",
    ),
    ("GET", "/v1/log"): OperationDoc(
        "readLog",
        "Read the log",
        answers.LogLine,
        parameters=(
            _FROM,
            _TO,
            _TYPE,
            *(
                Parameter(name, f"Only events of the {name} with this ID.", _TEXT)
                for name in ("queue", "listener", "message")
            ),
            Parameter(
                "actor", "Only events caused by this actor: `key:<id>`, `account:<id>`, `worker` or `shell`.", _TEXT
            ),
            _PAGE_TOKEN,
            Parameter(
                "limit", "The most events in the answer.", {"type": "integer", "minimum": 1, "maximum": 1_000_000}
            ),
        ),
        problems=(400, 404, 422),
        media="application/x-ndjson",
    ),
}
