"""Hostile input: maps, configurations, arguments, answers and records that nobody should write.

``NIMBUS_HOSTILE=10000 python -m pytest tests/hostile`` draws as many inputs instead of 160. Each
is followed by commands that meet it, in Invoke's own program. A failure shows its
``NIMBUS_SEED`` and the input; with the seed set, each input is drawn as it was.
"""

from __future__ import annotations

import json
import math
import os
import random
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nimbus_tasks.core.project import new_project, save_project
from nimbus_tasks.worker import engine, lookout
from tests.factories import a_map, write_map, write_maps
from tests.hostile import draws, processors, stores
from tests.hostile.program import (
    Ran,
    check,
    in_a_terminal,
    in_pipes,
    peak_megabytes,
    run,
)
from tests.test_cli import ARGUMENTS

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the watchdog is a POSIX alarm")

INPUTS = int(os.environ.get("NIMBUS_HOSTILE", "160"))
SEED = os.environ.get("NIMBUS_SEED") or (
    "1" if os.environ.get("CI") else str(time.time_ns() % 10**6)
)
#: Of a test: several of them are shared among processes that test.
INPUTS_A_TEST = 20
#: What one process may take for whatever is thrown at it.
PEAK_MEGABYTES = 700
LOOKS = (
    ("nimbus.batch",),
    ("nimbus.batch.list",),
    ("nimbus.batch.status",),
    ("nimbus.batch.status", "--batch=latest"),
    ("nimbus.batch.monitor", "--once"),
    ("nimbus.batch.monitor", "--interval=0.01", "--timeout=0.03"),
    ("nimbus.batch.wait", "--interval=0.01", "--timeout=0.03"),
    ("nimbus.batch.report",),
    ("nimbus.batch.report", "--format=json,html,csv"),
    ("nimbus.guide",),
    ("nimbus.batch.metrics",),
    ("nimbus.batch.verify",),
    ("nimbus.batch.retry", "--dry-run"),
    ("nimbus.upload", "--dry-run"),
    ("nimbus.upload", "--dry-run", "--changed"),
    ("nimbus.doctor",),
)
CHANGES = (
    ("nimbus.batch.retry",),
    ("nimbus.batch.retry", "--include-cancelled"),
    ("nimbus.batch.verify", "--repair"),
    ("nimbus.batch.cancel", "--batch=latest"),
    ("nimbus.upload",),
    ("nimbus.upload", "--changed"),
    ("nimbus.upload", "--batch=latest"),
    ("nimbus.worker", "--batch=latest"),
    ("nimbus.init", "--force"),
)
#: They go on until somebody ends them, or call programs of others.
SERVES = {"nimbus.dashboard", "nimbus.cloud.dev", "nimbus.cloud.deploy"}
WORKER = ("nimbus.worker", "--concurrency=2")
PROCESSOR = "--processor=tests.hostile.processors:hostile"


def inputs(sixteenths: int) -> pytest.MarkDecorator:
    """The numbers of as many sixteenths of the inputs, some to a test."""
    count = math.ceil(INPUTS * sixteenths / 16)
    parts = [range(at, min(count, at + INPUTS_A_TEST)) for at in range(0, count, INPUTS_A_TEST)]
    return pytest.mark.parametrize("numbers", parts, ids=[str(part[0]) for part in parts])


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A worker waits a little for what it is right to wait for; and memory has an end."""
    monkeypatch.setattr(engine, "LOOK_SECONDS", 0.02)
    monkeypatch.setattr(lookout, "UPLOAD_SILENT_SECONDS", 0.1)
    for name in ("INVOKE_NIMBUS_WORKER_COMMAND", "CI"):
        monkeypatch.delenv(name, raising=False)
    before = peak_megabytes()
    yield
    print(f"peak {peak_megabytes():.0f} MB")
    # What other tests have taken before in this process is theirs.
    assert peak_megabytes() < max(PEAK_MEGABYTES, before + 1)


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, stores.World]:
    """A project of each layout, to be copied."""
    folder = tmp_path_factory.mktemp("worlds")
    return {name: stores.made(folder / name.replace("/", "-"), name) for name in stores.LAYOUTS}


def knows_json(task: str) -> bool:
    """Whether the task has --json; all have it but the few that say nothing to programs."""
    options = ARGUMENTS.get(task)
    return options is None or "json" in {option.name for option in options}


class Drawn:
    """One input: its chance, and a folder of its own."""

    def __init__(self, kind: str, number: int, folder: Path) -> None:
        print(f"NIMBUS_SEED={SEED} input: {kind} {number}")
        self.rng = random.Random(f"{SEED} {kind} {number}")
        self.root = folder / f"{kind}-{number}"

    def run(self, *arguments: str) -> Ran:
        """Run a command, with one output or another."""
        output = self.rng.choice(("plain", "json", "terminal"))
        if output == "json" and not knows_json(arguments[0]):
            output = "plain"
        given = (*arguments, "--json") if output == "json" else arguments
        ran = run(self.root, *given, on_terminal=output == "terminal")
        print(f"  {ran.code} {' '.join(given)[:120]!a} {output}")
        return ran

    def look(self, least: int, most: int) -> None:
        """Some commands that only look."""
        for command in self.rng.sample(LOOKS, self.rng.randint(least, most)):
            self.run(*command)

    def project(self) -> Path:
        """A sound project without maps; its folder."""
        save_project(new_project(self.root, name="test", project_id=stores.PROJECT))
        return self.root / ".nimbus"


@pytest.fixture
def each(
    numbers: range, tmp_path: Path, request: pytest.FixtureRequest
) -> Callable[[], Iterator[Drawn]]:
    """The inputs of a test, one after the other; what one leaves behind goes with it."""
    kind = request.function.__name__.removeprefix("test_hostile_")

    def draw() -> Iterator[Drawn]:
        for number in numbers:
            drawn = Drawn(kind, number, tmp_path)
            yield drawn
            shutil.rmtree(drawn.root, ignore_errors=True)

    return draw


@inputs(7)
def test_hostile_records(
    each: Callable[[], Iterator[Drawn]], worlds: dict[str, stores.World]
) -> None:
    """The good pages of the batch are done, and what is not ours is as it was."""
    for drawn in each():
        rng = drawn.rng
        world = worlds[rng.choice(stores.LAYOUTS)].copied(drawn.root)
        spoiled = stores.spoil(world, rng)
        print(world.project.store, world.project.queue, spoiled.poisoned, list(spoiled.foreign))
        with stores.on(world.cloud):
            drawn.look(1, 2)
            assert drawn.run(*WORKER).code == 0
            after = stores.states(world)
            for page_id in set(stores.PAGES) - spoiled.poisoned:
                assert after[page_id] == "done" or (spoiled.batch and after[page_id] == "cancelled")
            drawn.run(*rng.choice(CHANGES))
            drawn.look(0, 1)
            if rng.random() < 0.3:
                assert drawn.run(*WORKER).code == 0
        rows = world.rows()
        for key, row in spoiled.foreign.items():
            assert rows.get(key) == row, key


@inputs(3)
def test_hostile_maps(each: Callable[[], Iterator[Drawn]]) -> None:
    """Bad ones are refused by name; the good ones go all the way."""
    for drawn in each():
        rng, folder = drawn.rng, drawn.project() / "maps"
        write_maps(folder, 2)
        for number in range(rng.randint(1, 4)):
            name = _file_name(rng, number)
            sound = a_map(f"dist/{draws.text(rng, large=0)}{number}.html", url="https://x.y/z")
            sound["head"] |= {"metaDescription": "d", "canonical": "https://x.y/z", "lang": "en"}
            sound["blocks"] += [
                {"i": 1, "type": "img", "selector": "img", "src": "a.png", "alt": "", "width": 9},
                {"i": 2, "type": "a", "selector": "a", "href": "/x", "text": draws.text(rng)},
            ]
            write_map(folder, name, draws.raw(rng, sound))
        drawn.run("nimbus.upload", *rng.choice(((), ("--skip-invalid",), ("--dry-run",))))
        assert drawn.run("nimbus.upload", "--changed").code in (0, 3)
        assert drawn.run(*WORKER).code == 0
        drawn.look(1, 2)
        assert drawn.run("nimbus.batch.verify", "--repair").code in (0, 3)
        world = stores.World(drawn.root, None)
        assert [*stores.states(world).values()].count("done") >= 2
        assert "queued" not in stores.states(world).values()


def _file_name(rng: random.Random, number: int) -> str:
    text = draws.text(rng, large=0).replace("/", "").replace("\0", "")
    raw = text.encode("utf-8", "replace")[: rng.choice((0, 60, 200))]
    if rng.random() < 0.1:
        raw += b"\xff"
    return f"{os.fsdecode(raw)}{number}.json"


CONFIG: dict[str, Any] = {
    "project_id": stores.PROJECT,
    "name": "test",
    "created": "2026-11-24T00:00:00Z",
    "store": "sqlite",
    "queue": "keys",
    "cloudflare": {"account_id": "a", "namespace_id": "b", "api_base": "http://127.0.0.1:1/"},
    "own": {"field": [1]},
}


@inputs(1)
def test_hostile_configuration(each: Callable[[], Iterator[Drawn]]) -> None:
    """Nothing is written where it cannot be understood, and nobody's configuration is lost."""
    for drawn in each():
        rng, folder = drawn.rng, drawn.project()
        write_maps(folder / "maps", 1)
        config = folder / "project-config.json"
        config.write_bytes(draws.raw(rng, CONFIG))
        before = config.read_bytes()
        drawn.look(1, 2)
        for command in (("nimbus.upload",), WORKER, ("nimbus.init",)):
            drawn.run(*command)
        assert config.read_bytes() == before
        drawn.run("nimbus.init", "--force", "--store=sqlite", "--queue=keys")
        drawn.run("nimbus.upload")


#: What YAML alone can say, and what our sections make of it.
YAML = (
    "!!binary aGk=", "!!set {a, b}", ".nan", ".inf", "-.inf", "0o17", "010", "yes", "~",
    "2026-01-01",    "1e400", "[]", "{}", "''", "' '", "-1", "0", "1" * 31, "1.5", "!!omap []",
)  # fmt: skip
SECTIONS = {
    "upload": ("folder",),
    "worker": ("processor", "concurrency", "max_attempts", "timeout", "lease", "x\x1b[35m"),
    "monitor": ("interval",),
}


@inputs(1)
def test_hostile_settings(each: Callable[[], Iterator[Drawn]]) -> None:
    """The section ``nimbus:`` of invoke.yaml, and its variables in the environment."""
    for drawn in each():
        rng, folder = drawn.rng, drawn.project()
        write_maps(folder / "maps", 1)
        (drawn.root / "invoke.yaml").write_text(_yaml(rng), encoding="utf-8")
        for command in (("nimbus.doctor",), ("nimbus.upload",), WORKER[:1]):
            drawn.run(*command)
        drawn.run("nimbus.batch.monitor", "--timeout=0.05")


def _yaml(rng: random.Random) -> str:
    if rng.random() < 0.1:
        return f"nimbus: {_yaml_value(rng)}\n"
    lines = ["nimbus:"]
    for section, names in SECTIONS.items():
        if rng.random() < 0.2:
            lines.append(f"  {section}: {_yaml_value(rng)}")
        elif rng.random() < 0.7:
            lines.append(f"  {section}:")
            lines += [
                f"    {json.dumps(n)}: {_yaml_value(rng)}" for n in names if rng.random() < 0.4
            ]
    return "\n".join(lines) + "\n"


def _yaml_value(rng: random.Random) -> str:
    if rng.random() < 0.5:
        return rng.choice(YAML)
    return json.dumps(draws.text(rng).replace("\ud800", "")).replace("\\ud", "\\\\ud")


@inputs(3)
def test_hostile_arguments(
    each: Callable[[], Iterator[Drawn]], worlds: dict[str, stores.World]
) -> None:
    """Options of every task, in any number, with any text."""
    for drawn in each():
        world = worlds["sqlite/keys"].copied(drawn.root)
        for _ in range(3):
            name = drawn.rng.choice(sorted(ARGUMENTS.keys() - SERVES))
            drawn.run(name, *_options(drawn.rng, name))
        assert world.rows()


def _options(rng: random.Random, name: str) -> list[str]:
    options = []
    for argument in ARGUMENTS[name]:
        # A shell is not to run what is drawn here, and a worker is to end.
        if argument.name in ("command", "forever", "json", "help") or rng.random() < 0.5:
            continue
        flag = "--" + str(argument.name).replace("_", "-")
        if argument.kind is bool:
            options.append(flag)
        elif argument.name in ("timeout", "interval"):
            options.append(f"{flag}={rng.choice(('0.01', 'nan', 'inf', '-1', '1e400', '٣', ''))}")
        elif argument.name == "concurrency":
            options.append(f"{flag}={rng.choice(('2', '0', '1001', '1' * 5000, '٣', 'x'))}")
        else:
            options.append(f"{flag}={_argument(rng)}")
    if name.endswith((".monitor", ".wait")) and not any("timeout" in o for o in options):
        options.append("--timeout=0.03")
    return options


def _argument(rng: random.Random) -> str:
    some = (
        "latest",
        "1",
        "10" * 20,
        "9" * 5000,
        "page_",
        "batch_",
        "\udcff",
        "a" * 129,
        "audit",
        ".",
    )
    return rng.choice((*some, draws.text(rng, large=0.01).replace("\0", "").replace("\ud800", "")))


@inputs(1)
def test_hostile_answers(
    each: Callable[[], Iterator[Drawn]],
    worlds: dict[str, stores.World],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What a processor says of its steps, raises and answers."""
    for drawn in each():
        rng = drawn.rng
        world = worlds[rng.choice(stores.LAYOUTS)].copied(drawn.root)
        monkeypatch.setattr(processors, "DRAW", random.Random(rng.random()))
        with stores.on(world.cloud):
            assert drawn.run(*WORKER, PROCESSOR, "--max-attempts=2").code == 0
            after = stores.states(world)
            assert all(after[page_id] == "done" for page_id in stores.PAGES[1::2])
            drawn.look(1, 3)
            drawn.run("nimbus.batch.cancel", "--batch=latest", f"--reason=x{_argument(rng)}")
            drawn.look(0, 1)


@pytest.mark.parametrize("number", range(max(1, INPUTS // 160)))
def test_hostile_records_in_processes_of_their_own(
    number: int, tmp_path: Path, worlds: dict[str, stores.World]
) -> None:
    """As a person runs them, with a terminal of the system's own and with pipes."""
    drawn = Drawn("processes", number, tmp_path)
    world = worlds[drawn.rng.choice(stores.LAYOUTS[:2])].copied(drawn.root)
    spoiled = stores.spoil(world, drawn.rng)
    for command in (drawn.rng.choice(LOOKS), WORKER, drawn.rng.choice(LOOKS)):
        with_json = drawn.rng.random() < 0.5 and knows_json(command[0])
        check(
            in_a_terminal(drawn.root, *command)
            if drawn.rng.random() < 0.5
            else in_pipes(drawn.root, *command, *(("--json",) if with_json else ()))
        )
    after = stores.states(world)
    for page_id in set(stores.PAGES) - spoiled.poisoned:
        assert after[page_id] == "done" or (spoiled.batch and after[page_id] == "cancelled")
