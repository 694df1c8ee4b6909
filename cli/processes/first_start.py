"""The first organization, API key and account, created by the first start of `everput serve` or by `everput init`.

For: creating them once, and keeping the only copies of key and password safe (docs/security.md). Not for: what a key
(broker/commands/organizations.py) or an account (broker/commands/accounts.py) consists of.
"""

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
# The e-mail address of the account that the first start creates for the console. The data directory has its password.
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
    """Create an API key with all scopes. Return the key, which is not stored anywhere, and its organization.

    `owner` is the e-mail address and the password of an account, which becomes a member of the organization. If no
    account has this address, the account is created.

    `organization_id` is the ID of the key's organization. If it is None, the key is for the oldest organization that
    the operator has created. With `name`, only organizations with this name are considered. With `owner`, only
    organizations of the owner's account are considered. If no organization is left, a new one is created.

    Raises Refused if a value is not valid, and NotFound if no organization has the ID `organization_id`. Raises
    WrongPassword if the account exists and has another password, and AccountBlocked if the account is blocked. Raises
    LogUnavailable if Kafka did not store an event, and InDoubt if it is unknown whether Kafka stored an event.
    """
    account = None
    if owner is not None:
        accounts = AccountCommands(control, view)
        known_account = view.state.accounts.account(owner[0])
        account = await (accounts.create_account if known_account is None else accounts.check_password)(*owner)
    if organization_id is not None:
        found = view.state.organizations.get(organization_id)
        if found is None:
            raise NotFound(f"no organization has the ID {organization_id}; `everput organizations list` shows all")
    else:
        found = _of_the_shell(view, name=name, member=account)
    if found is None:
        found = await create_organization(control, view, name=name or ORGANIZATION)
    if account is not None and account.id not in found.members:
        await accounts.members.join(account.id, found.id)
    _, secret = await create_key(control, view, organization_id=found.id, name=KEY, scopes=SCOPES_WHOLE)
    return secret, found


def _of_the_shell(
    view: DirectoryView, *, name: str | None = None, member: Account | None = None
) -> Organization | None:
    """Return the oldest organization that the operator has created, or None if there is none.

    If `name` is given, only an organization with this name is returned. If `member` is given, only an organization with
    this account as a member is returned.
    """
    return next(
        (
            one
            for one in view.state.organizations.values()
            if one.by_shell and name in (None, one.name) and (member is None or member.id in one.members)
        ),
        None,
    )


async def first_start(control: ControlLog, view: DirectoryView, *, key_file: Path, password_file: Path) -> None:
    """Create the console's account, an API key and an organization at the first start of a server.

    If there is no account yet, create the account of the console, and write its password to `password_file`. If
    `key_file` does not exist, create an API key, and write the key to this file. The key is for the oldest organization
    that the operator has created; if there is none, one is created. If the account has no organization yet, make it a
    member of this organization.

    After a crash at any point, the next start creates what is missing.
    """
    password, account = read_secret(password_file), view.state.accounts.account(EMAIL)
    created: Account | None = None
    if not view.state.accounts.by_id:
        is_random = password is None
        if password is None:
            password = secrets.token_urlsafe(_PASSWORD_BYTES)
            # Write the password to a file first. Otherwise, a crash could leave an account whose password nobody knows.
            write_secret(password_file, password)
        try:
            account = created = await AccountCommands(control, view).create_account(EMAIL, password, random=is_random)
        # Another server on the same Kafka cluster has created the account first.
        except EmailTaken:
            remove_secret(password_file)
            password = None
    if read_secret(key_file) is None:
        write_secret(key_file, (await new_key(control, view))[0])
    if password is None or account is None or any(view.state.organizations_of(account.id)):
        return
    organization = _of_the_shell(view)
    if organization is not None:
        accounts = AccountCommands(control, view)
        # If another server has created the account with another password, leave the account as it is.
        with contextlib.suppress(WrongPassword):
            owner = created or await accounts.check_password(EMAIL, password)
            await accounts.members.join(owner.id, organization.id)
