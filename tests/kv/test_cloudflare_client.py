"""What the client for Workers KV sends and reads, against a server on loopback."""

from __future__ import annotations

import time
from collections.abc import Iterator
from urllib.parse import parse_qs, urlsplit

import pytest
import responses

from nimbus_tasks.core.errors import NimbusError, StoreError, UsageError
from nimbus_tasks.kv.cloudflare import chunks
from nimbus_tasks.kv.cloudflare.client import KVClient
from nimbus_tasks.kv.cloudflare.transport import Transport
from nimbus_tasks.kv.store import Entry, KeyInfo
from tests.kv.kv_server import ACCOUNT, NAMESPACE, KVServer, faults_in_turn

OFFICIAL = f"https://api.cloudflare.com/client/v4/accounts/{ACCOUNT}"
KEYS = f"{OFFICIAL}/storage/kv/namespaces/{NAMESPACE}/keys"
TOKEN = "s3cret-T0ken_x"


class Clock:
    """A clock that a sleep sets ahead, so that no test waits."""

    def __init__(self) -> None:
        self.waits: list[float] = []
        self.ahead = 0.0

    def sleep(self, seconds: float) -> None:
        self.waits.append(seconds)
        self.ahead += seconds

    def now(self) -> float:
        return time.monotonic() + self.ahead


class Client(KVClient):
    """A client on that clock, which notes what it says."""

    def __init__(
        self,
        server: KVServer | None = None,
        *,
        prefix: str = OFFICIAL,
        token: str | None = TOKEN,
        namespace_id: str = NAMESPACE,
        read_timeout: float = 30.0,
        patience: float = 30.0,
    ) -> None:
        self.clock = Clock()
        self.told: list[str] = []
        transport = Transport(
            prefix=server.prefix if server else prefix,
            token=token,
            on_wait=self.told.append,
            read_timeout=read_timeout,
            patience=patience,
            sleep=self.clock.sleep,
            clock=self.clock.now,
        )
        super().__init__(transport, namespace_id)


@pytest.fixture
def server() -> Iterator[KVServer]:
    with KVServer(token=TOKEN) as made:
        yield made
        assert made.errors == []


@pytest.fixture
def client(server: KVServer) -> Iterator[Client]:
    with Client(server) as made:
        yield made


def entries(count: int, value: str = "{}") -> list[Entry]:
    return [Entry(f"page:p:{number:05}", value, {"n": number}) for number in range(count)]


def test_what_is_written_is_read_with_its_metadata(server: KVServer, client: Client) -> None:
    odd = [
        Entry("page:p/ü ?&=#%2F+…", 'äöü "\\ \n 𝄞', {"title": "Straße"}),
        Entry("plain", "x"),
        Entry("empty", "", {}),
    ]
    client.put_many(odd)
    assert client.get_many([*(entry.key for entry in odd), "none", "plain"]) == {
        entry.key: entry for entry in odd
    }
    assert client.requests_made == len(server.requests) == 2
    client.put_many([Entry("page:p/ü ?&=#%2F+…", "again")])
    client.delete_many(["plain", "not there"])
    assert server.data == {"page:p/ü ?&=#%2F+…": ("again", None), "empty": ("", {})}


def test_requests_of_thousands_of_keys(server: KVServer, client: Client) -> None:
    client.put_many(entries(2500))
    assert client.requests_made == 3
    assert sum(len(page) for page in client.list_keys("page:p:")) == 2500
    assert client.requests_made == 6
    assert len(client.get_many(f"page:p:{number:05}" for number in range(2500))) == 2500
    assert client.requests_made == 31
    client.delete_many(entry.key for entry in entries(2500))
    assert client.requests_made == 34
    assert server.data == {}
    client.put_many([])
    client.delete_many([])
    assert client.get_many([]) == {}
    assert list(client.list_keys("page", limit=0)) == []
    assert client.requests_made == len(server.requests) == 34


def test_a_listing_is_in_byte_order_and_names_its_prefix_each_time(
    server: KVServer, client: Client
) -> None:
    keys = [f"a b/ü:{letter}{number}" for letter in "\uffee😀zé" for number in range(600)]
    server.data = {key: ("", {"k": key[-3:]}) for key in [*keys, "a b", "b"]}
    server.faults = faults_in_turn(None, "empty_page")
    pages = list(client.list_keys("a b/ü:"))
    assert [len(page) for page in pages] == [1000, 0, 1000, 400]
    assert [info for page in pages for info in page] == [
        KeyInfo(key, {"k": key[-3:]}) for key in sorted(keys, key=str.encode)
    ]
    queries = [parse_qs(urlsplit(path).query) for _, path in server.requests]
    assert {tuple(query["prefix"]) for query in queries} == {("a b/ü:",)}
    assert len({query.get("cursor", [""])[0] for query in queries}) == 4


@pytest.mark.parametrize(("limit", "asked"), [(1, "10"), (12, "12"), (1500, "1000")])
def test_a_limit_is_asked_for_as_the_api_allows_and_kept(
    server: KVServer, client: Client, limit: int, asked: str
) -> None:
    server.data = {entry.key: ("", None) for entry in entries(2000)}
    assert sum(len(page) for page in client.list_keys("page", limit=limit)) == limit
    assert parse_qs(urlsplit(server.requests[0][1]).query)["limit"] == [asked]


@pytest.mark.parametrize(("count", "requests"), [(3, 4), (20, 21), (90, 2)])
def test_metadata_that_a_bulk_read_leaves_out_is_listed(
    server: KVServer, client: Client, count: int, requests: int
) -> None:
    server.with_metadata = False
    written = [*entries(count), Entry("page:p:00000:longer", "x")]
    server.data = {entry.key: (entry.value, entry.metadata) for entry in written}
    asked = [entry.key for entry in written[:count]]
    assert client.get_many([*asked, "page:p:none"]) == {e.key: e for e in written[:count]}
    assert client.requests_made == requests


def test_bodies_are_cut_by_their_real_size(
    server: KVServer, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunks, "MAX_BODY_BYTES", 5000)
    written = [*entries(100, 'é"\n' * 40), Entry("large", "ü" * 5000)]
    client.put_many(written)
    assert server.data == {entry.key: (entry.value, entry.metadata) for entry in written}
    *others, largest = sorted(server.body_sizes)
    assert max(others) <= 5000 < largest
    assert len(server.requests) < 12


def test_an_iterator_is_read_as_chunks_are_sent(
    server: KVServer, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunks, "MAX_PAIRS", 10)

    def made() -> Iterator[Entry]:
        for number, entry in enumerate(entries(500)):
            # Four on their way, one full and one being filled.
            assert number - 10 * len(server.requests) <= 60
            yield entry

    client.put_many(made())
    assert len(server.data) == 500


def test_the_last_of_two_entries_of_a_key_counts(
    server: KVServer, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunks, "MAX_PAIRS", 2)
    keys = "abcabdea"
    twice = [Entry(key, str(number)) for number, key in enumerate(keys)]
    right = {key: (str(keys.rindex(key)), None) for key in keys}
    client.put_many(twice)
    assert server.data == right
    assert len(server.requests) == 3
    server.data = {}
    # Out of an iterator some go out twice, and the later one last, whatever befalls the earlier.
    server.faults = faults_in_turn(None, None, None, "500", "reset_before", "500")
    client.put_many(iter(twice))
    assert server.data == right


@pytest.mark.parametrize(
    "wrong",
    [
        Entry("k" * 513, "x"),
        Entry("ü" * 257, "x"),
        Entry("..", "x"),
        Entry("", "x"),
        Entry("k", "x" * (25 * 1024 * 1024 + 1)),
        Entry("k", "x", {"a": "x" * 1020}),
        Entry("k", "x", {"a": float("nan")}),
        Entry("k", "\ud800"),
        Entry("\udfff", "x"),
        Entry("k", "x", {"a": "\ud800"}),
    ],
)
def test_what_is_beyond_the_limits_is_refused_before_anything_is_sent(
    server: KVServer, client: Client, wrong: Entry
) -> None:
    with pytest.raises(StoreError):
        client.put_many([*entries(3), wrong])
    with pytest.raises(StoreError):
        client.put_many(iter([*entries(3), wrong]))
    assert server.requests == []
    assert len(client.told) == 0


def test_a_key_that_cannot_be_sent_is_an_error(server: KVServer, client: Client) -> None:
    for call in (
        lambda: client.get_many(["\ud800"]),
        lambda: client.delete_many(["\ud800"]),
        lambda: list(client.list_keys("\ud800")),
    ):
        with pytest.raises(StoreError, match="surrogate"):
            call()
    assert server.requests == []


def test_it_says_who_it_is_and_sends_the_token(server: KVServer, client: Client) -> None:
    client.check_namespace()
    assert server.seen[0]["User-Agent"].startswith("nimbus-tasks/")
    assert server.seen[0]["Authorization"] == f"Bearer {TOKEN}"


@pytest.mark.parametrize(
    "prefix",
    [
        "http://api.example.com/client/v4",
        "http://127.0.0.1.example.com/x",
        "http://localhost.example.com",
        "http://127.0.0.1@example.com/x",
        "http://example.com\\@127.0.0.1/x",
        "http://128.0.0.1:8787/x",
        "ftp://127.0.0.1/x",
        "api.cloudflare.com/client/v4",
        "https://user:pass@api.cloudflare.com/client/v4",
        "https://api.cloudflare.com/client/v4?x=1",
        "https://",
        "https://exa mple.com",
        "",
    ],
)
@responses.activate
def test_an_address_that_must_not_have_the_token_is_refused(prefix: str) -> None:
    with pytest.raises(UsageError, match="https") as caught:
        Client(prefix=prefix)
    assert "pass" not in str(caught.value)
    assert len(responses.calls) == 0


@pytest.mark.parametrize("host", ["127.0.0.1:8787", "127.9.9.9", "localhost:1", "[::1]:8787"])
def test_this_machine_may_be_asked_without_tls(host: str) -> None:
    Client(prefix=f"http://{host}/cdn-cgi/local/explorer/api").close()


@pytest.mark.parametrize("token", ["", "a b", "abc\n", "töken", "x\0"])
def test_a_token_that_is_none_is_refused_and_not_shown(token: str) -> None:
    with pytest.raises(UsageError) as caught:
        Client(token=token)
    assert not token or token not in caught.value.message
    assert caught.value.exit_code == 2


@responses.activate
def test_a_netrc_does_not_replace_the_token(
    tmp_path: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    netrc = f"{tmp_path}/netrc"
    with open(netrc, "w", encoding="utf-8") as file:  # noqa: PTH123 - a text path
        file.write("machine api.cloudflare.com login someone password else\n")
    monkeypatch.setenv("NETRC", netrc)
    responses.get(KEYS, json={"success": True, "result": [], "result_info": {"cursor": ""}})
    with Client() as client:
        client.check_namespace()
    assert responses.calls[0].request.headers["Authorization"] == f"Bearer {TOKEN}"


def test_a_proxy_is_not_asked_for_this_machine(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    client.check_namespace()


@responses.activate
def test_tokens_are_verified_where_they_are_of_cloudflare(client: Client) -> None:
    assert not client.verify_token()
    user = "https://api.cloudflare.com/client/v4/user/tokens/verify"
    responses.get(user, json={"success": True, "result": {"status": "active"}})
    with Client() as official:
        assert official.verify_token()
        invalid = {"success": False, "errors": [{"code": 1000, "message": "Invalid API Token"}]}
        responses.replace(responses.GET, user, json=invalid, status=401)
        of_account = f"{OFFICIAL}/tokens/verify"
        responses.get(of_account, json={"success": True, "result": {"status": "active"}})
        assert official.verify_token()
        responses.replace(responses.GET, of_account, json=invalid, status=401)
        with pytest.raises(StoreError, match="does not accept the API token"):
            official.verify_token()
        expired = {"success": True, "result": {"status": "expired"}}
        responses.replace(responses.GET, user, json=expired)
        with pytest.raises(StoreError, match="not active"):
            official.verify_token()


@responses.activate
@pytest.mark.parametrize(
    ("result", "info"),
    [
        (None, {"cursor": ""}),
        ({"a": 1}, {}),
        ([{"key": "a"}], {"cursor": ""}),
        ([{"name": 5}], {"cursor": ""}),
        (["a"], {"cursor": ""}),
        ([], None),
        ([], {"cursor": 7}),
    ],
)
def test_a_listing_of_another_shape_is_an_error(result: object, info: object) -> None:
    document = {"success": True, "result": result, "result_info": info}
    responses.get(KEYS, json=document)
    with Client() as client, pytest.raises(StoreError, match="not Workers KV"):
        list(client.list_keys("a"))
    assert len(responses.calls) == 1


@responses.activate
@pytest.mark.parametrize(
    "values", [None, [], {"a": 5}, {"a": {"metadata": {}}}, {"a": {"value": 1}}, {"a": []}]
)
def test_a_bulk_read_of_another_shape_is_an_error(values: object) -> None:
    responses.post(
        KEYS.replace("/keys", "/bulk/get"), json={"success": True, "result": {"values": values}}
    )
    with Client() as client, pytest.raises(NimbusError, match="not Workers KV"):
        client.get_many(["a"])
    assert len(responses.calls) == 1


def test_the_server_of_the_tests_shows_old_states_and_double_writes() -> None:
    with KVServer(stale_reads=60, strict_one_write_per_second=True) as server:
        server.data = {"old": ("1", None)}
        with Client(server) as client:
            client.put_many([Entry("old", "2"), Entry("new", "2")])
            client.put_many([Entry("old", "3")])
            client.delete_many(["old"])
            assert client.get_many(["old", "new"]) == {"old": Entry("old", "1")}
            assert list(client.list_keys("")) == [[KeyInfo("old", None)]]
        assert server.written_twice == ["old", "old"]
        assert server.data == {"new": ("2", None)}
