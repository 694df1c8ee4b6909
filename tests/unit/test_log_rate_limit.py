"""The log lines of a listener that fails everything: a few each minute, and the sum of the others."""

from __future__ import annotations

from broker.delivery.dispatch.log_rate_limit import LogRateLimit
from broker.delivery.tuning import TUNED

LINES_MAX = TUNED.log_lines_per_min
MINUTE_MS = 60_000


def test_a_few_lines_a_minute_and_the_next_one_sums_up_those_that_were_left_out():
    lines = LogRateLimit()
    results = [503] * 60 + ["timeout"] * 40
    said = [lines.left_out(5 * MINUTE_MS + number, result) for number, result in enumerate(results)]
    assert said == ["left_out=0"] * LINES_MAX + [None] * (100 - LINES_MAX)
    next_minute = lines.left_out(6 * MINUTE_MS, 500)
    assert next_minute == f"left_out={100 - LINES_MAX} left_out_results=503:{60 - LINES_MAX},timeout:40"
    assert lines.left_out(6 * MINUTE_MS + 1, 500) == "left_out=0"


def test_a_listener_with_ever_other_results_has_a_sum_of_bounded_length():
    lines = LogRateLimit()
    for status in range(LINES_MAX + 1000):
        lines.left_out(5 * MINUTE_MS, status)
    summed_up = lines.left_out(6 * MINUTE_MS, 500)
    assert summed_up is not None
    assert summed_up.startswith("left_out=1000 ")
    assert "other:992" in summed_up
    assert len(summed_up) < 150
