"""What can go wrong with a request, and the one place where it becomes the project's own error."""

from __future__ import annotations

import json
import ssl
import unicodedata
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any, NamedTuple

import requests
import urllib3

from nimbus_tasks.core.errors import StoreError, StoreUnreachableError
from nimbus_tasks.kv.cloudflare import config_name
from nimbus_tasks.kv.cloudflare.secret import without_secret

#: The server's own troubles, and those of Cloudflare's edge with it: they pass.
PASSING_STATUSES = frozenset({408, 500, 502, 503, 504, 520, 521, 522, 523, 524})
#: No Retry-After beyond the five-minute block is believed.
LONGEST_WAIT_SECONDS = 330.0
_SHOWN_CHARACTERS = 80
_READ_BYTES = 2000
#: Malformed, unknown or expired. 10000 with a 403 also means a token that may not do it.
_TOKEN_CODES = {1000, 6003, 6111, 9103, 9106, 9109}
_NO_NAMESPACE = 10013
_DAY_IS_OVER = 10048
_NO_ROUTE_CODES = {7000, 7003}


class Kind(Enum):
    """How a fault is met."""

    PERMANENT = "not retried: the same request would fail again"
    THROTTLED = "retried for as long as the five-minute block may last"
    FAILING = "retried for a while, twice at the least: somebody is there"
    UNREACHABLE = "retried for a while"
    NOT_RUNNING = "retried for a second: a server of this machine that is not started"


class Service(NamedTuple):
    """What of Cloudflare is asked, in the words of messages: ``part`` is what the account must
    have, ``setting`` where the configuration names it, ``listing`` the command that lists them;
    ``whose`` goes before "form of answers"."""

    whose: str
    part: str
    permission: str
    setting: str
    listing: str


KV = Service(
    "Workers KV's",
    "KV namespace",
    "Workers KV Storage: Edit",
    "cloudflare.namespace_id",
    "wrangler kv namespace list",
)
QUEUES = Service(
    "a queue's", "queue", "Queues: Edit", "cloudflare.queue_id", "wrangler queues list"
)


class Answer(NamedTuple):
    """What came back: the status, and the envelope (empty where a 413 had none)."""

    status: int
    document: dict[str, Any]


@dataclass(frozen=True)
class Fault:
    """Why a request has no answer that can be used."""

    kind: Kind
    message: str
    advice: str
    #: The same in a few words, for "Cloudflare …: next try in 2 s".
    brief: str = ""
    retry_after: float | None = None
    status: int = 0

    def error(self) -> StoreError:
        """The project's own error for it; a passing fault is a store that cannot be reached."""
        kind = StoreError if self.kind is Kind.PERMANENT else StoreUnreachableError
        return kind(self.message, advice=self.advice)


class Faults:
    """Reads answers and exceptions. ``secret`` is taken out of every text that is passed on;
    ``is_wrangler`` says that the server is the one of wrangler on this machine."""

    def __init__(
        self, server: str, secret: str | None, service: Service = KV, *, is_wrangler: bool = False
    ) -> None:
        self._server = server
        self._is_wrangler = is_wrangler
        self._secret = secret
        self._service = service

    def of_exception(self, error: Exception) -> Fault:
        """No answer at all. Only the kind of the fault is told: its text could hold anything."""
        causes = list(_causes(error))
        if isinstance(error, requests.exceptions.SSLError) and not _has(causes, ssl.SSLEOFError):
            return Fault(
                Kind.PERMANENT,
                f"no secure connection to {self._server}: {self._tls_reason(causes)}",
                "Check the clock and the certificates of this machine. Behind a proxy that opens"
                " TLS, name its certificate in REQUESTS_CA_BUNDLE.",
            )
        if isinstance(error, requests.exceptions.ReadTimeout):
            return self._passing(f"{self._server} did not answer in time", "did not answer in time")
        if isinstance(error, requests.exceptions.ProxyError):
            return self._unreachable("the proxy does not let the request through")
        if _has(causes, urllib3.exceptions.NameResolutionError):
            return self._unreachable("its name is not known")
        if isinstance(error, requests.exceptions.ConnectTimeout):
            return self._unreachable("it does not answer")
        if _has(causes, urllib3.exceptions.NewConnectionError):
            refused = _has(causes, ConnectionRefusedError)
            if refused and self._is_wrangler:
                return self._not_running()
            return self._unreachable("connection refused" if refused else "no way there")
        if isinstance(error, requests.exceptions.ConnectionError):
            broke = f"the connection to {self._server} broke"
            return self._passing(f"{broke} again and again", "broke the connection off")
        if isinstance(
            error,
            requests.exceptions.ChunkedEncodingError | requests.exceptions.ContentDecodingError,
        ):
            return self.cut_off()
        # The kind says enough: a bad certificate bundle, an address that nobody can be sent to.
        return Fault(
            Kind.PERMANENT,
            f"a request to {self._server} is not possible ({type(error).__name__})",
            f"Check cloudflare.api_base in {config_name()}, the proxy settings and"
            " REQUESTS_CA_BUNDLE.",
        )

    def of_response(self, response: requests.Response) -> Answer | Fault:
        """The answer, or why it is none."""
        status = response.status_code
        if 300 <= status < 400:
            return Fault(
                Kind.PERMANENT,
                f"{self._server} redirects elsewhere (HTTP {status}): the API never redirects",
                f"Check cloudflare.api_base in {config_name()}, and for a proxy or a login page on"
                " the way. The token was not sent on.",
            )
        asked = retry_after(response)
        if status == 429:
            return self._throttled(response, asked)
        if status in PASSING_STATUSES:
            fault = self._passing(f"{self._server} fails (HTTP {status})", f"answers {status}")
            if status == 503 and asked is not None:
                return replace(fault, kind=Kind.THROTTLED, retry_after=asked)
            return fault
        if "json" not in response.headers.get("Content-Type", "").lower():
            return Answer(status, {}) if status == 413 else self._nonsense(response)
        try:
            document = json.loads(response.content)
        except (ValueError, RecursionError):
            return Answer(status, {}) if status == 413 else self.cut_off()
        if not isinstance(document, dict):
            return self._nonsense(response)
        if status == 413 or (200 <= status < 300 and document.get("success") is True):
            return Answer(status, document)
        return replace(self._refused(status, document), status=status)

    def misshapen(self, what: str) -> Fault:
        """An answer to ``what`` that is a sound envelope, and holds something else than the API's
        documentation says."""
        return Fault(
            Kind.PERMANENT,
            f"{self._server} answers {what} in a form that is not {self._service.whose}",
            f"Check cloudflare.api_base in {config_name()}.",
        )

    def cut_off(self) -> Fault:
        """An answer that breaks off, or is half of a document."""
        return self._passing(f"the answers of {self._server} are cut off", "cut an answer off")

    def too_large(self, what: str) -> Fault:
        """A 413 for ``what``, which cannot be sent in smaller parts."""
        return Fault(
            Kind.PERMANENT,
            f"{self._server} refuses {what} as too large (HTTP 413)",
            "A value may have 25 MiB; a proxy on the way may allow less. Make the page smaller.",
        )

    def not_taken(self, count: int) -> Fault:
        """``count`` keys of a bulk call that were refused each time it was sent again."""
        return Fault(
            Kind.PERMANENT,
            f"{self._server} keeps refusing {count:,} keys of a bulk request, without a reason",
            "Run the command again in a minute: what was written is kept.",
        )

    def _throttled(self, response: requests.Response, asked: float | None) -> Fault:
        codes, text = self._errors(_document(response))
        if _DAY_IS_OVER in codes or "for today" in text:
            return Fault(
                Kind.PERMANENT,
                f"today's allowance of the free plan is used up: {text}",
                "It starts anew at 00:00 UTC. The paid Workers plan has no such limit.",
            )
        return Fault(
            Kind.THROTTLED,
            f"{self._server} still refuses after a long wait: too many requests",
            "An account has 1,200 requests in five minutes. Wait five minutes, run fewer monitors"
            " and workers at once, and run the command again.",
            "too many requests",
            asked,
        )

    def _refused(self, status: int, document: dict[str, Any]) -> Fault:
        codes, text = self._errors(document)
        told = f"HTTP {status}{': ' + text if text else ''}"
        is_about_token = bool(codes & _TOKEN_CODES) or "authenticat" in text.lower()
        if status == 403 and not codes & _TOKEN_CODES:
            return Fault(
                Kind.PERMANENT,
                f"the API token is not allowed to do this ({told})",
                f"It needs the permission {self._service.permission} for this account. Check"
                " CLOUDFLARE_API_TOKEN and CLOUDFLARE_ACCOUNT_ID.",
            )
        if status == 401 or (status in (400, 403) and is_about_token):
            if self._secret is None:
                return Fault(
                    Kind.PERMANENT,
                    f"{self._server} wants an API token ({told})",
                    "Set CLOUDFLARE_API_TOKEN to one with the permission"
                    f" {self._service.permission}.",
                )
            return Fault(
                Kind.PERMANENT,
                f"{self._server} does not accept the API token ({told})",
                "Check CLOUDFLARE_API_TOKEN. A new one, with the permission"
                f" {self._service.permission}, is made at https://dash.cloudflare.com/profile/api-tokens",
            )
        if _NO_NAMESPACE in codes:
            return Fault(
                Kind.PERMANENT,
                f"the account has no such {self._service.part} ({told})",
                f"Check {self._service.setting} in {config_name()}; {self._service.listing} names"
                " those there are.",
            )
        if status == 404 or codes & _NO_ROUTE_CODES:
            return Fault(
                Kind.PERMANENT,
                f"no such account or {self._service.part} ({told})",
                "Check CLOUDFLARE_ACCOUNT_ID, or cloudflare.account_id, and"
                f" {self._service.setting} in {config_name()}.",
            )
        return Fault(
            Kind.PERMANENT,
            f"{self._server} refuses the request ({told})",
            "Try: invoke nimbus.doctor",
        )

    def _nonsense(self, response: requests.Response) -> Fault:
        sort = self._clean(response.headers.get("Content-Type", "")) or "of no type"
        beginning = self._clean(response.content[:_READ_BYTES].decode("utf-8", "replace"))
        return Fault(
            Kind.PERMANENT,
            f"{self._server} answers something that is not its API's: HTTP"
            f" {response.status_code}, {sort}: {beginning or '(nothing)'}",
            f"Check cloudflare.api_base in {config_name()}, and for a proxy or a login page on the"
            " way.",
        )

    def _unreachable(self, why: str) -> Fault:
        return Fault(
            Kind.UNREACHABLE,
            f"{self._server} cannot be reached: {why}",
            f"Check the network, the proxy settings and cloudflare.api_base in {config_name()}.",
            f"cannot be reached ({why})",
        )

    def _not_running(self) -> Fault:
        return Fault(
            Kind.NOT_RUNNING,
            f"the local Worker is not running: {self._server} refuses the connection",
            "Start it with: invoke nimbus.cloud.dev, or with wrangler dev if that is how it ran"
            f" (the address is that of {config_name()}).",
            "refuses the connection",
        )

    def _passing(self, message: str, brief: str) -> Fault:
        advice = "Run the command again in a minute; https://www.cloudflarestatus.com tells more."
        return Fault(Kind.FAILING, message, advice, brief)

    def _errors(self, document: dict[str, Any]) -> tuple[set[int], str]:
        """The codes of an envelope's errors, and the first one's text."""
        errors = document.get("errors")
        found = [e for e in errors if isinstance(e, dict)] if isinstance(errors, list) else []
        codes = {e["code"] for e in found if isinstance(e.get("code"), int)}
        text = self._clean(str(found[0].get("message") or "")) if found else ""
        return codes, f"{text} [code {found[0].get('code')}]" if text and codes else text

    def _tls_reason(self, causes: list[BaseException]) -> str:
        for cause in causes:
            if isinstance(cause, ssl.SSLCertVerificationError):
                return self._clean(cause.verify_message)
        return "the TLS handshake failed"

    def _clean(self, text: str) -> str:
        """One short line, without the token if that was sent back."""
        return one_line(without_secret(text, self._secret), _SHOWN_CHARACTERS)


def one_line(text: str, most: int) -> str:
    """``text`` on one line of ``most`` characters and an ellipsis, without control characters."""
    plain = "".join(" " if unicodedata.category(c)[0] in "CZ" else c for c in text)
    shown = " ".join(plain.split())
    return shown if len(shown) <= most else shown[:most] + "…"


def _document(response: requests.Response) -> dict[str, Any]:
    try:
        document = json.loads(response.content)
    except (ValueError, RecursionError):
        return {}
    return document if isinstance(document, dict) else {}


def retry_after(response: requests.Response, *, most: float = LONGEST_WAIT_SECONDS) -> float | None:
    """The header's seconds, in either of its forms and ``most`` at most; ``None`` where it makes no
    sense."""
    header = response.headers.get("Retry-After")
    if header is None:
        return None
    try:
        asked = urllib3.Retry().parse_retry_after(header)
    except (urllib3.exceptions.InvalidHeader, ValueError, OverflowError):
        return None
    return min(max(asked, 0.0), most)


def _causes(error: BaseException) -> list[BaseException]:
    """The exception and everything that it wraps, in whichever of the ways that are in use."""
    found: list[BaseException] = []
    waiting: list[object] = [error]
    while waiting:
        candidate = waiting.pop()
        if isinstance(candidate, BaseException) and candidate not in found:
            found.append(candidate)
            waiting += [candidate.__cause__, candidate.__context__, *candidate.args]
            waiting.append(getattr(candidate, "reason", None))
    return found


def _has(causes: list[BaseException], kind: type[BaseException]) -> bool:
    return any(isinstance(cause, kind) for cause in causes)
