"""The rules that hold the layout: who may import whom, and what listing tasks may cost."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from nimbus_tasks._catalogue import TASKS
from tests.factories import REPOSITORY, python

PACKAGE = REPOSITORY / "nimbus_tasks"
#: Folders below the tasks, and what each may import of the package.
MAY_IMPORT = {
    "core": ("nimbus_tasks.core", "nimbus_tasks.kv"),
    "kv": ("nimbus_tasks.core.errors", "nimbus_tasks.kv", "nimbus_tasks.versions"),
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
        "heavy = {'requests', 'urllib3', 'tqdm', 'colorama', 'sqlite3', 'jinja2', 'starlette',"
        " 'uvicorn'}; print(sorted(heavy & (set(sys.modules) - before)))"
    )
    assert python(code).strip() == "[]"


TASK_MODULES = {"guide", "init", "doctor", "upload", "worker", "dashboard", "batch", "cloud"}


def test_no_import_is_relative() -> None:
    """What :func:`imports` does not name, no rule here could hold."""
    wrong = [
        str(path.relative_to(PACKAGE))
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and node.level
    ]
    assert wrong == []


def test_nothing_below_the_tasks_imports_one() -> None:
    wrong = [
        f"{path.relative_to(PACKAGE)} imports {name}"
        for folder in MAY_IMPORT
        for path in modules(folder)
        for name in imports(path)
        if name == "nimbus_tasks" or set(name.split(".")[1:2]) & TASK_MODULES
        if name.startswith("nimbus_tasks")
    ]
    assert wrong == []


def test_only_task_modules_know_invoke() -> None:
    knowing = {
        path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        for path in PACKAGE.rglob("*.py")
        if any(name.partition(".")[0] == "invoke" for name in imports(path))
    }
    assert knowing == TASK_MODULES | {"command", "__init__"}


def imports_at_the_top(path: Path) -> Iterator[str]:
    """What importing the module imports: not what its functions do, nor what types need."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{name.name}" for name in node.names)


def test_no_module_imports_itself_by_way_of_others() -> None:
    graph = {
        ".".join(path.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__init__"): {
            name for name in imports_at_the_top(path) if name.startswith("nimbus_tasks")
        }
        for path in PACKAGE.rglob("*.py")
    }
    # `from nimbus_tasks import init` in the package's own __init__ names the package, too.
    graph = {name: {n for n in names if n in graph} - {name} for name, names in graph.items()}
    while leaves := {name for name, names in graph.items() if not names}:
        graph = {n: names - leaves for n, names in graph.items() if n not in leaves}
    assert graph == {}


def test_a_task_is_at_the_end_of_its_module_after_what_it_does() -> None:
    """Plain functions first, the ``@command`` after them: that is how a module is read."""
    modules_of_tasks = [PACKAGE.joinpath(*place.split(".")).with_suffix(".py") for place in TASKS]
    packages = [path.with_suffix("") / "__init__.py" for path in modules_of_tasks]
    paths = [path for path in (*modules_of_tasks, *packages) if path.exists()]
    assert len(paths) == len(TASKS)
    for path in paths:
        functions = [
            node
            for node in ast.parse(path.read_text(encoding="utf-8")).body
            if isinstance(node, ast.FunctionDef)
        ]
        tasks = [n for n in functions if any("command" in ast.dump(d) for d in n.decorator_list)]
        assert len(tasks) == 1, path
        # What a package does is in its other modules.
        assert path.name == "__init__.py" or functions[0] is not tasks[0], path
