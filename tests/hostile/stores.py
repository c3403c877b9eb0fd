"""Projects with a batch in which somebody else has written: on both stores, with both queues."""

from __future__ import annotations

import copy
import json
import random
import shutil
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

from nimbus_tasks.core.clock import iso_after
from nimbus_tasks.core.keys import page_id_for
from nimbus_tasks.core.project import Project, load_project, new_project, save_project
from nimbus_tasks.kv.cloudflare.journal import Journal
from nimbus_tasks.kv.cloudflare.store import CloudflareStore
from nimbus_tasks.kv.store import MAX_METADATA_BYTES, Store
from tests.factories import a_map, upload, work, write_map
from tests.hostile import draws
from tests.kv.memory_kv import Cloud, MemoryClient

PROJECT = "proj_0123456789ab"
PATHS = [f"dist/page-{number:03d}.html" for number in range(10)]
PAGES = [page_id_for(PROJECT, path) for path in PATHS]
LAYOUTS = ("sqlite/keys", "sqlite/document", "cloudflare/keys", "cloudflare/document")
KINDS = ("status", "page", "logs", "superseded", "batch", "queue", "foreign")
#: Ends of keys that are no id: somebody else's.
SHAPES = ("", "a:b", "settings:v1", "\x1b[35mpink", "é", "x" * 140, "..", "05:2026:settings:x", ":")


class EagerStore(CloudflareStore):
    """It neither waits between two writes of a key nor for reads that lag: here nothing does."""

    lag_seconds = 0.0
    write_interval = 0.0


def open_memory(cloud: Cloud, folder: Path) -> Store:
    """A store on Workers KV in memory."""
    client: Any = MemoryClient(cloud)
    journal = Journal(folder / "recent-memory.sqlite3")
    return EagerStore(client, journal, paced=False, sleep=lambda _: None)


@contextmanager
def on(cloud: Cloud | None) -> Iterator[None]:
    """Commands find this KV in the place of Cloudflare's."""

    def opened(_config: Any, _environment: Any, folder: Path, _wait: Any, **_: Any) -> Store:
        assert cloud
        return open_memory(cloud, folder)

    with mock.patch("nimbus_tasks.kv.cloudflare.open_cloudflare", opened):
        yield


@dataclass(frozen=True)
class World:
    """A project, and its KV where it is on one."""

    root: Path
    cloud: Cloud | None

    @property
    def project(self) -> Project:
        return load_project(self.root)

    def copied(self, root: Path) -> World:
        """Another one just like it."""
        shutil.copytree(self.root, root)
        cloud = None
        if self.cloud is not None:
            cloud = Cloud(time.time)
            cloud._history = copy.deepcopy(self.cloud._history)
        return World(root, cloud)

    def rows(self) -> dict[str, tuple[bytes, bytes | None]]:
        """Value and metadata by key, as they are stored; keys that are no text are left out."""
        if self.cloud is not None:
            return {
                key: (version[0].encode("utf-8", "surrogatepass"), version[1].encode())
                for key, history in self.cloud._history.items()
                if (version := history[-1][1]) is not None
            }
        with closing(sqlite3.connect(self.project.store_path)) as db:
            found = db.execute(
                "SELECT key, CAST(value AS BLOB), CAST(metadata AS BLOB)"
                " FROM keys JOIN vals USING (key)"
            )
            return {key: (value, metadata) for key, value, metadata in found}

    def write(self, key: str, value: bytes, metadata: bytes | None, *, as_blob: bool) -> None:
        """Write as somebody who knows no rules; KV itself has texts and objects alone."""
        if self.cloud is not None:
            try:
                small = json.loads(metadata or b"null")
                if not isinstance(small, dict) or len(metadata or b"") > MAX_METADATA_BYTES:
                    small = None
            except (ValueError, RecursionError):
                small = None
            version = (value.decode("utf-8", "replace"), json.dumps(small))
            self.cloud._history[key] = [(time.time() - 1000, version)]
            return
        cast = "?" if as_blob else "CAST(? AS TEXT)"
        with closing(sqlite3.connect(self.project.store_path)) as db:
            db.execute(f"INSERT OR REPLACE INTO keys VALUES (?, {cast})", (key, metadata))
            db.execute(f"INSERT OR REPLACE INTO vals VALUES (?, {cast})", (key, value))
            db.commit()


def made(root: Path, layout: str) -> World:
    """A batch of ten pages that are queued, and an older one that has ended."""
    kind, queue = layout.split("/")
    root.mkdir()
    project = new_project(root, name="test", project_id=PROJECT)
    cloud = None
    if kind == "cloudflare":
        cloud = Cloud(time.time)
        project = replace(project, store=kind, cloudflare={"namespace_id": "a", "account_id": "b"})
    project = replace(project, queue=queue)
    save_project(project)
    folder = project.folder / "maps"
    for number, path in enumerate(PATHS):
        write_map(folder, f"page-{number:03d}.json", a_map(path))
    write_map(project.folder / "old", "old.json", a_map("dist/old.html"))
    write_map(project.folder / "old", "page-000.json", a_map(PATHS[0]))
    with on(cloud), project.open_store(create=True) as store:
        upload(project, store, project.folder / "old")
        work(project, store)
        upload(project, store, folder)
    shutil.rmtree(project.folder / "old")
    for left in project.folder.glob("recent-*"):  # what it remembers would hide what others wrote
        left.unlink()
    if cloud is not None:
        for history in cloud._history.values():
            history[:] = [(time.time() - 1000, history[-1][1])]
    return World(root, cloud)


@dataclass(frozen=True)
class Spoiled:
    """What was done to a store: pages that are ``poisoned``, and records that are ``foreign``."""

    poisoned: frozenset[str]
    foreign: dict[str, tuple[bytes, bytes | None]]
    batch: bool


def spoil(world: World, rng: random.Random) -> Spoiled:
    """Write some records wrongly, and some that are none of ours."""
    rows = world.rows()
    poisoned: set[str] = set()
    foreign: dict[str, tuple[bytes, bytes | None]] = {}
    batch = False
    for _ in range(rng.randint(1, 3)):
        kind = rng.choice(KINDS)
        key, page_id = _key(rng, kind, rows)
        sound = rows.get(key) or _example(rng, kind, rows)
        value, metadata = sound
        if rng.random() < 0.8:
            value = draws.raw(rng, _parsed(sound[0]))
        if rng.random() < 0.7:
            small = _parsed(sound[1] or b"null")
            metadata = None if rng.random() < 0.2 else draws.raw(rng, small)
        world.write(key, value, metadata, as_blob=rng.random() < 0.1)
        if kind == "foreign":
            foreign[key] = world.rows()[key]
        if page_id is not None:
            poisoned.add(page_id)
        batch = batch or kind == "batch"
    return Spoiled(frozenset(poisoned), foreign, batch)


def _key(rng: random.Random, kind: str, rows: Any) -> tuple[str, str | None]:
    """The key to write, and the page that it is about if the page suffers by it."""
    page_id = rng.choice(PAGES)
    batches = [key for key in rows if key.startswith("batch:")]
    if kind == "foreign":
        prefix = rng.choice(("status", "page", "logs", "superseded", "batch", "queue", "other"))
        return f"{prefix}:{rng.choice((PROJECT, 'proj_another'))}:{rng.choice(SHAPES)}", None
    if kind == "batch":
        return rng.choice([*batches, f"batch:{PROJECT}:batch_x"]), None
    if kind == "queue":
        items = [key for key in rows if key.startswith("queue:")]
        return rng.choice([*items, f"queue:{PROJECT}:00:2026:{page_id}"]), None
    if kind == "superseded":
        return f"superseded:{PROJECT}:{rng.choice(batches).rpartition(':')[2]}:{page_id}", None
    if rng.random() < 0.1:
        return f"{kind}:{PROJECT}:page_unknown", None
    return f"{kind}:{PROJECT}:{page_id}", page_id


def _example(rng: random.Random, kind: str, rows: Any) -> tuple[bytes, bytes | None]:
    prefix = {"superseded": "status", "foreign": rng.choice(("status", "batch", "page"))}
    found = [row for key, row in rows.items() if key.startswith(prefix.get(kind, kind))]
    if kind == "logs" or not found:
        entries = [{"timestamp": iso_after(-9), "level": "info", "step": "x", "message": "y"}]
        return json.dumps({"page_id": PAGES[0], "entries": entries}).encode(), b'{"entries":1}'
    example: tuple[bytes, bytes | None] = rng.choice(found)
    return example


def _parsed(text: bytes) -> dict[str, Any] | None:
    try:
        parsed = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(parsed, dict):
        return None
    if parsed.get("status") == "queued" and "queued" in parsed:
        parsed["processing"] = {"started": iso_after(-99), "current_step": "x", "progress": 5}
        parsed["error"] = {"message": "m", "code": "c", "timestamp": iso_after(-9)}
        parsed["result"] = {"completed": iso_after(-9), "changes": 1, "confidence": 0.5}
    return parsed


def states(world: World) -> dict[str, str]:
    """What each page is in, by its own record."""
    found = {}
    for key, (value, _) in world.rows().items():
        if key.startswith(f"status:{PROJECT}:") and (parsed := _parsed(value)) is not None:
            found[key.rpartition(":")[2]] = str(parsed.get("status"))
    return found
