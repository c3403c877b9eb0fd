"""When the client for Workers KV waits: what a server asks for, and what is left of a budget."""

from __future__ import annotations

import threading
import time
from email.utils import formatdate

import pytest

from nimbus_tasks.core.errors import StoreError
from nimbus_tasks.kv.cloudflare.client import KVClient
from nimbus_tasks.kv.cloudflare.transport import Transport
from tests.kv.kv_server import Answer, KVServer, faults_in_turn
from tests.kv.test_cloudflare_client import TOKEN, Client, client, entries, server
from tests.kv.test_cloudflare_faults import error_of

__all__ = ["client", "server"]


@pytest.mark.parametrize(
    ("header", "least", "most"),
    [
        ("12", 12, 12),
        (" 300 ", 300, 300),
        ("date +40", 20, 40),
        ("date -40", 0, 2),
        ("0", 0, 2),
        ("-5", 1, 2),
        ("soon", 1, 2),
        ("9" * 30, 330, 330),
        ("9" * 5000, 1, 330),
    ],
)
def test_retry_after_is_obeyed_as_far_as_it_makes_sense(
    server: KVServer, client: Client, header: str, least: float, most: float
) -> None:
    if header.startswith("date"):
        header = formatdate(time.time() + int(header.split()[1]), usegmt=True)
    asked = Answer(429, b"{}", headers=(("Retry-After", header),))
    server.faults = faults_in_turn(asked)
    client.put_many(entries(1))
    (waited,) = client.clock.waits
    assert least - 0.5 <= waited <= most
    if header == "12":
        assert client.told == ["127.0.0.1:… asks".replace("…", server.url.rpartition(":")[2])
                               + " to wait 12 s (too many requests)"]  # fmt: skip


def test_a_server_under_maintenance_may_ask_to_wait_too(server: KVServer, client: Client) -> None:
    server.faults = faults_in_turn(Answer(503, b"", headers=(("Retry-After", "200"),)))
    client.check_namespace()
    assert 199 < sum(client.clock.waits) <= 200
    assert "asks to wait 3 min 20 s (answers 503)" in client.told[0]


def test_the_five_minute_block_is_waited_out(server: KVServer, client: Client) -> None:
    server.faults = lambda _: "429" if client.clock.ahead < 300 else None
    client.check_namespace()
    assert 300 <= sum(client.clock.waits) <= 331


@pytest.mark.parametrize("fault", ["429", "429:0", "429:1", "429:300"])
def test_a_longer_block_is_an_error(server: KVServer, client: Client, fault: str) -> None:
    server.faults = lambda _: fault
    error = error_of(client)
    assert "too many requests" in error.message
    assert "five minutes" in (error.advice or "")
    assert len(server.requests) < 30
    assert sum(client.clock.waits) <= 331


def test_one_thread_that_is_throttled_holds_all(server: KVServer, client: Client) -> None:
    server.faults = faults_in_turn("429:60", "429:60", "429:60", "429:60")
    client.put_many(entries(8000))
    assert len(server.data) == 8000
    assert len(client.told) <= 4
    assert len(server.requests) <= 12


def ratelimit(remaining: int, seconds: int, policy: str = "") -> dict[str, str]:
    told = {"Ratelimit": f'"default";r={remaining};t={seconds}'}
    return told | ({"Ratelimit-Policy": policy} if policy else {})


def test_a_caller_is_told_to_stretch_its_interval_as_the_budget_shrinks(
    server: KVServer, client: Client
) -> None:
    def pause(headers: dict[str, str]) -> float:
        server.headers = lambda _: headers
        client.check_namespace()
        return client.pause_seconds()

    assert client.pause_seconds() == 0
    assert pause({}) == 0
    assert pause(ratelimit(1100, 290)) == 0
    assert pause(ratelimit(301, 290)) == 0
    few, fewer = pause(ratelimit(200, 200)), pause(ratelimit(50, 200))
    assert 1 < few < fewer < 60
    assert pause(ratelimit(50, 0)) == 0
    assert pause({"Ratelimit": "nonsense"}) == 0
    assert pause(ratelimit(90, 60, '"default";q=100;w=60')) == 0
    assert pause(ratelimit(20, 60, '"default";q=100;w=60')) > 0
    scarce = ratelimit(1000, 200)["Ratelimit"] + ', "burst";r=20;t=60'
    assert pause({"Ratelimit": scarce, "Ratelimit-Policy": '"burst";q=100;w=60'}) > 0
    assert client.clock.waits == []
    client.clock.ahead += 61
    assert client.pause_seconds() == 0


def test_the_next_request_waits_for_the_new_budget(server: KVServer, client: Client) -> None:
    server.headers = lambda call: ratelimit(2, 30) if call.number == 0 else {}
    client.check_namespace()
    assert client.told == ["the account's requests are nearly used up: waiting 30 s for new ones"]
    client.check_namespace()
    client.check_namespace()
    (waited,) = client.clock.waits
    assert 25 < waited <= 30


def test_closing_ends_a_wait(server: KVServer) -> None:
    server.faults = lambda _: "429:300"
    waiting = threading.Event()
    transport = Transport(prefix=server.prefix, token=TOKEN, on_wait=lambda _: waiting.set())
    client = KVClient(transport, server.namespace)
    raised: list[Exception] = []

    def write() -> None:
        try:
            client.put_many(entries(1))
        except StoreError as error:
            raised.append(error)

    thread = threading.Thread(target=write)
    thread.start()
    assert waiting.wait(60)
    client.close()
    thread.join(60)
    assert "closed" in str(raised[0])
