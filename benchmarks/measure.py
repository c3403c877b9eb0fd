"""Whole processes, timed from outside: seconds on the clock and the memory at its highest."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

REPOSITORY = Path(__file__).parents[1]


class Cost(NamedTuple):
    """Seconds of a process from start to end, and its highest resident memory in MB."""

    seconds: float
    megabytes: float


def run(argv: Sequence[str], folder: Path, environment: Mapping[str, str] | None = None) -> Cost:
    """The cost of one command; raises ``RuntimeError`` with what it said if it does not go well.

    Modules are compiled once, as pip does it for what it installs, whatever the environment says.
    """
    with tempfile.TemporaryFile() as said:
        begun = time.perf_counter()
        process = subprocess.Popen(
            argv,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=said,
            env={**os.environ, "PYTHONDONTWRITEBYTECODE": "", **(environment or {})},
        )
        _, state, used = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - begun
        process.returncode = os.waitstatus_to_exitcode(state)
        if process.returncode:
            said.seek(0)
            text = said.read().decode(errors="replace")
            raise RuntimeError(f"{' '.join(argv)}: exit code {process.returncode}\n{text}")
    # Kilobytes on Linux, bytes on macOS.
    return Cost(seconds, used.ru_maxrss / (1024 if sys.platform != "darwin" else 1024 * 1024))


def invoke(folder: Path, *arguments: str, environment: Mapping[str, str] | None = None) -> Cost:
    """The cost of an ``invoke`` command in ``folder``."""
    return run([sys.executable, "-m", "invoke", *arguments], folder, environment)


def floor(name: str, *arguments: object) -> Cost:
    """The cost of one of the floors, as a process of its own."""
    argv = [sys.executable, "-m", "benchmarks.floors", name, *map(str, arguments)]
    return run(argv, REPOSITORY)


def at_rest() -> None:
    """Let the disk have what was written before, so that who is measured next does not wait for
    it."""
    if hasattr(os, "sync"):
        os.sync()


def work_off(project: Path, processor: str = "one_in_a_hundred_fails", *options: str) -> Cost:
    """The cost of a worker, with a processor of the benchmark's."""
    return invoke(
        project,
        "nimbus.worker",
        f"--processor=benchmarks.processors:{processor}",
        "--max-attempts=1",
        *options,
        environment={"PYTHONPATH": str(REPOSITORY)},
    )


def in_turns(times: int, *what: Callable[[], Cost]) -> list[Cost]:
    """The median cost of each, all of them measured in turns: a machine that slows down for a while
    slows every one of them."""
    return [_median(costs) for costs in _turns(times, what)]


def differences(times: int, *pairs: tuple[Callable[[], Cost], Callable[[], Cost]]) -> list[Cost]:
    """What the first of each pair takes more than the second, measured in turns as well: the median
    of the differences within a turn, which the next turn's speed does not touch."""
    costs = _turns(times, [one for pair in pairs for one in pair])
    return [
        _median([a._replace(seconds=a.seconds - b.seconds) for a, b in zip(*pair, strict=True)])
        for pair in zip(costs[::2], costs[1::2], strict=True)
    ]


def _turns(times: int, what: Sequence[Callable[[], Cost]]) -> list[tuple[Cost, ...]]:
    return list(zip(*([one() for one in what] for _ in range(times)), strict=True))


def _median(costs: Sequence[Cost]) -> Cost:
    return Cost(
        statistics.median(cost.seconds for cost in costs),
        max(cost.megabytes for cost in costs),
    )
