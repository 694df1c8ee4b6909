"""The commands that ask the API, as people and scripts run them, against a server of this process."""

from __future__ import annotations

import asyncio
import re
import socket
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from ipaddress import ip_network
from pathlib import Path

import orjson
import pytest
from api_client import make_api
from click.testing import CliRunner, Result

from broker.commands.listing import STATES
from broker.commands.organizations import SCOPES
from broker.core.signing import secret_text
from cli.app import everput
from cli.commands.messages import command as messages_command
from cli.processes.server import Server
from cli.short_ids import short_id

URLS = ["--notify-url", "http://127.0.0.1:8/n", "--liveness-url", "http://127.0.0.1:8/l"]
Run = Callable[..., Result]


@pytest.fixture(scope="module")
def run() -> Iterator[Run]:
    """Runs a command with a key of all scopes."""
    listening = socket.create_server(("127.0.0.1", 0))
    started = threading.Event()
    held: dict[str, object] = {}

    async def serve() -> None:
        api = await make_api(allow_networks=(ip_network("127.0.0.0/8"),))
        held["key"] = await api.key_with(SCOPES)
        held["server"] = server = Server(api.app, accepts=started.set)
        await server.serve(sockets=[listening])

    thread = threading.Thread(target=asyncio.run, args=[serve()])
    thread.start()
    assert started.wait(30)
    where = {"EVERPUT_URL": f"http://127.0.0.1:{listening.getsockname()[1]}", "EVERPUT_API_KEY": str(held["key"])}

    def invoke(*arguments: str, code: int = 0, **environment: str) -> Result:
        result = CliRunner().invoke(everput, arguments, env={**where, **environment})
        assert result.exit_code == code, (result.output, result.exception)
        return result

    yield invoke
    held["server"].should_exit = True
    thread.join()


def told(result: Result) -> list[dict]:
    """The lines of JSON."""
    return [orjson.loads(line) for line in result.stdout.splitlines()]


def test_a_queue_is_made_shown_listed_renamed_and_deleted(run: Run):
    (made,) = told(run("queues", "create", "orders", "--json"))
    assert told(run("queues", "get", "orders", "--json")) == [made]
    now = {"health": {}, "parked": 0, "retrying": 0, "lag": 0, "oldest_pending_at": None}
    assert {**made, **now} in told(run("queues", "list", "--json"))
    assert "orders" in run("queues", "list").stdout
    assert "orders" in run("queues", "get", made["id"]).stdout
    run("queues", "rename", "orders", "others")
    assert run("queues", "delete", "others", "--yes").stdout == f"deleted the queue others {made['id']}\n"
    missing = run("queues", "get", made["id"], code=1)
    assert missing.stderr.startswith("everput: no queue that the API key can read has the name or ID")


def test_put_warns_when_the_queue_has_no_listeners(run: Run, tmp_path: Path):
    (lines := tmp_path / "lines").write_text("one\n")
    warning = "the queue unheard has no listeners; nobody gets these messages unless a replay sends them\n"
    assert run("put", "--create", "unheard", str(lines)).stderr.startswith(warning)
    assert run("put", "--quiet", "unheard", str(lines)).stderr == ""
    run("listeners", "create", "unheard", "billing", *URLS)
    assert "no listeners" not in run("put", "unheard", str(lines)).stderr


def test_a_key_that_may_only_put_puts_without_the_warning(run: Run, tmp_path: Path):
    (lines := tmp_path / "lines").write_text("one\n")
    (made,) = told(run("queues", "create", "put-only", "--json"))
    (key,) = told(run("keys", "create", "put-only", "--scope", "messages:put", "--json"))
    said = run("put", made["id"], str(lines), EVERPUT_API_KEY=key["secret"]).stderr
    assert said.startswith("1 put in ")


def test_a_listener_is_made_shown_changed_paused_and_deleted(run: Run):
    run("queues", "create", "listened")
    settings = ["--max-in-flight", "3", "--header", "X-Team: a:b"]
    (made,) = told(run("listeners", "create", "listened", "billing", *URLS, *settings, "--json"))
    assert made["secret"].startswith("whsec_")
    assert (made["max_in_flight"], set(made["headers"])) == (3, {"X-Team"})
    (changed,) = told(run("listeners", "update", "listened", "billing", "--name", "bills", "--json"))
    assert (changed["name"], changed["max_in_flight"]) == ("bills", 3)
    (queue,) = [one for one in told(run("queues", "list", "--json")) if one["name"] == "listened"]
    assert (queue["health"], queue["parked"], queue["retrying"]) == ({"new": 1}, 0, 0)
    assert "new: 1" in run("queues", "list").stdout
    (listed,) = told(run("listeners", "list", "listened", "--json"))
    assert {**listed, **changed} == listed
    (paused,) = told(run("listeners", "pause", "listened", "bills", "--json"))
    assert paused["paused"]
    (resumed,) = told(run("listeners", "resume", "listened", "bills", "--json"))
    assert resumed["paused"] is None
    assert told(run("listeners", "secret", "listened", "bills", "--json"))[0]["secret"] == made["secret"]
    rotated = told(run("listeners", "rotate-secret", "listened", "bills", "--json"))[0]["secret"]
    assert rotated != made["secret"]
    assert "refused" in run("listeners", "test", "listened", "bills", code=1).stdout
    got = run("listeners", "get", "listened", "bills").stdout
    assert "bills" in got
    rows = [line.split() for line in got.splitlines()]
    assert [row for row in rows if row[0] in ("state", "health", "circuit")] == [["state", "new"], ["circuit", "live"]]
    deleted = run("listeners", "delete", "listened", made["id"], "--yes").stdout
    assert deleted == f"deleted the listener bills {made['id']}\n"
    assert run("listeners", "list", "listened", "--json").stdout == ""


def test_a_limit_is_set_lifted_and_left(run: Run):
    run("queues", "create", "limited")
    limits = ["--rate-per-s", "2.5", "--max-attempts", "3", "--retry-first-ms", "200", "--retry-max-s", "60"]
    (made,) = told(run("listeners", "create", "limited", "slow", *URLS, *limits, "--json"))
    assert (made["rate_per_s"], made["max_attempts"], made["retry_first_ms"], made["retry_max_s"]) == (2.5, 3, 200, 60)
    (lifted,) = told(run("listeners", "update", "limited", "slow", "--max-attempts", "none", "--json"))
    assert (lifted["rate_per_s"], lifted["max_attempts"]) == (2.5, None)
    refused = run("listeners", "update", "limited", "slow", "--rate-per-s", "much", code=2)
    assert "'much' is neither a number nor none" in refused.stderr


def test_batches_are_turned_on_changed_and_turned_off(run: Run):
    run("queues", "create", "batched")
    (made,) = told(run("listeners", "create", "batched", "bulk", *URLS, "--batch-messages", "500", "--json"))
    assert made["batch"] == {"max_messages": 500, "max_bytes": 1 << 20, "wait_ms": 100}
    (kept,) = told(run("listeners", "update", "batched", "bulk", "--max-in-flight", "2", "--json"))
    assert kept["batch"] == made["batch"]
    limits = ["--batch-bytes", "2048", "--batch-wait-ms", "0"]
    (changed,) = told(run("listeners", "update", "batched", "bulk", *limits, "--json"))
    assert changed["batch"] == {"max_messages": 100, "max_bytes": 2048, "wait_ms": 0}
    for shown in (run("listeners", "get", "batched", "bulk"), run("show", "queue", "batched")):
        assert re.search(r"batch +max_messages:? 100, max_bytes:? 2048, wait_ms:? 0", shown.stdout), shown.stdout
    run("listeners", "update", "batched", "bulk", "--batch-messages", "none", *limits, code=2)
    refused = run("listeners", "update", "batched", "bulk", "--batch-messages", "1", code=1)
    assert "/batch/max_messages" in refused.stderr
    (off,) = told(run("listeners", "update", "batched", "bulk", "--batch-messages", "none", "--json"))
    assert off["batch"] is None


def test_a_secret_of_ones_own_comes_from_a_file(run: Run, tmp_path: Path):
    run("queues", "create", "signed")
    first, second = (secret_text(byte * 32) for byte in (b"a", b"b"))
    (tmp_path / "first").write_text(f"{first}\n")
    (tmp_path / "second").write_text(second)
    own = "--secret-file", str(tmp_path / "first")
    assert told(run("listeners", "create", "signed", "own", *URLS, *own, "--json"))[0]["secret"] == first
    own = "--secret-file", str(tmp_path / "second")
    assert told(run("listeners", "rotate-secret", "signed", "own", *own, "--json"))[0]["secret"] == second


def test_a_message_is_put_listed_and_shown_and_put_once_with_a_key(run: Run):
    run("queues", "create", "filled")
    (first,) = told(run("messages", "put", "filled", "ü", "--idempotency-key", "k", "--json"))
    assert told(run("messages", "put", "filled", "ü", "--idempotency-key", "k", "--json")) == [first]
    (listed,) = told(run("messages", "list", "filled", "--json"))
    assert (listed["id"], listed["data"]) == (first["id"], "ü")
    (shown,) = told(run("messages", "get", "filled", first["id"], "--json"))
    assert shown["data"] == "ü"
    assert "ü" in run("messages", "list", "filled").stdout
    assert told(run("messages", "update", "filled", first["id"], "new", "--json"))[0]["data"] == "new"
    assert told(run("messages", "get", "filled", first["id"], "--json"))[0]["data"] == "new"
    run("messages", "delete", "filled", first["id"], "--yes")
    run("messages", "get", "filled", first["id"], code=1)


def test_a_key_is_made_listed_shown_and_revoked(run: Run):
    (made,) = told(run("keys", "create", "deploy", "--scope", "queues", "--json"))
    assert made["secret"].startswith("evp_")
    assert made["id"] in {key["id"] for key in told(run("keys", "list", "--json"))}
    run("queues", "list", EVERPUT_API_KEY=made["secret"])
    run("keys", "revoke", made["id"], "--yes")
    revoked = run("queues", "list", code=2, EVERPUT_API_KEY=made["secret"])
    assert "the API key was refused: 401" in revoked.stderr
    run("keys", "get", made["id"], code=1)
    (queue,) = told(run("queues", "create", "for one key", "--json"))
    limits = ("--scope", "messages:put", "--queue", "for one key", "--expires", "2h")
    (made,) = told(run("keys", "create", "publisher", *limits, "--json"))
    assert (made["scopes"], made["queues"]) == (["messages:put"], [queue["id"]])
    left = datetime.fromisoformat(made["expires_at"]) - datetime.now(UTC)
    assert timedelta(hours=1) < left <= timedelta(hours=2)
    assert made["expires_at"] in run("keys", "list").stdout
    run("messages", "put", queue["id"], "x", EVERPUT_API_KEY=made["secret"])
    assert "lacks the scope" in run("queues", "list", code=2, EVERPUT_API_KEY=made["secret"]).stderr
    shown = run("show", "queue", "for one key", code=2, EVERPUT_API_KEY=made["secret"]).stderr
    assert "lacks the scope 'queues:read'" in shown
    missing = run("keys", "create", "none", "--queue", "no such queue", code=1)
    assert "no queue that the API key can read has the name or ID" in missing.stderr
    refused = run("queues", "list", code=2, EVERPUT_API_KEY=made["secret"])
    assert "the API key has no right to do this: 403" in refused.stderr
    assert made["secret"] not in refused.stderr


def test_messages_are_listed_by_state_listener_name_key_and_text(run: Run):
    run("queues", "create", "searched")
    run("listeners", "create", "searched", "billing", *URLS)
    run("messages", "put", "searched", "1", "--name", "first", "--ordering-key", "customer-1")
    run("messages", "put", "searched", "2", "--name", "second")
    for filters, names in (
        (("--state", "pending", "--listener", "billing"), ["second", "first"]),
        (("--state", "parked"), []),
        (("--name", "second"), ["second"]),
        (("--ordering-key", "customer-1"), ["first"]),
        (("--search", "CUSTOMER"), ["first"]),
    ):
        found = told(run("messages", "list", "searched", *filters, "--json"))
        assert sorted(one["name"] for one in found) == sorted(names), filters
    (one,) = told(run("messages", "list", "searched", "--name", "first", "--deliveries", "--json"))
    assert [(row["name"], row["state"]) for row in one["listeners"]] == [("billing", "pending")]
    assert "billing: pending" in run("messages", "list", "searched", "--deliveries").stdout
    assert set(offered_states()) == set(STATES)
    run("messages", "list", "searched", "--listener", "nobody", code=1)


def offered_states() -> list[str]:
    """The states that `everput messages list` offers."""
    (option,) = [one for one in messages_command.commands["list"].params if one.name == "state"]
    return list(option.type.choices)


def test_a_short_id_is_taken_for_the_whole_one(run: Run):
    (queue,) = told(run("queues", "create", "short", "--json"))
    (listener,) = told(run("listeners", "create", "short", "l", *URLS, "--json"))
    (key,) = told(run("keys", "create", "short", "--scope", "queues", "--json"))
    short = [short_id(one["id"]) for one in (queue, listener, key)]
    assert [len(one) for one in short] == [22] * 3
    assert told(run("queues", "get", short[0], "--json"))[0]["id"] == queue["id"]
    assert told(run("show", "queue", short[0], "--json"))[0]["queue"]["id"] == queue["id"]
    assert told(run("status", short[0], "--json"))[0]["listeners"][0]["queue"] == "short"
    assert told(run("listeners", "get", *short[:2], "--json"))[0]["id"] == listener["id"]
    assert told(run("keys", "get", short[2], "--json"))[0]["id"] == key["id"]
    run("keys", "revoke", short[2], "--yes")
    (named,) = told(run("queues", "create", short[2], "--json"))  # a name that could be a short id
    assert told(run("queues", "get", short[2], "--json"))[0]["id"] == named["id"]


def test_a_key_for_messages_alone_uses_a_queue_by_its_id(run: Run, tmp_path: Path):
    (queue,) = told(run("queues", "create", "by id", "--json"))
    (key,) = told(run("keys", "create", "publisher", "--scope", "messages", "--json"))
    mine = {"EVERPUT_API_KEY": key["secret"]}
    (put,) = told(run("messages", "put", queue["id"], "x", "--json", **mine))
    assert told(run("messages", "get", queue["id"], put["id"], "--json", **mine))[0]["data"] == "x"
    assert [one["id"] for one in told(run("messages", "list", queue["id"], "--json", **mine))] == [put["id"]]
    (tmp_path / "lines").write_text("one\ntwo\n")
    run("put", queue["id"], str(tmp_path / "lines"), **mine)
    assert len(told(run("messages", "list", queue["id"], "--json", **mine))) == 3
    for command in (("messages", "put", "by id", "x"), ("put", "by id", str(tmp_path / "lines"))):
        refused = run(*command, code=2, **mine)
        assert refused.stderr == (
            "everput: this API key lacks the scope 'queues:read', so it can't look up by id: give the queue's ID\n"
        )
    forbidden = run("queues", "list", code=2, **mine).stderr
    assert "the API key has no right to do this: 403" in forbidden
    assert "lacks the scope 'queues:read'" in forbidden
    assert "refused" not in forbidden
    missing = run("messages", "put", "5f0e6f0a-33c1-4a8e-8f1d-b5b9f6f0c001", "x", code=1, **mine)
    assert "No queue of this organization has this ID." in missing.stderr


def test_a_queue_whose_name_looks_like_an_id_is_found(run: Run):
    name = "5f0e6f0a-33c1-4a8e-8f1d-b5b9f6f0c002"
    (made,) = told(run("queues", "create", name, "--json"))
    assert told(run("queues", "get", name, "--json")) == [made]


def test_exit_codes_tell_what_was_refused_from_what_could_not_be_asked(run: Run):
    run("queues", "create", "taken")
    assert (
        "A queue named 'taken' exists already. Choose another name. (/name)"
        in run("queues", "create", "taken", code=1).stderr
    )
    run("queues", "create", code=2)
    wrong = run("queues", "list", code=2, EVERPUT_URL="nonsense:")
    assert "is not a URL" in wrong.stderr
    assert "Aborted" in run("queues", "delete", "taken", code=1).stderr


def test_a_shell_completes_commands_without_importing_them(run: Run):
    assert "_EVERPUT_COMPLETE" in run("completion", "bash").stdout
    words = {"COMP_WORDS": "everput qu", "COMP_CWORD": "1", "_EVERPUT_COMPLETE": "bash_complete"}
    result = CliRunner().invoke(everput, [], prog_name="everput", env=words)
    assert result.stdout == "plain,queues\n"
    words |= {"COMP_WORDS": "everput queues re", "COMP_CWORD": "2"}
    result = CliRunner().invoke(everput, [], prog_name="everput", env=words)
    assert result.stdout == "plain,rename\n"


def test_a_message_may_be_put_for_a_later_time(run: Run):
    run("queues", "create", "later", "--json")
    (put,) = told(run("messages", "put", "later", "x", "--deliver-at", "2001-01-31T12:00:00Z", "--json"))
    (found,) = told(run("messages", "get", "later", put["id"], "--json"))
    assert found["deliver_at"] == "2001-01-31T12:00:00.000Z"
