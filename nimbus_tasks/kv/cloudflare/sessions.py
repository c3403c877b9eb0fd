"""A pooled session to one server that tells its key to nobody else, and time limits for answers."""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.cookiejar import DefaultCookiePolicy
from ipaddress import ip_address
from typing import Any, NamedTuple

import requests
import urllib3
from requests.adapters import HTTPAdapter
from requests.auth import AuthBase

from nimbus_tasks.versions import version_of


def read_address(prefix: str) -> Address | None:
    """Where an API lies; ``None`` for what is no address of one."""
    # What the connection is made with reads the address, so that both mean the same host.
    try:
        parts = urllib3.util.parse_url(prefix)
    except urllib3.exceptions.LocationParseError:
        parts = urllib3.util.Url()
    is_plain = re.fullmatch(r"[!-~]+", prefix) and not re.search(r"[\\@?#<>\"]", prefix)
    if not is_plain or parts.scheme not in ("http", "https") or not parts.host:
        return None
    try:
        is_loopback = ip_address(parts.host.strip("[]")).is_loopback
    except ValueError:
        is_loopback = parts.host == "localhost"
    host = parts.netloc or parts.host
    return Address(host, parts.host, parts.scheme == "https", is_loopback)


def quiet_session(address: Address, token: str | None, connections: int) -> requests.Session:
    """A pooled session that sends ``token`` as bearer, keeps no cookies, retries nothing by itself,
    and shows the token to no proxy in plain HTTP and to no debug switch."""
    session = requests.Session()
    session.auth = _Bearer(token)
    # Proxies of the environment are used, but not in plain HTTP: they would read the token.
    session.trust_env = address.is_encrypted
    session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
    session.headers["User-Agent"] = f"nimbus-tasks/{version_of()}"
    for scheme in ("https://", "http://"):
        session.mount(scheme, _Adapter(pool_maxsize=connections, max_retries=0))
    return session


class Address(NamedTuple):
    """Host and port of an API, the host's name alone, and how it is reached."""

    host: str
    name: str
    is_encrypted: bool
    is_loopback: bool


class _Bearer(AuthBase):
    """Sets the token on a request. Being there, it also keeps a .netrc from setting another."""

    def __init__(self, token: str | None) -> None:
        self._token = token

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        if self._token is not None:
            request.headers["Authorization"] = f"Bearer {self._token}"
        return request


class TimeLimit:
    """The end of what a thread reads within :func:`time_limit`."""

    def __init__(self) -> None:
        self.is_over = False
        self._socket: socket.socket | None = None

    def end(self) -> None:
        """The time is over: the connection that is read is shut down."""
        self.is_over = True
        if self._socket is not None:
            with suppress(OSError):  # whoever reads it finds it at its end
                self._socket.shutdown(socket.SHUT_RDWR)

    def watch(self, reading: socket.socket) -> None:
        """The answer comes by this socket; it is shut down at once if the time is over already."""
        self._socket = reading
        if self.is_over:
            self.end()


class _Reading(threading.local):
    limit: TimeLimit | None = None


_reading = _Reading()


@contextmanager
def time_limit(seconds: float) -> Iterator[TimeLimit]:
    """An answer that this thread reads has so many seconds as a whole, its headers too; then its
    connection is shut down. (A socket's own time-out begins anew with each byte that comes.)"""
    limit = TimeLimit()
    timer = threading.Timer(seconds, limit.end)
    timer.daemon = True
    timer.start()
    _reading.limit = limit
    try:
        yield limit
    finally:
        _reading.limit = None
        timer.cancel()


class _QuietHTTPConnection(urllib3.connection.HTTPConnection):
    debuglevel = 0  # http.client's switch prints every header, the token's too

    def getresponse(self) -> urllib3.HTTPResponse:  # type: ignore[override]  # as urllib3 has it
        if _reading.limit is not None:
            _reading.limit.watch(self.sock)
        return super().getresponse()


class _QuietHTTPSConnection(_QuietHTTPConnection, urllib3.connection.HTTPSConnection):
    pass


class _QuietHTTPPool(urllib3.HTTPConnectionPool):
    ConnectionCls = _QuietHTTPConnection


class _QuietHTTPSPool(urllib3.HTTPSConnectionPool):
    ConnectionCls = _QuietHTTPSConnection


class _Adapter(HTTPAdapter):
    """An adapter whose connections print nothing, whatever a program has switched on."""

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        _quieten(self.poolmanager)

    def proxy_manager_for(self, proxy: str, **kwargs: Any) -> Any:
        return _quieten(super().proxy_manager_for(proxy, **kwargs))


def _quieten(manager: Any) -> Any:
    manager.pool_classes_by_scheme = {"http": _QuietHTTPPool, "https": _QuietHTTPSPool}
    return manager
