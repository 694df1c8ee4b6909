"""compose.yaml and the Dockerfile: what guards data is set, and what they name exists. Docker itself is not needed.

tests/kafka/test_cluster.py starts real brokers with these very settings."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from broker.outbound.addresses import TUNNEL, parse_url
from broker.sealing import new_sealing_key
from cli import files
from cli.app import everput
from cli.files import SEALING_KEY_VARIABLE
from cli.options import variable

ROOT = Path(__file__).parents[2]
COMPOSE = yaml.safe_load((ROOT / "compose.yaml").read_text())
SERVICES = COMPOSE["services"]
BROKERS = {name: service for name, service in SERVICES.items() if name.startswith("kafka-")}
OURS = {name: service for name, service in SERVICES.items() if name not in BROKERS}
DOCKERFILE = (ROOT / "Dockerfile").read_text()


def test_there_are_three_brokers_an_api_and_a_worker():
    assert sorted(SERVICES) == ["api", "init", "kafka-1", "kafka-2", "kafka-3", "worker"]


@pytest.mark.parametrize("broker", BROKERS.values(), ids=list(BROKERS))
def test_a_broker_has_the_settings_that_guard_data(broker):
    environment = broker["environment"]
    assert environment["KAFKA_MIN_INSYNC_REPLICAS"] == 2
    assert environment["KAFKA_DEFAULT_REPLICATION_FACTOR"] == 3
    assert environment["KAFKA_OFFSETS_TOPIC_REPLICATION_FACTOR"] == 3
    assert environment["KAFKA_OFFSETS_RETENTION_MINUTES"] == 2**31 - 1
    assert environment["KAFKA_UNCLEAN_LEADER_ELECTION_ENABLE"] == "false"
    assert environment["KAFKA_AUTO_CREATE_TOPICS_ENABLE"] == "false"
    assert environment["KAFKA_LOG_RETENTION_MS"] == environment["KAFKA_LOG_RETENTION_BYTES"] == -1


@pytest.mark.parametrize("name", BROKERS)
def test_a_broker_writes_to_a_volume_of_its_own_and_is_who_the_others_take_it_for(name):
    broker = BROKERS[name]
    number = name.removeprefix("kafka-")
    environment = broker["environment"]
    assert re.fullmatch(r"\$\{KAFKA_IMAGE:-apache/kafka:4\.\d\.\d@sha256:[0-9a-f]{64}\}", broker["image"])
    # The last two are written by the image's start: tests/containers starts them.
    assert broker["volumes"] == [f"{name}:{environment['KAFKA_LOG_DIRS']}", "/opt/kafka/config", "/opt/kafka/logs"]
    assert name in COMPOSE["volumes"]
    assert environment["KAFKA_NODE_ID"] == int(number)
    assert environment["KAFKA_ADVERTISED_LISTENERS"] == f"PLAINTEXT://{name}:9092"
    assert f"{number}@{name}:9093" in environment["KAFKA_CONTROLLER_QUORUM_VOTERS"].split(",")
    assert re.fullmatch(r"[A-Za-z0-9_-]{22}", environment["CLUSTER_ID"])
    assert "ports" not in broker


@pytest.mark.parametrize("service", OURS.values(), ids=list(OURS))
def test_our_processes_wait_for_every_broker_and_are_told_of_all(service):
    assert service["depends_on"] == {name: {"condition": "service_healthy"} for name in BROKERS}
    assert service["environment"]["EVERPUT_KAFKA"] == ",".join(f"{name}:9092" for name in BROKERS)
    assert all("healthcheck" in broker for broker in BROKERS.values())


@pytest.mark.parametrize("service", OURS.values(), ids=list(OURS))
def test_the_commands_and_the_options_exist(service):
    (name,) = service["command"]
    command = everput.get_command(None, name)
    known = {variable(parameter.name) for parameter in command.params} | {f"{SEALING_KEY_VARIABLE}_FILE"}
    assert service["environment"].keys() <= known


@pytest.mark.parametrize("name", OURS)
def test_the_sealing_key_is_a_file_that_only_those_who_need_it_are_given(name):
    service = OURS[name]
    needs_it = name in ("api", "worker")
    assert service.get("secrets") == (["sealing-key"] if needs_it else None)
    named = {key: value for key, value in service["environment"].items() if "SEALING" in key or "PASSWORD" in key}
    assert named == ({"EVERPUT_SEALING_KEY_FILE": "/run/secrets/sealing-key"} if needs_it else {})
    assert COMPOSE["secrets"]["sealing-key"]["file"].endswith(":-./secrets/sealing-key}")


def test_what_the_containers_are_told_is_read_from_the_mounted_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    mounted = tmp_path / "sealing-key"
    mounted.write_text(new_sealing_key() + "\n")
    mounted.chmod(0o444)
    monkeypatch.delenv(SEALING_KEY_VARIABLE, raising=False)
    for name, value in SERVICES["api"]["environment"].items():
        monkeypatch.setenv(name, str(value).replace("/run/secrets", str(tmp_path)))
    assert files.sealing_key(tmp_path / "nowhere") == mounted.read_text().strip()


@pytest.mark.parametrize("service", SERVICES.values(), ids=list(SERVICES))
def test_no_container_can_gain_rights_or_write_outside_of_its_volumes(service):
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert "privileged" not in service
    assert "cap_add" not in service
    assert any(path.partition(":")[0] == "/tmp" for path in service["tmpfs"])


@pytest.mark.parametrize("service", OURS.values(), ids=list(OURS))
def test_our_containers_are_not_root(service):
    assert service["user"] == "10001:10001"


def test_a_worker_has_its_temporary_file_on_a_disk():
    """docs/operations.md: in a tmpfs it would be memory."""
    assert SERVICES["worker"]["volumes"] == ["/var/tmp"]
    assert "/var/tmp" not in SERVICES["worker"]["tmpfs"]


def test_only_our_containers_reach_the_brokers_and_nothing_leads_out_of_their_network():
    assert COMPOSE["networks"]["kafka"] == {"internal": True}
    assert all(broker["networks"] == ["kafka"] for broker in BROKERS.values())
    assert all("kafka" in service["networks"] for service in OURS.values())
    assert SERVICES["worker"]["networks"] == SERVICES["api"]["networks"] == ["default", "kafka"]


def test_every_image_can_be_pinned_by_its_digest():
    froms = re.findall(r"^FROM (\S+)", DOCKERFILE, re.MULTILINE)
    assert froms == ["${PYTHON_IMAGE}", "${PYTHON_IMAGE}"]
    pinned = re.search(
        r"^ARG PYTHON_IMAGE=(python:3\.13-slim@sha256:[0-9a-f]{64})$", DOCKERFILE.partition("\nFROM ")[0], re.MULTILINE
    )
    assert pinned is not None
    for service in OURS.values():
        assert service["build"]["args"] == {"PYTHON_IMAGE": f"${{PYTHON_IMAGE:-{pinned[1]}}}"}


def test_the_api_is_published_on_loopback_only_and_checked():
    assert SERVICES["api"]["ports"] == ["127.0.0.1:8080:8080"]
    assert SERVICES["api"]["environment"]["EVERPUT_PORT"] == 8080


def test_workers_in_other_containers_reach_the_tunnels_of_the_api():
    """By the service's name: the container itself knows it as its host name, the others by the network's DNS."""
    api = SERVICES["api"]
    assert api["environment"]["EVERPUT_TUNNEL_HOST"] == api["hostname"] == "api"
    assert parse_url(f"{TUNNEL}://{api['hostname']}:1/token/notify").tunnel


@pytest.mark.parametrize("name", ["api", "worker"])
def test_api_and_worker_are_asked_on_their_admin_address_whether_they_are_ready(name):
    program = SERVICES[name]["healthcheck"]["test"][-1]
    compile(program, "healthcheck", "exec")
    assert f'"127.0.0.1", {SERVICES[name]["environment"]["EVERPUT_ADMIN_PORT"]},' in program
    assert "/health/ready" in program


def test_processes_have_the_time_to_end_that_they_are_promised():
    assert SERVICES["api"]["stop_grace_period"] == SERVICES["worker"]["stop_grace_period"] == "30s"


def test_the_image_is_not_root_and_installs_only_pinned_hashes():
    last_stage = DOCKERFILE.rpartition("\nFROM ")[2]
    assert re.search(r"^USER 10001:10001$", last_stage, re.MULTILINE)
    assert 'ENTRYPOINT ["everput"]' in last_stage
    for install in re.findall(r"pip install (.*?)(?: \\| &&|\n)", DOCKERFILE):
        assert "--require-hashes" in install or "--no-index" in install


def test_what_the_dockerfile_copies_exists_and_reaches_the_builder():
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = {
        source
        for line in re.findall(r"^COPY (?!--from)(.*)$", DOCKERFILE, re.MULTILINE)
        for source in line.split()[:-1]
    }
    assert copied == allowed
    assert all((ROOT / source).exists() for source in copied)


@pytest.mark.parametrize(
    "lock", ["requirements.lock", *(f"requirements-{name}.lock" for name in ("dev", "build", "wheels"))]
)
def test_a_lock_pins_every_package_by_hash_and_names_no_place_to_get_it(lock):
    text = (ROOT / lock).read_text()
    requirements = re.split(r"\n(?=[a-z0-9])", text.partition("\n    make lock\n")[2] or text)
    pinned = [one for one in requirements if re.match(r"[a-z0-9._-]+==", one)]
    assert pinned
    assert all("--hash=sha256:" in one for one in pinned)
    assert not re.search(r"://|--index-url|--extra-index-url|--find-links|--trusted-host", text)


def test_the_locks_agree():
    def versions(lock: str) -> dict[str, str]:
        return dict(re.findall(r"^([a-z0-9._-]+)==([^\s;]+)", (ROOT / lock).read_text(), re.MULTILINE))

    everything = versions("requirements-dev.lock").items()
    assert versions("requirements.lock").items() <= everything
    assert versions("requirements-build.lock").items() <= everything
    assert versions("requirements-wheels.lock").items() <= everything


def test_the_readme_installs_only_pinned_hashes_in_the_versions_of_the_locks():
    installs = re.findall(r"^    pip install (.*)$", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert installs == [
        "--require-hashes -r requirements.lock -r requirements-build.lock",
        "--no-deps --no-build-isolation .",
    ]
