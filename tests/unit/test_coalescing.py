"""Concurrent puts of AsyncClient: what goes together, and what each caller is told. Over HTTP, to an API in memory."""

from __future__ import annotations

import asyncio

import httpx
import orjson
import pytest
from api_client import make_api
from test_api_server import serving

from broker.core.codec import decode
from everput import AsyncClient, NoAnswer, Problem, get_queue, put_message
from everput.coalescing import CHARS_MAX, MESSAGES_MAX


class Spoken(httpx.AsyncHTTPTransport):
    """Sends, and keeps, each request to messages. Where there is a fault, that is answered instead, once.

    sizes: messages of each request; 0: a put of one.
    """

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []
        self.keys: list[str] = []
        self.faults: list[httpx.Response | Exception] = []
        self.at_once = self.most_at_once = 0

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        body = orjson.loads(request.content or b"{}")
        self.sizes.append(len(body.get("messages", ())))
        self.keys.append(request.headers.get("idempotency-key", ""))
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            answer = await super().handle_async_request(request)
            await answer.aread()
        finally:
            self.at_once -= 1
        if self.faults:
            fault = self.faults.pop(0)
            if isinstance(fault, Exception):
                raise fault
            return fault
        return answer


@pytest.fixture
async def served():
    api = await make_api()
    api.queue_id = await api.queue()
    async with serving(api) as port:
        api.url = f"http://127.0.0.1:{port}"
        api.spoken = Spoken()
        yield api


def client(api, **more) -> AsyncClient:
    return AsyncClient(api.url, api.key, transport=api.spoken, **more)


def stored(api) -> list[str]:
    records = [value for records in api.log.messages.records for _, value, _ in records]
    return sorted(decode(value).data for value in records)


async def test_concurrent_puts_go_in_batches_and_each_has_its_own_answer(served):
    count = 3 * MESSAGES_MAX + 1
    async with client(served) as sending:
        puts = [sending.send(put_message(served.queue_id, f"{n}", name=f"n{n}")) for n in range(count)]
        answers = await asyncio.gather(*puts)
    assert [answer.message.name for answer in answers] == [f"n{n}" for n in range(count)]
    assert len({answer.message.id for answer in answers}) == count
    assert sorted(served.spoken.sizes) == [0, *[MESSAGES_MAX] * 3]
    assert len(stored(served)) == count


async def test_a_lone_put_goes_alone_and_one_with_its_own_key_is_never_joined(served):
    async with client(served) as sending:
        await sending.send(put_message(served.queue_id, "first"))
        own = [sending.send(put_message(served.queue_id, "d", idempotency_key=f"k{n}")) for n in range(3)]
        await asyncio.gather(*own)
    async with client(served, batches_in_flight=0) as sending:
        await asyncio.gather(*(sending.send(put_message(served.queue_id, "d")) for _ in range(3)))
    assert served.spoken.sizes == [0] * 7
    assert {"k0", "k1", "k2"} < set(served.spoken.keys)


async def test_a_message_that_is_refused_is_refused_alone(served):
    async with client(served) as sending:
        puts = [put_message(served.queue_id, f"{n}", name="" if n == 2 else None) for n in range(5)]
        answers = await asyncio.gather(*map(sending.send, puts), return_exceptions=True)
    assert [isinstance(answer, Problem) for answer in answers] == [False, False, True, False, False]
    assert (answers[2].status, answers[2].errors[0].pointer) == (422, "/name")
    assert stored(served) == ["0", "1", "3", "4"]


async def test_puts_to_several_queues_and_to_one_that_is_missing(served):
    other = await served.queue("other")
    missing = "11111111-1111-4111-8111-111111111111"
    async with client(served) as sending:
        puts = [put_message(one, "d") for one in (served.queue_id, other, missing) for _ in range(2)]
        answers = await asyncio.gather(*map(sending.send, puts), return_exceptions=True)
        assert (await sending.send(get_queue(other))).queue.name == "other"
    assert [getattr(answer, "status", 200) for answer in answers] == [200] * 4 + [404] * 2


@pytest.mark.parametrize("fault", [httpx.ReadError("lost"), httpx.Response(503, text="in doubt")], ids=str)
async def test_a_batch_whose_answer_is_lost_is_repeated_and_stored_once(served, fault):
    served.spoken.faults = [fault, fault]
    async with client(served) as sending:
        puts = (sending.send(put_message(served.queue_id, f"{n}")) for n in range(9))
        answers = await asyncio.gather(*puts)
        assert sending.again == 2
    assert len({answer.message.id for answer in answers}) == 9
    assert stored(served) == [f"{n}" for n in range(9)]
    assert len(set(served.spoken.keys)) == 1


async def test_batches_are_bounded_by_what_they_carry_and_how_many_are_sent_at_once(served):
    async with client(served, batches_in_flight=2) as sending:
        text = "x" * (CHARS_MAX // 3)
        await asyncio.gather(*(sending.send(put_message(served.queue_id, text)) for _ in range(20)))
    assert max(served.spoken.sizes) == 3
    assert served.spoken.most_at_once == 2


async def test_a_caller_that_leaves_takes_its_put_along_and_no_other(served):
    async with client(served) as sending:
        tasks = [asyncio.create_task(sending.send(put_message(served.queue_id, f"{n}"))) for n in range(3)]
        asyncio.get_running_loop().call_soon(tasks[1].cancel)
        answers = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(answers[1], asyncio.CancelledError)
    assert {"0", "2"} <= set(stored(served))


async def test_puts_without_an_answer_fail_when_the_client_is_closed(served):
    sending = client(served, batches_in_flight=1)
    waiting = [sending.submit(put_message(served.queue_id, f"{n}")) for n in range(2 * MESSAGES_MAX)]
    await asyncio.sleep(0)
    await sending.close()
    errors = await asyncio.gather(*waiting, return_exceptions=True)
    assert all(isinstance(error, NoAnswer) for error in errors)


async def test_only_a_put_without_a_key_of_its_own_may_be_submitted(served):
    async with client(served) as sending:
        with pytest.raises(ValueError, match="idempotency key"):
            sending.submit(put_message(served.queue_id, "d", idempotency_key="k"))


async def test_a_client_that_joins_no_puts_refuses_submit(served):
    async with client(served, batches_in_flight=0) as sending:
        with pytest.raises(ValueError, match="batches_in_flight=0"):
            sending.submit(put_message(served.queue_id, "d"))
    assert stored(served) == []
    with pytest.raises(ValueError, match="at least 0"):
        client(served, batches_in_flight=-1)
