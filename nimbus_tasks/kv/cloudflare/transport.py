"""Requests to one server: where the token may be sent, what is retried, and when to wait.

Retrying is a loop of its own, not urllib3's ``Retry`` on the session. That one counts tries where
the promises here are in seconds (30 for nobody there, 330 for the five-minute block), keeps its
counts in a request where a pause that one thread is told of must hold for all of them, does not
see a body that breaks off, and does not say that it waits. It reads Retry-After all the same.
"""

from __future__ import annotations

import io
import random
import re
import threading
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

import urllib3

from nimbus_tasks.core.errors import StoreError, UsageError
from nimbus_tasks.kv.cloudflare import config_name
from nimbus_tasks.kv.cloudflare.faults import (
    KV,
    LONGEST_WAIT_SECONDS,
    Answer,
    Fault,
    Faults,
    Kind,
    Service,
)
from nimbus_tasks.kv.cloudflare.sessions import Address, quiet_session, read_address

OFFICIAL_HOST = "api.cloudflare.com"
#: Requests at once: enough to hide the round trips, few enough to keep memory at a few chunks.
IN_FLIGHT = 4
#: What an account may send in five minutes, where no header says otherwise.
REQUESTS_A_WINDOW = 1200
#: So many of them are left alone: other threads have requests in flight, and so may other programs.
_RESERVE = 8
#: About what one look of a monitor costs.
_REQUESTS_A_LOOK = 4
#: What wrangler's own server has in its addresses.
WRANGLER_ROUTES = "/cdn-cgi/local/"
#: A server of this machine that is just being started anew is there again within about a second.
_RESTART_SECONDS = 1.5
#: Of what fails: the first wait, which doubles, and the longest.
FIRST_BACKOFF_SECONDS, _LONGEST_BACKOFF_SECONDS = 0.5, 8.0

Sleep = Callable[[float], object]
Clock = Callable[[], float]


class Pacer:
    """When the next request may go. Shared by a client's threads: what one is told holds for all.

    ``sleep`` and ``clock`` are settable for tests.
    """

    def __init__(self, on_wait: Callable[[str], None], sleep: Sleep, clock: Clock) -> None:
        self._on_wait, self._sleep, self._clock = on_wait, sleep, clock
        # Reentrant: whoever is told that we wait may ask how long a pause would be good.
        self._lock = threading.RLock()
        self._free_at = 0.0
        self._told_until = 0.0
        self.remaining: int | None = None
        self._quota = REQUESTS_A_WINDOW
        self._renewed_at = 0.0

    def hold(self, seconds: float, words: str) -> None:
        """Nobody sends anything for so many ``seconds``; ``words`` tell that, with the time in the
        place of ``{}``."""
        with self._lock:
            self._free_at = max(self._free_at, self._clock() + seconds)
        self._tell(seconds, words)

    def wait_until_free(self) -> None:
        """Wait while :meth:`hold` lasts; to be called before every request."""
        while True:
            free_at = self._free_at
            seconds = free_at - self._clock()
            if seconds <= 0:
                return
            self._sleep(seconds)
            with self._lock:
                # Unless somebody was told of a longer wait meanwhile, this one is over.
                if self._free_at == free_at:
                    self._free_at = 0.0

    def pause(self, seconds: float, words: str) -> None:
        """This thread alone waits, and ``words`` tell that as in :meth:`hold`."""
        self._tell(seconds, words)
        self._sleep(seconds)

    def read(self, headers: Mapping[str, str]) -> None:
        """Note what is left of the budget; wait for its renewal rather than run into the block."""
        quotas = {
            name: int(quota)
            for name, quota in re.findall(
                r'"?([\w-]+)"?\s*;\s*q=(\d{1,9})\b', headers.get("Ratelimit-Policy", "")
            )
        }
        limits = [
            (int(remaining), max(quotas.get(name, REQUESTS_A_WINDOW), 1), int(seconds))
            for name, remaining, seconds in re.findall(
                r'"?([\w-]+)"?\s*;\s*r=(\d{1,9})\s*;\s*t=(\d{1,9})\b', headers.get("Ratelimit", "")
            )
        ]
        if not limits:
            return
        remaining, quota, seconds = min(limits, key=lambda limit: limit[0] / limit[1])
        window = min(float(seconds), LONGEST_WAIT_SECONDS)
        with self._lock:
            self.remaining, self._quota = remaining, quota
            self._renewed_at = self._clock() + window
        if remaining <= min(_RESERVE, quota // 20) and window > 0:
            self.hold(window, "the account's requests are nearly used up: waiting {} for new ones")

    def pause_seconds(self) -> float:
        """By how much a periodic caller should stretch its interval to make the budget last."""
        with self._lock:
            window = self._renewed_at - self._clock()
            if self.remaining is None or window <= 0 or self.remaining > self._quota / 4:
                return 0.0
            usable = max(self.remaining - _RESERVE, 1)
            return min(window, _REQUESTS_A_LOOK * window / usable)

    def _tell(self, seconds: float, words: str) -> None:
        # Four threads that meet the same fault at once tell of it once.
        with self._lock:
            until = self._clock() + seconds
            if until <= self._told_until + min(0.5, seconds / 2):
                return
            self._told_until = until
            self._on_wait(words.replace("{}", _in_words(seconds)))


@dataclass
class _Patience:
    """How long one request has been tried, and how long it is still to be tried."""

    seconds: float
    spent: float = 0.0
    tries: int = 0
    throttled_for: float = 0.0
    throttled_tries: int = 0

    def next_wait(self, fault: Fault, took: float) -> float | None:
        """The seconds before the next try; ``None``: give up."""
        if fault.kind is Kind.PERMANENT:
            return None
        if fault.kind is Kind.THROTTLED:
            return self._wait_throttled(fault.retry_after)
        wait = _jittered(min(FIRST_BACKOFF_SECONDS * 2**self.tries, _LONGEST_BACKOFF_SECONDS))
        self.spent += took
        self.tries += 1
        # Where nobody answers, the next try may take as long as this one.
        ahead = wait + (took if fault.kind is Kind.UNREACHABLE else 0.0)
        is_due = fault.kind is Kind.FAILING and self.tries <= 2
        seconds = _RESTART_SECONDS if fault.kind is Kind.NOT_RUNNING else self.seconds
        if self.spent + ahead > seconds and not is_due:
            return None
        self.spent += wait
        return wait

    def _wait_throttled(self, asked: float | None) -> float | None:
        left = LONGEST_WAIT_SECONDS - self.throttled_for
        # A server that asks for 0 seconds each time is not asked without end.
        least = _jittered(2.0**self.throttled_tries)
        wait = min(least, left) if asked is None else max(asked, min(least / 10, left))
        if left < 1 or wait > left:
            return None
        self.throttled_tries += 1
        self.throttled_for += wait
        return wait


class Transport:
    """Sends requests until they have an answer, or an error that stays one.

    ``prefix`` is what all addresses begin with, up to the account. ``on_wait`` is told, in words,
    of every wait and how long it is, from whichever thread waits. ``patience`` is for how many
    seconds failures of the server and the network are retried; being throttled is waited out, since
    it lasts five minutes. ``service`` is what is asked, for messages. ``sleep`` and ``clock`` are
    for tests. Raises :class:`UsageError` for an address or a token that cannot be used.
    """

    def __init__(
        self,
        *,
        prefix: str,
        token: str | None,
        service: Service = KV,
        on_wait: Callable[[str], None] = lambda _: None,
        connect_timeout: float = 5.0,
        read_timeout: float = 30.0,
        patience: float = 30.0,
        sleep: Sleep | None = None,
        clock: Clock = time.monotonic,
    ) -> None:
        address = checked_address(prefix)
        _check_token(token)
        self._closed = threading.Event()
        self._lock = threading.Lock()
        self.requests_made = 0
        self.prefix = prefix.rstrip("/")
        self._timeouts = (connect_timeout, read_timeout)
        self._patience = patience
        self._clock = clock
        # The default sleep ends when the client is closed: Ctrl-C does not wait for five minutes.
        self.pacer = Pacer(on_wait, sleep or self._closed.wait, clock)
        self._server = "Cloudflare" if address.host == OFFICIAL_HOST else address.host
        self.faults = Faults(
            self._server,
            token,
            service,
            is_wrangler=address.is_loopback and WRANGLER_ROUTES in prefix,
        )
        self.is_local = address.is_loopback
        self._session = quiet_session(address, token, IN_FLIGHT + 2)

    def request(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        *,
        accept: Collection[int] = (),
        base: str | None = None,
        least_wait: float = 0.0,
    ) -> Answer:
        """The answer to a request that may be sent more than once: everything here is idempotent.

        Refusals with a status in ``accept`` are returned; ``base`` replaces the prefix. Between two
        tries are at least ``least_wait`` seconds. Raises :class:`StoreError`.
        """
        url = f"{base or self.prefix}{path}"
        patience = _Patience(self._patience)
        while True:
            self.pacer.wait_until_free()
            if self._closed.is_set():
                raise StoreError("the store was closed while a request waited")
            began = self._clock()
            outcome = self._attempt(method, url, body)
            if isinstance(outcome, Answer):
                if outcome.status != 413 or 413 in accept:
                    return outcome
                outcome = self.faults.too_large("a request")
            elif outcome.status in accept:
                return Answer(outcome.status, {})
            wait = patience.next_wait(outcome, self._clock() - began)
            if wait is None:
                # Raised here and not where it was caught: requests' exceptions hold the headers.
                raise outcome.error()
            wait = max(wait, least_wait)
            if outcome.kind is not Kind.THROTTLED:
                self.pacer.pause(wait, f"{self._server} {outcome.brief}: next try in {{}}")
            elif outcome.retry_after is None:
                self.pacer.hold(wait, f"{self._server} {outcome.brief}: next try in {{}}")
            else:
                self.pacer.hold(wait, f"{self._server} asks to wait {{}} ({outcome.brief})")

    def close(self) -> None:
        """End the waiting of all threads, and the connections."""
        self._closed.set()
        self._session.close()

    def _attempt(self, method: str, url: str, body: bytes | None) -> Answer | Fault:
        with self._lock:
            self.requests_made += 1
        try:
            response = self._session.request(
                method,
                url,
                # A file is sent in blocks, each with a time-out of its own; bytes would have to
                # be gone, all ten megabytes of them, within the one for connecting.
                data=None if body is None else io.BytesIO(body),
                headers=None if body is None else {"Content-Type": "application/json"},
                timeout=self._timeouts,
                allow_redirects=False,
            )
        except (OSError, ValueError, urllib3.exceptions.HTTPError) as error:
            return self.faults.of_exception(error)
        self.pacer.read(response.headers)
        return self.faults.of_response(response)


def checked_address(prefix: str) -> Address:
    """Where an API lies. Raises :class:`UsageError` for what is no address, or for plain HTTP to
    another machine: the token goes over TLS or stays here."""
    advice = f"Check cloudflare.api_base in {config_name()}."
    address = read_address(prefix)
    if address is None:
        raise UsageError("cloudflare.api_base is no http or https address of an API", advice=advice)
    if not address.is_encrypted and not address.is_loopback:
        raise UsageError(
            f"the token is sent over https or to this machine only: {address.name} is neither",
            advice=advice,
        )
    return address


def _check_token(token: str | None) -> None:
    if token is not None and not re.fullmatch(r"[!-~]+", token):
        raise UsageError(
            "the API token is empty, or holds a space, a line break or another character that"
            " no token has",
            advice="Set CLOUDFLARE_API_TOKEN again, with nothing before or after the token.",
        )


def _jittered(seconds: float) -> float:
    """Somewhat longer, so that several clients do not come back at the same moment."""
    return seconds * (1 + random.random() / 4)


def _in_words(seconds: float) -> str:
    if seconds < 10:
        return f"{seconds:.1f} s" if seconds % 1 else f"{seconds:.0f} s"
    if seconds < 119.5:
        return f"{seconds:.0f} s"
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes} min {seconds} s"
