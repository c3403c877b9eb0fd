"""``nimbus.worker --dry-run``: what a model would be asked about the next page, and what all
that are queued may take.

Nothing is claimed, written or sent, and no key is needed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from nimbus_tasks.core import batches
from nimbus_tasks.core.errors import NotFoundError
from nimbus_tasks.core.keys import last_part, page_key
from nimbus_tasks.core.pages import list_pages
from nimbus_tasks.core.project import Project
from nimbus_tasks.core.queue import item_batch, queue_items
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
from nimbus_tasks.ui.batch_view import padded
from nimbus_tasks.ui.figures import money
from nimbus_tasks.ui.style import Style
from nimbus_tasks.ui.text import clean

#: A rule of thumb, for languages in Latin letters.
_CHARACTERS_A_TOKEN = 4
#: Pages whose content is gone or spoiled may stand before the first that can be shown.
_MOST_LOOKED_AT = 100
#: Queued pages whose mean stands for all of them.
_SAMPLE = 20


@dataclass(frozen=True)
class Estimate:
    """What all queued pages may take if each is asked about once: ``tokens_in`` by the mean of some
    of them, ``tokens_out`` if each answer were as long as it may be; costs of the first, and of
    both (``None`` without prices)."""

    pages: int
    tokens_in: int
    tokens_out: int
    cost_in: float | None
    cost_most: float | None

    def to_json(self) -> dict[str, Any]:
        """As part of the document of ``--json``."""
        return {
            "pages": self.pages,
            "tokens_in": self.tokens_in,
            "tokens_out_at_most": self.tokens_out,
            "cost_in": self.cost_in,
            "cost_at_most": self.cost_most,
        }


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
    queued: Estimate
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
            "queued_estimate": self.queued.to_json(),
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
        queued = _queued(reading, project_id, batch_id)
        page_id, page = _next_page(reading, project_id, batch_id, queued)
        estimate = _estimate(reading, project_id, settings, queued)
    material = material_of(page)
    conversation = messages(settings, material)
    usage = settings.usage(_tokens(conversation), 0)
    return Rehearsal(
        page_id,
        text_field(page.get("source_path")),
        f"{settings.base_url}/chat/completions",
        request_body(settings, conversation, Dialect()),
        usage.tokens_in,
        usage.cost,
        estimate,
        _note(material),
    )


def _tokens(conversation: Sequence[Mapping[str, str]]) -> int:
    # Of a structured answer the schema is read as well.
    return sum(len(message["content"]) for message in conversation) // _CHARACTERS_A_TOKEN


def _estimate(
    reading: KeyValues, project_id: str, settings: LlmSettings, queued: Sequence[str]
) -> Estimate:
    some = queued[:: -(-len(queued) // _SAMPLE)]
    found = reading.get_many([page_key(project_id, page_id) for page_id in some])
    tokens, asked = 0, 0
    for entry in found.values():
        with suppress(UnreadableRecordError):
            material = material_of(load_object(entry))
            if has_text(material):
                asked += 1
                tokens += _tokens(messages(settings, material))
    share = len(queued) / len(some)
    tokens_in, tokens_out = round(tokens * share), round(asked * share) * settings.max_tokens
    return Estimate(
        len(queued),
        tokens_in,
        tokens_out,
        settings.usage(tokens_in, 0).cost,
        settings.usage(tokens_in, tokens_out).cost,
    )


def _note(material: Mapping[str, Any]) -> str | None:
    if not has_text(material):
        return "It has no text to write about: it would fail as no_content, and cost nothing."
    if is_cut(material):
        return f"It has more text than is sent: the first {MAX_TEXT:,} characters."
    return None


def _next_page(
    reading: KeyValues, project_id: str, batch_id: str | None, queued: Sequence[str]
) -> tuple[str, Mapping[str, Any]]:
    for page_id in queued[:_MOST_LOOKED_AT]:
        entry = reading.get(page_key(project_id, page_id))
        if entry is not None:
            with suppress(UnreadableRecordError):  # its page would fail before anybody is asked
                return page_id, load_object(entry)
    raise NotFoundError(
        "no page is queued" + ("" if batch_id is None else f" of {batch_id}"),
        advice="Send pages with: invoke nimbus.upload",
    )


def _queued(reading: KeyValues, project_id: str, batch_id: str | None) -> list[str]:
    """The pages that are queued: by their items, in their order, or by their states where nobody
    sees messages."""
    if reading.hidden_items() is None:
        items = queue_items(reading, project_id)
        return [
            last_part(info.key)
            for info in items
            if batch_id is None or item_batch(reading, info) == batch_id
        ]
    found = list_pages(reading, project_id, batch_id)
    return [page.page_id for page in found if page.status["status"] == "queued"]


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
    queued = rehearsal.queued
    most = queued.cost_most
    return [
        *lines,
        "",
        *([] if rehearsal.note is None else [rehearsal.note]),
        "Estimate by the length of the texts, one request a page:",
        padded("this page", f"about {rehearsal.tokens:,} tokens in{_cost(rehearsal.cost)}"),
        padded(
            f"{queued.pages:,} queued",
            f"about {queued.tokens_in:,} tokens in{_cost(queued.cost_in)}",
        ),
        padded("", f"at most {queued.tokens_out:,} tokens out"),
        *([] if most is None else [padded("", f"at most {money(most)} in all")]),
        "Nothing was claimed, written or sent.",
    ]


def _cost(cost: float | None) -> str:
    return "" if cost is None else f", {money(cost)}"
