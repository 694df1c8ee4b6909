"""The profiles that `everput login` saves: a server's URL and an API key each, in one file with mode 0600.

For: reading and writing them. Not for: which profile a command uses (api_options.py).
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import msgspec
import platformdirs

from broker.errors import ConfigurationError
from broker.private_files import read_secret, refuse_shared_file, write_private

DEFAULT: Final = "default"


class Profile(msgspec.Struct):
    """The URL of a server and an API key for it."""

    url: str
    key: str


class Profiles(msgspec.Struct):
    """All saved profiles by name. `current` names the profile that commands use by default."""

    current: str | None = None
    by_name: dict[str, Profile] = {}

    def find(self, name: str) -> Profile:
        """Return the profile with this name. Raises ConfigurationError if there is none."""
        if name not in self.by_name:
            known = ", ".join(self.by_name) or "none yet"
            raise ConfigurationError(
                f"there is no profile {name} (profiles: {known}); `everput login --profile NAME` creates one"
            )
        return self.by_name[name]

    def of_url(self, url: str) -> Profile | None:
        """Return a profile for the server at this URL, or None if there is none. The current profile is preferred if it
        is for this server.
        """
        names = sorted(self.by_name, key=lambda name: name != self.current)
        return next((self.by_name[name] for name in names if same_url(self.by_name[name].url, url)), None)


def same_url(one: str, other: str) -> bool:
    """Return whether two base URLs are equal, apart from a slash at the end."""
    return one.rstrip("/") == other.rstrip("/")


def profiles_file() -> Path:
    """Return the path of the profiles, such as ~/.config/everput/profiles.json."""
    return platformdirs.user_config_path("everput") / "profiles.json"


def load() -> Profiles:
    """Read the saved profiles. Raises ConfigurationError if the file is damaged or unreadable, or if other users can
    read or write it.
    """
    path = profiles_file()
    refuse_shared_file(path)
    text = read_secret(path)
    try:
        return Profiles() if text is None else msgspec.json.decode(text, type=Profiles)
    except msgspec.MsgspecError as error:
        raise ConfigurationError(
            f"{path} is damaged: {error}. Restore it, or delete it and run `everput login` again for each profile"
        ) from error


def save(profiles: Profiles) -> None:
    """Write the profiles to a file with mode 0600. If its directory is missing, create it with mode 0700."""
    path = profiles_file()
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_private(path, msgspec.json.encode(profiles).decode())
    except OSError as error:
        raise ConfigurationError(f"can't write {path}: {error.strerror}") from error
