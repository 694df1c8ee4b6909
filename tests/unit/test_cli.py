"""Options, environment, files, logs, lines, pauses: what the commands do before anything is started."""

from __future__ import annotations

import logging
import os
import stat
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace
from ipaddress import ip_network
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from broker.errors import ConfigurationError
from broker.kafka.embedded.access import EmbeddedAccess
from broker.private_files import read_secret, refuse_shared_directory, write_secret
from broker.sealing import Sealer, new_sealing_key
from broker.settings import SmtpSettings
from cli import files, logs
from cli.app import everput
from cli.lines import LINE_BYTES_MAX, TextLine, TextLines
from cli.oidc import oidc_settings
from cli.options import Options, shared_options
from cli.processes.children import Pauses
from cli.processes.serve import Supervisor, with_loopback
from cli.smtp import smtp_settings

NOBODY = 65534


def read_options(*arguments: str, **environment: str) -> Options:
    given: list[Options] = []

    @click.command()
    @shared_options
    def command(options: Options) -> None:
        given.append(options)

    result = CliRunner().invoke(command, arguments, env=environment, standalone_mode=False)
    if result.exception is not None:
        raise result.exception
    return given[0]


def test_an_option_and_its_variable_say_the_same():
    assert read_options("--port", "9", "--topic-prefix", "x.") == read_options(
        EVERPUT_PORT="9", EVERPUT_TOPIC_PREFIX="x."
    )


@pytest.mark.parametrize(
    ("arguments", "limits"),
    [
        ([], (None, None)),
        (["--host", "localhost"], (None, None)),
        (["--host", "::1"], (None, None)),
        (["--host", "0.0.0.0"], (1000, 16 << 20)),
        (["--host", "api"], (1000, 16 << 20)),
        (["--public-url", "https://broker.example"], (1000, 16 << 20)),
        (["--host", "0.0.0.0", "--no-registration"], (None, None)),
        (["--host", "0.0.0.0", "--requests-per-s", "0", "--bytes-per-s", "0"], (None, None)),
        (["--requests-per-s", "5", "--bytes-per-s", "6"], (5, 6)),
        (["--host", "0.0.0.0", "--requests-per-s", "5"], (5, 16 << 20)),
    ],
)
def test_where_strangers_may_register_there_are_limits_unless_they_are_lifted(arguments: list[str], limits):
    settings = read_options("--kafka", "a:1", *arguments).settings(sealing_key="k")
    assert (settings.requests_per_s, settings.bytes_per_s) == limits


def test_the_command_line_wins_over_the_environment():
    assert read_options("--port", "9", EVERPUT_PORT="8").port == 9


@pytest.mark.parametrize("value", ["10.0.0.0/8 ::1/128", "10.0.0.0/8,::1/128", " 10.0.0.0/8 , ::1/128 "])
def test_networks_in_the_environment_are_separated_by_spaces_or_commas(value: str):
    expected = (ip_network("10.0.0.0/8"), ip_network("::1/128"))
    assert read_options(EVERPUT_ALLOW_NETWORK=value).allow_network == expected


def test_what_is_no_network_is_refused_by_name():
    with pytest.raises(click.BadParameter, match="'localhost' is not a network"):
        read_options("--allow-network", "localhost")


def test_options_reach_a_child_unchanged_through_its_environment():
    arguments = ["--data-dir", "/somewhere", "--host", "::1", "--port", "0", "--kafka", "a:1,b:2", "--partitions", "8"]
    arguments += ["--allow-network", "10.0.0.0/8", "--allow-network", "fd00::/8", "--no-flush-each-batch"]
    options = read_options(*arguments)
    assert read_options(**options.environment()) == options


@pytest.mark.parametrize(
    ("arguments", "allowed"),
    [
        ([], True),
        (["--host", "localhost"], True),
        (["--host", "::1"], True),
        (["--host", "0.0.0.0"], False),
        (["--host", "10.0.0.1"], False),
        (["--host", "everput.local"], False),
        (["--public-url", "https://everput.example"], False),
        (["--trusted-proxy", "127.0.0.1"], False),
        (["--allowed-host", "everput.example"], False),
    ],
)
def test_listeners_may_be_on_loopback_where_the_api_is_for_this_machine_alone(arguments: list[str], allowed: bool):
    options = with_loopback(read_options(*arguments))
    networks = options.settings(sealing_key="k", embedded=EmbeddedAccess("127.0.0.1:5", "hush")).allow_networks
    assert set(networks) == ({ip_network("127.0.0.0/8"), ip_network("::1/128")} if allowed else set())
    assert read_options(**options.environment()) == options


def test_messages_are_kept_for_ever_or_for_an_age_that_repeats_of_puts_allow():
    def retained_s(*arguments: str) -> int | None:
        options = read_options("--kafka", "k:9092", *arguments)
        return options.settings(sealing_key="k").retain_messages_s

    assert retained_s() is None
    assert retained_s("--retain-messages", "30d") == 30 * 86_400
    assert retained_s("--retain-messages", "48h") == 2 * 86_400
    for refused in ("47h", "1d", "30", "-3d", "1w", "0d"):
        with pytest.raises(click.BadParameter, match="such as 30d"):
            retained_s("--retain-messages", refused)


def test_embedded_kafka_is_one_broker_that_syncs_each_batch():
    kafka = read_options().kafka_settings(embedded=EmbeddedAccess("127.0.0.1:5", "hush-hush"))
    assert (kafka.bootstrap, kafka.replication, kafka.min_insync, kafka.flush_each_batch, kafka.partitions) == (
        "127.0.0.1:5",
        1,
        1,
        True,
        8,
    )
    assert (kafka.security_protocol, kafka.sasl_password) == ("SASL_PLAINTEXT", "hush-hush")
    assert "hush-hush" not in repr(kafka)


def test_a_cluster_has_three_copies_of_which_two_acknowledge():
    kafka = read_options("--kafka", "a:1").kafka_settings()
    assert (kafka.replication, kafka.min_insync, kafka.flush_each_batch, kafka.partitions) == (3, 2, False, 64)


def test_one_copy_needs_one_acknowledgement():
    assert read_options("--kafka", "a:1", "--replication", "1").kafka_settings().min_insync == 1


def test_sasl_without_a_password_is_refused():
    options = read_options("--kafka", "a:1", "--kafka-security-protocol", "SASL_SSL", "--kafka-sasl-username", "u")
    with pytest.raises(ConfigurationError, match="EVERPUT_KAFKA_SASL_PASSWORD"):
        options.kafka_settings()


def test_the_sasl_password_comes_by_the_environment_and_is_not_shown(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("EVERPUT_KAFKA_SASL_PASSWORD", "hush-hush")
    options = read_options("--kafka", "a:1", "--kafka-security-protocol", "SASL_SSL", "--kafka-sasl-username", "u")
    kafka = options.kafka_settings()
    assert kafka.sasl_password == "hush-hush"
    assert kafka.sasl_mechanism == "PLAIN"
    assert "hush-hush" not in repr(kafka)


def test_a_mail_server_has_a_password_that_comes_by_the_environment(monkeypatch: pytest.MonkeyPatch):
    asked = ("--smtp-url", "smtp://ann%40example.com@mail.example", "--mail-from", "everput@example.com")
    options = read_options(*asked)
    with pytest.raises(ConfigurationError, match="EVERPUT_SMTP_PASSWORD"):
        smtp_settings(options.smtp_url, options.mail_from)
    monkeypatch.setenv("EVERPUT_SMTP_PASSWORD", "hush-hush")
    smtp = smtp_settings(options.smtp_url, options.mail_from)
    assert smtp is not None
    assert (smtp.host, smtp.port, smtp.tls, smtp.username) == ("mail.example", 587, False, "ann@example.com")
    assert smtp.password == "hush-hush"
    assert "hush-hush" not in repr(smtp)
    monkeypatch.delenv("EVERPUT_SMTP_PASSWORD")
    assert smtp_settings("smtps://mail.example", "a@b.example") == SmtpSettings(
        host="mail.example", port=465, tls=True, sender="a@b.example"
    )
    assert smtp_settings(None, None) is None


@pytest.mark.parametrize(
    ("url", "sender"),
    [
        ("http://mail.example", "a@b.example"),
        ("smtp://mail.example:x", "a@b.example"),
        ("smtp://u:secret@mail.example", "a@b.example"),
        ("smtp://mail.example/path", "a@b.example"),
        ("smtp://", "a@b.example"),
        ("smtp://mail.example", "nobody"),
        ("smtp://mail.example", None),
        (None, "a@b.example"),
    ],
)
def test_a_wrong_mail_server_is_refused(url: str | None, sender: str | None):
    with pytest.raises(ConfigurationError) as refused:
        smtp_settings(url, sender)
    assert "secret" not in str(refused.value)


def test_no_kafka_is_an_error_that_names_the_option():
    with pytest.raises(ConfigurationError, match="--kafka"):
        read_options().kafka_settings()


def test_help_names_every_command_and_imports_none():
    result = CliRunner().invoke(everput, ["--help"])
    assert result.exit_code == 0
    assert all(name in result.output for name in ("serve", "api", "worker", "init", "put", "demo"))


def test_a_configuration_error_is_one_line_and_exit_code_2(tmp_path: Path):
    result = CliRunner().invoke(everput, ["put", "q", "--data-dir", str(tmp_path)], env={"EVERPUT_API_KEY": ""})
    assert result.exit_code == 2
    assert result.stderr.startswith("everput: no API key")
    assert result.stderr.count("\n") == 1


def test_a_secret_is_written_for_its_owner_only_and_read_again(tmp_path: Path):
    path = tmp_path / "api-key"
    write_secret(path, "one")
    write_secret(path, "two")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert read_secret(path) == "two"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("arguments", "environment", "said"),
    [
        ([], {"EVERPUT_SEALING_KEY": "short"}, "openssl rand -base64 32 | tr '+/' '-_'"),
        (["--kafka-security-protocol", "SASL_SSL"], {}, "needs --kafka-sasl-username"),
    ],
)
def test_init_checks_its_settings_before_it_asks_for_a_password(arguments, environment, said):
    given = ["init", "--kafka", "127.0.0.1:1", "--email", "ann@example.com", *arguments]
    done = CliRunner().invoke(everput, given, env=environment, input="")
    assert (done.exit_code, said in done.stderr, "Password" in done.output) == (2, True, False), done.output


def test_the_sealing_key_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv(files.SEALING_KEY_VARIABLE, raising=False)
    with pytest.raises(ConfigurationError, match=r"no sealing key.*openssl rand -base64 32"):
        files.sealing_key(tmp_path)
    made = files.sealing_key(tmp_path, make=True)
    assert files.sealing_key(tmp_path, make=True) == made
    assert Sealer(made).open(Sealer(made).seal("x")) == "x"
    assert stat.S_IMODE(files.sealing_key_file(tmp_path).stat().st_mode) == 0o600


def test_the_sealing_key_of_the_environment_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(files.SEALING_KEY_VARIABLE, "nonsense")
    with pytest.raises(ConfigurationError, match="must be 32 bytes"):
        files.sealing_key(tmp_path)


def test_a_secret_may_come_by_a_file_that_a_variable_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "mounted"
    path.write_text("hush-hush\n")
    path.chmod(0o444)  # as a container engine mounts it
    monkeypatch.delenv("EVERPUT_KAFKA_SASL_PASSWORD", raising=False)
    monkeypatch.setenv("EVERPUT_KAFKA_SASL_PASSWORD_FILE", str(path))
    sasl = ("--kafka", "a:1", "--kafka-security-protocol", "SASL_SSL", "--kafka-sasl-username", "u")
    assert read_options(*sasl).kafka_settings().sasl_password == "hush-hush"
    monkeypatch.setenv("EVERPUT_KAFKA_SASL_PASSWORD", "another")
    with pytest.raises(ConfigurationError, match="both set"):
        read_options(*sasl).kafka_settings()
    monkeypatch.setenv("EVERPUT_SEALING_KEY_FILE", str(tmp_path / "nowhere"))
    monkeypatch.delenv(files.SEALING_KEY_VARIABLE, raising=False)
    with pytest.raises(ConfigurationError, match="EVERPUT_SEALING_KEY_FILE names a file that does not exist"):
        files.sealing_key(tmp_path)


def test_the_sealing_key_may_be_mounted_and_its_file_is_not_told_to_children(tmp_path: Path):
    mounted = tmp_path / "mounted"
    key = new_sealing_key()
    mounted.write_text(key)
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv(files.SEALING_KEY_VARIABLE, raising=False)
        patch.setenv("EVERPUT_SEALING_KEY_FILE", str(mounted))
        told = Supervisor(read_options("--data-dir", str(tmp_path)), api_processes=1, workers=1).environment()
    assert told[files.SEALING_KEY_VARIABLE] == key
    assert "EVERPUT_SEALING_KEY_FILE" not in told


@pytest.mark.parametrize(("given", "told"), [((), "3"), (("--partitions", "5"), "5"), (("--topic-prefix", "b."), None)])
def test_the_topics_of_a_data_directory_keep_their_number_of_partitions(
    tmp_path: Path, given: tuple[str, ...], told: str | None
):
    # Some folders are missing, as after a crash while Kafka makes them.
    for name in ("messages-0", "messages-x", "messages-7.00-delete", "deliveries-0", "deliveries-2", "statistics-30"):
        (tmp_path / "kafka" / "kafka" / f"everput.{name}").mkdir(parents=True)
    options = read_options("--data-dir", str(tmp_path), *given)
    assert Supervisor(options, api_processes=1, workers=1).environment().get("EVERPUT_PARTITIONS") == told


def test_a_process_beside_the_server_finds_the_number_of_partitions_in_its_data_directory(tmp_path: Path):
    (tmp_path / "kafka" / "kafka" / "everput.messages-15").mkdir(parents=True)
    (tmp_path / "kafka" / "kafka.properties").write_text("advertised.listeners=CLIENT://127.0.0.1:5\n")
    (tmp_path / "kafka" / "password").write_text("p" * 43)
    (tmp_path / "kafka" / "password").chmod(0o600)
    options = read_options("--data-dir", str(tmp_path), "--kafka", "127.0.0.1:5")
    assert options.kafka_settings().partitions == 16
    assert replace(options, partitions=4).kafka_settings().partitions == 4
    # Its children are told, and do not look.
    assert options.kafka_settings(EmbeddedAccess("127.0.0.1:5", "p")).partitions == 8


def test_a_data_directory_is_made_for_its_owner_only(tmp_path: Path):
    files.make_data_dir(tmp_path / "data")
    assert stat.S_IMODE((tmp_path / "data").stat().st_mode) == 0o700


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o702])
def test_a_data_directory_that_others_can_write_to_is_refused_with_what_to_do(tmp_path: Path, mode: int):
    folder = tmp_path / "data"
    folder.mkdir()
    folder.chmod(mode)
    with pytest.raises(ConfigurationError, match=f"can write to the directory {folder}: run `chmod go-w {folder}`"):
        files.make_data_dir(folder)
    folder.chmod(mode & ~0o022)
    files.make_data_dir(folder)


@pytest.mark.parametrize("name", ["sealing-key", "api-key", "console-password"])
@pytest.mark.parametrize("mode", [0o640, 0o604, 0o602])
def test_a_secret_that_others_can_read_or_write_is_refused_with_what_to_do(tmp_path: Path, name: str, mode: int):
    tmp_path.chmod(0o700)
    path = tmp_path / name
    write_secret(path, "hush-hush")
    files.make_data_dir(tmp_path)
    path.chmod(mode)
    with pytest.raises(ConfigurationError, match=f"can read or write {path}: run `chmod go-rwx {path}`"):
        files.make_data_dir(tmp_path)


def test_an_api_or_worker_refuses_a_sealing_key_that_others_can_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv(files.SEALING_KEY_VARIABLE, raising=False)
    key = files.sealing_key(tmp_path, make=True)
    assert files.sealing_key(tmp_path) == key
    path = files.sealing_key_file(tmp_path)
    path.chmod(0o640)
    with pytest.raises(ConfigurationError, match=f"can read or write {path}"):
        files.sealing_key(tmp_path)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_what_belongs_to_another_user_is_refused_except_by_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = tmp_path / "data"
    folder.mkdir(mode=0o700)
    os.chown(folder, NOBODY, NOBODY)
    refuse_shared_directory(folder)
    monkeypatch.setattr(os, "geteuid", lambda: 4711)
    with pytest.raises(ConfigurationError, match="belongs to another user"):
        refuse_shared_directory(folder)


def test_a_data_directory_has_one_server(tmp_path: Path):
    with files.lock(tmp_path), pytest.raises(ConfigurationError, match="another `everput serve`"):
        files.lock(tmp_path)
    with files.lock(tmp_path):
        pass


def test_a_data_directory_that_is_a_file_is_a_clear_error(tmp_path: Path):
    (tmp_path / "data").write_text("")
    with pytest.raises(ConfigurationError, match="can't create the data directory"):
        files.make_data_dir(tmp_path / "data")


def test_a_process_that_keeps_dying_is_started_ever_later_up_to_five_seconds():
    pauses = Pauses()
    assert [pauses.after(1.0) for _ in range(8)] == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]
    assert pauses.after(60.0) == 0.1


def test_a_log_line_is_an_event_with_fields():
    assert (
        logs.line("process.died", process="worker-1", exit=-9, reason=None) == "process.died process=worker-1 exit=-9"
    )
    assert logs.line("x", reason='it said "no"') == "x reason=\"it said 'no'\""


def test_a_log_record_of_several_lines_is_one_line(capfd: pytest.CaptureFixture[str]):
    root = logging.getLogger()
    before = root.handlers[:], root.level
    try:
        logs.set_up("worker-1", "info")
        logging.getLogger("x").info("one\ntwo")
        root.handlers[0].flush()
    finally:
        root.handlers, root.level = before
    assert capfd.readouterr().err.endswith("Z INFO worker-1 one two\n")


def test_libraries_log_nothing_below_the_level_that_was_asked_for():
    program = """
import logging
from cli import logs
logs.set_up("p", "{level}")
for name in (*logs._QUIETER, "everput"):
    for level in ("debug", "info", "warning", "error"):
        getattr(logging.getLogger(name), level)("%s", level)
"""
    for level, left_out in (("warning", {"debug", "info"}), ("error", {"debug", "info", "warning"})):
        done = subprocess.run(
            [sys.executable, "-c", program.format(level=level)], capture_output=True, text=True, check=True
        )
        said = {line.rpartition(" ")[2] for line in done.stderr.splitlines()}
        assert said == {"debug", "info", "warning", "error"} - left_out


def test_log_lines_that_nobody_reads_stop_nobody_and_are_counted():
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    writer = logs.Writer(writing, lines_max=10)

    def read() -> list[str]:
        found = b""
        while True:
            waits = writer.unwritten
            with suppress(BlockingIOError):
                found += os.read(reading, 1 << 20)
            if not waits:
                return found.decode().splitlines()

    for number in range(1_000):  # a pipe takes 64 KiB
        writer.handle(logging.makeLogRecord({"msg": f"{number} {'x' * 1_000}"}))
    told = read()
    writer.handle(logging.makeLogRecord({"msg": "last"}))
    *told, last = told + read()
    written = [int(text.split()[0]) for text in told if not text.startswith("log.left_out")]
    left_out = [int(text.partition("lines=")[2]) for text in told if text.startswith("log.left_out")]
    assert last == "last"
    assert written == sorted(written)
    assert sum(left_out) == 1_000 - len(written) > 0
    os.close(reading)
    os.close(writing)


@pytest.mark.parametrize("read", [True, False])
def test_a_process_that_fails_has_its_last_lines_written_and_waits_for_nobody(read: bool):
    program = """
from cli import logs
logs._LAST_S = 30 if {read} else 0.1
logs.set_up("p", "info")
for number in range({lines}):
    logs.Logger("x").info("line", number=number, text="x" * 1000)
logs.Logger("x").error("process.failed", ValueError("why"))
raise SystemExit(1)
"""
    text = program.format(read=read, lines=10 if read else 1_000)
    with subprocess.Popen([sys.executable, "-c", text], stderr=subprocess.PIPE, text=True) as process:
        if read:
            assert process.communicate(timeout=60)[1].endswith("process.failed\nValueError: why\n")
        assert process.wait(60) == 1


async def collect(lines: TextLines) -> list[TextLine]:
    return [line async for line in lines]


async def test_lines_keep_their_numbers_and_empty_ones_are_counted(tmp_path: Path):
    (tmp_path / "lines").write_bytes("one\n\ntwo\r\n\nthree ü".encode())
    with (tmp_path / "lines").open("rb") as file:
        lines = TextLines(file)
        assert await collect(lines) == [TextLine(1, "one"), TextLine(3, "two"), TextLine(5, "three ü")]
        assert lines.skipped == 2


async def test_a_line_that_can_be_no_message_says_why_and_does_not_end_the_rest(tmp_path: Path):
    (tmp_path / "lines").write_bytes(b"a" * (LINE_BYTES_MAX + 1) + b"\n\xff\nfine\n" + b"b" * (2 * LINE_BYTES_MAX))
    with (tmp_path / "lines").open("rb") as file:
        found = await collect(TextLines(file))
    assert [(line.number, line.fault is None) for line in found] == [(1, False), (2, False), (3, True), (4, False)]
    assert found[2].text == "fine"


async def test_lines_come_from_a_pipe_as_they_are_written():
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb", buffering=0) as source:
        lines = aiter(TextLines(source))
        os.write(writing, b"one\ntw")
        assert await anext(lines) == TextLine(1, "one")
        os.write(writing, b"o\n")
        assert await anext(lines) == TextLine(2, "two")
        os.close(writing)
        assert await anext(lines, None) is None


def test_an_empty_variable_says_nothing():
    assert read_options(EVERPUT_ALLOW_NETWORK="", EVERPUT_KAFKA="", EVERPUT_PARTITIONS="") == read_options()


@pytest.mark.parametrize(
    "servers",
    [
        "kafka",
        "kafka:",
        ":9092",
        "kafka:port",
        "kafka:0",
        "kafka:65536",
        "a:1,b",
        "http://a:1",
        "u:p@a:1",
        "::1:9092",
        ",",
    ],
)
def test_what_is_no_kafka_server_is_refused_by_name(servers: str):
    with pytest.raises(ConfigurationError, match="host:port"):
        read_options("--kafka", servers).kafka_settings()


@pytest.mark.parametrize("servers", ["kafka:9092", "a.b:1,c-d:2 , 10.0.0.1:9092", "[::1]:9092"])
def test_what_may_be_a_kafka_server_is_taken(servers: str):
    assert read_options("--kafka", servers).kafka_settings().bootstrap == servers


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--port", "99999"], "--port"),
        (["--port", "http"], "--port"),
        (["--partitions", "0"], "--partitions"),
        (["--kafka-security-protocol", "TLS"], "--kafka-security-protocol"),
        (["--kafka-ca-file", "/nowhere.pem"], "/nowhere.pem"),
    ],
)
def test_a_bad_value_is_an_error_that_names_the_option(arguments: list[str], said: str):
    with pytest.raises(click.BadParameter) as refused:
        read_options(*arguments)
    assert said in refused.value.format_message()


def test_a_file_that_is_no_certificate_is_named(tmp_path: Path):
    (tmp_path / "ca.pem").write_text("nonsense")
    options = read_options(
        "--kafka", "a:1", "--kafka-security-protocol", "SSL", "--kafka-ca-file", str(tmp_path / "ca.pem")
    )
    with pytest.raises(ConfigurationError, match=r"the TLS files for Kafka \(.*ca\.pem\) can't be used"):
        options.kafka_settings()


OIDC = ("--oidc-issuer", "https://id.example", "--oidc-client-id", "everput", "--public-url", "https://everput.example")


def test_the_provider_of_sign_ins_needs_a_client_secret_from_the_environment_and_a_public_url(monkeypatch, tmp_path):
    given = read_options(*OIDC, "--oidc-domain", "@Example.com")
    with pytest.raises(ConfigurationError, match="EVERPUT_OIDC_CLIENT_SECRET"):
        oidc_settings(given)
    secret = tmp_path / "secret"
    secret.write_text("hush-hush\n")
    secret.chmod(0o600)
    monkeypatch.setenv("EVERPUT_OIDC_CLIENT_SECRET_FILE", str(secret))
    made = oidc_settings(given)
    assert (made.client_secret, made.name, made.domains) == ("hush-hush", "id.example", ("example.com",))
    assert "hush-hush" not in repr(made)
    for wrong in (OIDC[:2], OIDC[2:4], ("--oidc-issuer", "http://id.example", *OIDC[2:]), (*OIDC[:1], "x", *OIDC[2:])):
        with pytest.raises(ConfigurationError):
            oidc_settings(read_options(*wrong))
