"""The OpenID Connect provider, from the options --oidc-…. Not for: sign-in with it (api/oidc.py)."""

from __future__ import annotations

from typing import Final, Protocol
from urllib.parse import urlsplit

from broker.errors import ConfigurationError
from broker.outbound.addresses import is_https_or_loopback
from broker.settings import OidcSettings
from cli.files import secret_setting

OIDC_SECRET: Final = "EVERPUT_OIDC_CLIENT_SECRET"  # noqa: S105 - the variable's name


class _Given(Protocol):
    """The options that this module reads."""

    @property
    def public_url(self) -> str | None: ...
    @property
    def oidc_issuer(self) -> str | None: ...
    @property
    def oidc_client_id(self) -> str | None: ...
    @property
    def oidc_name(self) -> str | None: ...
    @property
    def oidc_domain(self) -> tuple[str, ...]: ...


def oidc_settings(given: _Given) -> OidcSettings | None:
    """Return the settings of the OpenID Connect provider, which the options --oidc-… describe. Return None if no such
    option is given.

    Raises ConfigurationError if a needed option or the client secret is missing, or if the value of an option is wrong.
    """
    if given.oidc_issuer is None:
        if given.oidc_client_id or given.oidc_name or given.oidc_domain:
            raise ConfigurationError(
                "the other --oidc-… options work only with --oidc-issuer: set --oidc-issuer, or leave them out"
            )
        return None
    if given.oidc_client_id is None or given.public_url is None:
        raise ConfigurationError("--oidc-issuer needs --oidc-client-id and --public-url: set both")
    if not is_https_or_loopback(given.oidc_issuer) or "?" in given.oidc_issuer or "#" in given.oidc_issuer:
        raise ConfigurationError(
            "--oidc-issuer must be an https URL (on a loopback address also http) without ? and #, such as "
            "https://accounts.example.com"
        )
    secret = secret_setting(OIDC_SECRET)
    if secret is None:
        raise ConfigurationError(
            f"--oidc-issuer needs the client secret in {OIDC_SECRET}, or in the file that {OIDC_SECRET}_FILE names"
        )
    return OidcSettings(
        issuer=given.oidc_issuer,
        client_id=given.oidc_client_id,
        client_secret=secret,
        name=given.oidc_name or urlsplit(given.oidc_issuer).hostname or "",
        domains=tuple(domain.lower().lstrip("@") for domain in given.oidc_domain),
    )
