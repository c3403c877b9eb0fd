"""The rules that hold the layout: who may import whom, and what listing tasks may cost."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.factories import REPOSITORY, environment_for

PACKAGE = REPOSITORY / "nimbus_tasks"
#: Folders below the tasks, and what each may import of the package.
MAY_IMPORT = {
    "core": ("nimbus_tasks.core", "nimbus_tasks.kv"),
    "kv": ("nimbus_tasks.core.errors", "nimbus_tasks.kv"),
    "ui": ("nimbus_tasks.core", "nimbus_tasks.ui"),
    "processors": ("nimbus_tasks.core", "nimbus_tasks.kv", "nimbus_tasks.processors"),
}


def imports(path: Path) -> Iterator[str]:
    """The modules that a file imports, at its top or within its functions."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def modules(folder: str) -> list[Path]:
    return sorted((PACKAGE / folder).rglob("*.py"))


@pytest.mark.parametrize("folder", MAY_IMPORT)
def test_imports_point_one_way(folder: str) -> None:
    wrong = [
        f"{path.relative_to(PACKAGE)} imports {name}"
        for path in modules(folder)
        for name in imports(path)
        if name.startswith("nimbus_tasks") and not name.startswith(MAY_IMPORT[folder])
    ]
    assert modules(folder)
    assert wrong == []


@pytest.mark.parametrize("folder", ["core", "kv"])
def test_core_and_stores_know_neither_invoke_nor_a_terminal(folder: str) -> None:
    terminal = {"invoke", "tqdm", "colorama", "shutil.get_terminal_size"}
    wrong = [
        f"{path.relative_to(PACKAGE)} imports {name}"
        for path in modules(folder)
        for name in imports(path)
        if name.partition(".")[0] in terminal
    ]
    assert wrong == []
    assert [p for p in modules(folder) if "print(" in p.read_text(encoding="utf-8")] == []


def test_only_the_store_package_knows_sqlite() -> None:
    knowing = {
        path.relative_to(PACKAGE).parts[0]
        for path in PACKAGE.rglob("*.py")
        if "sqlite3" in set(imports(path))
    }
    assert knowing == {"kv"}


def test_listing_the_tasks_imports_nothing_heavy() -> None:
    # What is there before (coverage brings sqlite3) is not ours.
    code = (
        "import sys, invoke; before = set(sys.modules); import nimbus_tasks;"
        "print(sorted({'requests', 'urllib3', 'tqdm', 'colorama', 'sqlite3'}"
        " & (set(sys.modules) - before)))"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code],
        env=environment_for(),
        capture_output=True,
        text=True,
        check=True,
    )
    assert ran.stdout.strip() == "[]"
