"""Where the dashboard is served: a port of this machine, and an address with a secret.

The address is remembered in ``.nimbus/dashboard.json``, for its owner alone, so that the pages that
are open find a dashboard that was ended and started again. It is taken up as a whole or not at all:
where the port has gone to somebody else, who may have been told the secret, or others can read the
file, there is a new one.
"""

from __future__ import annotations

import errno
import json
import os
import re
import socket
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import uvicorn
from starlette.types import ASGIApp

from nimbus_tasks.core.errors import UsageError, cannot_write
from nimbus_tasks.core.project import Project
from nimbus_tasks.dashboard.app import Dashboard
from nimbus_tasks.dashboard.guard import Guard, new_token

HOST = "127.0.0.1"
_TOKEN = re.compile(r"[A-Za-z0-9_-]{43}")
#: An address is taken up again for so long after the dashboard was started.
_REMEMBERED_SECONDS = 86_400.0
#: Pages get their last word, and an action that is under way its end.
_GRACE_SECONDS = 5


@dataclass(frozen=True)
class Address:
    """The port and the secret token. ``key`` is another secret, which leads to the address once."""

    port: int
    token: str
    key: str = field(default_factory=new_token, compare=False)

    @property
    def url(self) -> str:
        """What a person is told."""
        return f"http://{HOST}:{self.port}/{self.token}/"

    @property
    def url_for_once(self) -> str:
        """What a browser is started with."""
        return f"http://{HOST}:{self.port}/{self.key}"


def open_port(project: Project, port: int | None) -> tuple[socket.socket, Address]:
    """A socket that listens on this machine alone, and its address: that of last time if it has the
    same port. ``port`` 0 is any free port; ``None`` the last one if it is free, or else any. Raises
    :class:`UsageError` for a port that cannot be used."""
    last = _last_address(project)
    if port is None and last is not None:
        with suppress(OSError):
            return _listen(last.port), _remember(project, last)
    try:
        listening = _listen(port or 0)
    except OSError as error:
        raise UsageError(
            f"port {port} is in use"
            if error.errno == errno.EADDRINUSE
            else f"port {port} cannot be used: {error.strerror}",
            advice="Give another --port, or leave it out for a free one.",
        ) from error
    taken = listening.getsockname()[1]
    is_last = last is not None and last.port == taken
    address = last if last is not None and is_last else Address(taken, new_token())
    return listening, _remember(project, address)


def _listen(port: int) -> socket.socket:
    return socket.create_server((HOST, port))


def _address_path(project: Project) -> Path:
    return project.folder / "dashboard.json"


def _last_address(project: Project) -> Address | None:
    """The address of last time, unless it is old, damaged, or others could have read it."""
    path = _address_path(project)
    try:
        kept_as = path.stat()
        is_private = os.name != "posix" or not kept_as.st_mode & 0o077
        if not (is_private and 0 <= time.time() - kept_as.st_mtime <= _REMEMBERED_SECONDS):
            return None
        kept = json.loads(path.read_text(encoding="utf-8"))
        port, token = kept["port"], kept["token"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    is_sound = isinstance(port, int) and 0 < port < 65536 and isinstance(token, str)
    return Address(port, token) if is_sound and _TOKEN.fullmatch(token) else None


def _remember(project: Project, address: Address) -> Address:
    path = _address_path(project)
    try:
        path.unlink(missing_ok=True)  # with whatever permissions somebody has given it
        made = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(made, "w", encoding="utf-8") as file:
            json.dump({"port": address.port, "token": address.token}, file)
    except OSError as error:
        raise cannot_write(path, error) from error
    return address


class _Server(uvicorn.Server):
    """One that tells its pages goodbye before it waits for them."""

    def __init__(self, config: uvicorn.Config, dashboard: Dashboard) -> None:
        super().__init__(config)
        self._dashboard = dashboard

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._dashboard.watches.end()
        await super().shutdown(sockets)


def serve(dashboard: Dashboard, listening: socket.socket, address: Address) -> None:
    """Serve until a signal ends it; Ctrl-C is its regular end, and no error."""
    with suppress(KeyboardInterrupt):
        make_server(dashboard, address).run([listening])


def make_server(dashboard: Dashboard, address: Address) -> uvicorn.Server:
    """A server of the dashboard at that address, to be given the socket that listens there."""
    guarded: ASGIApp = Guard(dashboard.app, token=address.token, port=address.port, key=address.key)
    config = uvicorn.Config(
        guarded,
        lifespan="off",
        ws="none",
        http="h11",
        loop="asyncio",
        log_config=None,  # a log of requests would be a log of the secret
        log_level="error",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=_GRACE_SECONDS,
    )
    return _Server(config, dashboard)
