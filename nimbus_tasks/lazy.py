"""Tasks that are listed, completed and explained without being imported.

Invoke asks every task for its options before it runs any, and importing all of them takes half as
long as Invoke itself. So what it asks for (name, words, options) is kept in ``_catalogue.py``,
which ``invoke catalogue`` writes from the tasks themselves and a test compares with them; a task's
module is imported when the task runs.
"""

from __future__ import annotations

import importlib
from inspect import Parameter, Signature, cleandoc, signature
from pathlib import Path
from typing import Any, NamedTuple

from nimbus_tasks._catalogue import TASKS
from nimbus_tasks.command import Command

_CATALOGUE = Path(__file__).with_name("_catalogue.py")
_TYPE = "dict[str, tuple[str, str, str, str, bool, tuple[tuple[str, object, str], ...]]]"
_HEADING = """\"\"\"What ``invoke --list`` and ``--help`` tell of the tasks; see ``lazy.py``.

Written by ``invoke catalogue``; not to be changed by hand.
\"\"\"
# fmt: off
# ruff: noqa: E501

"""


#: The places of all tasks, in the order of the namespace: filled by :func:`lazy_task`.
_PLACES: list[str] = []


class Listed(NamedTuple):
    """What ``--list`` and ``--help`` tell of a task; ``options`` are (name, default, help)."""

    module: str
    function: str
    name: str
    doc: str
    is_default: bool
    options: tuple[tuple[str, Any, str], ...]


def lazy_task(place: str) -> Command:
    """The task at a place in the namespace, as ``batch.retry``; it is imported when it is called.

    It is in the module of that name, under the last part of it.
    """
    _PLACES.append(place)
    listed = Listed(*TASKS[place]) if place in TASKS else read_task(place)

    def body(*args: Any, **kwargs: Any) -> Any:
        task: Command = getattr(importlib.import_module(listed.module), listed.function)
        return task.body(*args, **kwargs)

    body.__name__ = body.__qualname__ = listed.function
    body.__module__, body.__doc__ = listed.module, listed.doc
    given, any_way = Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY
    # inspect, and so Invoke, reads this in the place of the function's own parameters.
    body.__signature__ = Signature(  # type: ignore[attr-defined]
        [
            Parameter("c", given),
            *(Parameter(name, any_way, default=default) for name, default, _ in listed.options),
        ]
    )
    return Command(
        body,
        name=listed.name,
        positional=[],
        auto_shortflags=False,
        default=listed.is_default,
        help={name.replace("_", "-"): text for name, _, text in listed.options if text},
    )


def read_task(place: str) -> Listed:
    """What is to be listed of a task, read from the task itself, whose module is imported."""
    module, name = importlib.import_module(f"nimbus_tasks.{place}"), place.rpartition(".")[2]
    # A task that is called as one of Python's own functions has a name with an underscore.
    function = name if isinstance(getattr(module, name, None), Command) else f"{name}_"
    task: Command = getattr(module, function)
    options = list(signature(task.body).parameters.values())[1:]
    return Listed(
        module.__name__,
        function,
        task.name,
        cleandoc(task.__doc__ or ""),  # Python 3.13 has done that already, older ones have not
        task.is_default,
        tuple((o.name, o.default, task.help.get(o.name.replace("_", "-"), "")) for o in options),
    )


def catalogue_text() -> str:
    """The text that ``_catalogue.py`` should have. Call it in a process of its own: a task that has
    been asked for its options once answers with those."""
    lines = [f"{_HEADING}TASKS: {_TYPE} = {{"]
    for place in _PLACES:
        *facts, options = read_task(place)
        lines += [f"    {place!r}: (", *(f"        {fact!r}," for fact in facts), "        ("]
        lines += [*(f"            {option!r}," for option in options), "        ),", "    ),"]
    return "\n".join([*lines, "}", ""])


def write_catalogue() -> None:
    """Bring ``_catalogue.py`` up to date."""
    _CATALOGUE.write_text(catalogue_text(), encoding="utf-8")
