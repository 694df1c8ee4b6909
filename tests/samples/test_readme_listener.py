"""The README's listener, run as a program of its own and sent requests over HTTP."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from broker.core.signing import Signer, secret_bytes, secret_text

README = Path(__file__).parents[2] / "README.md"
LAST = 'ThreadingHTTPServer(("127.0.0.1", 9000), Listener).serve_forever()'
ANY_PORT = 'server = ThreadingHTTPServer(("127.0.0.1", 0), Listener)\nprint(server.server_port, flush=True)\n'
SECRET = secret_text(b"k" * 32)
BODY = b'{"queue":{"id":"q","name":"orders"},"message":{"id":"m-1","name":"n","data":"one"}}'


@pytest.fixture(scope="module")
def listener() -> Iterator[str]:
    """The URL of the README's listener.py, which runs on a free port."""
    found = re.search(r"```python\n(import base64.*?)```", README.read_text(), re.DOTALL)
    assert found is not None
    assert LAST in found[1]
    program = found[1].replace(LAST, f"{ANY_PORT}server.serve_forever()")
    process = subprocess.Popen([sys.executable, "-c", program, SECRET], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    try:
        yield f"http://127.0.0.1:{int(process.stdout.readline())}"
    finally:
        process.kill()
        process.communicate()


def signed(sent_s: int, body: bytes = BODY) -> dict[str, str | bytes]:
    signature = Signer(secret_bytes(SECRET)).sign(b"m-1", b"%d" % sent_s, body).decode()
    return {"webhook-id": "m-1", "webhook-timestamp": str(sent_s), "webhook-signature": signature}


def answered(listener: str, headers: dict[str, str | bytes]) -> int:
    return httpx.post(listener, headers=headers, content=BODY, trust_env=False).status_code


def test_the_readme_listener_accepts_a_request_signed_now(listener):
    assert answered(listener, signed(int(time.time()))) == 204


@pytest.mark.parametrize("off_s", [-400, 400])
def test_the_readme_listener_refuses_a_signed_request_of_another_time(listener, off_s):
    assert answered(listener, signed(int(time.time()) + off_s)) == 401


def test_the_readme_listener_refuses_what_is_not_signed(listener):
    now_s = int(time.time())
    assert answered(listener, {}) == 401
    assert answered(listener, signed(now_s, b"another body")) == 401
    assert answered(listener, {**signed(now_s), "webhook-signature": b"v1,\xe9"}) == 401
    assert answered(listener, {**signed(now_s), "webhook-timestamp": "soon"}) == 401
