"""A listener's answer as it is kept for people: bounded, and without the listener's secrets.

For: parsing the received bytes once more, off the path of single deliveries, and hiding secrets. All of it is foreign
text.
Not for: what an answer means (broker/core/delivery.py), storing it (broker/delivery/dispatch/kept_answers.py).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

import httptools
import orjson

from broker.outbound.addresses import TUNNEL_PROOF

BODY_BYTES_MAX: Final = 2 << 10
HEADERS_MAX: Final = 32
HEADER_CHARS_MAX: Final = 512
HIDDEN: Final = "…"
_SECRET_CHARS_MIN: Final = 4  # Shorter values occur in every text.
# This regular expression takes linear time on any input: all texts that it matches have 47 characters.
_SIGNATURE: Final = re.compile(r"v1,[A-Za-z0-9+/]{43}=")

Headers = tuple[tuple[str, str], ...]


class Answer(NamedTuple):
    """A listener's answer as it is stored. `cut` is true if the stored body of the answer is incomplete."""

    status: int
    headers: Headers
    body: str
    cut: bool


class _Parsed:
    """The callbacks of httptools."""

    def __init__(self) -> None:
        self.headers: list[tuple[str, str]] = []
        self.body = bytearray()
        self.complete = False

    def on_status(self, _reason: bytes) -> None:
        if not self.complete:
            self.headers.clear()  # An answer with a 1xx status is not the final answer, so drop its headers.

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self.complete:
            self.headers.append((name.decode("latin-1"), value.decode("latin-1")))

    def on_body(self, body: bytes) -> None:
        if not self.complete:
            self.body += body

    def on_message_complete(self) -> None:
        self.complete = self.complete or self.status() >= 200

    def status(self) -> int:
        return int(self.parser.get_status_code())

    def parse(self, raw: bytes) -> int:
        self.parser = httptools.HttpResponseParser(self)
        try:
            self.parser.feed_data(raw)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self.complete = False
        return self.status()


class Body(NamedTuple):
    """The body of a listener's answer, as it arrived. `complete` is False if a part of the body may be missing in
    `data`.
    """

    data: bytes
    complete: bool


def read_body(raw: bytes, *, cut: bool) -> Body:
    """Parse an HTTP answer, and return its body. `raw` has the bytes of the answer, from its status line on.

    A body without a declared length ends when the connection ends. Such a body is incomplete if `cut` is true: the
    connection broke, or this side closed it. Such a body is also incomplete if it begins with `{`, but is not valid
    JSON.
    """
    parsed = _Parsed()
    parsed.parse(raw)
    body = bytes(parsed.body)
    declared = any(name.lower() in ("content-length", "transfer-encoding") for name, _ in parsed.headers)
    return Body(body, parsed.complete or not (cut or declared or is_begun_object(body)))


def is_begun_object(body: bytes) -> bool:
    """Return whether a body begins like a JSON object, but is not valid JSON."""
    if not body.lstrip().startswith(b"{"):
        return False
    try:
        orjson.loads(body)
    except orjson.JSONDecodeError:
        return True
    return False


def read_answer(raw: bytes, secrets: Sequence[str]) -> Answer:
    """Parse an HTTP answer, and return the parts of it that are stored. `raw` has the bytes of the answer, from its
    status line on. The texts in `secrets` are hidden in the result.
    """
    parsed = _Parsed()
    status = parsed.parse(raw)
    shown = [(name, value) for name, value in parsed.headers if name.lower() != TUNNEL_PROOF]
    headers = tuple(
        (hidden(name, secrets)[:HEADER_CHARS_MAX], hidden(value, secrets)[:HEADER_CHARS_MAX])
        for name, value in shown[:HEADERS_MAX]
    )
    encoded = any(name.lower() == "content-encoding" and value.lower() != "identity" for name, value in shown)
    if encoded:  # Store no compressed body: people can't read it, and Everput can't hide the secrets in it.
        return Answer(status, headers, "", cut=True)
    text = without_beginning(hidden(parsed.body.decode(errors="replace"), secrets), secrets)
    kept = text.encode(errors="replace")[:BODY_BYTES_MAX].decode(errors="ignore")
    return Answer(status, headers, kept, cut=len(kept) < len(text) or not parsed.complete)


def secrets_of(values: Iterable[str]) -> tuple[str, ...]:
    """Return the texts to hide for each of these header values: the value itself, and the text after its first word,
    such as the token after `Bearer`. Texts of fewer than four characters are left out.
    """
    found = {text for value in values for text in (value, value.partition(" ")[2]) if len(text) >= _SECRET_CHARS_MIN}
    return tuple(sorted(found, key=len, reverse=True))


def hidden(text: str, secrets: Sequence[str]) -> str:
    """Return the text with `…` in place of each secret, and `v1,…` in place of each signature."""
    for secret in secrets:
        text = text.replace(secret, HIDDEN)
    return _SIGNATURE.sub("v1," + HIDDEN, text)


def without_beginning(text: str, secrets: Sequence[str]) -> str:
    """Replace the end of a text by an ellipsis if the end may be the beginning of a secret: at least its first four
    characters. The text may have been cut in the middle of the secret.
    """
    for secret in secrets:
        at = text.find(secret[:_SECRET_CHARS_MIN], max(0, len(text) - len(secret)))
        while at >= 0:
            if secret.startswith(text[at:]):
                text = text[:at] + HIDDEN
                break
            at = text.find(secret[:_SECRET_CHARS_MIN], at + 1)
    return text
