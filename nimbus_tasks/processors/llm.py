"""A processor that asks a model for a better title and meta description of each page.

Any OpenAI-compatible chat endpoint will do. What is asked is in
:mod:`~nimbus_tasks.processors.llm_prompt`, what is taken of the answer in
:mod:`~nimbus_tasks.processors.llm_answer`, and how the endpoint is dealt with in
:mod:`~nimbus_tasks.processors.llm_client`. It proposes, as the audit does, and in the same form.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from nimbus_tasks.core.errors import ProcessorError
from nimbus_tasks.core.records import Usage
from nimbus_tasks.core.wire import count_field, mapping_field
from nimbus_tasks.processors.audit_checks import DESCRIPTION, TITLE
from nimbus_tasks.processors.audit_map import ContentMap
from nimbus_tasks.processors.llm_answer import BadAnswerError, Proposal, read_answer
from nimbus_tasks.processors.llm_client import LlmClient
from nimbus_tasks.processors.llm_prompt import MAX_TEXT, has_text, is_cut, material_of, messages
from nimbus_tasks.processors.llm_settings import LlmSettings, key_in

#: As much of a bad answer as is shown to the model that gave it.
_SHOWN_BACK = 2000
_PLACES = {"title": ("title", TITLE), "description": ("metaDescription", DESCRIPTION)}


@contextmanager
def open_llm(
    settings: LlmSettings,
    environment: Mapping[str, str],
    tell: Callable[[str], None],
    concurrency: int,
) -> Iterator[LlmProcessor]:
    """The processor, with the key of the environment; threads that wait are released at its end.

    Raises :class:`UsageError` where there is no key, or none that may be sent to that address.
    """
    client = LlmClient(
        settings, key_in(environment, settings.base_url), tell, connections=concurrency
    )
    try:
        yield LlmProcessor(settings, client)
    finally:
        client.close()


class LlmProcessor:
    """Asks about one page at a time, in as many threads as there are."""

    def __init__(self, settings: LlmSettings, client: LlmClient) -> None:
        self._settings, self._client = settings, client

    def __call__(self, page: Mapping[str, Any], progress: Callable[..., None]) -> dict[str, Any]:
        """Propose a title and a description for a stored page record.

        Returns ``changes`` (the fields that differ), their mean ``confidence``, the proposals as
        ``optimization``, and ``usage``. Raises :class:`ProcessorError`: ``no_content``,
        ``bad_answer``, ``refused``, or what the endpoint's answer makes of it.
        """
        material = material_of(page)
        if not has_text(material):
            raise ProcessorError("the page has no text to write about", code="no_content")
        cut = f" about the first {MAX_TEXT:,} characters" if is_cut(material) else ""
        progress("ask", 10, f"Asks {self._settings.model}{cut}")
        conversation = _Conversation(self._settings, self._client, material)
        try:
            proposals = conversation.proposals(progress)
        except ProcessorError as error:
            error.usage = self._told(conversation.usage, progress)
            raise
        usage = self._told(conversation.usage, progress)
        return {**self._result(page, proposals), "usage": usage}

    def _told(self, usage: Usage, progress: Callable[..., None]) -> dict[str, Any] | None:
        """What it took, which goes into the log; ``None`` where the server does not count."""
        if not any((usage.tokens_in, usage.tokens_out)):
            return None
        taken = usage._asdict()
        note = f"{usage.tokens_in:,} tokens in, {usage.tokens_out:,} out"
        progress("answer", 90, note, model=self._settings.model, **taken)
        return taken

    def _result(self, page: Mapping[str, Any], proposals: Mapping[str, Proposal]) -> dict[str, Any]:
        content = ContentMap.read(page.get("extraction"))
        findings = []
        for name, (field, selector) in _PLACES.items():
            before = content.head_text(field) or ""
            if " ".join(before.split()) != proposals[name].text:
                findings.append(finding(name, selector, before, proposals[name]))
        sure = [finding["confidence"] for finding in findings]
        return {
            "changes": len(findings),
            "confidence": round(sum(sure) / len(sure), 3) if sure else None,
            "optimization": {
                "processor": "llm",
                "model": self._settings.model,
                "findings": findings,
            },
        }


class _Conversation:
    """What is said about one page; ``usage`` sums what it has taken so far."""

    def __init__(
        self, settings: LlmSettings, client: LlmClient, material: Mapping[str, Any]
    ) -> None:
        self._settings, self._client = settings, client
        self._messages = messages(settings, material)
        self.usage: Usage = settings.usage(0, 0)

    def proposals(self, progress: Callable[..., None]) -> dict[str, Proposal]:
        """The answer; a bad one is answered once with what is wrong with it."""
        content = self._ask()
        try:
            return read_answer(content)
        except BadAnswerError as error:
            progress("ask again", 50, f"The answer cannot be used: {error}")
            self._messages += [
                {"role": "assistant", "content": content[:_SHOWN_BACK]},
                {"role": "user", "content": _correction(error)},
            ]
        content = self._ask()
        try:
            return read_answer(content)
        except BadAnswerError as error:
            told = self._client.brief(content) or "(nothing)"
            raise ProcessorError(f"{error}: {told}", code="bad_answer") from error

    def _ask(self) -> str:
        """The text of the next answer."""
        completion = self._client.chat(self._messages)
        counted = mapping_field(completion.get("usage"))
        self.usage = self._settings.usage(
            self.usage.tokens_in + (count_field(counted.get("prompt_tokens")) or 0),
            self.usage.tokens_out + (count_field(counted.get("completion_tokens")) or 0),
        )
        choices = completion["choices"]
        choice = mapping_field(choices[0] if isinstance(choices, list) else None)
        message = mapping_field(choice.get("message"))
        if message.get("refusal") or choice.get("finish_reason") == "content_filter":
            told = self._client.brief(str(message.get("refusal") or "by its content filter"))
            raise ProcessorError(f"the model refuses: {told}", code="refused")
        content = _text_in(message.get("content"))
        if choice.get("finish_reason") == "length":
            raise ProcessorError(
                f"the answer was cut off at nimbus.llm.max_tokens, {self._settings.max_tokens:,}:"
                f" {self._client.brief(content) or '(nothing)'}",
                code="bad_answer",
            )
        # A server may send back what it was sent, and what it answers is stored.
        return self._client.masked(content)


def _text_in(content: object) -> str:
    """The text of a message, which may come in parts; what a model thought is in parts of their
    own kind."""
    if isinstance(content, str):
        return content
    parts = map(mapping_field, content) if isinstance(content, list) else ()
    texts = (part.get("text") for part in parts if part.get("type") == "text")
    return "".join(text for text in texts if isinstance(text, str))


def _correction(error: BadAnswerError) -> str:
    return (
        f"That answer cannot be used: {error}. Answer again, with the one JSON object that was"
        " asked for and nothing else."
    )


def finding(name: str, selector: str, before: str, proposal: Proposal) -> dict[str, Any]:
    """A proposal in the form of the audit's findings; the Worker's ``llm.js`` has the same."""
    what = "title" if name == "title" else "meta description"
    return {
        "rule": f"llm-{name}",
        "selector": selector,
        "message": f"The model proposes {'another' if before else 'a'} {what}.",
        "before": before or None,
        "after": proposal.text,
        "confidence": proposal.confidence,
        "count": 1,
        "selectors": [selector],
    }
