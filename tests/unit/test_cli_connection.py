"""Which server and key a command uses, where it finds them, and what it says when nobody answers."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest
from click.shell_completion import ShellComplete
from click.testing import CliRunner, Result
from test_cli_resources import Run, run  # noqa: F401 - a fixture

from broker.errors import ConfigurationError
from broker.private_files import write_secret
from cli import files, log_client, profiles
from cli.api_options import URL_DEFAULT, connection
from cli.app import everput

NOWHERE = {"EVERPUT_URL": None, "EVERPUT_API_KEY": None}


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("EVERPUT_URL", "EVERPUT_API_KEY", "EVERPUT_API_KEY_FILE", "EVERPUT_PROFILE", "EVERPUT_DATA_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def find(**given) -> tuple[str, str]:
    return tuple(connection(**{"url": None, "key": None, "profile": None, "data_dir": Path("data"), **given}))


def server_here(url: str | None = "http://127.0.0.1:9000") -> None:
    Path("data").mkdir()
    write_secret(files.api_key_file(Path("data")), "key-here")
    if url is not None:
        write_secret(files.url_file(Path("data")), url)


def save_profiles(**urls: str) -> None:
    known = profiles.Profiles(current=next(iter(urls)))
    known.by_name = {name: profiles.Profile(url=url, key=f"key-{name}") for name, url in urls.items()}
    profiles.save(known)


def test_a_server_on_this_machine_is_found_by_its_data_directory():
    server_here()
    assert find() == ("http://127.0.0.1:9000", "key-here")
    assert find(key="mine") == ("http://127.0.0.1:9000", "mine")


HERE = ["http://127.0.0.1:9000/", "http://localhost:9000", "HTTP://LOCALHOST:9000", "http://[::1]:9000"]
ELSEWHERE = [
    "http://other.example:9000",
    "http://127.0.0.1:7",
    "http://127.0.0.1",
    "https://127.0.0.1:9000",
    "http://127.0.0.1:9000@other.example",
    "http://127.0.0.1.other.example:9000",
    "http://localhost:90000000",
]


@pytest.mark.parametrize("url", HERE)
def test_the_key_of_the_data_directory_is_sent_to_its_own_server_under_each_name_of_this_machine(url: str):
    server_here()
    assert find(url=url) == (url, "key-here")


@pytest.mark.parametrize("url", ELSEWHERE)
def test_the_key_of_the_data_directory_is_sent_to_no_other_server(url: str):
    server_here()
    with pytest.raises(ConfigurationError) as told:
        find(url=url)
    assert str(told.value) == (
        f"no API key for {url}: give --key, set EVERPUT_API_KEY, or run `everput login --url {url}` "
        "(data/api-key is the key of http://127.0.0.1:9000)"
    )
    assert find(url=url, key="mine") == (url, "mine")
    save_profiles(other=url)
    assert find(url=url) == (url, "key-other")


def test_the_key_of_a_data_directory_without_a_url_is_sent_to_the_default_url_only():
    server_here(url=None)
    assert find(url="http://localhost:8080") == ("http://localhost:8080", "key-here")
    with pytest.raises(ConfigurationError, match="no API key for http://localhost:8081"):
        find(url="http://localhost:8081")


def test_a_key_of_ones_own_is_sent_to_no_other_machine_that_a_file_in_the_working_directory_names():
    server_here("https://elsewhere.example")
    assert find() == ("https://elsewhere.example", "key-here")
    assert find(key="mine") == (URL_DEFAULT, "mine")
    save_profiles(shop="https://shop.example")
    assert find(key="mine") == ("https://shop.example", "mine")


def test_a_data_directory_of_a_server_that_wrote_no_url_means_the_default_url():
    server_here(url=None)
    assert find() == (URL_DEFAULT, "key-here")


def test_the_data_directory_wins_over_the_profile_in_use_and_a_named_profile_over_both():
    save_profiles(shop="https://shop.example", test="https://test.example")
    assert find() == ("https://shop.example", "key-shop")
    server_here()
    assert find() == ("http://127.0.0.1:9000", "key-here")
    assert find(profile="test") == ("https://test.example", "key-test")
    assert find(key="mine", profile="test") == ("https://test.example", "mine")


def test_a_profiles_key_is_sent_to_its_own_server_only():
    save_profiles(shop="https://shop.example")
    assert find(url="https://shop.example/") == ("https://shop.example/", "key-shop")
    with pytest.raises(ConfigurationError, match="no API key"):
        find(url="https://elsewhere.example")
    with pytest.raises(ConfigurationError, match=r"is for https://shop\.example"):
        find(url="https://elsewhere.example", profile="shop")


def test_without_any_key_the_error_says_where_one_can_come_from():
    with pytest.raises(ConfigurationError) as told:
        find()
    assert all(word in str(told.value) for word in ("everput login", "--key", "EVERPUT_API_KEY", "data/api-key"))
    with pytest.raises(ConfigurationError, match="no profile nobody"):
        find(profile="nobody")


def test_login_checks_a_key_keeps_it_for_its_owner_alone_and_later_commands_use_it(run: Run):  # noqa: F811 - the fixture
    where = where_of(run)
    refused = CliRunner().invoke(everput, ["login", "--url", where["EVERPUT_URL"]], input="evp_wrong\n", env=NOWHERE)
    assert (refused.exit_code, "the API key was refused" in refused.stderr) == (2, True)
    assert not profiles.profiles_file().exists()
    typed = where["EVERPUT_API_KEY"] + "\n"
    done = CliRunner().invoke(
        everput, ["login", "--url", where["EVERPUT_URL"], "--profile", "test"], input=typed, env=NOWHERE
    )
    assert done.exit_code == 0, done.output
    assert where["EVERPUT_API_KEY"] not in done.output
    assert stat.S_IMODE(profiles.profiles_file().stat().st_mode) == 0o600
    listed = CliRunner().invoke(everput, ["queues", "list", "--json"], env=NOWHERE)
    assert listed.exit_code == 0, listed.output
    shown = CliRunner().invoke(everput, ["profiles", "list"], env=NOWHERE).stdout
    assert "test" in shown
    assert where["EVERPUT_API_KEY"] not in shown
    assert CliRunner().invoke(everput, ["profiles", "remove", "test"], env=NOWHERE).exit_code == 0
    assert CliRunner().invoke(everput, ["queues", "list"], env=NOWHERE).exit_code == 2


def test_removing_the_profile_in_use_names_the_one_that_is_used_next():
    save_profiles(shop="https://shop.example", test="https://test.example")
    known = profiles.load()
    known.current = "shop"
    profiles.save(known)
    removed = CliRunner().invoke(everput, ["profiles", "remove", "shop"], env=NOWHERE)
    assert removed.stderr == "removed the profile shop\ncommands use the profile test from now on\n"
    assert profiles.load().current == "test"
    removed = CliRunner().invoke(everput, ["profiles", "remove", "test"], env=NOWHERE)
    assert removed.stderr == "removed the profile test\n"


def test_profiles_that_others_can_read_are_refused():
    save_profiles(shop="https://shop.example")
    profiles.profiles_file().chmod(0o644)
    with pytest.raises(ConfigurationError, match="other users can read"):
        find()


def where_of(run: Run) -> dict[str, str]:  # noqa: F811 - the fixture
    """The server and key of the fixture."""
    return next(
        cell.cell_contents
        for cell in run.__closure__ or ()
        if isinstance(cell.cell_contents, dict) and "EVERPUT_URL" in cell.cell_contents
    )


@pytest.fixture
def refusing() -> str:
    """A URL at which nothing listens."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return f"http://127.0.0.1:{taken.getsockname()[1]}"


COMMANDS = [
    ["queues", "list"],
    ["status"],
    ["log"],
    ["show", "queue", "q"],
    ["put", "q", os.devnull],
    ["listen", "q", "--to", "3000"],
    ["messages", "get", "q", "m"],
    ["export", "events"],
    ["login"],
]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
def test_where_nothing_listens_a_command_ends_and_says_so(refusing: str, command: list[str]):
    answered: list[Result] = []
    where = {"EVERPUT_URL": refusing, "EVERPUT_API_KEY": "k"}
    asking = threading.Thread(target=lambda: answered.append(CliRunner().invoke(everput, command, env=where)))
    asking.start()
    asking.join(10)  # it would be tried again for 30 s
    (result,) = answered
    assert result.exit_code == 2
    assert f"nothing answers at {refusing}" in result.stderr.replace(f"{refusing}/", refusing)
    assert "`everput serve`" in result.stderr


@pytest.fixture
def silent() -> Iterator[str]:
    """A URL at which a connection is made and never answered."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


def test_a_command_that_waits_for_an_answer_says_what_for(silent: str, tmp_path: Path):
    """In a process of its own: it is ended when it has said so."""
    where = {**os.environ, "EVERPUT_URL": silent, "EVERPUT_API_KEY": "k"}
    for command in (["queues", "list"], ["status"], ["log"], ["show", "queue", "q"]):
        with subprocess.Popen(
            [sys.executable, "-m", "cli.app", *command], env=where, stderr=subprocess.PIPE, text=True, cwd=tmp_path
        ) as process:
            assert process.stderr is not None
            line = process.stderr.readline()
            process.kill()
        assert line == f"waiting for the API at {silent} …\n", command


class BusyAtFirst(BaseHTTPRequestHandler):
    """An API that answers its first requests with these statuses, and then that it has no queue."""

    statuses: ClassVar[list[int]] = []

    def do_GET(self) -> None:
        status = self.statuses.pop(0) if self.statuses else 200
        body = b'{"queues": [], "detail": "busy"}'
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_arguments: object) -> None: ...


def test_an_api_that_is_busy_is_asked_again_and_given_up_at_last(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    with ThreadingHTTPServer(("127.0.0.1", 0), BusyAtFirst) as server:
        threading.Thread(target=server.serve_forever).start()
        try:
            with log_client.client(f"http://127.0.0.1:{server.server_port}", "k") as asking:
                BusyAtFirst.statuses = [429, 503]
                found = log_client.ask(asking, "/v1/queues")
                assert (found or {})["queues"] == []
                assert BusyAtFirst.statuses == []
                assert capsys.readouterr().err.count("trying again") == 2
                BusyAtFirst.statuses = [401, 503]
                with pytest.raises(log_client.LogRefused, match="401 busy"):
                    log_client.ask(asking, "/v1/queues")
                monkeypatch.setattr(log_client, "GIVE_UP_AFTER_S", -1.0)
                with pytest.raises(ConfigurationError, match="answered 503"):
                    log_client.ask(asking, "/v1/queues")
        finally:
            server.shutdown()


def completed(words: str, incomplete: str) -> list[str]:
    complete = ShellComplete(everput, {}, "everput", "_EVERPUT_COMPLETE")
    return [one.value for one in complete.get_completions(words.split(), incomplete)]


def test_names_of_queues_and_listeners_are_completed(run: Run, monkeypatch: pytest.MonkeyPatch):  # noqa: F811 - the fixture
    for name, value in where_of(run).items():
        monkeypatch.setenv(name, value)
    run("queues", "create", "complete-me")
    urls = ["--notify-url", "http://127.0.0.1:8/n", "--liveness-url", "http://127.0.0.1:8/l"]
    run("listeners", "create", "complete-me", "a-listener", *urls)
    assert completed("queues get", "complete") == ["complete-me"]
    assert completed("status", "complete") == ["complete-me"]
    assert completed("listeners get complete-me", "") == ["a-listener"]
    assert completed("redrive complete-me", "a-") == ["a-listener"]
    assert completed("redrive complete-me", "b") == []


def test_where_nobody_answers_nothing_is_completed_and_nobody_waits(silent: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("EVERPUT_URL", silent)
    monkeypatch.setenv("EVERPUT_API_KEY", "k")
    found: list[list[str]] = []
    asking = threading.Thread(target=lambda: found.append(completed("queues get", "")))
    asking.start()
    asking.join(20)  # the client alone would wait for 30 s
    assert found == [[]]


def test_nothing_is_completed_without_a_key():
    assert completed("queues get", "") == []
