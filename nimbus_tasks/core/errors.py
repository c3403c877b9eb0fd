"""Every error that a person can cause or meet, each with its exit code and what to do next.

They are raised where the fault is found and caught at one place, in
:mod:`nimbus_tasks.command`. The message says what is wrong; the advice what to do about it.
"""

from __future__ import annotations


class NimbusError(Exception):
    """Base of the project's own errors."""

    exit_code = 2

    def __init__(self, message: str, *, advice: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.advice = advice


class UsageError(NimbusError):
    """A bad configuration, option or input. Nothing has been changed."""

    exit_code = 2


class PagesFailedError(NimbusError):
    """The work is finished, but some pages failed or some files were refused."""

    exit_code = 3


class NotFoundError(NimbusError):
    """No such batch or page."""

    exit_code = 4


class StoreError(NimbusError):
    """The store cannot be reached, refuses, or holds what cannot be read."""

    exit_code = 5


class StoreUnreachableError(StoreError):
    """The store cannot be reached for now: the same may work in a while."""


class TimedOutError(NimbusError):
    """The time that was given with ``--timeout`` is over."""

    exit_code = 6


class BatchCancelledError(NimbusError):
    """The batch ended because somebody cancelled it."""

    exit_code = 7


class InterruptedByUserError(NimbusError):
    """Ctrl-C, after everything in flight was brought to a safe state."""

    exit_code = 130


class ProcessorError(Exception):
    """Raised by a processor: this page fails, with a code that reports can group by.

    ``code`` is a short word in lower case (``rate_limited``, ``bad_html``).
    """

    def __init__(self, message: str, *, code: str = "processor_error") -> None:
        super().__init__(message)
        self.code = code
