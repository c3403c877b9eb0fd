"""How a function becomes a task: Invoke's traps closed, options checked, errors to exit codes.

This is the one place where an error meets a person. Options reach a task as text (Invoke ignores
annotations, and its own conversion of a bad integer ends in a traceback), so they are checked here.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from invoke.exceptions import Exit
from invoke.tasks import Task, task

from nimbus_tasks.core.errors import (
    BatchCancelledError,
    NimbusError,
    PagesFailedError,
    UsageError,
)
from nimbus_tasks.ui.console import Console

__all__ = ["Console", "command"]

#: What a shell reports of a program that a closed pipe ended; nobody reads what it would say.
EXIT_BROKEN_PIPE = 141
EXIT_INTERRUPTED = 130

JSON_HELP = "print one JSON document on stdout, and nothing else there"
BATCH_HELP = "a batch id, an unambiguous end of one, or 'latest' (default: latest)"
EXIT_STATUS_HELP = "exit 3 if pages failed, 7 if the batch was cancelled"


class Command(Task[Callable[..., Any]]):
    """A task whose errors end in one line and an exit code, never in a traceback."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        try:
            result = super().__call__(*args, **kwargs)
            sys.stdout.flush()
            return result
        except NimbusError as error:
            Console().error(error.message, error.advice)
            raise Exit(code=error.exit_code) from error
        except KeyboardInterrupt:
            Console().note("")
            raise Exit(code=EXIT_INTERRUPTED) from None
        except BrokenPipeError:
            # Python would complain again when it flushes stdout at its end.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise Exit(code=EXIT_BROKEN_PIPE) from None


def command(**options: Any) -> Callable[[Callable[..., Any]], Command]:
    """Decorate a function ``f(c, …)`` as a task; ``options`` are those of :func:`invoke.task`.

    No positional arguments (one that is not given swallows the next flag) and no automatic short
    flags (they would change their meaning when an option is added).
    """
    made: Callable[[Callable[..., Any]], Command] = task(
        klass=Command, positional=[], auto_shortflags=False, **options
    )
    return made


def project_root(c: Any) -> Path:
    """The project directory: where the ``tasks.py`` lies that Invoke found; else where we are."""
    # Invoke keeps it for its own search of invoke.yaml and offers no public name for it.
    prefix = getattr(c.config, "_project_prefix", None)
    return Path(prefix).resolve() if prefix else Path.cwd()


def setting(c: Any, section: str, name: str, given: Any) -> Any:
    """An option: as given, or else as ``nimbus.{section}.{name}`` in ``invoke.yaml`` has it."""
    if given is not None:
        return given
    nimbus = c.config.get("nimbus")
    options = nimbus.get(section) if nimbus else None
    return options.get(name) if options else None


def exit_with_outcome(status: str) -> None:
    """End with the exit code of a batch's outcome; returns for a batch that went well.

    A batch that is still at work has not gone well either: what depends on it must not run.
    """
    if status == "cancelled":
        raise Exit(code=BatchCancelledError.exit_code)
    if status != "completed":
        raise Exit(code=PagesFailedError.exit_code)


def check_int(value: Any, option: str, *, at_least: int = 1) -> int | None:
    """A whole number from the command line or the configuration. Raises :class:`UsageError`."""
    if value is None:
        return None
    try:
        number = int(str(value))
    except ValueError:
        number = None
    if number is None or number < at_least:
        raise UsageError(f"{option} takes a whole number from {at_least}, not {str(value)[:40]!r}")
    return number


def check_seconds(value: Any, option: str) -> float | None:
    """A number of seconds above 0 from the command line. Raises :class:`UsageError`."""
    if value is None:
        return None
    try:
        seconds = float(str(value))
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < 10**9:
        raise UsageError(f"{option} takes seconds above 0, not {str(value)[:40]!r}")
    return seconds
