"""``nimbus.batch.report``: what became of every page, as JSON, HTML and CSV, and a summary.

The store is read once: each page's row goes to every file that is asked for, so that they agree.
Files are written beside their place and then put there, page by page, so that a batch of 100,000
pages needs little memory and a reader never meets half a report.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TextIO

from invoke.context import Context

from nimbus_tasks.batch.metrics import metric_lines
from nimbus_tasks.batch.report.as_csv import CsvReport
from nimbus_tasks.batch.report.as_json import JsonReport
from nimbus_tasks.batch.report.rows import Kept, Row, keeping, report_rows
from nimbus_tasks.command import (
    BATCH_HELP,
    EXIT_STATUS_HELP,
    command,
    exit_with_outcome,
    project_root,
    setting,
)
from nimbus_tasks.core import batches
from nimbus_tasks.core.batches import BatchView
from nimbus_tasks.core.clock import to_iso, utc_now
from nimbus_tasks.core.errors import UsageError, cannot_write
from nimbus_tasks.core.metrics import batch_metrics
from nimbus_tasks.core.project import Project, atomic_files, load_project
from nimbus_tasks.kv.store import Store
from nimbus_tasks.ui.batch_view import count_lines, failure_lines, heading
from nimbus_tasks.ui.console import Console, stdout_to_stderr
from nimbus_tasks.ui.text import path_here

_FAILURES_SHOWN = 20
#: The worker's settings that a report names: not ``command``, whose text may hold a secret.
_OPTIONS_SHOWN = ("processor", "concurrency", "max_attempts", "timeout", "lease")


@dataclass(frozen=True)
class Report:
    """Where its files lie, by format, and the look at the batch that they were made from."""

    paths: Mapping[str, Path]
    view: BatchView

    @property
    def path(self) -> Path:
        """The JSON file; the first that was written where that one was not asked for."""
        return self.paths.get("json") or next(iter(self.paths.values()))


class _Form(Protocol):
    """A report file as it is written: rows some at a time, then its end."""

    def add(self, rows: Sequence[Row]) -> None: ...

    def finish(self) -> None: ...


def write_report(
    project: Project,
    store: Store,
    batch: str | None = None,
    *,
    formats: Sequence[str] = ("json",),
    options: Mapping[str, Any] | None = None,
) -> Report:
    """Write the report of a batch (the latest, if left out) to the project's reports folder.

    ``formats`` are of ``json``, ``html`` and ``csv``, at least one; ``options`` are settings of the
    worker that the HTML names. Where one file cannot be written, none is changed. Raises
    :class:`NotFoundError` for an unknown batch, :class:`StoreError` for a file that cannot be
    written.
    """
    now = utc_now()
    with store.snapshot() as reading:
        head = batches.find(reading, project.project_id, batch)
        pages: list[Kept] = []
        kept = keeping(batches.groups_of(reading, head), pages)
        view = batches.look_at(kept, head, now, engine=project.engine)
        paths = {name: project.reports / f"{head.batch_id}_report.{name}" for name in formats}
        try:
            with atomic_files(paths.values()) as files:
                forms = [
                    _form(name, file, project, view, to_iso(now), options or {})
                    for name, file in zip(paths, files, strict=True)
                ]
                for rows in report_rows(reading, head, pages):
                    for form in forms:
                        form.add(rows)
                for form in forms:
                    form.finish()
        except OSError as error:
            raise cannot_write(f"to {project.reports}", error) from error
    return Report(paths, view)


def _form(
    name: str,
    file: TextIO,
    project: Project,
    view: BatchView,
    generated: str,
    options: Mapping[str, Any],
) -> _Form:
    """The form of that name, which writes to ``file``."""
    if name == "json":
        return JsonReport(file, view, generated)
    if name == "csv":
        return CsvReport(file)
    from nimbus_tasks.batch.report.as_html import HtmlReport  # jinja2 and charts, for HTML alone

    return HtmlReport(file, project, view, generated, options)


@command(
    help={
        "batch": BATCH_HELP,
        "format": "what to write: json, html, csv, or several with commas (default: json)",
        "open": "open the HTML in the browser; writes it too",
        "exit-status": EXIT_STATUS_HELP,
        "json": "print the report itself on stdout, and nothing else there",
    }
)
def report(
    c: Context,
    batch: str | None = None,
    format: str | None = None,  # noqa: A002 - the option's name
    open: bool = False,  # noqa: A002 - the option's name
    exit_status: bool = False,
    json: bool = False,
) -> Report:
    """Write a batch's report; show its summary.

    Example: invoke nimbus.batch.report --open
    """
    console = Console(json_only=json)
    wanted = [*(setting(c, "report", "format", format) or ["json"])]
    wanted += ["json"] if json else []
    wanted += ["html"] if open else []
    formats = list(dict.fromkeys(wanted))
    project = load_project(project_root(c))
    with project.open_store(tell=console.note) as store:
        written = write_report(project, store, batch, formats=formats, options=_worker_options(c))
    if json:
        with written.paths["json"].open(encoding="utf-8") as file:
            console.json_text(file)
    else:
        console.say(*_lines(written, console))
    if open:
        _open(written.paths["html"], console)
    if exit_status:
        exit_with_outcome(written.view.status)
    return written


def _worker_options(c: Context) -> dict[str, Any]:
    """The worker's settings, but for those that a worker refuses: with them it has not run."""
    found = {}
    for name in _OPTIONS_SHOWN:
        with suppress(UsageError):
            found[name] = setting(c, "worker", name, None)
    return {name: value for name, value in found.items() if value is not None}


def _lines(written: Report, console: Console) -> list[str]:
    view, style, columns = written.view, console.style, console.columns
    return [
        *heading(view, style, columns, utc_now()),
        *count_lines(view, style, columns),
        "",
        *metric_lines(batch_metrics(view.tally), columns),
        *failure_lines(view.failures, view.tally.states["failed"], style, columns, _FAILURES_SHOWN),
        "",
        *(f"{style.sign('ok')} Report: {path_here(path)}" for path in written.paths.values()),
    ]


def _open(path: Path, console: Console) -> None:
    from nimbus_tasks.ui.browser import open_in_browser

    with stdout_to_stderr():  # a browser may have something to say
        is_open = open_in_browser(path.resolve().as_uri())
    if not is_open:
        console.note(f"There is no browser to open it with: {path_here(path)}")
