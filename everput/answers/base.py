"""The parts that all answers share: links, names, times, problems.

For: base classes and types. Not for: the answer of an operation (the other modules of this package)."""

from __future__ import annotations

from typing import Annotated

from msgspec import UNSET, Meta, Struct, UnsetType, field

Id = Annotated[str, Meta(pattern="^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$", extra_json_schema={"format": "uuid"})]
Time = Annotated[str, Meta(extra_json_schema={"format": "date-time"})]  # UTC, with milliseconds
Count = Annotated[int, Meta(ge=0)]


class Answer(Struct, kw_only=True):
    """The base of all answers. An answer may have more fields than a program knows; ignore them."""


class Link(Answer):
    """A link to a resource."""

    href: str
    """The URL of the resource."""


class Links(Answer):
    """The links of an answer."""

    self_: Link = field(name="self")
    """The resource that the answer shows."""


class PageLinks(Links):
    """The links of a page of a list."""

    next: Link | UnsetType = UNSET
    """The next page. Missing on the last page."""


class ErrorLocation(Answer):
    """The part of a request that is wrong: a place in its body, a parameter of its query, or a header."""

    detail: str
    """The error at this place, and how to correct it."""
    pointer: str | UnsetType = UNSET
    """The place in the body, as an RFC 6901 pointer such as `/notify_url`."""
    parameter: str | UnsetType = UNSET
    """The name of the query's parameter."""
    header: str | UnsetType = UNSET
    """The name of the header."""


class ProblemAnswer(Answer):
    """Problem details (RFC 9457): the answer to a request that failed."""

    type: str
    """The kind of the problem, such as `/problems/name-taken`: the path of a page about it. Programs compare it."""
    title: str
    """The name of the HTTP status."""
    status: int
    """The HTTP status."""
    detail: str
    """The error in this request, and what to do about it. For people; the words may change."""
    errors: list[ErrorLocation] | UnsetType = UNSET
    """The parts of the request that are wrong, if the problem is about such a part."""


class HeaderField(Answer):
    """An HTTP header."""

    name: str
    """The name."""
    value: str
    """The value; `…` in place of a secret."""


class SentRequest(Answer):
    """The request that was sent to a listener."""

    url: str
    """The URL, without the values of its query."""
    headers: list[HeaderField]
    """The headers, without those that the message and the attempt decide."""


class ListenerReply(Answer):
    """The answer of a listener. `…` replaces all signatures in the answer, and each value of the listener's own
    `headers` that has at least four characters.
    """

    headers: list[HeaderField]
    """The headers."""
    body: str
    """The first 2 KiB of the body."""
    truncated: bool
    """Whether there was more of the body, or not all of it was read."""
    request: SentRequest
    """The request that the listener answered."""


class Named(Answer):
    """The ID and the name of a resource, such as a queue."""

    id: Id
    """The ID, a UUID. It never changes."""
    name: str
    """The name."""
