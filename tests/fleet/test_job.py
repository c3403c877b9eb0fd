"""The main job by several workers at once, each on a machine of its own; and all that may happen."""

from __future__ import annotations

import time
from collections import Counter

from tests.fleet.conftest import Fleet


def test_three_workers_share_a_batch(fleet: Fleet) -> None:
    fleet.upload(90)
    assert (len(fleet.server.messages), fleet.server.most_published) == (90, 90)
    assert not [key for key in fleet.server.data if key.startswith("queue:")]
    worked = fleet.work("one", "two", "three", concurrency=2, processor=slowly)
    assert sum(one.done for one in worked) == 90
    assert fleet.counts() == {"done": 90}
    assert set(fleet.begun.values()) == {1}
    assert {status["attempts"] for status in fleet.statuses().values()} == {1}
    assert len([one for one in worked if one.done > 5]) == 3, worked
    assert fleet.server.messages == fleet.server.dead == []
    assert fleet.server.operations == Counter(write=90, read=90, delete=90)


def slowly(page: object, progress: object) -> dict[str, int]:
    time.sleep(0.02)
    return {"changes": 1}
