"""The web console: what is served, that it is nothing but that, and that the API knows all that it asks.

What its pages do is asked of the API here as they ask it: with the cookie, from the server's own page. Its words are
tested where there is a node to run them.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from dataclasses import asdict
from pathlib import Path
from typing import Any

import httpx
import pytest
from api_client import Api, make_api, problem
from hatchling.builders.wheel import WheelBuilder
from test_api_accounts import PASSWORD, SAME, WHO

from api import console as served
from api.app import operations
from api.reference import OPERATION_DOCS
from broker.commands.organizations import SCOPES
from broker.core.alerts import DEFAULTS
from broker.core.health import Health

FOLDER = Path(served.__file__).parent / "console_files"
FILES = {path.name: path for path in served.console_files()}
SCRIPTS = {path.name: path.read_text() for path in FOLDER.glob("*.js")}
PAGE = (FOLDER / "index.html").read_text()
OPERATIONS = {
    name: (method, path) for name, method, path in re.findall(r'(\w+): \["(\w+)", "(/[^"]*)"\]', SCRIPTS["api.js"])
}


def imports(script: str) -> dict[str, set[str]]:
    """By file: which names of it."""
    found = re.findall(r'import {([^}]*)} from "\./([\w.]+)"', script)
    return {file: {name.strip() for name in names.split(",") if name.strip()} for names, file in found}


def exports(script: str) -> set[str]:
    return set(re.findall(r"^export (?:async )?(?:function|class|const) (\w+)", script, re.MULTILINE))


async def test_the_page_and_its_files_are_served_and_may_load_nothing_else():
    api = await make_api()
    page = await api.bare.get("/console")
    assert (page.status_code, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
    served = [page]
    for name, path in FILES.items():
        if name == "index.html":
            continue
        served.append(await api.bare.get(f"/console/{name}"))
        assert served[-1].status_code == 200
        assert served[-1].content == path.read_bytes()
    for answer in served:
        policy = dict(part.strip().split(" ", 1) for part in answer.headers["content-security-policy"].split(";"))
        assert policy["default-src"] == "'none'"
        assert set(policy.values()) == {"'none'", "'self'", "'script'"}
        assert policy["script-src"] == policy["connect-src"] == "'self'"
        assert (policy["require-trusted-types-for"], policy["trusted-types"]) == ("'script'", "'none'")
        assert policy["frame-ancestors"] == policy["form-action"] == policy["base-uri"] == "'none'"
        assert "set-cookie" not in answer.headers
    for other in ("/console/index.html", "/console/..%2Fapp.py", "/console/../app.py", "/console/x.js"):
        problem(await api.bare.get(other), 404)
    assert (await api.bare.post("/console")).status_code == 405


async def test_a_browser_that_has_a_file_is_not_sent_it_again():
    api = await make_api()
    first = await api.bare.get("/console/main.js")
    again = await api.bare.get("/console/main.js", headers={"if-none-match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert first.headers["cache-control"] == "no-cache"
    assert (await api.bare.get("/console/main.js", headers={"if-none-match": '"x"'})).status_code == 200


async def test_the_root_leads_to_the_console_also_behind_a_proxys_path():
    api = await make_api()
    answer = await api.bare.get("/")
    assert (answer.status_code, answer.headers["location"]) == (307, "console")
    answer = await api.bare.get("/console/")
    assert (answer.status_code, answer.headers["location"]) == (307, "../console")
    assert (await api.bare.get("/console/", follow_redirects=True)).url.path == "/console"


async def test_a_file_is_sent_compressed_to_a_browser_that_accepts_it_with_a_tag_of_its_own():
    api = await make_api()
    path = "/console/console.css"
    tags = {}
    for accepted, encoding in (("gzip, br", "gzip"), ("*;q=0.5", "gzip"), ("gzip;q=0, *", None), ("br", None)):
        answer = await api.bare.get(path, headers={"accept-encoding": accepted})
        assert answer.headers.get("content-encoding") == encoding, accepted
        assert answer.headers["vary"] == "accept-encoding"
        assert answer.content == FILES["console.css"].read_bytes()
        tags[encoding] = answer.headers["etag"]
        known = {"accept-encoding": accepted, "if-none-match": answer.headers["etag"]}
        assert (await api.bare.get(path, headers=known)).status_code == 304
    assert len(set(tags.values())) == 2
    compressed = await api.bare.get(path, headers={"accept-encoding": "gzip"})
    assert int(compressed.headers["content-length"]) < len(FILES["console.css"].read_bytes()) / 2


async def test_an_answer_of_the_api_is_never_compressed():
    api = await make_api()
    for path in ("/v1/queues", "/v1/openapi.json"):
        assert "content-encoding" not in (await api.get(path, headers={"accept-encoding": "gzip"})).headers


async def test_registration_is_offered_where_there_is_one():
    assert 'data-registration="open"' in (await (await make_api()).bare.get("/console")).text
    closed = (await (await make_api(registration=False)).bare.get("/console")).text
    assert 'data-registration="closed"' in closed


def test_every_file_is_needed_and_every_file_that_is_needed_is_there():
    wanted = set(re.findall(r'(?:src|href)="console/([\w.]+)"', PAGE))
    scripts = {name for name in wanted if name.endswith(".js")}
    while scripts:
        used = imports(FILES[scripts.pop()].read_text())
        scripts |= set(used) - wanted
        wanted |= set(used)
    assert wanted == set(FILES) - {"index.html"}


@pytest.mark.parametrize("name", SCRIPTS)
def test_what_a_script_imports_is_exported(name):
    for file, names in imports(SCRIPTS[name]).items():
        assert names <= exports(SCRIPTS[file])
        for used in names:
            assert len(re.findall(rf"\b{used}\b", SCRIPTS[name])) > 1, f"{used} is not used"


def test_no_export_is_for_nobody():
    used = {name for script in SCRIPTS.values() for names in imports(script).values() for name in names}
    assert {name for script in SCRIPTS.values() for name in exports(script)} - used == set()


def test_nothing_in_the_page_needs_a_policy_that_allows_more():
    assert re.findall(r"<script(?![^>]*\bsrc=)", PAGE) == []
    assert re.findall(r"<style|\sstyle=|\son\w+=|javascript:|<form", PAGE) == []


@pytest.mark.parametrize("path", sorted(FOLDER.iterdir()), ids=lambda path: path.name)
def test_no_file_names_an_outside_host(path):
    hosts = set(re.findall(r"https?://[\w.]+", path.read_text())) - {"http://www.w3.org"}  # the name of SVG
    assert hosts == set()


@pytest.mark.parametrize("name", SCRIPTS)
def test_text_never_becomes_html_or_code_and_no_secret_is_kept(name):
    forbidden = (
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|createContextualFragment|DOMParser|srcdoc|"
        r"\beval\(|new Function|setTimeout\([\"'`]|javascript:|localStorage|document\.cookie|\.style\b"
    )
    assert re.findall(forbidden, SCRIPTS[name]) == []
    assert ("sessionStorage" in SCRIPTS[name]) == (name == "kept.js")
    may_keep = {"kept.js": {"name"}, "signin.js": {"CHOSEN"}, "listener.js": {"retriesName"}}
    assert set(re.findall(r"\bkeep\((\w+)", SCRIPTS[name])) == may_keep.get(name, set())


def test_every_operation_that_it_asks_for_is_one_of_the_api_and_is_asked_for():
    documented = {one.name: where for where, one in OPERATION_DOCS.items()}
    assert len(OPERATIONS) == SCRIPTS["api.js"].count('"/v1/')
    assert {name: documented.get(name) for name in OPERATIONS} == OPERATIONS
    others = "".join(script for name, script in SCRIPTS.items() if name != "api.js")
    assert {name for name in OPERATIONS if f'"{name}"' not in others} == set()
    assert set(re.findall(r'\bask\(\s*"(\w+)"', others)) <= set(OPERATIONS)
    assert "fetch(" not in others


async def test_each_button_knows_the_scope_that_its_operation_needs():
    api = await make_api()
    routes = {
        (method, path): scope or OPERATION_DOCS[method, path].needs for method, path, scope in operations(api.app)
    }
    named = dict(re.findall(r'^  (\w+): "([\w:]+)",$', SCRIPTS["api.js"], re.MULTILINE))
    assert named == {name: routes[OPERATIONS[name]] for name in named}
    others = "".join(script for name, script in SCRIPTS.items() if name != "api.js")
    used = re.findall(r'needs: "(\w+)"|whyNot\("(\w+)"', others)
    assert {one or other for one, other in used} <= named.keys()


def test_all_scopes_of_keys_can_be_chosen():
    assert re.findall(r'\["([\w:]+)", "\1: ', SCRIPTS["keys.js"]) == list(SCOPES)


def test_the_thresholds_of_alerts_in_the_forms_are_those_of_the_api_with_their_defaults():
    named = re.findall(r'^  \["(\w+)", "[^"]+", "[^"]+", (\d+)\],$', SCRIPTS["thresholds.js"], re.MULTILINE)
    assert {name: int(usual) for name, usual in named} == asdict(DEFAULTS)


# Each action of the console begins with one of these; a new verb is added here on purpose.
VERBS = {
    *(
        "Cancel",
        "Clear",
        "Close",
        "Copy",
        "Count",
        "Create",
        "Delete",
        "Edit",
        "Manage",
        "Pause",
        "Put",
        "Register",
    ),
    *(
        "Resume",
        "Retry",
        "Revoke",
        "Rotate",
        "Save",
        "Send",
        "Show",
        "Sign",
        "Start",
        "Change",
        "Try",
        "Unlink",
        "Done",
        "I",
        "Reset",
        "Accept",
        "Invite",
        "Clear",
        "Go",
        "Leave",
        "Remove",
    ),
}


def test_every_action_begins_with_a_verb():
    actions = [
        action
        for script in SCRIPTS.values()
        for found in re.findall(
            r'button\(\s*"(\w[^"]*)"|submit: ([^\n]+),|yes: "([^"]*)"|textContent = `(Retry[^`]*)', script
        )
        for action in (re.findall(r'"([^"]+)"', found[1]) if found[1] else [found[0] or found[2] or found[3]])
    ]
    assert {"Create queue", "Retry all", "Create listener", "Put message"} <= set(actions)
    assert [action for action in actions if action.split()[0] not in VERBS] == []


def test_it_is_in_the_wheel():
    builder = WheelBuilder(str(Path(__file__).parent.parent.parent))
    shipped = {file.distribution_path for file in builder.recurse_included_files()}
    root = Path(served.__file__).parent.parent
    others = (*(root / "api/vendored").rglob("*"), *(root / "api/reference_files").rglob("*"))
    vendored = [path for path in others if path.is_file()]
    assert {str(path.relative_to(root)) for path in [*FILES.values(), *vendored]} <= shipped


class Console:
    """Asks as api.js does: the operations of its table, the cookie that a browser keeps, the organization's header."""

    def __init__(self, api: Api) -> None:
        self.http = api.bare
        self.organization: str | None = None

    async def ask(self, name: str, body: Any = None, query: dict[str, str] | None = None, **ids: str) -> httpx.Response:
        method, path = OPERATIONS[name]
        headers = dict(SAME) if self.organization is None else {**SAME, "everput-organization": self.organization}
        sent = {} if body is None else {"json": body}
        return await self.http.request(method, path.format_map(ids), headers=headers, params=query, **sent)


async def test_a_person_comes_from_an_e_mail_address_to_a_message_and_out_again():
    console = Console(await make_api())
    problem(await console.ask("getSession"), 401)
    assert (await console.ask("createAccount", WHO)).status_code == 200
    assert (await console.ask("startSession", WHO)).status_code == 200
    assert (await console.ask("getSession")).json()["account"]["email"] == WHO["email"]
    assert (await console.ask("listOrganizations")).json() == {"organizations": []}
    made = (await console.ask("createOrganization", {"name": "Ann's"})).json()["organization"]
    console.organization = made["id"]
    assert (await console.ask("listOrganizations")).json()["organizations"] == [made]
    ids = {"organization_id": made["id"]}
    key = (await console.ask("createKey", {"name": "deploy", "scopes": ["messages"]}, **ids)).json()["key"]
    ids["queue_id"] = (await console.ask("createQueue", {"name": "<b>"})).json()["queue"]["id"]
    urls = {"notify_url": "https://8.8.8.8/n", "liveness_url": "https://8.8.8.8/l"}
    listener = await console.ask("createListener", {"name": "one", "from": "beginning", **urls}, **ids)
    ids["listener_id"] = listener.json()["listener"]["id"]
    put = await console.ask("putMessage", {"data": "first"}, **ids)
    ids["message_id"] = put.json()["message"]["id"]
    assert (await console.ask("getMessage", **ids)).json()["message"]["data"] == "first"
    by_key = {"x-api-key": key["secret"]}
    path = f"/v1/queues/{ids['queue_id']}/messages"
    assert (await console.http.put(path, json={"data": "second"}, headers=by_key)).status_code == 200
    assert [one["data"] for one in (await console.ask("listMessages", **ids)).json()["messages"]] == ["second", "first"]
    count = await console.ask("replayToListener", {"from": "beginning", "only": "all", "dry_run": True}, **ids)
    assert count.json()["replay"]["count"] == 2
    for name in ("pauseListener", "resumeListener", "getListener", "listDeliveries", "listReplays", "getSecret"):
        assert (await console.ask(name, **ids)).status_code == 200, name
    told = await console.ask("readLog", query={"type": "queue,message.put", "limit": "200"})
    types = [json.loads(line).get("event", {}).get("type") for line in told.text.splitlines()]
    assert [one for one in types if one] == ["queue.created", "message.put", "message.put"]
    assert (await console.ask("revokeKey", **ids, key_id=key["id"])).status_code == 200
    problem(await console.http.put(path, json={"data": "third"}, headers=by_key), 401)
    changed = await console.ask("changePassword", {"password": PASSWORD, "new_password": "another password"})
    assert changed.status_code == 200
    assert (await console.ask("endSession")).status_code == 200
    problem(await console.ask("listQueues"), 401)
    assert PASSWORD not in str(console.http.cookies)


def node(script: str) -> Any:
    """What a script prints, which is JSON."""
    run = subprocess.run(
        ["node", "--input-type=module", "-e", script], capture_output=True, text=True, check=False, timeout=60
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


@pytest.mark.skipif(shutil.which("node") is None, reason="there is no node on this machine's PATH")
def test_requests_go_where_the_page_is_with_the_organization_and_problems_come_back():
    told = node(f"""
        const asked = [];
        const events = [];
        const lines = {{ "content-type": "application/x-ndjson" }};
        const answers = [
          [200, '{{"queues": [], "_links": {{"next": {{"href": "http://inside/v1/queues?limit=2&cursor=a%2Fb"}}}}}}'],
          [200, '{{"message": {{}}}}'],
          [200, '{{"event": {{}}}}\\n{{"cursor": "c", "complete": true}}\\n', lines],
          [429, '{{"title": "t", "detail": "d", "errors": []}}', {{ "retry-after": "7" }}],
          [401, "<html>"],
        ];
        globalThis.document = {{ baseURI: "https://example.com/behind/a/console" }};
        globalThis.window = {{ dispatchEvent: (event) => events.push(event.type) }};
        globalThis.fetch = async (url, options) => {{
          asked.push([options.method, String(url), options.headers, options.body, options.credentials]);
          if (!answers.length) throw new TypeError("no network");
          const [status, text, headers] = answers.shift();
          return new Response(text, {{ status, headers }});
        }};
        const api = await import("{(FOLDER / "api.js").as_uri()}");
        api.session.organization = {{ id: "o1", name: "n" }};
        const page = await api.ask("listQueues", {{ query: {{ limit: 2, cursor: null, name: "" }} }});
        const ids = {{ queue_id: "../x", message_id: "m" }};
        await api.ask("putMessage", {{ ids, body: {{ data: "é" }}, once: "k", ifMatch: "t" }});
        const log = (await api.ask("readLog")).body;
        const problems = [];
        for (const name of ["getSession", "listQueues", "listQueues"]) {{
          await api.ask(name).catch((error) => problems.push([error.status, error.message, error.retryAfterS]));
        }}
        console.log(JSON.stringify({{
          asked, events, log, problems, cursor: api.nextCursor(page.body), last: api.nextCursor({{ _links: {{}} }}),
          key: api.newKey(),
        }}));
    """)
    first, put = told["asked"][:2]
    base = "https://example.com/behind/a/v1"
    assert first == ["GET", f"{base}/queues?limit=2", {"Everput-Organization": "o1"}, None, "same-origin"]
    assert put[:2] == ["PUT", f"{base}/queues/..%2Fx/messages"]
    assert put[2] == {
        "Everput-Organization": "o1",
        "Content-Type": "application/json",
        "If-Match": "t",
        "Idempotency-Key": "k",
    }
    assert json.loads(put[3]) == {"data": "é"}
    assert (told["cursor"], told["last"]) == ("a/b", None)
    assert told["log"] == [{"event": {}}, {"cursor": "c", "complete": True}]
    assert told["problems"] == [
        [429, "d", 7],
        [401, "The server answered 401.", None],
        [0, "The server can't be reached. Check that it is running and that you are online.", None],
    ]
    assert told["events"] == ["signed-out"]
    assert re.fullmatch("[0-9a-f]{32}", told["key"])


@pytest.mark.skipif(shutil.which("node") is None, reason="there is no node on this machine's PATH")
def test_why_a_message_is_not_delivered_is_said_in_words():
    failed = {"number": 3, "at": "2026-01-31T11:59:00Z", "status": 500, "took_ms": 9, "error": None}
    refused = {**failed, "status": None, "error": "refused"}
    taken = {**failed, "status": 204}
    live, down = ({"state": state, "paused": None, "lag": 7, "last_error": "timeout"} for state in ("live", "down"))
    paused = {"state": "paused", "paused": "asked for", "lag": 7, "last_error": None}
    later = "2026-01-31T12:05:00Z"
    cases = [
        ({"state": "delivered", "attempts": [taken]}, None, {}, "Delivered 1 min ago by attempt 3 (HTTP 204, 9 ms)."),
        ({"state": "parked", "attempts": [refused]}, live, {}, "Attempt 3 failed (no answer: refused). Parked:"),
        ({"state": "retrying", "attempts": [failed], "next_attempt_at": later}, live, {}, "next attempt is in 5 min."),
        ({"state": "retrying", "attempts": [failed], "next_attempt_at": later}, paused, {}, "paused (asked for)"),
        (
            {"state": "pending", "attempts": []},
            paused,
            {},
            "The listener is paused (asked for). Resume it to continue.",
        ),
        ({"state": "pending", "attempts": []}, down, {}, "The listener is down (timeout)."),
        ({"state": "pending", "attempts": []}, {**live, "health": "down"}, {}, "The listener is down (timeout)."),
        ({"state": "delivered", "attempts": [{**taken, "took_ms": 0}]}, None, {}, "(HTTP 204, under 1 ms)"),
        ({"state": "delivered", "attempts": [{**taken, "took_ms": None}]}, None, {}, "(HTTP 204, not measured)"),
        ({"state": "pending", "attempts": []}, live, {}, "7 messages for this listener"),
        ({"state": "pending", "attempts": []}, live, {"deliver_at": later}, f"before {later} (in 5 min)"),
        ({"state": "pending", "attempts": []}, None, {}, "Waiting to be sent."),
        ({"state": "cancelled", "attempts": []}, None, {}, "Cancelled"),
        ({"state": "unknown", "attempts": []}, None, {}, "events in the log"),
    ]
    asked = [(delivery, listener, message) for delivery, listener, message, _ in cases]
    told = node(f"""
        import * as words from "{(FOLDER / "words.js").as_uri()}";
        const now = Date.parse("2026-01-31T12:00:00Z");
        console.log(JSON.stringify({{
          said: {json.dumps(asked)}.map((three) => words.deliverySentence(...three, now)),
          durations: [0.2, 0, 59, 60, 3661, 90000, NaN].map(words.duration),
          headers: words.headersText(words.headersOf("A: b:c\\n\\n x : y ")),
          indented: [words.indented("[1]"), words.indented("{{nonsense"), words.indented("12")],
          problems: [
            {{ status: 422, errors: [{{ pointer: "/name", detail: "is taken" }}] }},
            {{ status: 422, errors: [{{ pointer: "/a", detail: "Long." }}, {{ parameter: "b", detail: "is none" }}] }},
            {{ status: 429, message: "Too many attempts. Try again later.", retryAfterS: 7 }},
          ].map(words.problemWords),
        }}));
    """)
    for sentence, (*_, wanted) in zip(told["said"], cases, strict=True):
        assert wanted in sentence
    assert told["durations"] == ["200 ms", "0 s", "59 s", "1 min", "1 h 1 min", "1 d 1 h", "\u2013"]
    assert told["headers"] == "A: b:c\nx: y"
    assert told["indented"] == ["[\n  1\n]", None, None]
    assert told["problems"] == [
        "Name: is taken.",
        "A: Long. B: is none.",
        "Too many attempts. Try again in 7 s.",
    ]


@pytest.mark.skipif(shutil.which("node") is None, reason="there is no node on this machine's PATH")
def test_every_sentence_about_a_listener_is_true_of_its_state():
    well = {"state": "live", "health": "healthy", "paused": None, "recent_attempts": 60, "recent_failures": 0}
    bad = {**well, "health": "failing", "recent_failures": 60}
    silent = {**bad, "recent_attempts": 0, "recent_failures": 0, "last_failure_at": "2026-01-31T11:50:00Z"}
    accepts = "The listener accepts messages."
    cases = [
        (well, "healthy", [accepts]),
        ({**well, "recent_failures": 2}, "healthy", [accepts, "2 of 60 attempts in the last 5 minutes failed."]),
        (bad, "failing", ["Too many attempts fail: 60 of 60 attempts in the last 5 minutes failed."]),
        (silent, "failing", ["The last attempt failed 10 min ago."]),
        ({**bad, "health": "down"}, "down", ["The listener does not accept", "60 of 60 attempts"]),
        ({**bad, "health": "paused", "paused": "410"}, "paused", ["is paused (410).", "60 of 60 attempts"]),
        ({**well, "health": "replaying"}, "replaying", ["A replay to the listener is running."]),
        ({**well, "health": "new", "recent_attempts": 0}, "new", ["No attempt has ended yet."]),
        ({**well, "retrying": 1, "parked": 3}, "healthy", [accepts, "1 delivery failed", "3 deliveries parked:"]),
        ({"state": "down", "paused": None}, "down", ["The listener does not accept"]),
        ({"state": "live", "paused": None}, "live", []),
    ]
    told = node(f"""
        import * as words from "{(FOLDER / "words.js").as_uri()}";
        const now = Date.parse("2026-01-31T12:00:00Z");
        const asked = {json.dumps([one for one, *_ in cases])};
        console.log(JSON.stringify(asked.map((one) => [words.healthOf(one), words.healthSentences(one, now)])));
    """)
    for (state, said), (_, wanted, sentences) in zip(told, cases, strict=True):
        assert (state, len(said)) == (wanted, len(sentences))
        assert all(sentence in one for one, sentence in zip(said, sentences, strict=True)), said
    assert all(accepts not in said for state, said in told if state != "healthy")
    none = node(f"""
        import * as words from "{(FOLDER / "words.js").as_uri()}";
        console.log(JSON.stringify(["", "parked", "retrying", "pending"].map(words.noDeliveries)));
    """)
    assert len(set(none)) == 4
    assert all("minute" in sentence for sentence in (none[0], none[2])), (
        "those that failed just now are not in the list"
    )
    badges = (FOLDER / "console.css").read_text()
    colors = {
        state: color
        for states, color in re.findall(r"((?:\.state\.\w+,? ?)+){ background: var\(--(\w+)-paper", badges)
        for state in re.findall(r"\.state\.(\w+)", states)
    }
    shown = {str(health): colors.get(health) for health in Health}
    assert shown == {
        "healthy": "good",
        "down": "bad",
        "failing": "bad",
        "paused": "warn",
        "replaying": "warn",
        "new": None,
    }
