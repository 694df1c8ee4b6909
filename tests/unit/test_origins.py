"""When two URLs have the same origin."""

from __future__ import annotations

import pytest

from broker.core.origins import same_origin


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("https://a.example/x", "https://a.example/y?z=1"),
        ("https://a.example/", "https://a.example:443/"),
        ("http://a.example", "http://A.Example:80/x"),
        ("http://[2001:db8::1]/", "http://[2001:DB8::1]:80/"),
        ("tunnel://127.0.0.1:1/t/notify", "tunnel://127.0.0.1:2/u/notify"),
    ],
)
def test_the_same_origin(one: str, other: str):
    assert same_origin(one, other)
    assert same_origin(other, one)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("https://a.example/", "http://a.example/"),
        ("https://a.example/", "https://a.example:8443/"),
        ("http://a.example:443/", "https://a.example:443/"),
        ("https://a.example/", "https://b.a.example/"),
        ("https://a.example/", "https://a.example.evil.example/"),
        ("https://a.example/", "https://a.example@evil.example/"),
        ("https://a.example/", "https://evil.example/https://a.example/"),
        ("tunnel://a.example/t", "http://a.example/t"),
        ("https://[bad/", "https://[worse/"),
        ("https://a.example:x/", "https://a.example:y/"),
    ],
)
def test_another_origin(one: str, other: str):
    assert not same_origin(one, other)
    assert not same_origin(other, one)
