"""The dashboard's addresses: the page and its files, what it is sent, and what it may ask for.

``GET ""`` the page · ``GET static/…`` its files · ``GET events`` the list of batches and
``GET events?batch=ID`` one batch, pushed · ``GET batches/ID/log?page=…`` a page's log ·
``POST batches/ID/retry`` and ``POST batches/ID/cancel``, which call what the tasks call.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractContextManager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from nimbus_tasks.batch.cancel import cancel_batch
from nimbus_tasks.batch.retry import retry_pages
from nimbus_tasks.command import check_text
from nimbus_tasks.core.errors import NimbusError, NotFoundError, StoreError, UsageError
from nimbus_tasks.core.project import Project
from nimbus_tasks.core.wire import NoJsonError, strict_loads
from nimbus_tasks.dashboard.documents import NO_BATCHES, LookAtBatch, exact, look_at_all, page_log
from nimbus_tasks.dashboard.reading import Seen, StoreThread
from nimbus_tasks.dashboard.watch import Fault, State, Watch, Watches
from nimbus_tasks.kv.store import Store
from nimbus_tasks.ui.text import clean

STATIC = Path(__file__).parent / "static"
#: What it has in common with the HTML report.
COLOURS = Path(__file__).parents[1] / "ui" / "colours.css"
#: A line of nothing so often, so that either side notices that the other is gone.
HEARTBEAT_SECONDS = 15.0
#: A reason and an error code are short.
_MOST_BODY = 20_000


class Dashboard:
    """The application of one project, and what it keeps: the watches, and two threads.

    No look waits for an action, nor an action for a look at 100,000 pages.
    """

    def __init__(self, project: Project, interval: float) -> None:
        self.project = project
        self._loop: asyncio.AbstractEventLoop | None = None
        seen = Seen(project.has_store)
        self.watches = Watches(StoreThread(project, self._tell, seen), interval)
        self._acting = StoreThread(project, self._tell, seen)
        self.app = Starlette(
            routes=[
                Route("/", self._page),
                Route("/project", self._project),
                Route("/events", self._events),
                Route("/batches/{batch}/log", self._log),
                Route("/batches/{batch}/retry", self._retry, methods=["POST"]),
                Route("/batches/{batch}/cancel", self._cancel, methods=["POST"]),
                Route("/static/colours.css", self._colours),
                Mount("/static", StaticFiles(directory=STATIC)),
            ],
            exception_handlers={NimbusError: _error_answer},
        )

    async def _page(self, request: Request) -> Response:
        return FileResponse(STATIC / "index.html", media_type="text/html; charset=utf-8")

    async def _colours(self, request: Request) -> Response:
        return FileResponse(COLOURS)

    async def _project(self, request: Request) -> Response:
        return JSONResponse({"name": clean(self.project.name)[:100], "store": self.project.store})

    async def _events(self, request: Request) -> Response:
        self._loop = asyncio.get_running_loop()
        batch = request.query_params.get("batch")
        if batch is None:
            watching = self.watches.watch("", partial(look_at_all, self.project), NO_BATCHES)
        else:
            watching = self.watches.watch(batch, partial(LookAtBatch, self.project, batch))
        return StreamingResponse(_events_of(watching), media_type="text/event-stream")

    async def _log(self, request: Request) -> Response:
        page = check_text(request.query_params.get("page"), "The page") or ""
        look = page_log(self.project, request.path_params["batch"], page)
        return JSONResponse(await self._acting.run(look))

    async def _retry(self, request: Request) -> Response:
        code = await _text_of_body(request, "code")

        def retry(store: Store, batch_id: str) -> dict[str, Any]:
            return retry_pages(self.project, store, batch_id, code=code).to_json()

        return await self._act(request, retry)

    async def _cancel(self, request: Request) -> Response:
        sent = await _text_of_body(request, "reason")
        # Left empty in the page it is none, as it is where the option is left out.
        reason = check_text(sent or None, "The reason", stored=True)

        def cancel(store: Store, batch_id: str) -> dict[str, Any]:
            return cancel_batch(self.project, store, batch_id, reason=reason).to_json()

        return await self._act(request, cancel)

    async def _act(self, request: Request, do: Callable[[Store, str], dict[str, Any]]) -> Response:
        batch_id = request.path_params["batch"]

        def act(store: Store) -> dict[str, Any]:
            exact(store, self.project.project_id, batch_id)
            return do(store, batch_id)

        try:
            return JSONResponse(await self._acting.run(act))
        finally:
            self.watches.nudge()

    def _tell(self, words: str) -> None:
        """Called on a thread of a store that waits."""
        if self._loop is not None:
            with suppress(RuntimeError):  # the loop is closed: nobody is there to be told
                self._loop.call_soon_threadsafe(self.watches.note, words)


async def _events_of(watching: AbstractContextManager[Watch]) -> AsyncGenerator[str, None]:
    """Server-sent events: ``look`` has a document, ``same`` says that it still holds, ``fault`` why
    that is not known; ``bye`` that the dashboard ends. Ages are in seconds."""
    with watching as watch:
        version = changed = 0
        while True:
            try:
                state = await asyncio.wait_for(watch.after(version), HEARTBEAT_SECONDS)
            except asyncio.TimeoutError:
                yield ":\n\n"
                continue
            if state is None:
                yield _event("bye", {})
                return
            version = state.version
            if state.document is not None and state.changed != changed:
                changed = state.changed
                yield _event("look", {**_age_of(state), "document": state.document})
            if state.fault is not None:
                yield _event("fault", {**_age_of(state), **_fault(state.fault)})
            elif state.document is not None:
                yield _event("same", _age_of(state))
            else:
                yield _event("wait", {"note": state.note})


def _age_of(state: State) -> dict[str, Any]:
    age = None if state.document is None else round(time.monotonic() - state.read_at, 2)
    return {"age": age, "note": state.note}


def _fault(fault: Fault) -> dict[str, Any]:
    return {
        "message": fault.message,
        "advice": fault.advice,
        "missing": fault.is_missing,
        "retry": round(fault.retry_seconds, 1),
    }


def _event(name: str, data: dict[str, Any]) -> str:
    return f"event: {name}\ndata: {json.dumps(data, allow_nan=False)}\n\n"


async def _text_of_body(request: Request, name: str) -> str | None:
    """The text of that name in the JSON object that was sent, which may have no other. Raises
    :class:`UsageError`."""
    sent = b""
    async for part in request.stream():
        sent += part
        if len(sent) > _MOST_BODY:
            raise UsageError("that is more than an action needs to be told")
    try:
        body = strict_loads(sent.decode())
    except UnicodeDecodeError as error:
        raise UsageError(f"what was sent is not UTF-8 text, from byte {error.start}") from error
    except NoJsonError as error:
        raise UsageError(f"what was sent {error}") from error
    if not isinstance(body, dict):
        raise UsageError("what was sent is no JSON object")
    if others := body.keys() - {name}:
        raise UsageError(
            f"{min(others)[:40]!r} is nothing that this takes", advice=f"It takes {name!r} alone."
        )
    value = body.get(name)
    if value is not None and not isinstance(value, str):
        raise UsageError(
            f"{name!r} takes a text, not {json.dumps(value)[:40]}",
            advice="Put it into double quotes, or leave it out.",
        )
    return value


def _error_answer(request: Request, error: Exception) -> Response:
    assert isinstance(error, NimbusError)
    codes: dict[type[NimbusError], int] = {NotFoundError: 404, UsageError: 400, StoreError: 503}
    status = next((code for kind, code in codes.items() if isinstance(error, kind)), 500)
    advice = None if error.advice is None else clean(error.advice)
    return JSONResponse({"error": clean(error.message)[:500], "advice": advice}, status)
