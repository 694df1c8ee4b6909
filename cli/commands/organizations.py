"""`everput organizations`: what the operator does to any organization, in Kafka itself.

Not for: what a member does over HTTP (api/members.py, api/keys.py)."""

from __future__ import annotations

import click

from broker.commands.accounts import AccountCommands
from broker.commands.context import Context, now_ms
from broker.commands.organizations import revoke_key
from broker.errors import NotFound
from cli.api_commands import show_all
from cli.commands.accounts import find_account
from cli.directory import OpenDirectory, in_directory
from cli.options import Options, age_s, shared_options
from cli.printing import say
from everput.answers import Answer


class _Row(Answer):
    id: str
    name: str
    made_by: str
    members: list[str]
    keys: int
    queues: int
    stored_bytes: int


@click.group("organizations")
def command() -> None:
    """List all organizations, remove a member from one, revoke a key of one. `everput init` makes one.

    The commands ask Kafka itself: that of --kafka, or that of the `everput serve` on --data-dir.
    """


@command.command("list")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
@shared_options
def list_(options: Options, *, as_json: bool) -> None:
    """List all organizations, oldest first."""

    async def rows(opened: OpenDirectory) -> list[_Row]:
        state = opened.view.state
        retain_s = None if options.retain_messages is None else age_s(options.retain_messages)
        since_ms = 0 if retain_s is None else now_ms() - retain_s * 1000
        return [
            _Row(
                id=one.id,
                name=one.name,
                made_by="shell" if one.by_shell else "account",
                members=[state.accounts.by_id[member].email for member in one.members],
                keys=sum(1 for _ in state.keys_of(one.id)),
                queues=state.queue_count(one.id),
                stored_bytes=one.bytes_since(since_ms),
            )
            for one in state.organizations.values()
        ]

    columns = ("id", "name", "made by", "members", "keys", "queues", "stored bytes")
    show_all(in_directory(options, rows), {heading: heading.replace(" ", "_") for heading in columns}, as_json=as_json)


@command.command("remove-member")
@click.argument("organization_id")
@click.argument("account", metavar="ACCOUNT")
@click.option("--even-if-last", is_flag=True, help="Though no other member is left who can sign in.")
@shared_options
def remove_member(options: Options, organization_id: str, account: str, *, even_if_last: bool) -> None:
    """Remove an account, by its e-mail address or id, from an organization. Keys stay valid."""

    async def work(opened: OpenDirectory) -> None:
        found = find_account(opened, account)
        await AccountCommands(*opened).leave(_shell(organization_id), found.id, even_if_last=even_if_last)
        say(f"{found.email} is no member of the organization {organization_id} any more")

    in_directory(options, work)


@command.command("revoke-key")
@click.argument("key_id")
@shared_options
def revoke(options: Options, key_id: str) -> None:
    """Revoke a key of any organization. From now on it opens nothing."""

    async def work(opened: OpenDirectory) -> None:
        api_key = opened.view.state.keys.get(key_id)
        if api_key is None:
            raise NotFound(f"no key has the id {key_id}")
        await revoke_key(opened.control, opened.view, _shell(api_key.organization_id), api_key.id)
        say(f"revoked the key {api_key.name} of the organization {api_key.organization_id}")

    in_directory(options, work)


def _shell(organization_id: str) -> Context:
    return Context(organization_id=organization_id, actor="shell", request_id="", at_ms=now_ms())
