"""What to do next with a batch: the commands, ready to be typed. Pure; shown by whoever asks."""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from nimbus_tasks.core.batches import BatchView
from nimbus_tasks.core.lifecycle import is_finished

if TYPE_CHECKING:  # most looks find no failures, and should not wait for its import
    from nimbus_tasks.core.failures import FailureGroup

#: Who takes up queued pages where it is no worker that a person starts (see ``Project.engine``).
_GOES_ON = {
    "cloudflare": "the Worker on Cloudflare goes on within a minute",
    "dev": "the Worker of nimbus.cloud.dev goes on, as long as that runs",
}
#: A longer error code is none that a person would type.
_MAX_CODE = 80


class NextStep(NamedTuple):
    """A command, quoted for a shell, and in a sentence without its full stop why.

    ``is_to_watch`` is that of a command which only shows the batch live."""

    why: str
    command: str
    is_to_watch: bool = False


def next_steps_of(
    view: BatchView, groups: Sequence[FailureGroup] | None = None, *, in_report: bool = False
) -> list[NextStep]:
    """The steps for a batch as it was looked at; without ``groups`` by the failures of the look."""
    return next_steps(
        view.head.batch_id,
        view.status,
        view.tally.counts,
        groups=_groups_of(view) if groups is None else groups,
        stalled=len(view.stalled),
        in_report=in_report,
        engine=view.engine,
    )


def _groups_of(view: BatchView) -> Sequence[FailureGroup]:
    if not view.failures:
        return ()
    from nimbus_tasks.core.failures import group_failures

    return group_failures(view.failures)


def work_command(engine: str, batch_id: str | None = None, options: Sequence[str] = ()) -> str:
    """What to type when pages have been queued, of any batch or of one; ``options`` are what a
    worker is to be given."""
    task = "batch.monitor" if engine in _GOES_ON else "worker"
    given = [] if engine in _GOES_ON else [*options]
    if batch_id is None or engine == "fleet":  # whose workers take what the queue gives them
        return " ".join([f"invoke nimbus.{task}", *given])
    return _command(task, batch_id, *given)


def next_steps(
    batch_id: str,
    status: str,
    counts: Mapping[str, int],
    *,
    groups: Sequence[FailureGroup] = (),
    stalled: int = 0,
    in_report: bool = False,
    engine: str = "python",
    worker_options: Sequence[str] = (),
) -> list[NextStep]:
    """The commands to type next, in their order; there may be none.

    ``counts`` are pages by state (those left out count as 0), ``stalled`` those of the processing
    ones whose worker is gone. ``in_report`` leaves out the advice to make a report; ``engine`` is
    who takes up queued pages, and ``worker_options`` what a worker needs to be given to do as the
    last one did.
    """
    if status == "uploading":
        why = (
            "Its upload has not come to its end: if nobody is sending any more, go on with it"
            " (and with its --folder, if it had one)"
        )
        return [NextStep(why, _command("upload", batch_id))]
    if not is_finished(status):
        return _while_open(batch_id, counts, stalled, engine, worker_options)
    if status == "cancelled":
        return [
            NextStep(
                "Send the pages again, as a new batch (with the --folder that it had, if any)",
                "invoke nimbus.upload",
            ),
            NextStep(
                "Or take its cancelled pages up again",
                _command("batch.retry", batch_id, "--include-cancelled"),
            ),
        ]
    if counts.get("failed", 0):
        work = work_command(engine, batch_id, worker_options)
        then = NextStep(f"Then {_GOES_ON.get(engine, 'work on them')}", work)
        return _after_failures(batch_id, counts["failed"], groups, in_report, then)
    return [] if in_report else [NextStep("All pages are done: look at them", _report(batch_id))]


def _while_open(
    batch_id: str,
    counts: Mapping[str, int],
    stalled: int,
    engine: str,
    worker_options: Sequence[str],
) -> list[NextStep]:
    """Somebody is at work, or somebody should be."""
    steps = []
    goes_on, work = _GOES_ON.get(engine), work_command(engine, batch_id, worker_options)
    at_work = counts.get("processing", 0) - stalled
    if at_work > 0:
        watch = _command("batch.monitor", batch_id)
        steps.append(NextStep("A worker is at it: watch it", watch, is_to_watch=True))
    if stalled and not (goes_on and at_work > 0):
        why = f"{_pages(stalled)} held by a worker that is gone"
        steps.append(NextStep(f"{why}: {goes_on or 'another one takes them up'}", work))
    elif counts.get("queued", 0) and at_work <= 0:
        why = f"{_pages(counts['queued'])} waiting"
        steps.append(
            NextStep(f"{why}: {goes_on}" if goes_on else f"{why}, and nobody at work", work)
        )
    if not steps or (stalled and at_work <= 0):
        why = "See whether all is as it should be, and mend what is not"
        steps.append(NextStep(why, _command("batch.verify", batch_id, "--repair")))
    return steps


def _after_failures(
    batch_id: str, failed: int, groups: Sequence[FailureGroup], in_report: bool, then: NextStep
) -> list[NextStep]:
    retriable = [group for group in groups if group.count > group.superseded]
    if groups and not retriable:
        why = "The failed pages belong to a later batch now: see how they do there"
        return [NextStep(why, "invoke nimbus.batch.status --batch=latest")]
    transient = [group for group in retriable if group.looks_transient]
    if not transient:
        first = [NextStep("Look at what failed, and mend it", _report(batch_id))]
        again = NextStep(
            f"{_pages(failed, 'failed')}: when what made them fail is mended, queue them again",
            _command("batch.retry", batch_id, *_only(retriable, retriable)),
        )
        return [*([] if in_report else first), again, then]
    if len(transient) == len(retriable):
        option = _only(transient, retriable)
        why = "What made them fail may pass: queue them again"
        return [NextStep(why, _command("batch.retry", batch_id, *option)), then]
    steps = []
    for code in dict.fromkeys(group.code for group in transient):
        of_code = [group for group in transient if group.code == code]
        if option := _only(of_code, retriable):
            many = sum(group.count - group.superseded for group in of_code)
            why = f"{_pages(many, 'failed')} for a reason that may pass: queue them again"
            steps.append(NextStep(why, _command("batch.retry", batch_id, *option)))
    if not steps:  # they share their code with errors that stay
        why = "Some of what made them fail may pass: queue the failed pages again"
        steps = [NextStep(why, _command("batch.retry", batch_id))]
    return [*steps, then]


def _only(chosen: Sequence[FailureGroup], among: Sequence[FailureGroup]) -> tuple[str, ...]:
    """The option that picks the one code of ``chosen``, if no other group shares it; or nothing."""
    if not chosen:
        return ()
    code = chosen[0].code
    is_one = all(group.code == code and not group.is_rest for group in chosen)
    is_alone = all(group in chosen for group in among if group.code == code)
    can_be_typed = code.isprintable() and code.strip() and len(code) <= _MAX_CODE
    return (f"--error={shell_quoted(code)}",) if is_one and is_alone and can_be_typed else ()


def _report(batch_id: str) -> str:
    return _command("batch.report", batch_id, "--open")


def _command(task: str, batch_id: str, *options: str) -> str:
    return " ".join([f"invoke nimbus.{task}", f"--batch={shell_quoted(batch_id)}", *options])


def _pages(count: int, what: str | None = None) -> str:
    """``1 page is``, ``2 pages are``; or with what they did instead."""
    verb = what or ("is" if count == 1 else "are")
    return f"{count:,} page{'' if count == 1 else 's'} {verb}"


def shell_quoted(text: str) -> str:
    """The text as one word for the shell that people type in: on Windows cmd.exe."""
    return subprocess.list2cmdline([text]) if os.name == "nt" else shlex.quote(text)
