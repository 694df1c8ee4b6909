"""The first start: what it makes, once, whatever it is broken off by."""

from __future__ import annotations

import stat
import sys
from pathlib import Path
from typing import Any

import pytest
from memory import MemoryLog

from broker.commands.accounts import AccountCommands
from broker.commands.organizations import create_organization
from broker.core import events as ev
from broker.core.directory import Directory
from broker.core.keys import key_sha256
from broker.errors import NotFound, Refused
from cli.processes.first_start import EMAIL, ORGANIZATION, first_start, new_key


class Start:
    """A data directory and a log."""

    def __init__(self, folder: Path, control: Any = None) -> None:
        self.control = MemoryLog().control if control is None else control
        self.key_file = folder / "api-key"
        self.password_file = folder / "console-password"

    async def run(self) -> None:
        files = {"key_file": self.key_file, "password_file": self.password_file}
        await first_start(self.control, self.control, **files)

    @property
    def state(self) -> Any:
        return self.control.state

    async def opens(self) -> bool:
        """Whether what is in the files is a key and a password of one organization."""
        key = self.state.keys_by_sha256[key_sha256(self.key_file.read_text().strip())]
        password = self.password_file.read_text().strip()
        account = await AccountCommands(self.control, self.control).check_password(EMAIL, password)
        return account.id in self.state.organizations[key.organization_id].members


async def test_it_makes_a_key_and_an_account_of_one_organization_once(tmp_path: Path):
    start = Start(tmp_path)
    await start.run()
    assert await start.opens()
    for file in (start.key_file, start.password_file):
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
    records, texts = list(start.control.records), [start.key_file.read_text(), start.password_file.read_text()]
    assert not any(text.strip().encode() in record for text in texts for record in records)
    await start.run()
    assert start.control.records == records
    assert [start.key_file.read_text(), start.password_file.read_text()] == texts


async def test_it_judges_no_password_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "zxcvbn", None)  # An import would fail. It takes 12 MiB, which the process keeps.
    start = Start(tmp_path)
    await start.run()
    assert await start.opens()


async def test_it_judges_a_password_that_was_in_the_file_before(tmp_path: Path):
    start = Start(tmp_path)
    start.password_file.write_text("1234567890")
    with pytest.raises(Refused, match="top-100"):
        await start.run()


@pytest.mark.parametrize("events", range(5))
async def test_broken_off_after_any_event_the_next_one_makes_the_rest(tmp_path: Path, events: int):
    start = Start(tmp_path)
    left = [events]

    async def dying(_event: Any) -> None:
        if left[0] == 0:
            raise KeyboardInterrupt
        left[0] -= 1

    start.control.before = dying
    try:
        await start.run()
    except KeyboardInterrupt:
        assert events < 4
    start.control.before = None
    await start.run()
    assert await start.opens()
    assert len(start.state.accounts.by_id) == len(start.state.organizations) == 1


async def test_where_people_have_accounts_none_is_made(tmp_path: Path):
    start = Start(tmp_path)
    await AccountCommands(start.control, start.control).create_account("ann@example.com", "correct horse battery")
    await start.run()
    assert start.key_file.exists()
    assert not start.password_file.exists()
    assert len(start.state.accounts.by_id) == 1


async def test_an_installation_that_has_a_key_gets_an_account_of_its_oldest_organization(tmp_path: Path):
    start = Start(tmp_path)
    oldest = await create_organization(start.control, start.control, name="oldest")
    await create_organization(start.control, start.control, name="newer")
    start.key_file.write_text("kept")
    await start.run()
    assert start.key_file.read_text() == "kept"
    account = start.state.accounts.account(EMAIL)
    assert [one.id for one in start.state.organizations_of(account.id)] == [oldest.id]


async def stranger(start: Start, email: str) -> str:
    """The id of an organization of the first one's name, which somebody registered over HTTP."""
    commands = AccountCommands(start.control, start.control)
    account = await commands.create_account(email, "correct horse battery", request_id="r-1")
    return (await commands.members.create_organization(account.id, name=ORGANIZATION, request_id="r-2")).id


async def test_an_organization_that_a_stranger_registered_is_never_taken_but_by_its_id(tmp_path: Path):
    start = Start(tmp_path)
    theirs = await stranger(start, "ann@example.com")
    assert not start.state.initialized
    own = (await new_key(start.control, start.control))[1]
    assert (own.name, own.id != theirs) == (ORGANIZATION, True)
    assert start.state.initialized
    assert (await new_key(start.control, start.control, name=ORGANIZATION))[1].id == own.id
    other = (await new_key(start.control, start.control, name="other"))[1]
    assert (other.name, other.id not in (own.id, theirs)) == ("other", True)
    anns = (await new_key(start.control, start.control, owner=("ann@example.com", "correct horse battery")))[1]
    assert anns.id not in (own.id, other.id, theirs), "an account is made a member of what is its own, or of nothing"
    again = await new_key(start.control, start.control, owner=("ann@example.com", "correct horse battery"))
    assert again[1].id == anns.id
    assert (await new_key(start.control, start.control, organization_id=theirs))[1].id == theirs
    with pytest.raises(NotFound):
        await new_key(start.control, start.control, organization_id=ORGANIZATION)


async def test_a_stranger_with_the_address_of_the_first_account_becomes_no_member(tmp_path: Path):
    start = Start(tmp_path)
    start.password_file.write_text("the password of nobody's account")  # a start that ended before the account was made
    await AccountCommands(start.control, start.control).create_account(EMAIL, "correct horse battery", request_id="r")
    await start.run()
    assert not any(one.members for one in start.state.organizations.values())


@pytest.mark.parametrize("actor", ["shell", ""])  # the first programs left it empty
def test_a_log_in_which_the_shell_made_an_organization_or_a_key_is_initialized(actor: str):
    made = ev.OrganizationCreated(at_ms=1, organization_id="o", actor=actor, name="default")
    theirs = ev.OrganizationCreated(at_ms=1, organization_id="o", actor="account:a", name="default")
    key = ev.KeyCreated(
        at_ms=2, organization_id="o", actor=actor, key_id="k", name="first", prefix="p", secret_sha256="s", scopes=()
    )
    for events, initialized in (([made], True), ([theirs, key], True), ([theirs], False)):
        directory = Directory()
        for event in events:
            directory.apply(event)
        assert directory.initialized is initialized


async def test_of_two_machines_on_one_kafka_one_has_the_password(tmp_path: Path):
    (tmp_path / "other").mkdir()
    start = Start(tmp_path)
    other = Start(tmp_path / "other", start.control)

    async def later(event: Any) -> None:
        if isinstance(event, ev.AccountCreated):
            start.control.before = None
            await other.run()

    start.control.before = later
    await start.run()
    assert await other.opens()
    assert start.key_file.exists()
    assert not start.password_file.exists()
