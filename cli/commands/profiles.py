"""`everput profiles`: list, choose and remove the profiles of `everput login`. Not for: the file (cli/profiles.py)."""

from __future__ import annotations

import click
from rich import box
from rich.table import Table

from cli import profiles
from cli.groups import Group, examples
from cli.printing import say, stdout


@click.group("profiles", cls=Group)
def command() -> None:
    """List, choose and remove the profiles that `everput login` saved."""


@command.command("list", epilog=examples("everput profiles list"))
def list_() -> None:
    """List the profiles. The profile that commands use by default is marked with *.

    Two other keys come before the key of this profile: the key in --key, EVERPUT_API_KEY or EVERPUT_API_KEY_FILE, and
    the key in the file `api-key` of a command's --data-dir (by default `data`).
    """
    known = profiles.load()
    table = Table("", "profile", "url", "key", box=box.SIMPLE)
    for name, one in known.by_name.items():
        table.add_row("*" if name == known.current else "", name, one.url, f"{one.key[:12]}…")
    stdout().print(table if table.row_count else "no profiles yet; `everput login` saves one")


@command.command("use", epilog=examples("everput profiles use shop"))
@click.argument("name")
def use(name: str) -> None:
    """Use this profile by default from now on.

    Two other keys come before the key of this profile: the key in --key, EVERPUT_API_KEY or EVERPUT_API_KEY_FILE, and
    the key in the file `api-key` of a command's --data-dir (by default `data`).
    """
    known = profiles.load()
    url = known.find(name).url
    known.current = name
    profiles.save(known)
    say(f"using the profile {name}: {url}", err=True)


@command.command("remove", epilog=examples("everput profiles remove shop"))
@click.argument("name")
def remove(name: str) -> None:
    """Delete this profile. If this is the current profile, another saved profile becomes the current one. The deleted
    profile's API key stays valid; to revoke the key, use `everput keys revoke`.
    """
    known = profiles.load()
    known.find(name)
    del known.by_name[name]
    was_current = known.current == name
    if was_current:
        known.current = next(iter(known.by_name), None)
    profiles.save(known)
    say(f"removed the profile {name}", err=True)
    if was_current and known.current is not None:
        say(f"commands use the profile {known.current} from now on", err=True)
