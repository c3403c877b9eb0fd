"""The report as one HTML file that asks for nothing: no network, no script but its own.

What it says is gathered here, how it looks is in ``templates/``. A content security policy in the
file allows that one style and that one script, by their hashes. All text from outside is cleaned
and cut (:func:`~nimbus_tasks.ui.text.shown`) and escaped by the template engine.
"""

from __future__ import annotations

import hashlib
import platform
from base64 import b64encode
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any, TextIO

from nimbus_tasks.batch.metrics import usage_figures
from nimbus_tasks.batch.report import charts
from nimbus_tasks.batch.report.digest import FAILED_KEPT, FIRST_KEPT, Digest
from nimbus_tasks.batch.report.packed import CODE_SHOWN, ERROR_SHOWN, page_name
from nimbus_tasks.batch.report.rows import Row
from nimbus_tasks.core.advice import next_steps_of
from nimbus_tasks.core.batches import BatchView
from nimbus_tasks.core.clock import UTC, parse_iso
from nimbus_tasks.core.failures import FailureGroup
from nimbus_tasks.core.lifecycle import PAGE_STATES
from nimbus_tasks.core.metrics import batch_metrics
from nimbus_tasks.core.project import Project
from nimbus_tasks.ui.figures import duration, milliseconds
from nimbus_tasks.ui.text import shown
from nimbus_tasks.versions import version_of

_GROUPS_SHOWN = 20
_EXAMPLES_SHOWN = 5
#: The order in which a batch's states are read: what is done, what went wrong, what is left.
_ORDER = ("done", "failed", "cancelled", "processing", "queued", "uploaded")
#: A project's ``store`` and ``queue`` in words.
_STORES = {"sqlite": "embedded (SQLite)", "cloudflare": "Cloudflare Workers KV"}
_QUEUES = {
    "keys": "one key an item",
    "document": "one document",
    "cloudflare-queues": "a Cloudflare Queue",
}


class HtmlReport:
    """Filled row by row; written when all of them are there."""

    def __init__(
        self,
        file: TextIO,
        project: Project,
        view: BatchView,
        generated: str,
        options: Mapping[str, Any],
    ) -> None:
        self._file = file
        self._project = project
        self._view = view
        self._generated = generated
        self._options = options
        self._digest = Digest()

    def add(self, rows: Sequence[Row]) -> None:
        """Take the next pages."""
        for row in rows:
            self._digest.add(row)

    def finish(self) -> None:
        """Write the file."""
        from jinja2 import Environment, PackageLoader, StrictUndefined

        engine = Environment(
            autoescape=True,
            loader=PackageLoader("nimbus_tasks.batch.report"),
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        colours = (resources.files("nimbus_tasks.ui") / "colours.css").read_text(encoding="utf-8")
        style, script = colours + _part("report.css"), _part("report.js")
        self._file.writelines(
            engine.get_template("report.html.jinja").generate(
                style=style,
                script=script,
                policy=_policy(style, script),
                **_content(self._project, self._view, self._generated, self._options, self._digest),
            )
        )


def _part(name: str) -> str:
    folder = resources.files("nimbus_tasks.batch.report") / "templates"
    return (folder / name).read_text(encoding="utf-8")


def _policy(style: str, script: str) -> str:
    """Nothing is allowed but this style and this script."""
    allowed = [
        f"{kind}-src 'sha256-{b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
        for kind, text in (("style", style), ("script", script))
    ]
    return "; ".join(["default-src 'none'", *allowed, "base-uri 'none'", "form-action 'none'"])


def _content(
    project: Project,
    view: BatchView,
    generated: str,
    options: Mapping[str, Any],
    digest: Digest,
) -> dict[str, Any]:
    """What the template shows: texts that are clean, figures in words, drawings."""
    groups = digest.groups.biggest(_GROUPS_SHOWN)
    counts = view.tally.counts
    failed = counts["failed"]
    ordered = [(state, counts[state]) for state in _ORDER]
    return {
        "batch_id": view.head.batch_id,
        "status": view.status,
        "project": shown(project.name, 80),
        "verdict": verdict(view),
        "reason": shown(view.head.reason, 300),
        "created": moment(view.head.created),
        "generated": moment(generated),
        "total": view.tally.total,
        "counts": [(state, count) for state, count in ordered if count],
        "stalled": len(view.stalled),
        "state_bar": charts.state_bar(ordered),
        "metrics": _metrics(view),
        "steps": next_steps_of(view, groups, in_report=True),
        "failed": failed,
        "groups": [_group(group, failed) for group in groups],
        "charts": _charts(view, digest),
        "slowest": _slowest(digest),
        "attempts": _attempts(digest),
        "failed_rows": [_cells(row) for row in digest.failed],
        "first_rows": [_cells(row) for row in digest.first],
        "failed_kept": FAILED_KEPT,
        "first_kept": FIRST_KEPT,
        "states": PAGE_STATES,
        "packed": digest.packed.base64(),
        "setup": _setup(project, options),
        "version": version_of(),
    }


def verdict(view: BatchView) -> str:
    """What became of the batch, in a sentence."""
    counts, total = view.tally.counts, view.tally.total
    done, failed = counts["done"], counts["failed"]
    all_pages = "The one page" if total == 1 else f"All {total:,} pages"
    if view.status == "completed":
        return f"{all_pages} {'is' if total == 1 else 'are'} done." if total else "No pages."
    if view.status == "partially_completed":
        return f"{done:,} of {total:,} pages are done, {failed:,} failed."
    if view.status == "failed":
        return f"{all_pages} failed." if failed == total else f"No page is done; {failed:,} failed."
    if view.status == "cancelled":
        return f"Cancelled, with {done:,} of {total:,} pages done."
    if view.status == "uploading":
        return f"Being uploaded: {view.tally.seen:,} of {total:,} pages are there."
    if not view.tally.ended:
        return "Not begun yet." if view.status == "queued" else f"Begun: {total:,} pages to do."
    return f"Under way: {view.tally.ended:,} of {total:,} pages have ended."


def moment(text: str | None) -> str:
    """A recorded time as a report has it, which is read anywhere: in UTC, to the second."""
    recorded = parse_iso(text)
    try:
        return recorded.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC") if recorded else "–"
    except OverflowError:
        return "–"


def _metrics(view: BatchView) -> list[tuple[str, str]]:
    figures = batch_metrics(view.tally)
    timing, confidence = figures.timing, figures.average_confidence
    speed = figures.pages_per_minute
    return [
        ("success", f"{figures.success_rate:g}%"),
        ("time a page, median", milliseconds(timing.p50_ms)),
        ("time a page, 95%", milliseconds(timing.p95_ms)),
        ("changes proposed", f"{figures.total_changes:,}"),
        ("confidence", "–" if confidence is None else f"{confidence:.2f}"),
        ("pages a minute", "–" if speed is None else f"{speed:,.0f}"),
        ("elapsed", duration(figures.elapsed_seconds)),
        ("attempts", f"{figures.attempts:,}"),
        *usage_figures(figures),
    ]


def _group(group: FailureGroup, failed: int) -> dict[str, Any]:
    examples = [row for _, row in group.examples[:_EXAMPLES_SHOWN]]
    return {
        "code": shown(group.code, CODE_SHOWN),
        # Of a single page there is nothing that varies.
        "message": shown(examples[0]["error"] if group.count == 1 else group.message, ERROR_SHOWN),
        "count": group.count,
        "bar": charts.share_bar(group.count / failed if failed else 0),
        "is_rest": group.is_rest,
        "looks_transient": group.looks_transient,
        "superseded": group.superseded,
        "examples": [(page_name(row), shown(row["error"], ERROR_SHOWN)) for row in examples],
    }


def _charts(view: BatchView, digest: Digest) -> list[charts.Chart]:
    drawn = []
    if digest.done_at or digest.failed_at:
        start = parse_iso(view.tally.first_started)
        begun = start.timestamp() if start else None
        drawn.append(charts.throughput(digest.done_at, digest.failed_at, begun))
    if digest.durations_ms:
        drawn.append(charts.durations(digest.durations_ms))
    if digest.confidences:
        drawn.append(charts.confidences(digest.confidences))
    return drawn


def _slowest(digest: Digest) -> list[tuple[str, str, str, str]]:
    """Name, state, time and a bar of the pages that took longest."""
    rows = digest.slowest()
    longest = max((row["duration_ms"] for row in rows), default=0) or 1
    return [
        (
            page_name(row),
            row["status"],
            milliseconds(row["duration_ms"]),
            charts.share_bar(row["duration_ms"] / longest),
        )
        for row in rows
    ]


def _attempts(digest: Digest) -> list[tuple[str, str, str]]:
    """How many pages took how many attempts, with a bar each."""
    most = max(digest.attempts.values(), default=0) or 1
    few = sorted(digest.attempts.items())[:10]
    return [(f"{tries:,}", f"{count:,}", charts.share_bar(count / most)) for tries, count in few]


def _cells(row: Row) -> dict[str, str]:
    confidence, changes = row["confidence"], row["changes"]
    return {
        "name": page_name(row),
        "state": row["status"],
        "changes": "" if changes is None else f"{changes:,}",
        "confidence": "" if confidence is None else f"{confidence:.2f}",
        "duration": "" if row["duration_ms"] is None else milliseconds(row["duration_ms"]),
        "attempts": f"{row['attempts']:,}",
        "code": shown(row["code"], CODE_SHOWN),
        "error": shown(row["error"], ERROR_SHOWN),
    }


def _setup(project: Project, options: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What it ran with, as far as it is known here; nothing that is secret or tells of a home."""
    facts = [
        ("project", f"{shown(project.name, 80)} ({project.project_id})"),
        ("store", _STORES[project.store]),
        ("queue", _QUEUES[project.queue]),
        ("nimbus-tasks", version_of()),
        ("Python", f"{platform.python_version()} on {platform.system()}"),
    ]
    facts += [(f"nimbus.worker.{name}", shown(str(value), 80)) for name, value in options.items()]
    return facts
