"""Exports of an organization: whole files, a manifest that knows them, and going on after a kill."""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import orjson
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from broker.errors import ConfigurationError
from broker.ports import Record
from cli import log_client
from cli.app import everput
from cli.exports import export, manifest, rows


def event_line(number: int, organization_id: str = "o1") -> bytes:
    event = {"type": "queue.created", "at_ms": number, "organization_id": organization_id, "actor": "shell"}
    event |= {"request_id": "", "queue_id": f"q{number}", "name": "n"}
    place = {"topic": "control", "partition": 0, "offset": number, "log_ms": number}
    return orjson.dumps({**place, "event": event})


class Api:
    """Ten events, two in a part. fails_at: the cursor at which there is no answer."""

    def __init__(self, organization_id: str = "o1") -> None:
        self.fails_at: int | None = None
        self.organization_id = organization_id
        self.asked: list[dict[str, str]] = []

    def answer(self, request: httpx.Request) -> httpx.Response:
        query = dict(request.url.params)
        self.asked.append(query)
        at = int(query.get("cursor", 0))
        lines = []
        for number in range(at, 10):
            if number == self.fails_at:
                return httpx.Response(200, content=b"".join(line + b"\n" for line in lines) + b'{"topic":"con')
            lines.append(event_line(number, self.organization_id))
            if number % 2:
                lines.append(orjson.dumps({"cursor": str(number + 1), "complete": number == 9}))
        return httpx.Response(200, content=b"".join(line + b"\n" for line in lines))


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> Api:
    made = Api()

    def client(url: str, key: str) -> httpx.Client:
        return httpx.Client(base_url="http://api.test", transport=httpx.MockTransport(made.answer))

    real = log_client.read
    monkeypatch.setattr(log_client, "client", client)
    monkeypatch.setattr(log_client, "read", lambda asking, query: real(asking, query, give_up_after_s=0))
    monkeypatch.setattr(export, "FILE_EVENTS", 4)
    return made


def run(folder: Path, *arguments: str) -> Any:
    return CliRunner().invoke(everput, ["export", str(folder), "--key", "k", *arguments])


def events_in(folder: Path) -> list[Any]:
    made = json.loads((folder / "manifest.json").read_text())
    found = []
    for one in made["files"]:
        content = (folder / one["name"]).read_bytes()
        assert hashlib.sha256(content).hexdigest() == one["sha256"]
        assert (len(content), content.count(b"\n")) == (one["size"], one["rows"])
        found += [json.loads(line) for line in content.splitlines()]
    return found


def test_every_event_is_in_one_of_the_files_that_the_manifest_knows(api: Api, tmp_path: Path):
    result = run(tmp_path / "out")
    assert (result.exit_code, result.output) == (0, f"10 events in 3 files in {tmp_path / 'out'}\n")
    assert [line["offset"] for line in events_in(tmp_path / "out")] == list(range(10))
    asked = len(api.asked)
    assert run(tmp_path / "out").exit_code == 0
    assert len(api.asked) == asked  # it is complete


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_an_export_is_its_owners_alone_whatever_the_umask(api: Api, tmp_path: Path, form: str):
    before = os.umask(0)
    try:
        assert run(tmp_path / "out", "--format", form).exit_code == 0
    finally:
        os.umask(before)
    folder = tmp_path / "out"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}
    assert len(list(folder.iterdir())) > 1


def test_an_export_that_was_broken_off_goes_on_where_its_last_whole_file_ended(api: Api, tmp_path: Path):
    api.fails_at = 7
    assert run(tmp_path / "out", "--from", "1970-01-01").exit_code == 2
    assert len(events_in(tmp_path / "out")) == 4
    (tmp_path / "out" / ".events-000002.jsonl").write_text("a draft that a kill left behind")
    api.fails_at = None
    end = api.asked[-1]["to"]
    assert run(tmp_path / "out", "--from", "1970-01-01").exit_code == 0
    assert api.asked[-1] == {"from": "1970-01-01T00:00:00+00:00", "to": end, "cursor": "4"}
    assert [line["offset"] for line in events_in(tmp_path / "out")] == list(range(10))


@pytest.mark.parametrize("other", [["--from", "1971-01-01"], ["--from", "1970-01-01", "--to", "2001-01-01"], []])
def test_a_whole_export_is_not_taken_for_one_of_other_times(api: Api, tmp_path: Path, other: list[str]):
    given = ["--from", "1970-01-01", "--to", "2000-01-01T01:00:00+01:00"]
    assert run(tmp_path / "out", *given).exit_code == 0
    assert run(tmp_path / "out", "--from", "1970-01-01T00:00:00Z", "--to", "2000-01-01").exit_code == 0  # the same
    refused = run(tmp_path / "out", *other)
    assert refused.exit_code == 2
    assert "holds a complete export from 1970-01-01T00:00:00+00:00 to 2000-01-01T01:00:00+01:00" in refused.output
    assert len(events_in(tmp_path / "out")) == 10


def test_a_file_that_can_t_be_written_ends_the_export_and_it_goes_on_there(
    api: Api, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    real = manifest.add

    def add(folder: Path, made: manifest.Manifest, name: str, *more: Any) -> None:
        if name == "events-000002.jsonl":
            raise OSError(28, "No space left on device")
        real(folder, made, name, *more)

    with monkeypatch.context() as patch:
        patch.setattr(manifest, "add", add)
        assert isinstance(run(tmp_path / "out").exception, OSError)
    assert len(events_in(tmp_path / "out")) == 4
    assert run(tmp_path / "out").exit_code == 0
    assert [line["offset"] for line in events_in(tmp_path / "out")] == list(range(10))


def test_a_folder_holds_one_organization_in_one_form(api: Api, tmp_path: Path):
    api.fails_at = 7
    run(tmp_path / "out")
    api.fails_at, api.organization_id = None, "o2"
    assert "another organization" in run(tmp_path / "out").output
    assert "holds an export of another kind or format" in run(tmp_path / "out", "--format", "parquet").output
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    assert "is not empty and holds no export" in run(tmp_path / "mine").output


def test_parquet_has_the_same_events(api: Api, tmp_path: Path):
    assert run(tmp_path / "out", "--format", "parquet").exit_code == 0
    made = json.loads((tmp_path / "out" / "manifest.json").read_text())
    found = [row for one in made["files"] for row in pq.read_table(tmp_path / "out" / one["name"]).to_pylist()]
    assert [row["queue_id"] for row in found] == [f"q{number}" for number in range(10)]
    assert orjson.loads(found[3]["event"]) == orjson.loads(event_line(3))["event"]
    assert found[3]["message_id"] is None


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_the_example_answers_questions_about_an_export(api: Api, tmp_path: Path, form: str):
    settled = {"type": "deliveries.settled", "at_ms": 9, "organization_id": "o1", "actor": "worker", "request_id": ""}
    settled |= {"listener_id": "l7", "rows": [[1, 2, 200, 30], [2, 2, 200, 30], [3, 2, 200, 30]]}
    place = {"topic": "deliveries", "partition": 0, "offset": 0, "log_ms": 9}
    lines = [event_line(number) for number in range(5)] + [orjson.dumps({**place, "event": settled})]
    made = manifest.Manifest(kind="organization", query={"format": form})
    export._write(tmp_path, made, lines, "")
    example = Path(__file__).parents[2] / "examples" / "query_export.py"
    said = subprocess.run([sys.executable, example, tmp_path], capture_output=True, text=True, check=True).stdout
    assert re.search(r"queue.created\s*│\s*5 ", said)
    assert re.search(r"l7\s*│ delivered\s*│\s*3 │\s*30.0 ", said)


def test_without_pyarrow_it_says_what_to_install(api: Api, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    assert "pip install 'everput[parquet]'" in run(tmp_path / "out", "--format", "parquet").output


def test_a_file_that_was_altered_is_found_out(api: Api, tmp_path: Path):
    run(tmp_path / "out")
    made = manifest.load(tmp_path / "out")
    assert made is not None
    assert sum(manifest.check(tmp_path / "out", made)) == sum(one.size for one in made.files)
    path = tmp_path / "out" / made.files[1].name
    path.write_bytes(path.read_bytes().replace(b"q5", b"q6"))
    with pytest.raises(ConfigurationError, match="its SHA-256 differs"):
        list(manifest.check(tmp_path / "out", made))


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_check_says_whether_the_files_are_what_was_exported(api: Api, tmp_path: Path, form: str):
    def check() -> tuple[int, str]:
        done = CliRunner().invoke(everput, ["check", str(tmp_path / "out")])
        return done.exit_code, done.output

    (tmp_path / "out").mkdir()
    assert "holds no export" in check()[1]
    api.fails_at = 7
    run(tmp_path / "out", "--format", form)
    assert (check()[0], "is incomplete" in check()[1]) == (2, True)
    api.fails_at = None
    run(tmp_path / "out", "--format", form)
    assert check() == (0, "10 rows in 3 files match the manifest\n")
    made = manifest.load(tmp_path / "out")
    assert made is not None
    made.files[1].rows += 1
    manifest.save(tmp_path / "out", made)
    assert "has 4 rows, but the manifest says 5" in check()[1]
    (tmp_path / "out" / made.files[0].name).unlink()
    assert (check()[0], "can't be read" in check()[1]) == (2, True)


def test_both_forms_hold_the_same_rows(api: Api, tmp_path: Path):
    for form in ("jsonl", "parquet"):
        assert run(tmp_path / form, "--format", form).exit_code == 0
    tables = [pq.read_table(path) for path in sorted((tmp_path / "parquet").glob("events-*"))]
    place = ("topic", "partition", "offset", "log_ms")
    rows = [row for table in tables for row in table.to_pylist()]
    told = [{**{name: row[name] for name in place}, "event": json.loads(row["event"])} for row in rows]
    assert told == events_in(tmp_path / "jsonl")
    for row, one in zip(rows, told, strict=True):
        assert {name: one["event"].get(name) for name in row if name not in {*place, "event"}} == {
            name: value for name, value in row.items() if name not in {*place, "event"}
        }


@given(
    st.builds(
        Record,
        st.integers(0, 2**40),
        st.integers(0, 2**50),
        st.none() | st.binary(max_size=20),
        st.none() | st.binary(max_size=60) | st.text().map(lambda text: text.encode(errors="ignore")),
        st.lists(st.tuples(st.text(max_size=5), st.none() | st.binary(max_size=9)), max_size=2).map(tuple),
    )
)
def test_a_record_comes_back_from_its_line_byte_for_byte(record: Record):
    line = rows.line(record)
    assert b"\n" not in line
    assert rows.record(line) == record
