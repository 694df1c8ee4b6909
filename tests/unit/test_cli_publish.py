"""`everput put` without a network: what goes together, what is refused, and how a queue is found.

Not for: what the client sends again (test_client.py)."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator, Sequence
from uuid import NAMESPACE_URL, uuid5

import httpx
import pytest

from broker.errors import ConfigurationError
from cli import log_client
from cli.api_commands import api_client, errors_as_refusals
from cli.commands.put import _queue as queue_of
from cli.lines import TextLine
from cli.publish import Publisher, Tally
from cli.short_ids import short_id
from everput import Client, put_message
from everput.coalescing import CHARS_MAX, MESSAGES_MAX

QUEUE_ID = "0180994c-b6b2-4d0e-b7ad-414716e83386"
MADE_ID = "0180994c-b6b2-4d0e-b7ad-414716e83387"
Answer = httpx.Response | Exception


def publisher(handler: Callable[[httpx.Request], httpx.Response], *, give_up_after_s: float = 5.0) -> Publisher:
    return Publisher(
        "http://api.test", "key", concurrency=4, give_up_after_s=give_up_after_s, transport=httpx.MockTransport(handler)
    )


def answering(*answers: Answer) -> Callable[[httpx.Request], httpx.Response]:
    """One after the other; the last one for ever."""
    left: Iterator[Answer] = iter(answers)
    last = [answers[-1]]

    def handler(_request: httpx.Request) -> httpx.Response:
        answer = next(left, last[0])
        if isinstance(answer, Exception):
            raise answer
        return httpx.Response(answer.status_code, headers=answer.headers, content=answer.content)

    return handler


def problem(status: int, detail: str, **headers: str) -> httpx.Response:
    return httpx.Response(
        status, json={"type": "/problems/p", "title": "t", "status": status, "detail": detail}, headers=headers
    )


SELF = {"self": {"href": "/"}}
OK = httpx.Response(200, json={"message": {"id": QUEUE_ID, "name": "n"}, "_links": SELF})


async def lines(*given: TextLine):
    for line in given:
        yield line


BATCH = f"/v1/queues/{QUEUE_ID}/messages/batch"


class Stores:
    """An API that stores what it is sent, once for each key, and refuses all with a bad line in it."""

    def __init__(self, *lost: httpx.Response | Exception) -> None:
        self.lost = list(lost)  # what the first requests are answered, though they were carried out
        self.stored: list[str] = []
        self.batches: list[int] = []
        self.keys: set[str] = set()

    def __call__(self, request: httpx.Request) -> httpx.Response:
        body = json.loads(request.content)
        together = request.url.path == BATCH
        data = [one["data"] for one in body["messages"]] if together else [body["data"]]
        if "bad" in data:
            return problem(422, "no")
        key = request.headers["idempotency-key"]
        if key not in self.keys:
            self.keys.add(key)
            self.stored += data
            self.batches += [len(data)] if together else []
        if self.lost:
            answer = self.lost.pop(0)
            if isinstance(answer, Exception):
                raise answer
            return answer
        return httpx.Response(200, json={"messages": [json.loads(OK.content)] * len(data)}) if together else OK


async def put_all(stores: Stores, given: Sequence[TextLine], **more: float) -> dict[int, str | None]:
    """What became of each line, which must be said once."""
    settled: dict[int, str | None] = {}

    def note(line: TextLine, refusal: str | None) -> None:
        assert line.number not in settled
        settled[line.number] = refusal

    async with publisher(stores, **more) as sending:
        await sending.put_all(QUEUE_ID, lines(*given), note)
    assert sorted(settled) == [line.number for line in given]
    return settled


async def test_every_line_is_settled_once_with_its_own_answer():
    stores = Stores()
    given = [TextLine(n, "bad" if n % 100 == 0 else f"good {n}") for n in range(1, 501)] + [
        TextLine(501, "", "not UTF-8")
    ]
    settled = await put_all(stores, given)
    refused = [n for n, refusal in settled.items() if refusal is not None]
    assert sorted(refused) == [100, 200, 300, 400, 500, 501]
    assert settled[100] == "422 t: no"
    assert settled[501] == "not UTF-8"
    assert sorted(stores.stored) == sorted(line.text for line in given if line.text not in ("bad", ""))


async def test_lines_that_are_there_go_together_and_a_single_one_alone():
    stores = Stores()
    await put_all(stores, [TextLine(n, f"{n}") for n in range(1, 1001)])
    assert len(stores.stored) == 1000
    assert len(stores.batches) <= 20
    assert max(stores.batches) <= MESSAGES_MAX
    stores = Stores()
    await put_all(stores, [TextLine(1, "one")])
    assert (stores.stored, stores.batches) == (["one"], [])


async def test_no_more_requests_are_in_flight_than_were_asked_for():
    stores, in_flight, most, go_on = Stores(), 0, 0, asyncio.Event()

    async def handler(request: httpx.Request) -> httpx.Response:
        nonlocal in_flight, most
        in_flight += 1
        most = max(most, in_flight)
        await go_on.wait()
        in_flight -= 1
        return stores(request)

    async def slow_lines():
        for number in range(MESSAGES_MAX + 50):
            yield TextLine(number, f"{number}")
            for _ in range(50):
                await asyncio.sleep(0)  # each has begun before the next comes
        go_on.set()

    async with Publisher("http://api.test", "key", concurrency=5, transport=httpx.MockTransport(handler)) as sending:
        await sending.put_all(QUEUE_ID, slow_lines(), lambda *_: None)
    assert len(stores.stored) == MESSAGES_MAX + 50
    assert most == 5


async def test_the_clients_share_the_concurrency_evenly_because_they_share_the_lines_evenly():
    stores, in_flight, go_on = Stores(), 0, asyncio.Event()

    async def handler(request: httpx.Request) -> httpx.Response:
        nonlocal in_flight
        in_flight += 1
        await go_on.wait()
        return stores(request)

    shares, puts = [], []
    async with Publisher("http://api.test", "key", concurrency=5, transport=httpx.MockTransport(handler)) as sending:
        for number in range(2):
            before = in_flight
            for line in range(10):
                puts.append(sending.client(number).submit(put_message(QUEUE_ID, f"{number} {line}")))
                for _ in range(50):
                    await asyncio.sleep(0)  # each has begun before the next comes
            shares.append(in_flight - before)
        go_on.set()
        await asyncio.gather(*puts)
    assert sorted(shares) == [2, 3]


async def test_long_lines_go_in_small_batches():
    stores = Stores()
    await put_all(stores, [TextLine(n, "x" * (CHARS_MAX // 4)) for n in range(1, 41)])
    assert max(stores.batches) == 4


@pytest.mark.parametrize("lost", [httpx.ReadError("no"), problem(503, "in doubt")])
async def test_what_is_sent_again_is_stored_once(lost: httpx.Response | Exception):
    in_flight = httpx.Response(409, json={"type": "/problems/in-flight", "status": 409, "title": "t", "detail": "d"})
    given = [TextLine(n, f"{n}") for n in range(1, 301)]
    stores = Stores(lost, in_flight, lost, lost)
    assert set((await put_all(stores, given)).values()) == {None}
    assert sorted(stores.stored) == sorted(line.text for line in given)


async def test_a_batch_that_is_given_up_says_so_of_each_line():
    def away(_request: httpx.Request) -> httpx.Response:
        return problem(503, "Kafka is away")

    settled = await put_all(away, [TextLine(n, f"{n}") for n in range(1, 51)], give_up_after_s=1.0)
    assert set(settled.values()) == {"503 t: Kafka is away"}


def id_of(name: str) -> str:
    return str(uuid5(NAMESPACE_URL, name))


def queue(queue_id: str, name: str) -> httpx.Response:
    return httpx.Response(200, json={"queue": {"id": queue_id, "name": name, "listeners": []}, "_links": SELF})


def queues(names: Sequence[str]) -> Callable[[httpx.Request], httpx.Response]:
    def handler(request: httpx.Request) -> httpx.Response:
        if request.method == "PUT":
            return queue(MADE_ID, json.loads(request.content)["name"])
        if request.url.path == f"/v1/queues/{QUEUE_ID}":
            return queue(QUEUE_ID, "orders")
        wanted = request.url.params["name"]
        found = [{"id": id_of(name), "name": name, "listeners": []} for name in names if name == wanted]
        return httpx.Response(200, json={"queues": found, "_links": SELF})

    return handler


def client(handler: Callable[[httpx.Request], httpx.Response], **more: float) -> Client:
    return Client("http://api.test", "key", transport=httpx.MockTransport(handler), **more)


def test_a_queue_is_found_by_its_id_by_its_name_or_made():
    with client(queues(["a", "b", "c"])) as asked:
        assert queue_of(asked, QUEUE_ID, create=False) == QUEUE_ID
        assert queue_of(asked, "c", create=False) == id_of("c")
        assert queue_of(asked, "d", create=True) == MADE_ID
        with pytest.raises(ConfigurationError, match="--create"):
            queue_of(asked, "d", create=False)


def test_a_key_that_may_not_look_queues_up_uses_one_by_its_id():
    with client(answering(problem(403, "lacks the scope"))) as asked:
        assert queue_of(asked, QUEUE_ID, create=False) == QUEUE_ID
        assert queue_of(asked, short_id(QUEUE_ID), create=False) == QUEUE_ID
        with pytest.raises(ConfigurationError, match="give the queue's ID"):
            queue_of(asked, "orders", create=True)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (problem(401, "no such key"), "the API key was refused: 401"),
        (problem(503, "Kafka is away"), "can't answer at the moment: 503"),
        (httpx.ConnectError("refused"), "nothing answers at http://api.test; is `everput serve` running"),
    ],
)
def test_a_refused_key_and_an_absent_api_are_said_in_a_line(answer: Answer, said: str):
    with (
        pytest.raises(ConfigurationError, match=said),
        errors_as_refusals("http://api.test"),
        client(answering(answer), give_up_after_s=0.02) as asked,
    ):
        queue_of(asked, "q", create=False)


@pytest.mark.parametrize("url", ["http://here:port", "here", "here:8080", "127.0.0.1:8080", "http://", "ftp://here"])
def test_what_is_no_url_is_said_so(url: str):
    with pytest.raises(ConfigurationError, match="is not a URL"), api_client(url, "key"):
        pass
    with pytest.raises(ConfigurationError, match="is not a URL"):
        log_client.client(url, "key")


@pytest.mark.parametrize("key", ["evp_ä", "evp_1\n"])
def test_a_key_that_no_header_can_hold_is_said_so(key: str):
    with pytest.raises(ConfigurationError, match="the API key has a character"), api_client("http://api.test", key):
        pass
    with pytest.raises(ConfigurationError, match="the API key has a character"):
        log_client.client("http://api.test", key)


def test_a_summary_counts_everything():
    summary = Tally(put=1200, refused=1, skipped=2, again=3).summary()
    assert summary.startswith("1,200 put in ")
    assert summary.endswith(", 1 refused, 2 empty lines skipped, 3 sent again")
