"""The errors that the client raises."""

from __future__ import annotations

from collections.abc import Sequence

from everput.answers import ErrorLocation, ProblemAnswer


class EverputError(Exception):
    """The base of the client's errors."""


class NoAnswer(EverputError):
    """The error for a request without an answer in time, or with an answer that is not from Everput. The server may
    have carried out the request, except if the error is NotReached.
    """


class NotReached(NoAnswer):
    """The error of a request for which no try could open a connection to the server, so that nothing was sent."""


class Problem(EverputError):
    """The error of a request that the server answered with problem details (RFC 9457). With the code `in-doubt`, the
    server may have carried out the request.
    """

    def __init__(self, answer: ProblemAnswer) -> None:
        self.status = answer.status
        self.code = answer.type.rpartition("/")[2]  # such as `name-taken`
        self.detail = answer.detail
        self.errors: Sequence[ErrorLocation] = answer.errors or ()  # the wrong parts of the request
        super().__init__(f"{answer.status} {answer.title}: {answer.detail}{self._places()}")

    def _places(self) -> str:
        places = [one.pointer or one.parameter or one.header for one in self.errors]
        return f" ({', '.join(place for place in places if place)})" if any(places) else ""


class InvalidSignature(EverputError):
    """The error of a request to a listener that is not signed with the listener's secret, or that was not sent
    recently.
    """
