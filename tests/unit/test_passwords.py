"""Which passwords are refused, and that judging a hostile one takes bounded work."""

from __future__ import annotations

import string

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from zxcvbn import matching

from broker.errors import Refused
from broker.passwords import CHARS_MAX, Passwords, refuse_password

WEAK = [
    "1234567890", "qwertyuiop", "aaaaaaaaaa", "abcdefghij", "password12", "Password1!", "P@$$w0rd12", "1q2w3e4r5t",
    "iloveyou123", "12.03.1985", "letmeinletmein", "1234567890!@#$%^&*", "everput123",
]  # fmt: skip
GOOD = [
    "correct horse battery",
    "another password",
    "2YvJ0gG7w1Kq3sXo9LrT",
    "Ein Löffel voller Nägel",
    "4@8({[<3691!|70$5+%2",
]


@pytest.mark.parametrize("password", WEAK)
def test_a_password_that_is_easy_to_guess_is_refused_with_what_to_do(password: str):
    reason = refuse_password(password)
    assert reason is not None
    assert reason.startswith("is easy to guess")
    assert "use several uncommon words" in reason


@pytest.mark.parametrize("password", GOOD)
def test_a_good_password_is_taken(password: str):
    assert refuse_password(password) is None


def test_what_is_known_of_the_account_is_no_password_for_it():
    assert refuse_password("eusebia.tarantino") is None
    for password in ("eusebia.tarantino", "eusebia.tarantino@example.com", "Eusebia.Tarantino1"):
        assert refuse_password(password, ("eusebia.tarantino@example.com",)) is not None
    assert refuse_password("eusebia.tarantino") is None, "it is known of that account only"


def test_a_letter_that_is_composed_in_another_way_makes_a_password_no_better():
    assert refuse_password("\uff50assword12") is not None  # a full-width p


async def test_it_is_refused_where_a_hash_is_asked_for():
    with pytest.raises(Refused, match="top-100") as refused:
        await Passwords().hash("1234567890", pointer="/new_password")
    assert refused.value.pointer == "/new_password"


@settings(max_examples=30, deadline=None)
@given(
    st.text(st.sampled_from("4@8({[<3691!|70$5+%2" + string.ascii_lowercase), min_size=10, max_size=72)
    | st.text(min_size=10, max_size=CHARS_MAX)
)
@example("4@8({[<3691!|70$5+%2" * 3)
@example("a" * CHARS_MAX)
def test_whatever_is_sent_is_judged_in_few_steps(password: str):
    """Steps: the lookups in zxcvbn's dictionaries, of which there are up to 14 s worth without a bound."""
    looked_up = []
    dictionary_match = matching.dictionary_match

    def counted(text: str, *rest: object, **more: object) -> object:
        looked_up.append(len(text) ** 2)
        return dictionary_match(text, *rest, **more)

    matching.dictionary_match = counted
    try:
        refuse_password(password)
    finally:
        matching.dictionary_match = dictionary_match
    assert sum(looked_up) <= 32 * 32**2
