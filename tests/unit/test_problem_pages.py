"""The pages of the problem types: each `type` that an answer can have leads to one."""

from __future__ import annotations

import re
from collections.abc import Iterator

import orjson
import pytest
from api_client import make_api, problem

from api import problems
from api.problem_pages import PROBLEM_TYPES, SAME_AS
from broker.errors import BrokerError

LINK = re.compile(r'(?:href|src)="([^"]+)"')


def kinds(of: type[BrokerError]) -> Iterator[type[BrokerError]]:
    """Yield all errors that the API answers with a status of their own."""
    for kind in of.__subclasses__():
        # The classes of the command line are no answers.
        if kind.__module__.startswith(("api.", "broker.")) and set(kind.__mro__) & set(problems._STATUS):
            yield kind
        yield from kinds(kind)


def status_of(kind: type[BrokerError]) -> int:
    error = kind.__new__(kind)  # without the arguments, which differ
    error.__dict__.update(pointer=None, parameter="p", header="h", allow="GET", retry_after_s=1)
    return problems.problem(error).status


def test_each_error_and_each_refusal_of_the_server_has_a_page_with_its_status():
    found = {kind.code: status_of(kind) for kind in kinds(BrokerError)}
    assert {"name-taken", "forbidden", "in-doubt", "wrong-cursor"} <= set(found)
    assert set(found) <= set(PROBLEM_TYPES)
    assert {code: PROBLEM_TYPES[code].status for code in found} == found
    internal = orjson.loads(problems.problem(RuntimeError()).body)["type"]
    refused = {orjson.loads(problems.framework_problem(status, "").body)["type"]: status for status in problems.TITLES}
    for path, status in {internal: 500, **refused}.items():
        code = path.removeprefix("/problems/")
        assert PROBLEM_TYPES[SAME_AS.get(code, code)].status == status, code


def test_no_page_is_of_a_type_that_no_answer_has():
    of_errors = {kind.code for kind in kinds(BrokerError)} | {"internal"}
    of_refusals = {problems.framework_problem(status, "").body for status in problems.TITLES}
    codes = of_errors | {orjson.loads(body)["type"].removeprefix("/problems/") for body in of_refusals}
    assert set(PROBLEM_TYPES) | set(SAME_AS) == codes
    assert not set(PROBLEM_TYPES) & set(SAME_AS)


@pytest.mark.parametrize("code", [*PROBLEM_TYPES, *SAME_AS])
async def test_a_page_says_what_it_means_why_it_happens_and_what_to_do(code: str):
    api = await make_api()
    page = await api.bare.get(f"/problems/{code}")
    assert (page.status_code, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert re.findall("<h2>(.*?)</h2>", page.text) == ["What it means", "Why it happens", "What to do"]
    one = PROBLEM_TYPES[SAME_AS.get(code, code)]
    assert all(text.endswith(".") for text in (one.means, one.why, one.remedy))
    assert f"HTTP status {one.status}" in page.text
    assert "`" not in page.text


async def test_the_list_leads_to_each_page_and_each_page_to_what_is_there():
    api = await make_api()
    listed = await api.bare.get("/problems")
    links = LINK.findall(listed.text)
    assert {f"problems/{code}" for code in PROBLEM_TYPES} <= set(links)
    for link in links:
        assert (await api.bare.get(f"/{link}")).status_code == 200
    page = await api.bare.get("/problems/refused")
    for link in LINK.findall(page.text):
        assert link.startswith("../")
        assert (await api.bare.get(f"/{link[3:]}")).status_code == 200


async def test_the_type_of_an_answer_is_the_path_of_its_page():
    api = await make_api()
    told = problem(await api.bare.get("/v1/queues"), 401)
    page = await api.bare.get(told["type"])
    assert page.status_code == 200
    assert "X-API-KEY" in page.text
    problem(await api.bare.get("/problems/unheard-of"), 404)
