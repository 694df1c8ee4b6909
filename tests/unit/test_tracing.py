"""`traceparent`: read strictly, kept with the message, and no tracing is loaded where nobody asks for it."""

from __future__ import annotations

import subprocess
import sys

import pytest
from api_client import make_api
from hypothesis import given
from hypothesis import strategies as st
from msgspec import UNSET

from broker.core import trace
from broker.core.codec import decode_message
from cli.tracing import wanted

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
GOOD = f"00-{TRACE}-{SPAN}-01"


@pytest.mark.parametrize(
    ("value", "read"),
    [
        (GOOD, GOOD),
        (f"00-{TRACE}-{SPAN}-00", f"00-{TRACE}-{SPAN}-00"),
        (f"01-{TRACE}-{SPAN}-03-more", GOOD),
        (f"cc-{TRACE}-{SPAN}-02", f"00-{TRACE}-{SPAN}-00"),
        (f"00-{TRACE}-{SPAN}-01-more", None),
        (f"01-{TRACE}-{SPAN}-01more", None),
        (f"01-{TRACE}-{SPAN}-01-" + "x" * 100, None),
        (f"ff-{TRACE}-{SPAN}-01", None),
        (f"00-{'0' * 32}-{SPAN}-01", None),
        (f"00-{TRACE}-{'0' * 16}-01", None),
        (GOOD.upper(), None),
        (f" {GOOD}", None),
        (f"{GOOD}\n", None),
        (GOOD[:-1], None),
        ("", None),
    ],
)
def test_a_traceparent_is_read_as_the_specification_says(value, read):
    found = trace.parse(value.encode())
    assert (None if found is None else str(found)) == read


@given(st.binary(max_size=200) | st.from_regex(rb"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}.*"))
def test_what_is_read_is_sent_on_as_a_valid_header_or_not_at_all(value):
    found = trace.parse(value)
    if found is not None:
        assert trace.parse(str(found).encode()) == found
        assert str(found).isascii()
        assert len(str(found)) == 55


async def test_a_puts_traceparent_is_kept_with_each_message_and_an_invalid_one_is_not():
    api = await make_api()
    queue_id = await api.queue()
    path = f"/v1/queues/{queue_id}/messages"
    batch = {"messages": [{"data": "batch"}, {"data": "batch"}]}
    for value in (GOOD, "no traceparent"):
        headers = {"traceparent": value}
        assert (await api.put(path, json={"data": value}, headers=headers)).status_code == 200
        once = {**headers, "idempotency-key": value}
        assert (await api.put(path, json={"data": value}, headers=once)).status_code == 200
        assert (await api.request("POST", f"{path}/batch", json=batch, headers=headers)).status_code == 200
    puts = [decode_message(value) for partition in api.log.messages.records for _, value, _ in partition]
    found = sorted((put.data, str(put.traceparent)) for put in puts)
    assert found == sorted(
        [("batch", GOOD)] * 2 + [("batch", str(UNSET))] * 2 + [(GOOD, GOOD)] * 2 + [("no traceparent", str(UNSET))] * 2
    )


@pytest.mark.parametrize(
    ("environment", "yes"),
    [
        ({}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318"}, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://127.0.0.1:4318/v1/traces"}, True),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318", "OTEL_SDK_DISABLED": "True"}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318", "OTEL_TRACES_EXPORTER": "none"}, False),
    ],
)
def test_opentelemetrys_own_variables_turn_tracing_on_and_off(environment, yes):
    assert wanted(environment) is yes


def test_no_process_loads_opentelemetry_before_somebody_asks_for_it():
    program = (
        "import sys, cli.app, cli.processes.api, cli.processes.worker;"
        "sys.exit(any(name.startswith('opentelemetry') for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False, timeout=120).returncode == 0
