"""``nimbus.batch.metrics``: success rate, times, changes, confidence and throughput of a batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from invoke.context import Context

from nimbus_tasks.command import (
    BATCH_HELP,
    EXIT_STATUS_HELP,
    JSON_HELP,
    command,
    exit_with_outcome,
    project_root,
)
from nimbus_tasks.core import batches
from nimbus_tasks.core.metrics import Metrics, batch_metrics
from nimbus_tasks.core.project import Project, load_project
from nimbus_tasks.kv.store import Store
from nimbus_tasks.ui.batch_view import padded
from nimbus_tasks.ui.console import Console
from nimbus_tasks.ui.figures import duration, milliseconds, money, short
from nimbus_tasks.ui.style import Style
from nimbus_tasks.ui.text import clean, width, wrap


@dataclass(frozen=True)
class BatchMetrics:
    """A batch's metrics and which batch it is."""

    batch_id: str
    status: str
    metrics: Metrics

    def to_json(self) -> dict[str, Any]:
        """The document of ``--json``."""
        return {"batch_id": self.batch_id, "status": self.status, **self.metrics.to_json()}


def measure_batch(project: Project, store: Store, batch: str | None = None) -> BatchMetrics:
    """The metrics of a batch (the latest, if left out), folded from its pages."""
    with store.snapshot() as reading:
        head = batches.find(reading, project.project_id, batch)
        tally = batches.fold(reading, head)
    status = tally.status(head.intent)
    return BatchMetrics(head.batch_id, status, batch_metrics(tally))


@command(help={"batch": BATCH_HELP, "exit-status": EXIT_STATUS_HELP, "json": JSON_HELP})
def metrics(
    c: Context, batch: str | None = None, exit_status: bool = False, json: bool = False
) -> BatchMetrics:
    """Show a batch's success rate and times.

    Example: invoke nimbus.batch.metrics --batch=latest --json
    """
    console = Console(json_only=json)
    project = load_project(project_root(c))
    with project.open_store(tell=console.note) as store:
        measured = measure_batch(project, store, batch)
    if json:
        console.document(measured.to_json())
    else:
        console.say(*_lines(measured, console.style, console.columns))
    if exit_status:
        exit_with_outcome(measured.status)
    return measured


def _lines(measured: BatchMetrics, style: Style, columns: int) -> list[str]:
    title = (
        f"{style.sign('batch')} {style.bold(measured.batch_id)}"
        f"  {style.sign(measured.status)} {style.state(measured.status)}"
    )
    return [title, *metric_lines(measured.metrics, columns)]


def metric_lines(metrics: Metrics, columns: int) -> list[str]:
    """The figures, each with its name; one that is wider than ``columns`` goes on below."""
    timing, confidence = metrics.timing, metrics.average_confidence
    speed = metrics.pages_per_minute
    figures = [
        ("success rate", f"{metrics.success_rate:g}% of {metrics.total_pages:,} pages"),
        (
            "time a page",
            f"average {milliseconds(timing.average_ms)}, median {milliseconds(timing.p50_ms)},"
            f" p95 {milliseconds(timing.p95_ms)}",
        ),
        ("changes", f"{metrics.total_changes:,}"),
        ("confidence", "–" if confidence is None else f"{confidence:.2f}"),
        ("throughput", "–" if speed is None else f"{short(speed)} pages/min"),
        ("elapsed", duration(metrics.elapsed_seconds)),
        ("attempts", f"{metrics.attempts:,}"),
        *usage_figures(metrics),
    ]
    if metrics.errors:
        errors = (f"{clean(code)} {count:,}" for code, count in metrics.errors.items())
        figures.append(("errors", ", ".join(errors)))
    return [line for name, value in figures for line in _figure(name, value, columns)]


def _figure(name: str, value: str, columns: int) -> list[str]:
    first, *rest = wrap(value, columns, indent=width(padded("", "")))
    return [padded(name, first), *(padded("", line) for line in rest)]


def usage_figures(metrics: Metrics) -> list[tuple[str, str]]:
    """What the pages took of a service that counts; nothing where none did."""
    usage = metrics.usage
    if usage is None:
        return []
    figures = [
        ("tokens in", f"{usage['tokens_in']:,}"),
        ("tokens out", f"{usage['tokens_out']:,}"),
    ]
    if usage["cost"] is not None:
        figures.append(("cost", money(usage["cost"])))
    return figures
