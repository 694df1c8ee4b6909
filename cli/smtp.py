"""The mail server, from the options --smtp-url and --mail-from. Not for: sending e-mail (broker/outbound/mail.py)."""

from __future__ import annotations

from typing import Final
from urllib.parse import unquote, urlsplit

from broker.core.accounts import refuse_email
from broker.errors import ConfigurationError
from broker.settings import SmtpSettings
from cli.files import secret_setting

SMTP_PASSWORD: Final = "EVERPUT_SMTP_PASSWORD"  # noqa: S105 - the variable's name
_PORTS: Final = {"smtp": 587, "smtps": 465}


def smtp_settings(url: str | None, sender: str | None) -> SmtpSettings | None:
    """Return the settings of the mail server that --smtp-url and --mail-from describe, or None if neither option is
    given.

    Raises ConfigurationError if only one of the two options is given, or if one is wrong. Also raises
    ConfigurationError if there is a user name without a password, or a password without a user name.
    """
    if url is None and sender is None:
        return None
    if url is None or sender is None:
        raise ConfigurationError("e-mail needs both --smtp-url and --mail-from; give both or neither")
    wrong = ConfigurationError(
        f"--smtp-url must be smtp://[USER@]HOST[:PORT] or smtps://…; the password comes from {SMTP_PASSWORD}"
    )
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise wrong from None
    if parts.scheme not in _PORTS or not parts.hostname or parts.password or parts.path.strip("/"):
        raise wrong
    password = secret_setting(SMTP_PASSWORD)
    if bool(parts.username) != bool(password):
        raise ConfigurationError(
            f"the user name in --smtp-url and the password in {SMTP_PASSWORD} belong together, but only one is set: "
            "set both, or neither if the mail server needs no sign-in"
        )
    if refuse_email(sender):
        raise ConfigurationError("--mail-from must be an e-mail address such as everput@example.com")
    return SmtpSettings(
        host=parts.hostname,
        port=port or _PORTS[parts.scheme],
        tls=parts.scheme == "smtps",
        sender=sender,
        username=unquote(parts.username) if parts.username else None,
        password=password,
    )
