"""The client of a queue: limits kept, answers read, refusals told."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from nimbus_tasks.core.errors import StoreError
from nimbus_tasks.kv.cloudflare.faults import QUEUES
from nimbus_tasks.kv.cloudflare.queues import QueueClient
from nimbus_tasks.kv.cloudflare.transport import Transport
from tests.fleet.conftest import TOKEN
from tests.kv.kv_server import Answer, faults_in_turn
from tests.kv.queue_server import QueueServer


@pytest.fixture
def client(server: QueueServer) -> Iterator[QueueClient]:
    transport = Transport(prefix=server.prefix, token=TOKEN, service=QUEUES, sleep=lambda _: None)
    opened = QueueClient(transport, server.queue)
    yield opened
    opened.close()


def test_messages_are_published_a_hundred_at_a_time(
    client: QueueClient, server: QueueServer
) -> None:
    client.publish({"page_id": str(number)} for number in range(250))
    assert client.requests_made == 3
    assert len({message.body["page_id"] for message in server.messages}) == 250
    client.publish([])
    assert client.requests_made == 3


def test_large_messages_keep_to_the_size_of_a_request(
    client: QueueClient, server: QueueServer
) -> None:
    client.publish([{"text": "x" * 60_000}] * 7)
    assert len(server.messages) == 7
    assert max(server.body_sizes) < 256_000


def test_bodies_come_as_they_were_sent(client: QueueClient, server: QueueServer) -> None:
    client.publish([{"a": ["é", 1]}])
    server.publish('{"b": 2}', "no JSON", kind="text")
    server.publish('{"c": 3}', kind="bytes")
    pulled = client.pull(100, 30)
    bodies = [message.body for message in pulled.messages]
    assert sorted(bodies, key=str) == [None, {"a": ["é", 1]}, {"b": 2}, {"c": 3}]
    assert pulled.backlog == client.backlog() == 4


def test_leases_end_by_acknowledgement_or_by_giving_back(
    client: QueueClient, server: QueueServer
) -> None:
    server.publish(*range(150))
    messages = [*client.pull(1000, 30).messages, *client.pull(100, 30).messages]
    assert len(messages) == 150
    leases = [message.lease_id for message in messages]
    client.settle(leases[:120], dict.fromkeys(leases[120:], 0))
    assert len(client.pull(100, 30).messages) == 30
    client.settle(leases, {})  # those that are over already are no error
    assert server.operations["delete"] == 150


@pytest.mark.parametrize("fault", ["429:0", "500", "reset_before", "reset_after", "cut"])
def test_what_passes_is_tried_again(client: QueueClient, server: QueueServer, fault: str) -> None:
    server.faults = faults_in_turn(fault)
    client.publish([1])
    assert len(server.messages) in (1, 2)
    assert client.requests_made == 2


@pytest.mark.parametrize(
    "body",
    [
        b'{"success": true, "result": {"messages": [{"body": "x"}]}}',
        b'{"success": true, "result": {"messages": 5}}',
        b'{"success": true, "result": {"messages": ["x"]}}',
        b"[]",
    ],
)
def test_an_answer_of_another_form_is_told(
    client: QueueClient, server: QueueServer, body: bytes
) -> None:
    server.faults = faults_in_turn(Answer(200, body))
    with pytest.raises(StoreError, match=r"a form that is not|not its API's"):
        client.pull(1, 30)


def test_a_refusal_says_what_to_do(server: QueueServer) -> None:
    for queue, token, said in (
        ("f" * 32, TOKEN, "cloudflare.queue_id"),
        (server.queue, "another", "Queues: Edit"),
        (server.queue, None, "Queues: Edit"),
    ):
        client = QueueClient(Transport(prefix=server.prefix, token=token, service=QUEUES), queue)
        with pytest.raises(StoreError) as error:
            client.backlog()
        client.close()
        assert said in str(error.value.advice)


def test_a_queue_says_who_reads_it(client: QueueClient, server: QueueServer) -> None:
    assert client.describe() == ("nimbus", True, 100)
    server.can_be_pulled = False
    assert client.describe() == ("nimbus", False, None)
    with pytest.raises(StoreError, match="hands out no messages"):
        client.pull(1, 30)
