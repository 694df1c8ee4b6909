"""`everput serve` for real: ready, one server to a directory, what dies comes back, nothing is left behind."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from broker.core.circuit import TRIP_AFTER_NEW
from broker.kafka.ports import free_port
from broker.sealing import new_sealing_key
from cli.processes.first_start import EMAIL
from cli.processes.python_version import outdated
from tests.kafka_clients import sasl_variables
from tests.listeners import nobody
from tests.scenarios.running import STOPS_WITHIN_S, Running, alone, everput, is_running, said, wait_until


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with Running(tmp_path_factory.mktemp("serve") / "data", "--api-processes", "2") as running:
        assert running.url
        yield running


@pytest.fixture
def dead() -> Iterator[str]:
    with nobody() as port:
        yield f"http://127.0.0.1:{port}/"


def put_queue(server: Running, name: str) -> httpx.Response:
    return httpx.put(f"{server.url}/v1/queues", json={"name": name}, headers={"x-api-key": server.api_key}, timeout=20)


def puts_again(server: Running, name: str) -> int | None:
    """200 where a queue can be put, 422 where there is one of the name; an earlier try may have made it."""
    try:
        status = put_queue(server, name).status_code
    except httpx.TransportError:
        return None
    return None if status == 503 else status


def test_ready_is_the_only_line_on_stdout_and_the_api_answers(server: Running):
    assert server.stdout == [f"ready {server.url}"]
    assert put_queue(server, "first").status_code == 200


def test_the_banner_at_the_end_of_the_start_says_where_everything_is(server: Running):
    assert server.url
    wait_until(lambda: any("API key" in line for line in server.stderr), what="the banner")
    at = server.stderr.index("Everput is ready.")
    api, console, key = server.stderr[at + 1 : at + 4]
    assert server.url in api
    assert f"{server.url}/console" in console
    assert str(server.data_dir / "console-password") in console
    assert str(server.data_dir / "api-key") in key
    assert server.api_key not in "\n".join(server.stderr)


def test_commands_beside_the_data_directory_find_the_server_and_its_key(server: Running, tmp_path: Path):
    assert server.url
    done = everput("queues", "list", "--data-dir", str(server.data_dir), XDG_CONFIG_HOME=str(tmp_path))
    assert done.returncode == 0, done.stderr
    done = everput("status", "--data-dir", str(server.data_dir), XDG_CONFIG_HOME=str(tmp_path))
    assert done.returncode == 0, done.stderr


def test_a_server_that_only_this_machine_reaches_lets_listeners_be_on_it_and_on_no_other_private_network(
    tmp_path: Path,
):
    port = free_port()
    with Running(tmp_path / "data", "--kafka-port", str(port), allow=()) as server:
        assert server.url
        assert server.kafka_address == f"127.0.0.1:{port}"
        wait_until(lambda: any("Listeners may be on this machine" in one for one in server.stderr), what="it is said")
        assert put_queue(server, "loopback").status_code == 200
        create = ("listeners", "create", "loopback")
        where = ("--data-dir", str(server.data_dir))

        def urls(host: str) -> tuple[str, ...]:
            return ("--notify-url", f"http://{host}:8/n", "--liveness-url", f"http://{host}:8/l")

        for host in ("127.0.0.1", "localhost", "[::1]"):
            done = everput(*create, host, *urls(host), *where)
            assert done.returncode == 0, done.stderr
        for host in ("10.0.0.1", "192.168.0.1", "169.254.169.254", "[fd00::1]"):
            refused = everput(*create, host, *urls(host), *where)
            assert refused.returncode == 1
            assert "--allow-network" in refused.stderr
            assert "everput listen" in refused.stderr


def test_the_console_is_there_and_the_log_says_where(server: Running):
    password_file = server.data_dir / "console-password"
    assert server.events("console", url=f"{server.url}/console", email=EMAIL, password_in=str(password_file))
    who = {"email": EMAIL, "password": password_file.read_text().strip()}
    with httpx.Client(base_url=server.url, timeout=20, headers={"sec-fetch-site": "same-origin"}) as browser:
        assert browser.post("/v1/sessions", json=who).status_code == 200
        (organization,) = browser.get("/v1/organizations").json()["organizations"]
        browser.headers["everput-organization"] = organization["id"]
        assert browser.put("/v1/queues", json={"name": "by hand"}).status_code == 200
    mine = {"x-api-key": server.api_key}
    found = httpx.get(f"{server.url}/v1/queues", params={"name": "by hand"}, headers=mine, timeout=20)
    assert len(found.json()["queues"]) == 1
    page = httpx.get(f"{server.url}/console", timeout=20)
    script = httpx.get(f"{server.url}/console/main.js", timeout=20)
    assert (page.status_code, script.headers["content-type"]) == (200, "text/javascript; charset=utf-8")


SECRETS = ["api-key", "console-password", "sealing-key", "kafka/password"]


@pytest.mark.parametrize("name", SECRETS)
def test_the_keys_are_their_owners_alone_and_in_no_log_line(server: Running, name: str):
    path = server.data_dir / name
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert not any(path.read_text().strip() in text for text in server.stderr)
    assert server.events("api-key", path=str(server.data_dir / "api-key"))


def test_no_secret_is_on_a_command_line(server: Running):
    secrets = [(server.data_dir / name).read_text().strip() for name in SECRETS]
    for pid in server.alive():
        command = Path(f"/proc/{pid}/cmdline").read_text()
        assert not any(secret in command for secret in secrets)


def test_a_directory_that_others_can_write_to_is_a_clear_error(tmp_path: Path):
    tmp_path.chmod(0o777)
    refused = everput("serve", "--data-dir", str(tmp_path), "--port", "0")
    assert (refused.returncode, refused.stdout) == (2, "")
    said = f"everput: other users can write to the directory {tmp_path}: run `chmod go-w {tmp_path}`\n"
    assert refused.stderr.endswith(said)
    assert not list(tmp_path.iterdir())


def test_a_python_with_known_faults_is_warned_of_once(server: Running):
    assert server.url
    warnings = [line for line in server.stderr if "python.outdated" in line]
    assert [line.split()[2] for line in warnings] == ([] if outdated(sys.version_info[:3]) is None else ["serve"])


def test_a_second_server_on_the_same_directory_is_a_clear_error(server: Running):
    second = everput("serve", "--data-dir", str(server.data_dir), "--port", "0")
    assert second.returncode == 2
    assert second.stdout == ""
    assert "another `everput serve`" in second.stderr
    assert "Traceback" not in second.stderr


def test_a_killed_api_process_comes_back_and_the_other_answers_meanwhile(server: Running):
    server.kill("api-1")
    for number in range(10):
        assert put_queue(server, f"after the api {number}").status_code == 200


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can fork them")
def test_the_first_processes_share_the_memory_of_their_code(server: Running):
    """A process that was started again has no such memory in common with others."""
    pid = server.pid_of("api-2")
    shared = re.search(r"Shared_Dirty: +([0-9]+) kB", Path(f"/proc/{pid}/smaps_rollup").read_text())
    assert shared is not None
    assert int(shared[1]) > 10_000
    server.kill("api-2")
    assert server.pid_of("api-2") != pid
    assert Path(f"/proc/{server.pid_of('api-2')}/comm").read_text() == "api-2\n"


def test_a_killed_worker_comes_back(server: Running):
    server.kill("worker-1")
    assert server.process.poll() is None


def test_the_operator_makes_an_account_resets_a_password_and_lists_all_by_the_data_directory(server: Running):
    where = ("--data-dir", str(server.data_dir))
    listed = [json.loads(line) for line in everput("accounts", "list", "--json", *where).stdout.splitlines()]
    first = next(account for account in listed if account["email"] == EMAIL)
    organizations = [json.loads(one) for one in everput("organizations", "list", "--json", *where).stdout.splitlines()]
    own = next(one for one in organizations if one["made_by"] == "shell")
    assert (own["members"], [one["id"] for one in first["organizations"]]) == ([f"{EMAIL} (owner)"], [own["id"]])
    made = everput("init", "--email", "operator@example.com", *where, EVERPUT_PASSWORD="correct horse battery")
    assert made.returncode == 0, made.stderr
    found = httpx.get(f"{server.url}/v1/organizations", headers={"x-api-key": made.stdout.strip()}, timeout=20).json()
    assert [one["id"] for one in found["organizations"]] != [own["id"]]
    reset = everput("accounts", "reset-password", EMAIL, *where)
    assert reset.returncode == 0, reset.stderr
    who = {"email": EMAIL, "password": reset.stdout.strip()}
    assert [httpx.post(f"{server.url}/v1/sessions", json=who, timeout=20).status_code for _ in range(2)] == [200, 401]


def test_each_process_also_runs_alone_on_an_existing_kafka(server: Running, tmp_path: Path):
    options = ["--kafka", server.kafka_address, "--topic-prefix", "alone.", "--partitions", "2", "--replication", "1"]
    options += ["--data-dir", str(tmp_path), "--flush-each-batch"]
    sasl = sasl_variables(server.kafka)
    assert "no sealing key" in everput("worker", *options, **sasl).stderr

    who = {"email": "ann@example.com", "password": "correct horse battery"}
    init = ("init", *options, "--email", who["email"])
    made = everput(*init, EVERPUT_PASSWORD=who["password"], **sasl)
    assert made.returncode == 0, made.stderr
    assert "No account has" in everput(*init, EVERPUT_PASSWORD="something else", **sasl).stderr
    sealed = {"EVERPUT_SEALING_KEY": new_sealing_key(), **sasl}
    with alone("worker", *options, **sealed) as worker, alone("api", "--port", "0", *options, **sealed) as api:
        assert said(worker) == "ready worker"
        url = said(api).removeprefix("ready ")
        headers = {"x-api-key": made.stdout.strip()}
        assert httpx.put(f"{url}/v1/queues", json={"name": "alone"}, headers=headers, timeout=20).status_code == 200
        token = httpx.post(f"{url}/v1/sessions", json=who, timeout=20).json()["session"]["token"]
        found = httpx.get(f"{url}/v1/organizations", headers={"authorization": f"Bearer {token}"}, timeout=20)
        assert [one["name"] for one in found.json()["organizations"]] == ["default"]
        for process in (api, worker):
            process.terminate()
            assert process.wait(STOPS_WITHIN_S) == 0


def test_a_killed_kafka_comes_back_on_the_same_port_with_everything_in_it(server: Running):
    assert put_queue(server, "before kafka").status_code == 200
    address = server.kafka_address
    server.kill("kafka")
    assert server.kafka_address == address
    assert wait_until(lambda: puts_again(server, "after kafka"), what="queues can be put again") in (200, 422)
    assert wait_until(lambda: puts_again(server, "before kafka"), what="by either process") == 422


def test_start_stop_and_start_again(tmp_path: Path):
    data_dir = tmp_path / "data"
    with Running(data_dir) as first:
        assert first.url
        key = first.api_key
        assert put_queue(first, "kept").status_code == 200
        assert first.stop() == 0
        assert not first.alive()
    with Running(data_dir) as second:
        assert second.url
        assert second.api_key == key
        assert put_queue(second, "kept").status_code == 422

        wait_until(lambda: len(second.alive()) == 3, what="all three run")
        pids = second.alive()
        second.process.kill()
        second.process.wait()
        wait_until(lambda: not any(is_running(pid) for pid in pids), what="all ended with the supervisor")
    third = everput("serve", "--data-dir", str(data_dir), "--port", "0", "--partitions", "4")
    assert third.returncode == 2, "what a child can't start with ends the server"
    assert "everput: " in third.stderr
    assert "partitions" in third.stderr
    assert "Traceback" not in third.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_before_it_is_ready_leaves_nothing_behind(tmp_path: Path, number: signal.Signals):
    with Running(tmp_path / "data") as server:
        wait_until(lambda: server.events("process.started", process="worker-1"), what="the worker was started")
        server.process.send_signal(number)
        if number == signal.SIGHUP:  # a shell tells it again
            wait_until(lambda: server.events("stopping"), what="stopping")
            server.process.send_signal(number)
        assert server.stopped() == 0
        assert not server.alive()


def test_a_second_signal_ends_it_at_once(tmp_path: Path):
    with Running(tmp_path / "data") as server:
        wait_until(lambda: server.events("process.started", process="worker-1"), what="the worker was started")
        os.kill(server.pid_of("api-1"), signal.SIGSTOP)  # it will not stop when asked to
        server.process.terminate()
        wait_until(lambda: server.events("stopping"), what="stopping")
        os.kill(server.process.pid, signal.SIGINT)
        assert server.process.wait(60) == 1  # 0 were the end in order
        wait_until(lambda: not server.alive(), what="nothing is left")


def test_a_port_in_use_is_a_clear_error(tmp_path: Path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ended = everput("serve", "--data-dir", str(tmp_path / "data"), "--port", str(port))
    assert ended.returncode == 2
    assert f"everput: can't listen on 127.0.0.1 port {port}" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_what_keeps_a_process_from_starting_ends_the_server_with_the_reason(tmp_path: Path):
    ended = everput("serve", "--data-dir", str(tmp_path / "data"), "--port", "0", EVERPUT_SEALING_KEY="nonsense")
    assert ended.returncode == 2
    assert "the sealing key must be 32 bytes" in ended.stderr
    assert "Traceback" not in ended.stderr


def samples(server: Running, name: str) -> dict[tuple[tuple[str, str], ...], float]:
    """By labels, from one scrape."""
    text = httpx.get(server.admin_url + "/metrics", timeout=20).raise_for_status().text
    return {
        tuple(sorted(one.labels.items())): one.value
        for family in text_string_to_metric_families(text)
        for one in family.samples
        if one.name == name
    }


def test_every_metric_that_the_dashboard_and_the_alerts_ask_for_is_there(server: Running):
    text = "".join(path.read_text() for path in sorted((Path(__file__).parents[2] / "deploy").rglob("*.*")))
    wanted = set(re.findall(r"\beverput_[a-z_]+", text))
    assert len(wanted) > 15
    put_queue(server, "on the dashboard").raise_for_status()

    scraped = httpx.get(server.admin_url + "/metrics", timeout=20).raise_for_status().text
    there = {family.name for family in text_string_to_metric_families(scraped)}  # of a counter without its _total
    assert {name.removesuffix("_bucket").removesuffix("_total") for name in wanted} <= there


def test_requests_are_counted_by_route_and_status_without_what_strangers_send(server: Running):
    def counted(method: str, route: str, status: int) -> float:
        wanted = {("method", method), ("route", route), ("status", str(status))}
        found = samples(server, "everput_requests_total")
        return sum(value for labels, value in found.items() if wanted <= set(labels))

    before = counted("PUT", "/v1/queues", 200), counted("PUT", "/v1/queues", 401), counted("other", "other", 404)
    put_queue(server, "counted").raise_for_status()
    assert httpx.put(f"{server.url}/v1/queues", json={"name": "x"}, headers={"x-api-key": "no"}).status_code == 401
    assert httpx.get(f"{server.url}/v1/nothing/secret-text").status_code == 404
    assert httpx.request("BREW", f"{server.url}/v1/queues").status_code in (400, 405)
    now = counted("PUT", "/v1/queues", 200), counted("PUT", "/v1/queues", 401), counted("other", "other", 404)
    assert [after - earlier for after, earlier in zip(now, before, strict=True)] == [1, 1, 1]
    scraped = httpx.get(server.admin_url + "/metrics", timeout=20).text
    assert "secret-text" not in scraped
    assert "BREW" not in scraped


def test_one_scrape_tells_of_puts_deliveries_and_the_listener_that_lags(server: Running, dead: str):
    queue = put_queue(server, "metered").json()["queue"]["id"]
    url = f"{server.url}/v1/queues/{queue}"
    headers = {"x-api-key": server.api_key}
    body = {"name": "dead", "notify_url": dead, "liveness_url": dead}
    listener = httpx.put(f"{url}/listeners", json=body, headers=headers, timeout=20).json()["listener"]["id"]
    for number in range(9):
        httpx.put(f"{url}/messages", json={"data": str(number)}, headers=headers, timeout=20).raise_for_status()
    labels = (("listener", listener), ("process", "worker-1"), ("queue", queue))
    wait_until(lambda: samples(server, "everput_listener_lag_messages").get(labels) == 9, what="9 are behind")
    wait_until(lambda: samples(server, "everput_listener_lag_seconds").get(labels, 0) > 0, what="and have an age")
    wait_until(
        lambda: (
            samples(server, "everput_attempts_total").get(
                (("answer", "none"), ("outcome", "failed"), ("process", "worker-1")), 0
            )
            >= TRIP_AFTER_NEW
        ),
        what="the attempts are counted at a checkpoint",
    )
    wait_until(
        lambda: samples(server, "everput_listeners").get((("process", "worker-1"), ("state", "down"))) == 1,
        what="its circuit is open",
    )
    # One that is asked and does not answer soon is missing from the scrape.
    wait_until(lambda: sum(samples(server, "everput_put_durable_seconds_count").values()) >= 9, what="puts")
    wait_until(
        lambda: samples(server, "everput_partitions_owned") == {(("process", "worker-1"),): 8}, what="partitions"
    )
    wait_until(
        lambda: samples(server, "everput_checkpoint_seconds_count").get((("process", "worker-1"),), 0) > 0,
        what="a checkpoint",
    )
    all_up = {(("process", one),): 1 for one in ("api-1", "api-2", "worker-1")}
    wait_until(lambda: samples(server, "everput_up") == all_up, what="all are up")
    wait_until(lambda: len(samples(server, "process_resident_memory_bytes")) == 3, what="the memory of each")
    resident = samples(server, "process_resident_memory_bytes")
    assert all(1 << 20 < size < 150 << 20 for size in resident.values()), "more than is promised at rest"
    wait_until(
        lambda: httpx.get(server.admin_url + "/health/ready", timeout=20).status_code == 200, what="all are ready"
    )
    assert httpx.get(server.admin_url + "/health/live", timeout=20).status_code == 200


def test_status_says_what_is_wrong_and_its_exit_code_does(server: Running, dead: str):
    def status(*arguments: str) -> tuple[int, dict]:
        given = ("--url", server.url, "--key", server.api_key, "--admin", server.admin_url)
        done = everput("status", "watched", *given, "--json", *arguments)
        assert done.returncode in (0, 1), done.stderr
        return done.returncode, json.loads(done.stdout)

    queue = put_queue(server, "watched").json()["queue"]["id"]
    url = f"{server.url}/v1/queues/{queue}"
    headers = {"x-api-key": server.api_key}
    body = {"name": "dead", "notify_url": dead, "liveness_url": dead}
    httpx.put(f"{url}/listeners", json=body, headers=headers, timeout=20).raise_for_status()

    def is_well() -> dict | None:
        code, seen = status()
        well = (code, seen["ok"], [row["state"] for row in seen["listeners"]]) == (0, True, ["live"])
        return seen if well else None

    seen = wait_until(is_well, what="status says that all is well")
    assert [row["process"] for row in seen["processes"]] == ["api-1", "api-2", "worker-1"]
    for number in range(6):
        httpx.put(f"{url}/messages", json={"data": str(number)}, headers=headers, timeout=20).raise_for_status()

    def is_down() -> bool:
        code, seen = status()
        row = seen["listeners"][0]
        down = code == 1 and not seen["ok"]
        return down and (row["state"], row["lag"], row["last_error"]) == ("down", 6, "refused") and row["pending_s"] > 0

    wait_until(is_down, what="status says that it is down, with an age")
