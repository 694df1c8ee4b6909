"""`everput keys`: to list, make, see and revoke API keys. Not for: asking and showing (api_commands.py)."""

from __future__ import annotations

import click

import everput
from broker.core.keys import SCOPES
from cli.api_commands import asks, find_queue, show, show_all
from cli.times import Time
from everput import Client


def _own(client: Client) -> str:
    """The organization of the key that asks."""
    return client.send(everput.list_organizations()).organizations[0].id


@click.group("keys")
def command() -> None:
    """List, make, see and revoke the API keys of an organization. The key that asks must have the scope `keys`."""


@command.command("list")
@asks
def list_(client: Client, *, as_json: bool) -> None:
    """List the keys, oldest first."""
    pages = client.pages(everput.list_keys(_own(client)))
    columns = {"id": "id", "name": "name", "begins with": "prefix", "scopes": "scopes", "queues": "queues"}
    columns |= {"expires": "expires_at", "last used": "last_used_at"}
    show_all((key for page in pages for key in page.keys), columns, as_json=as_json)


@command.command("create")
@click.argument("name")
@click.option("--scope", "scopes", multiple=True, help=f"{', '.join(SCOPES)}; may be repeated.")
@click.option("--queue", "queues", multiple=True, help="Only for this queue, by name or id; may be repeated.")
@click.option("--expires", type=Time(ahead=True), help="Refuse the key from this time on, or from then on: 12h, 30d.")
@asks
def create(
    client: Client, *, name: str, scopes: tuple[str, ...], queues: tuple[str, ...], expires: str | None, as_json: bool
) -> None:
    """Make a key and show it, this once. Without a --scope it has queues and messages.

    A key may be made by a member, or by a key with the scope `keys`: with no scope that this one lacks, for no longer.
    """
    ids = [find_queue(client, queue) for queue in queues] or None
    request = everput.create_key(_own(client), name, scopes or None, queues=ids, expires_at=expires)
    show(client.send(request).key, as_json=as_json)


@command.command("get")
@click.argument("key_id")
@asks
def get(client: Client, *, key_id: str, as_json: bool) -> None:
    """Show a key."""
    show(client.send(everput.get_key(_own(client), key_id)).key, as_json=as_json)


@command.command("revoke")
@click.argument("key_id")
@click.confirmation_option(prompt="Whoever uses it is locked out at once. Revoke it?")
@asks
def revoke(client: Client, *, key_id: str, as_json: bool) -> None:
    """Revoke a key; from now on it opens nothing."""
    show(client.send(everput.revoke_key(_own(client), key_id)).key, as_json=as_json)
