"""The parts of a request to a listener that do not depend on the message: address, headers, secrets.

For: decrypting secrets and headers that are encrypted in the log, and the first lines of a request, which are the same
for a delivery and a test. Not for: signing (broker/core/signing.py), sending (connection.py).
"""

from __future__ import annotations

from typing import Final, NamedTuple

from broker.core.entities import Listener
from broker.core.signing import Signer, secret_bytes
from broker.outbound.addresses import Target
from broker.sealing import Sealer

_HIDDEN: Final = "…"
_HEADERS_OURS: Final = frozenset({"host", "content-length", "content-type", "transfer-encoding", "connection"})


class Opened(NamedTuple):
    """The decrypted secrets and headers of a listener."""

    signer: Signer
    # Each former signing secret, and until when (ms since the epoch) requests have a signature by it, too.
    former: tuple[tuple[Signer, int], ...] = ()
    headers: tuple[tuple[str, str], ...] = ()


def open_listener(sealer: Sealer, listener: Listener) -> Opened:
    """Decrypt the listener's secrets and headers. Raises ConfigurationError if no given sealing key can decrypt them,
    and ValueError if a signing secret has a wrong form.
    """
    settings = listener.settings
    headers = settings.headers | {name: sealer.open(sealed) for name, sealed in settings.sealed_headers.items()}
    return Opened(
        Signer(secret_bytes(sealer.open(listener.sealed_secret))),
        tuple((Signer(secret_bytes(sealer.open(sealed))), ends) for sealed, ends in listener.former_secrets),
        tuple(headers.items()),
    )


def shown_headers(opened: Opened) -> tuple[tuple[str, str], ...]:
    """Return the main headers of a request to this listener, for display. The values of the listener's own headers and
    of the signature are replaced by an ellipsis. Some headers are missing, such as `host` and `webhook-id`.
    """
    return (
        ("user-agent", "everput"),
        ("content-type", "application/json"),
        *((name, _HIDDEN) for name, _ in opened.headers if name.lower() not in _HEADERS_OURS),
        ("webhook-signature", _HIDDEN),
    )


def same_seals(one: Listener, other: Listener) -> bool:
    """Return whether both listeners have the same secrets and headers. The encrypted texts are compared. So if a secret
    was encrypted again, this function returns False.
    """
    return (
        one.sealed_secret == other.sealed_secret
        and one.former_secrets == other.former_secrets
        and one.settings.headers == other.settings.headers
        and one.settings.sealed_headers == other.settings.sealed_headers
    )


def also_signed(
    former: tuple[tuple[Signer, int], ...], at_ms: int, *, message_id: bytes, timestamp: bytes, body: bytes
) -> bytes:
    """Return further signatures for the header `webhook-signature`: one by each former secret that is still valid, each
    with a space before it.
    """
    going_on = (signer for signer, ends_at_ms in former if ends_at_ms > at_ms)
    return b"".join(b" " + signer.sign(message_id, timestamp, body) for signer in going_on)


def post_head(target: Target, opened: Opened) -> bytes:
    """Return the first lines of a POST to the `notify_url`: the request line, and the headers that are the same for
    every message.
    """
    extra = "".join(f"{name}: {value}\r\n" for name, value in opened.headers if name.lower() not in _HEADERS_OURS)
    return (
        f"POST {target.target} HTTP/1.1\r\nhost: {target.authority}\r\nuser-agent: everput\r\n"
        f"content-type: application/json\r\n{extra}"
    ).encode("latin-1")
