"""What servers that call themselves OpenAI-compatible really answer, each in its own form."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from nimbus_tasks.core.errors import ProcessorUnusableError
from tests.processors.llm_server import GOOD, LlmServer, Reply, in_turn, refuses, says
from tests.processors.test_llm import Steps, Time, failure, page, process, processor

#: vLLM, of a page that does not fit beside the answer that it may give.
TOO_LONG = (
    "'max_tokens' or 'max_completion_tokens' is too large: 1000. This model's maximum context"
    " length is 4096 tokens and your request has 3500 input tokens (1000 > 4096 - 3500)."
    " (parameter=max_tokens, value=1000)"
)


def document(status: int, body: object, *headers: tuple[str, str]) -> Reply:
    return Reply(status, json.dumps(body).encode(), headers)


@pytest.fixture
def server() -> Any:
    with LlmServer() as running:
        yield running


# --- the content ---


def test_a_content_in_parts_is_their_text(server: LlmServer) -> None:
    text = json.dumps(GOOD)
    server.reply = in_turn(
        says("", message={"content": [
            {"type": "thinking", "thinking": [{"type": "text", "text": "A title is wanted."}]},
            {"type": "text", "text": text[:40]},
            {"type": "text", "text": text[40:]},
        ]})
    )  # fmt: skip
    assert process(processor(server.base_url))["changes"] == 2


@pytest.mark.parametrize("content", [None, 7, {"text": "x"}, [7, {"type": "text"}], []])
def test_a_content_that_is_no_text_is_an_empty_answer(server: LlmServer, content: object) -> None:
    server.reply = in_turn(says("", message={"content": content}))
    error = failure(processor(server.base_url))
    assert (error.code, str(error)) == ("bad_answer", "it is empty: (nothing)")


def test_what_a_model_thinks_beside_its_answer_is_no_part_of_it(server: LlmServer) -> None:
    message = {"content": json.dumps(GOOD), "reasoning_content": "…", "reasoning": "…"}
    server.reply = in_turn(says("", message=message))
    assert process(processor(server.base_url))["changes"] == 2


# --- errors in every form ---


@pytest.mark.parametrize(
    "reply",
    [
        document(400, {"error": {"message": "the page is odd", "type": "x", "code": None}}),
        document(400, {"error": {"code": 400, "message": "the page is odd", "type": "x"}}),
        document(400, {"error": "the page is odd"}),
        document(400, {"object": "error", "message": "the page is odd", "param": None}),
        document(400, [{"error": {"code": 400, "message": "the page is odd", "status": "X"}}]),
        document(422, {"detail": "the page is odd"}),
        document(422, {"detail": [{"loc": ["body"], "msg": "the page is odd"}]}),
        Reply(400, b"the page is odd"),
    ],
)
def test_the_message_is_found_in_an_error_of_any_form(server: LlmServer, reply: Reply) -> None:
    server.reply = in_turn(reply)
    error = failure(processor(server.base_url))
    assert error.code == "llm_refused"
    assert re.search(r"refuses the page \(HTTP 4\d\d: .*the page is odd", str(error))
    assert '"error"' not in str(error)
    assert '"object"' not in str(error)


@pytest.mark.parametrize("body", [[], [7], {"error": []}, {"error": {"message": {}}}, "x", None])
def test_an_error_of_no_form_is_one_all_the_same(server: LlmServer, body: object) -> None:
    server.reply = in_turn(document(400, body))
    assert failure(processor(server.base_url)).code == "llm_refused"


@pytest.mark.parametrize(
    ("code", "expected"),
    [(502, "llm_failing"), (429, "rate_limited"), ("x", "llm_failing"), (None, "llm_failing")],
)
def test_an_error_in_an_answer_of_200_is_one(
    server: LlmServer, code: object, expected: str
) -> None:
    """OpenRouter, where the provider behind it has failed after it had begun to answer."""
    server.reply = in_turn(document(200, {"error": {"code": code, "message": "upstream"}}))
    error = failure(processor(server.base_url))
    assert error.code == expected
    assert "upstream" in str(error)


def test_an_answer_without_choices_is_none(server: LlmServer) -> None:
    server.reply = in_turn(document(200, {"status": "ok", "choices": []}))
    error = failure(processor(server.base_url))
    assert error.code == "bad_answer"
    assert 'no chat completion: {"status": "ok"' in str(error)
    assert len(server.requests) == 1


def test_a_server_that_speaks_no_json_stops_all_until_one_page_has_its_answer(
    server: LlmServer,
) -> None:
    """A login page, or an address without its /v1: no page would have an answer."""
    server.reply = in_turn(Reply(200, b"<html>A login page</html>"))
    with pytest.raises(ProcessorUnusableError, match="no chat completion: <html>A login"):
        process(processor(server.base_url))
    server.reply = lambda r: says(GOOD) if r.number == 1 else Reply(200, b"<html>Oops</html>")
    asked = processor(server.base_url)
    process(asked)
    assert failure(asked).code == "bad_answer"


# --- pages that one server cannot take ---


@pytest.mark.parametrize(
    "reply",
    [
        refuses(400, TOO_LONG, param="max_tokens", type="BadRequestError", code=400),
        refuses(400, "too long", param="messages", code="context_length_exceeded"),
        refuses(
            400,
            "the request exceeds the available context size, try increasing it",
            type="exceed_context_size_error",
        ),
    ],
)
def test_a_page_that_is_too_long_for_the_model_fails_alone(server: LlmServer, reply: Reply) -> None:
    server.reply = lambda r: reply if r.number == 0 else says(GOOD)
    asked = processor(server.base_url)
    assert failure(asked).code == "llm_refused"
    assert process(asked)["changes"] == 2
    assert "max_tokens" in server.requests[1].body  # nothing was learnt of it


def test_a_403_is_about_the_page_where_the_key_has_been_good(server: LlmServer) -> None:
    """Of a moderation, or a firewall that reads what a page says. Too many of them are about the
    key, after all."""
    server.reply = lambda r: says(GOOD) if r.number in (0, 3) else refuses(403, "flagged")
    asked = processor(server.base_url)
    process(asked)
    assert [failure(asked).code for _ in range(2)] == ["llm_refused"] * 2
    process(asked)
    assert [failure(asked).code for _ in range(5)] == ["llm_refused"] * 5
    with pytest.raises(ProcessorUnusableError, match="does not accept the key"):
        process(asked)


@pytest.mark.parametrize(
    "reply",
    [
        document(
            400, [{"error": {"code": 400, "message": "API key not valid. Pass a valid one."}}]
        ),
        refuses(400, "no", code="invalid_api_key"),
    ],
)
def test_a_refused_key_is_told_by_400_as_well(server: LlmServer, reply: Reply) -> None:
    server.reply = in_turn(reply)
    with pytest.raises(ProcessorUnusableError, match="does not accept the key"):
        process(processor(server.base_url))


def test_an_account_that_pays_no_more_stops_all(server: LlmServer) -> None:
    server.reply = in_turn(refuses(429, "not active", type="billing_not_active"))
    with pytest.raises(ProcessorUnusableError, match="quota"):
        process(processor(server.base_url))
    assert len(server.requests) == 1


def test_a_setting_that_is_refused_is_named(server: LlmServer) -> None:
    server.reply = in_turn(
        refuses(400, "Only the default (1) is supported.", param="temperature", code="unsupported")
    )
    with pytest.raises(ProcessorUnusableError) as caught:
        process(processor(server.base_url, temperature=0.2))
    assert "nimbus.llm.temperature" in str(caught.value.advice)


# --- forms of the answer ---


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (400, "This model does not support response format `json_schema`."),
        (400, "Invalid parameter: 'response_format' of type 'json_schema' is not supported"),
        (422, "response_format.type: Input should be 'text' or 'json_object'"),
        # llama.cpp, of versions that tell a bad request as a fault of their own
        (500, 'response_format type must be one of "text" or "json_object", but got: json_schema'),
    ],
)
def test_a_server_that_takes_no_schema_is_asked_for_json(
    server: LlmServer, status: int, message: str
) -> None:
    def reply(request: Any) -> Reply:
        is_schema = request.body.get("response_format", {}).get("type") == "json_schema"
        return refuses(status, message) if is_schema else says(GOOD)

    server.reply = reply
    asked = processor(server.base_url)
    assert process(asked)["changes"] == process(asked)["changes"] == 2
    assert len(server.requests) == 3


def test_a_model_that_misses_the_schema_is_asked_again(server: LlmServer) -> None:
    """Groq: what the model wrote does not fit; the same may go well another time."""
    told = refuses(400, "Failed to validate JSON. Please adjust", code="json_validate_failed")
    server.reply = lambda r: told if r.number == 0 else says(GOOD)
    assert process(processor(server.base_url))["changes"] == 2
    server.reply = in_turn(told)
    assert failure(processor(server.base_url)).code == "bad_answer"


# --- how long to wait ---


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("3", 3.0),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0.0),  # it has passed
        ("-5", 0.0),
        ("soon", 0.0),
        ("1e9", 0.0),
        ("9" * 5000, 0.0),
        ("", 0.0),
    ],
)
def test_retry_after_in_every_form(server: LlmServer, header: str, seconds: float) -> None:
    time = Time()
    server.reply = in_turn(refuses(429, "slow", ("Retry-After", header)), says(GOOD))
    assert process(processor(server.base_url, time))["changes"] == 2
    assert seconds <= sum(time.slept) < seconds + 2


@pytest.mark.parametrize("header", ["99999999999", "Fri, 31 Dec 9999 23:59:59 GMT"])
def test_a_pause_of_years_ends_the_work(server: LlmServer, header: str) -> None:
    server.reply = in_turn(refuses(429, "slow", ("Retry-After", header)))
    with pytest.raises(ProcessorUnusableError, match=r"asks to wait [\d,]{3,} minutes"):
        process(processor(server.base_url))


# --- what of a page is sent is told ---


def test_that_a_page_was_cut_is_in_its_log(server: LlmServer) -> None:
    steps = Steps()
    processor(server.base_url)(page("word " * 250_000), steps)
    assert steps.reported[0] == ("ask", 10, "Asks small about the first 6,000 characters")
    assert len(json.dumps(server.requests[0].body)) < 10_000
