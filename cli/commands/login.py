"""`everput login`: check a server's URL and an API key, and save them as a profile.

For: the command. Not for: the file (cli/profiles.py), which profile a command uses (cli/api_options.py).
"""

from __future__ import annotations

import sys

import click

import everput
from cli import files, profiles
from cli.api_commands import api_client
from cli.api_options import KEY_VARIABLE, URL_DEFAULT
from cli.groups import examples
from cli.printing import say


@click.command(
    "login",
    epilog=examples(
        "everput login", "everput login --url https://everput.shop.example --profile shop", "everput login < key-file"
    ),
)
@click.option("--url", envvar="EVERPUT_URL", show_envvar=True, default=URL_DEFAULT, show_default=True, help="Server.")
@click.option("--profile", metavar="NAME", default=profiles.DEFAULT, show_default=True, help="Name of the profile.")
def command(*, url: str, profile: str) -> None:
    """Save the URL of a server and an API key as a profile. Create a key in the console, or with `everput keys create`.

    From now on, commands use this profile. But --profile, --url and a key (--key, EVERPUT_API_KEY or
    EVERPUT_API_KEY_FILE) come before the profile. Without them, the key in the file `api-key` of a command's --data-dir
    (by default `data`) also comes first.

    Set the key in EVERPUT_API_KEY, or name a file with the key in EVERPUT_API_KEY_FILE. Otherwise, type the key when
    asked, or give it on standard input. The key is saved only if the server accepts it. Only you can read the file with
    the profiles.
    """
    key = files.secret_setting(KEY_VARIABLE) or _typed_key()
    with api_client(url, key) as client:
        (organization, *_) = client.send(everput.list_organizations()).organizations
    known = profiles.load()
    known.by_name[profile] = profiles.Profile(url=url, key=key)
    known.current = profile
    profiles.save(known)
    say(f"saved the profile {profile}: {url}, organization {organization.name}")


def _typed_key() -> str:
    if sys.stdin.isatty():
        typed: str = click.prompt("API key", hide_input=True, err=True)
        return typed.strip()
    return sys.stdin.readline().strip()
