"""The errors that the client raises."""

from __future__ import annotations

from collections.abc import Sequence

from everput.answers import ErrorLocation, ProblemAnswer


class EverputError(Exception):
    """The base of the client's errors."""


class NoAnswer(EverputError):
    """The server did not answer in time, or the answer was not Everput's."""


class NotReached(NoAnswer):
    """No connection to the server could be made; nothing was sent."""


class Problem(EverputError):
    """The server refused the request (RFC 9457).

    code: the last part of the problem's type, such as `name-taken`. errors: the wrong parts of the request.
    """

    def __init__(self, answer: ProblemAnswer) -> None:
        self.status = answer.status
        self.code = answer.type.rpartition("/")[2]
        self.detail = answer.detail
        self.errors: Sequence[ErrorLocation] = answer.errors or ()
        super().__init__(f"{answer.status} {answer.title}: {answer.detail}{self._places()}")

    def _places(self) -> str:
        places = [one.pointer or one.parameter or one.header for one in self.errors]
        return f" ({', '.join(place for place in places if place)})" if any(places) else ""


class InvalidSignature(EverputError):
    """The request to a listener is not signed with its secret, or was not sent lately."""
