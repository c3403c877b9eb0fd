"""Asking an OpenAI-compatible chat endpoint: what is tried again, when to wait, when to give up.

One client serves all threads of a worker. One that is told to wait holds the others, by the pacer
that the client of Workers KV has, too; what one learns of the server's dialect all use.
"""

from __future__ import annotations

import json
import random
import threading
import time
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import requests
import urllib3

from nimbus_tasks.core.errors import (
    ProcessorError,
    ProcessorUnusableError,
    ServiceUnavailableError,
    UsageError,
)
from nimbus_tasks.kv.cloudflare.faults import retry_after
from nimbus_tasks.kv.cloudflare.secret import without_secret
from nimbus_tasks.kv.cloudflare.transport import Address, Pacer, quiet_session, read_address
from nimbus_tasks.processors.llm_prompt import RESPONSE_FORMATS, Dialect, request_body
from nimbus_tasks.processors.llm_settings import (
    DEFAULT_BASE_URL,
    KEY_VARIABLES,
    LlmSettings,
    secret_keys,
)

#: What a page may wait for a server that is at its limit, and how often it asks it.
PATIENCE_SECONDS, MOST_THROTTLED = 300.0, 10
#: How often a page asks a server that fails or is not there.
MOST_TRIES = 4
_LONGEST_BACKOFF_SECONDS = 30.0
#: What a server may ask to wait, for the message that says so.
_LONGEST_ASKED_SECONDS = 7 * 86_400.0
#: More than any answer of a chat that was asked for two lines.
_MAX_BYTES = 1024 * 1024
_SHOWN = 120
#: An answer that trickles is looked at as often as so many bytes have come.
_CHUNK = 512
_PASSING = frozenset({408, 409, 425})
#: Settings that are wrong for every page, where the server names one as the fault.
_SETTINGS = ("model", "temperature", "max_tokens", "max_completion_tokens")


@dataclass(frozen=True)
class _Fault:
    """Why there is no answer. ``waits`` is what the server asks for, in seconds."""

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
        self._secrets = secret_keys({KEY_VARIABLES[0]: key or ""})
        self._url = f"{settings.base_url}/chat/completions"
        self._server = address.host
        self._session = quiet_session(address, key, connections)
        self._closed = threading.Event()
        # The default sleep ends when the client is closed: Ctrl-C does not wait for minutes.
        self._pacer = Pacer(tell, sleep or self._closed.wait, clock)
        self._dialect = Dialect()
        self._has_answered = False
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
            wait = outcome.waits if outcome.waits is not None else _backoff(tries)
            wait = max(wait, _backoff(tries) / 10)
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
        shown = self.masked(text[: 4 * _SHOWN])
        shown = "".join(" " if unicodedata.category(c)[0] in "CZ" else c for c in shown)
        shown = " ".join(shown.split())
        return shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}…"

    def _attempt(self, body: Mapping[str, Any], dialect: Dialect) -> _Outcome:
        """Send it once. Raises what makes every page impossible."""
        timeout = self._settings.timeout
        began = self._clock()
        try:
            with self._session.post(
                self._url,
                json=body,
                timeout=(min(timeout, 10.0), timeout),
                allow_redirects=False,
                stream=True,
            ) as response:
                received = bytearray()
                for chunk in response.iter_content(_CHUNK):
                    received += chunk
                    if len(received) > _MAX_BYTES:
                        return _Fault("the answer is larger than 1 MB", "bad_answer", passes=False)
                    if self._clock() - began > timeout:
                        return self._too_slow()
        except requests.exceptions.ReadTimeout:
            return self._too_slow()
        except requests.exceptions.SSLError:
            if self._has_answered:
                return self._broken_off()
            raise self._stopped(f"no secure connection to {self._server} can be made") from None
        except requests.exceptions.ConnectionError as error:
            return self._broken(error)
        except (requests.exceptions.ChunkedEncodingError, urllib3.exceptions.HTTPError):
            return self._broken_off()
        except (OSError, ValueError) as error:  # its text could hold anything
            name = type(error).__name__
            raise self._stopped(f"a request to {self._server} is not possible ({name})") from None
        return self._read(response, received.decode("utf-8", "replace"), dialect)

    def _broken(self, error: Exception) -> _Fault:
        """No connection, or none any more. requests has one exception for a time-out in the middle
        of an answer as well."""
        text = repr(error)
        if "Read timed out" in text:
            return self._too_slow()
        for sign, why in (
            ("NameResolutionError", "its name is not known"),
            ("ConnectTimeout", "connection timed out"),
            ("NewConnectionError", "connection refused"),
        ):
            if sign in text:
                message = f"{self._server} cannot be reached: {why}"
                return _Fault(message, "llm_unreachable", is_reached=False)
        return self._broken_off()

    def _broken_off(self) -> _Fault:
        return _Fault(f"{self._server} broke its answer off: connection closed", "llm_failing")

    def _too_slow(self) -> _Fault:
        seconds = self._settings.timeout
        return _Fault(f"{self._server} took longer than {seconds:g} seconds", "llm_timeout")

    def _read(self, response: requests.Response, text: str, dialect: Dialect) -> _Outcome:
        self._has_answered = True
        status = response.status_code
        document = _document(text)
        if status == 200:
            if isinstance(document, dict):
                return document
            told = self.brief(text) or "(nothing)"
            return _Fault(f"no chat completion: {told}", "bad_answer", passes=False)
        error = document.get("error") if isinstance(document, dict) else None
        error = error if isinstance(error, dict) else {"message": error or text}
        told = f"HTTP {status}: {self.brief(str(error.get('message')))}".rstrip(": ")
        kind = f"{error.get('code')} {error.get('type')}"
        if status == 429 and "insufficient_quota" not in kind:
            waits = retry_after(response, most=_LONGEST_ASKED_SECONDS)
            return _Fault(f"too many requests ({told})", "rate_limited", True, True, waits=waits)
        if status >= 500 or status in _PASSING:
            waits = (
                retry_after(response, most=_LONGEST_ASKED_SECONDS) if status in (503, 529) else None
            )
            message = f"{self._server} fails ({told})"
            return _Fault(message, "llm_failing", True, waits is not None, waits=waits)
        if status in (400, 422) and self._learn(str(error.get("message")).lower(), dialect):
            return None
        self._check_usable(status, told, error)
        return _Fault(f"{self._server} refuses the page ({told})", "llm_refused", passes=False)

    def _learn(self, told: str, dialect: Dialect) -> bool:
        """Whether a refusal was of the form of the request, which is another one from now on."""
        new = dialect
        if "max_completion_tokens" in told and dialect.tokens == "max_tokens":
            new = replace(dialect, tokens="max_completion_tokens")
        elif (
            any(word in told for word in ("response_format", "json_schema", "json_object"))
            and dialect.format < len(RESPONSE_FORMATS) - 1
        ):
            new = replace(dialect, format=dialect.format + 1)
        if new == dialect:
            return False
        # Another thread may have learnt something else meanwhile.
        last = self._dialect
        tokens = new.tokens if last.tokens == "max_tokens" else last.tokens
        self._dialect = Dialect(max(new.format, last.format), tokens)
        return True

    def _check_usable(self, status: int, told: str, error: Mapping[str, Any]) -> None:
        """Raise where every page would be refused as this one was."""
        if status in (401, 403):
            what = "does not accept the key" if self._key else "wants a key"
            advice = f"Set {KEY_VARIABLES[0]} (or {KEY_VARIABLES[1]}) to a key of this server."
            raise self._stopped(f"{self._server} {what} ({told})", advice)
        if status in (402, 429):
            raise self._stopped(
                f"the account's quota at {self._server} is used up ({told})",
                "Raise it, or wait for it, and go on with: invoke nimbus.worker --processor=llm",
            )
        if 300 <= status < 400:
            raise self._stopped(f"{self._server} redirects elsewhere (HTTP {status})")
        names_setting = error.get("param") in _SETTINGS or error.get("code") == "model_not_found"
        if status in (404, 405) or names_setting:
            raise self._stopped(
                f"{self._server} does not know the model or the address ({told})"
                if status in (404, 405)
                else f"{self._server} does not take the settings ({told})",
                "Check nimbus.llm.base_url and nimbus.llm.model in invoke.yaml.",
            )

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
            advice=f"Set {KEY_VARIABLES[0]} (or {KEY_VARIABLES[1]}) in the environment.",
        )
    if key is not None and not (key.isascii() and key.isprintable() and " " not in key):
        raise UsageError(
            "the key of the model's server holds a space, a line break or another character that"
            " no key has",
            advice=f"Set {KEY_VARIABLES[0]} again, with nothing before or after the key.",
        )
    if key is not None and not address.is_encrypted and not address.is_loopback:
        raise UsageError(
            f"the key is sent over https or to this machine only: {address.name} is neither",
            advice=f"Use https, or set {KEY_VARIABLES[0]} to nothing for a server without a key.",
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
