"""Traces of a real server, as a real OTLP receiver gets them."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.listeners import Listeners, until
from tests.scenarios.running import Running

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
GIVEN = f"00-{TRACE}-{SPAN}-01"


@dataclass
class Receiver:
    """spans: all that came, with their attributes as text."""

    spans: list = field(default_factory=list)
    services: set[str] = field(default_factory=set)
    url: str = ""

    def take(self, body: bytes) -> None:
        for one in ExportTraceServiceRequest.FromString(body).resource_spans:
            self.services |= {at.value.string_value for at in one.resource.attributes if at.key == "service.name"}
            for scope in one.scope_spans:
                self.spans += scope.spans

    def named(self, name: str) -> list:
        return [span for span in self.spans if span.name == name]


@contextlib.contextmanager
def receiving() -> Iterator[Receiver]:
    receiver = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            if self.path == "/v1/traces":
                receiver.take(gzip.decompress(body) if self.headers["content-encoding"] == "gzip" else body)
            self.send_response(200)
            self.send_header("content-type", "application/x-protobuf")
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    receiver.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield receiver
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def attributes(span) -> dict[str, str | int]:
    return {at.key: at.value.string_value or at.value.int_value for at in span.attributes}


async def test_a_put_its_append_and_its_attempts_are_one_trace_and_a_replay_is_linked_to_it(tmp_path: Path):
    with receiving() as receiver:
        environment = {"OTEL_EXPORTER_OTLP_ENDPOINT": receiver.url, "OTEL_BSP_SCHEDULE_DELAY": "100"}
        async with Listeners() as listeners, contextlib.AsyncExitStack() as stack:
            listeners.status["a"] = 500
            server = stack.enter_context(Running(tmp_path / "data", "--partitions", "2", **environment))
            base_url = await asyncio.to_thread(lambda: server.url)
            headers = {"x-api-key": server.api_key}
            client = await stack.enter_async_context(httpx.AsyncClient(base_url=base_url, headers=headers, timeout=20))
            queue = (await client.put("/v1/queues", json={"name": "orders"})).json()["queue"]["id"]
            urls = {"notify_url": listeners.url("a"), "liveness_url": listeners.url("a"), "retry_first_ms": 100}
            made = await client.put(f"/v1/queues/{queue}/listeners", json={"name": "billing", **urls})
            path = f"/v1/queues/{queue}/listeners/{made.json()['listener']['id']}"
            put = await client.put(f"/v1/queues/{queue}/messages", json={"data": "x"}, headers={"traceparent": GIVEN})
            message_id = put.json()["message"]["id"]
            await until(lambda: listeners.ended, what="an attempt failed")
            listeners.status.clear()
            await until(lambda: listeners.taken("a"), what="the message is delivered")
            replay = await client.post(f"{path}/replay", json={"from": "beginning"})
            assert replay.status_code == 200
            await until(lambda: len(listeners.taken("a")) > 1, what="it is delivered again")
            sent = [got.headers["traceparent"][3:-3] for got, _ in listeners.ended]
            attempts = await until(
                lambda: len(receiver.named("everput attempt")) >= len(sent) and receiver.named("everput attempt"),
                what="the spans arrive",
            )
            (put_span,) = receiver.named("everput put")
            (append_span,) = receiver.named("everput append")
            assert (put_span.trace_id.hex(), put_span.parent_span_id.hex()) == (TRACE, SPAN)
            assert append_span.parent_span_id == put_span.span_id
            by_place = {f"{one.trace_id.hex()}-{one.span_id.hex()}": one for one in attempts}
            assert set(sent) <= set(by_place)
            first, *_, last = [by_place[place] for place in sent]
            assert (first.trace_id.hex(), first.parent_span_id) == (TRACE, append_span.span_id)
            assert attributes(first)["http.response.status_code"] == 500
            assert attributes(first)["messaging.message.id"] == message_id
            assert attributes(first)["everput.attempt.number"] == 1
            assert first.status.code == first.status.STATUS_CODE_ERROR
            assert last.trace_id.hex() != TRACE
            assert not last.parent_span_id
            (link,) = last.links
            assert (link.trace_id.hex(), link.span_id) == (TRACE, append_span.span_id)
            assert receiver.services == {"everput"}


async def test_without_tracing_each_attempt_has_the_puts_own_traceparent(tmp_path: Path):
    async with Listeners() as listeners, contextlib.AsyncExitStack() as stack:
        server = stack.enter_context(Running(tmp_path / "data", "--partitions", "2"))
        base_url = await asyncio.to_thread(lambda: server.url)
        headers = {"x-api-key": server.api_key}
        client = await stack.enter_async_context(httpx.AsyncClient(base_url=base_url, headers=headers, timeout=20))
        queue = (await client.put("/v1/queues", json={"name": "orders"})).json()["queue"]["id"]
        urls = {"notify_url": listeners.url("a"), "liveness_url": listeners.url("a")}
        await client.put(f"/v1/queues/{queue}/listeners", json={"name": "billing", **urls})
        for sent in ({"traceparent": GIVEN}, {}):
            await client.put(f"/v1/queues/{queue}/messages", json={"data": "x"}, headers=sent)
        await until(lambda: len(listeners.taken("a")) == 2, what="both messages are delivered")
        assert {got.headers.get("traceparent") for got in listeners.taken("a")} == {GIVEN, None}
