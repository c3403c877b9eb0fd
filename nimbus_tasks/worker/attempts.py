"""Running a processor on claimed pages, in threads, with a time limit for a page.

An attempt turns whatever a processor does (answer, raise, hang, answer rubbish) into an
:class:`~nimbus_tasks.core.claims.Outcome`. Nothing here touches a store.
"""

from __future__ import annotations

import os
import threading
import time
import traceback
from collections import deque
from collections.abc import Iterable, Mapping
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Any

from nimbus_tasks.core.claims import Claim, Outcome
from nimbus_tasks.core.clock import now_iso
from nimbus_tasks.core.errors import ProcessorError, ProcessorUnusableError, UsageError
from nimbus_tasks.core.logs import log_entry
from nimbus_tasks.core.records import Usage
from nimbus_tasks.core.wire import (
    UnreadableRecordError,
    cost_field,
    count_field,
    dump_json,
    load_object,
)
from nimbus_tasks.kv.cloudflare import TOKEN_VARIABLE
from nimbus_tasks.kv.cloudflare.secret import without_secret
from nimbus_tasks.kv.store import MAX_VALUE_BYTES
from nimbus_tasks.processors import Processor
from nimbus_tasks.processors.llm_settings import secret_keys

#: A processor that reports a step a word does not fill the store with them.
MAX_STEPS_LOGGED = 200
_MAX_TEXT, _MAX_DATA_FIELDS = 2000, 20


class Attempt:
    """One attempt on one page. Its :meth:`report` is the ``progress`` that a processor gets."""

    def __init__(self, claim: Claim) -> None:
        self.claim = claim
        self.step: str | None = None
        self.percent: float = 0
        self.clock = time.monotonic()
        self.started = now_iso()
        self._step_clock = self.clock
        self._steps_left_out = 0
        self._entries: list[dict[str, Any]] = []
        self._usage: Usage | None = None
        self._settled = threading.Lock()

    def report(
        self, step: str, percent: float | None = None, message: str | None = None, **data: Any
    ) -> None:
        """Say which step the processing is at, and how far it is in percent."""
        self._end_step()
        self.step = _text(step, 200)
        if isinstance(percent, (int, float)) and percent == percent:
            self.percent = min(100.0, max(0.0, percent))
        if len(self._entries) >= MAX_STEPS_LOGGED:
            self._steps_left_out += 1
            return
        note = self.step if message is None else _text(message, _MAX_TEXT)
        self._entries.append(log_entry(now_iso(), self.step, note, data=_loggable(data)))

    def settle(self) -> bool:
        """Whether the caller is the first to end this attempt: only its outcome counts."""
        return self._settled.acquire(blocking=False)

    def run(self, processor: Processor, max_attempts: int) -> Outcome:
        """Process the page; whatever happens, it has an outcome, unless the processor says that it
        can do no page at all: that :class:`ProcessorUnusableError` is raised."""
        try:
            return self._succeeded(*self._process(processor))
        except ProcessorUnusableError:
            raise
        except ProcessorError as error:
            with suppress(ProcessorError):  # what it says of its cost must not hide the error
                self._usage = _usage(error.usage)
            return self.failed(_text(error, _MAX_TEXT), error.code, max_attempts)
        except BaseException as error:  # noqa: BLE001 - it may raise anything; a page must end
            name = type(error).__name__
            return self.failed(
                _text(error, _MAX_TEXT) or name, name, max_attempts, traceback=_where(error)
            )

    def failed(self, message: str, code: str, max_attempts: int, **data: Any) -> Outcome:
        """The outcome of a failure; the page is tried again while attempts are left."""
        self._end_step()
        again = self.claim.attempt < max_attempts
        facts = {**self._facts(), "code": code, **data}
        step = self.step or "start"
        text = _text(message, _MAX_TEXT)
        completed = now_iso()
        self._entries.append(log_entry(completed, step, text, level="error", data=_loggable(facts)))
        return self._outcome(completed=completed, error=text, code=_text(code, 80), try_again=again)

    def _process(self, processor: Processor) -> tuple[int, float | None, str]:
        entry = self.claim.page
        if entry is None:
            raise ProcessorError("its content is not in the store", code="missing_page")
        try:
            page = load_object(entry)
        except UnreadableRecordError as error:
            raise ProcessorError(str(error), code="unreadable_page") from error
        result = processor(page, self.report)
        if not isinstance(result, Mapping):
            raise ProcessorError(
                f"the processor returned {type(result).__name__}, not a dict with 'changes',"
                " 'confidence' and 'optimization'",
                code="bad_result",
            )
        self._usage = _usage(result.get("usage"))
        optimization = result.get("optimization")
        value = entry.value
        if optimization is not None:
            value = _with_optimization(value, page, optimization)
        return _changes(result.get("changes")), _confidence(result.get("confidence")), value

    def _succeeded(self, changes: int, confidence: float | None, page_value: str) -> Outcome:
        self._end_step()
        note = "1 change" if changes == 1 else f"{changes} changes"
        if self._steps_left_out:
            note += f"; {self._steps_left_out} more steps are not logged"
        completed = now_iso()
        self._entries.append(log_entry(completed, "done", note, data=self._facts()))
        stored = self.claim.page and self.claim.page.value
        return self._outcome(
            completed=completed,
            changes=changes,
            confidence=confidence,
            page_value=None if page_value is stored else page_value,
        )

    def _facts(self) -> dict[str, Any]:
        return {"attempt": self.claim.attempt, "batch_id": self.claim.status.batch_id}

    def _end_step(self) -> None:
        now = time.monotonic()
        if self._entries:
            self._entries[-1].setdefault("duration_ms", round((now - self._step_clock) * 1000))
        self._step_clock = now

    def _outcome(self, **fields: Any) -> Outcome:
        return Outcome(
            claim=self.claim,
            started=self.started,
            duration_ms=round((time.monotonic() - self.clock) * 1000),
            entries=tuple(self._entries),
            usage=self._usage,
            **fields,
        )


class AttemptPool:
    """Threads that run ``processor``, ``concurrency`` at a time. Used by one thread, its owner.

    A thread cannot be killed. One whose page is overdue is left to itself: the page has failed,
    another thread takes its place, and what it may still answer is thrown away.
    """

    def __init__(
        self, processor: Processor, concurrency: int, max_attempts: int, timeout: float | None
    ) -> None:
        self.concurrency = concurrency
        self._processor = processor
        self._max_attempts = max_attempts
        self._timeout = timeout
        self._todo: SimpleQueue[Claim | None] = SimpleQueue()
        # Not a SimpleQueue: before Python 3.13 its get() waits for ever if the time is over before
        # the waiting begins, as on a busy machine it may be. A Queue takes ten times as long.
        self._ended: deque[Outcome] = deque()
        self._has_ended = threading.Event()
        self._running: dict[str, Attempt] = {}
        self.unfinished = 0
        #: Why no page can be processed; the claims wait to be taken back.
        self.unusable: ProcessorUnusableError | None = None
        for _ in range(concurrency):
            self._start_thread()

    @property
    def waiting(self) -> int:
        """Claims that no thread has begun yet."""
        return self._todo.qsize()

    @property
    def running(self) -> list[Attempt]:
        """The attempts that run now."""
        return list(self._running.values())

    def submit(self, claims: Iterable[Claim]) -> None:
        """Hand claims to the threads, to be begun in this order."""
        for claim in claims:
            self.unfinished += 1
            self._todo.put(claim)

    def take_back_waiting(self) -> list[Claim]:
        """Claims that no thread has begun, which none will begin now."""
        taken = []
        try:
            while True:
                claim = self._todo.get_nowait()
                if claim is not None:
                    taken.append(claim)
        except Empty:
            self.unfinished -= len(taken)
            return taken

    def outcomes(self, wait: float) -> list[Outcome]:
        """What has ended or is overdue; waits up to ``wait`` seconds for a first one."""
        ended = self._overdue()
        if not ended:
            self._has_ended.wait(wait)
        # Cleared before they are taken: one that comes meanwhile is taken too, or sets it again.
        self._has_ended.clear()
        while self._ended:
            ended.append(self._ended.popleft())
        self.unfinished -= len(ended)
        return ended

    def close(self) -> None:
        """Let the threads end when they have done what they are at."""
        for _ in range(self.concurrency):
            self._todo.put(None)

    def _overdue(self) -> list[Outcome]:
        if self._timeout is None:
            return []
        late = [a for a in self.running if time.monotonic() - a.clock > self._timeout]
        ended = []
        for attempt in late:
            if attempt.settle():
                message = f"took longer than {self._timeout:g} s"
                ended.append(attempt.failed(message, "timeout", self._max_attempts))
                self._running.pop(attempt.claim.page_id, None)
                self._start_thread()
        return ended

    def _start_thread(self) -> None:
        # Daemons: one that hangs must not keep the process from ending.
        thread = threading.Thread(target=self._work, name="nimbus-attempt", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:  # the system gives no more of them
            raise UsageError(
                f"cannot start {self.concurrency:,} threads", advice="Give a lower --concurrency."
            ) from error

    def _work(self) -> None:
        while (claim := self._todo.get()) is not None:
            attempt = self._running[claim.page_id] = Attempt(claim)
            try:
                outcome = attempt.run(self._processor, self._max_attempts)
            except ProcessorUnusableError as error:
                if attempt.settle():
                    self._running.pop(claim.page_id, None)
                    self._todo.put(claim)
                    self.unusable = self.unusable or error
                return
            if not attempt.settle():
                return  # overdue: another thread has taken this one's place
            self._running.pop(claim.page_id, None)
            self._ended.append(outcome)
            if not self._has_ended.is_set():
                self._has_ended.set()


def _changes(value: object) -> int:
    if value is None:
        return 0
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**53:
        raise ProcessorError(
            f"'changes' is {_text(value, 40)!r}, not a count of changes", code="bad_result"
        )
    return value


def _confidence(value: object) -> float | None:
    if value is None:
        return None
    usable = isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= 1
    if not usable:
        raise ProcessorError(
            f"'confidence' is {_text(value, 40)!r}, not a number from 0 to 1", code="bad_result"
        )
    return round(float(str(value)), 4)


def _usage(value: object) -> Usage | None:
    if value is None:
        return None
    given = value if isinstance(value, Mapping) else {}
    tokens_in, tokens_out = (count_field(given.get(name)) for name in ("tokens_in", "tokens_out"))
    cost = given.get("cost")
    if tokens_in is None or tokens_out is None or cost_field(cost) != cost:
        raise ProcessorError(
            f"'usage' is {_text(value, 80)!r}, not 'tokens_in', 'tokens_out' and 'cost'",
            code="bad_result",
        )
    return Usage(tokens_in, tokens_out, cost)


def _with_optimization(text: str, page: Mapping[str, Any], optimization: object) -> str:
    """The page record's ``text`` with ``optimization`` in it. Where it has none yet, that is put
    behind the rest, which keeps its spelling."""
    try:
        added = dump_json(optimization)
        if "optimization" in page or not text.endswith("}"):
            text = dump_json({**page, "optimization": optimization})
        else:
            text = f'{text[:-1]},"optimization":{added}}}'
        bytes_added = len(added.encode())  # refuses half surrogate pairs, which no store can hold
    except (TypeError, ValueError, RecursionError) as error:
        raise ProcessorError(
            f"'optimization' cannot be written as JSON: {error}", code="bad_result"
        ) from error
    if len(text) + bytes_added > MAX_VALUE_BYTES and len(text.encode()) > MAX_VALUE_BYTES:
        raise ProcessorError("page and optimization are too large for the store", code="too_large")
    return text


def _text(value: object, limit: int) -> str:
    """A text from a processor, such that a store can hold it, even if making it raises."""
    try:
        text = str(value)
    except Exception as error:  # noqa: BLE001 - its __str__ is the processor's own code
        text = f"{type(value).__name__} (its text cannot be made: {type(error).__name__})"
    return masked(text)[:limit].encode("utf-8", "replace").decode()


def masked(text: str) -> str:
    """``text``, which will be in the log, the report and the store, without the token of the store
    and the key of a model."""
    for secret in (os.environ.get(TOKEN_VARIABLE), *secret_keys(os.environ)):
        text = without_secret(text, secret)
    return text


def _where(error: BaseException) -> str:
    """The end of the traceback; nothing where an exception's own code keeps it from being made."""
    try:
        return masked("".join(traceback.format_exception(error)[-4:]))[-_MAX_TEXT:]
    except Exception:  # noqa: BLE001 - the processor's own code, as in _text
        return ""


def _loggable(data: Mapping[str, Any]) -> dict[str, Any]:
    """The data of a log entry: a few fields, each as it is if it is small JSON, or else as text."""
    some = list(data.items())[:_MAX_DATA_FIELDS]
    return {_text(name, 80): _loggable_value(value) for name, value in some}


def _loggable_value(value: object) -> object:
    try:
        text = dump_json(value)
        if len(text.encode()) <= _MAX_TEXT and masked(text) == text:
            return value
    except (TypeError, ValueError, RecursionError):
        pass
    return _text(value, _MAX_TEXT)
