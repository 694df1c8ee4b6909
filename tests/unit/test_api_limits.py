"""How much and how often: rates of keys, quotas of organizations, bodies under way; and what a request may name."""

from __future__ import annotations

import asyncio
import re
from contextlib import ExitStack

import httpx
import orjson
import pytest
from api_client import make_api, problem
from hypothesis import given
from hypothesis import strategies as st
from test_api_server import live_api

from api.bodies import Bodies, TooMuchUnderWay
from api.buckets import NAMES_MAX, Buckets
from broker.core.ids import message_id


async def test_an_organization_whose_keys_ask_too_often_is_429_and_each_answer_says_how_much_is_left():
    async with live_api(requests_per_s=0.5) as api:
        answers = [await api.get("/v1/queues") for _ in range(6)]
        assert [answer.status_code for answer in answers] == [200] * 5 + [429]
        assert {answer.headers["ratelimit-policy"] for answer in answers} == {'"keys";q=5;w=10'}
        assert answers[0].headers["ratelimit"] == '"keys";r=4;t=2'
        assert answers[4].headers["ratelimit"].startswith('"keys";r=0;t=')
        problem(answers[5], 429, "too-many-requests")
        assert answers[5].headers["ratelimit"].startswith('"keys";r=0;t=')
        assert 1 <= int(answers[5].headers["retry-after"]) <= 2
        problem(await api.put("/v1/queues/x/messages", json={"data": "x"}), 429)
        second = {"x-api-key": await api.key_with(("queues",))}
        problem(await api.get("/v1/queues", headers=second), 429, "too-many-requests")
        other = {"x-api-key": await api.another_organization()}
        assert (await api.get("/v1/queues", headers=other)).status_code == 200


async def test_an_organization_that_puts_too_many_bytes_is_429_and_another_is_not():
    api = await make_api(bytes_per_s=100, body_bytes_max=1000)
    path = f"/v1/queues/{await api.queue()}/messages"
    answers = [await api.put(path, json={"data": "x" * 900}) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    assert answers[0].headers["ratelimit-policy"] == '"bytes";q=2000;qu="content-bytes";w=20'
    assert answers[2].headers["ratelimit"].startswith('"bytes";r=1')
    assert 1 <= int(answers[2].headers["retry-after"]) <= 10
    problem(await api.request("POST", f"{path}/batch", json={"messages": [{"data": "x" * 900}]}), 429)
    assert (await api.put(path, json={"data": "x"})).status_code == 200
    assert "ratelimit" not in (await api.get(path)).headers
    other = {"x-api-key": await api.another_organization()}
    queue = await api.put("/v1/queues", json={"name": "q"}, headers=other)
    path = f"/v1/queues/{queue.json()['queue']['id']}/messages"
    assert (await api.put(path, json={"data": "x" * 900}, headers=other)).status_code == 200


async def test_a_body_whose_length_is_not_told_counts_as_long_as_it_is():
    api = await make_api(bytes_per_s=100, body_bytes_max=1000)
    path = f"/v1/queues/{await api.queue()}/messages"

    async def chunked(size: int):
        yield b'{"data":"'
        yield b"x" * size
        yield b'"}'

    statuses = [(await api.put(path, content=chunked(900))).status_code for _ in range(3)]
    assert statuses == [200, 200, 429]
    answer = await api.put(path, content=chunked(1))
    assert answer.status_code == 200
    left = re.match('"bytes";r=([0-9]+);', answer.headers["ratelimit"])
    assert left is not None
    assert 166 <= int(left[1]) < 1000  # what is left of 2,000, and 100 a second since
    queue_id = path.split("/")[3]
    assert sum(1 for records in api.log.messages.records for one in records if queue_id.encode() in one) == 3


async def test_without_a_limit_nothing_is_said_about_one():
    api = await make_api()
    assert "ratelimit" not in (await api.get("/v1/queues")).headers


async def test_a_session_asks_only_so_often_and_another_accounts_is_not_held_up():
    api = await make_api()
    tokens = []
    for name in ("ann", "bob"):
        who = {"email": f"{name}@example.com", "password": "correct horse battery"}
        await api.bare.put("/v1/accounts", json=who)
        tokens.append(
            {"authorization": f"Bearer {(await api.bare.post('/v1/sessions', json=who)).json()['session']['token']}"}
        )
    organization = await api.bare.put("/v1/organizations", json={"name": "Ann's"}, headers=tokens[0])
    path = f"/v1/organizations/{organization.json()['organization']['id']}/keys"
    answers = []
    for number in range(40):
        made = await api.bare.put(path, json={"name": str(number)}, headers=tokens[0])
        answers.append(made)
        if made.status_code == 200:
            answers.append(await api.bare.request("DELETE", f"{path}/{made.json()['key']['id']}", headers=tokens[0]))
    assert {answer.status_code for answer in answers} == {200, 429}
    refused = next(answer for answer in answers if answer.status_code == 429)
    assert refused.headers["ratelimit-policy"] == '"account";q=60;w=60'
    assert refused.headers["ratelimit"].startswith('"account";r=0;t=')
    assert (await api.bare.get("/v1/organizations", headers=tokens[1])).status_code == 200


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_change_counts_as_several_where_its_body_is_large(chunked):
    api = await make_api(changes_per_min=20)
    queue_id = await api.queue()
    listener_id = await api.listener(queue_id)
    ids = [message_id(at_ms=1, partition=0, random_bits=number) for number in range(1000)]
    body = orjson.dumps({"messages": ids})  # 39 KB

    async def parts():
        yield body

    async def redrive() -> int:
        path = f"/v1/queues/{queue_id}/listeners/{listener_id}/redrive"
        content = parts() if chunked else body
        return (await api.request("POST", path, content=content)).status_code

    assert [await redrive() for _ in range(3)] == [200, 429, 429]


async def test_an_organization_changes_only_so_much_a_minute_and_may_always_delete():
    async with live_api(changes_per_min=5) as api:
        queue_id = await api.queue()
        listener_id = await api.listener(queue_id)
        listener = f"/v1/queues/{queue_id}/listeners/{listener_id}"
        keys = f"/v1/organizations/{api.organization_id}/keys"
        administrator = {"x-api-key": await api.key_with(("keys",))}
        made = (await api.put(keys, json={"name": "third", "scopes": ["keys"]}, headers=administrator)).json()["key"][
            "id"
        ]
        replayed = await api.request("POST", f"{listener}/replay", json={"from": "beginning"})
        replay = f"{listener}/replays/{replayed.json()['replay']['id']}"
        last = await api.put(f"/v1/queues/{queue_id}", json={"name": "renamed"})
        assert last.headers["ratelimit-policy"] == '"changes";q=5;w=60'
        assert last.headers["ratelimit"].startswith('"changes";r=0;t=')
        for refused in (
            await api.put("/v1/queues", json={"name": "too many"}),
            await api.put(f"/v1/queues/{queue_id}", json={"name": "too many"}),
            await api.put(listener, json={"name": "too many"}),
            await api.request("POST", f"{listener}/secret/rotate"),
            await api.request("POST", f"{listener}/redrive"),
            await api.request("POST", f"{listener}/replay", json={"from": "beginning"}),
            await api.put(keys, json={"name": "too many", "scopes": ["keys"]}, headers=administrator),
        ):
            problem(refused, 429, "too-many-requests")
            assert 1 <= int(refused.headers["retry-after"]) <= 12
        other = {"x-api-key": await api.another_organization()}
        assert (await api.put("/v1/queues", json={"name": "theirs"}, headers=other)).status_code == 200
        assert (await api.request("DELETE", f"{keys}/{made}", headers=administrator)).status_code == 200
        assert (await api.request("POST", f"{replay}/pause")).status_code == 200
        problem(await api.request("POST", f"{replay}/resume"), 429, "too-many-requests")
        assert (await api.request("DELETE", replay)).status_code == 200
        assert (await api.request("POST", f"{listener}/pause")).status_code == 200
        assert (await api.request("DELETE", listener)).status_code == 200
        assert (await api.request("DELETE", f"/v1/queues/{queue_id}")).status_code == 200


async def test_a_member_counts_for_the_organization_and_a_stranger_who_names_it_does_not():
    api = await make_api(requests_per_s=0.2)
    members = []
    for name in ("ann", "bob"):
        who = {"email": f"{name}@example.com", "password": "correct horse battery"}
        await api.bare.put("/v1/accounts", json=who)
        token = (await api.bare.post("/v1/sessions", json=who)).json()["session"]["token"]
        members.append({"authorization": f"Bearer {token}"})
    made = await api.bare.put("/v1/organizations", json={"name": "Ann's"}, headers=members[0])
    organization_id = made.json()["organization"]["id"]
    ann, bob = ({**headers, "everput-organization": organization_id} for headers in members)
    for _ in range(2):
        problem(await api.bare.get("/v1/queues", headers=bob), 404)
    problem(await api.bare.get("/v1/queues", headers=bob), 429)
    answers = [await api.bare.get("/v1/queues", headers=ann) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    assert answers[0].headers["ratelimit-policy"] == '"members";q=2;w=10'


async def test_a_listeners_headers_have_8_kib_together():
    async with live_api() as api:
        queue_id = await api.queue()
        urls = {"notify_url": "https://8.8.8.8/n", "liveness_url": "https://8.8.8.8/l"}
        headers = {f"x-{number}": "v" * 1_000 for number in range(8)}  # 8,024 bytes of names and values
        listeners = f"/v1/queues/{queue_id}/listeners"
        too_many = {**headers, "x-8": "v" * 166}
        body = {"name": "l", **urls, "headers": too_many}
        assert problem(await api.put(listeners, json=body), 422)["errors"][0]["pointer"] == "/headers"
        fits = {**headers, "x-8": "v" * 165}
        listener_id = await api.listener(queue_id, headers=fits)
        hidden = dict.fromkeys(fits, "…")
        assert (await api.put(f"{listeners}/{listener_id}", json={"headers": hidden})).status_code == 200
        more = {**hidden, "x-9": "v"}
        answer = await api.put(f"{listeners}/{listener_id}", json={"headers": more})
        assert problem(answer, 422)["errors"][0]["pointer"] == "/headers"
        assert (await api.put(f"{listeners}/{listener_id}", json={"name": "renamed"})).status_code == 200


async def test_an_organization_has_so_many_queues_and_listeners_and_another_has_its_own():
    api = await make_api(queues_max=2, listeners_max=1)
    queue_id = await api.queue("one")
    await api.queue("two")
    problem(await api.put("/v1/queues", json={"name": "three"}), 422, "quota-reached")
    await api.listener(queue_id)
    body = {"name": "one more", "notify_url": "https://8.8.8.8/", "liveness_url": "https://8.8.8.8/"}
    problem(await api.put(f"/v1/queues/{queue_id}/listeners", json=body), 422, "quota-reached")
    other = {"x-api-key": await api.another_organization()}
    assert (await api.put("/v1/queues", json={"name": "three"}, headers=other)).status_code == 200
    await api.request("DELETE", f"/v1/queues/{queue_id}")
    assert (await api.put("/v1/queues", json={"name": "three"})).status_code == 200


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/queues"),
        ("PUT", "/v1/queues"),
        ("GET", "/v1/queues/{queue_id}"),
        ("PUT", "/v1/queues/{queue_id}/messages"),
        ("GET", "/v1/queues/{queue_id}/messages"),
    ],
)
async def test_an_unknown_parameter_is_422_as_an_unknown_field_is(method, path):
    api = await make_api()
    path = path.replace("{queue_id}", await api.queue())
    answer = await api.request(method, f"{path}?colour=red", json={"name": "a", "data": "x"})
    assert problem(answer, 422, "bad-parameter")["errors"][0]["parameter"] == "colour"
    assert problem(await api.request(method, f"{path}?colour=red", headers={"x-api-key": ""}), 401)


async def test_what_is_percent_encoded_is_no_part_of_a_path():
    api = await make_api()
    queue_id = await api.queue()
    for path in (
        "/v1%2Fqueues",
        f"/v1/queues%2f{queue_id}",
        f"/v1/queues/%{ord(queue_id[0]):x}{queue_id[1:]}",
        f"/v1/queues%2F{queue_id}/messages",
        f"/v1/queues/{queue_id}%2Fmessages",
        f"/v1/queues/{queue_id}/%6dessages",
        "/v1/queues/..%2fqueues",
    ):
        for method in ("GET", "PUT"):
            problem(await api.request(method, path, json={"name": "n", "data": "x"}), 404, "not-found")


async def test_bodies_that_are_on_their_way_are_bounded_together_and_a_tenant_leaves_as_much_as_it_holds():
    bodies = Bodies(100)
    with ExitStack() as stack:
        one, more = (stack.enter_context(bodies.arriving("ann")) for _ in range(2))
        other = stack.enter_context(bodies.arriving("bob"))
        one(30)
        more(20)
        with pytest.raises(TooMuchUnderWay):
            more(1)
        other(25)
        with pytest.raises(TooMuchUnderWay):
            other(1)
        stack.enter_context(bodies.arriving("cid"))(12)
    with bodies.arriving("ann") as hold:
        hold(50)


async def test_a_body_that_does_not_fit_beside_the_others_is_503():
    api = await make_api(bodies_bytes_max=2 << 20)
    path = f"/v1/queues/{await api.queue()}/messages"
    go_on, begun = asyncio.Event(), asyncio.Event()

    async def slowly():
        yield b'{"data":"' + b"x" * 700_000
        begun.set()
        await go_on.wait()
        yield b'"}'

    first = asyncio.create_task(api.put(path, content=slowly()))
    await begun.wait()

    async def another(size: int):
        yield b'{"data":"' + b"x" * size
        yield b'"}'

    refused = await api.put(path, content=another(700_000))
    assert problem(refused, 503, "busy")
    assert refused.headers["retry-after"]
    assert (await api.put(path, content=another(1000))).status_code == 200
    assert (await api.put(path, json={"data": "in one piece"})).status_code == 200
    go_on.set()
    assert (await first).status_code == 200
    assert (await api.put(path, content=another(700_000))).status_code == 200


async def test_what_a_client_announces_and_does_not_send_takes_nothing_from_the_others():
    api = await make_api(bodies_bytes_max=2 << 20)
    path = f"/v1/queues/{await api.queue()}/messages"
    go_on = asyncio.Event()

    async def slowly():
        yield b"{"
        await go_on.wait()
        yield b'"data":"x"}'

    slow = [
        asyncio.create_task(api.put(path, content=slowly(), headers={"content-length": "2000000"})) for _ in range(40)
    ]
    await asyncio.sleep(0)

    async def in_two_parts():
        yield b'{"data":'
        yield b'"x"}'

    assert (await api.put(path, content=in_two_parts())).status_code == 200
    go_on.set()
    assert {answer.status_code for answer in await asyncio.gather(*slow)} == {200}


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("PUT", "/v1/accounts"),
        ("POST", "/v1/sessions"),
        ("PUT", "/v1/organizations"),
        ("PUT", "/v1/organizations/{organization_id}/keys"),
    ],
)
async def test_a_body_without_a_message_in_it_is_small(method, path):
    api = await make_api()
    who = {"email": "ann@example.com", "password": "correct horse battery"}
    await api.bare.put("/v1/accounts", json=who)
    token = (await api.bare.post("/v1/sessions", json=who)).json()["session"]["token"]
    headers = {"authorization": f"Bearer {token}", "content-type": "application/json"}
    if "{" in path:
        path = path.format(organization_id=api.organization_id)
        headers["x-api-key"] = await api.key_with(("keys",))

    async def parts():
        yield b" " * 9000
        yield b" " * 9000

    for content in (b" " * 20_000, parts()):
        answer = await api.bare.request(method, path, headers=headers, content=content)
        problem(answer, 413, "too-large")


steps = st.lists(st.tuples(st.sampled_from("ab"), st.floats(0, 3)), max_size=60)


@given(steps, st.integers(1, 5), st.sampled_from([0.5, 1.0, 4.0]))
def test_a_bucket_lets_no_more_pass_than_it_says_and_never_makes_one_wait_in_vain(steps, size, per_s):
    buckets = Buckets(size, per_s=per_s)
    passed: dict[str, list[float]] = {"a": [], "b": []}
    now = 0.0
    for name, pause in steps:
        now += pause
        allowance = buckets.take(name, now)
        assert 0 <= allowance.left < size
        if not allowance.wait_s:
            passed[name].append(now)
        else:
            assert allowance.left == 0
            now += allowance.wait_s + 1e-6
            assert not buckets.take(name, now).wait_s
            passed[name].append(now)
    for times in passed.values():
        for i, begin in enumerate(times):
            for j in range(i, len(times)):
                assert j - i + 1 <= size + (times[j] - begin) * per_s + 1e-3


def test_looking_counts_nothing():
    buckets = Buckets(2, per_s=1)
    for _ in range(5):
        assert buckets.look("a", 0.0) == (1, 1.0, 0.0)
    buckets.take("a", 0.0)
    buckets.take("a", 0.0)
    assert buckets.look("a", 0.0) == buckets.take("a", 0.0) == (0, 2.0, 1.0)


def test_a_crowd_of_names_does_not_have_one_forgotten_that_used_much():
    buckets = Buckets(10, per_s=0.001)
    for _ in range(10):
        buckets.take("victim", 0.0)
    for number in range(NAMES_MAX * 2):
        buckets.take(str(number), 1.0)
    assert buckets.take("victim", 2.0).wait_s


def test_buckets_remember_so_many_names_and_those_that_used_most_last():
    buckets = Buckets(2, per_s=0.001)
    for number in range(NAMES_MAX * 2):
        buckets.take(str(number), float(number))
    assert len(buckets) <= NAMES_MAX
    last = str(NAMES_MAX * 2 - 1)
    assert not buckets.take(last, NAMES_MAX * 2.0).wait_s
    assert buckets.take(last, NAMES_MAX * 2.0).wait_s


async def test_a_link_of_a_list_may_be_followed_with_all_its_parameters():
    api = await make_api()
    for number in range(3):
        await api.queue(f"q{number}")
    body = (await api.get("/v1/queues?limit=1&at=2100-01-01T00:00:00Z")).json()
    assert body["errors"][0]["parameter"] == "at"  # known, and in the future
    link = httpx.URL((await api.get("/v1/queues?limit=1")).json()["_links"]["next"]["href"])
    assert (await api.get(str(link))).status_code == 200
