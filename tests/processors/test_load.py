"""Naming a processor: what may stand for one, and modules that do more than define it."""

from __future__ import annotations

from pathlib import Path

import pytest

from nimbus_tasks.core.errors import UsageError
from nimbus_tasks.processors import load_processor


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that Python imports from."""
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def test_an_object_that_can_be_called_is_a_processor(modules: Path) -> None:
    (modules / "an_object.py").write_text(
        "class Model:\n    def __call__(self, page, progress):\n        return {'changes': 7}\n\n"
        "model = Model()\n"
    )
    assert load_processor("an_object:model")({}, lambda *step: None) == {"changes": 7}


def test_a_module_may_lie_in_a_package(modules: Path) -> None:
    (modules / "a_package" / "inner").mkdir(parents=True)
    (modules / "a_package" / "inner" / "deep.py").write_text("def process(page, progress): ...\n")
    assert load_processor("a_package.inner.deep:process").__name__ == "process"


@pytest.mark.parametrize(
    "content", ["def (", "import no_such_module_x", "1 / 0", "# -*- coding: none -*-"]
)
def test_a_module_that_python_cannot_run_is_a_usage_error(modules: Path, content: str) -> None:
    name = f"faulty_{modules.name}"
    (modules / f"{name}.py").write_text(content)
    with pytest.raises(UsageError, match=name):
        load_processor(f"{name}:process")


@pytest.mark.parametrize("name", ["..up:f", "a..b:f", "/etc/passwd:f", "a b:f", "x" * 5000, "é:é"])
def test_a_name_that_is_none_is_a_usage_error(name: str) -> None:
    with pytest.raises(UsageError):
        load_processor(name)


@pytest.mark.parametrize("code", ["0", "'usage: …'"])
def test_a_script_that_exits_when_it_is_imported_is_a_usage_error(modules: Path, code: str) -> None:
    name = f"script_{modules.name}"
    (modules / f"{name}.py").write_text(f"import sys\n\nsys.exit({code})\n")
    with pytest.raises(UsageError, match=name):
        load_processor(f"{name}:process")
