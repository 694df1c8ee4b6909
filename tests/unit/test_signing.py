"""Standard Webhooks: the vector of the specification, and what a secret must look like."""

from __future__ import annotations

import base64
import hmac

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.core.signing import Signer, secret_bytes, secret_text

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


def test_the_vector_of_the_specification():
    signed = Signer(secret_bytes(SECRET)).sign(b"msg_p5jXN8AQM9LWM0D4loKWxJek", b"1614265330", b'{"test": 2432232314}')
    assert signed == b"v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


@pytest.mark.parametrize("part", ["message_id", "timestamp", "body"])
def test_every_part_is_signed(part):
    parts = {"message_id": b"msg_1", "timestamp": b"1614265330", "body": b"{}"}
    signer = Signer(secret_bytes(SECRET))
    before = signer.sign(**parts)
    assert signer.sign(**{**parts, part: parts[part] + b"0"}) != before
    assert Signer(bytes(24)).sign(**parts) != before


@settings(deadline=None)
@given(st.binary(min_size=24, max_size=64), st.binary(max_size=300))
def test_it_is_the_hmac_of_the_standard_library(key, body):
    signed = Signer(key).sign(b"m", b"1", body)
    assert base64.b64decode(signed.removeprefix(b"v1,")) == hmac.digest(key, b"m.1." + body, "sha256")


@settings(deadline=None)
@given(st.binary(min_size=24, max_size=64))
def test_a_secret_of_24_to_64_bytes_goes_to_text_and_back(key):
    assert secret_bytes(secret_text(key)) == key


@pytest.mark.parametrize("length", [0, 1, 23, 65, 100])
def test_a_secret_that_is_too_short_or_too_long_is_refused(length):
    with pytest.raises(ValueError, match="24 to 64 bytes"):
        secret_bytes(secret_text(bytes(length)))


@pytest.mark.parametrize(
    "text",
    [
        "",
        SECRET.removeprefix("whsec_"),
        SECRET.upper(),
        "whsec_",
        "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaS",
        "whsec_MfKQ9r8GKYqrTwjUPD8ILPZI o2LaLaSw",
        "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw\n",
        "whsec_" + base64.urlsafe_b64encode(b"\xff" * 24).decode(),
        "whsec_äöüÄÖÜßMfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
    ],
)
def test_what_is_not_base64_after_the_prefix_is_refused(text):
    with pytest.raises(ValueError, match="a signing secret"):
        secret_bytes(text)
