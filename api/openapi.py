"""The OpenAPI 3.1 document of the API.

For: creating the document from the routes, from their entries in reference.py and descriptions.py, and from the shapes
of bodies. The docstrings of a shape and of its attributes describe its schema and the fields. Not for: serving the
document (docs.py).
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from importlib.metadata import version
from inspect import getsource
from itertools import pairwise
from typing import Any, Final

import msgspec

from api.auth import COOKIE, COOKIE_HTTPS
from api.descriptions import DESCRIPTIONS
from api.problems import TITLES
from api.reference import CHANGES, KEY, OPEN, OPERATION_DOCS, SESSION, SESSION_OR_KEY, OperationDoc, Parameter
from api.samples import samples
from broker.core.keys import SCOPES
from everput import answers

_REFERENCE: Final = "#/components/schemas/{name}"
_ID: Final = "0180994c-b6b2-7d0e-b7ad-414716e83386"
_ID_SCHEMA: Final = {"type": "string", "format": "uuid"}
# This regular expression takes linear time: a match begins with `{`, and its only repetition `\w+` never matches `{`.
_PATH_PARAMETER = re.compile(r"{(\w+)}")
# Any operation may answer with these error statuses, so the document lists them for each operation.
_EVERYWHERE: Final = (400, 408, 414, 422, 431, 503)
_RETRIED: Final = (409, 429, 503)
_SECURITY: Final[Mapping[str, list[dict[str, list[str]]]]] = {
    KEY: [{"key": []}, {"session": [], "organization": []}, {"cookie": [], "organization": []}],
    SESSION: [{"session": []}, {"cookie": []}],
    SESSION_OR_KEY: [{"session": []}, {"cookie": []}, {"key": []}],
}
_API_KEY: Final = ("X-API-KEY", "API_KEY")
_TOKEN: Final = ("Authorization", "Bearer TOKEN")
_COOKIE_ABOUT: Final = (
    "The session's token in a browser's cookie. Requests that change something are accepted only from this server's "
    f"own pages. Over https the cookie's name is `{COOKIE_HTTPS}`."
)
_ORGANIZATION_ABOUT: Final = (
    "The ID of the organization in which a session acts. The session's account must be a member; its role says "
    "what it may do."
)
_KEY_ABOUT: Final = "\n".join(
    [
        "An API key, for example `X-API-KEY: evp_…`. Its scopes say what it may do:",
        "",
        *(f"- `{scope}`: {words}." for scope, words in SCOPES.items()),
        "",
        "A key can be restricted to some queues. Another queue is then answered 404, and what is no queue's 403.",
        "An expired or revoked key is answered 401.",
    ]
)
_TEXT: Final[Mapping[str, Any]] = {"schema": {"type": "string"}}
# If a request counts against a rate limit of one organization, account or client, its answer has these headers.
_RATE_LIMITS: Final[Mapping[str, Any]] = {
    "RateLimit-Policy": {"description": "The limits: the amount `q` in a window of `w` seconds.", **_TEXT},
    "RateLimit": {
        "description": "The remaining amount `r`, and the seconds `t` until the limit is full again.",
        **_TEXT,
    },
}
# The groups of operations, in the order in which the API reference shows them.
_TAGS: Final[Mapping[str, str]] = {
    "messages": "Messages are put on a queue and delivered to each of its listeners.",
    "queues": "A queue has listeners. Each of them gets all messages of the queue.",
    "listeners": "A listener is a URL to which Everput sends the messages of a queue.",
    "deliveries": "A delivery brings one message to one listener. It is retried until the listener accepts it.",
    "replays": "A replay sends messages of a time range to a listener again.",
    "statistics": "Counts over time: messages, failed attempts, latency, backlog.",
    "log": "The log has every event of the organization.",
    "organizations": "An organization owns queues, listeners, messages and API keys.",
    "members": "Members are the accounts that act in an organization.",
    "invitations": "An invitation lets a person join an organization.",
    "keys": "Programs authenticate with API keys.",
    "accounts": "An account belongs to a person.",
    "sessions": "A session is a person's sign-in.",
}
_TAG_OF: Final[Mapping[str, str]] = {
    "changes": "log",
    "overview": "statistics",
    "redrive": "deliveries",
    "replay": "replays",
}
_ABOUT: Final = """Put a message on a queue, and every listener of the queue gets it by HTTP POST.

Errors are problem details (RFC 9457): `type` names the kind of the problem, `detail` says what to do. The ID of a
resource of another organization is answered 404. Repeat a request that was answered 503 after `Retry-After` seconds;
with the same `Idempotency-Key` a message is stored once. Times are RFC 3339 in UTC, with milliseconds."""


def document(routes: Iterable[tuple[str, str, str | None]], *, server: str) -> dict[str, Any]:
    """Create the OpenAPI document.

    `routes` yields the HTTP method, the path and the required scope of each operation. `server` is the base URL of all
    paths.
    """
    known = [(method, path, scope, OPERATION_DOCS[method, path]) for method, path, scope in routes]
    schemas = _Schemas(doc for *_, doc in known)
    paths: dict[str, dict[str, Any]] = {}
    for method, path, scope, doc in known:
        operation = paths.setdefault(path, {})[method.lower()] = _operation(method, path, scope, doc, schemas, server)
        if doc.makes is not None:
            operation["responses"]["200"]["links"] = _links(path, *doc.makes, [(one[1], one[3]) for one in known])
    return {
        "openapi": "3.1.0",
        "info": {"title": "Everput", "version": version("everput"), "description": _ABOUT},
        "servers": [{"url": server}],
        "tags": [{"name": name, "description": text} for name, text in _TAGS.items()],
        "paths": paths,
        "webhooks": _webhooks(schemas),
        "components": {
            "schemas": schemas.all,
            "securitySchemes": {
                "key": {"type": "apiKey", "in": "header", "name": "X-API-KEY", "description": _KEY_ABOUT},
                "session": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "The token of a session: `Authorization: Bearer evs_…`.",
                },
                "cookie": {"type": "apiKey", "in": "cookie", "name": COOKIE, "description": _COOKIE_ABOUT},
                "organization": {
                    "type": "apiKey",
                    "in": "header",
                    "name": "Everput-Organization",
                    "description": _ORGANIZATION_ABOUT,
                },
            },
        },
    }


class _Schemas:
    """The JSON Schemas of request and answer bodies, by name. Their descriptions are the docstrings of the classes."""

    def __init__(self, operations: Iterable[OperationDoc]) -> None:
        shapes: list[type[msgspec.Struct]] = [answers.ProblemAnswer, answers.Notification]
        shapes += [answers.BatchedMessage, answers.BatchReply]
        for doc in operations:
            shapes += [doc.answer] if doc.request is None else [doc.answer, doc.request]
        _, self.all = msgspec.json.schema_components(list(dict.fromkeys(shapes)), ref_template=_REFERENCE)
        known = {shape.__name__: shape for shape in _subclasses(msgspec.Struct)}
        for name, schema in self.all.items():
            _describe(schema, known[name])

    @staticmethod
    def of(shape: type[msgspec.Struct]) -> dict[str, str]:
        return {"$ref": _REFERENCE.format(name=shape.__name__)}


def _subclasses(kind: type[msgspec.Struct]) -> Iterator[type[msgspec.Struct]]:
    """Yield all shapes of requests and answers."""
    for shape in kind.__subclasses__():
        if _is_ours(shape):
            yield shape
        yield from _subclasses(shape)


def _describe(schema: dict[str, Any], shape: type[msgspec.Struct]) -> None:
    """Add the docstring of a class, and the docstrings of its own and its inherited fields, to the JSON Schema of the
    class.
    """
    schema["description"], _ = described(shape)
    names = dict(zip(shape.__struct_fields__, shape.__struct_encode_fields__, strict=True))
    for base in filter(_is_ours, reversed(shape.__mro__)):
        for name, text in described(base)[1].items():
            schema["properties"][names[name]]["description"] = text


def _is_ours(shape: type) -> bool:
    return shape.__module__.startswith(("api.shapes", "everput.answers"))


def described(shape: type) -> tuple[str, dict[str, str]]:
    """Return the docstring of a class, and the docstrings of its own attributes (not inherited ones) by name."""
    return _one_line(shape.__doc__ or ""), _field_docstrings(shape.__module__)[shape.__name__]


@cache
def _field_docstrings(module: str) -> dict[str, dict[str, str]]:
    """Return the docstrings of the attributes of a module's classes, by class and attribute."""
    found: dict[str, dict[str, str]] = {}
    for kind in ast.parse(getsource(sys.modules[module])).body:
        if isinstance(kind, ast.ClassDef):
            found[kind.name] = {}
            for field, text in pairwise(kind.body):
                match field, text:
                    case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(words))):
                        found[kind.name][name] = _one_line(words)
    return found


def _one_line(docstring: str) -> str:
    return " ".join(docstring.split())


def _operation(
    method: str, path: str, scope: str | None, doc: OperationDoc, schemas: _Schemas, server: str
) -> dict[str, Any]:
    names = _PATH_PARAMETER.findall(path)
    parameters = [Parameter(name, f"The ID of the {name.removesuffix('_id')}.", _ID_SCHEMA, "path") for name in names]
    operation: dict[str, Any] = {
        "operationId": doc.name,
        "summary": doc.summary,
        "description": DESCRIPTIONS[doc.name],
        "tags": [_tag(path)],
        "security": _SECURITY.get(doc.asks, []),
        "parameters": [_parameter(one) for one in (*parameters, *doc.parameters)],
        "responses": _responses(doc, schemas),
        "x-codeSamples": samples(method, server + _PATH_PARAMETER.sub(_ID, path), _headers(doc), doc.example),
    }
    scope = scope or doc.needs
    if scope is not None:
        whole, colon, _ = scope.partition(":")
        also = f" or `{whole}`" if colon else ""
        who = "The role of the member" if doc.asks == SESSION else "An API key, or the role of a member,"
        operation["description"] += f"\n\n{who} needs the scope `{scope}`{also}."
    if doc.request is not None:
        content: dict[str, Any] = {"schema": schemas.of(doc.request)}
        if doc.example is not None:
            content["example"] = doc.example
        operation["requestBody"] = {"required": doc.body_required, "content": {"application/json": content}}
    return operation


def _links(path: str, made: str, pointer: str, operations: Iterable[tuple[str, OperationDoc]]) -> dict[str, Any]:
    """Create the OpenAPI links of an operation that creates a resource. They lead to the operations on the new
    resource.

    `path` is the path of the creating operation. `made` is the name of the path parameter that holds the new resource's
    id, such as `queue_id`. `pointer` is the JSON pointer to this id in the answer. Another operation gets a link if its
    path has the parameter `made`, and has no other parameters than `path` has.
    """
    values = {name: f"$request.path.{name}" for name in _PATH_PARAMETER.findall(path)}
    values[made] = f"$response.body#{pointer}"
    return {
        doc.name: {"operationId": doc.name, "parameters": {name: values[name] for name in names}}
        for names, doc in ((_PATH_PARAMETER.findall(other), doc) for other, doc in operations)
        if made in names and set(names) <= set(values)
    }


def _tag(path: str) -> str:
    """Return the group of operations to which a path belongs in the OpenAPI document. If several segments of the path
    name a group, the last of them decides.
    """
    parts = [_TAG_OF.get(part, part) for part in path.split("/")]
    return next(part for part in reversed(parts) if part in _TAGS)


def _headers(doc: OperationDoc) -> list[tuple[str, str]]:
    return [] if doc.asks == OPEN else [_TOKEN if doc.asks == SESSION else _API_KEY]


def _parameter(one: Parameter) -> dict[str, Any]:
    return {
        "name": one.name,
        "in": one.place,
        "description": one.description,
        "required": one.place == "path",
        "schema": dict(one.schema),
    }


def _responses(doc: OperationDoc, schemas: _Schemas) -> dict[str, Any]:
    limits = {} if doc.asks == OPEN and 429 not in doc.problems else _RATE_LIMITS
    headers: dict[str, Any] = {"X-Request-Id": _TEXT, **limits}
    tag = {"ETag": _TEXT}
    cookie = {"Set-Cookie": {"description": "The session's token, for browsers.", **_TEXT}} if doc.sets_cookie else {}
    done = {
        "description": "The request succeeded.",
        "headers": headers | cookie | (tag if doc.tagged else {}),
        "content": {doc.media: {"schema": schemas.of(doc.answer) if doc.media.endswith("json") else {}}},
    }
    found: dict[str, Any] = {"200": done}
    if any(one.name == "If-None-Match" for one in doc.parameters):
        found["304"] = {"description": "The resource has not changed.", "headers": headers | tag}
    asked = () if doc.asks == OPEN else (401, 403)
    limited = (429,) if limits else ()
    # A request with a session gets 404 if it names an organization of which the account is no member.
    named = (404,) if doc.asks == KEY else ()
    full = (507,) if doc.name in CHANGES else ()
    for status in sorted({*doc.problems, *asked, *limited, *named, *full, *_EVERYWHERE}):
        again = {"Retry-After": {"schema": {"type": "integer"}}} if status in _RETRIED else {}
        found[str(status)] = {
            "description": TITLES[status],
            "headers": again | headers,
            "content": {"application/problem+json": {"schema": schemas.of(answers.ProblemAnswer)}},
        }
    return found


def _webhooks(schemas: _Schemas) -> dict[str, Any]:
    headers = {
        "webhook-id": "The message's ID. It is the same in each attempt: use it to recognize repeats.",
        "webhook-timestamp": "The time of the attempt, in seconds since the epoch.",
        "webhook-signature": "`v1,` and the base64 HMAC-SHA256 of `id.timestamp.body` (Standard Webhooks). While the "
        "secret is rotated, several signatures separated by spaces; one of them must match.",
        "everput-attempt": "The number of the attempt, from 1.",
    }
    batch_headers = headers | {
        "webhook-id": "The ID of the batch, `batch_…`. A retry may group the messages differently.",
        "everput-batch": "The number of messages.",
    }
    del batch_headers["everput-attempt"]
    taken = {"2XX": {"description": "The listener has the message."}}
    gone = {"410": {"description": "The listener wants no more messages. It is paused."}}
    batch = {"type": "array", "minItems": 1, "maxItems": 1000, "items": schemas.of(answers.BatchedMessage)}
    reply = {"application/json": {"schema": schemas.of(answers.BatchReply)}}
    return {
        "notify": {
            "post": {
                "summary": "Receive a message",
                "description": "Everput sends each message to the listener's `notify_url`. Answer 2xx as soon as the "
                "message is safe. Any other status is retried later; 410 also pauses the listener.",
                "parameters": _webhook_headers(headers),
                "requestBody": {"content": {"application/json": {"schema": schemas.of(answers.Notification)}}},
                "responses": taken | gone,
            }
        },
        "notifyBatch": {
            "post": {
                "summary": "Receive a batch",
                "description": "Everput sends batches to a listener with the setting `batch`. A 2xx status accepts all "
                "messages, except those that the body of the answer names. Any other status fails all of them.",
                "parameters": _webhook_headers(batch_headers),
                "requestBody": {"content": {"application/json": {"schema": batch}}},
                "responses": {
                    "2XX": {"description": "The listener has the messages that it does not name.", "content": reply},
                    **gone,
                },
            }
        },
        "liveness": {
            "get": {
                "summary": "Answer a liveness check",
                "description": "While deliveries fail, Everput checks the listener's `liveness_url`. A 2xx status "
                "resumes the deliveries.",
                "responses": {"2XX": {"description": "The listener is up."}},
            }
        },
    }


def _webhook_headers(headers: Mapping[str, str]) -> list[dict[str, Any]]:
    return [_parameter(Parameter(name, words, {"type": "string"}, "header")) for name, words in headers.items()]
