"""An upload that is killed and run again ends as if it had not been killed."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest

from nimbus_tasks.batch.verify import verify_batch
from nimbus_tasks.core.project import Project
from nimbus_tasks.kv.store import Store
from nimbus_tasks.upload import sending
from tests.factories import a_map, upload, write_map, write_maps
from tests.kills.conftest import (
    Kills,
    Places,
    check_verified,
    maps_of,
    only_batch,
    records,
    rounds,
    rows,
    timeless,
)
from tests.kills.driver import Driver

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="the driver forks")


def make_fresh(driver: Driver, root: Path) -> None:
    """Nothing is stored yet."""
    write_maps(maps_of(root), 100)


def make_older(driver: Driver, root: Path) -> None:
    """An earlier batch has all pages; some are done, some failed, and most of them wait."""
    write_maps(maps_of(root), 100)
    worker = ("nimbus.worker", "--processor=processors:every_fifth_fails")
    assert driver.run(root, "nimbus.upload", "--limit=30").code == 0
    assert driver.run(root, *worker).code == 0
    assert driver.run(root, "nimbus.upload", f"--batch={only_batch(root)}").code == 0


def make_changed(driver: Driver, root: Path) -> None:
    """An earlier batch has all pages, and some maps have changed since."""
    make_older(driver, root)
    for at in range(0, 100, 2):
        path = f"dist/page-{at:03d}.html"
        write_map(maps_of(root), f"page-{at:03d}.json", a_map(path, head={"title": "Another"}))


UPLOADS: dict[str, tuple[Callable[[Driver, Path], None], tuple[str, ...], int]] = {
    "fresh": (make_fresh, (), 100),
    "older": (make_older, (), 100),
    "changed": (make_changed, ("--changed",), 50),
}


@pytest.mark.parametrize("kind", UPLOADS)
@rounds(5)
def test_an_upload_is_killed_and_run_again_as_it_was_typed(
    driver: Driver, places: Places, rng: random.Random, kind: str, number: int, size: int
) -> None:
    make, options, count = UPLOADS[kind]
    start = places.made(kind, lambda root: make(driver, root))
    command = ("nimbus.upload", *options)
    clean, within = places.unhurt(start, *command, CHUNK_PAGES=20)
    wanted, before = timeless(rows(clean)), set(records(start, "batch"))
    kills = Kills(driver, rng, size)
    while kills:
        root = places.copy(start)
        while kills and not has_ended(root, before):
            kills.run(root, *command, within=within, CHUNK_PAGES=20)
            if rng.random() < 0.5:
                break
        if not has_ended(root, before):
            new = set(records(root, "batch")) - before
            stored = sum(s["batch_id"] in new for s in records(root, "status").values())
            again = driver.document(root, *command, CHUNK_PAGES=20)
            assert again["uploaded"] == count - stored
            assert again["skipped"] == 100 - again["uploaded"]
            assert again["page_count"] == count
        assert timeless(rows(root)) == wanted
        check_verified(driver, root)
        shutil.rmtree(root)


def test_an_upload_that_goes_on_leaves_no_older_batch_behind_with_an_old_record(
    project: Project, store: Store, maps: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It had taken all of its pages, and was killed before its last write."""

    def killed(*_: object) -> NoReturn:
        raise KeyboardInterrupt

    older = upload(project, store, maps)
    with monkeypatch.context() as patch:
        patch.setattr(sending, "_close_batch", killed)
        with pytest.raises(KeyboardInterrupt):
            upload(project, store, maps)
    assert upload(project, store, maps).resumed
    assert verify_batch(project, store, older.batch_id).findings == []


def has_ended(root: Path, before: set[str]) -> bool:
    """Whether the upload has written all: what was killed then was the rest of the process. (Run
    again it would be a second upload, which makes a second batch.)"""
    new = [batch for batch_id, batch in records(root, "batch").items() if batch_id not in before]
    return any(batch["status"] != "uploading" for batch in new)
