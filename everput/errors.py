"""What the client raises."""

from __future__ import annotations

from collections.abc import Sequence

from everput.answers import ErrorLocation, ProblemAnswer


class EverputError(Exception):
    """Any of them."""


class NoAnswer(EverputError):
    """No answer came in time, or the answer was not Everput's."""


class Problem(EverputError):
    """The request was refused (RFC 9457). code: the last part of its type, such as `name-taken`."""

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
    """The signature or the time of a request to the listener is wrong."""
