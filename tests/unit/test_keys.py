"""API keys: their form, without any look-up."""

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.core.keys import RANDOM_BYTES, is_key, key_prefix, key_sha256, key_text

random_bytes = st.binary(min_size=RANDOM_BYTES, max_size=RANDOM_BYTES)


@given(random_bytes)
def test_every_key_that_is_made_has_the_form_of_a_key(random):
    assert is_key(key_text(random))


@given(random_bytes, random_bytes)
def test_different_random_bytes_make_different_keys(one, other):
    assert (key_text(one) == key_text(other)) == (one == other)


@given(random_bytes, st.integers(0, 52), st.characters(codec="utf-8"))
def test_a_key_with_one_wrong_character_is_refused(random, place, wrong):
    key = key_text(random)
    changed = key[:place] + wrong + key[place + 1 :]
    assert is_key(changed) == (changed == key)


@given(st.text())
def test_any_text_is_looked_at_without_an_error(text):
    assert isinstance(is_key(text), bool)


def test_a_key_has_a_recognisable_prefix_and_at_least_160_random_bits_beyond_what_is_shown():
    key = key_text(os.urandom(RANDOM_BYTES))
    assert key.startswith("evp_")
    shown = len(key_prefix(key)) - len("evp_")
    assert RANDOM_BYTES * 8 - shown * 6 >= 160


def test_the_key_of_given_bytes_never_changes():
    key = key_text(bytes(range(32)))
    assert key == "evp_003aUlTJC7tjlCTQj2uNU3MFagCXG9LRKRcwGkBIDlf3LP1ya"
    assert key_sha256(key) == "ecd432bd3e1653ea89e5698ca25657c73cccfa41d5853d1c8ffb07f7afc2830e"


def test_other_than_32_bytes_make_no_key():
    with pytest.raises(ValueError, match="32 random bytes"):
        key_text(b"short")
