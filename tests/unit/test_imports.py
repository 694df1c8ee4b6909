"""What a process does not import until it needs it: imports are most of its memory, and most of its time to ready."""

from __future__ import annotations

import subprocess
import sys

import pytest

NOT_IMPORTED = {
    "cli.processes.serve": {"rich", "starlette", "uvicorn", "prometheus_client", "argon2", "zxcvbn", "httpx", "faust"},
    "cli.processes.api": {"zxcvbn", "httpx", "rich", "opentelemetry", "pyarrow"},
    "cli.processes.worker": {"zxcvbn", "httpx", "rich", "opentelemetry", "pyarrow"},
    "everput": {"httpx", "rich"},
}


@pytest.mark.parametrize("module", NOT_IMPORTED)
def test_a_module_does_not_import_what_it_may_never_need(module: str):
    command = f"import sys, {module}; print(*sys.modules)"
    said = subprocess.run([sys.executable, "-P", "-c", command], capture_output=True, text=True, check=True).stdout
    assert module in said.split()
    assert NOT_IMPORTED[module].isdisjoint(said.split())


def test_the_clients_are_imported_when_they_are_used():
    command = "import everput; assert {'Client', 'AsyncClient'} <= set(everput.__all__); print(everput.AsyncClient)"
    said = subprocess.run([sys.executable, "-P", "-c", command], capture_output=True, text=True, check=True).stdout
    assert said == "<class 'everput.client.AsyncClient'>\n"
    command = "from everput import *; print(Client)\nimport everput; everput.nothing"
    done = subprocess.run([sys.executable, "-P", "-c", command], capture_output=True, text=True, check=False)
    assert done.stdout == "<class 'everput.client.Client'>\n"
    assert "AttributeError: module 'everput' has no attribute 'nothing'" in done.stderr


@pytest.mark.parametrize("name", ["show", "export"])
def test_a_command_is_imported_without_garbage_collections_and_runs_with_them(name: str):
    command = f"""
import gc
from cli.app import everput
collections = []
gc.callbacks.append(lambda phase, info: collections.append(phase))
found = everput.get_command(None, {name!r})
print(len(collections) <= 2, gc.isenabled(), found.name)  # at most the one that was due meanwhile
"""
    said = subprocess.run([sys.executable, "-P", "-c", command], capture_output=True, text=True, check=True).stdout
    assert said == f"True True {name}\n"
