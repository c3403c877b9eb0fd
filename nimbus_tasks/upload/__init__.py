"""``nimbus.upload``: a folder of content maps becomes a batch of queued pages.

What it does is :func:`~nimbus_tasks.upload.folder.check_folder`, then
:func:`~nimbus_tasks.upload.sending.upload_maps`; here is how it is called and shown. Everything is
checked before anything is written.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

from invoke.context import Context
from invoke.exceptions import Exit

from nimbus_tasks.command import JSON_HELP, check_int, command, project_root, setting
from nimbus_tasks.core.advice import work_command
from nimbus_tasks.core.errors import PagesFailedError, UsageError
from nimbus_tasks.core.keys import check_id
from nimbus_tasks.core.project import (
    DEFAULT_FOLDER,
    Project,
    config_path,
    create_project,
    load_project,
    new_project,
)
from nimbus_tasks.ui.batch_view import padded
from nimbus_tasks.ui.console import Console
from nimbus_tasks.ui.figures import pages, size
from nimbus_tasks.ui.progress import ProgressBar
from nimbus_tasks.ui.style import Style
from nimbus_tasks.ui.text import clean, clip
from nimbus_tasks.upload.folder import Checked, Rejected, check_folder
from nimbus_tasks.upload.preflight import FREE_WRITES_A_DAY, Cost, upload_cost
from nimbus_tasks.upload.sending import Uploaded, upload_maps

#: More refused files than a person reads; --json has them all.
_REJECTED_SHOWN = 50


@command(
    help={
        "folder": f"the folder with the content maps (default: {DEFAULT_FOLDER} in the project)",
        "batch": "continue this batch: send only what it lacks",
        "limit": "take only the first N usable maps",
        "changed": "send only pages whose content differs from what is stored",
        "skip-invalid": "refused files do not make the exit code 3",
        "dry-run": "say what would be sent; write nothing",
        "json": JSON_HELP,
    }
)
def upload(
    c: Context,
    folder: str | None = None,
    batch: str | None = None,
    limit: str | None = None,
    changed: bool = False,
    skip_invalid: bool = False,
    dry_run: bool = False,
    json: bool = False,
) -> Uploaded:
    """Send a folder of content maps as a batch.

    Example: invoke nimbus.upload --folder=content/maps --changed
    """
    console = Console(json_only=json)
    root = project_root(c)
    chosen = setting(c, "upload", "folder", folder)
    # A path that is typed is meant from where the person is; one in a file, from the project.
    path = Path(chosen) if folder is not None else root / (chosen or DEFAULT_FOLDER)
    most = check_int(limit, "--limit")
    if batch is not None:
        check_id(batch, "batch")
    project, is_new = _project_for_upload(root)
    with ProgressBar() as bar:
        checked = check_folder(path, project.project_id, limit=most, progress=bar)
        if not checked.maps:
            _nothing_usable(console, path, checked)
        if is_new and not dry_run:
            made = create_project(project)
            if made is project:
                bar.write(f"Made {clean(config_path(root))} for project {project.project_id}.")
            else:  # another upload was first; page ids depend on the project's
                project = made
                checked = check_folder(path, project.project_id, limit=most, progress=bar)
        with ExitStack() as stack:
            store = None
            if not dry_run or project.has_store:
                opened = project.open_store(create=not dry_run, tell=bar.write)
                store = stack.enter_context(opened)
            outcome = upload_maps(
                project,
                store,
                checked,
                path,
                batch=batch,
                changed=changed,
                dry_run=dry_run,
                progress=bar,
            )
    if is_new and dry_run:
        outcome = replace(outcome, project_id=None)
    cost = None
    if dry_run and project.store == "cloudflare":
        sent, taken = outcome.uploaded, outcome.taken_over
        cost = upload_cost(sent, outcome.bytes, taken_over=taken, queue=project.queue)
    if json:
        console.document(outcome.to_json() | ({"cloudflare": cost.to_json()} if cost else {}))
    else:
        if outcome.resumed:
            console.say(
                f"{console.style.sign('uploading')} Goes on with an upload that was cut off"
            )
        console.say(*_lines(outcome, console.style), *(_cost_lines(cost) if cost else ()))
        if outcome.uploaded and not dry_run:
            console.hint(work_command(project.engine))
    _show_rejected(console, outcome.checked.rejected)
    if outcome.checked.rejected and not skip_invalid:
        raise Exit(code=PagesFailedError.exit_code)
    return outcome


def _project_for_upload(root: Path) -> tuple[Project, bool]:
    """The project, and whether it is a new one that is still to be written."""
    if config_path(root).exists():
        return load_project(root), False
    return new_project(root), True


def _nothing_usable(console: Console, folder: Path, checked: Checked) -> NoReturn:
    _show_rejected(console, checked.rejected, in_json=False)
    if checked.rejected:
        raise UsageError(f"none of the files in {folder} is a usable content map")
    raise UsageError(
        f"there are no content maps (*.json) in {folder}", advice="Give a folder with --folder."
    )


def _lines(outcome: Uploaded, style: Style) -> list[str]:
    lines, listings = [], len(outcome.checked.listings)
    if outcome.dry_run:
        lines.append(
            f"{style.sign('uploading')} Would send {pages(outcome.uploaded)},"
            f" {size(outcome.bytes)}; nothing is written"
        )
    elif outcome.batch_id is None:
        lines.append(f"{style.sign('ok')} Nothing to send: all pages are stored as they are")
    else:
        lines.append(
            f"{style.sign('batch')} {style.bold(outcome.batch_id)}: "
            f"{pages(outcome.uploaded)} sent, {size(outcome.bytes)}"
        )
    if outcome.page_count != outcome.uploaded and outcome.batch_id is not None:
        lines.append(f"   {pages(outcome.page_count)} in the batch now")
    for count, what in (
        (outcome.skipped, "already there with the same content, not sent"),
        (outcome.taken_over, "taken over from an earlier batch"),
        (outcome.elsewhere, "in a later batch now; they stay there"),
        (outcome.dropped, "of the batch no longer in the folder and never sent; left out"),
        (listings, f"{'is the' if listings == 1 else 'are the'} scan's listing, no page"),
        (len(outcome.checked.rejected), "refused"),
    ):
        if count:
            lines.append(f"   {count:,} {what}")
    return lines


def _cost_lines(cost: Cost) -> list[str]:
    """What it takes on Cloudflare, and how that stands to a plan."""
    price = f"${cost.paid_usd:,.2f}" if cost.paid_usd >= 0.01 else "less than $0.01"
    return [
        "",
        padded("KV writes", f"{cost.writes:,} to send, up to {cost.work_writes:,} to work on them"),
        padded("requests", f"about {cost.requests:,} to send"),
        padded(
            "free plan",
            f"{cost.writes / FREE_WRITES_A_DAY:,.2g} days of its {FREE_WRITES_A_DAY:,} writes"
            f" to send, {cost.free_days:,.2g} in all",
        ),
        padded("paid plan", f"{price} of writes, at $5 a million"),
    ]


def _show_rejected(console: Console, rejected: Sequence[Rejected], *, in_json: bool = True) -> None:
    for one in rejected[:_REJECTED_SHOWN]:
        console.refusal(f"refused {clip(clean(one.file), 60, keep_end=True)}: {one.error}")
    if len(rejected) > _REJECTED_SHOWN:
        all_of_them = "; --json names them all" if in_json else ""
        console.note(f"… and {len(rejected) - _REJECTED_SHOWN:,} more{all_of_them}")
