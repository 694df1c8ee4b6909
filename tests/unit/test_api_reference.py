"""The reference: all that is there is told, all that is told is there, and nothing comes from elsewhere.

That every answer is as told is checked at every request of these tests (api_client.as_documented)."""

from __future__ import annotations

import importlib
import pkgutil
import posixpath
import re
import shlex
from pathlib import Path

import httpx
import msgspec
import orjson
import pytest
from api_client import make_api

from api import docs, shapes
from api.app import operations
from api.calls import Call
from api.descriptions import DESCRIPTIONS
from api.openapi import described, document
from api.reference import OPERATION_DOCS
from broker.commands.accounts import AccountCommands
from broker.core.batching import batch_body, element, failed_ids
from broker.core.codec import encode
from broker.core.entities import Queue
from broker.core.events import MessagePut
from broker.delivery.reading.message import Message
from everput import answers
from everput.answers import BatchedMessage, BatchReply, Notification

FOLDER = Path(docs.__file__).parent / "reference_files"
IMPORT = re.compile(r'import .* from "([^"]+)"')
ANSWERS = [module.name for module in pkgutil.iter_modules(answers.__path__)]
SUMMARY_VERBS = {
    *(
        "Accept",
        "Answer",
        "Cancel",
        "Change",
        "Create",
        "Delete",
        "Get",
        "List",
        "Pause",
        "Put",
        "Read",
        "Receive",
        "Register",
    ),
    *("Remove", "Rename", "Replay", "Resume", "Retry", "Revoke", "Rotate", "Send", "Sign", "Unlink"),
}


async def reference() -> dict:
    return (await (await make_api()).bare.get("/v1/openapi.json")).json()


async def test_every_route_is_told_of_and_nothing_else_is():
    api = await make_api()
    routes = {(method, path) for method, path, _ in operations(api.app)}
    assert routes == set(OPERATION_DOCS)
    doc = {(method.upper(), path) for path, methods in (await reference())["paths"].items() for method in methods}
    assert doc == routes


async def test_it_is_an_openapi_document_whose_references_all_lead_somewhere():
    document = await reference()
    assert document["openapi"] == "3.1.0"
    assert set(document["webhooks"]) == {"notify", "notifyBatch", "liveness"}
    text = msgspec.json.encode(document).decode()
    for name in set(re.findall(r'"#/components/schemas/(\w+)"', text)):
        assert name in document["components"]["schemas"]
    names = [one["operationId"] for path in document["paths"].values() for one in path.values()]
    assert len(names) == len(set(names))


async def test_links_and_samples_begin_with_the_public_url():
    api = await make_api(public_url="https://everput.example/")
    document = (await api.bare.get("/v1/openapi.json")).json()
    assert document["servers"] == [{"url": "https://everput.example"}]
    assert "https://everput.example/v1/queues" in document["paths"]["/v1/queues"]["put"]["x-codeSamples"][0]["source"]


async def test_the_document_is_made_once_whatever_host_it_is_asked_of(monkeypatch):
    made = []
    monkeypatch.setattr("api.docs.document", lambda *args, **more: (made.append(1), document(*args, **more))[1])
    api = await make_api()
    for host in ("a.example", "b.example:8080", "[::1]:80", 'odd"\\'):
        doc = (await api.bare.get("/v1/openapi.json", headers={"host": host})).json()
        assert doc["servers"] == [{"url": f"http://{host}"}]
    assert len(made) == 1


async def test_it_tells_of_limits_and_cookies():
    doc = await reference()
    put = doc["paths"]["/v1/queues/{queue_id}/messages"]["put"]["responses"]
    assert {"RateLimit", "RateLimit-Policy"} <= set(put["200"]["headers"])
    assert {"RateLimit", "RateLimit-Policy", "Retry-After", "X-Request-Id"} <= set(put["429"]["headers"])
    sessions = doc["paths"]["/v1/sessions"]
    assert "Set-Cookie" in sessions["post"]["responses"]["200"]["headers"]
    assert "Set-Cookie" in sessions["delete"]["responses"]["200"]["headers"]
    assert "Set-Cookie" not in sessions["get"]["responses"]["200"]["headers"]
    assert doc["components"]["securitySchemes"]["cookie"]["in"] == "cookie"
    assert {"cookie": []} in sessions["get"]["security"]


@pytest.mark.parametrize("doc", OPERATION_DOCS.values(), ids=lambda doc: doc.name)
def test_an_example_is_what_it_is_an_example_of(doc):
    assert (doc.request is None) == (doc.example is None)
    if doc.request is not None:
        shapes.parse(msgspec.json.encode(doc.example), doc.request)


async def test_a_sample_makes_the_request_it_is_a_sample_of():
    for path, methods in (await reference())["paths"].items():
        for method, operation in methods.items():
            by_label = {sample["label"]: sample["source"] for sample in operation["x-codeSamples"]}
            assert set(by_label) == {"curl", "JavaScript", "Python", "Go"}
            words = shlex.split(by_label["curl"])
            assert words[:3] == ["curl", "-X", method.upper()]
            assert re.fullmatch(re.sub(r"{\w+}", "[0-9a-f-]{36}", "http://api.example.com" + path), words[3])
            body = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("example")
            if body is not None:
                assert msgspec.json.decode(words[words.index("-d") + 1]) == body
            asked: list[httpx.Request] = []
            sent = httpx.MockTransport(lambda request, asked=asked: (asked.append(request), httpx.Response(200))[1])
            with httpx.Client(transport=sent) as client:
                source = by_label["Python"].replace("import httpx\n", "").replace("httpx.request(", "client.request(")
                exec(source, {"client": client})
            (request,) = asked
            assert (request.method, str(request.url)) == (method.upper(), words[3])
            assert (msgspec.json.decode(request.content) if request.content else None) == body


async def test_the_body_that_is_checked_is_the_one_that_is_told(monkeypatch):
    used: dict[str, type] = {}
    json = Call.json

    async def noted(self, shape, **more):
        used[self.scope["method"] + self.scope["path"]] = shape
        return await json(self, shape, **more)

    monkeypatch.setattr(Call, "json", noted)
    api = await make_api()
    queue_id = await api.queue()
    ids = {"queue_id": queue_id, "listener_id": await api.listener(queue_id), "organization_id": api.organization_id}
    ids["message_id"] = (await api.put(f"/v1/queues/{queue_id}/messages", json={"data": "x"})).json()["message"]["id"]
    account = {"email": "a@example.com", "password": "correct horse"}
    await api.bare.put("/v1/accounts", json=account)
    signed_in = (await api.bare.post("/v1/sessions", json=account)).json()
    token = signed_in["session"]["token"]
    ids["account_id"] = signed_in["account"]["id"]
    await AccountCommands(api.log.control, api.log.control).members.join(ids["account_id"], api.organization_id)
    for (method, path), doc in OPERATION_DOCS.items():
        if doc.request is not None:
            at = path.format_map(ids)
            headers = {"authorization": f"Bearer {token}"}
            if "organization" in path and "{" in path:
                headers["x-api-key"] = await api.key_with(("keys",))
            used.clear()
            await api.request(method, at, json={}, headers=headers)
            assert used == {method + at: doc.request}


async def test_the_page_and_its_files_come_from_here_alone():
    api = await make_api()
    page = await api.bare.get("/docs")
    assert page.status_code == 200
    files = re.findall(r'(?:src|href)="([^"#]+)"', page.text)
    assert {"docs/reference.js", "docs/reference.css", "console/console.css"} <= set(files)
    for path in FOLDER.glob("*.js"):
        files += [f"docs/{path.name}", *(f"docs/{name}" for name in IMPORT.findall(path.read_text()))]
    for file in {posixpath.normpath(file) for file in files}:
        found = await api.bare.get(f"/{file}", follow_redirects=True)
        assert found.status_code == 200, file
        assert found.content
    for file in ("/docs", "/docs/reference.js", "/docs/reference.json"):
        policy = (await api.bare.get(file)).headers["content-security-policy"]
        assert "default-src 'none'; script-src 'self'; style-src 'self'" in policy
        assert "unsafe" not in policy
        assert "http" not in policy
        assert "require-trusted-types-for 'script'; trusted-types 'none'" in policy
    for other in ("/docs/try.py", "/docs/..%2Fcore.py", "/docs/", "/docs/index.html"):
        assert (await api.bare.get(other)).status_code == 404


@pytest.mark.parametrize("path", sorted(FOLDER.iterdir()), ids=lambda path: path.name)
def test_no_file_of_the_page_names_an_outside_host_or_makes_html_of_text(path):
    text = path.read_text()
    assert set(re.findall(r"https?://[\w.]+", text)) == set()
    assert (
        re.findall(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|localStorage|\.style\b", text)
        == []
    )
    assert re.findall(r"<script(?![^>]*\bsrc=)|<style|\sstyle=|\son\w+=", text) == []


async def test_the_pages_document_is_the_same_compressed_and_knows_no_server():
    api = await make_api()
    answer = await api.bare.get("/docs/reference.json", headers={"accept-encoding": "gzip"})
    assert (answer.status_code, answer.headers["content-encoding"]) == (200, "gzip")
    assert int(answer.headers["content-length"]) < len(answer.content) / 10
    assert orjson.loads(answer.text.replace("https://[server]", "http://api.example.com")) == await reference()
    known = {"accept-encoding": "gzip", "if-none-match": answer.headers["etag"]}
    assert (await api.bare.get("/docs/reference.json", headers=known)).status_code == 304


async def test_each_operation_is_in_one_group_and_each_group_is_described():
    doc = await reference()
    groups = [tag["name"] for tag in doc["tags"]]
    used = [one["tags"] for path in doc["paths"].values() for one in path.values()]
    assert all(len(tags) == 1 for tags in used)
    assert {tags[0] for tags in used} == set(groups)
    assert all(tag["description"].endswith(".") for tag in doc["tags"])


def test_what_a_listener_gets_is_as_told():
    put = MessagePut(
        at_ms=1,
        organization_id="o",
        message_id="0180994c-b6b2-7d0e-b7ad-414716e83386",
        queue_id="5f0e6f0a-33c1-4a8e-8f1d-b5b9f6f0c001",
        name="n",
        data="ü\n",
    )
    queue = Queue(id=put.queue_id, organization_id="o", name="orders", created_at_ms=0)
    body = Message(0, put.message_id.encode(), queue.id, 1, encode(put)).body(queue)
    assert msgspec.json.decode(body, type=Notification).message.data == "ü\n"
    batch = batch_body([element(put.message_id.encode(), body, 3, traceparent) for traceparent in (None, "00-1-2-00")])
    first, second = msgspec.json.decode(batch, type=list[BatchedMessage])
    assert (first.id, first.attempt, first.body.message.data) == (put.message_id, 3, "ü\n")
    assert (first.traceparent, second.traceparent) == (msgspec.UNSET, "00-1-2-00")
    assert failed_ids(msgspec.json.encode(BatchReply(failed=[put.message_id]))) == {put.message_id}


async def test_each_operation_has_a_short_summary_and_a_description_in_sentences():
    doc = await reference()
    operations = [one for path in doc["paths"].values() for one in path.values()]
    assert {one["operationId"] for one in operations} == set(DESCRIPTIONS)
    for one in [*operations, *(hook for path in doc["webhooks"].values() for hook in path.values())]:
        assert len(one["summary"].split()) <= 6, one["summary"]
        assert one["summary"].split()[0] in SUMMARY_VERBS
        assert one["description"].endswith(".")
        assert all(parameter["description"].endswith(".") for parameter in one.get("parameters", ()))


async def test_each_schema_and_each_field_is_described():
    for name, schema in (await reference())["components"]["schemas"].items():
        assert schema["description"].endswith("."), name
        for field, one in schema.get("properties", {}).items():
            assert one.get("description", "").endswith("."), f"{name}.{field}"


@pytest.mark.parametrize("name", ["api.shapes", *(f"everput.answers.{name}" for name in ANSWERS)])
def test_a_shape_describes_its_own_fields_and_no_others(name):
    module = importlib.import_module(name)
    shapes = [one for one in vars(module).values() if isinstance(one, type) and one.__module__ == name]
    assert shapes
    for shape in shapes:
        own = set(shape.__struct_fields__) - set(shape.__base__.__struct_fields__)
        assert set(described(shape)[1]) == own, shape
