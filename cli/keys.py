"""`everput keys`: to list, make, see and revoke API keys. Not for: asking and showing (asking.py)."""

from __future__ import annotations

import click

import everput
from cli.asking import asks, show, show_all
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
    columns = {"id": "id", "name": "name", "begins with": "prefix", "scopes": "scopes", "last used": "last_used_at"}
    show_all((key for page in pages for key in page.keys), columns, as_json=as_json)


@command.command("create")
@click.argument("name")
@click.option("--scope", "scopes", multiple=True, help="queues, messages, keys or audit; may be repeated.")
@asks
def create(client: Client, *, name: str, scopes: tuple[str, ...], as_json: bool) -> None:
    """Make a key and show it, this once."""
    show(client.send(everput.create_key(_own(client), name, scopes or None)).key, as_json=as_json)


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
