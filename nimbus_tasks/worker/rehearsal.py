"""``nimbus.worker --dry-run``: what a model would be asked about the next page.

Nothing is claimed, written or sent, and no key is needed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nimbus_tasks.core import batches
from nimbus_tasks.core.errors import NotFoundError
from nimbus_tasks.core.keys import last_part, page_key
from nimbus_tasks.core.project import Project
from nimbus_tasks.core.queue import first_items
from nimbus_tasks.core.wire import load_object, text_field
from nimbus_tasks.kv.store import KeyValues, Store
from nimbus_tasks.processors.llm_prompt import Dialect, messages, request_body
from nimbus_tasks.processors.llm_settings import LlmSettings
from nimbus_tasks.ui.figures import money
from nimbus_tasks.ui.style import Style
from nimbus_tasks.ui.text import clean

#: A rule of thumb, for languages in Latin letters.
_CHARACTERS_A_TOKEN = 4


@dataclass(frozen=True)
class Rehearsal:
    """The page that would be the next, and the request about it."""

    page_id: str
    path: str | None
    address: str
    request: Mapping[str, Any]
    #: What the page would take, roughly: of the request alone, and without its answer.
    tokens: int
    cost: float | None

    def to_json(self) -> dict[str, Any]:
        """The document of ``--json``."""
        return {
            "dry_run": True,
            "page_id": self.page_id,
            "path": self.path,
            "address": self.address,
            "request": dict(self.request),
            "estimate": {"tokens_in": self.tokens, "cost": self.cost},
        }


def rehearse(
    project: Project, store: Store, settings: LlmSettings, batch: str | None = None
) -> Rehearsal:
    """What would be asked about the first page of the queue, or of those of a batch in it.

    Raises :class:`NotFoundError` where none is queued.
    """
    project_id = project.project_id
    with store.snapshot() as reading:
        batch_id = None if batch is None else batches.find(reading, project_id, batch).batch_id
        page_id, page = _next_page(reading, project_id, batch_id)
    conversation = messages(settings, page)
    # Of a structured answer the schema is read as well.
    usage = settings.usage(sum(len(m["content"]) for m in conversation) // _CHARACTERS_A_TOKEN, 0)
    return Rehearsal(
        page_id,
        text_field(page.get("source_path")),
        f"{settings.base_url}/chat/completions",
        request_body(settings, conversation, Dialect()),
        usage.tokens_in,
        usage.cost,
    )


def _next_page(
    reading: KeyValues, project_id: str, batch_id: str | None
) -> tuple[str, Mapping[str, Any]]:
    for key in first_items(reading, project_id, 1, batch_id):
        page_id = last_part(key)
        entry = reading.get(page_key(project_id, page_id))
        if entry is not None:
            return page_id, load_object(entry)
    raise NotFoundError(
        "no page is queued" + ("" if batch_id is None else f" of {batch_id}"),
        advice="Send pages with: invoke nimbus.upload",
    )


def rehearsal_lines(rehearsal: Rehearsal, style: Style) -> list[str]:
    """The conversation, for a person."""
    request = rehearsal.request
    lines = [
        f"{style.bold(clean(rehearsal.path or rehearsal.page_id))}: {clean(request['model'])}"
        f" at {clean(rehearsal.address)} would be asked",
    ]
    for message in request["messages"]:
        lines += ["", style.bold(f"── {message['role']} ──")]
        lines += [clean(line) for line in message["content"].split("\n")]
    cost = "" if rehearsal.cost is None else f", {money(rehearsal.cost)}"
    return [
        *lines,
        "",
        f"About {rehearsal.tokens:,} tokens in{cost}. Nothing was claimed, written or sent.",
    ]
