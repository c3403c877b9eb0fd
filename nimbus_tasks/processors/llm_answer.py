"""Reading what a model answers: two short plain texts with a confidence each, or nothing.

A model can be wrong, and the page that it read can have told it to be. So the answer must be the
one JSON object that was asked for, with these fields and no other, and a text of it must be fit to
stand in a head: on one line, within its length, without markup, address or template mark.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nimbus_tasks.core.wire import NoJsonError, number_field, strict_loads
from nimbus_tasks.processors.audit_map import width_of
from nimbus_tasks.processors.audit_rules import DESCRIPTION_MAX, TEMPLATE_MARKS, TITLE_LIMIT
from nimbus_tasks.processors.llm_prompt import FIELDS

#: A title somewhat longer than was asked for may still fit on a results page, as in the audit.
LONGEST = {"title": TITLE_LIMIT, "description": DESCRIPTION_MAX}
#: More than any answer that is one.
_MAX_ANSWER = 20_000

#: What reasoning models of some servers put before the answer; its first mark may be the prompt's.
_THOUGHTS = re.compile(r"\A[^{]*?</think>|\A\s*<think>.*?</think>", re.DOTALL)
_FENCED = re.compile(r"```[a-zA-Z]*\s*\n(.*?)\n?\s*```", re.DOTALL)
_MARKUP = re.compile(r"[<>`]|&#?\w{1,31};|\*\*|__|\]\(|://|\bwww\.|javascript:", re.IGNORECASE)


class BadAnswerError(ValueError):
    """What is wrong with an answer, in words that can be said to the model: none are its own."""


@dataclass(frozen=True)
class Proposal:
    """A text for a field of the head, and how sure (0 to 1) the model is of it."""

    text: str
    confidence: float


def read_answer(content: str) -> dict[str, Proposal]:
    """The proposals by field (``title``, ``description``). Raises :class:`BadAnswerError`."""
    answer = _object(content)
    missing = [name for name in FIELDS if name not in answer]
    if missing:
        raise BadAnswerError(f"it lacks {', '.join(missing)}")
    if len(answer) > len(FIELDS):
        raise BadAnswerError(f"it has fields other than {', '.join(FIELDS)}")
    return {name: _proposal(answer, name) for name in LONGEST}


def _object(content: str) -> Mapping[str, Any]:
    if len(content) > _MAX_ANSWER:
        raise BadAnswerError(f"it is longer than {_MAX_ANSWER:,} characters")
    text = _THOUGHTS.sub("", content, count=1).strip()
    if fenced := _FENCED.fullmatch(text):
        text = fenced[1].strip()
    if not text:
        raise BadAnswerError("it is empty")
    try:
        answer = strict_loads(text)
    except NoJsonError:
        raise BadAnswerError("it is not one JSON object and nothing else") from None
    if not isinstance(answer, dict):
        raise BadAnswerError("it is JSON, but no object")
    return answer


def _proposal(answer: Mapping[str, Any], name: str) -> Proposal:
    confidence = number_field(answer[f"{name}_confidence"])
    if confidence is None or not 0 <= confidence <= 1:
        raise BadAnswerError(f"{name}_confidence is not a number from 0 to 1")
    return Proposal(_checked_text(answer[name], name), round(float(confidence), 4))


def _checked_text(value: object, name: str) -> str:
    if not isinstance(value, str):
        raise BadAnswerError(f"{name} is not a text")
    if any(_is_unfit(character) for character in value):
        raise BadAnswerError(f"{name} has control characters or invisible ones in it")
    text = " ".join(value.split())
    if not text:
        raise BadAnswerError(f"{name} is empty")
    if _MARKUP.search(text) or any(mark in text for mark in TEMPLATE_MARKS):
        raise BadAnswerError(f"{name} is not plain text: it has markup or an address in it")
    if width_of(text) > LONGEST[name]:
        raise BadAnswerError(
            f"{name} has {width_of(text)} characters, more than the {LONGEST[name]} allowed"
        )
    return text


def _is_unfit(character: str) -> bool:
    if character in " \t\n\r\u200c\u200d":  # joiners are part of the spelling of several languages
        return False
    return unicodedata.category(character) in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")
