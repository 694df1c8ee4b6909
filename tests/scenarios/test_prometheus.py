"""The dashboard and the alert rules of deploy/ with a real Prometheus: rules load, queries have data."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from broker.kafka.ports import free_port
from tests.listeners import Listeners, until
from tests.scenarios.running import Running

DEPLOY = Path(__file__).parents[2] / "deploy"
RULES = DEPLOY / "prometheus" / "rules.yaml"
DASHBOARD = json.loads((DEPLOY / "grafana" / "everput.json").read_text())
CONFIGURATION = """
global: {{ scrape_interval: 1s, evaluation_interval: 1s }}
rule_files: ["{rules}"]
scrape_configs:
  - job_name: everput
    static_configs: [{{ targets: ["{target}"] }}]
"""

pytestmark = pytest.mark.skipif(shutil.which("prometheus") is None, reason="needs prometheus (Debian has a package)")


@contextmanager
def prometheus(folder: Path, target: str) -> Iterator[httpx.Client]:
    folder.mkdir()
    configuration = folder / "prometheus.yml"
    configuration.write_text(CONFIGURATION.format(rules=RULES, target=target))
    address = f"127.0.0.1:{free_port()}"
    options = [f"--config.file={configuration}", f"--storage.tsdb.path={folder}", f"--web.listen-address={address}"]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(["prometheus", *options], stderr=log)
    try:
        with httpx.Client(base_url=f"http://{address}/api/v1", timeout=20, trust_env=False) as client:
            yield client
    finally:
        process.terminate()
        process.wait(30)


def asked(client: httpx.Client, path: str, **query: str) -> Any:
    """Its answer; None while it does not answer yet."""
    try:
        answer = client.get(path, params=query)
    except httpx.TransportError:
        return None
    return answer.json()["data"] if answer.is_success else None


async def test_each_rule_loads_and_each_query_of_the_dashboard_has_data(tmp_path: Path):
    async with Listeners() as listeners:
        with Running(tmp_path / "data", "--port", "0", "--admin-port", "0") as server:
            await put_something(server, listeners)
            with prometheus(tmp_path / "prometheus", server.admin_url.removeprefix("http://")) as client:

                def healthy() -> bool:
                    groups = (asked(client, "/rules") or {"groups": []})["groups"]
                    rules = [rule for group in groups for rule in group["rules"]]
                    assert all(rule["health"] != "err" for rule in rules), rules
                    return bool(rules) and all(rule["health"] == "ok" for rule in rules)

                await until(healthy, what="all rules are evaluated")
                counted = 'sum by (listener) (everput_listener_attempts_total{outcome="delivered"})'

                def delivered() -> list[str]:
                    found = (asked(client, "/query", query=counted) or {"result": []})["result"]
                    return [one["value"][1] for one in found]

                await until(lambda: delivered() == ["20"], what="the listener that answers has 20 counted attempts")
                for panel in DASHBOARD["panels"]:
                    for target in panel["targets"]:
                        query = target["expr"].replace("$__rate_interval", "1m")
                        await until(
                            lambda query=query: (asked(client, "/query", query=query) or {"result": []})["result"],
                            what=f"{panel['title']}: data for {query}",
                        )


async def put_something(server: Running, listeners: Listeners) -> None:
    """Put messages to a queue with a listener that takes them and one that is not there."""
    async with httpx.AsyncClient(
        base_url=f"{server.url}/v1", headers={"x-api-key": server.api_key}, timeout=30
    ) as client:
        queue = (await client.put("/queues", json={"name": "orders"})).json()["queue"]["id"]
        for name, url in (("billing", listeners.url("a")), ("dead", f"http://127.0.0.1:{free_port()}/")):
            body = {"name": name, "notify_url": url, "liveness_url": url}
            (await client.put(f"/queues/{queue}/listeners", json=body)).raise_for_status()
        for number in range(20):
            (await client.put(f"/queues/{queue}/messages", json={"data": str(number)})).raise_for_status()
        await until(lambda: len(listeners.ids("a")) == 20, what="delivered")
