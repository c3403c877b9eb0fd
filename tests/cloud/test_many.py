"""As many pages as a project may have, beside what Cloudflare lets one invocation do and hold."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

from tests.factories import REPOSITORY
from tests.wrangler.installed import MODULES, need_wrangler

WORKER = REPOSITORY / "nimbus_tasks" / "cloud" / "worker"
#: Of a Worker's 128 MB, some for its code, its buffers and what is about to be collected.
HEAP_MB = 64


def ticks_on(
    pages: int, *, batches: int = 1, ticks: int = 1, operations: int = 1000, is_open: bool = True
) -> Any:
    """What ticks say, what each spends, and the snapshots written, in a heap of :data:`HEAP_MB`."""
    need_wrangler()
    script = Path(__file__).with_name("many_under_test.js")
    heap = (f"--max-old-space-size={HEAP_MB}", "--max-semi-space-size=4")
    numbers = map(str, (pages, batches, ticks, operations, int(is_open)))
    ran = subprocess.run(
        [MODULES / ".bin" / "node", *heap, script, WORKER, *numbers],
        capture_output=True,
        text=True,
        encoding="utf-8",
        env={**os.environ, "NODE_NO_WARNINGS": "1"},
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    return json.loads(ran.stdout)


def test_a_batch_of_100_000_pages_fits_into_one_tick() -> None:
    """Census, 5,000 messages and the snapshot of every page: in memory and in operations."""
    done = ticks_on(100_000)
    [tick] = done["said"]
    assert (tick["sent"], tick["snapshots"]) == (5000, 1)
    assert tick["spent"] <= 100 + 70  # a listing for each 1,000 pages, a call for 100 messages
    [snapshot] = done["written"].values()
    assert snapshot["counts"]["done"] == snapshot["states"] == 50_000


def test_what_one_tick_cannot_do_the_next_goes_on_with() -> None:
    """600,000 pages are more than the operations of a tick: the second sends and sums up."""
    first, second = (done := ticks_on(600_000, batches=5, ticks=2))["said"]
    assert "sent" not in first
    assert second["sent"] == 10_000  # as much as two ticks would
    assert max(first["spent"], second["spent"]) <= 1000
    # There is no memory for the states of their pages: the counts go into the metadata.
    assert {snapshot["counts"]["done"] for snapshot in done["written"].values()} == {60_000}
    assert len(done["written"]) == 5


def test_batches_share_the_memory_that_there_is() -> None:
    """Of 160,000 pages in two batches, one is summed up with the states of its pages, one waits."""
    done = ticks_on(160_000, batches=2, ticks=2, is_open=False)
    assert [tick["snapshots"] for tick in done["said"]] == [1, 1]
    written = done["written"].values()
    assert sorted(snapshot["counts"]["done"] for snapshot in written) == [0, 80_000]
    assert sorted(snapshot["states"] for snapshot in written) == [0, 80_000]


def test_a_batch_that_there_is_no_memory_for_ends() -> None:
    """150,000 pages: the end is in its metadata, and then nothing is listed any more."""
    done = ticks_on(150_000, ticks=2, is_open=False)
    [snapshot] = done["written"].values()
    assert snapshot["status"] == "cancelled"
    assert (snapshot["counts"]["done"], snapshot["counts"]["cancelled"]) == (75_000, 75_000)
    assert [tick.get("idle") for tick in done["said"]] == [None, True]


def test_the_free_plan_comes_round_as_well() -> None:
    said = ticks_on(40_000, ticks=3, operations=50)["said"]
    assert [bool(tick.get("sent")) for tick in said] == [False, False, True]
    assert max(tick["spent"] for tick in said) <= 50
