"""Every error that a person can cause or meet, each with its exit code and what to do next.

They are raised where the fault is found and caught at one place, in
:mod:`nimbus_tasks.command`. The message says what is wrong; the advice what to do about it.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping
from typing import Any

#: What the system answers where no more is to be had: of the disk, of a quota, of a limit.
FULL = frozenset((errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)))
_FORBIDDEN = frozenset((errno.EROFS, errno.EACCES, errno.EPERM))


class NimbusError(Exception):
    """Base of the project's own errors. ``command`` is what to type, behind the advice: it may be
    long, and is never cut."""

    exit_code = 2

    def __init__(
        self, message: str, *, advice: str | None = None, command: str | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.advice = advice
        self.command = command


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


class DamagedStoreError(StoreError):
    """What is in the store's place is no store, or none that can be read; more space or more rights
    would not help."""


class StoreGoneError(StoreError):
    """The store was deleted or replaced while it was in use."""


class StoreUnreachableError(StoreError):
    """The store cannot be reached for now: the same may work in a while."""


class TimedOutError(NimbusError):
    """The time that was given with ``--timeout`` is over."""

    exit_code = 6


class BatchCancelledError(NimbusError):
    """The batch ended because somebody cancelled it."""

    exit_code = 7


class InterruptedByUserError(NimbusError):
    """Ctrl-C, after everything in flight was brought to a safe state: no fault, and not shown as
    one."""

    exit_code = 130


class ProcessorUnusableError(NimbusError):
    """Raised by a processor that can do no page at all, for want of a key, say: the worker gives
    its pages back to the queue and ends with this error."""


class ServiceUnavailableError(ProcessorUnusableError):
    """The service that a processor asks cannot be reached, or not for a long time."""

    exit_code = 5


class ProcessorError(Exception):
    """Raised by a processor: this page fails, with a code that reports can group by.

    ``code`` is a short word in lower case (``rate_limited``, ``bad_html``). ``usage`` is what the
    attempt has cost all the same, as in a processor's result.
    """

    def __init__(
        self,
        message: str,
        *,
        code: str = "processor_error",
        usage: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.usage = usage


def cure_of(error: OSError) -> str | None:
    """What to do where the system refuses to write; ``None`` where its words say all there is."""
    if error.errno in FULL:
        return "Free some space, or raise the quota, and run the command again."
    if error.errno in _FORBIDDEN:
        return "See that it lies on a disk that can be written, and that you have the right to."
    return None


def cannot_write(what: object, error: OSError) -> StoreError:
    """The error of a file that could not be written, in the system's words."""
    return StoreError(f"cannot write {what}: {error.strerror or error}", advice=cure_of(error))
