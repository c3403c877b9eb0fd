"""``nimbus.worker``: takes queued pages, has them processed, records how each ended.

What it does is :class:`~nimbus_tasks.worker.engine.Worker`, in this folder's ``engine``; how one
page is processed in ``attempts``, what is seen meanwhile in ``display``. Here is how it is called.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from invoke.context import Context

from nimbus_tasks.command import (
    EXIT_STATUS_HELP,
    JSON_HELP,
    command,
    configured,
    exit_with_outcome,
    project_root,
    section_settings,
    setting,
)
from nimbus_tasks.core import batches
from nimbus_tasks.core.advice import shell_quoted, work_command
from nimbus_tasks.core.errors import InterruptedByUserError, UsageError
from nimbus_tasks.core.project import WORKER_ENGINES, Project, config_path, load_project
from nimbus_tasks.kv.cloudflare import TOKEN_VARIABLE
from nimbus_tasks.kv.store import Store
from nimbus_tasks.processors import Processor, load_processor
from nimbus_tasks.processors.command import CommandProcessor
from nimbus_tasks.processors.llm_settings import LlmSettings
from nimbus_tasks.ui.console import Console, stdout_to_stderr
from nimbus_tasks.ui.figures import pages
from nimbus_tasks.ui.next_steps import show_next
from nimbus_tasks.ui.text import clean
from nimbus_tasks.worker.attempts import masked
from nimbus_tasks.worker.display import WorkerDisplay, summary_lines
from nimbus_tasks.worker.engine import Worker
from nimbus_tasks.worker.options import (
    DEFAULT_CONCURRENCY,
    DEFAULT_LEASE_SECONDS,
    DEFAULT_MAX_ATTEMPTS,
    Options,
    Worked,
)
from nimbus_tasks.worker.rehearsal import Rehearsal, rehearsal_lines, rehearse


@contextmanager
def stopping_on_signals(worker: Worker) -> Iterator[None]:
    """Ctrl-C and SIGTERM stop the worker when its pages in flight have ended; a second one stops it
    at once."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set handlers; whoever runs us elsewhere calls stop()
        return

    def handle(_number: int, _frame: object) -> None:
        worker.stop()
        if worker.is_to_end_now:
            raise KeyboardInterrupt

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@command(
    help={
        "processor": "'audit' (the default), 'llm', or a Python function: package.module:function",
        "command": "a program instead: page as JSON on its stdin, result as JSON on its stdout",
        "concurrency": f"pages at a time (default: {DEFAULT_CONCURRENCY})",
        "batch": "only pages of this batch: an id, an end of one, or 'latest' (default: all)",
        "max-attempts": f"attempts before a page has failed (default: {DEFAULT_MAX_ATTEMPTS})",
        "timeout": "seconds that a page may take (default: no limit)",
        "lease": "seconds after which a silent worker's pages go back"
        f" (default: {DEFAULT_LEASE_SECONDS:g})",
        "dry-run": "show what 'llm' would ask and may take; nothing is claimed, written or sent",
        "forever": "do not end when the queue is empty",
        "exit-status": EXIT_STATUS_HELP,
        "json": JSON_HELP,
    }
)
def worker(
    c: Context,
    processor: str | None = None,
    command: str | None = None,
    concurrency: str | None = None,
    batch: str | None = None,
    max_attempts: str | None = None,
    timeout: str | None = None,
    lease: str | None = None,
    dry_run: bool = False,
    forever: bool = False,
    exit_status: bool = False,
    json: bool = False,
) -> Worked | Rehearsal:
    """Process queued pages until none are left.

    Example: invoke nimbus.worker --command='node rewrite.js' --timeout=60
    """
    console = Console(json_only=json)
    project = load_project(project_root(c))

    def option(name: str, given: str | None) -> Any:
        return setting(c, "worker", name, given)

    if project.is_shared and batch is not None:
        raise UsageError(
            "a Cloudflare Queue hands out the pages of all batches: --batch cannot be kept to",
            advice="Leave --batch out; nimbus.batch.cancel takes a batch out of the way.",
        )
    again_with = to_type_again(
        c,
        {
            "processor": processor,
            "command": command,
            "concurrency": concurrency,
            "max_attempts": max_attempts,
            "timeout": timeout,
            "lease": lease,
        },
    )
    options = Options(
        concurrency=option("concurrency", concurrency) or DEFAULT_CONCURRENCY,
        max_attempts=option("max_attempts", max_attempts) or DEFAULT_MAX_ATTEMPTS,
        timeout=option("timeout", timeout),
        lease_seconds=option("lease", lease) or DEFAULT_LEASE_SECONDS,
        forever=forever,
    )
    chosen = _chosen(c, processor, command)
    if dry_run:
        return _rehearse(c, console, project, chosen, batch)
    _refuse_beside_a_worker(project)
    with (
        # What a processor prints is no result of the command; nor is a closed stdout its fault.
        stdout_to_stderr(),
        WorkerDisplay(console) as display,
        _opened_processor(c, chosen, project, options, display.write) as process,
        project.open_store(tell=display.write, hold_seconds=options.hold_seconds) as store,
    ):
        if project.is_shared:
            options = options.shared(store.lag_seconds)
        if batch is not None:
            head = batches.find(store, project.project_id, batch)
            options = replace(options, batch_id=head.batch_id)
        crew = Worker(store, project.project_id, process, options, display)
        with stopping_on_signals(crew):
            worked = crew.run()
        judged = options.batch_id
        if exit_status and judged is None and not worked.batches:
            heads = batches.heads(store, project.project_id)
            judged = heads[0].batch_id if heads else None
        if judged is not None:  # it may have ended before, by the hand of another
            worked.batches[judged] = _status(store, project.project_id, judged)
    if json:
        console.document(worked.to_json())
    else:
        console.say(*summary_lines(worked, console.style))
        if not crew.was_stopped and crew.unusable is None:  # of which an error says what to do
            show_next(console, display.next_steps(worked, project.engine, again_with))
    if crew.unusable is not None:
        raise crew.unusable
    if crew.was_stopped:
        back = f"; {pages(worked.released)} went back to the queue" if worked.released else ""
        again = work_command("python", options.batch_id, again_with)
        raise InterruptedByUserError(f"stopped{back}", advice="Go on with:", command=again)
    if exit_status:
        for status in worked.batches.values():
            exit_with_outcome(status)
    return worked


def _refuse_beside_a_worker(project: Project) -> None:
    """Raises :class:`UsageError` where a Worker of ``nimbus.cloud`` processes the pages."""
    if project.engine not in WORKER_ENGINES:
        return
    whose, instead = "nimbus.cloud.dev", "end that, and unset NIMBUS_CONFIG"
    if project.engine != "dev":
        whose = "nimbus.cloud.deploy"
        instead = (
            "delete it (wrangler delete), then take cloudflare.worker_namespace_id out of"
            f" {config_path(project.root)}"
        )
    raise UsageError(
        f"the Worker of {whose} processes the pages of this project; two would do them twice",
        advice=f"Watch it with: invoke nimbus.batch.monitor. To process them here, {instead}.",
    )


def _status(store: Store, project_id: str, batch_id: str) -> str:
    with store.snapshot() as reading:
        head = batches.find(reading, project_id, batch_id)
        return batches.fold(reading, head).status(head.intent)


def to_type_again(c: Context, given: Mapping[str, str | None]) -> list[str]:
    """The options to type for another worker that does what one with the options ``given`` does:
    quoted for a shell, and without those that the configuration sets to the same. A value that
    holds a secret, or that a terminal cannot show as it is, becomes ``…``."""
    options = []
    for name, value in given.items():
        is_set = str(configured(c.config, "worker", name)) == value
        if name == "processor":  # a command that is configured goes before one
            is_set = is_set and configured(c.config, "worker", "command") is None
        if value is not None and not is_set:
            can_be_shown = clean(masked(value)) == value
            told = shell_quoted(value) if can_be_shown else "…"
            options.append(f"--{name.replace('_', '-')}={told}")
    return options


def _chosen(c: Context, processor: str | None, command: str | None) -> tuple[str, str | None]:
    """The processor's name, and the command that goes before it if there is one."""
    if processor is not None and command is not None:
        raise UsageError("--processor and --command exclude each other")
    # What is typed goes before what the configuration says, for both together.
    is_typed = processor is not None or command is not None
    if processor is not None or not is_typed:
        processor = setting(c, "worker", "processor", processor)
    if command is not None or not is_typed:
        command = setting(c, "worker", "command", command)
    return processor or "audit", command


@contextmanager
def _opened_processor(
    c: Context,
    chosen: tuple[str, str | None],
    project: Project,
    options: Options,
    tell: Callable[[str], None],
) -> Iterator[Processor]:
    """The processor; commands that still run end with the worker, whatever ends that."""
    name, command = chosen
    if command is None and name == "llm":
        from nimbus_tasks.processors.llm import open_llm

        settings = LlmSettings.read(section_settings(c, "llm"), project.root)
        with open_llm(settings, os.environ, tell, options.concurrency) as asking:
            yield asking
        return
    if command is None:
        yield load_processor(name)
        return
    # A program that works on the pages of strangers has no use for the store's token. With the
    # embedded store there is none, and the variable is the program's own affair.
    withheld = (TOKEN_VARIABLE,) if project.store == "cloudflare" else ()
    runs = CommandProcessor(command, project.root, options.timeout, withheld=withheld)
    try:
        yield runs
    finally:
        runs.kill_all()


def _rehearse(
    c: Context,
    console: Console,
    project: Project,
    chosen: tuple[str, str | None],
    batch: str | None,
) -> Rehearsal:
    """Show what would be asked about the next page."""
    if chosen != ("llm", None):
        name = chosen[0] if chosen[1] is None else "a command"
        raise UsageError(
            f"{name[:80]} has no prompt to show", advice="--dry-run goes with --processor=llm."
        )
    settings = LlmSettings.read(section_settings(c, "llm"), project.root)
    with project.open_store(tell=console.note) as store:
        rehearsal = rehearse(project, store, settings, batch)
    if console.json_only:
        console.document(rehearsal.to_json())
    else:
        console.say(*rehearsal_lines(rehearsal, console.style))
    return rehearsal
