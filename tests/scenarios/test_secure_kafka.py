"""A Kafka that wants to know who is there: SASL and TLS, with the right settings and with wrong ones."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from broker.errors import ConfigurationError
from broker.kafka.client import client_options
from broker.kafka.embedded.jars import kafka_jars
from broker.kafka.embedded.java import finished, java, spawn
from broker.kafka.embedded.process import answers
from broker.kafka.ports import free_port
from broker.kafka.reachability import why_not
from broker.sealing import new_sealing_key
from broker.settings import KafkaSettings
from tests.certificates import make_certificate
from tests.listeners import Listeners, nobody, until
from tests.scenarios.running import Running, alone, everput, said, wait_until

USER, PASSWORD = "ann", "correct-horse-battery"
# What is listened with, by the listener's name; clients of MTLS must have a certificate.
PROTOCOLS = {"INSIDE": "PLAINTEXT", "SASL": "SASL_PLAINTEXT", "BOTH": "SASL_SSL", "MTLS": "SSL"}
SMALL = ("--replication", "1", "--flush-each-batch", "--partitions", "2")


@dataclass(frozen=True)
class Secured:
    """ports: by listener. ca: who vouches for the brokers. certificate, key: of a client."""

    ports: dict[str, int]
    ca: Path
    certificate: Path
    key: Path

    def at(self, listener: str) -> str:
        return f"127.0.0.1:{self.ports[listener]}"

    def options(self, listener: str, *more: str) -> list[str]:
        return ["--kafka", self.at(listener), "--kafka-security-protocol", PROTOCOLS[listener], *SMALL, *more]


def properties(directory: Path, ports: dict[str, int], controller_port: int, *, keys: Path, clients: Path) -> str:
    plain = f'org.apache.kafka.common.security.plain.PlainLoginModule required user_{USER}="{PASSWORD}";'
    scram = "org.apache.kafka.common.security.scram.ScramLoginModule required;"
    listeners = ",".join(f"{name}://127.0.0.1:{port}" for name, port in ports.items())
    protocols = ",".join(f"{name}:{protocol}" for name, protocol in PROTOCOLS.items())
    lines = [
        "process.roles=broker,controller",
        "node.id=1",
        f"controller.quorum.voters=1@127.0.0.1:{controller_port}",
        f"listeners={listeners},CONTROLLER://127.0.0.1:{controller_port}",
        f"listener.security.protocol.map={protocols},CONTROLLER:PLAINTEXT",
        "controller.listener.names=CONTROLLER",
        "inter.broker.listener.name=INSIDE",
        f"log.dirs={directory / 'log'}",
        "auto.create.topics.enable=false",
        "offsets.topic.replication.factor=1",
        "offsets.topic.num.partitions=8",
        "offsets.retention.minutes=2147483647",
        "group.initial.rebalance.delay.ms=0",
        "sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-512",
        f"listener.name.sasl.plain.sasl.jaas.config={plain}",
        f"listener.name.sasl.scram-sha-512.sasl.jaas.config={scram}",
        f"listener.name.both.plain.sasl.jaas.config={plain}",
        f"listener.name.both.scram-sha-512.sasl.jaas.config={scram}",
        "ssl.keystore.type=PEM",
        f"ssl.keystore.location={keys}",
        "ssl.truststore.type=PEM",
        f"ssl.truststore.location={clients}",
        "listener.name.mtls.ssl.client.auth=required",
    ]
    return "".join(f"{line}\n" for line in lines)


@pytest.fixture(scope="module")
async def secured(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Secured]:
    directory = tmp_path_factory.mktemp("secured")
    ca, ca_key = make_certificate(directory, "127.0.0.1", name="broker")
    certificate, key = make_certificate(directory, "127.0.0.1", name="client")
    keys = directory / "keys.pem"
    keys.write_bytes(ca_key.read_bytes() + ca.read_bytes())
    ports = {name: free_port() for name in PROTOCOLS}
    path = directory / "server.properties"
    path.write_text(properties(directory, ports, free_port(), keys=keys, clients=certificate))
    command = java(directory, jars=kafka_jars(), options=("-Xmx256m",))
    user = f"SCRAM-SHA-512=[name={USER},password={PASSWORD}]"
    tool = ("kafka.tools.StorageTool", "format", "-t", "EverputSecured00000000", "-c", str(path), "--add-scram", user)
    formatted = await spawn((*command, *tool), directory=directory)
    assert await finished(formatted, within_s=60) == 0, (directory / "kafka.out").read_text()
    kafka = await spawn((*command, "kafka.Kafka", str(path)), directory=directory)
    try:

        async def up() -> bool:
            assert kafka.returncode is None, (directory / "kafka.out").read_text()
            return await answers(ports["INSIDE"])

        await until(up, what="Kafka answers", within_s=60)
        yield Secured(ports, ca, certificate, key)
    finally:
        kafka.kill()
        await kafka.wait()


@pytest.mark.parametrize("mechanism", ["SCRAM-SHA-512", "PLAIN"])
async def test_all_of_it_works_with_a_password_over_tls_and_tells_the_password_to_nobody(
    secured: Secured, tmp_path, mechanism: str
):
    options = secured.options("BOTH", "--kafka-sasl-mechanism", mechanism, "--kafka-sasl-username", USER)
    options += ["--kafka-ca-file", str(secured.ca), "--log-level", "debug", "--topic-prefix", f"{mechanism}."]
    async with Listeners() as listeners:
        with Running(tmp_path / "data", *options, EVERPUT_KAFKA_SASL_PASSWORD=PASSWORD) as server:
            url = server.url
            wait_until(lambda: len(server.alive()) == 2, what="it has told of both processes")
            commands = [Path(f"/proc/{pid}/cmdline").read_text() for pid in (server.process.pid, *server.alive())]
            async with httpx.AsyncClient(base_url=url, headers={"x-api-key": server.api_key}, timeout=20) as client:
                queue = (await client.put("/v1/queues", json={"name": "orders"})).json()["queue"]["id"]
                where = {"notify_url": listeners.url("a"), "liveness_url": listeners.url("a")}
                await client.put(f"/v1/queues/{queue}/listeners", json={"name": "billing", **where})
                put = await client.put(f"/v1/queues/{queue}/messages", json={"data": "secured"})
                await until(lambda: put.json()["message"]["id"] in listeners.ids("a"), what="delivered")
            assert server.stop() == 0
            assert len(commands) == 3
            assert not [text for text in (*commands, *server.stderr, *server.stdout) if PASSWORD in text]


def test_a_client_certificate_is_who_one_is(secured: Secured, tmp_path):
    files = {"ca": secured.ca, "cert": secured.certificate, "key": secured.key}
    options = [text for name, path in files.items() for text in (f"--kafka-{name}-file", str(path))]
    options += ["--data-dir", str(tmp_path), "--topic-prefix", "mtls."]
    with alone("worker", *secured.options("MTLS", *options), EVERPUT_SEALING_KEY=new_sealing_key()) as worker:
        assert said(worker) == "ready worker"
        worker.terminate()
        assert worker.wait(60) == 0


@pytest.mark.parametrize("command", ["serve", "worker", "init", "verify"])
def test_what_no_waiting_will_help_is_one_clear_line(secured: Secured, tmp_path, command):
    options = secured.options("SASL", "--kafka-sasl-username", USER, "--data-dir", str(tmp_path))
    options += ["--port", "0"] if command == "serve" else []
    wrong = "wr0ng-pw"
    ended = everput(command, *options, EVERPUT_SEALING_KEY=new_sealing_key(), EVERPUT_KAFKA_SASL_PASSWORD=wrong)
    assert (ended.returncode, ended.stdout) == (2, ""), ended.stderr
    *logged, last = ended.stderr.splitlines()
    assert last.startswith("everput: ")
    assert "refuses the password of the user ann (PLAIN): check --kafka-sasl-username" in last
    assert not [line for line in (*logged, last) if wrong in line or "Traceback" in line]


def asked(secured: Secured, *listeners: str, **more) -> dict:
    bootstrap = ",".join(secured.at(one) for one in listeners)
    protocol = more.pop("protocol", PROTOCOLS[listeners[0]])
    return client_options(KafkaSettings(bootstrap=bootstrap, security_protocol=protocol, **more))


@pytest.mark.parametrize(
    ("listener", "given", "why"),
    [
        ("SASL", {"sasl_mechanism": "SCRAM-SHA-512", "sasl_password": "wrong"}, r"the user ann \(SCRAM-SHA-512\)"),
        ("SASL", {"sasl_mechanism": "SCRAM-SHA-256"}, "does not support the SASL mechanism SCRAM-SHA-256"),
        ("INSIDE", {"protocol": "SASL_PLAINTEXT"}, "does not use SASL on this port: check --kafka-security-protocol"),
        ("BOTH", {}, r"is not trusted \(self-signed certificate\): check --kafka-ca-file"),
    ],
)
async def test_each_setting_that_is_wrong_is_told_apart(secured: Secured, listener, given, why):
    sasl = {"sasl_mechanism": "PLAIN", "sasl_username": USER, "sasl_password": PASSWORD}
    with pytest.raises(ConfigurationError, match=why):
        await why_not(asked(secured, listener, **{**sasl, **given}))


async def test_what_may_be_only_for_now_is_said_too_and_another_server_may_answer(secured: Secured):
    closes = "the server closes the connection; check --kafka-security-protocol and the client certificate"
    assert closes in await why_not(asked(secured, "MTLS", ca_file=secured.ca))  # no certificate of its own
    assert closes in await why_not(asked(secured, "MTLS", protocol="PLAINTEXT"))
    assert await why_not(asked(secured, "INSIDE")) == "it answers again"
    sasl = {"sasl_mechanism": "PLAIN", "sasl_username": USER, "sasl_password": "wrong"}
    with pytest.raises(ConfigurationError):
        await why_not(asked(secured, "SASL", **sasl))
    both = asked(secured, "SASL", **sasl)
    with nobody() as port:
        nowhere = f"127.0.0.1:{port}"
        assert f"{nowhere}: connection refused" in await why_not(
            {**asked(secured, "INSIDE"), "bootstrap_servers": [nowhere]}
        )
        with pytest.raises(ConfigurationError):
            await why_not({**both, "bootstrap_servers": [nowhere, *both["bootstrap_servers"]]})
