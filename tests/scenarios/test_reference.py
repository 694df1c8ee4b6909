"""The running server against its own OpenAPI document: Schemathesis asks what that allows, and what it does not.

No 5xx, no status and no body that the document does not tell of, nothing that is there after it was deleted."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from tests.scenarios.running import Running, clean_environment

CHECKS = (
    "not_a_server_error,status_code_conformance,content_type_conformance,response_headers_conformance,"
    "response_schema_conformance,use_after_free,ensure_resource_availability,unsupported_method,"
    "allow_header_conformance"
)  # not ignored_auth: it holds a bad session beside a good key against a request for which either will do
# Not the password of the examples: with that one they delete the account.
ACCOUNT = {"email": "ann@example.com", "password": "another horse battery"}


@pytest.mark.parametrize(
    ("time_s", "phases"),
    [
        (25, "examples,stateful"),
        pytest.param(900, "examples,coverage,fuzzing,stateful", marks=[pytest.mark.slow, pytest.mark.timeout(1200)]),
    ],
)
def test_the_server_keeps_to_its_document(tmp_path: Path, time_s: int, phases: str):
    with Running(tmp_path / "data") as server:
        url = server.url
        httpx.put(f"{url}/v1/accounts", json=ACCOUNT, timeout=60).raise_for_status()
        token = httpx.post(f"{url}/v1/sessions", json=ACCOUNT, timeout=60).raise_for_status().json()["session"]["token"]
        arguments = [
            *("run", f"{url}/v1/openapi.json", "--checks", CHECKS, "--continue-on-failure", "--no-shrink"),
            *("--max-time", str(time_s), "--phases", phases),
            *("-H", f"X-API-KEY: {server.api_key}", "-H", f"Authorization: Bearer {token}"),
        ]
        done = subprocess.run(
            [sys.executable, "-m", "schemathesis.cli", *arguments],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env=clean_environment(),
            timeout=time_s + 120,
            check=False,
        )
        assert done.returncode == 0, done.stdout[-20_000:] + done.stderr
        covered = re.search(r"API Links: +(\d+) covered", done.stdout)
        assert covered is not None, done.stdout[-20_000:]
        assert int(covered[1]) > 0
        assert not server.events("request.failed")
