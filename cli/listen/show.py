"""The output of `everput listen`: a line for each event, as text or as JSON.

Not for: the events themselves (tunnel_client.py), the keys (keys.py).
"""

from __future__ import annotations

import time
from typing import Any

import orjson

from cli.listen.batches import is_batch, messages_in
from cli.printing import say, say_json


class Show:
    """The printer of events of `everput listen`. `body` says whether the bodies of requests are shown."""

    def __init__(self, *, body: bool, as_json: bool) -> None:
        self.body = body
        self._as_json = as_json

    def __call__(
        self, event: str, *, number: int | None = None, resent: bool = False, created: bool = False, **fields: Any
    ) -> None:
        """Print an event of `everput listen`: listening, disconnected or answered.

        `number` is the number of the request, or None if the user can't choose requests by number. If `created` is
        True, this connection has created the listener, so no earlier messages wait for it.
        """
        if self._as_json:
            shown = {
                name: value for name, value in fields.items() if name != "failed" and (name != "body" or self.body)
            }
            if event == "answered" and is_batch(fields["message_id"]):
                shown["messages"] = [
                    {"message_id": one["id"], "attempt": one["attempt"], "accepted": _accepts(fields, one["id"])}
                    for one in messages_in(fields["body"])
                ]
            say_json(orjson.dumps({"event": event, "at": time.time(), **shown}))
        elif event == "answered":
            self._line(time.strftime("%H:%M:%S"), fields, number=number, resent=resent)
        elif event == "listening":
            gets = "messages put from now on" if created else "new messages and those that waited"
            self.say(f"connected: {fields['name']} gets {gets}")
        else:
            self.say(f"not connected, messages wait: {fields['reason']}")

    def say(self, text: str) -> None:
        say(f"{time.strftime('%H:%M:%S')}  {text}")

    def again(self, number: int, fields: dict[str, Any]) -> None:
        """Print the line of an earlier request again."""
        self._line(" " * 8, fields, number=number, resent=False)

    @staticmethod
    def one_body(body: str) -> None:
        say(f"          {body}")

    def _line(self, moment: str, fields: dict[str, Any], *, number: int | None, resent: bool) -> None:
        batch = messages_in(fields["body"]) if is_batch(fields["message_id"]) else ()
        status = str(fields["status"]), "green" if 200 <= fields["status"] < 300 else "red"
        place = "" if number is None else f"#{number:<4} "
        attempt = f"{len(batch)} message{'' if len(batch) == 1 else 's'}" if batch else f"attempt {fields['attempt']}"
        attempt = "sent again" if resent else attempt
        why = f"  {fields['error']}" if fields["error"] else ""
        line = f"  {fields['took_ms'] or '<1':>5} ms  {fields['message_id']}  {attempt}{why}  {fields['to']}"
        say(f"{moment}  {place}", status, line)
        for one in batch:
            result = ("accepted", "green") if _accepts(fields, one["id"]) else ("failed  ", "red")
            say("          ", result, f"  {one['id']}  attempt {one['attempt']}")
            if self.body:
                self.one_body(orjson.dumps(one["body"]).decode())
        if self.body and not batch:
            self.one_body(fields["body"])


def _accepts(fields: dict[str, Any], message_id: str) -> bool:
    """Return whether the local program accepted this message of a batch."""
    return 200 <= fields["status"] < 300 and message_id not in fields["failed"]
