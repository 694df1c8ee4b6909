"""The first organization and key: made by the first start of `everput serve`, or by `everput init`.

For: making them once and keeping the key's only copy safe (docs/decisions/0031). Not for: what makes a key
(broker/commands.py)."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from broker.commands import SCOPES, create_key, create_organization
from broker.ports import ControlLog, DirectoryView
from cli.files import read_secret, write_secret

ORGANIZATION: Final = "default"
KEY: Final = "first"


async def new_key(control: ControlLog, view: DirectoryView, *, organization: str | None = None) -> str:
    """A new key with all scopes: the whole key, which is nowhere else.

    organization: by name, made if there is none; None: the oldest there is. Refused, LogUnavailable, InDoubt.
    """
    known = view.state.organizations.values()
    found = next((one for one in known if organization is None or one.name == organization), None)
    if found is None:
        found = await create_organization(control, view, name=organization or ORGANIZATION)
    _, secret = await create_key(control, view, organization_id=found.id, name=KEY, scopes=SCOPES)
    return secret


async def first_start(control: ControlLog, view: DirectoryView, key_file: Path) -> None:
    """Have a key in this file, unless there is one."""
    if read_secret(key_file) is None:
        write_secret(key_file, await new_key(control, view))
