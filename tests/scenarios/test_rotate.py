"""`everput rotate-sealing-key` on the data directory of a server, and a server that has lost its key."""

from __future__ import annotations

from pathlib import Path

import httpx

from broker.sealing import new_sealing_key
from tests.scenarios.running import Running, everput

LISTENER = {"name": "l", "notify_url": "http://127.0.0.1:8/", "liveness_url": "http://127.0.0.1:8/"}


def secret_of(server: Running, path: str) -> str:
    answer = httpx.get(f"{server.url}{path}/secret", headers={"x-api-key": server.api_key}, timeout=20)
    return answer.json()["secret"]


def test_a_servers_sealing_key_is_changed_while_it_is_stopped_and_a_lost_one_is_said(tmp_path: Path):
    data_dir = tmp_path / "data"
    key_file = data_dir / "sealing-key"
    with Running(data_dir) as server:
        url, headers = server.url, {"x-api-key": server.api_key}
        queue = httpx.put(f"{url}/v1/queues", json={"name": "q"}, headers=headers, timeout=20).json()["queue"]
        path = f"/v1/queues/{queue['id']}/listeners"
        made = httpx.put(f"{url}{path}", json=LISTENER, headers=headers, timeout=20).json()["listener"]
        path += f"/{made['id']}"
        assert "another `everput serve`" in everput("rotate-sealing-key", "--data-dir", str(data_dir)).stderr
        assert server.stop() == 0
    before = key_file.read_text()

    rotated = everput("rotate-sealing-key", "--data-dir", str(data_dir))
    assert (rotated.returncode, rotated.stdout) == (0, "encrypted the secrets of 1 listeners with the new key\n"), (
        rotated.stderr
    )
    after = key_file.read_text()
    assert after != before
    assert "," not in after
    with Running(data_dir) as server:
        assert secret_of(server, path) == made["secret"]
        assert server.stop() == 0

    key_file.write_text(new_sealing_key())
    lost = everput("serve", "--data-dir", str(data_dir), "--port", "0")
    assert lost.returncode == 2
    assert "none of the given sealing keys can decrypt" in lost.stderr
