"""Which URLs a listener may have and which addresses may be connected to."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence
from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.outbound.addresses import (
    URL_CHARS_MAX,
    AddressRefused,
    Network,
    Resolver,
    Target,
    address_allowed,
    literal_address,
    parse_url,
    refuse_url,
)

LOOPBACK = (ip_network("127.0.0.0/8"), ip_network("::1/128"))

BAD_ADDRESSES = [
    "0.0.0.0",
    "0.1.2.3",
    "10.0.0.1",
    "100.64.0.1",
    "100.100.100.200",  # metadata of a cloud, in CGNAT space
    "100.127.255.255",
    "127.0.0.1",
    "127.255.255.254",
    "168.63.129.16",
    "169.254.0.1",
    "169.254.169.254",  # metadata of most clouds
    "172.16.0.1",
    "172.31.255.255",
    "192.0.0.1",
    "192.0.0.192",  # metadata of a cloud
    "192.0.2.1",
    "192.88.99.1",
    "192.168.0.1",
    "198.18.0.1",
    "198.19.255.255",
    "198.51.100.1",
    "203.0.113.1",
    "224.0.0.1",
    "239.255.255.255",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::127.0.0.1",  # IPv4-compatible
    "::8.8.8.8",
    "::ffff:127.0.0.1",  # IPv4-mapped
    "::ffff:10.0.0.1",
    "::ffff:169.254.169.254",
    "::ffff:0:127.0.0.1",  # IPv4-translated
    "64:ff9b::7f00:1",  # NAT64
    "64:ff9b::808:808",
    "64:ff9b:1::a00:1",
    "100::1",
    "2001::1",  # Teredo
    "2001:0:4136:e378:8000:63bf:3fff:fdd2",
    "2001:db8::1",
    "2002:7f00:1::1",  # 6to4
    "2002:a00:1::",
    "3fff::1",
    "4000::1",  # not assigned
    "5f00::1",
    "fc00::1",
    "fd00:ec2::254",  # metadata of a cloud
    "fe80::1",
    "fec0::1",
    "ff02::1",
    "ff0e::1",
]

GOOD_ADDRESSES = ["1.1.1.1", "8.8.8.8", "93.184.215.14", "172.32.0.1", "100.128.0.1", "2606:4700::1111", "2a00:1450::1"]

NOT_PUBLIC = (
    "The URL has an address that is not public. The operator can allow a network with --allow-network. "
    "`everput listen` delivers to your own machine without it."
)


@pytest.mark.parametrize("text", BAD_ADDRESSES)
def test_an_address_that_is_not_public_is_refused_as_address_and_in_a_url(text):
    assert not address_allowed(ip_address(text), ())
    host = f"[{text}]" if ":" in text else text
    assert refuse_url(f"https://{host}/hook", ()) == NOT_PUBLIC
    assert refuse_url(f"http://{host}:8080", ()) == NOT_PUBLIC


@pytest.mark.parametrize("text", [text for text in BAD_ADDRESSES if ":" not in text])
def test_an_ipv4_address_in_ipv6_clothes_is_still_refused(text):
    for dressed in (f"::ffff:{text}", f"::{text}", f"64:ff9b::{text}", f"::ffff:0:{text}"):
        assert not address_allowed(ip_address(dressed), ())


@pytest.mark.parametrize("text", GOOD_ADDRESSES)
def test_a_public_address_is_allowed(text):
    assert address_allowed(ip_address(text), ())
    host = f"[{text}]" if ":" in text else text
    assert refuse_url(f"https://{host}/hook", ()) is None


def test_a_public_ipv4_address_mapped_into_ipv6_is_what_it_maps():
    assert address_allowed(ip_address("::ffff:8.8.8.8"), ())


@pytest.mark.parametrize(
    "host",
    [
        "127.1",
        "127.0.1",
        "2130706433",
        "0x7f000001",
        "0X7F000001",
        "0x7f.1",
        "0x7f.0x0.0x0.0x1",
        "017700000001",
        "0177.0.0.1",
        "0177.1",
        "00000177.0.0.01",
        "127.0.0.1.",
        "127.1.",
        "0",
        "0x0",
        "0xa9fea9fe",
        "2852039166",
        "169.16689662",
        "0251.0376.0251.0376",
        "0xA9.0xFE.0xA9.0xFE",
        "[::1]",
        "[0:0:0:0:0:0:0:1]",
        "[::ffff:7f00:1]",
        "[::ffff:169.254.169.254]",
        "[0000::0001]",
    ],
)
def test_an_address_in_disguise_is_seen_through(host):
    assert refuse_url(f"http://{host}/", ()) == NOT_PUBLIC
    assert refuse_url(f"http://user@{host}/", ()) is not None


@pytest.mark.parametrize(
    "url",
    [
        "",
        "x",
        "//example.com/",
        "example.com",
        "ftp://example.com/",
        "file:///etc/passwd",
        "gopher://example.com/",
        "javascript:alert(1)",
        "data:text/plain,x",
        "unix:///run/x.sock",
        "http+unix://x",
        "https:example.com",
        "https:/example.com",
        "https://",
        "https:///path",
        "https://?x",
        "https://:443/",
        "https://user@example.com/",
        "https://user:password@example.com/",
        "https://:@example.com/",
        "https://@example.com/",
        "https://example.com@127.0.0.1/",
        "https://example.com/#fragment",
        "https://example.com#@127.0.0.1/",
        "https://example.com/#",
        "https://example.com:0/",
        "https://example.com:65536/",
        "https://example.com:99999/",
        "https://example.com:-1/",
        "https://example.com:+80/",
        "https://example.com:8_0/",
        "https://example.com:http/",
        "https://example.com:80:80/",
        "https://example.com/a b",
        " https://example.com/",
        "https://example.com/ ",
        "https://example.com/\r\nx-injected: 1",
        "https://example.com\r\n/",
        "https://example.com/\n",
        "https://exa\nmple.com/",
        "https://exam\tple.com/",
        "https://example.com/\0",
        "https://example.com/\x7f",
        "https://example.com\\@127.0.0.1/",
        "https:\\\\example.com\\",
        "https://example.com/\\",
        "https://bücher.example/",
        "https://xn--bcher-kva.example/ü",
        "https://example\uff0ecom/",  # a full-width dot
        "https://example\u3002com/",  # an ideographic full stop
        "https://\u2460\u2461\u2466.0.0.1/",  # digits in circles
        "https://127.0.0.1%2f@example.com/",
        "https://exa%6dple.com/",
        "https://[fe80::1%25eth0]/",
        "https://[::1/",
        "https://::1/",
        "https://[not-an-address]/",
        "https://example.com]/",
        "https://a..b/",
        "https://.example.com/",
        "https://example.com../",
        "https://./",
        "https://*.com/",
        "https://*/",
        "https://a.*.example/",
        "https://exa!mple.com/",
        "https://exa$mple.com/",
        "https://exa,mple.com/",
        "https://example.com;x/",
        "https://(example).com/",
        "https://-example.com/",
        "https://example-.com/",
        "https://a.-b.example/",
        f"https://{'a' * 64}.example/",
        f"https://{'a.' * 127}aa/",
        "https://example.com/<script>",
        'https://example.com/"',
        "https://example.com/{x}",
        "https://example.com/a|b",
        "https://example.com/`id`",
        f"https://example.com/{'x' * URL_CHARS_MAX}",
    ],
)
def test_what_is_no_plain_http_or_https_url_is_refused_with_a_reason(url):
    assert refuse_url(url, ())
    assert refuse_url(url, LOOPBACK)


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST", "localhost.", "a.localhost", "printer.local", "x.internal", "a.localdomain"]
)
def test_a_name_that_is_never_public_is_refused_at_once_unless_networks_are_allowed(host):
    assert refuse_url(f"http://{host}/", ()) == NOT_PUBLIC.replace("has an address", "names a host")
    assert refuse_url(f"http://{host}/", LOOPBACK) is None  # the addresses are checked when connecting


@pytest.mark.parametrize(
    ("url", "target"),
    [
        ("https://example.com", Target(True, "example.com", 443, "example.com", "/")),
        ("HTTPS://Example.COM/Hook", Target(True, "example.com", 443, "Example.COM", "/Hook")),
        (
            "http://example.com:8080/a/b?c=d&e=%20",
            Target(False, "example.com", 8080, "example.com:8080", "/a/b?c=d&e=%20"),
        ),
        ("http://example.com?x=1", Target(False, "example.com", 80, "example.com", "/?x=1")),
        ("http://example.com./", Target(False, "example.com.", 80, "example.com.", "/")),
        ("http://[2606:4700::1111]:81/", Target(False, "2606:4700::1111", 81, "[2606:4700::1111]:81", "/")),
        ("https://xn--bcher-kva.example/", Target(True, "xn--bcher-kva.example", 443, "xn--bcher-kva.example", "/")),
        ("https://under_score.example/", Target(True, "under_score.example", 443, "under_score.example", "/")),
    ],
)
def test_a_good_url_is_taken_apart(url, target):
    assert parse_url(url) == target
    assert refuse_url(url, ()) is None


@settings(deadline=None)
@given(st.text(max_size=60))
def test_no_text_makes_it_raise(text):
    for url in (text, f"http://{text}/", f"https://example.com{text}", f"http://[{text}]/"):
        reason = refuse_url(url, ())
        assert reason is None or reason


def test_the_allow_list_makes_loopback_right_and_nothing_else():
    for url in ("http://127.0.0.1:8080/", "http://127.1/", "http://[::1]/", "http://[::ffff:127.0.0.1]/"):
        assert refuse_url(url, LOOPBACK) is None
    for url in ("http://10.0.0.1/", "http://169.254.169.254/", "http://[fe80::1]/"):
        assert refuse_url(url, LOOPBACK) is not None


def test_a_name_is_not_taken_for_an_address():
    for host in ("example.com", "1and1.com", "0x.example", "127.0.0.1.example.com", "3com.example"):
        assert literal_address(host) is None


# At every connect, after DNS


class Names:
    """A name server whose answers change from question to question."""

    def __init__(self, *answers: list[str] | Exception) -> None:
        self.answers = list(answers)
        self.asked: list[str] = []

    def ask(self, host: str) -> list[str]:
        """For dns.Ask."""
        self.asked.append(host)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer


def resolver_of(*answers: list[str] | Exception, allow: Sequence[Network] = ()) -> Resolver:
    return Resolver(allow, Names(*answers).ask)


@pytest.mark.parametrize("text", BAD_ADDRESSES)
async def test_a_name_that_leads_to_an_address_that_is_not_public_is_refused(text):
    with pytest.raises(AddressRefused):
        await resolver_of([text]).addresses("innocent.example")


async def test_of_a_names_addresses_only_the_allowed_ones_are_used():
    resolver = resolver_of(["10.0.0.1", "93.184.215.14", "::1", "2606:4700::1111", "fe80::1%eth0"])
    assert await resolver.addresses("mixed.example") == ["93.184.215.14", "2606:4700::1111"]


async def test_the_allow_list_counts_for_names_too():
    resolver = resolver_of(["127.0.0.1", "10.0.0.1"], allow=LOOPBACK)
    assert await resolver.addresses("localhost") == ["127.0.0.1"]


async def test_a_literal_address_asks_no_dns():
    names = Names(OSError("there is no DNS"))
    resolver = Resolver((), names.ask)
    assert await resolver.addresses("8.8.8.8") == ["8.8.8.8"]
    for host in ("127.0.0.1", "0x7f000001", "127.0.0.1."):
        with pytest.raises(AddressRefused):
            await resolver.addresses(host)
    assert names.asked == []


async def test_many_who_wait_for_one_name_ask_once():
    names = Names(["93.184.215.14"])
    resolver = Resolver((), names.ask)
    found = await asyncio.gather(*(resolver.addresses("busy.example") for _ in range(100)))
    assert set(map(tuple, found)) == {("93.184.215.14",)}
    assert names.asked == ["busy.example"]


async def test_an_answer_that_is_remembered_is_checked_again_for_each_use():
    resolver = resolver_of(["127.0.0.1"])
    for _ in range(3):
        with pytest.raises(AddressRefused):
            await resolver.addresses("rebound.example")


async def test_dns_without_an_answer_is_an_os_error_for_all_who_wait():
    resolver = resolver_of(socket.gaierror(socket.EAI_NONAME, "no such name"))
    results = await asyncio.gather(*(resolver.addresses("gone.example") for _ in range(3)), return_exceptions=True)
    assert all(isinstance(result, OSError) for result in results)
