"""Asking an OpenAI-compatible chat endpoint: what is tried again, when to wait, when to give up.

One client serves all threads of a worker. A thread that is told to wait holds the others, by the
same pacer as that of Workers KV's client; what one learns of the server's dialect all use.
"""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import requests
import urllib3

from nimbus_tasks.core.errors import (
    ProcessorError,
    ProcessorUnusableError,
    ServiceUnavailableError,
    UsageError,
)
from nimbus_tasks.kv.cloudflare.faults import Faults, Kind, one_line, retry_after
from nimbus_tasks.kv.cloudflare.secret import without_secret
from nimbus_tasks.kv.cloudflare.sessions import Address, quiet_session, read_address, time_limit
from nimbus_tasks.kv.cloudflare.transport import Pacer
from nimbus_tasks.processors.llm_errors import ErrorAnswer, error_in
from nimbus_tasks.processors.llm_prompt import Dialect, request_body
from nimbus_tasks.processors.llm_settings import (
    DEFAULT_BASE_URL,
    KEY_VARIABLE,
    OPENAI_KEY,
    LlmSettings,
    secret_keys,
)

#: For how long, and how often, a page asks a server that is at its limit.
PATIENCE_SECONDS, MOST_THROTTLED = 300.0, 10
#: How often a page asks a server that fails or is not there.
MOST_TRIES = 4
_LONGEST_BACKOFF_SECONDS = 30.0
#: The longest wait of a server's that is believed; beyond the patience it is only told.
_LONGEST_ASKED_SECONDS = 7 * 86_400.0
#: An answer that is larger is none to a question for two lines.
_MAX_BYTES = 1024 * 1024
_SHOWN = 120
_CHUNK = 4096
_PASSING = frozenset({408, 409, 425})
#: How many pages in a row may be forbidden (403) where the key has been good.
MOST_FORBIDDEN = 5


@dataclass(frozen=True)
class _Fault:
    """Why there is no answer. ``passes``: another try may help. ``is_throttled``: all threads are
    to wait, ``waits`` seconds if the server says so. ``is_reached``: somebody was there."""

    message: str
    code: str
    passes: bool = True
    is_throttled: bool = False
    is_reached: bool = True
    waits: float | None = None


#: A completion, a fault, or ``None`` where the same is to be said in another dialect.
_Outcome: TypeAlias = "dict[str, Any] | _Fault | None"


class LlmClient:
    """Sends requests to ``{base_url}/chat/completions``. ``sleep`` and ``clock`` are for tests.

    ``tell`` is told in words when it waits. Raises :class:`UsageError` for an address or a key that
    cannot be used.
    """

    def __init__(
        self,
        settings: LlmSettings,
        key: str | None,
        tell: Callable[[str], None] = lambda _: None,
        *,
        connections: int = 8,
        sleep: Callable[[float], object] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        address = _checked_address(settings.base_url, key)
        self._settings, self._key, self._clock = settings, key, clock
        self._secrets = secret_keys({KEY_VARIABLE: key or ""})
        self._url = f"{settings.base_url}/chat/completions"
        self._server = address.host
        self._session = quiet_session(address, key, connections)
        self._closed = threading.Event()
        # The default sleep ends when the client is closed: Ctrl-C does not wait for minutes.
        self._pacer = Pacer(tell, sleep or self._closed.wait, clock)
        self._dialect = Dialect()
        self._faults = Faults(self._server, key)
        self._has_answered = False
        #: How many pages may still be forbidden; ``None`` as long as there is no completion.
        self._forbidden_left: int | None = None
        self._unusable: ProcessorUnusableError | None = None

    def close(self) -> None:
        """End the waiting of all threads."""
        self._closed.set()
        self._session.close()

    def chat(self, messages: list[dict[str, str]]) -> Mapping[str, Any]:
        """The completion, as the server gives it: a JSON object.

        Raises :class:`ProcessorError` where this page has no answer, and
        :class:`ProcessorUnusableError` where none would have one.
        """
        waited, tries = 0.0, 0
        while True:
            self._pacer.wait_until_free()
            if self._unusable is not None:
                raise self._unusable
            if self._closed.is_set():
                raise ProcessorError("the worker has ended", code="llm_unreachable")
            dialect = self._dialect
            outcome = self._attempt(request_body(self._settings, messages, dialect), dialect)
            if outcome is None:
                continue  # the server speaks another dialect
            if not isinstance(outcome, _Fault):
                return outcome
            tries += 1
            # A server that asks for 0 seconds each time is not asked without end.
            asked = outcome.waits
            wait = _backoff(tries) if asked is None else max(asked, _backoff(tries) / 10)
            waited += wait
            if self._is_enough(outcome, tries, waited):
                raise self._given_up(outcome)
            self._wait(outcome, wait)

    def masked(self, text: str) -> str:
        """The text without the key, if a server has sent that back."""
        for secret in self._secrets:
            text = without_secret(text, secret)
        return text

    def brief(self, text: str) -> str:
        """The beginning of what came, on one line, without control characters and without the
        key."""
        return one_line(self.masked(text[: 4 * _SHOWN]), _SHOWN)

    def _attempt(self, body: Mapping[str, Any], dialect: Dialect) -> _Outcome:
        """Send it once. Raises what makes every page impossible."""
        timeout = self._settings.timeout
        with time_limit(timeout) as limit:
            try:
                with self._session.post(
                    self._url,
                    json=body,
                    # The limit ends the reading; this ends a wait that it cannot, as connecting.
                    timeout=(min(timeout, 10.0), timeout + 1),
                    allow_redirects=False,
                    stream=True,
                ) as response:
                    received = bytearray()
                    for chunk in response.iter_content(_CHUNK):
                        received += chunk
                        if len(received) > _MAX_BYTES:
                            message = "the answer is larger than 1 MB"
                            return _Fault(message, "bad_answer", passes=False)
                failed = None
            except (OSError, ValueError, urllib3.exceptions.HTTPError) as error:
                failed = self._faults.of_exception(error)
        # Not where it was caught: requests' exceptions hold the headers.
        if failed is not None and failed.kind is Kind.UNREACHABLE:
            return _Fault(failed.message, "llm_unreachable", is_reached=False)
        if limit.is_over:
            return _Fault(f"{self._server} took longer than {timeout:g} s", "llm_timeout")
        if failed is None:
            return self._read(response, received.decode("utf-8", "replace"), dialect)
        if failed.kind is Kind.PERMANENT and not self._has_answered:
            raise self._stopped(failed.message)
        return _Fault(f"{self._server} broke its answer off: connection closed", "llm_failing")

    def _read(self, response: requests.Response, text: str, dialect: Dialect) -> _Outcome:
        self._has_answered = True
        document = _document(text)
        error = error_in(response.status_code, document, text)
        if error is not None:
            return self._refused(response, error, dialect)
        if isinstance(document, dict) and document.get("choices"):
            self._forbidden_left = MOST_FORBIDDEN
            return document
        message = f"no chat completion: {self.brief(text) or '(nothing)'}"
        if not isinstance(document, dict) and self._forbidden_left is None:
            raise self._stopped(f"{self._server} answers {message}")
        return _Fault(message, "bad_answer", passes=False)

    def _refused(
        self, response: requests.Response, error: ErrorAnswer, dialect: Dialect
    ) -> _Outcome:
        status = error.status
        told = f"HTTP {status}: {self.brief(error.message)}".rstrip(": ")
        if status == 429 and not error.is_of_quota:
            waits = retry_after(response, most=_LONGEST_ASKED_SECONDS)
            message = f"too many requests ({told})"
            return _Fault(message, "rate_limited", is_throttled=True, waits=waits)
        if error.is_missed_schema:
            return _Fault(f"the model misses the form of the answer ({told})", "bad_answer")
        if self._learn(error, dialect):
            return None
        if status >= 500 or status in _PASSING:
            is_pause = status in (503, 529)
            waits = retry_after(response, most=_LONGEST_ASKED_SECONDS) if is_pause else None
            message = f"{self._server} fails ({told})"
            return _Fault(message, "llm_failing", is_throttled=waits is not None, waits=waits)
        self._check_usable(error, told)
        return _Fault(f"{self._server} refuses the page ({told})", "llm_refused", passes=False)

    def _learn(self, error: ErrorAnswer, dialect: Dialect) -> bool:
        """Whether a refusal was of the form of the request, which is another one from now on."""
        new = error.taught(dialect)
        if new == dialect:
            return False
        # Another thread may have learnt something else meanwhile.
        last = self._dialect
        tokens = new.tokens if last.tokens == "max_tokens" else last.tokens
        self._dialect = Dialect(max(new.format, last.format), tokens)
        return True

    def _check_usable(self, error: ErrorAnswer, told: str) -> None:
        """Raise where every page would be refused as this one was."""
        if error.is_of_key or (error.status == 403 and not self._is_of_page()):
            what = "does not accept the key" if self._key else "wants a key"
            raise self._stopped(
                f"{self._server} {what} ({told})",
                f"Set {KEY_VARIABLE} to a key of this server.",
            )
        if error.is_of_quota:
            raise self._stopped(
                f"the account's quota at {self._server} is used up ({told})",
                "Raise it, or wait for it, and go on with: invoke nimbus.worker --processor=llm",
            )
        if 300 <= error.status < 400:
            raise self._stopped(f"{self._server} redirects elsewhere (HTTP {error.status})")
        if error.status in (404, 405):
            raise self._stopped(
                f"{self._server} does not know the model or the address ({told})",
                "Check nimbus.llm.base_url and nimbus.llm.model in invoke.yaml.",
            )
        if error.setting is not None:
            raise self._stopped(
                f"{self._server} does not take the settings ({told})",
                f"Check nimbus.llm.{error.setting} in invoke.yaml.",
            )

    def _is_of_page(self) -> bool:
        """Whether a 403 may be about what the page says, as a moderation or a firewall has it: the
        key has been good. Several in a row are about the key, all the same."""
        left = self._forbidden_left or 0
        if left:
            self._forbidden_left = left - 1
        return left > 0

    def _stopped(self, message: str, advice: str | None = None) -> ProcessorUnusableError:
        advice = advice or "Check nimbus.llm.base_url in invoke.yaml, and the proxy settings."
        self._unusable = ProcessorUnusableError(message, advice=advice)
        return self._unusable

    def _is_enough(self, fault: _Fault, tries: int, waited: float) -> bool:
        if not fault.passes:
            return True
        if fault.is_throttled:
            return waited > PATIENCE_SECONDS or tries >= MOST_THROTTLED
        return tries >= MOST_TRIES

    def _given_up(self, fault: _Fault) -> Exception:
        """The error of a page for which nothing more is tried; or of all, where the others would do
        no better: a server that was never there, or one that asks for a pause of hours."""
        if fault.waits is not None and fault.waits > PATIENCE_SECONDS:
            minutes = fault.waits / 60
            self._unusable = ServiceUnavailableError(
                f"{self._server} asks to wait {minutes:,.0f} minutes: {fault.message}",
                advice="Go on then with: invoke nimbus.worker --processor=llm",
            )
        elif not fault.is_reached and not self._has_answered:
            self._unusable = ServiceUnavailableError(
                fault.message, advice="Check nimbus.llm.base_url in invoke.yaml, and the network."
            )
        return self._unusable or ProcessorError(fault.message, code=fault.code)

    def _wait(self, fault: _Fault, seconds: float) -> None:
        if fault.is_throttled:
            self._pacer.hold(seconds, f"{self._server} is at its limit: all wait {{}}")
        else:
            self._pacer.pause(seconds, f"{fault.message}: next try in {{}}")


def _checked_address(base_url: str, key: str | None) -> Address:
    address = read_address(base_url)
    if address is None:
        raise UsageError(
            "nimbus.llm.base_url is no http or https address of an API",
            advice=f"It is like {DEFAULT_BASE_URL}; the key is not part of it.",
        )
    if key is None and base_url == DEFAULT_BASE_URL:
        raise UsageError(
            f"there is no key for {address.host}",
            advice=f"Set {KEY_VARIABLE} (or {OPENAI_KEY}) in the environment.",
        )
    if key is not None and not (key.isascii() and key.isprintable() and " " not in key):
        raise UsageError(
            "the key of the model's server holds a space, a line break or another character that"
            " no key has",
            advice=f"Set {KEY_VARIABLE} again, with nothing before or after the key.",
        )
    if key is not None and not address.is_encrypted and not address.is_loopback:
        raise UsageError(
            f"the key is sent over https or to this machine only: {address.name} is neither",
            advice=f"Use https, or set {KEY_VARIABLE} to nothing for a server without a key.",
        )
    return address


def _document(text: str) -> object:
    try:
        document: object = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return document


def _backoff(tries: int) -> float:
    """Doubling, and somewhat longer, so that several threads do not come back at once."""
    return min(0.5 * 2.0**tries, _LONGEST_BACKOFF_SECONDS) * (1 + random.random() / 4)
