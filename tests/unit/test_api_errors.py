"""What the API refuses, and how: always problem details, never a stack trace."""

from __future__ import annotations

import gzip

import orjson
import pytest
from api_client import Api, make_api, problem
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from broker.commands.organizations import SCOPES, create_key
from broker.core.keys import covers
from broker.errors import InDoubt, LogUnavailable, ViewBehind

UNKNOWN = "0b57b1a2-6b8b-4b0e-9d4e-3a2f8f2b7a11"


@pytest.fixture
async def api() -> Api:
    return await make_api()


def pointers(body: dict) -> list[str]:
    return [error["pointer"] for error in body["errors"]]


@pytest.mark.parametrize(
    "body", [b"", b"{", b'{"name":}', b"\xff\xfe", b'{"name":"\\ud800"}', b'{"name":NaN}', b"\x00"]
)
async def test_a_body_that_is_not_json_is_400(api, body):
    problem(await api.put("/v1/queues", content=body), 400, "malformed")


async def test_endless_nesting_is_400(api):
    problem(await api.put("/v1/queues", content=b"[" * 60_000), 400, "malformed")
    problem(await api.put("/v1/queues", content=b'{"name":' + b"[" * 5000 + b"]" * 5000 + b"}"), 400, "malformed")


async def test_of_a_large_body_the_wrong_shape_is_found_before_bad_json(api):
    problem(await api.put("/v1/queues", content=b"[" * 100_000), 422, "refused")
    problem(await api.put("/v1/queues", content=b'{"name":"' + b"x" * 100_000), 400, "malformed")


@pytest.mark.parametrize(
    "key", [None, "", "nonsense", "evp_" + "0" * 49, "evp_003aUlTJC7tjlCTQj2uNU3MFagCXG9LRKRcwGkBIDlf3LP1ya"]
)
async def test_no_key_or_an_unknown_one_is_401(api, key):
    headers = {} if key is None else {"x-api-key": key}
    answer = await api.bare.put("/v1/queues", json={"name": "a"}, headers=headers)
    problem(answer, 401, "unauthenticated")
    assert answer.headers["www-authenticate"]


async def test_the_key_is_asked_for_before_the_body_is_looked_at(api):
    problem(await api.bare.put("/v1/queues", content=b"{", headers={"content-type": "text/plain"}), 401)


@pytest.mark.parametrize("scope", SCOPES)
async def test_a_key_without_the_scope_is_403(api, scope):
    _, secret = await create_key(
        api.log.control, api.log.control, organization_id=api.organization_id, name="narrow", scopes=(scope,)
    )
    queue_id = await api.queue()
    asked = [
        ("queues:read", "GET", f"/v1/queues/{queue_id}"),
        ("queues", "PUT", "/v1/queues"),
        ("queues:read", "GET", f"/v1/queues/{queue_id}/listeners"),
        ("queues:operate", "POST", f"/v1/queues/{queue_id}/listeners/{UNKNOWN}/pause"),
        ("messages:put", "PUT", f"/v1/queues/{queue_id}/messages"),
        ("messages:read", "GET", f"/v1/queues/{queue_id}/messages/{UNKNOWN}"),
        ("messages", "DELETE", f"/v1/queues/{queue_id}/messages/{UNKNOWN}"),
    ]
    for needed, method, path in asked:
        answer = await api.request(method, path, json={"data": "x"}, headers={"x-api-key": secret})
        if covers((scope,), needed):
            assert answer.status_code in (200, 404, 422)
        else:
            problem(answer, 403, "forbidden")


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1"),
        ("GET", "/v1/queues/"),
        ("PUT", "/v2/queues"),
        ("GET", f"/v1/queues/{UNKNOWN}"),
        ("GET", "/v1/queues/not-a-uuid"),
        ("PUT", f"/v1/queues/{UNKNOWN}"),
        ("DELETE", f"/v1/queues/{UNKNOWN}"),
        ("PUT", f"/v1/queues/{UNKNOWN}/messages"),
        ("PUT", "/v1/queues//messages"),
        ("PUT", f"/v1/queues/{UNKNOWN}/listeners"),
        ("GET", f"/v1/queues/{UNKNOWN}/listeners"),
        ("GET", "/v1/queues/{queue_id}/listeners/" + UNKNOWN),
        ("POST", "/v1/queues/{queue_id}/listeners/" + UNKNOWN + "/pause"),
        ("POST", "/v1/queues/{queue_id}/listeners/" + UNKNOWN + "/resume"),
        ("DELETE", "/v1/queues/{queue_id}/listeners/" + UNKNOWN),
        ("GET", "/v1/queues/{queue_id}/messages/" + UNKNOWN),
        ("GET", "/v1/queues/{queue_id}/messages/01a20ab1-60e8-7001-af39-10e1d60022cb"),
        ("GET", "/v1/queues/{queue_id}/messages/01a20ab1-60e8-7fff-af39-10e1d60022cb"),
    ],
)
async def test_an_unknown_path_or_id_is_404(api, method, path):
    body = {"name": "n", "notify_url": "https://8.8.8.8/", "liveness_url": "https://8.8.8.8/"}
    if path.endswith("/messages"):
        body = {"data": "x"}
    elif "listeners" not in path:
        body = {"name": "n"}
    path = path.replace("{queue_id}", await api.queue())
    problem(await api.request(method, path, json=body), 404)


async def test_another_organizations_ids_are_404(api):
    queue_id, listener_id = await api.queue(), None
    listener_id = await api.listener(queue_id)
    message_id = (await api.put(f"/v1/queues/{queue_id}/messages", json={"data": "x"})).json()["message"]["id"]
    stranger = {"x-api-key": await api.another_organization()}
    queue, listener = f"/v1/queues/{queue_id}", f"/v1/queues/{queue_id}/listeners/{listener_id}"
    asked = [
        ("GET", queue, None),
        ("PUT", queue, {"name": "mine"}),
        ("DELETE", queue, None),
        ("GET", f"{queue}/listeners", None),
        ("PUT", f"{queue}/messages", {"data": "x"}),
        ("GET", f"{queue}/messages/{message_id}", None),
        ("GET", listener, None),
        ("PUT", listener, {"name": "mine"}),
        ("POST", f"{listener}/pause", None),
        ("DELETE", listener, None),
    ]
    for method, path, body in asked:
        problem(await api.request(method, path, json=body, headers=stranger), 404, "not-found")
    assert (await api.get("/v1/queues", headers=stranger)).json()["queues"] == []


async def test_a_message_or_listener_of_another_queue_is_404(api):
    queue_id, other_id = await api.queue(), await api.queue("other")
    listener_id = await api.listener(queue_id)
    message_id = (await api.put(f"/v1/queues/{queue_id}/messages", json={"data": "x"})).json()["message"]["id"]
    problem(await api.get(f"/v1/queues/{other_id}/messages/{message_id}"), 404)
    problem(await api.get(f"/v1/queues/{other_id}/listeners/{listener_id}"), 404)


@pytest.mark.parametrize(
    ("method", "path"), [("POST", "/v1/queues"), ("DELETE", "/v1/queues"), ("PATCH", "/v1/queues/x")]
)
async def test_a_method_that_a_resource_lacks_is_405_and_says_which_it_has(api, method, path):
    answer = await api.request(method, path)
    problem(answer, 405, "method-not-allowed")
    assert "GET" in answer.headers["allow"]
    assert answer.headers["allow"] == (await api.bare.options(path)).headers["allow"]


async def test_what_the_pages_of_the_reference_refuse_is_a_problem_like_any_other(api):
    for path in ("/docs", "/docs/reference.js", "/docs/reference.json"):
        answer = await api.bare.put(path, headers={"x-request-id": "abc-1"})
        problem(answer, 405, "method-not-allowed")
        assert answer.headers["x-request-id"] == "abc-1"
        assert set(answer.headers["allow"].replace(" ", "").split(",")) == {"GET", "HEAD"}


async def test_no_cache_keeps_what_a_key_was_shown(api):
    queue_id = await api.queue()
    listener = f"/v1/queues/{queue_id}/listeners/{await api.listener(queue_id)}"
    for path in ("/v1/queues", f"{listener}/secret", f"{listener}/deliveries", f"/v1/queues/{UNKNOWN}"):
        assert (await api.get(path)).headers["cache-control"] == "no-store"
    for path in (f"/v1/queues/{queue_id}", listener):
        answer = await api.get(path)
        assert answer.headers["cache-control"] == "private, no-cache"
        again = await api.get(path, headers={"if-none-match": answer.headers["etag"]})
        assert (again.status_code, again.headers["cache-control"]) == (304, "private, no-cache")


async def test_a_body_over_the_limit_is_413_whether_its_length_is_told_or_not(api):
    path = f"/v1/queues/{await api.queue()}/messages"
    big = b'{"data":"' + b"x" * api.settings.body_bytes_max + b'"}'
    problem(await api.put(path, content=big), 413, "too-large")

    async def chunks():
        for start in range(0, len(big), 1 << 16):
            yield big[start : start + (1 << 16)]

    problem(await api.put(path, content=chunks()), 413, "too-large")


@pytest.mark.parametrize("length", ["0" * 5000, "9" * 5000, "1e3", "-1"])
async def test_a_content_length_that_is_no_length_is_400(length):
    api = await make_api(bytes_per_s=1_000_000)
    queue_id = await api.queue()
    for method, path in (
        ("PUT", "/v1/queues"),
        ("PUT", f"/v1/queues/{queue_id}/messages"),
        ("POST", f"/v1/queues/{queue_id}/listeners/{await api.listener(queue_id)}/redrive"),
    ):
        answer = await api.request(method, path, content=b"{}", headers={"content-length": length})
        problem(answer, 400, "malformed")


@pytest.mark.parametrize("kind", [None, "text/plain", "application/xml", "application/json; charset=latin-1", "json"])
async def test_a_content_type_other_than_json_is_415(api, kind):
    headers = {} if kind is None else {"content-type": kind}
    answer = await api.bare.put("/v1/queues", content=b"{}", headers={**headers, "x-api-key": api.key})
    problem(answer, 415, "not-json")


async def test_an_encoded_body_is_415(api):
    for headers in ({"content-encoding": "gzip"}, {"content-encoding": "br, identity"}):
        problem(await api.put("/v1/queues", content=gzip.compress(b'{"name":"a"}'), headers=headers), 415, "not-json")
    headers = {"content-encoding": "identity"}
    assert (await api.put("/v1/queues", content=b'{"name":"a"}', headers=headers)).status_code == 200


@pytest.mark.parametrize(
    "kind", ["application/json", "Application/JSON; charset=UTF-8", 'application/json;charset="utf-8"']
)
async def test_json_is_json_however_it_is_spelled(api, kind):
    assert (await api.put("/v1/queues", content=b'{"name":"a"}', headers={"content-type": kind})).status_code == 200


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({}, "/name"),
        ({"name": None}, "/name"),
        ({"name": 3}, "/name"),
        ({"name": ""}, "/name"),
        ({"name": " "}, "/name"),
        ({"name": "n" * 201}, "/name"),
        ({"name": "a\nb"}, "/name"),
        ({"name": "a\u0000"}, "/name"),
        ({"name": "a\u202eb"}, "/name"),
        ({"name": "a", "colour": "red"}, "/colour"),
        ({"name": "a", "a/b~c": "red"}, "/a~1b~0c"),
        ([], ""),
        ("name", ""),
        (None, ""),
        (10**30, ""),
    ],
)
async def test_a_queue_that_is_not_as_it_must_be_is_422_with_a_pointer(api, body, pointer):
    content = str(body).encode() if isinstance(body, int) else orjson.dumps(body)
    assert pointers(problem(await api.put("/v1/queues", content=content), 422)) == [pointer]


@pytest.mark.parametrize("name", ["myapp.io/deletion-request-queue", "ü", "日本語", "🦊", "n" * 200, "a b"])
async def test_any_printable_name_is_a_name(api, name):
    assert (await api.put("/v1/queues", json={"name": name})).json()["queue"]["name"] == name


async def test_a_taken_name_is_422_as_getting_started_shows_it(api):
    await api.put("/v1/queues", json={"name": "taken"})
    body = problem(await api.put("/v1/queues", json={"name": "taken"}), 422, "name-taken")
    assert body["title"] == "Unprocessable Entity"
    assert pointers(body) == ["/name"]


async def test_the_same_name_in_another_organization_is_free(api):
    await api.put("/v1/queues", json={"name": "same"})
    key = await api.another_organization()
    assert (await api.put("/v1/queues", json={"name": "same"}, headers={"x-api-key": key})).status_code == 200


LISTENER = {"name": "l", "notify_url": "https://8.8.8.8/n", "liveness_url": "https://8.8.8.8/l"}


@pytest.mark.parametrize(
    ("change", "pointer"),
    [
        ({"name": None}, "/name"),
        ({"notify_url": None}, "/notify_url"),
        ({"notify_url": "ftp://8.8.8.8/"}, "/notify_url"),
        ({"notify_url": "nonsense"}, "/notify_url"),
        ({"notify_url": "https://user:password@8.8.8.8/"}, "/notify_url"),
        ({"notify_url": "https://8.8.8.8/#part"}, "/notify_url"),
        ({"notify_url": "https://8.8.8.8:70000/"}, "/notify_url"),
        ({"notify_url": "https://8.8.8.8/" + "x" * 2048}, "/notify_url"),
        ({"notify_url": "http://127.0.0.1/"}, "/notify_url"),
        ({"liveness_url": "http://127.1/"}, "/liveness_url"),
        ({"liveness_url": "http://2130706433/"}, "/liveness_url"),
        ({"liveness_url": "http://0x7f000001/"}, "/liveness_url"),
        ({"liveness_url": "http://017700000001/"}, "/liveness_url"),
        ({"liveness_url": "http://[::1]/"}, "/liveness_url"),
        ({"liveness_url": "http://[::ffff:10.0.0.1]/"}, "/liveness_url"),
        ({"liveness_url": "http://169.254.169.254/latest"}, "/liveness_url"),
        ({"liveness_url": "http://100.64.0.1/"}, "/liveness_url"),
        ({"liveness_url": "http://localhost/"}, "/liveness_url"),
        ({"max_in_flight": 0}, "/max_in_flight"),
        ({"max_in_flight": 1.5}, "/max_in_flight"),
        ({"max_in_flight": True}, "/max_in_flight"),
        ({"max_in_flight": 10**30}, "/max_in_flight"),
        ({"rate_per_s": -1}, "/rate_per_s"),
        ({"timeout_ms": 10**9}, "/timeout_ms"),
        ({"max_attempts": 0}, "/max_attempts"),
        ({"retry_first_ms": 99}, "/retry_first_ms"),
        ({"retry_max_s": 0}, "/retry_max_s"),
        ({"retry_max_s": None}, "/retry_max_s"),
        ({"headers": {"x": 1}}, "/headers"),
        ({"headers": []}, "/headers"),
        ({"headers": {"host": "x"}}, "/headers/host"),
        ({"headers": {"Webhook-Id": "x"}}, "/headers/Webhook-Id"),
        ({"headers": {"x": "a\r\nb: c"}}, "/headers/x"),
        ({"headers": {"a b": "c"}}, "/headers/a b"),
        ({"headers": {f"x-{n}": "" for n in range(40)}}, "/headers"),
        ({"secret": "whsec_short"}, "/secret"),
        ({"secret": "plain"}, "/secret"),
        ({"from": "yesterday"}, "/from"),
        ({"from": "2026-01-31"}, "/from"),
        ({"from": "2026-01-31T12:00:00"}, "/from"),
        ({"id": "mine"}, "/id"),
    ],
)
async def test_a_listener_that_is_not_as_it_must_be_is_422_with_a_pointer(api, change, pointer):
    queue_id = await api.queue()
    answer = await api.put(f"/v1/queues/{queue_id}/listeners", json={**LISTENER, **change})
    assert pointers(problem(answer, 422)) == [pointer]


@pytest.mark.parametrize("missing", ["name", "notify_url", "liveness_url"])
async def test_name_notify_url_and_liveness_url_are_mandatory(api, missing):
    body = {name: value for name, value in LISTENER.items() if name != missing}
    answer = await api.put(f"/v1/queues/{await api.queue()}/listeners", json=body)
    assert pointers(problem(answer, 422)) == [f"/{missing}"]


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({}, "/data"),
        ({"data": None}, "/data"),
        ({"data": {"userId": 1}}, "/data"),
        ({"data": "x" * ((1 << 20) + 1)}, "/data"),
        ({"data": "ü" * (1 << 19) + "x"}, "/data"),
        ({"data": "x", "name": ""}, "/name"),
        ({"data": "x", "key": ""}, "/key"),
        ({"data": "x", "key": "k" * 201}, "/key"),
        ({"data": "x", "when": "now"}, "/when"),
    ],
)
async def test_a_message_that_is_not_as_it_must_be_is_422_with_a_pointer(api, body, pointer):
    answer = await api.put(f"/v1/queues/{await api.queue()}/messages", json=body)
    assert pointers(problem(answer, 422)) == [pointer]


@pytest.mark.parametrize("query", ["limit=0", "limit=x", "limit=1001", "limit=-1", "limit=", "cursor=!", "cursor=eHl6"])
async def test_a_bad_parameter_of_a_list_is_422_and_named(api, query):
    body = problem(await api.get(f"/v1/queues?{query}"), 422, "bad-parameter")
    assert body["errors"][0]["parameter"] == query.split("=")[0]


async def test_a_query_that_is_not_utf8_is_400(api):
    problem(await api.get("/v1/queues?name=%ff"), 400, "malformed")


@pytest.mark.parametrize(
    ("error", "code"), [(LogUnavailable("down"), "log-unavailable"), (InDoubt("maybe"), "in-doubt")]
)
async def test_kafka_that_does_not_acknowledge_is_503_with_retry_after(api, error, code):
    queue_id = await api.queue()
    api.log.control.failing = api.log.messages.failing = error
    for path, body in (("/v1/queues", {"name": "x"}), (f"/v1/queues/{queue_id}/messages", {"data": "x"})):
        answer = await api.put(path, json=body)
        problem(answer, 503, code)
        assert int(answer.headers["retry-after"]) >= 1


async def test_our_own_fault_is_500_and_says_nothing_about_itself(api, caplog):
    api.log.control.failing = RuntimeError("a password: hunter2")
    body = problem(await api.put("/v1/queues", json={"name": "x"}), 500, "internal")
    assert "hunter2" not in str(body)
    assert "hunter2" in caplog.text


async def test_a_given_request_id_comes_back_and_a_bad_one_is_replaced(api):
    assert (await api.get("/v1/queues", headers={"x-request-id": "abc-1"})).headers["x-request-id"] == "abc-1"
    assert (await api.get("/v1/queues", headers={"x-request-id": "a b\x7f"})).headers["x-request-id"] != "a b\x7f"


async def test_head_is_get_without_the_body(api):
    answer = await api.request("HEAD", "/v1/queues")
    assert answer.status_code == 200
    assert answer.content == b""
    assert answer.headers["content-length"] == (await api.get("/v1/queues")).headers["content-length"]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
)
fields = st.sampled_from(
    ["name", "data", "key", "notify_url", "liveness_url", "headers", "from", "secret", "rate_per_s"]
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200, deadline=None)
@given(
    body=st.one_of(json_values.map(orjson.dumps), st.dictionaries(fields, json_values).map(orjson.dumps), st.binary())
)
async def test_no_body_whatever_is_a_500(api, body):
    queue_id = api.first_queue_id or await api.queue()
    for path in ("/v1/queues", f"/v1/queues/{queue_id}/listeners", f"/v1/queues/{queue_id}/messages"):
        answer = await api.put(path, content=body)
        assert answer.status_code in (200, 400, 422), (path, body, answer.text)
        if answer.status_code != 200:
            problem(answer, answer.status_code)


async def test_a_key_sent_as_a_request_id_is_not_taken_for_one():
    api = await make_api()
    answer = await api.request("GET", "/v1/queues", headers={"x-request-id": f"id-{api.key}"})
    assert answer.status_code == 200
    assert api.key not in answer.headers["x-request-id"]


async def test_what_can_t_be_known_to_be_current_is_a_503_and_not_shown():
    api = await make_api()
    queue_id = await api.queue()
    api.log.control.behind = ViewBehind("not folded yet")
    for path in ("/v1/queues", f"/v1/queues/{queue_id}", f"/v1/queues/{queue_id}/listeners"):
        answer = await api.request("GET", path)
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
