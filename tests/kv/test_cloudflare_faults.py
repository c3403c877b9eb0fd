"""What the client for Workers KV makes of failures: which it rides out, and what it says."""

from __future__ import annotations

import logging
import socket
import ssl
import traceback

import pytest
import requests
import responses

from nimbus_tasks.core.errors import StoreError
from nimbus_tasks.kv.cloudflare.client import KEY_INTERVAL_SECONDS
from nimbus_tasks.kv.store import Entry
from tests.kv.kv_server import Answer, Call, KVServer, faults_in_turn, seeded_faults
from tests.kv.test_cloudflare_client import KEYS, TOKEN, Client, client, entries, server

__all__ = ["client", "server"]

HTML = Answer(200, f"<html>\x1b[31mSign in, {TOKEN}</html>".encode(), "text/html; charset=utf-8")


def error_of(client: Client) -> StoreError:
    """The error of a listing; that it is one line, has advice and holds no token."""
    with pytest.raises(StoreError) as caught:
        list(client.list_keys("a"))
    error = caught.value
    assert error.exit_code == 5
    assert error.advice
    shown = "".join(traceback.format_exception(error))
    assert TOKEN not in shown + error.advice + repr(client) + "".join(client.told)
    # Requests' own exceptions hold the request, and that the header.
    assert error.__cause__ is None
    assert error.__context__ is None
    assert error.message.isprintable()
    return error


@responses.activate
@pytest.mark.parametrize(
    ("status", "code", "text", "message", "advice"),
    [
        (401, 10000, "Authentication error", "does not accept", "CLOUDFLARE_API_TOKEN"),
        (400, 10001, "Unable to authenticate request", "does not accept", "CLOUDFLARE_API_TOKEN"),
        (400, 6003, "Invalid request headers", "does not accept", "CLOUDFLARE_API_TOKEN"),
        (403, 9109, "Invalid access token", "does not accept", "CLOUDFLARE_API_TOKEN"),
        (403, 10000, "Authentication error", "not allowed", "Workers KV Storage: Edit"),
        (404, 10013, "namespace not found", "no such KV namespace", "cloudflare.namespace_id"),
        (404, 7003, "Could not route to /x", "no such account", "CLOUDFLARE_ACCOUNT_ID"),
        (400, 7003, "Could not route to /x", "no such account", "cloudflare.namespace_id"),
        (400, 10001, "limit: too small", "limit: too small [code 10001]", "nimbus.doctor"),
        (413, 10000, "too large", "too large", "25 MiB"),
        (429, 10048, "free usage limit for this operation for today", "allowance", "00:00 UTC"),
        (200, 1, f"odd {TOKEN}\n\x1b[0m" + "x" * 200, "odd *** [0mxxx", "doctor"),
    ],
)
def test_a_refusal_costs_one_request_and_says_what_to_do(
    status: int, code: int, text: str, message: str, advice: str
) -> None:
    refusal = {"success": False, "errors": [{"code": code, "message": text}], "result": None}
    responses.get(KEYS, json=refusal, status=status)
    with Client() as client:
        error = error_of(client)
        assert client.clock.waits == []
    assert message in error.message
    assert advice in (error.advice or "")
    assert len(error.message) < 250
    assert len(responses.calls) == 1


def test_a_wrong_token_and_a_wrong_namespace(server: KVServer) -> None:
    with Client(server, token="wrong") as client:
        assert "does not accept the API token" in error_of(client).message
    with Client(server, token=None) as client:
        assert "wants an API token" in error_of(client).message
    with (
        Client(server, namespace_id="../other") as client,
        pytest.raises(StoreError, match="10013"),
    ):
        client.check_namespace()
    assert len(server.requests) == 3


def test_the_page_of_a_proxy_is_one_request_and_one_clean_line(
    server: KVServer, client: Client
) -> None:
    server.faults = lambda _: HTML
    message = error_of(client).message
    assert "HTTP 200, text/html; charset=utf-8: <html> [31mSign in, ***</html>" in message
    assert len(server.requests) == 1
    server.faults = lambda _: Answer(404, b"404 Not Found", "text/plain")
    assert "text/plain: 404 Not Found" in error_of(client).message
    server.faults = lambda _: Answer(200, b"[1]")
    assert "not its API's" in error_of(client).message
    assert len(server.requests) == 3


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_redirect_is_not_followed(server: KVServer, client: Client, status: int) -> None:
    with KVServer() as elsewhere:
        place = (("Location", f"{elsewhere.prefix}/x"),)
        server.faults = lambda _: Answer(status, b"", "text/html", place)
        assert "the API never redirects" in error_of(client).message
        assert elsewhere.requests == []
    assert len(server.requests) == 1


def test_a_broken_tls_is_not_retried(server: KVServer) -> None:
    with Client(prefix=server.prefix.replace("http:", "https:")) as client:
        error = error_of(client)
        assert "no secure connection" in error.message
        assert "REQUESTS_CA_BUNDLE" in (error.advice or "")
        assert client.requests_made == 1


def test_nobody_there_is_tried_a_few_times_within_the_patience() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        prefix = f"http://127.0.0.1:{free.getsockname()[1]}/x"
    with Client(prefix=prefix) as client:
        assert "cannot be reached: connection refused" in error_of(client).message
        assert 3 <= client.requests_made <= 10
        assert 5 < sum(client.clock.waits) <= 30
        assert len(client.told) == client.requests_made - 1
        assert "cannot be reached (connection refused): next try in 0." in client.told[0]


def test_a_name_that_is_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*args: object, **options: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with Client() as client:
        assert "Cloudflare cannot be reached: its name is not known" in error_of(client).message
        assert 3 <= client.requests_made <= 10


@responses.activate
@pytest.mark.parametrize(
    ("fault", "message", "least"),
    [
        (requests.ConnectTimeout(), "cannot be reached: it does not answer", 3),
        (requests.exceptions.ProxyError(f"http://u:{TOKEN}@proxy"), "the proxy does not let", 3),
        (requests.exceptions.ContentDecodingError(), "cut off", 3),
        (requests.exceptions.InvalidURL(TOKEN), "not possible (InvalidURL)", 1),
        (OSError(f"no certificates at {TOKEN}"), "not possible (OSError)", 1),
        (requests.exceptions.SSLError(ssl.SSLEOFError(8, "EOF")), "broke again and again", 3),
    ],
)
def test_exceptions_become_errors_without_their_text(
    fault: Exception, message: str, least: int
) -> None:
    responses.get(KEYS, body=fault)
    with Client() as client:
        assert message in error_of(client).message
        assert least <= client.requests_made <= 10
        assert len(client.clock.waits) == client.requests_made - 1


def test_a_certificate_of_nobody_is_named() -> None:
    reason = ssl.SSLCertVerificationError(1, "self-signed")
    reason.verify_message = "self-signed certificate"
    with Client() as client, responses.RequestsMock() as mocked:
        mocked.get(KEYS, body=requests.exceptions.SSLError(reason))
        assert "Cloudflare: self-signed certificate" in error_of(client).message
        assert client.requests_made == 1


def test_a_server_that_does_not_answer_is_tried_again(server: KVServer) -> None:
    server.latency = 1.0
    with Client(server, read_timeout=0.4, patience=0) as client:
        assert "did not answer in time" in error_of(client).message
        assert client.requests_made == 3
        server.latency = 0
        client.check_namespace()


PASSING = ("429", "429:0", "429:1", "500", "502", "503", "520", "524")

LOST = ("reset_before", "reset_after", "cut", "short")


@pytest.mark.parametrize("fault", [*PASSING, *LOST])
def test_what_passes_is_tried_again_and_told(server: KVServer, client: Client, fault: str) -> None:
    server.faults = faults_in_turn(fault, fault)
    client.put_many(entries(3))
    assert len(server.data) == 3
    assert len(server.requests) == client.requests_made == 3
    assert len(client.clock.waits) == len(client.told) == 2
    assert all(" s" in told for told in client.told)


@pytest.mark.parametrize("fault", ["500", "reset_before", "cut"])
def test_what_does_not_pass_ends_within_the_patience(
    server: KVServer, client: Client, fault: str
) -> None:
    server.faults = lambda _: fault
    error_of(client)
    assert 3 <= len(server.requests) <= 10
    assert 5 < sum(client.clock.waits) <= 30


@pytest.mark.parametrize("fault", ["partial", "413_partial", "413"])
def test_what_a_bulk_call_did_not_take_is_sent_again(
    server: KVServer, client: Client, fault: str
) -> None:
    written = entries(1100, "x" * 100)
    server.faults = faults_in_turn(fault, fault)
    client.put_many(written)
    assert server.data == {entry.key: (entry.value, entry.metadata) for entry in written}
    before = len(server.requests)
    server.faults = lambda call: fault if call.number < before + 2 else None
    client.delete_many(entry.key for entry in written)
    assert server.data == {}


def test_too_large_bodies_are_halved_down_to_a_single_pair(
    server: KVServer, client: Client
) -> None:
    server.faults = lambda call: "413" if server.body_sizes[call.number] > 3000 else None
    client.put_many(entries(100, "x" * 200))
    assert len(server.data) == 100
    with pytest.raises(StoreError, match="to write large as too large") as caught:
        client.put_many([*entries(3), Entry("large", "x" * 3000)])
    assert caught.value.advice
    assert client.clock.waits == []


def test_answers_that_are_too_large_are_asked_for_in_parts(
    server: KVServer, client: Client
) -> None:
    client.put_many(entries(100))
    server.faults = lambda call: "413" if server.body_sizes[call.number] > 600 else None
    assert len(client.get_many(entry.key for entry in entries(100))) == 100
    server.faults = lambda _: "413"
    with pytest.raises(StoreError, match="too large"):
        client.get_many(["page:p:00001"])


@responses.activate
def test_keys_that_are_never_taken_are_an_error() -> None:
    result = {"successful_key_count": 0, "unsuccessful_keys": ["a"]}
    url = KEYS.replace("/keys", "/bulk")
    responses.put(url, json={"success": True, "result": result})
    with Client() as client, pytest.raises(StoreError, match="refusing 1 keys"):
        client.put_many([Entry("a", "1")])
    assert client.clock.waits == [KEY_INTERVAL_SECONDS * n for n in (1, 2, 4, 8)]
    assert client.told[0] == "1 of 1 keys were not taken: next try in 1.1 s"


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("with_metadata", [True, False])
def test_a_bad_day_loses_nothing(server: KVServer, seed: int, with_metadata: bool) -> None:
    server.faults, server.with_metadata = seeded_faults(seed, rate=0.2), with_metadata
    written = {entry.key: entry for entry in entries(6000)}
    with Client(server) as client:
        client.put_many(iter(written.values()))
        assert server.data == {key: (e.value, e.metadata) for key, e in written.items()}
        listed = [info for page in client.list_keys("page:") for info in page]
        assert [info.key for info in listed] == sorted(written)
        assert client.get_many(written) == written
        client.delete_many(list(written)[::2])
        assert sorted(server.data) == sorted(written)[1::2]
        assert client.requests_made == len(server.requests)


def test_the_token_is_in_no_log(
    server: KVServer, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    plan: list[str | Answer | None] = ["429:1", "500", "reset_before", "short", None, HTML]
    server.faults = faults_in_turn(*plan)
    with Client(server) as client:
        client.check_namespace()
        error_of(client)
    assert len(server.requests) == len(plan)
    assert "storage/kv" in caplog.text
    captured = capsys.readouterr()
    assert TOKEN not in caplog.text + captured.out + captured.err


def test_an_error_of_one_chunk_ends_the_call(server: KVServer, client: Client) -> None:
    def plan(call: Call) -> Answer | None:
        return HTML if call.number >= 2 else None

    server.faults = plan
    with pytest.raises(StoreError, match="not its API's"):
        client.put_many(iter(entries(50_000)))
    sent = len(server.requests)
    assert sent <= 8
    server.faults = None
    client.check_namespace()
    assert len(server.requests) == sent + 1
