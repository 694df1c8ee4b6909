"""The program with compiled modules (make wheels) loses nothing when its processes are killed, like the one without.

For: a compiled module checks types at run time, so it can fail where its source works. It needs a C compiler, Python's
headers, and a minute to compile. Not for: everything else that processes do. All of tests/scenarios runs with the
compiled program if PYTHONPATH names a folder into which its wheel was unpacked.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from tests.scenarios import soak
from tests.scenarios.running import everput
from tests.scenarios.soak import VICTIMS, Server

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(
        shutil.which("cc") is None or not Path(sysconfig.get_path("include"), "Python.h").exists(),
        reason="no C compiler, or no headers of Python",
    ),
]

ROOT = Path(__file__).parents[2]
PACKAGES = ("everput", "broker", "projections", "api", "cli")


@pytest.fixture
def compiled(tmp_path: Path) -> Path:
    """A folder with what the compiled wheel has."""
    sources, wheels, program = (tmp_path / name for name in ("sources", "wheels", "program"))
    for name in PACKAGES:
        shutil.copytree(ROOT / name, sources / name)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, sources)
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(wheels),
        str(sources),
    ]
    environment = {**os.environ, "HATCH_BUILD_HOOK_ENABLE_MYPYC": "1"}
    made = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert made.returncode == 0, made.stdout + made.stderr
    (wheel,) = wheels.iterdir()
    assert "py3-none-any" not in wheel.name
    with zipfile.ZipFile(wheel) as file:
        file.extractall(program)
    return program


async def test_kill_9_of_anything_under_load_loses_nothing(compiled: Path, tmp_path: Path, dice: random.Random):
    with Server(tmp_path / "data", PYTHONPATH=str(compiled)) as server:
        server.until_ready()
        worker = server.now.running("worker-1")
        assert "__mypyc." in Path(f"/proc/{worker}/maps").read_text()
        await soak.kill_loop(server, dice, len(VICTIMS), pause_s=1.0)
        verified = everput("verify", "--data-dir", str(server.now.data_dir), "--admin", server.now.admin_url)
        assert (verified.returncode, verified.stdout) == (0, ""), verified.stderr
        assert server.now.stop() == 0
