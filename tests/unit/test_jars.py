"""The jars' cache: only the pinned bytes get in, whatever the network, another process or a crash does."""

from __future__ import annotations

import hashlib
import re
import threading
from pathlib import Path

import pytest

from broker.errors import ConfigurationError
from broker.kafka.embedded import jars
from broker.kafka.embedded.jars import KAFKA_VERSION, Pin, collect, pins

CONTENT = {"alpha": b"a" * 1000, "beta": b"b" * 2000}


def pin(name: str) -> Pin:
    content = CONTENT[name]
    return Pin(hashlib.sha256(content).hexdigest(), len(content), f"org.example:{name}:1.0")


WANTED = (pin("alpha"), pin("beta"))


class Repository:
    """Serves CONTENT, or what it is told to serve instead; counts."""

    def __init__(self, **instead: bytes | Exception) -> None:
        self.instead = instead
        self.asked: list[str] = []
        self.lock = threading.Lock()

    def fetch(self, pin: Pin, staging: Path, advance) -> Path:
        name = pin.coordinate.split(":")[1]
        with self.lock:
            self.asked.append(name)
        content = self.instead.get(name, CONTENT[name])
        if isinstance(content, Exception):
            raise content
        path = staging / "some" / "where.jar"
        path.parent.mkdir()
        path.write_bytes(content)
        advance(len(content))
        return path


def test_what_is_missing_is_fetched_once(tmp_path):
    repository = Repository()
    first = collect(WANTED, tmp_path / "cache", fetch=repository.fetch, progress=False)
    second = collect(WANTED, tmp_path / "cache", fetch=repository.fetch, progress=False)
    assert first == second
    assert [path.read_bytes() for path in first] == [CONTENT["alpha"], CONTENT["beta"]]
    assert sorted(repository.asked) == ["alpha", "beta"]


def test_a_jar_with_other_bytes_is_refused_and_never_gets_its_name(tmp_path):
    repository = Repository(beta=b"x" * 2000)
    with pytest.raises(ConfigurationError, match=r"org\.example:beta:1\.0 .* differs from the pinned file"):
        collect(WANTED, tmp_path, fetch=repository.fetch, progress=False)
    assert not list(tmp_path.rglob("beta*"))
    assert not [path for path in tmp_path.rglob("*.jar") if path.read_bytes() == b"x" * 2000]


def test_a_jar_that_was_changed_in_the_cache_is_fetched_again(tmp_path):
    collect(WANTED, tmp_path, fetch=Repository().fetch, progress=False)
    (tmp_path / "alpha-1.0.jar").write_bytes(b"z" * 1000)  # the same size
    repository = Repository()
    collect(WANTED, tmp_path, fetch=repository.fetch, progress=False)
    assert repository.asked == ["alpha"]
    assert (tmp_path / "alpha-1.0.jar").read_bytes() == CONTENT["alpha"]


def test_a_changed_jar_that_cannot_be_fetched_again_is_an_error(tmp_path):
    collect(WANTED, tmp_path, fetch=Repository().fetch, progress=False)
    (tmp_path / "alpha-1.0.jar").write_bytes(b"z" * 1000)
    with pytest.raises(ConfigurationError, match="needs the network once"):
        collect(WANTED, tmp_path, fetch=Repository(alpha=OSError("no route")).fetch, progress=False)


def test_a_download_that_fails_is_tried_three_times_and_then_says_why(tmp_path):
    repository = Repository(alpha=OSError("no route to host"))
    with pytest.raises(ConfigurationError, match="no route to host"):
        collect(WANTED[:1], tmp_path, fetch=repository.fetch, progress=False)
    assert repository.asked == ["alpha"] * 3


def test_two_at_once_fetch_each_jar_once(tmp_path):
    repository = Repository()
    jobs = [
        threading.Thread(target=collect, args=(WANTED, tmp_path), kwargs={"fetch": repository.fetch, "progress": False})
        for _ in range(4)
    ]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join()
    assert sorted(repository.asked) == ["alpha", "beta"]


def test_the_progress_bar_goes_to_stderr(tmp_path, capsys):
    collect(WANTED, tmp_path, fetch=Repository().fetch, progress=True)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "Apache Kafka" in shown.err


def test_a_cache_that_cannot_be_written_says_where_and_what_to_set(tmp_path):
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(ConfigurationError, match="EVERPUT_CACHE_DIR"):
        collect(WANTED, tmp_path / "cache", fetch=Repository().fetch, progress=False)


def test_the_cache_directory_can_be_chosen(tmp_path, monkeypatch):
    monkeypatch.setenv("EVERPUT_CACHE_DIR", str(tmp_path))
    assert jars.cache_dir() == tmp_path
    monkeypatch.delenv("EVERPUT_CACHE_DIR")
    assert jars.cache_dir().name == "everput"


def test_every_pin_is_whole_and_kafka_is_among_them():
    found = pins()
    assert len(found) == len({one.filename for one in found}) == 45
    for one in found:
        assert re.fullmatch(r"[0-9a-f]{64}", one.sha256)
        assert re.fullmatch(r"[^:\s]+:[^:\s]+:[^:\s]+", one.coordinate)
        assert one.size > 0
    assert f"org.apache.kafka:kafka_2.13:{KAFKA_VERSION}" in {one.coordinate for one in found}


def test_a_download_that_is_given_up_ends_at_once_though_the_repository_is_silent(tmp_path):
    cancelled, silent = threading.Event(), threading.Event()

    def fetch(_pin: Pin, staging: Path, _advance) -> Path:
        cancelled.set()
        silent.wait()
        return staging

    with pytest.raises(ConfigurationError):
        collect(WANTED, tmp_path, fetch=fetch, progress=True, cancelled=cancelled)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".fetch-")]
    found = collect(WANTED, tmp_path, fetch=Repository().fetch, progress=False)  # another process may go on
    assert [path.read_bytes() for path in found] == [CONTENT["alpha"], CONTENT["beta"]]
    assert not [path.name for path in tmp_path.iterdir() if path.name.startswith(".fetch-")]
    silent.set()
