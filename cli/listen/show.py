"""What `everput listen` prints: a line for each thing that happens, as text or as JSON.

Not for: what happens (tunnel_client.py), what keys do (keys.py)."""

from __future__ import annotations

import time
from typing import Any

import orjson

from cli.printing import say, say_json


class Show:
    """body: whether bodies are shown, too. as_json: an object a line, for scripts."""

    def __init__(self, *, body: bool, as_json: bool) -> None:
        self.body = body
        self._as_json = as_json

    def __call__(self, event: str, *, number: int | None = None, resent: bool = False, **fields: Any) -> None:
        """event: listening, disconnected, answered. number: of the request, where it may be asked for by one."""
        if self._as_json:
            shown = {name: value for name, value in fields.items() if name != "body" or self.body}
            say_json(orjson.dumps({"event": event, "at": time.time(), **shown}))
        elif event == "answered":
            self._line(time.strftime("%H:%M:%S"), fields, number=number, resent=resent)
        elif event == "listening":
            self.say(f"connected: {fields['name']} gets what is put from now on, and what has waited")
        else:
            self.say(f"not connected: {fields['reason']}; messages wait")

    def say(self, text: str) -> None:
        say(f"{time.strftime('%H:%M:%S')}  {text}")

    def again(self, number: int, fields: dict[str, Any]) -> None:
        """A line that was shown before."""
        self._line(" " * 8, fields, number=number, resent=False)

    @staticmethod
    def one_body(body: str) -> None:
        say(f"          {body}")

    def _line(self, moment: str, fields: dict[str, Any], *, number: int | None, resent: bool) -> None:
        status = str(fields["status"]), "green" if 200 <= fields["status"] < 300 else "red"
        place = "" if number is None else f"#{number:<4} "
        attempt = "sent again" if resent else f"attempt {fields['attempt']}"
        why = f"  {fields['error']}" if fields["error"] else ""
        line = f"  {fields['took_ms']:5} ms  {fields['message_id']}  {attempt}{why}  {fields['to']}"
        say(f"{moment}  {place}", status, line)
        if self.body:
            self.one_body(fields["body"])
