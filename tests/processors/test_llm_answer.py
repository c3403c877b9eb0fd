"""What is taken of a model's answer: two plain texts that fit a head, or nothing."""

from __future__ import annotations

import json
from typing import Any

import pytest

from nimbus_tasks.processors.llm_answer import BadAnswerError, read_answer
from tests.processors.llm_server import GOOD


def answer(**fields: Any) -> str:
    return json.dumps({**GOOD, **fields})


@pytest.mark.parametrize(
    "content",
    [
        json.dumps(GOOD),
        f"```json\n{json.dumps(GOOD, indent=1)}\n```",
        f"\n```\n{json.dumps(GOOD)}\n```\n",
        f"<think>A title {{}} is wanted.\n</think>\n{json.dumps(GOOD)}",
    ],
)
def test_an_answer_is_read_in_each_form_that_servers_give_it(content: str) -> None:
    proposals = read_answer(content)
    assert proposals["title"].text == GOOD["title"]
    assert proposals["description"].confidence == GOOD["description_confidence"]


@pytest.mark.parametrize(
    ("content", "wrong"),
    [
        ("", "is empty"),
        ("Here is your title: Pots", "not one JSON object"),
        (f"Sure!\n```json\n{json.dumps(GOOD)}\n```", "not one JSON object"),
        (json.dumps(GOOD)[:-9], "not one JSON object"),
        (json.dumps(GOOD) * 2, "not one JSON object"),
        (json.dumps([GOOD]), "no object"),
        ("null", "no object"),
        ("{" * 300, "not one JSON object"),
        (answer()[:-1] + ', "title": NaN}', "not one JSON object"),
        (json.dumps({"title": "Pots"}), "lacks title_confidence, description"),
        (answer(canonical="https://elsewhere.example"), "fields other than"),
        (answer(title=["Pots"]), "title is not a text"),
        (answer(title=" \n"), "title is empty"),
        (answer(title="x" * 66), "title has 66 characters"),
        (answer(title="陶" * 33), "title has 66 characters"),
        (answer(description="x" * 161), "description has 161 characters"),
        (answer(title="<b>Pots</b>"), "not plain text"),
        (answer(title="Pots &lt;script&gt;"), "not plain text"),
        (answer(title="Pots > pans"), "not plain text"),
        (answer(description="Buy at http://evil.example now"), "not plain text"),
        (answer(description="Buy at www.evil.example now"), "not plain text"),
        (answer(description="[Pots](/x)"), "not plain text"),
        (answer(description="**Pots**"), "not plain text"),
        (answer(title="Pots {{ secret }}"), "not plain text"),
        (answer(title="Pots\u0007"), "control characters"),
        (answer(title="\u202eStop"), "control characters"),
        (answer(title="Pots\u001b[2J"), "control characters"),
        (answer(title="Pots\U000e0041"), "control characters"),
        (answer(title="\ud800"), "not one JSON object"),
        (answer(title_confidence="high"), "title_confidence is not a number"),
        (answer(title_confidence=True), "title_confidence is not a number"),
        (answer(description_confidence=1.1), "description_confidence is not a number"),
        (answer(description_confidence=-0.1), "description_confidence is not a number"),
        ("x" * 20_001, "longer than 20,000"),
    ],
)
def test_anything_else_is_refused_with_what_is_wrong(content: str, wrong: str) -> None:
    with pytest.raises(BadAnswerError, match=wrong):
        read_answer(content)


def test_white_space_is_made_one_space_and_the_longest_texts_fit() -> None:
    proposals = read_answer(answer(title=" Pots\n and\t pans ", description="x" * 160))
    assert proposals["title"].text == "Pots and pans"
    assert len(proposals["description"].text) == 160
    assert read_answer(answer(title="x" * 65))["title"].text == "x" * 65
    assert read_answer(answer(title="می\u200cخواهم"))["title"].text == "می\u200cخواهم"


def test_thoughts_are_taken_from_before_the_answer_alone() -> None:
    """Their first mark may have been the prompt's."""
    assert read_answer(f"A title is wanted.</think>\n{json.dumps(GOOD)}")
    with pytest.raises(BadAnswerError, match="not plain text"):
        read_answer(answer(title="Pots <think>and</think> pans"))
