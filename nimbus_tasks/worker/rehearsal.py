"""``nimbus.worker --dry-run``: what a model would be asked about the next page.

Nothing is claimed, written or sent, and no key is needed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from nimbus_tasks.core import batches
from nimbus_tasks.core.errors import NotFoundError
from nimbus_tasks.core.keys import last_part, page_key
from nimbus_tasks.core.pages import list_pages
from nimbus_tasks.core.project import Project
from nimbus_tasks.core.queue import first_items
from nimbus_tasks.core.wire import UnreadableRecordError, load_object, text_field
from nimbus_tasks.kv.store import KeyValues, Store
from nimbus_tasks.processors.llm_prompt import (
    MAX_TEXT,
    Dialect,
    has_text,
    is_cut,
    material_of,
    messages,
    request_body,
)
from nimbus_tasks.processors.llm_settings import LlmSettings
from nimbus_tasks.ui.figures import money
from nimbus_tasks.ui.style import Style
from nimbus_tasks.ui.text import clean

#: A rule of thumb, for languages in Latin letters.
_CHARACTERS_A_TOKEN = 4
#: Pages whose content is gone or spoiled may stand before the first that can be shown.
_MOST_LOOKED_AT = 100


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
    #: What is to be known of the page before it is asked about.
    note: str | None = None

    def to_json(self) -> dict[str, Any]:
        """The document of ``--json``."""
        return {
            "dry_run": True,
            "page_id": self.page_id,
            "path": self.path,
            "address": self.address,
            "request": dict(self.request),
            "estimate": {"tokens_in": self.tokens, "cost": self.cost},
            "note": self.note,
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
    material = material_of(page)
    conversation = messages(settings, material)
    # Of a structured answer the schema is read as well.
    usage = settings.usage(sum(len(m["content"]) for m in conversation) // _CHARACTERS_A_TOKEN, 0)
    return Rehearsal(
        page_id,
        text_field(page.get("source_path")),
        f"{settings.base_url}/chat/completions",
        request_body(settings, conversation, Dialect()),
        usage.tokens_in,
        usage.cost,
        _note(material),
    )


def _note(material: Mapping[str, Any]) -> str | None:
    if not has_text(material):
        return "It has no text to write about: it would fail as no_content, and cost nothing."
    if is_cut(material):
        return f"It has more text than is sent: the first {MAX_TEXT:,} characters."
    return None


def _next_page(
    reading: KeyValues, project_id: str, batch_id: str | None
) -> tuple[str, Mapping[str, Any]]:
    for page_id in _queued(reading, project_id, batch_id):
        entry = reading.get(page_key(project_id, page_id))
        if entry is not None:
            with suppress(UnreadableRecordError):  # its page would fail before anybody is asked
                return page_id, load_object(entry)
    raise NotFoundError(
        "no page is queued" + ("" if batch_id is None else f" of {batch_id}"),
        advice="Send pages with: invoke nimbus.upload",
    )


def _queued(reading: KeyValues, project_id: str, batch_id: str | None) -> Iterator[str]:
    """The pages that are queued: the first by their items, or some where nobody sees messages."""
    if reading.hidden_items() is None:
        for key in first_items(reading, project_id, _MOST_LOOKED_AT, batch_id):
            yield last_part(key)
        return
    for page in list_pages(reading, project_id, batch_id):
        if page.status["status"] == "queued":
            yield page.page_id


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
        *([] if rehearsal.note is None else [rehearsal.note]),
        f"About {rehearsal.tokens:,} tokens in{cost}. Nothing was claimed, written or sent.",
    ]
