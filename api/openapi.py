"""The OpenAPI 3.1 document of the routes there are.

For: routes, with what reference.py says of them, as one document; the schemas are those of the shapes that check the
requests. Not for: serving it (docs.py)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from typing import Any, Final

import msgspec

from api.auth import COOKIE, COOKIE_HTTPS
from api.problems import TITLES
from api.reference import CHANGES, KEY, OPEN, SESSION, SESSION_OR_KEY, TOLD, Parameter, Told
from api.samples import samples
from broker.core.keys import SCOPES
from everput import answers

_REFERENCE: Final = "#/components/schemas/{name}"
_ID: Final = "0180994c-b6b2-7d0e-b7ad-414716e83386"
_ID_SCHEMA: Final = {"type": "string", "format": "uuid"}
# ours: paths of routes
_PATH_PARAMETER = re.compile(r"{(\w+)}")
_EVERYWHERE: Final = (400, 408, 414, 422, 431, 503)  # 400, 422: of a query
_RETRIED: Final = (409, 429, 503)
_SECURITY: Final[Mapping[str, list[dict[str, list[str]]]]] = {
    KEY: [{"key": []}, {"session": [], "organization": []}, {"cookie": [], "organization": []}],
    SESSION: [{"session": []}, {"cookie": []}],
    SESSION_OR_KEY: [{"session": []}, {"cookie": []}, {"key": []}],
}
_API_KEY: Final = ("X-API-KEY", "API_KEY")
_TOKEN: Final = ("Authorization", "Bearer TOKEN")
_COOKIE_ABOUT: Final = (
    "The session's token, as a browser sends it; changes are taken from this server's own pages only. "
    f"By https the name is `{COOKIE_HTTPS}`."
)
_ORGANIZATION_ABOUT: Final = (
    "The id of the organization that a session acts in: its account is a member, and may do all."
)
_KEY_ABOUT: Final = "\n".join(
    [
        "What a key may do:",
        "",
        *(f"- `{scope}`: {words}." for scope, words in SCOPES.items()),
        "",
        "A key may be for some queues only: another queue is 404, what is no queue's is 403. An expired key is 401.",
    ]
)
_TEXT: Final[Mapping[str, Any]] = {"schema": {"type": "string"}}
# Where there is a limit: of a key's requests (`key`), an organization's bytes (`bytes`), and so on (limits.py).
_RATE_LIMITS: Final[Mapping[str, Any]] = {
    "RateLimit-Policy": {"description": "The limit: how much, in how many seconds.", **_TEXT},
    "RateLimit": {"description": "What is left of it, and in how many seconds all is.", **_TEXT},
}
_ABOUT: Final = """Put a message on a queue; every listener of the queue gets it over HTTP; nothing is lost.

Errors are problem details (RFC 9457). An id of another organization is 404. A request that was answered 503 may be sent
again; with the same `Idempotency-Key` a message is not stored twice. Times are UTC, RFC 3339."""


def document(routes: Iterable[tuple[str, str, str | None]], *, server: str) -> dict[str, Any]:
    """routes: (method, path, scope that a key needs). server: what all paths come after."""
    known = [(method, path, scope, TOLD[method, path]) for method, path, scope in routes]
    schemas = _Schemas(told for *_, told in known)
    paths: dict[str, dict[str, Any]] = {}
    for method, path, scope, told in known:
        operation = paths.setdefault(path, {})[method.lower()] = _operation(method, path, scope, told, schemas, server)
        if told.makes is not None:
            operation["responses"]["200"]["links"] = _links(path, *told.makes, [(one[1], one[3]) for one in known])
    return {
        "openapi": "3.1.0",
        "info": {"title": "Everput", "version": version("everput"), "description": _ABOUT},
        "servers": [{"url": server}],
        "paths": paths,
        "webhooks": _webhooks(schemas),
        "components": {
            "schemas": schemas.all,
            "securitySchemes": {
                "key": {"type": "apiKey", "in": "header", "name": "X-API-KEY", "description": _KEY_ABOUT},
                "session": {"type": "http", "scheme": "bearer"},
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
    """The shapes as JSON Schema. all: by name."""

    def __init__(self, operations: Iterable[Told]) -> None:
        shapes: list[type[msgspec.Struct]] = [answers.ProblemAnswer, answers.Notification]
        for told in operations:
            shapes += [told.answer] if told.request is None else [told.answer, told.request]
        _, self.all = msgspec.json.schema_components(list(dict.fromkeys(shapes)), ref_template=_REFERENCE)

    @staticmethod
    def of(shape: type[msgspec.Struct]) -> dict[str, str]:
        return {"$ref": _REFERENCE.format(name=shape.__name__)}


def _operation(method: str, path: str, scope: str | None, told: Told, schemas: _Schemas, server: str) -> dict[str, Any]:
    names = _PATH_PARAMETER.findall(path)
    parameters = [Parameter(name, "", _ID_SCHEMA, "path") for name in names]
    operation: dict[str, Any] = {
        "operationId": told.name,
        "summary": told.summary,
        "tags": [path.rsplit("/", maxsplit=1)[-1] if not names else _tag(path)],
        "security": _SECURITY.get(told.asks, []),
        "parameters": [_parameter(one) for one in (*parameters, *told.parameters)],
        "responses": _responses(told, schemas),
        "x-codeSamples": samples(method, server + _PATH_PARAMETER.sub(_ID, path), _headers(told), told.example),
    }
    if scope is not None:
        whole, colon, _ = scope.partition(":")
        operation["description"] = f"The key needs the scope `{scope}`" + (f", or `{whole}`." if colon else ".")
    if told.request is not None:
        content: dict[str, Any] = {"schema": schemas.of(told.request)}
        if told.example is not None:
            content["example"] = told.example
        operation["requestBody"] = {"required": told.body_required, "content": {"application/json": content}}
    return operation


def _links(path: str, made: str, pointer: str, operations: Iterable[tuple[str, Told]]) -> dict[str, Any]:
    """What can be done with what was made: by operationId."""
    values = {name: f"$request.path.{name}" for name in _PATH_PARAMETER.findall(path)}
    values[made] = f"$response.body#{pointer}"
    return {
        told.name: {"operationId": told.name, "parameters": {name: values[name] for name in names}}
        for names, told in ((_PATH_PARAMETER.findall(other), told) for other, told in operations)
        if made in names and set(names) <= set(values)
    }


def _tag(path: str) -> str:
    """The resource: the last part of the path that names a collection."""
    return [part for part in path.split("/") if part.endswith("s")][-1]


def _headers(told: Told) -> list[tuple[str, str]]:
    return [] if told.asks == OPEN else [_TOKEN if told.asks == SESSION else _API_KEY]


def _parameter(one: Parameter) -> dict[str, Any]:
    described = {"description": one.description} if one.description else {}
    return {"name": one.name, "in": one.place, "required": one.place == "path", **described, "schema": dict(one.schema)}


def _responses(told: Told, schemas: _Schemas) -> dict[str, Any]:
    limits = {} if told.asks == OPEN and 429 not in told.problems else _RATE_LIMITS
    headers: dict[str, Any] = {"X-Request-Id": _TEXT, **limits}
    tag = {"ETag": _TEXT}
    cookie = {"Set-Cookie": {"description": "The session's token, for browsers.", **_TEXT}} if told.sets_cookie else {}
    done = {
        "description": "Done",
        "headers": headers | cookie | (tag if told.tagged else {}),
        "content": {told.media: {"schema": schemas.of(told.answer) if told.media.endswith("json") else {}}},
    }
    found: dict[str, Any] = {"200": done}
    if any(one.name == "If-None-Match" for one in told.parameters):
        found["304"] = {"description": "Not changed", "headers": headers | tag}
    asked = () if told.asks == OPEN else (401, 403)
    limited = (429,) if limits else ()
    named = (404,) if told.asks == KEY else ()  # the organization of a session
    full = (507,) if told.name in CHANGES else ()
    for status in sorted({*told.problems, *asked, *limited, *named, *full, *_EVERYWHERE}):
        again = {"Retry-After": {"schema": {"type": "integer"}}} if status in _RETRIED else {}
        found[str(status)] = {
            "description": TITLES[status],
            "headers": again | headers,
            "content": {"application/problem+json": {"schema": schemas.of(answers.ProblemAnswer)}},
        }
    return found


def _webhooks(schemas: _Schemas) -> dict[str, Any]:
    headers: Mapping[str, str] = {
        "webhook-id": "The message's id, the same at each attempt.",
        "webhook-timestamp": "When the attempt was made, seconds since the epoch.",
        "webhook-signature": "`v1,` and the base64 HMAC-SHA256 of id, timestamp and body with dots between them "
        "(Standard Webhooks); several with spaces between them while the secret is being changed.",
        "everput-attempt": "The attempt's number, from 1.",
    }
    taken = {"2XX": {"description": "Taken"}}
    return {
        "notify": {
            "post": {
                "summary": "A message, at a listener's notify_url",
                "description": "Anything but 2xx is tried again later; 410 pauses the listener.",
                "parameters": [
                    _parameter(Parameter(name, words, {"type": "string"}, "header")) for name, words in headers.items()
                ],
                "requestBody": {"content": {"application/json": {"schema": schemas.of(answers.Notification)}}},
                "responses": {**taken, "410": {"description": "Send nothing more"}},
            }
        },
        "liveness": {
            "get": {
                "summary": "Is the listener up? At its liveness_url, while its deliveries fail",
                "responses": taken,
            }
        },
    }
