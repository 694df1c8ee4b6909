"""docs/security.md says what is so: which routes need no key, and the numbers of their bounds."""

from __future__ import annotations

import re
from pathlib import Path

from api_client import make_api
from starlette.routing import Route

from api import buckets, calls, clients, docs, oidc
from api.accounts import DEFAULT_LIMITS as LIMITS
from api.reference import OPEN, OPERATION_DOCS
from broker import passwords
from cli.processes import server

PAGE = (Path(__file__).parents[2] / "docs" / "security.md").read_text()


def rows(heading: str) -> dict[str, str]:
    """The rows of the table under this line, by what their first column names."""
    table = PAGE.partition(heading)[2].partition("\n\n")[2].partition("\n\n")[0]
    return {line.split("|")[1].strip(): line for line in table.splitlines()[2:]}


async def test_the_table_of_routes_without_a_key_has_each_of_them_and_no_other():
    open_routes = {f"{method} {path}" for (method, path), one in OPERATION_DOCS.items() if one.asks == OPEN}
    routes = [route for route in (await make_api()).app.routes if isinstance(route, Route)]
    open_routes |= {f"GET {route.path}" for route in routes if not route.path.startswith("/v1/")}
    named = set()
    for name in rows("These are the routes"):
        for found in re.findall(r"`(\w+ /[^`]*)`", name):
            with_files = "and its files" in name
            named |= {one for one in open_routes if one == found or (with_files and one.startswith(found + "/"))} or {
                found
            }
    assert named - {"GET /v1/openapi.json"} == open_routes - {"GET /v1/openapi.json"}


async def test_every_other_operation_is_refused_without_a_key():
    api = await make_api()
    for (method, path), doc in OPERATION_DOCS.items():
        if doc.asks != OPEN:
            answer = await api.bare.request(method, re.sub(r"{\w+}", "x", path), content=b"[")
            assert answer.status_code == 401, (method, path)


def test_the_bounds_are_those_of_the_code():
    connections, routes = rows("Each API process bounds"), rows("These are the routes")
    assert f"{server.HEAD_BYTES_MAX >> 10} KiB" in connections["a request's line and headers"]
    assert f"{server.FRAMING_BYTES_MAX >> 10} KiB" in connections["chunk extensions and trailers of a request"]
    assert (
        f"| {server.PIPELINED_MAX}; later"
        in connections["requests of a connection that wait for the answer to an earlier request"]
    )
    assert f"{docs.PIECE_BYTES >> 10} KiB of the document" in routes["`GET /v1/openapi.json`"]
    begun = routes["`POST /v1/sessions/oidc`"]
    assert f"{oidc.CLIENTS_AT_ONCE} at once for one client address, then 1 in {1 / oidc.CLIENTS_PER_S:g} s" in begun
    assert f"{oidc.ALL_AT_ONCE} for all, then {oidc.ALL_PER_S:g} a second" in begun
    times = connections["time for a whole request to arrive, and between requests"]
    assert f"{server.REQUEST_S:g} s, {server.KEEP_ALIVE_S} s" in times
    register, sign_in = routes["`PUT /v1/accounts`"], routes["`POST /v1/sessions`"]
    assert f"body {calls.SMALL_BYTES_MAX >> 10} KiB" in register
    assert f"body {calls.SMALL_BYTES_MAX >> 10} KiB" in sign_in
    assert f"{passwords.WAITING_MAX} wait" in register
    assert passwords.AT_ONCE == 2
    assert f"{passwords.JUDGED_CHARS_MAX} characters" in register
    assert f"{LIMITS.registrations_at_once} at once, then {LIMITS.registrations_per_s:g} a second" in register
    assert f"{LIMITS.clients_registrations_at_once} of one client address" in register
    assert f"{LIMITS.all_guesses_at_once} at once, then {LIMITS.all_guesses_per_s:g} a second" in sign_in
    assert f"{LIMITS.guesses_at_once} for one e-mail address" in sign_in
    assert f"{LIMITS.clients_guesses_at_once} for one client address" in sign_in
    about_networks = " ".join(
        PAGE.partition("**One network can't use up the limit of sign-ins")[2].partition("\n## ")[0].split()
    )
    for text in (
        f"up to {LIMITS.all_guesses_at_once // 2} attempts for each network, and {buckets.NAMES_MAX:,} networks",
        f"Every {LIMITS.recent_s / 60:g} minutes, the number of attempts of each network falls by one.",
        f"/{clients.IPV4_NETWORK_PREFIX} for IPv4, /{clients.IPV6_NETWORK_PREFIX} for IPv6",
    ):
        assert text in about_networks
