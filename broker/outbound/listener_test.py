"""A test of a listener: one marked message that is sent at once and not stored.

For: what `POST …/test` sends, its result, and the event that stores the result. The request is signed and addressed
like a delivery. Not for: who may request a test, and how often (api/secrets.py).
"""

from __future__ import annotations

import asyncio
import secrets
import ssl
from typing import Final, NamedTuple
from zlib import crc32

import orjson

from broker.clock import now_ms
from broker.core.batching import FAILED_IN_BATCH, batch_body, batch_id, element, failed_ids
from broker.core.catalogue import masked_url
from broker.core.codec import Fields
from broker.core.delivery import taken
from broker.core.entities import Listener, Queue
from broker.core.events import ListenerTested
from broker.core.formats import RENDER
from broker.core.ids import message_id
from broker.outbound.addresses import Resolver, parse_url
from broker.outbound.answer import Answer, Headers, hidden, read_answer, secrets_of
from broker.outbound.connection import Times
from broker.outbound.request import also_signed, open_listener, post_head, shown_headers
from broker.outbound.single_request import ask
from broker.sealing import Sealer

TIMEOUT_S_MAX: Final = 15.0


class ListenerTest(NamedTuple):
    """The result of a listener test."""

    message_id: str
    batch_id: str | None  # the id of the batch that held the test message; None if this listener gets messages singly
    status: int | None  # None if there was no answer
    # why no answer came, such as `timeout`; `failed-in-batch` if the answer to a batch rejects the test message
    error: str | None
    took_ms: int  # milliseconds from the start of connecting to the end of the answer's headers, or to the failure
    times: Times  # durations of the steps of connecting
    answer: Answer | None  # with secrets hidden
    request: Headers  # with secrets hidden
    url: str  # with secrets hidden

    def event(self, fields: Fields, listener: Listener) -> ListenerTested:
        """Return the event that stores this result. `fields` has the event's time, organization, author and request id.

        The events of all tests of a listener have the same partition.
        """
        dns_ms, connect_ms, tls_ms = self.times
        answers = () if self.answer is None else (("", *self.answer, self.url, self.request),)
        return ListenerTested(
            **fields,
            listener_id=listener.id,
            queue_id=listener.queue_id,
            message_id=self.message_id,
            partition=crc32(listener.id.encode()) % len(listener.start_offsets),
            status=self.status,
            error=self.error,
            took_ms=self.took_ms,
            dns_ms=dns_ms,
            connect_ms=connect_ms,
            tls_ms=tls_ms,
            answers=answers,
        )


async def try_out(
    sealer: Sealer, queue: Queue, listener: Listener, resolver: Resolver, tls: ssl.SSLContext
) -> ListenerTest:
    """Send the listener a test message with the header `everput-test: true`, and return the result of the test. A
    listener with batches gets a batch of only this message. Raises ConfigurationError if the listener's secrets or
    headers can't be decrypted.
    """
    opened = open_listener(sealer, listener)
    target = parse_url(listener.notify_url)
    at_ms = now_ms()
    made = message_id(at_ms=at_ms, partition=0, random_bits=secrets.randbits(62))
    body = orjson.dumps(
        {
            "queue": {"id": queue.id, "name": queue.name},
            "message": {"id": made, "name": "test", "data": "A test of this listener: no message was put."},
        }
    )
    if isinstance(listener.settings.format, str):
        body = RENDER[listener.settings.format](body)
    webhook_id, more, batched = made, b"everput-attempt: 1\r\n", listener.batch is not None
    if batched:
        body = batch_body([element(made.encode(), body, 1, None)])
        webhook_id, more = batch_id([made.encode()]).decode(), b"everput-batch: 1\r\n"
    signed = {"message_id": webhook_id.encode(), "timestamp": b"%d" % (at_ms // 1000), "body": body}
    signature = opened.signer.sign(*signed.values()) + also_signed(opened.former, at_ms, **signed)
    head = b"%bwebhook-id: %b\r\nwebhook-timestamp: %b\r\nwebhook-signature: %b\r\n" % (
        post_head(target, opened),
        signed["message_id"],
        signed["timestamp"],
        signature,
    )
    request = b"%beverput-test: true\r\n%bconnection: close\r\ncontent-length: %d\r\n\r\n%b" % (
        head,
        more,
        len(body),
        body,
    )
    began_s = asyncio.get_running_loop().time()
    timeout_s = min(listener.settings.timeout_ms / 1000, TIMEOUT_S_MAX)
    answer = await ask(request, target, resolver, tls, timeout_s=timeout_s, keeps=True)
    took_ms = int(((answer.at_s or asyncio.get_running_loop().time()) - began_s) * 1000)
    secrets_sent = secrets_of(value for _, value in opened.headers)
    kept = read_answer(answer.received, secrets_sent) if answer.received else None
    error = answer.error
    if batched and kept is not None and taken(kept.status) and made in failed_ids(kept.body.encode()):
        error = FAILED_IN_BATCH
    sent_in = webhook_id if batched else None
    request_headers, url = shown_headers(opened), hidden(masked_url(listener.notify_url), secrets_sent)
    return ListenerTest(made, sent_in, answer.status, error, took_ms, answer.times, kept, request_headers, url)
