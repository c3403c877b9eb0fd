"""Who may speak to the dashboard: whoever knows its address, and nobody by way of another page.

The address holds a random token, in its path. A cookie would be less: it knows no ports, so that
any other server on this machine would be sent it. With the token in the path a request carries no
authority of its own that a foreign page could borrow, and the other checks are second locks:

- ``Host`` is this machine's, with our port: a name that was rebound to 127.0.0.1 is refused.
- ``Origin`` and ``Sec-Fetch-Site``, where there are any, are ours.
- What changes something is a POST with both, and a header that no form and no plain cross-site
  request can have.
- A browser is started with a key that leads to the address once: other accounts of the machine may
  see its command line.
- The answers tell the browser to run nothing but our own files, to make no HTML of text, to be in
  nobody's frame, to keep nothing, and to tell no other site where it came from.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

#: A header that a page of another origin cannot send without being asked for leave first.
ACTION_HEADER = "x-nimbus-action"
_READING = frozenset(("GET", "HEAD"))
_CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
HEADERS: Mapping[str, str] = {
    "content-security-policy": _CONTENT_SECURITY_POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
}


def new_token() -> str:
    """The secret part of an address: 256 random bits."""
    return secrets.token_urlsafe(32)


class Guard:
    """The application, for those who may ask it: under ``/{token}/`` of our own port alone."""

    def __init__(self, app: ASGIApp, *, token: str, port: int, key: str = "") -> None:
        self._app = app
        self._token = token.encode()
        self._key = key.encode()
        self._hosts = {f"127.0.0.1:{port}", f"localhost:{port}"}
        if port == 80:
            self._hosts |= {"127.0.0.1", "localhost"}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":  # no lifespan and no web sockets
            return

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
            await send(message)

        answer = self._opened(scope) or self._refusal(scope) or self._redirect(scope)
        if answer is None:
            token = scope["path"].split("/")[1]
            await self._app({**scope, "root_path": f"/{token}"}, receive, send_guarded)
        else:
            await answer(scope, receive, send_guarded)

    def _opened(self, scope: Scope) -> Response | None:
        """The way from the address that a browser was started with, once."""
        if not (self._key and _is_given(scope, self._key) and self._is_host(scope)):
            return None
        self._key = b""
        return RedirectResponse(f"/{self._token.decode()}/", status_code=303)

    def _is_host(self, scope: Scope) -> bool:
        given = Headers(scope=scope).getlist("host")
        return len(given) == 1 and given[0] in self._hosts

    def _refusal(self, scope: Scope) -> Response | None:
        headers = Headers(scope=scope)
        if not self._is_host(scope):
            return _refused("This is not the address that the dashboard answers to.")
        if not _is_given(scope, self._token):
            return _refused("Open the address that invoke nimbus.dashboard has printed.")
        if not _comes_from_ours(scope["method"], headers):
            return _refused("Another page may not ask the dashboard for anything.")
        if scope["method"] not in _READING and ACTION_HEADER not in headers:
            return _refused("An action needs the dashboard's own page.")
        return None

    def _redirect(self, scope: Scope) -> Response | None:
        """The page's own addresses are relative: they need the slash."""
        return RedirectResponse(f"{scope['path']}/") if scope["path"].count("/") == 1 else None


def _is_given(scope: Scope, secret: bytes) -> bool:
    """Whether the path begins with the secret; how long that takes tells nothing of it."""
    given = scope["path"].split("/")[1].encode("utf-8", "replace")
    return secrets.compare_digest(given, secret)


def _comes_from_ours(method: str, headers: Headers) -> bool:
    ours = f"http://{headers['host']}"
    origin, site = headers.get("origin"), headers.get("sec-fetch-site")
    if method not in _READING:
        return origin == ours and site in (None, "same-origin")
    if origin not in (None, ours):
        return False
    # An address that a person follows from another page, a chat say, is typed as well as that.
    is_followed = (headers.get("sec-fetch-mode"), headers.get("sec-fetch-dest")) == (
        "navigate",
        "document",
    )
    return site in (None, "same-origin", "none") or is_followed


def _refused(why: str) -> Response:
    return PlainTextResponse(why + "\n", status_code=403)
