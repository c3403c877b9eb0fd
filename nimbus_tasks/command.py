"""How a function becomes a task: Invoke's traps closed, options checked, errors to exit codes.

This is the one place where an error meets a person. Options reach a task as text (Invoke ignores
annotations, and its own conversion of a bad integer ends in a traceback), so they are checked here.
"""

from __future__ import annotations

import contextlib
import copy
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any

from invoke.collection import Collection
from invoke.exceptions import Exit
from invoke.tasks import Task, task

from nimbus_tasks.core.clock import LONGEST_LEASE_SECONDS
from nimbus_tasks.core.errors import (
    BatchCancelledError,
    InterruptedByUserError,
    NimbusError,
    PagesFailedError,
    StoreError,
    UsageError,
    cure_of,
)

#: What a shell reports of a program that a closed pipe ended; nobody reads what it would say.
EXIT_BROKEN_PIPE = 141
#: More threads than pages can keep busy, and fewer than a process may have anywhere.
MAX_CONCURRENCY = 1000

JSON_HELP = "print one JSON document on stdout, and nothing else there; on an error none"
BATCH_HELP = "a batch id, an unambiguous end of one, or 'latest' (default: latest)"
EXIT_STATUS_HELP = "exit 3 if pages failed, 7 if the batch was cancelled"


class Command(Task[Callable[..., Any]]):
    """A task whose errors end in one line and an exit code, never in a traceback."""

    #: Whether it was looked up by name, as the command line does: see :class:`Namespace`.
    was_typed = False

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        # Not at the top: whoever lists the tasks calls none.
        from nimbus_tasks.ui.console import Console, drop_stdout, open_missing_streams

        open_missing_streams()
        try:
            result = super().__call__(*args, **kwargs)
            sys.stdout.flush()
            return result
        except NimbusError as error:
            _say(error)
            raise Exit(code=error.exit_code) from error
        except KeyboardInterrupt:
            with contextlib.suppress(OSError):
                Console().note("")
            raise Exit(code=InterruptedByUserError.exit_code) from None
        except BrokenPipeError:
            drop_stdout()
            raise Exit(code=EXIT_BROKEN_PIPE) from None
        except OSError as error:  # a disk that is full, a folder that may not be read, …
            reason = error.strerror or str(error)
            drop_stdout()
            where = "" if error.filename is None else f"{error.filename}: "
            _say(StoreError(f"{where}{reason}", advice=cure_of(error)))
            raise Exit(code=StoreError.exit_code) from error

    def __eq__(self, other: object) -> bool:
        # Invoke runs calls that are equal once. That is meant for what several tasks have as pre=;
        # a task that a person types twice, as `worker … retry worker`, is to run twice.
        if self.was_typed or getattr(other, "was_typed", False):
            return self is other
        # Tasks that are not imported yet (see lazy.py) have the code of one function in common.
        is_of_module = isinstance(other, Task) and self.body.__module__ == other.body.__module__
        return is_of_module and super().__eq__(other)

    __hash__ = Task.__hash__


class Namespace(Collection):
    """A collection that gives each look-up by name a copy of the task, so that a task which is
    typed twice is two (see :meth:`Command.__eq__`)."""

    def task_with_config(self, name: str | None) -> Any:
        found, config = super().task_with_config(name)
        typed = copy.copy(found)
        typed.was_typed = True  # type: ignore[attr-defined]  # Invoke calls it a str
        return typed, config


def _say(error: NimbusError) -> None:
    from nimbus_tasks.ui.console import Console

    with contextlib.suppress(OSError):  # a stderr that takes nothing: the exit code has to do
        console = Console()
        say = console.stopped if isinstance(error, InterruptedByUserError) else console.error
        say(error.message, error.advice, error.command)


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
    """The project directory: that of the ``tasks.py`` that Invoke found, else the current one."""
    # Invoke keeps it for its own search of invoke.yaml and offers no public name for it.
    prefix = getattr(c.config, "_project_prefix", None)
    return Path(prefix).resolve() if prefix else Path.cwd()


def setting(c: Any, section: str, name: str, given: Any) -> Any:
    """An option: as given, or else as ``nimbus.{section}.{name}`` is set; checked either way."""
    if unknown := [slip for slip, _ in unknown_settings(c.config)]:
        _warn_of(", ".join(unknown))
    check, option = SETTINGS[section][name], "--" + name.replace("_", "-")
    if given is not None:
        return check(given, option)
    found = configured(c.config, section, name)
    return None if found is None else check(found, f"{option} (set as nimbus.{section}.{name})")


def unknown_settings(config: Any) -> Iterator[tuple[str, Iterable[str]]]:
    """The settings below ``nimbus:`` that nothing reads, slips most likely, each with the names
    that there are."""
    sections = config.get("nimbus")
    for section, names in sections.items() if isinstance(sections, Mapping) else ():
        if section not in SETTINGS:
            yield f"nimbus.{section}", SETTINGS
        elif isinstance(names, Mapping):
            known = SETTINGS[section]
            yield from ((f"nimbus.{section}.{name}", known) for name in names if name not in known)


@cache  # a chain of tasks says it once
def _warn_of(unknown: str) -> None:
    from nimbus_tasks.ui.console import Console

    Console().warning(
        f"nothing reads {unknown} in invoke.yaml", "See what there is: invoke nimbus.doctor"
    )


def section_settings(c: Any, section: str) -> dict[str, Any]:
    """All settings of a section that has no options on the command line, checked. Raises
    :class:`UsageError`, also for an unknown name; its value, a key perhaps, is not shown."""
    known = SETTINGS[section]
    for name in section_of(section_of(c.config, "nimbus"), section, "nimbus."):
        if name not in known:
            raise UsageError(
                f"nimbus.{section} has no setting {str(name)[:40]!r}",
                advice=f"There are: {', '.join(known)}. A key comes from the environment alone.",
            )
    found = {name: configured(c.config, section, name) for name in known}
    return {
        name: known[name](value, f"nimbus.{section}.{name}")
        for name, value in found.items()
        if value is not None
    }


def configured(config: Any, section: str, name: str) -> Any:
    """What ``invoke.yaml`` or ``INVOKE_NIMBUS_{SECTION}_{NAME}`` sets, unchecked; else ``None``.

    Invoke itself reads from the environment only those names that a file or a collection has as
    well; the others are read here. A collection of ours has no defaults for it to find: merged with
    them, a ``nimbus:`` that is no section would end in Invoke's traceback.
    """
    options = section_of(section_of(config, "nimbus"), section, "nimbus.")
    found = options.get(name)
    return os.environ.get(f"INVOKE_NIMBUS_{section}_{name}".upper()) if found is None else found


def section_of(config: Any, name: str, inside: str = "") -> Mapping[str, Any]:
    """A section of the configuration, which may be left out or empty. Raises
    :class:`UsageError`."""
    found = config.get(name)
    if found is None:
        return {}
    if not isinstance(found, Mapping):
        raise UsageError(
            f"{inside}{name} in invoke.yaml is no section, but {str(found)[:40]!r}",
            advice=f"Its settings go below it, indented: {', '.join(SETTINGS.get(name, SETTINGS))}",
        )
    return found


def exit_with_outcome(status: str) -> None:
    """End with the exit code of a batch's outcome; returns for a batch that went well.

    A batch that is still at work has not gone well either: what depends on it must not run.
    """
    if status == "cancelled":
        raise Exit(code=BatchCancelledError.exit_code)
    if status != "completed":
        raise Exit(code=PagesFailedError.exit_code)


def check_int(
    value: Any, option: str, *, at_least: int = 1, at_most: int | None = None
) -> int | None:
    """A whole number from the command line or the configuration; ``None`` stays ``None``, here as
    in every check below. Raises :class:`UsageError`."""
    if value is None:
        return None
    try:
        number = int(str(value))
    except ValueError:
        number = None
    if number is None or number < at_least or (at_most is not None and number > at_most):
        to = "" if at_most is None else f" to {at_most:,}"
        raise UsageError(
            f"{option} takes a whole number from {at_least}{to}, not {str(value)[:40]!r}"
        )
    return number


def check_seconds(value: Any, option: str, *, at_most: float = 10**9) -> float | None:
    """A number of seconds above 0 from the command line. Raises :class:`UsageError`."""
    if value is None:
        return None
    try:
        seconds = float(str(value))
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= at_most:
        to = "" if at_most == 10**9 else f" to {at_most:,.0f}"
        raise UsageError(f"{option} takes seconds above 0{to}, not {str(value)[:40]!r}")
    return seconds


def check_number(value: Any, option: str, *, at_most: float = 10**9) -> float | None:
    """A number from 0 from the configuration. Raises :class:`UsageError`."""
    if value is None:
        return None
    try:
        number = float(str(value))
    except ValueError:
        number = -1.0
    if not 0 <= number <= at_most:
        raise UsageError(
            f"{option} takes a number from 0 to {at_most:,.0f}, not {str(value)[:40]!r}"
        )
    return number


def check_text(value: Any, option: str, *, stored: bool = False) -> str | None:
    """A text, and not an empty one, which is what an unset shell variable gives. Raises
    :class:`UsageError`.

    Paths and commands may hold bytes that are no UTF-8, as the system gives them; what is to be
    ``stored`` may not.
    """
    if value is None:
        return None
    if not isinstance(value, str):  # YAML has read 010 as 8 and yes as true: what was meant?
        raise UsageError(
            f"{option} takes a text, not {str(value)[:40]!r}",
            advice="Put it into quotes in invoke.yaml.",
        )
    if not value.strip():
        raise UsageError(f"{option} is empty", advice="Give it a value, or leave it out.")
    try:
        value.encode() if stored else os.fsencode(value)
    except UnicodeEncodeError:
        raise UsageError(f"{option} is not UTF-8 text: {value[:40]!r}") from None
    if "\0" in value:
        raise UsageError(f"{option} has a NUL character in it")
    return value


REPORT_FORMATS = ("json", "html", "csv")


def check_formats(value: Any, option: str) -> list[str] | None:
    """Formats of a report, with commas between them or, in the configuration, as a list. Raises
    :class:`UsageError`."""
    if value is None:
        return None
    given = value.split(",") if isinstance(value, str) else value
    names = [str(name).strip().lower() for name in given] if isinstance(given, list) else []
    if not names or any(name not in REPORT_FORMATS for name in names):
        raise UsageError(
            f"{option} takes {', '.join(REPORT_FORMATS)}, or several, not {str(value)[:40]!r}"
        )
    return names


#: What may be set under ``nimbus:`` in invoke.yaml, or as INVOKE_NIMBUS_…, and how it is checked.
SETTINGS: Mapping[str, Mapping[str, Callable[[Any, str], Any]]] = {
    "upload": {"folder": check_text},
    "worker": {
        "processor": check_text,
        "command": check_text,
        "concurrency": partial(check_int, at_most=MAX_CONCURRENCY),
        "max_attempts": check_int,
        "timeout": check_seconds,
        "lease": partial(check_seconds, at_most=LONGEST_LEASE_SECONDS),
    },
    "llm": {
        "base_url": check_text,
        "model": partial(check_text, stored=True),
        "timeout": partial(check_seconds, at_most=3600),
        "max_tokens": partial(check_int, at_most=1_000_000),
        "temperature": partial(check_number, at_most=2),
        "instructions": partial(check_text, stored=True),
        "language": partial(check_text, stored=True),
        "price_in": check_number,
        "price_out": check_number,
    },
    "monitor": {"interval": check_seconds},
    "report": {"format": check_formats},
    "dashboard": {
        "port": partial(check_int, at_least=0, at_most=65_535),
        "interval": check_seconds,
    },
}
