"""`everput accounts`: the operator's commands for accounts. They use Kafka itself, and need no session and no API key.

Not for: what the owner of an account does over HTTP (api/accounts.py), what the commands do
(broker/commands/accounts.py).
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime

import click

from broker.clock import now_ms
from broker.commands.accounts import AccountCommands
from broker.core.accounts import Account
from broker.core.api_keys import ApiKey
from broker.core.directory import Directory
from broker.core.entities import Organization
from broker.errors import NotFound
from cli.api_commands import show_all
from cli.directory import OpenDirectory, in_directory
from cli.groups import Group, examples
from cli.options import Options, shared_options
from cli.printing import say
from cli.short_ids import whole_id
from everput.answers import Answer, Named

_account_argument = click.argument("account", metavar="ACCOUNT")


class _Row(Answer):
    id: str
    email: str
    created_at: str
    blocked: bool
    sessions: int
    organizations: list[Named]


@click.group("accounts", cls=Group)
def command() -> None:
    """List, block, unblock and delete accounts, reset a password, end sessions. ACCOUNT is an e-mail address or an ID.

    The commands connect to Kafka: to the cluster of --kafka, or else to the Kafka of an `everput serve` that runs with
    this --data-dir.
    """


@command.command("list", epilog=examples("everput accounts list"))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line.")
@shared_options
def list_(options: Options, *, as_json: bool) -> None:
    """List all accounts, oldest first."""

    async def rows(opened: OpenDirectory) -> list[_Row]:
        state = opened.view.state
        return [_row(state, account) for account in state.accounts.by_id.values()]

    columns = ("id", "email", "created at", "blocked", "sessions", "organizations")
    show_all(in_directory(options, rows), {heading: heading.replace(" ", "_") for heading in columns}, as_json=as_json)


@command.command("block", epilog=examples("everput accounts block ann@shop.example"))
@_account_argument
@shared_options
def block(options: Options, account: str) -> None:
    """Block an account: end its sessions, and refuse to sign it in. API keys that the account has created stay valid,
    because API keys belong to organizations.
    """

    async def work(opened: OpenDirectory) -> None:
        found = find_account(opened, account)
        if await AccountCommands(*opened).block(found.id):
            say(f"blocked {found.email}; its sessions have ended")
        else:
            say(f"{found.email} was already blocked")
        state = opened.view.state
        _say_ownerless(one for one in state.organizations_of(found.id) if state.is_last(one, found.id))
        _say_keys(state, found)

    in_directory(options, work)


@command.command("unblock", epilog=examples("everput accounts unblock ann@shop.example"))
@_account_argument
@shared_options
def unblock(options: Options, account: str) -> None:
    """Let a blocked account sign in again. The sessions that the block has ended stay ended."""

    async def work(opened: OpenDirectory) -> None:
        found = find_account(opened, account)
        done = await AccountCommands(*opened).unblock(found.id)
        say(f"unblocked {found.email}" if done else f"{found.email} was not blocked")

    in_directory(options, work)


@command.command("delete", epilog=examples("everput accounts delete ann@shop.example"))
@_account_argument
@click.option(
    "--even-if-last",
    is_flag=True,
    help="Delete the account even if it is the last owner of an organization who can sign in.",
)
@click.confirmation_option(prompt="This can't be undone. Delete the account?")
@shared_options
def delete(options: Options, account: str, *, even_if_last: bool) -> None:
    """Delete an account with its sessions and memberships. Its e-mail address can then be registered again.

    With --even-if-last, delete the account even if it is an organization's last owner who can sign in. API keys that
    the account has created stay valid, because they belong to organizations. The log keeps the account's events, with
    the e-mail address.
    """

    async def work(opened: OpenDirectory) -> None:
        found = find_account(opened, account)
        left = await AccountCommands(*opened).delete(found.id, even_if_last=even_if_last)
        say(f"deleted {found.email}")
        _say_ownerless(left)
        _say_keys(opened.view.state, found)

    in_directory(options, work)


@command.command("reset-password", epilog=examples("everput accounts reset-password ann@shop.example"))
@_account_argument
@shared_options
def reset_password(options: Options, account: str) -> None:
    """Print a one-time password for an account, and end its sessions. The earlier password stops working.

    The one-time password works once, within a day. The person signs in with the one-time password, and then sets a new
    password: in the console (choose the e-mail address at the top), or with `POST /v1/accounts/password`.
    """

    async def work(opened: OpenDirectory) -> None:
        found = find_account(opened, account)
        password, until_ms = await AccountCommands(*opened).reset_password(found.id)
        if found.blocked:
            say(f"{found.email} is blocked; `everput accounts unblock {found.email}` lets it sign in", err=True)
        say(f"one-time password of {found.email}, valid until {shown_time(until_ms)}:", err=True)
        say(password)

    in_directory(options, work)


@command.command("end-sessions", epilog=examples("everput accounts end-sessions ann@shop.example"))
@_account_argument
@shared_options
def end_sessions(options: Options, account: str) -> None:
    """End all sessions of an account. The account can sign in again, except if it is blocked."""

    async def work(opened: OpenDirectory) -> None:
        found = find_account(opened, account)
        await AccountCommands(*opened).end_sessions(found.id)
        say(f"ended the sessions of {found.email}")

    in_directory(options, work)


def find_account(opened: OpenDirectory, text: str) -> Account:
    """Return the account with this e-mail address or id. Raises NotFound if there is none."""
    accounts = opened.view.state.accounts
    found = accounts.account(text) or accounts.by_id.get(whole_id(text))
    if found is None:
        raise NotFound(f"no account has the e-mail address or ID {text}; `everput accounts list` shows all")
    return found


def _row(state: Directory, account: Account) -> _Row:
    at_ms = now_ms()
    return _Row(
        id=account.id,
        email=account.email,
        created_at=shown_time(account.created_at_ms),
        blocked=account.blocked,
        sessions=sum(1 for one in state.accounts.sessions_of(account.id) if one.expires_at_ms > at_ms),
        organizations=[Named(id=one.id, name=one.name) for one in state.organizations_of(account.id)],
    )


def _say_ownerless(organizations: Iterable[Organization]) -> None:
    for one in organizations:
        say(f"the organization {one.name} ({one.id}) has no owner left who can sign in", err=True)


def _say_keys(state: Directory, account: Account) -> None:
    """Print the names and ids of the valid API keys that the account's person may still have: the keys that the account
    created, and the keys that were created with one of these keys.
    """
    at_ms, creators, made = now_ms(), {f"account:{account.id}"}, list[ApiKey]()
    for one in state.keys.values():  # in the order of their creation
        if one.created_by in creators:
            creators.add(f"key:{one.id}")
            if not one.has_expired(at_ms):
                made.append(one)
    for api_key in made:
        name = state.organizations[api_key.organization_id].name
        say(f"still valid: the key {api_key.name} ({api_key.id}) of the organization {name}", err=True)
    if made:
        say("`everput organizations revoke-key KEY_ID` revokes such a key", err=True)


def shown_time(at_ms: int) -> str:
    """Return a time as text for people, in UTC, such as `2026-01-31T12:00:00Z`."""
    return datetime.fromtimestamp(at_ms / 1000, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
