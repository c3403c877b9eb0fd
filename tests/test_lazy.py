"""Tasks that are imported when they run: the listing tells what the tasks themselves say."""

from __future__ import annotations

from pathlib import Path

from nimbus_tasks import nimbus
from nimbus_tasks._catalogue import TASKS
from tests.factories import python

PACKAGE = Path(__file__).parents[1] / "nimbus_tasks"


def test_the_catalogue_is_what_the_tasks_say() -> None:
    """Mend it with: invoke catalogue."""
    text = python("from nimbus_tasks import lazy; print(lazy.catalogue_text(), end='')")
    assert text == (PACKAGE / "_catalogue.py").read_text(encoding="utf-8")


def test_every_task_is_in_the_namespace() -> None:
    names = {name.removeprefix("nimbus.") for name in nimbus.task_names}
    assert names == set(TASKS)


def test_listing_and_help_import_no_task() -> None:
    code = (
        "import sys; from nimbus_tasks import nimbus; nimbus.to_contexts();"
        "print(*(name for name in sys.modules if name.startswith('nimbus_tasks.')))"
    )
    loaded = set(python(code).split())
    assert "nimbus_tasks._catalogue" in loaded
    assert not {f"nimbus_tasks.{place}" for place in TASKS} & loaded


def test_tasks_of_one_name_are_two_tasks() -> None:
    """Invoke runs equal ones once, in a list of pre-tasks for instance."""
    init, cloud_init = nimbus.tasks["init"], nimbus.collections["cloud"].tasks["init"]
    assert init == nimbus.tasks["init"]
    assert init != cloud_init
