"""No text makes a parser fail in a way of its own, take seconds or much memory: coverage-guided fuzzing (make soak)."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from foreign_text import text_parsers

HERE = Path(__file__).parent
ROUND_S = int(os.environ.get("EVERPUT_SOAK_ROUNDS", "50")) // 5  # for each parser

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(ROUND_S + 300),
    pytest.mark.skipif(find_spec("atheris") is None, reason="atheris has wheels for Linux on x86-64 only"),
]


@pytest.mark.parametrize("name", list(text_parsers()))
def test_no_text_breaks_a_parser(name: str, tmp_path: Path):
    limits = [f"-max_total_time={ROUND_S}", "-timeout=10", "-rss_limit_mb=1024", "-max_len=4096"]
    done = subprocess.run(
        [sys.executable, str(HERE / "fuzz.py"), name, *limits, f"-artifact_prefix={tmp_path}/"],
        env={**os.environ, "PYTHONPATH": f"{HERE}{os.pathsep}{HERE.parents[1]}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-5000:]
    assert " runs in " in done.stderr, "it ran"
