"""No module imports itself by way of others, not even for types only: what can't be read from one end is not layered.

For: circles within the layers that import-linter holds (pyproject.toml)."""

from __future__ import annotations

from graphlib import CycleError, TopologicalSorter

import grimp
import pytest

PACKAGES = ("everput", "broker", "projections", "api", "cli")


def imports() -> dict[str, set[str]]:
    """By module, the modules that it imports, those for types and those within functions included."""
    graph = grimp.build_graph(*PACKAGES, exclude_type_checking_imports=False, cache_dir=None)
    return {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}


def test_no_module_imports_itself_by_way_of_others():
    try:
        TopologicalSorter(imports()).prepare()
    except CycleError as error:
        pytest.fail(" <- ".join(error.args[1]))


def test_imports_for_types_only_count():
    assert "broker.delivery.worker" in imports()["cli.processes.metrics"]
