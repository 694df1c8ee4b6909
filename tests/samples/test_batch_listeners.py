"""The listeners of docs/batches.md, run as programs of their own and sent signed requests over HTTP."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import orjson
import pytest

from broker.core.signing import Signer, secret_bytes, secret_text

PAGE = (Path(__file__).parents[2] / "docs" / "batches.md").read_text()
SECRET = secret_text(b"k" * 32)
ANY_PORT = {
    "python": (
        'ThreadingHTTPServer(("127.0.0.1", 9000), Listener).serve_forever()',
        """server = ThreadingHTTPServer(("127.0.0.1", 0), Listener)
print(server.server_port, flush=True)
server.serve_forever()""",
    ),
    "js": (
        "server.listen(9000, '127.0.0.1')",
        "server.listen(0, '127.0.0.1', () => console.log(server.address().port))",
    ),
}
COMMANDS = {
    "python": [sys.executable, "-c"],
    "js": ["node", "--input-type=module", "--eval"],
}


@pytest.fixture(scope="module", params=["python", "js"])
def listener(request: pytest.FixtureRequest) -> Iterator[str]:
    """The URL of a listener of the page, which runs on a free port."""
    language = request.param
    command = COMMANDS[language]
    if shutil.which(command[0]) is None:
        pytest.skip(f"there is no {command[0]} on this machine's PATH")
    (program,) = re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    last, any_port = ANY_PORT[language]
    assert last in program
    if language == "js":  # with --eval, process.argv has no name of a file
        program = program.replace("process.argv[2]", "process.argv[1]")
    program = program.replace(last, any_port)
    process = subprocess.Popen([*command, program, SECRET], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    try:
        yield f"http://127.0.0.1:{int(process.stdout.readline())}"
    finally:
        process.kill()
        process.communicate()


def element(message_id: str, data: str) -> dict[str, object]:
    message = {"id": message_id, "name": "n", "data": data}
    body = {"queue": {"id": "q", "name": "orders"}, "message": message}
    return {"id": message_id, "content_type": "application/json", "attempt": 1, "body": body}


BODY = orjson.dumps([element("m-1", "ü"), element("m-2", "poison"), element("m-3", "three")])


def signed(sent_s: int, body: bytes = BODY) -> dict[str, str]:
    signature = Signer(secret_bytes(SECRET)).sign(b"batch_1", b"%d" % sent_s, body).decode()
    return {"webhook-id": "batch_1", "webhook-timestamp": str(sent_s), "webhook-signature": f"v1,AAAA {signature}"}


def answer(listener: str, headers: dict[str, str], body: bytes = BODY) -> httpx.Response:
    return httpx.post(listener, headers={**headers, "everput-batch": "3"}, content=body, trust_env=False)


def test_a_batch_is_accepted_but_for_the_messages_that_the_listener_can_not_store(listener):
    for body, failed in ((BODY, ["m-2"]), (orjson.dumps([element("m-4", "four")]), [])):
        response = answer(listener, signed(int(time.time()), body), body)
        assert (response.status_code, response.json()) == (200, {"failed": failed})
    assert httpx.get(listener, trust_env=False).status_code == 204


def test_a_batch_that_is_altered_old_or_not_signed_is_refused(listener):
    now_s = int(time.time())
    refused = (
        ({}, BODY),
        (signed(now_s), BODY + b" "),
        (signed(now_s - 400), BODY),
        (signed(now_s + 400), BODY),
        ({**signed(now_s), "webhook-id": "batch_2"}, BODY),
        ({**signed(now_s), "webhook-timestamp": "soon"}, BODY),
    )
    for headers, body in refused:
        assert answer(listener, headers, body).status_code == 401
