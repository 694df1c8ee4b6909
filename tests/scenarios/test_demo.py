"""`everput demo`, as a newcomer runs it, with few messages."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import AsyncExitStack
from pathlib import Path

import httpx
import pytest
from click.testing import CliRunner

from broker.core.signing import Signer, secret_bytes
from cli.app import everput as command
from cli.demo.demo import Demo
from tests.scenarios.running import clean_environment, everput, wait_until

BUNDLED = Path(__file__).parents[2] / "cli" / "demo" / "messages.jsonl"


def test_nothing_is_missing_although_a_listener_refused_and_a_worker_was_killed(tmp_path: Path):
    file = tmp_path / "messages"
    file.write_text("\n".join(f"message {number}\n" for number in range(60)))  # and empty lines, which are none
    (folder := tmp_path / "temporary").mkdir()
    done = everput("demo", str(file), "--pace-s", "2", TMPDIR=str(folder))
    assert done.returncode == 0, done.stdout + done.stderr
    for happened in ("mail refuses from now on", "kill -9 ", "started another worker", "mail is back"):
        assert happened in done.stdout
    for name in ("crm", "mail"):
        assert f"{name}: 60 put, 60 received, " in done.stdout
    assert "nothing is missing" in done.stdout
    (serve,) = re.findall(r"^ +(\S*everput) serve$", done.stdout, re.MULTILINE)
    assert shutil.which(serve) is not None
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("lost", [False, True])
def test_a_message_that_a_listener_did_not_get_is_told_and_is_exit_code_1(monkeypatch: pytest.MonkeyPatch, lost: bool):
    async def run(self: Demo, stack: AsyncExitStack) -> bool:
        """Its listeners and its verdict, and in between only what is sent here."""
        stack.push_async_callback(self._listeners.stop)
        await self._listeners.start()
        async with httpx.AsyncClient(trust_env=False) as client:
            for name, ids in {"crm": ["one", "two", "two"], "mail": ["one"] if lost else ["one", "two"]}.items():
                signer = Signer(secret_bytes(self._secrets[name]))
                for one in ids:
                    timestamp = str(int(time.time()))
                    headers = {"webhook-id": one, "webhook-timestamp": timestamp}
                    headers["webhook-signature"] = signer.sign(one.encode(), timestamp.encode(), b"{}").decode()
                    url = f"http://127.0.0.1:{self._listeners.ports[name]}/notify"
                    (await client.post(url, content=b"{}", headers=headers)).raise_for_status()
        self._put = {"one", "two"}
        return await self._verdict()

    monkeypatch.setattr(Demo, "run", run)
    done = CliRunner().invoke(command, ["demo"])
    assert "crm: 2 put, 2 received, 1 duplicates, 0 missing" in done.output
    assert f"mail: 2 put, {2 - lost} received, 0 duplicates, {int(lost)} missing" in done.output
    assert ("NOT everything arrived" in done.output) == lost
    assert ("nothing is missing" in done.output) != lost
    assert done.exit_code == int(lost)


def test_ctrl_c_leaves_neither_a_process_nor_a_file_behind(tmp_path: Path):
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "cli.app", "demo", "--messages", "1000", "--pace-s", "30"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=clean_environment(TMPDIR=str(tmp_path)),
    )
    wait_until(lambda: any("kafka.Kafka" in one for one in processes_about(tmp_path)), what="Kafka was started")
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode != 0
    assert "Traceback" not in stderr
    assert list(tmp_path.iterdir()) == []
    wait_until(lambda: not processes_about(tmp_path), what="its processes are gone")


def processes_about(folder: Path) -> list[str]:
    """The command lines of processes that name this folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if str(folder) in command:
            found.append(command)
    return found


def test_a_file_without_messages_is_a_clear_error(tmp_path: Path):
    (tmp_path / "empty").write_text("\n\n")
    done = everput("demo", str(tmp_path / "empty"))
    assert done.returncode == 2
    assert "holds no messages" in done.stderr


def test_the_bundled_messages_are_two_thousand_different_requests():
    lines = BUNDLED.read_text().splitlines()
    assert len(set(lines)) == len(lines) == 2000
    assert all('"request": "delete-account"' in text and '"userId": "' in text for text in lines)
