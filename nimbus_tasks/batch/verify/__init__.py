"""``nimbus.batch.verify``: is everything as the rules say? With ``--repair``, make it so.

It recounts a batch from its page records and looks for records that cannot be read, pages that are
queued and in no queue, queue items that no queued page stands behind, claims whose holder has gone,
pages without content, pages that no batch lists, an upload that was cut off, and a batch record
that says something else than its pages.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from invoke.context import Context
from invoke.exceptions import Exit

from nimbus_tasks.batch.verify.checks import BATCH_CHECKS, NOT_SENT, Finding, check_batches
from nimbus_tasks.command import BATCH_HELP, JSON_HELP, command, project_root
from nimbus_tasks.core import batches
from nimbus_tasks.core.errors import NotFoundError, PagesFailedError
from nimbus_tasks.core.project import Project, load_project
from nimbus_tasks.kv.store import Store
from nimbus_tasks.ui.console import Console
from nimbus_tasks.ui.style import Style
from nimbus_tasks.ui.text import clean, clip, command_lines, wrap

#: Findings of one kind that have a line each; of more their number is said.
_FEW = 5


@dataclass(frozen=True)
class Verified:
    """``ok``: nothing is wrong, or nothing is any more."""

    batch_id: str
    status: str
    findings: list[Finding]

    @property
    def ok(self) -> bool:
        """Whether all is as it should be now."""
        return all(finding.repaired for finding in self.findings)

    @property
    def repaired(self) -> int:
        """How many findings have been put right."""
        return sum(finding.repaired for finding in self.findings)

    def to_json(self) -> dict[str, Any]:
        """The document of ``--json``."""
        return {
            "batch_id": self.batch_id,
            "status": self.status,
            "ok": self.ok,
            "findings": [finding.to_json() for finding in self.findings],
            "repaired": self.repaired,
        }


def verify_batch(
    project: Project, store: Store, batch: str | None = None, *, repair: bool = False
) -> Verified:
    """Check a batch (the latest, if left out), the project's queue, and that every page has a
    batch.

    With ``repair`` everything is put right that can be, in one transaction.
    """
    project_id = project.project_id
    with store.transaction() if repair else store.snapshot() as tx:
        findings = list(check_batches(tx, project_id, repair))
        try:
            head = batches.find(tx, project_id, batch)
        except NotFoundError as error:
            if not findings:
                raise
            raise NotFoundError(error.message, advice="Run it with --repair.") from error
        for check in BATCH_CHECKS:
            findings += check(tx, head, repair)
            head = batches.find(tx, project_id, head.batch_id)
        status = batches.fold(tx, head).status(head.intent)
    return Verified(head.batch_id, status, findings)


@command(
    help={
        "batch": BATCH_HELP,
        "repair": "put right what can be",
        "json": JSON_HELP,
    }
)
def verify(
    c: Context, batch: str | None = None, repair: bool = False, json: bool = False
) -> Verified:
    """Find, and mend, what is stuck or lost.

    Example: invoke nimbus.batch.verify --repair
    """
    console = Console(json_only=json)
    project = load_project(project_root(c))
    with project.open_store(tell=console.note) as store:
        verified = verify_batch(project, store, batch, repair=repair)
    if json:
        console.document(verified.to_json())
    else:
        console.say(*_lines(verified, console.style, console.columns))
        if any(finding.kind == NOT_SENT for finding in verified.findings):
            go_on = f"go on with: invoke nimbus.upload --batch={verified.batch_id}"
            console.say(*(f"   {line}" for line in command_lines(go_on, console.columns - 3)))
        elif not verified.ok and not repair:
            console.hint(f"invoke nimbus.batch.verify --repair --batch={verified.batch_id}")
    if not verified.ok:
        raise Exit(code=PagesFailedError.exit_code)
    return verified


def _lines(verified: Verified, style: Style, columns: int) -> list[str]:
    name = style.bold(verified.batch_id)
    if not verified.findings:
        return [f"{style.sign('ok')} {name}: all is as it should be"]
    count = len(verified.findings)
    what = f"{count:,} finding" + ("" if count == 1 else "s")
    lines = [f"{style.sign('ok' if verified.ok else 'warning')} {name}: {what}"]
    kinds: dict[tuple[str, bool], list[Finding]] = {}
    for finding in verified.findings:
        kinds.setdefault((finding.kind, finding.repaired), []).append(finding)
    for alike in kinds.values():
        lines += _lines_of_kind(alike, style, columns)
    if any(len(alike) > _FEW for alike in kinds.values()):
        lines.append(style.dim("   --json has them all"))
    return lines


def _lines_of_kind(alike: list[Finding], style: Style, columns: int) -> list[str]:
    """A line each; of more than some their number, and which the first are."""
    if len(alike) <= _FEW:
        return [_line(finding, columns) for finding in alike]
    first = alike[0]
    such_as = "" if all(one.detail == first.detail for one in alike) else "such as: "
    detail = f"{'mended: ' if first.repaired else ''}{first.kind}: {such_as}{first.detail}"
    text, *more = wrap(clean(f"{len(alike):,} × {detail}"), columns, indent=7)
    names = clip(", ".join(map(_name, alike[:_FEW])) + ", …", columns - 7)
    return [f"   {text}", *(f"       {line}" for line in more), style.dim(f"       {names}")]


def _line(finding: Finding, columns: int) -> str:
    text = clean(f"{'mended: ' if finding.repaired else ''}{finding.kind}: {finding.detail}")
    about = _name(finding)
    if about:
        about = clip(about, max(20, columns - len(text) - 6), keep_end=True) + ": "
    return "   " + clip(about + text, columns - 3)


def _name(finding: Finding) -> str:
    return clean(finding.path or finding.page_id or "")
