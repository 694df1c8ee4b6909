"""The usual put of a message, answered without ASGI (docs/decisions/0260).

For: which puts are usual, their checks, their append and their answer. Not for: HTTP (cli/processes/direct.py), or all
other requests and all refusals before the append, which calls.py and messages.py answer.

A put is usual if nothing about it needs a wait or a refusal. Every check is made before anything is counted or
appended, so a put that is not usual can still be answered in the general way. tests/unit/test_direct_puts.py compares
the answers of both ways byte for byte.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from time import perf_counter
from typing import Final

import orjson

from api.auth import ApiKeys
from api.calls import Service, logged_problem, request_id_of, whole_headers
from api.messages import put_answer
from api.problems import MEDIA_TYPE, Headers
from api.shapes import MessageBody, parse
from api.volume import Volume
from broker.commands.puts import Put, new_put
from broker.core import trace
from broker.core.api_keys import ApiKey
from broker.core.entities import Queue
from broker.core.keys import covers
from broker.ports import MessageLog
from broker.volume import StoredBytes

log = logging.getLogger(__name__)

BODY_BYTES_MAX: Final = 64 << 10
_BEFORE: Final = b"/v1/queues/"
_AFTER: Final = b"/messages"
_ROUTE: Final = "/v1/queues/{queue_id}/messages"
_SCOPE: Final = "messages:put"
_JSON: Final = b"application/json"
_KINDS: Final = frozenset({_JSON, b"application/json; charset=utf-8", b"application/json;charset=utf-8"})
LENGTH_DIGITS_MAX: Final = len(str(BODY_BYTES_MAX))
# If a put has one of these request headers, the ASGI application answers it, not the faster code in this file.
_UNUSUAL: Final = frozenset(
    {b"idempotency-key", b"content-encoding", b"transfer-encoding", b"expect", b"upgrade", trace.HEADER}
)


class DirectPut:
    """A put of a message that is answered without the ASGI application. A subclass sends the answer.

    `url` is the path of the request. `sent` holds the request's headers by name. No header of the request is repeated.
    """

    __slots__ = ("_begun_s", "_headers", "_put", "_puts", "_request_id", "_told", "scheme", "sent", "url")

    def __init__(self, puts: DirectPuts, url: bytes, sent: Mapping[bytes, bytes], scheme: str) -> None:
        self._puts = puts
        self._begun_s = perf_counter()
        self._told = False
        self._headers: Headers = []
        self._request_id = b""
        self._put: Put
        self.url = url
        self.sent = sent
        self.scheme = scheme

    def send(self, status: int, headers: Headers, body: bytes) -> None:
        """Send the answer. Called once."""
        raise NotImplementedError

    def is_permitted(self) -> bool:
        """Return whether this put's API key is valid and in the cache, and may put messages on the queue now."""
        return self._puts.target(self.url, self.sent) is not None

    def begin(self, body: bytes) -> bool:
        """Check the put, append its message and return True. Return False if the ASGI application must answer the put.
        In that case, nothing was counted or appended.
        """
        try:
            return self._puts.append(self, body)
        except Exception:  # noqa: BLE001 - The general way meets the same error, and answers it.
            return False

    # ports.Acknowledged

    def done(self) -> bool:
        """Return whether the put is answered."""
        return self._told

    def set_result(self, _place: tuple[int, int]) -> None:
        """Answer that the message is stored."""
        try:
            base = self._puts.public_url
            if base is None:
                base = f"{self.scheme}://{self.sent[b'host'].decode('latin-1')}"
            queue_id = self.url[len(_BEFORE) : -len(_AFTER)].decode()
            self._finish(200, self._headers, _JSON, orjson.dumps(put_answer(base, queue_id, self._put)))
        # Log the exception, but do not raise it: the caller (the group commit) must continue with other messages.
        except Exception:
            log.exception("put.not_answered id=%s", self._request_id.decode())

    def set_exception(self, error: BaseException) -> None:
        """Answer with the problem details of an error. The error says whether the message may have been stored."""
        try:
            problem = logged_problem(error, self._request_id, self.url.decode("latin-1"), self._headers)
            self._finish(problem.status, problem.headers, MEDIA_TYPE, problem.body)
        except Exception:  # See set_result().
            log.exception("put.not_answered id=%s", self._request_id.decode())

    def _finish(self, status: int, headers: Headers, kind: bytes, body: bytes) -> None:
        self._told = True
        try:
            self.send(status, whole_headers(headers, kind, body, self._request_id), body)
        finally:
            self._puts.answered("PUT", _ROUTE, status, self._begun_s)

    def appending(self, put: Put, request_id: bytes, headers: Headers) -> None:
        """Keep the put, the request id and the headers until the message is appended, because the HTTP answer needs
        them.
        """
        self._put = put
        self._request_id = request_id
        self._headers = headers


class DirectPuts:
    """The part of the API that answers usual puts of messages without the ASGI application. It checks a put and appends
    its message.

    Before each append, `came` is called, so that readers of the log in this process slow down. `volume` is the rate
    limit on the bytes that each organization puts; None means no limit.
    """

    def __init__(
        self,
        service: Service,
        messages: MessageLog,
        stored: StoredBytes,
        *,
        volume: Volume | None,
        came: Callable[[], None],
    ) -> None:
        self.public_url = service.public_url
        self.answered = service.requests.add
        self._keys: ApiKeys = service.keys
        self._view = service.view
        self._messages = messages
        self._stored = stored
        self._volume = volume
        self._came = came
        self._body_bytes_max = min(BODY_BYTES_MAX, service.body_bytes_max)

    def looks_usual(self, url: bytes, sent: Mapping[bytes, bytes]) -> bool:
        """Return whether this PUT request looks like a put of a message that may be answered without ASGI. Only the
        head of the request is examined.
        """
        length = sent.get(b"content-length", b"")
        return (
            url.startswith(_BEFORE)
            and url.endswith(_AFTER)
            and sent.get(b"content-type") in _KINDS
            and 0 < len(length) <= LENGTH_DIGITS_MAX
            and length.isdigit()
            and self.takes(int(length))
            and _UNUSUAL.isdisjoint(sent)
            and sent.get(b"connection", b"keep-alive").lower() == b"keep-alive"
        )

    def takes(self, size: int) -> bool:
        """Return whether a put with a body of this many bytes may be answered without ASGI."""
        return 0 < size <= self._body_bytes_max

    def target(self, url: bytes, sent: Mapping[bytes, bytes]) -> tuple[ApiKey, Queue] | None:
        """Return the API key and the queue of a put. Return None if the key is not in the cache, has expired, or may
        not put on this queue. Also return None if this process knows no such queue.
        """
        api_key = self._keys.remembered(sent.get(b"x-api-key", b""))
        if api_key is None or not covers(api_key.scopes, _SCOPE):
            return None
        queue_id = url[len(_BEFORE) : -len(_AFTER)].decode("latin-1")
        if api_key.queue_ids is not None and queue_id not in api_key.queue_ids:
            return None
        queue = self._view.state.queue(api_key.organization_id, queue_id)
        return None if queue is None else (api_key, queue)

    def append(self, put: DirectPut, body: bytes) -> bool:
        """Append the message of a put, and return True. Return False if the ASGI application must answer the put
        instead. If this method returns False or raises an error, nothing was counted or appended.
        """
        target = self.target(put.url, put.sent)
        if target is None:
            return False
        api_key, queue = target
        organization_id = queue.organization_id
        said = parse(body, MessageBody)
        self._stored.check(organization_id)
        request_id = request_id_of(put.sent)
        made = new_put(
            queue,
            said.data,
            said.name,
            said.key,
            f"key:{api_key.id}",
            str(request_id, "ascii"),
            said.deliver_at,
            self._stored.add,
        )
        headers: Headers = []
        limit, volume = self._keys.limit, self._volume
        if limit is not None and not limit.permits(organization_id):
            return False
        if volume is not None and not volume.permits(organization_id, len(body)):
            return False
        if limit is not None:
            limit.take(headers, organization_id)
        if volume is not None:
            volume.take(headers, organization_id, len(body))
        self._came()
        put.appending(made, request_id, headers)
        try:
            self._messages.append_for(put, made.build, ordering_key=said.key, size=made.size)
        except Exception as error:  # noqa: BLE001 - told apart by problem()
            put.set_exception(error)
        return True
