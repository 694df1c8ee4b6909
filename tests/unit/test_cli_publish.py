"""`everput put` without a network: what is sent again, what is refused, and how a queue is found."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence

import httpx
import pytest

from broker.errors import ConfigurationError
from cli import publish
from cli.lines import Line
from cli.publish import Publisher, Refusal, Tally, find_queue

QUEUE_ID = "0180994c-b6b2-4d0e-b7ad-414716e83386"
Answer = httpx.Response | Exception


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(publish, "PAUSE_S_MIN", 0.0)


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
    return httpx.Response(status, json={"title": "t", "status": status, "detail": detail}, headers=headers)


OK = httpx.Response(200, json={"message": {"id": "m1", "name": "n"}})


@pytest.mark.parametrize(
    "first", [problem(503, "no"), problem(429, "no"), httpx.ConnectError("no"), httpx.ReadError("no")]
)
async def test_what_was_not_answered_for_good_is_sent_again(first: Answer):
    async with publisher(answering(first, first, OK)) as sending:
        assert await sending.put(QUEUE_ID, "x") == "m1"
        assert sending.again == 2


@pytest.mark.parametrize("status", [400, 401, 403, 404, 413, 415, 422, 500])
async def test_what_was_refused_is_not_sent_again(status: int):
    async with publisher(answering(problem(status, "because"))) as sending:
        assert await sending.put(QUEUE_ID, "x") == Refusal(status, "because")
        assert sending.again == 0


async def test_after_a_while_it_is_given_up_and_the_last_reason_told():
    async with publisher(answering(problem(503, "Kafka is away")), give_up_after_s=0.05) as sending:
        refusal = await sending.put(QUEUE_ID, "x")
    assert isinstance(refusal, Refusal)
    assert str(refusal) == "503 given up after 0.05 s: Kafka is away"


async def test_a_retry_after_beyond_the_deadline_is_not_waited_for():
    async with publisher(answering(problem(503, "later", **{"retry-after": "60"}))) as sending:
        assert isinstance(await sending.put(QUEUE_ID, "x"), Refusal)
        assert sending.again == 0


async def test_the_field_at_fault_is_named():
    answer = httpx.Response(422, json={"title": "t", "errors": [{"pointer": "/data", "detail": "too long"}]})
    async with publisher(answering(answer)) as sending:
        assert str(await sending.put(QUEUE_ID, "x")) == "422 t (/data: too long)"


async def lines(*given: Line):
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
        return httpx.Response(200, json={"messages": []}) if together else OK


async def put_all(stores: Stores, given: Sequence[Line], **more: float) -> dict[int, Refusal | None]:
    """What became of each line, which must be said once."""
    settled: dict[int, Refusal | None] = {}

    def note(line: Line, refusal: Refusal | None) -> None:
        assert line.number not in settled
        settled[line.number] = refusal

    async with publisher(stores, **more) as sending:
        await sending.put_all(QUEUE_ID, lines(*given), note)
    assert sorted(settled) == [line.number for line in given]
    return settled


async def test_every_line_is_settled_once_with_its_own_answer():
    stores = Stores()
    given = [Line(n, "bad" if n % 100 == 0 else f"good {n}") for n in range(1, 501)] + [Line(501, "", "not UTF-8")]
    settled = await put_all(stores, given)
    refused = [n for n, refusal in settled.items() if refusal is not None]
    assert sorted(refused) == [100, 200, 300, 400, 500, 501]
    assert str(settled[100]) == "422 no"
    assert str(settled[501]) == "not UTF-8"
    assert sorted(stores.stored) == sorted(line.text for line in given if line.text not in ("bad", ""))


async def test_lines_that_are_there_go_together_and_a_single_one_alone():
    stores = Stores()
    await put_all(stores, [Line(n, f"{n}") for n in range(1, 1001)])
    assert len(stores.stored) == 1000
    assert len(stores.batches) <= 20
    assert max(stores.batches) <= publish.BATCH_LINES_MAX
    stores = Stores()
    await put_all(stores, [Line(1, "one")])
    assert (stores.stored, stores.batches) == (["one"], [])


async def test_long_lines_go_in_small_batches():
    stores = Stores()
    await put_all(stores, [Line(n, "x" * (publish.BATCH_CHARS_MAX // 4)) for n in range(1, 41)])
    assert max(stores.batches) == 4


@pytest.mark.parametrize("lost", [httpx.ReadError("no"), problem(503, "in doubt")])
async def test_what_is_sent_again_is_stored_once(lost: httpx.Response | Exception):
    in_flight = httpx.Response(409, json={"type": "/problems/in-flight", "title": "t", "detail": "d"})
    given = [Line(n, f"{n}") for n in range(1, 301)]
    stores = Stores(lost, in_flight, lost, lost)
    assert set((await put_all(stores, given)).values()) == {None}
    assert sorted(stores.stored) == sorted(line.text for line in given)


async def test_a_batch_that_is_given_up_says_so_of_each_line():
    def away(_request: httpx.Request) -> httpx.Response:
        return problem(503, "Kafka is away")

    settled = await put_all(away, [Line(n, f"{n}") for n in range(1, 51)], give_up_after_s=0.02)
    assert {str(refusal) for refusal in settled.values()} == {"503 given up after 0.02 s: Kafka is away"}


def queues(names: Sequence[str]) -> Callable[[httpx.Request], httpx.Response]:
    def handler(request: httpx.Request) -> httpx.Response:
        if request.method == "PUT":
            return httpx.Response(200, json={"queue": {"id": "made", "name": json.loads(request.content)["name"]}})
        if request.url.path == f"/v1/queues/{QUEUE_ID}":
            return httpx.Response(200, json={"queue": {"id": QUEUE_ID}})
        page = int(request.url.params.get("cursor", "0"))
        found = [{"id": f"id-{name}", "name": name} for name in names[page : page + 1]]
        links = {"next": {"href": f"http://api.test/v1/queues?cursor={page + 1}"}} if page + 1 < len(names) else {}
        return httpx.Response(200, json={"queues": found, "_links": links})

    return handler


async def test_a_queue_is_found_by_its_id_by_its_name_on_a_later_page_or_made():
    async with publisher(queues(["a", "b", "c"])) as sending:
        assert await find_queue(sending, QUEUE_ID, create=False) == QUEUE_ID
        assert await find_queue(sending, "c", create=False) == "id-c"
        assert await find_queue(sending, "d", create=True) == "made"
        with pytest.raises(ConfigurationError, match="--create"):
            await find_queue(sending, "d", create=False)


async def test_a_key_that_may_not_look_queues_up_uses_one_by_its_id():
    async with publisher(answering(problem(403, "lacks the scope"))) as sending:
        assert await find_queue(sending, QUEUE_ID, create=False) == QUEUE_ID
        with pytest.raises(ConfigurationError, match="give the queue's id"):
            await find_queue(sending, "orders", create=True)


async def test_a_refused_key_and_an_absent_api_are_said_in_a_line():
    async with publisher(answering(problem(401, "no such key"))) as sending:
        with pytest.raises(ConfigurationError, match="the API key was refused: 401 no such key"):
            await find_queue(sending, "q", create=False)
    async with publisher(answering(httpx.ConnectError("refused")), give_up_after_s=0.02) as sending:
        with pytest.raises(ConfigurationError, match="the API does not answer"):
            await find_queue(sending, "q", create=False)


def test_a_summary_counts_everything():
    summary = Tally(put=1200, refused=1, skipped=2, again=3).summary()
    assert summary.startswith("1,200 put in ")
    assert summary.endswith(", 1 refused, 2 empty lines skipped, 3 sent again")
