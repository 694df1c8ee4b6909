"""The formats in which a listener may get messages, instead of Everput's own JSON.

For: converting the usual body of a delivery. Pure. Not for: the content of an alert (alerts.py), e-mail
(broker/outbound/mail.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import orjson

SLACK: Final = "slack"
_SLACK_CHARS_MAX: Final = 3_000  # Slack cuts longer texts.
_SIGNS: Final = {"raised": ":red_circle:", "cleared": ":large_green_circle:"}


def alert_in(data: str) -> dict[str, Any] | None:
    """Return the alert in a message's data; None if the data is no JSON object with the texts of an alert."""
    try:
        alert = orjson.loads(data)
    except orjson.JSONDecodeError:
        return None
    texts = ("type", "state", "text")
    return alert if isinstance(alert, dict) and all(isinstance(alert.get(name), str) for name in texts) else None


def slack(body: bytes) -> bytes:
    """Convert a message into the JSON that Slack's incoming webhooks accept. If the message's data is an alert, the
    JSON has the text of the alert. Otherwise, it has the message's name and data.

    `body` is the usual body of a delivery.
    """
    message = orjson.loads(body)["message"]
    alert = alert_in(message["data"])
    if alert is None:
        text = f"*{_escaped(message['name'])}*\n{_escaped(message['data'])}"
    else:
        text = f"{_SIGNS.get(alert['state'], '')} *{_escaped(alert['type'])}* {_escaped(alert['text'])}".strip()
        link = alert.get("link")
        if isinstance(link, str) and link.startswith(("https://", "http://")) and "|" not in link:
            text += f" <{_escaped(link)}|Console>"
    return orjson.dumps({"text": text if len(text) <= _SLACK_CHARS_MAX else text[: _SLACK_CHARS_MAX - 1] + "…"})


def mail_text(body: bytes) -> tuple[str, str]:
    """Return the subject and the text of an e-mail for a message. If the message's data is an alert, they tell the
    alert. Otherwise, they are made from the message's name and data.
    """
    message = orjson.loads(body)["message"]
    alert = alert_in(message["data"])
    if alert is None:
        return _line(f"Everput: {message['name']}"), message["data"]
    listener, queue = alert.get("listener"), alert.get("queue")
    names = [one["name"] for one in (queue, listener) if isinstance(one, dict) and isinstance(one.get("name"), str)]
    subject = " ".join(["Everput:", alert["type"], *([" > ".join(names)] if names else [])])
    lines = [alert["text"]]
    if isinstance(alert.get("link"), str):
        lines += ["", alert["link"]]
    facts = alert.get("facts")
    if isinstance(facts, dict) and facts:
        lines += ["", *(f"{name}: {value}" for name, value in facts.items())]
    return _line(subject), "\n".join(lines) + "\n"


def _line(text: str) -> str:
    """Return the text as one line: each run of white space becomes one space."""
    return " ".join(text.split())


def _escaped(text: str) -> str:
    """Escape the characters that are special in Slack, so that a queue's name can't notify a whole channel."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


# The functions that convert Everput's own JSON body into another format, by the format's name.
RENDER: Final[Mapping[str, Callable[[bytes], bytes]]] = {SLACK: slack}
