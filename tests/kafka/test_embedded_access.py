"""Who may connect to the embedded Kafka: our processes, who have its password, and no other user of the machine."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import confluent_kafka.admin
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient, ScramCredentialInfo, ScramMechanism, UserScramCredentialUpsertion

from broker.errors import ConfigurationError
from broker.kafka.client import client_options
from broker.kafka.embedded import process
from broker.kafka.embedded.access import password_file, written_access
from broker.kafka.embedded.jars import kafka_jars
from broker.kafka.embedded.java import finished, java, spawn
from broker.kafka.embedded.kafka import EmbeddedKafka
from broker.kafka.embedded.process import answers
from broker.kafka.ports import free_port, is_free, listens_as_us
from broker.settings import KafkaSettings
from tests.kafka.stranger import NOBODY
from tests.kafka_clients import librdkafka
from tests.listeners import until

ROOT = Path(__file__).parents[2]
WRONG = "not-the-password"


@pytest.fixture(scope="module")
def open_folder() -> Iterator[Path]:
    """A folder that every user may enter, as a home or /srv often is; pytest's own are the user's."""
    folder = Path(tempfile.mkdtemp(prefix="everput-test-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
async def kafka(open_folder: Path) -> AsyncIterator[EmbeddedKafka]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EVERPUT_SEALING_KEY", "hush-hush")
        patch.setenv("JAVA_TOOL_OPTIONS", "-Dother=1")
        kafka = EmbeddedKafka(open_folder / "kafka", heap_mib=256, progress=False)
        await kafka.start()
    yield kafka
    await kafka.stop()


def port_of(kafka: EmbeddedKafka, listener: str) -> int:
    found = re.search(rf"^listeners=.*{listener}://127.0.0.1:(\d+)", written_properties(kafka), re.MULTILINE)
    assert found is not None
    return int(found[1])


def written_properties(kafka: EmbeddedKafka) -> str:
    return (kafka.data_dir / "kafka.properties").read_text()


async def stranger(kafka: EmbeddedKafka, *passwords: str) -> dict:
    """What tests/kafka/stranger.py says."""
    ports = (str(port_of(kafka, "CLIENT")), str(port_of(kafka, "CONTROLLER")))
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.kafka.stranger", str(kafka.data_dir), *ports, str(kafka.pid), *passwords),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,  # aiokafka tells of each refusal there
    )
    said, _ = await process.communicate()
    assert process.returncode == 0
    return json.loads(said)


async def test_another_user_gets_in_at_no_listener_and_reads_nothing(kafka: EmbeddedKafka):
    found = await stranger(kafka, WRONG, "", kafka.access.password[:-1])
    assert len(found["connected"]) == 2 * (1 + 2 * 3 * 3)
    assert "answered" not in found["connected"].values()
    assert "connected" not in found["produced and consumed"]
    assert kafka.access.password not in found["command line"]
    assert "password=" not in found["command line"]
    if os.geteuid() == 0:  # else the stranger is ourselves, who may read it
        assert found["uid"] == NOBODY
        assert found["read"] == []
    (once,) = set(re.findall(r' password="([^"]+)"', written_properties(kafka)))
    with_them = (await stranger(kafka, kafka.access.password, once))["connected"]
    let_in = [name for name, answer in with_them.items() if answer == "answered"]
    assert let_in == ["client PLAIN kafka 1", "client SCRAM-SHA-256 everput 0", "controller PLAIN kafka 1"]


async def test_the_password_is_in_two_files_of_their_owner_only_and_nowhere_else(kafka: EmbeddedKafka):
    password = kafka.access.password.encode()
    everything = [path for path in kafka.data_dir.rglob("*") if path.is_file()]
    assert {path.name for path in everything if password in path.read_bytes()} == {"password", "client.properties"}
    secret = ("password", "client.properties", "kafka.properties")
    modes = {name: stat.S_IMODE((kafka.data_dir / name).stat().st_mode) for name in secret}
    assert modes == dict.fromkeys(secret, 0o600)
    assert stat.S_IMODE(kafka.data_dir.stat().st_mode) == 0o700
    (once,) = set(re.findall(r' password="([^"]+)"', written_properties(kafka)))
    for name in ("kafka.log", "kafka.out"):
        assert once.encode() not in (kafka.data_dir / name).read_bytes()
    assert kafka.access.password not in repr(kafka.access)
    assert kafka.access.password not in repr(kafka.access.settings())


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
async def test_java_gets_no_secret_and_no_option_of_others_by_its_environment(kafka: EmbeddedKafka):
    variables = Path(f"/proc/{kafka.pid}/environ").read_bytes().decode().split("\0")
    names = {text.partition("=")[0] for text in variables if text}
    assert "PATH" in names
    assert not [name for name in names if name.startswith(("EVERPUT_", "JAVA", "JDK", "_JAVA"))]


async def test_a_client_never_sends_the_password_itself(kafka: EmbeddedKafka):
    """So a program that takes the port while Kafka is down learns nothing."""
    heard = bytearray()

    async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, note: bool) -> None:
        while data := await reader.read(65536):
            if note:
                heard.extend(data)
            writer.write(data)
        writer.close()

    async def between(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, thither = await asyncio.open_connection("127.0.0.1", port_of(kafka, "CLIENT"))
        await asyncio.gather(pass_on(reader, thither, note=True), pass_on(there, writer, note=False))

    async with await asyncio.start_server(between, "127.0.0.1", 0) as listening:
        port = listening.sockets[0].getsockname()[1]
        assert await answers(port, kafka.access.password)
    assert b"everput" in heard
    assert kafka.access.password.encode() not in heard


async def test_a_deleted_password_is_another_one_after_the_next_start_but_not_after_a_crash(kafka: EmbeddedKafka):
    before = kafka.access
    await asyncio.to_thread(password_file(kafka.data_dir).unlink)
    kafka.kill()
    assert await kafka.wait() == -signal.SIGKILL
    await kafka.restart()
    assert kafka.access == before == written_access(kafka.data_dir)  # those who run still have it
    assert await answers(port_of(kafka, "CLIENT"), before.password)

    await asyncio.to_thread(password_file(kafka.data_dir).unlink)
    await kafka.stop()
    with pytest.raises(ConfigurationError, match=r"password is missing: start `everput serve`, or restart it"):
        written_access(kafka.data_dir)
    await kafka.start()
    assert kafka.access.password != before.password
    assert not await answers(port_of(kafka, "CLIENT"), before.password)
    assert await answers(port_of(kafka, "CLIENT"), kafka.access.password)


OPEN_TO_ALL = """\
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{controller_port}
listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller_port}
advertised.listeners=PLAINTEXT://127.0.0.1:{port}
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT
controller.listener.names=CONTROLLER
inter.broker.listener.name=PLAINTEXT
log.dirs={directory}/kafka
offsets.topic.replication.factor=1
"""


async def made_by_an_older_version(directory: Path) -> None:
    """A data directory without a password, of a Kafka that asked for none, with one record in the topic `old`."""
    directory.mkdir(mode=0o700)
    port = free_port()
    path = directory / "kafka.properties"
    path.write_text(OPEN_TO_ALL.format(port=port, controller_port=free_port(), directory=directory))
    command = java(directory, jars=kafka_jars(), options=("-Xmx256m",))
    tool = ("kafka.tools.StorageTool", "format", "-t", "EverputOlder0000000000", "-c", str(path))
    assert await finished(await spawn((*command, *tool), directory=directory), within_s=60) == 0
    kafka = await spawn((*command, "kafka.Kafka", str(path)), directory=directory)
    try:
        await until(lambda: answers(port), what="the older Kafka answers", within_s=60)
        admin = AIOKafkaAdminClient(bootstrap_servers=f"127.0.0.1:{port}")
        await admin.start()
        await admin.create_topics([NewTopic("old", 1, 1)])
        await admin.close()
        async with AIOKafkaProducer(bootstrap_servers=f"127.0.0.1:{port}") as producer:
            await producer.send_and_wait("old", b"kept")
    finally:
        kafka.terminate()
        await kafka.wait()


async def test_a_directory_of_an_older_version_gets_a_password_and_keeps_its_records(tmp_path: Path):
    directory = tmp_path / "kafka"
    await made_by_an_older_version(directory)
    with pytest.raises(ConfigurationError, match="password is missing"):
        written_access(directory)
    kafka = EmbeddedKafka(directory, heap_mib=256, progress=False)
    await kafka.start()
    try:
        assert not await answers(port_of(kafka, "CLIENT"))
        consumer = AIOKafkaConsumer(**client_options(kafka.access.settings()), auto_offset_reset="earliest")
        await consumer.start()
        consumer.assign([TopicPartition("old", 0)])
        assert (await asyncio.wait_for(consumer.getone(), 60)).value == b"kept"
        await consumer.stop()
    finally:
        await kafka.stop()


async def test_a_user_that_somebody_made_while_kafka_was_open_may_do_nothing(kafka: EmbeddedKafka):
    """Before Kafka asked for a password, another user of the machine could leave a user of its own in the metadata."""
    ours = kafka.access.settings()
    theirs = replace(ours, sasl_username="mallory", sasl_password="left-behind")

    def look() -> tuple[set[str], str]:
        """The topics that the other user sees, and what becomes of one that it creates."""
        admin = AdminClient(librdkafka(ours))
        admin.create_topics([confluent_kafka.admin.NewTopic("ours", 1, 1)])["ours"].result(60)
        left = UserScramCredentialUpsertion(
            "mallory", ScramCredentialInfo(ScramMechanism.SCRAM_SHA_256, 4096), password=b"left-behind"
        )
        admin.alter_user_scram_credentials([left])["mallory"].result(60)
        assert "ours" in admin.list_topics(timeout=60).topics
        other = AdminClient(librdkafka(theirs))
        seen = set(other.list_topics(timeout=60).topics)
        try:
            other.create_topics([confluent_kafka.admin.NewTopic("theirs", 1, 1)])["theirs"].result(60)
        except KafkaException as error:
            return seen, error.args[0].name()
        return seen, "created"

    assert await asyncio.to_thread(look) == (set(), "TOPIC_AUTHORIZATION_FAILED")


async def test_other_kafka_clients_connect_as_the_documentation_says(kafka: EmbeddedKafka):
    brokers = await asyncio.to_thread(lambda: AdminClient(librdkafka(kafka.access.settings())).list_topics(timeout=60))
    assert len(brokers.brokers) == 1
    # Kafka's own tools are in a jar that Everput does not need: what they read is checked with another client.
    lines = (kafka.data_dir / "client.properties").read_text().splitlines()
    told = dict(line.split("=", 1) for line in lines)
    login = re.fullmatch(r'\S+\.ScramLoginModule required username="(\w+)" password="(\S+)";', told["sasl.jaas.config"])
    assert login is not None
    settings = KafkaSettings(
        bootstrap=told["bootstrap.servers"],
        security_protocol=told["security.protocol"],
        sasl_mechanism=told["sasl.mechanism"],
        sasl_username=login[1],
        sasl_password=login[2],
    )
    found = await asyncio.to_thread(lambda: AdminClient(librdkafka(settings)).list_topics(timeout=60))
    assert len(found.brokers) == 1


@pytest.mark.parametrize("mode", [0o770, 0o777])
async def test_a_directory_that_others_can_write_to_is_refused(tmp_path: Path, mode: int):
    tmp_path.chmod(mode)
    with pytest.raises(ConfigurationError, match=f"can write to the directory {tmp_path}: run `chmod go-w {tmp_path}`"):
        await EmbeddedKafka(tmp_path, progress=False).start()


async def test_a_password_that_others_can_read_is_refused(tmp_path: Path):
    path = password_file(tmp_path)
    path.write_text("correct-horse-battery\n")
    path.chmod(0o644)
    with pytest.raises(ConfigurationError, match=f"can read or write {path}: run `chmod go-rwx {path}`"):
        await EmbeddedKafka(tmp_path, progress=False).start()


LISTEN = """
import os, socket, sys
if os.geteuid() == 0 and sys.argv[1:]:
    os.setuid(int(sys.argv[1]))
with socket.create_server(("127.0.0.1", 0)) as listening:
    print(listening.getsockname()[1], flush=True)
    sys.stdin.read()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nobody knows who listens")
async def test_a_first_start_sends_nothing_before_its_kafka_listens(tmp_path: Path, monkeypatch, caplog):
    tell, listened = process.tell_password, []

    async def told(options: dict[str, Any], password: str, *, timeout_s: float) -> None:
        listened.append(not is_free(options["port"]))
        await tell(options, password, timeout_s=timeout_s)

    monkeypatch.setattr(process, "tell_password", told)
    kafka = EmbeddedKafka(tmp_path, heap_mib=256, progress=False)
    with caplog.at_level("INFO"):
        await kafka.start()
    await kafka.stop()
    assert set(listened) == {True}
    assert "password-not-told" not in caplog.text


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="only root on Linux can be two users")
def test_another_users_program_on_the_port_is_told_from_ours():
    for more, ours in (([], True), ([str(NOBODY)], False)):
        command = [sys.executable, "-c", LISTEN, *more]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
            assert other.stdout is not None
            port = int(other.stdout.readline())
            assert listens_as_us(port) is ours
            other.communicate()
        assert not listens_as_us(port), "nobody listens any more"
