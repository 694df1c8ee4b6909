"""A listener's signing secret, and the test of a listener: requests and answers.

For: /secret, /secret/rotate and /test below a listener. Not for: the listener itself (listeners.py), what a rotation
does (broker/commands/secrets.py), what a test sends (broker/outbound/listener_test.py).
"""

from __future__ import annotations

import ssl
from functools import cached_property
from typing import Any, Final

from api.calls import Call
from api.limits import Limit
from api.messages import answer_fields
from api.pages import rfc3339
from api.problems import TooManyRequests
from api.shapes import RotationBody
from broker.clock import now_ms
from broker.commands.context import event_fields, find_listener
from broker.commands.secrets import SecretCommands
from broker.core.codec import encode
from broker.core.entities import Listener
from broker.errors import NotFound
from broker.outbound.addresses import Resolver
from broker.outbound.connection import tls_context
from broker.outbound.listener_test import ListenerTest, try_out
from broker.ports import Answer, DirectoryView, ListenerTestLog
from broker.sealing import Sealer
from broker.tenant_slots import TenantSlots
from broker.volume import StoredBytes

_TESTS_AT_ONCE: Final = 5  # In each process, at most this many tests of one listener can start in a burst.
_TESTS_PER_S: Final = 0.5
_TESTS_UNDER_WAY_MAX: Final = 20  # tests of all listeners
_TESTS_EACH_MAX: Final = 5  # tests of one organization's listeners
_TOO_MANY_TESTS: Final = "Too many tests of listeners. Try again later."


class Secrets:
    """Handlers of requests about a listener's signing secret, and of requests to test a listener. `resolver` decides to
    which addresses this process may connect.
    """

    def __init__(
        self,
        commands: SecretCommands,
        log: ListenerTestLog,
        view: DirectoryView,
        sealer: Sealer,
        resolver: Resolver,
        stored: StoredBytes,
    ) -> None:
        self._commands = commands
        self._log = log
        self._view = view
        self._sealer = sealer
        self._resolver = resolver
        self._stored = stored
        self._tests = Limit("tests", _TESTS_AT_ONCE, per_s=_TESTS_PER_S, refusal=_TOO_MANY_TESTS)
        self._slots = TenantSlots(
            _TESTS_UNDER_WAY_MAX,
            _TESTS_EACH_MAX,
            tenant_of=view.state.tenant_of,
            refusal=lambda: TooManyRequests(_TOO_MANY_TESTS, retry_after_s=1),
        )

    @cached_property
    def _tls(self) -> ssl.SSLContext:
        return tls_context()

    async def get(self, call: Call) -> Any:
        ids = call.path("queue_id"), call.path("listener_id")
        return _answer(call, *await self._commands.show(call.context(), *ids))

    async def rotate(self, call: Call) -> Any:
        ids = call.path("queue_id"), call.path("listener_id")
        body = await call.json_or_nothing(RotationBody)
        changed = self._commands.rotate(call.context(), *ids, secret=body.secret, overlap_s=body.overlap_s)
        call.headers.append((b"cache-control", b"no-store"))
        return _answer(call, *await changed)

    async def test(self, call: Call) -> Any:
        """Send one message with the header `everput-test` to the listener, and store the result in the log. The API
        answers with the status 200, even if the listener refused the message.
        """
        organization_id, queue_id = call.organization_id, call.path("queue_id")
        listener = await find_listener(self._view, organization_id, queue_id, call.path("listener_id"))
        queue = self._view.state.queue(organization_id, queue_id)
        if queue is None:
            raise NotFound("No queue of this organization has this ID. Check the ID.")
        self._tests.take(call.headers, listener.id)
        with self._slots.slot(organization_id):
            test = await try_out(self._sealer, queue, listener, self._resolver, self._tls)
        event = test.event(event_fields(call.context()), listener)
        self._stored.add(organization_id, len(encode(event)))
        await self._log.append(event)
        return {
            "test": {
                "message_id": test.message_id,
                **({} if test.batch_id is None else {"batch_id": test.batch_id}),
                "status": test.status,
                "error": test.error,
                "took_ms": test.took_ms,
                **_steps(test),
            }
        }


def _steps(test: ListenerTest) -> dict[str, Any]:
    """Return JSON fields of a listener's test: how long each step took, and the listener's answer if there was one."""
    steps = zip(("dns_ms", "connect_ms", "tls_ms"), test.times, strict=True)
    fields: dict[str, Any] = {name: ms for name, ms in steps if ms is not None}
    if test.answer is not None:
        _, headers, body, cut = test.answer
        answer = Answer(headers=headers, body=body, cut=cut, url=test.url, request_headers=test.request)
        fields["answer"] = answer_fields(answer)
    return fields


def _answer(call: Call, listener: Listener, secret: str) -> dict[str, Any]:
    """Return the JSON of an answer with the listener's signing secret. If earlier secrets still sign requests, the
    field `former` has the times at which they end.
    """
    going_on = [ends for _, ends in listener.former_secrets if ends > now_ms()]
    href = call.href(f"/v1/queues/{listener.queue_id}/listeners/{listener.id}/secret")
    return {
        "secret": secret,
        "former": [{"ends_at": rfc3339(ends)} for ends in going_on],
        "_links": {"self": {"href": href}},
    }
