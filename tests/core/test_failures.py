"""Failures in groups: what differs from page to page does not split them, what matters does."""

from __future__ import annotations

import random
import time
from typing import Any

import pytest

from nimbus_tasks.core.failures import group_failures, looks_transient, normalised
from nimbus_tasks.core.pages import PageInfo


def failed(number: int, error: str | None, code: str | None = "broken", **more: Any) -> PageInfo:
    status = {"status": "failed", "batch_id": "b", "error": error, "code": code, **more}
    return PageInfo(f"page_{number:012x}", status)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("took longer than 60 seconds", "took longer than 2.5 seconds"),
        ("no such key: 'title'", "no such key: 'head'"),
        ('cannot read "a b"', 'cannot read "c"'),
        (r'no object: "[\"no\"]"', r'no object: "{\"a\": \"b\"}"'),
        ("GET https://a.example/x?y=1 failed", "GET http://b.example/ failed"),
        ("cannot do dist/a/b.html", "cannot do dist/page-004.html"),
        ("open /home/ann/x.json: no", "open /srv/y.json: no"),
        (r"open C:\a\b: no", r"open D:\c: no"),
        ("at 2026-11-24T08:13:02.123Z", "at 2025-01-01 10:00:00"),
        ("request 0x7f3a gone", "request 0x1 gone"),
        (
            "trace 123e4567-e89b-12d3-a456-426614174000",
            "trace 00000000-0000-0000-0000-0000000000ab",
        ),
        ("request req_8Fk2mQ91xYz0aa4 refused", "request req_011CVbT2k9QaaFz4 refused"),
        ("commit 3f2a9bc1", "commit a9bc13f2d"),
        ("429 Too Many Requests (request id: 3kd8fj)", "429 Too Many Requests (request id: a1b2)"),
        ("slow down (req_abc9de)", "slow down (req_Zkabcdefg)"),
        ("gpt-4o-mini is busy: ab12cd34", "gpt-4o-mini is busy: 9x8y7z6w5v"),
        ("try again in 6m0s", "try again in 20ms"),
        ("line 3,\n  column 4", "line 30, column 5"),
    ],
)
def test_what_differs_from_page_to_page_is_a_placeholder(one: str, other: str) -> None:
    assert normalised(one) == normalised(other)
    assert "<" in normalised(one)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("429 Too Many Requests", "503 Service Unavailable"),
        ("HTTP 404", "HTTP 500"),
        ("answered with status 403", "answered with status 404"),
        ("PROCESSOR_URL answered 422", "PROCESSOR_URL answered 500"),
        ("exit code 1", "exit code 2"),
        ("expected text/html", "expected text/plain"),
        ("can't read it", "can't write it"),
        ("no such model: gpt-4o", "no such model: gpt-4x"),
        ("the id is missing", "the id is taken"),
    ],
)
def test_what_tells_errors_apart_stays(one: str, other: str) -> None:
    assert normalised(one) != normalised(other)


def test_groups_are_by_code_and_message_the_biggest_first() -> None:
    pages = [failed(n, f"cannot do dist/{n}.html") for n in range(3)]
    pages += [failed(9, "cannot do dist/9.html", code="other_code")]
    pages += [failed(n, f"refused after {n} s", code=None) for n in range(20, 27)]
    pages += [PageInfo("page_done", {"status": "done", "batch_id": "b"})]
    groups = group_failures(pages)
    assert [(g.code, g.message, g.count) for g in groups] == [
        ("unknown", "refused after <n> s", 7),
        ("broken", "cannot do <path>", 3),
        ("other_code", "cannot do dist/9.html", 1),
    ]
    assert [page.page_id for page in groups[1].examples] == [p.page_id for p in pages[:3]]
    assert len(groups[0].examples) == 5


def test_what_all_pages_of_a_group_say_is_said_as_it_is() -> None:
    said = "took longer than 15 s, not a dict with 'changes'"
    (same,) = group_failures([failed(1, said), failed(2, said)])
    assert same.message == said
    (differing,) = group_failures([failed(1, said), failed(2, said.replace("15", "5"))])
    assert differing.message == "took longer than <n> s, not a dict with <text>"


def test_a_message_that_a_listing_has_cut_is_of_the_same_group() -> None:
    start = "the model answered with something that is no JSON object and has no field at all: "
    whole, cut = start + "x" * 150, start + "xx…"
    assert len(group_failures([failed(1, whole), failed(2, cut)])) == 1


def test_pages_of_a_later_batch_are_counted_apart() -> None:
    (group,) = group_failures([failed(1, "no"), failed(2, "no", superseded_by="batch_2")])
    assert (group.count, group.superseded) == (2, 1)


def test_more_groups_than_asked_for_are_counted_as_the_rest() -> None:
    pages = [failed(n, word) for n, word in enumerate(["a"] * 3 + ["b"] * 2 + ["c", "d"])]
    groups = group_failures(pages, most=2)
    assert [(g.message, g.count, g.is_rest) for g in groups[:2]] == [
        ("a", 3, False),
        ("b", 2, False),
    ]
    assert (groups[2].count, groups[2].is_rest, len(groups)) == (2, True, 3)


def test_one_kind_above_those_asked_for_has_its_name() -> None:
    pages = [failed(n, word) for n, word in enumerate(["a"] * 3 + ["b"] * 2 + ["c"])]
    groups = group_failures(pages, most=2)
    assert [(g.message, g.count, g.is_rest) for g in groups[2:]] == [("c", 1, False)]


def words(number: int) -> str:
    """A message of its own for each number, without a figure in it."""
    return "".join(chr(ord("a") + int(digit)) for digit in str(number))


def test_errors_without_end_that_all_differ_lose_no_page_and_hide_no_group() -> None:
    pages = [failed(n, words(n)) for n in range(5_000)]
    pages += [failed(n, "the one that matters") for n in range(2_000)]
    random.Random(7).shuffle(pages)
    groups = group_failures(pages, most=5)
    assert sum(group.count for group in groups) == 7_000
    assert (groups[0].message, groups[0].count) == ("the one that matters", 2_000)


@pytest.mark.parametrize(
    "piece", ["a", "'", '"', "1", "a1", "a/", "/", "://", "a-", "0x", " ", "a.", "{", "ab://"]
)
def test_megabytes_of_anything_are_read_in_no_time(piece: str) -> None:
    message = piece * (2_000_000 // len(piece))
    before = time.thread_time()  # whatever else the machine does
    groups = group_failures(failed(n, message) for n in range(200))
    assert time.thread_time() - before < 10
    assert (len(groups), groups[0].count) == (1, 200)
    assert len(groups[0].message) <= 200


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("timeout", "took longer than 60 seconds"),
        ("TimeoutError", ""),
        ("RuntimeError", "429 Too Many Requests: slow down"),
        ("rate_limited", "no"),
        ("http_503", "no"),
        ("HTTPError", "HTTP Error 502: Bad Gateway"),
        ("ConnectionResetError", "[Errno 104] Connection reset by peer"),
        ("command_failed", "exit code 1: connect ECONNREFUSED 127.0.0.1:80"),
        ("ReadTimeout", "HTTPSConnectionPool(host='x', port=443): Read timed out."),
        ("refused", "answered with status 500"),
    ],
)
def test_what_comes_and_goes_looks_transient(code: str, message: str) -> None:
    assert looks_transient(code, message)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("ValueError", "took longer than it should: timeout"),
        ("KeyError", "'title'"),
        ("broken", "cannot do dist/429.html"),
        ("broken", "found 503 links"),
        ("ConfigError", "timeout must be above 0"),
        ("rate_limited", "insufficient_quota: see your plan and billing details"),
        ("http_404", "status 404"),
        ("worker_lost", "3 workers vanished: connection reset"),
        ("unknown", ""),
    ],
)
def test_what_stays_does_not(code: str, message: str) -> None:
    assert not looks_transient(code, message)
