"""The first organization, key and account: made by the first start of `everput serve`, or by `everput init`.

For: making them once and keeping the only copies of key and password safe (docs/security.md). Not for: what makes a
key (broker/commands/organizations.py) or an account (broker/commands/accounts.py)."""

from __future__ import annotations

import contextlib
import secrets
from pathlib import Path
from typing import Final

from broker.commands.accounts import AccountCommands, EmailTaken, WrongPassword
from broker.commands.organizations import create_key, create_organization
from broker.core.accounts import Account
from broker.core.entities import Organization
from broker.core.keys import SCOPES_WHOLE
from broker.errors import NotFound
from broker.ports import ControlLog, DirectoryView
from broker.private_files import read_secret, remove_secret, write_secret

ORGANIZATION: Final = "default"
KEY: Final = "first"
# The account belongs to no person: the password in the file signs in to the console.
EMAIL: Final = "admin@everput.local"
_PASSWORD_BYTES: Final = 15


async def new_key(
    control: ControlLog,
    view: DirectoryView,
    *,
    organization_id: str | None = None,
    name: str | None = None,
    owner: tuple[str, str] | None = None,
) -> tuple[str, Organization]:
    """Create a key with all scopes. Return the whole key, which is stored nowhere, and its organization.

    organization_id: of the organization that gets the key. None: the oldest organization that the shell created, with
        this name and with the owner as a member if these are given; or else a new one. An organization that was
        registered over HTTP is used only by its id.
    owner: e-mail address and password of an account that becomes a member, and is created if needed.
    Refused, NotFound, WrongPassword, LogUnavailable, InDoubt.
    """
    account = None
    if owner is not None:
        accounts = AccountCommands(control, view)
        known_account = view.state.accounts.account(owner[0])
        account = await (accounts.create_account if known_account is None else accounts.check_password)(*owner)
    if organization_id is not None:
        found = view.state.organizations.get(organization_id)
        if found is None:
            raise NotFound(f"no organization has the id {organization_id}")
    else:
        found = _of_the_shell(view, name=name, member=account)
    if found is None:
        found = await create_organization(control, view, name=name or ORGANIZATION)
    if account is not None and account.id not in found.members:
        await accounts.join(account.id, found.id)
    _, secret = await create_key(control, view, organization_id=found.id, name=KEY, scopes=SCOPES_WHOLE)
    return secret, found


def _of_the_shell(
    view: DirectoryView, *, name: str | None = None, member: Account | None = None
) -> Organization | None:
    """Return the oldest organization that the shell created, with this name and this member if they are given."""
    return next(
        (
            one
            for one in view.state.organizations.values()
            if one.by_shell and name in (None, one.name) and (member is None or member.id in one.members)
        ),
        None,
    )


async def first_start(control: ControlLog, view: DirectoryView, *, key_file: Path, password_file: Path) -> None:
    """Write a key to one file, unless it has one, and the password of EMAIL to the other, unless there is an account.

    After a crash at any point the next start creates what is missing.
    """
    password = read_secret(password_file)
    if not view.state.accounts.by_id:
        if password is None:
            password = secrets.token_urlsafe(_PASSWORD_BYTES)
            write_secret(password_file, password)  # Write the password first, because only its owner can change it.
        try:
            await AccountCommands(control, view).create_account(EMAIL, password)
        except EmailTaken:  # Another machine on the same Kafka was first, and has the account.
            remove_secret(password_file)
            password = None
    if read_secret(key_file) is None:
        write_secret(key_file, (await new_key(control, view))[0])
    account = view.state.accounts.account(EMAIL)
    if password is None or account is None or any(view.state.organizations_of(account.id)):
        return
    organization = _of_the_shell(view)
    if organization is not None:
        accounts = AccountCommands(control, view)
        with contextlib.suppress(WrongPassword):  # somebody else has the address
            await accounts.join((await accounts.check_password(EMAIL, password)).id, organization.id)
