"""``nimbus.guide``, also plain ``nimbus``: what there is, where a project stands, how to begin."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from invoke.context import Context

from nimbus_tasks.command import command, project_root, setting
from nimbus_tasks.core import batches
from nimbus_tasks.core.advice import NextStep, next_steps_of
from nimbus_tasks.core.clock import utc_now
from nimbus_tasks.core.errors import NimbusError
from nimbus_tasks.core.project import DEFAULT_FOLDER, config_path, load_project
from nimbus_tasks.ui.console import Console
from nimbus_tasks.ui.figures import ago
from nimbus_tasks.ui.next_steps import next_lines
from nimbus_tasks.ui.text import clean, clip, wrap

#: The tasks by purpose; ``invoke --list`` has them all with a line each.
_PURPOSES = (
    ("begin", "init, doctor"),
    ("send and work", "upload, worker"),
    ("look", "batch.list, batch.status, batch.monitor, batch.wait, dashboard"),
    ("beyond this machine", "cloud.init, cloud.dev, cloud.deploy"),
    ("evaluate", "batch.report, batch.metrics"),
    ("mend", "batch.retry, batch.cancel, batch.verify"),
)


@dataclass(frozen=True)
class Standing:
    """Where a project stands, in a sentence, and the commands to type next."""

    words: str
    steps: list[NextStep]


def standing(
    root: Path, folder: str = DEFAULT_FOLDER, tell: Callable[[str], None] = lambda _: None
) -> Standing:
    """Where the project in ``root`` stands. ``folder`` is where an upload looks for maps; ``tell``
    is called with words where a store has to wait. Raises nothing: what is wrong with the project
    is what is said of it.
    """
    upload = NextStep(
        f"Send the content maps in {clip(clean(folder), 60, keep_end=True)}, or in --folder",
        "invoke nimbus.upload",
    )
    try:
        if not config_path(root).exists():
            words = f"There is no project in {root} yet; the first upload makes one."
            return Standing(words, [upload])
        project = load_project(root)
        if not project.has_store:
            return Standing(f"Project {project.name} has no batch yet.", [upload])
        with project.open_store(tell=tell) as store, store.snapshot() as reading:
            heads = batches.heads(reading, project.project_id)
            if not heads:
                return Standing(f"Project {project.name} has no batch yet.", [upload])
            view = batches.look(reading, heads[0], utc_now(), engine=project.engine)
    except NimbusError as error:
        advice = f" · {error.advice}" if error.advice else ""
        doctor = NextStep("See what else there is to it", "invoke nimbus.doctor")
        return Standing(f"Something is wrong: {error.message}{advice}", [doctor])
    head, counts = view.head, view.tally.counts
    count = "1 batch" if len(heads) == 1 else f"{len(heads):,} batches"
    words = (
        f"Project {project.name} has {count}; the latest, {head.batch_id}, is"
        f" {view.status.replace('_', ' ')}: {counts['done']:,} of {view.tally.total:,} pages done,"
        f" {counts['failed']:,} failed. It was created {ago(head.created, utc_now())}."
    )
    return Standing(words, next_steps_of(view))


@command(name="guide", default=True)
def guide(c: Context) -> Standing:
    """Say what there is, and how to begin.

    Where this project stands, the tasks by purpose, and the command to type next.

    Example: invoke nimbus
    """
    console = Console()
    style, columns = console.style, console.columns
    found = standing(project_root(c), _folder(c), console.note)
    console.say(
        style.bold("Batches of page work: upload, work, watch, retry, report."),
        "",
        *(f"   {line}" for line in wrap(clean(found.words), columns, indent=3)),
        *next_lines(found.steps, style, columns),
        "",
    )
    width = 3 + max(len(name) for name, _ in _PURPOSES) + 2
    for name, tasks in _PURPOSES:
        first, *rest = wrap(tasks, columns, indent=width)
        console.say(f"   {name:{width - 3}}{first}")
        console.say(*(f"{'':{width}}{line}" for line in rest))
    how = "Options and an example: invoke --help nimbus.upload. All tasks: invoke --list."
    console.say("", *(style.dim(f"   {line}") for line in wrap(how, columns, indent=3)))
    return found


def _folder(c: Context) -> str:
    """Where an upload looks for maps; a setting that is no text is for the upload to refuse."""
    try:
        return setting(c, "upload", "folder", None) or DEFAULT_FOLDER
    except NimbusError:
        return DEFAULT_FOLDER
