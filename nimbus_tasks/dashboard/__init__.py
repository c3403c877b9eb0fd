"""``nimbus.dashboard``: all batches, and one of them live, in the browser.

It serves this machine alone, at an address that holds a secret: see
:mod:`nimbus_tasks.dashboard.guard`. Pages are told of changes as they are seen, and what several of
them show is read once: :mod:`nimbus_tasks.dashboard.watch`. Retry and cancel are the tasks' own.
"""

from __future__ import annotations

from importlib.util import find_spec
from threading import Thread

from invoke.context import Context

from nimbus_tasks.command import command, project_root, setting
from nimbus_tasks.core.errors import UsageError
from nimbus_tasks.core.project import Project, load_project
from nimbus_tasks.ui.console import Console
from nimbus_tasks.ui.text import clean

#: Seconds between two looks, where a look costs nothing and where it costs requests.
DEFAULT_INTERVAL, DEFAULT_REMOTE_INTERVAL = 1.0, 5.0


def default_interval(project: Project) -> float:
    """Seconds between two looks at the project's store."""
    return DEFAULT_INTERVAL if project.store == "sqlite" else DEFAULT_REMOTE_INTERVAL


def check_installed() -> None:
    """Raises :class:`UsageError` where the packages are missing that only the dashboard needs."""
    missing = [name for name in ("starlette", "uvicorn") if find_spec(name) is None]
    if missing:
        raise UsageError(
            f"the dashboard needs {' and '.join(missing)}, which this Python does not have",
            advice="Run: pip install 'nimbus-tasks[dashboard]'",
        )


@command(
    help={
        "port": "the port to serve on (default: the last one, or a free one; 0: a free one)",
        "interval": f"seconds between two looks (default: {DEFAULT_INTERVAL:g};"
        f" {DEFAULT_REMOTE_INTERVAL:g} on Cloudflare)",
        "no-open": "print the address, and open no browser",
    }
)
def dashboard(
    c: Context, port: str | None = None, interval: str | None = None, no_open: bool = False
) -> None:
    """Watch batches live in the browser.

    It serves this machine alone, until Ctrl-C.

    Example: invoke nimbus.dashboard --port=8080
    """
    console = Console()
    wanted = setting(c, "dashboard", "port", port)
    every = setting(c, "dashboard", "interval", interval)
    project = load_project(project_root(c))
    check_installed()
    from nimbus_tasks.dashboard import app, serving
    from nimbus_tasks.ui.browser import open_in_browser

    shown = app.Dashboard(project, every or default_interval(project))
    listening, address = serving.open_port(project, wanted)
    console.say(
        f"{console.style.sign('batch')} The dashboard of {clean(project.name)}: {address.url}",
        "   whoever has this address can watch, retry and cancel · Ctrl-C ends it",
    )
    if not no_open:
        # Not waited for: it may not return before it is closed, and it asks who serves.
        Thread(target=open_in_browser, args=(address.url_for_once,), daemon=True).start()
    serving.serve(shown, listening, address)
    if console.is_terminal:
        console.say("")  # behind the terminal's ^C
    console.say("The dashboard has ended; batches and workers go on.")
