"""`everput listen` for real: a local address gets the messages, through any API process, again after each end."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import pty
import re
import signal
import subprocess
import sys
import termios
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

import httpx
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from tests.listeners import Listeners, nobody, until
from tests.scenarios.running import Running, alone, clean_environment, everput, said

NAME = "my machine"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with Running(tmp_path_factory.mktemp("listen") / "data", "--api-processes", "2") as running:
        assert running.url
        yield running


@pytest.fixture
async def client(server: Running) -> AsyncIterator[httpx.AsyncClient]:
    headers = {"x-api-key": server.api_key}
    async with httpx.AsyncClient(base_url=f"{server.url}/v1", headers=headers, timeout=20) as client:
        yield client


class Listen:
    """The command, until the end of the block. said: its lines."""

    def __init__(self, server: Running, queue: str, *arguments: str, url: str = "", key: str = "") -> None:
        given = ["listen", queue, "--url", url or server.url, "--key", key or server.api_key, "--json", *arguments]
        self.said: list[dict[str, Any]] = []
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "cli.app", *given],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=clean_environment(),
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for text in self.process.stdout:
            self.said.append(json.loads(text))

    def events(self, name: str) -> list[dict[str, Any]]:
        return [one for one in self.said if one["event"] == name]

    async def __aenter__(self) -> Self:
        try:
            await until(lambda: self.events("listening"), what="it is connected")
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        self._reader.join(10)
        for pipe in (self.process.stdout, self.process.stderr):
            assert pipe is not None
            pipe.close()


async def new_queue(client: httpx.AsyncClient, name: str) -> str:
    return (await client.put("/queues", json={"name": name})).raise_for_status().json()["queue"]["id"]


async def put(client: httpx.AsyncClient, queue_id: str, *data: str) -> None:
    for one in data:
        (await client.put(f"/queues/{queue_id}/messages", json={"data": one})).raise_for_status()


async def listener(client: httpx.AsyncClient, queue_id: str) -> dict[str, Any]:
    (shown,) = (await client.get(f"/queues/{queue_id}/listeners")).raise_for_status().json()["listeners"]
    return (await client.get(f"/queues/{queue_id}/listeners/{shown['id']}")).raise_for_status().json()["listener"]


async def test_a_local_address_gets_the_messages_and_after_an_absence_those_that_waited(
    server: Running, client: httpx.AsyncClient
):
    queue_id = await new_queue(client, "tunnelled")
    async with Listeners() as local:
        arguments = ("--to", local.url("hook"), "--name", NAME)
        async with Listen(server, "tunnelled", *arguments) as listen:
            await put(client, queue_id, "1", "2")
            await until(lambda: len(local.taken("hook")) == 2, what="they arrive")
            assert local.taken("hook")[0].headers["webhook-signature"].startswith("v1,")
            await until(lambda: len(listen.events("answered")) == 2, what="and are shown")
            shown = listen.events("answered")[0]
            assert (shown["status"], shown["attempt"], "body" in shown) == (200, "1", False)
        await put(client, queue_id, *map(str, range(3, 20)))

        async def is_down() -> bool:
            return (await listener(client, queue_id))["state"] == "down"

        await until(is_down, what="nobody is connected")
        async with Listen(server, "tunnelled", *arguments):
            await until(lambda: len(local.taken("hook")) == 19, what="what has waited arrives")
        assert sorted(int(one.data) for one in local.taken("hook")) == list(range(1, 20))
        assert {one.headers["everput-attempt"] for one in local.taken("hook")} == {"1"}, "nothing was spent meanwhile"
        (shown,) = (await client.get(f"/queues/{queue_id}/listeners")).json()["listeners"]
        assert shown["name"] == NAME


async def test_when_its_api_process_dies_it_connects_to_another_and_goes_on(server: Running, client: httpx.AsyncClient):
    queue_id = await new_queue(client, "steady")
    async with Listeners() as local, Listen(server, "steady", "--to", local.url("hook")) as listen:
        before = await listener(client, queue_id)
        for victim in ("api-1", "api-2"):  # it holds the socket, or the other one does
            server.kill(victim)
        await until(lambda: len(listen.events("listening")) >= 2, what="it is connected again")

        async def puts() -> bool:
            try:
                await put(client, queue_id, "after")
            except httpx.HTTPError:
                return False
            return True

        await until(puts, what="the API answers")
        await until(lambda: local.taken("hook"), what="it arrives")
        after = await listener(client, queue_id)
        assert after["id"] == before["id"]


async def test_what_the_local_address_does_not_take_comes_again_as_soon_as_it_does(
    server: Running, client: httpx.AsyncClient
):
    queue_id = await new_queue(client, "nobody")
    async with contextlib.AsyncExitStack() as stack:
        with nobody() as port:
            listen = await stack.enter_async_context(Listen(server, "nobody", "--to", f"http://127.0.0.1:{port}/hook"))
            await put(client, queue_id, *map(str, range(8)))

            async def is_down() -> bool:
                return (await listener(client, queue_id))["state"] == "down"

            await until(is_down, what="nobody is at the local address: the liveness answer says so")
            assert {one["status"] for one in listen.events("answered")} == {502}
        async with Listeners(port=port) as local:
            await until(lambda: len(local.taken("hook")) == 8, what="all of it")
            assert {one.headers["everput-attempt"] for one in local.taken("hook")} == {"1"}, "nothing was spent"


async def test_once_ends_with_the_first_message_taken_and_shows_its_body(server: Running, client: httpx.AsyncClient):
    queue_id = await new_queue(client, "once")
    async with Listeners() as local:
        async with Listen(server, "once", "--to", local.url("a"), "--to", local.url("b"), "--once", "--body") as listen:
            await until(lambda: len(listen.events("listening")) == 2, what="both listeners are connected")
            await put(client, queue_id, "only")
            await until(lambda: listen.process.poll() is not None, what="it ends")
            assert listen.process.returncode == 0
        assert json.loads(listen.events("answered")[0]["body"])["message"]["data"] == "only"


async def test_a_second_one_of_the_name_takes_over_and_the_first_ends(server: Running, client: httpx.AsyncClient):
    queue_id = await new_queue(client, "twice")
    async with (
        Listeners() as local,
        Listen(server, "twice", "--to", local.url("first"), "--name", NAME) as first,
        Listen(server, "twice", "--to", local.url("second"), "--name", NAME),
    ):
        await until(lambda: first.process.poll() is not None, what="the first one ends")
        assert first.process.returncode == 1
        await put(client, queue_id, "m")
        await until(lambda: local.taken("second"), what="the second one gets it")
        assert not local.taken("first")


async def test_no_key_another_key_and_no_queue_are_refused_and_a_tunnel_is_no_url_for_clients(
    server: Running, client: httpx.AsyncClient
):
    queue_id = await new_queue(client, "guarded")
    uri = f"{server.url.replace('http', 'ws', 1)}/v1/queues/{queue_id}/listen?name=n"
    elsewhere = uri.replace(queue_id, "0180994c-b6b2-4d0e-b7ad-414716e83386")
    mine = {"x-api-key": server.api_key}
    cases = [(uri, {}, 401), (uri, {"x-api-key": "nonsense"}, 401), (elsewhere, mine, 404), (uri[:-1], mine, 422)]
    for where, headers, status in cases:
        with pytest.raises(InvalidStatus) as refused:
            async with connect(where, additional_headers=headers, proxy=None):
                pass
        assert refused.value.response.status_code == status
        assert json.loads(refused.value.response.body)["status"] == status
    body = {"name": "n", "notify_url": "tunnel://127.0.0.1:1/x", "liveness_url": "https://8.8.8.8/"}
    answer = await client.put(f"/queues/{queue_id}/listeners", json=body)
    assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, "/notify_url")
    assert (await client.get(f"/queues/{queue_id}/listeners")).json()["listeners"] == []


async def test_a_client_that_speaks_nonsense_hurts_nobody(server: Running, client: httpx.AsyncClient):
    queue_id = await new_queue(client, "nonsense")
    uri = f"{server.url.replace('http', 'ws', 1)}/v1/queues/{queue_id}/listen?name=n"
    async with connect(uri, additional_headers={"x-api-key": server.api_key}, proxy=None) as mine:
        assert json.loads(await mine.recv())["type"] == "listening"
        for text in ("", "{", "[]", "7", "null", '{"number": []}', '{"number": 99}', '{"status": 200}'):
            await mine.send(text)
        await put(client, queue_id, "m")
        request = json.loads(await mine.recv())
        while request["type"] == "live":
            await mine.send(json.dumps({"number": request["number"], "alive": True}))
            request = json.loads(await mine.recv())
        await mine.send(json.dumps({"number": request["number"], "status": 200}))

        async def is_delivered() -> bool:
            return (await listener(client, queue_id))["lag"] == 0

        await until(is_delivered, what="it is delivered all the same")
        (shown,) = (await client.get(f"/queues/{queue_id}/listeners")).json()["listeners"]
        (await client.delete(f"/queues/{queue_id}/listeners/{shown['id']}")).raise_for_status()
        with contextlib.suppress(ConnectionClosed):
            async for _ in mine:
                pass  # a probe may come yet
        assert mine.close_code == 4404


class Terminal:
    """The command at a terminal, until the end of the block. said: what it shows, without its colors."""

    def __init__(self, server: Running, queue: str, *arguments: str) -> None:
        self._ours, theirs = pty.openpty()
        self.before = termios.tcgetattr(self._ours)
        self.said = ""
        given = ["listen", queue, "--url", server.url, "--key", server.api_key, *arguments]
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "cli.app", *given],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env=clean_environment(),
            start_new_session=True,
        )
        os.close(theirs)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        with contextlib.suppress(OSError):  # it has ended
            while text := os.read(self._ours, 1 << 16):
                self.said += re.sub(r"\x1b\[[0-9;]*m", "", text.decode())

    def press(self, keys: str) -> None:
        os.write(self._ours, keys.encode())

    async def shows(self, *texts: str) -> None:
        for text in texts:
            await until(lambda text=text: text in self.said, what=f"{text!r} is shown")

    @property
    def as_before(self) -> bool:
        return termios.tcgetattr(self._ours) == self.before

    async def __aenter__(self) -> Self:
        try:
            await self.shows("decides what is sent to", "q quits", "connected: ")
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        self._reader.join(10)
        os.close(self._ours)


async def test_at_a_terminal_keys_send_again_show_bodies_list_what_came_and_quit(
    server: Running, client: httpx.AsyncClient
):
    queue_id = await new_queue(client, "keys")
    async with Listeners() as local, Terminal(server, "keys", "--to", local.url("hook")) as terminal:
        assert not terminal.as_before, "keys come without Enter"
        terminal.press("r")
        await terminal.shows("no requests yet")
        for number, data in enumerate(("first", "second"), start=1):
            await put(client, queue_id, data)
            await terminal.shows(f"#{number} ")
        first, second = local.taken("hook")
        terminal.press("r")
        await until(lambda: len(local.taken("hook")) == 3, what="the last one comes again")
        terminal.press("1r")
        await until(lambda: len(local.taken("hook")) == 4, what="the first one comes again")
        assert [(one.headers, one.body) for one in local.taken("hook")[2:]] == [
            (one.headers, one.body) for one in (second, first)
        ]
        await until(lambda: terminal.said.count("sent again") == 2, what="and is shown")
        assert re.findall(r"#(\d+) .*sent again", terminal.said) == ["2", "1"]
        assert "gets messages put from now on" in terminal.said
        assert '"data":' not in terminal.said
        terminal.press("1b")
        await terminal.shows('"data":"first"')
        assert '"data":"second"' not in terminal.said
        terminal.press("b")
        await terminal.shows("bodies are shown")
        await put(client, queue_id, "third")
        await terminal.shows('"data":"third"')
        terminal.press("bl")
        await terminal.shows("bodies are hidden", "3 requests so far")
        counts = (3, 2)  # request 1 was also sent again
        await until(lambda: (terminal.said.count("#1 "), terminal.said.count("#3 ")) == counts, what="both, once more")
        terminal.press("9r")
        await terminal.shows("#9 is not in the list")
        assert len(local.taken("hook")) == 5
        terminal.press("q")
        await until(lambda: terminal.process.poll() is not None, what="it ends")
        assert terminal.process.returncode == 0
        assert terminal.as_before


async def test_it_says_who_decides_what_is_sent_with_json_too(server: Running, client: httpx.AsyncClient):
    await new_queue(client, "said")
    async with Listen(server, "said", "--to", "http://127.0.0.1:8/hook") as listen:
        assert listen.process.stderr is not None
        said = listen.process.stderr.readline()
        assert "decides what is sent to http://127.0.0.1:8/hook on this machine" in said
        assert "internet" not in said


async def test_a_key_revoked_through_one_process_is_refused_by_another_and_its_tunnel_there_is_closed(
    server: Running, client: httpx.AsyncClient
):
    await new_queue(client, "revoked")
    (organization,) = (await client.get("/organizations")).raise_for_status().json()["organizations"]
    keys = f"/organizations/{organization['id']}/keys"
    key = (await client.put(keys, json={"name": "to be revoked"})).raise_for_status().json()["key"]
    options = [
        "--kafka",
        server.kafka_address,
        "--replication",
        "1",
        "--partitions",
        "8",
        "--flush-each-batch",
        "--port",
        "0",
    ]
    with alone("api", *options, "--data-dir", str(server.data_dir)) as another:
        url = said(another).removeprefix("ready ")
        arguments = ("revoked", "--to", "http://127.0.0.1:8/")
        async with (
            httpx.AsyncClient(base_url=f"{url}/v1", headers={"x-api-key": key["secret"]}, timeout=20) as elsewhere,
            Listen(server, *arguments, url=url, key=key["secret"]) as listen,
        ):
            assert (await elsewhere.get("/queues")).status_code == 200
            (await client.delete(f"{keys}/{key['id']}")).raise_for_status()

            async def is_refused() -> bool:
                return (await elsewhere.get("/queues")).status_code == 401

            await until(is_refused, what="the other process has folded it")
            await until(lambda: listen.process.poll() is not None, what="the client ends")
            assert listen.process.returncode == 1
            assert listen.process.stderr is not None
            assert "its API key was revoked" in listen.process.stderr.read()
        async with Listen(server, *arguments):
            pass  # a key that goes on may have the listener


def stderr_of(listen: Listen) -> str:
    """What the command has said on stderr, once it has ended."""
    listen.process.wait(30)
    assert listen.process.stderr is not None
    return listen.process.stderr.read()


async def test_a_bare_port_is_an_address_its_secret_is_shown_and_the_listener_stays(
    server: Running, client: httpx.AsyncClient
):
    queue_id = await new_queue(client, "bare")
    async with Listeners() as local:
        port = httpx.URL(local.url("hook")).port
        async with Listen(server, "bare", "--to", f"{port}/hook", "--once") as listen:
            await put(client, queue_id, "x")
            await until(lambda: listen.process.poll() is not None, what="it ends after one message")
            said = stderr_of(listen)
    (kept,) = (await client.get(f"/queues/{queue_id}/listeners")).json()["listeners"]
    secret = (await client.get(f"/queues/{queue_id}/listeners/{kept['id']}/secret")).json()["secret"]
    assert secret in said
    assert f"everput listeners delete {queue_id} {kept['id']}" in said
    assert len(local.taken("hook")) == 1


async def test_a_temporary_listener_is_gone_at_the_end_and_one_of_before_is_not(
    server: Running, client: httpx.AsyncClient
):
    queue_id = await new_queue(client, "temporary")
    async with Listeners() as local:
        target = ("--to", local.url("hook"))
        async with Listen(server, "temporary", *target) as listen:
            listen.process.send_signal(signal.SIGINT)
            assert "stays" in stderr_of(listen)
        (before,) = (await client.get(f"/queues/{queue_id}/listeners")).json()["listeners"]
        async with Listen(server, "temporary", *target, "--temporary") as listen:
            assert len((await client.get(f"/queues/{queue_id}/listeners")).json()["listeners"]) == 2
            listen.process.send_signal(signal.SIGTERM)
            assert "Deleted the temporary listener" in stderr_of(listen)
        mine = ("--name", before["name"], "--to", local.url("hook"), "--to", local.url("other"))
        async with Listen(server, "temporary", *mine, "--name", "new", "--temporary") as listen:
            await until(lambda: len(listen.events("listening")) == 2, what="it serves the one of before and a new one")
            listen.process.send_signal(signal.SIGTERM)
            said = stderr_of(listen)
        assert "Deleted the temporary listener new of" in said
        assert f"The listener {before['name']} of temporary stays" in said
        assert (await client.get(f"/queues/{queue_id}/listeners")).json()["listeners"] == [before]


async def test_a_temporary_listener_is_gone_although_the_first_connection_ended_before_it_was_said_to_be_new(
    server: Running, client: httpx.AsyncClient
):
    queue_id = await new_queue(client, "cut off")
    port, cut = urlsplit(server.url).port, False

    async def listeners() -> list[Any]:
        return (await client.get(f"/queues/{queue_id}/listeners")).json()["listeners"]

    async def passed(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Pass all on, but of the first tunnel only what is asked: it ends once there is a listener."""
        nonlocal cut
        asked = await reader.readuntil(b"\r\n\r\n")
        there, thither = await asyncio.open_connection("127.0.0.1", port)
        thither.write(asked)
        if b"/listen?" in asked and not cut:
            cut = True
            await until(listeners, what="the listener is made")
            thither.close()
            writer.close()
            return
        with contextlib.suppress(OSError):
            await asyncio.gather(passed(reader, thither), passed(there, writer))

    async with Listeners() as local, await asyncio.start_server(serve, "127.0.0.1", 0) as between:
        url = f"http://127.0.0.1:{between.sockets[0].getsockname()[1]}"
        async with Listen(server, "cut off", "--to", local.url("hook"), "--temporary", url=url) as listen:
            assert listen.events("disconnected")
            listen.process.send_signal(signal.SIGTERM)
            # The command still needs the proxy, so wait for its end without stopping this event loop.
            await until(lambda: listen.process.poll() is not None, what="it ends")
            assert "Deleted the temporary listener" in stderr_of(listen)
        assert await listeners() == []


async def test_several_queues_are_listened_to_and_a_filter_passes_on_what_it_names(
    server: Running, client: httpx.AsyncClient
):
    first, second = await new_queue(client, "several-1"), await new_queue(client, "several-2")
    async with Listeners() as local:
        given = [sys.executable, "-P", "-m", "cli.app", "listen", "several-1", "several-2", "--to", local.url("hook")]
        given += ["--filter", "data=*keep*", "--temporary", "--url", server.url, "--key", server.api_key]
        with subprocess.Popen(
            given, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=clean_environment()
        ) as process:

            async def are_there() -> bool:
                each = [(await client.get(f"/queues/{one}/listeners")).json()["listeners"] for one in (first, second)]
                return all(each)

            try:
                await until(are_there, what="a listener of each queue")
                await put(client, first, "drop 1", "keep 1")
                await put(client, second, "keep 2", "drop 2")

                async def nothing_waits() -> bool:
                    return all([(await listener(client, one))["lag"] == 0 for one in (first, second)])

                await until(nothing_waits, what="all are accepted")
                assert sorted(one.data for one in local.taken("hook")) == ["keep 1", "keep 2"]
            finally:
                process.send_signal(signal.SIGINT)
                process.communicate(timeout=30)


def test_a_queue_that_is_not_there_is_an_error_before_anything_is_made(server: Running, tmp_path: Path):
    done = everput("listen", "nowhere", "--to", "http://127.0.0.1:1/", "--url", server.url, "--key", server.api_key)
    assert (done.returncode, "nowhere" in done.stderr) == (2, True)
    assert "decides what is sent" not in done.stderr
