"""Real commands in processes that start in a few milliseconds, so that a thousand can be killed.

``python -m tests.kills.driver`` imports what the commands need, once, and forks a child for each
command that it is asked for; in the child Invoke's own program runs, as it does for a person. The
tests talk to it through :class:`Driver`. ``python -m tests.kills.driver FILE GATE COMMAND…`` runs
one command as soon as the file ``GATE`` is there; in ``FILE`` it says how long its writes waited.
"""

from __future__ import annotations

import importlib
import json
import os
import pkgutil
import select
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import nimbus_tasks
from nimbus_tasks.kv.lock import FileLock
from tests.factories import TASKS, environment_for

#: Much longer than any command here takes, so that a slow machine fails no test.
PATIENCE = 60.0


@dataclass(frozen=True)
class Ran:
    """How a command ended; ``code`` is minus the signal that ended it."""

    code: int
    out: str
    err: str
    #: From the moment it opened the store.
    seconds: float

    @property
    def was_killed(self) -> bool:
        """Whether the kill found it alive."""
        return self.code == -signal.SIGKILL


@dataclass
class Started:
    """A command that runs. Its number is not given to another process before it is waited for."""

    pid: int
    out: Path
    err: Path
    since: float = field(default_factory=time.monotonic)

    def send(self, number: int) -> None:
        """Send it a signal; one that has ended takes it and stays ended."""
        os.kill(self.pid, number)


class Driver:
    """The process that forks; each method asks it for something and waits for its answer."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._count = 0
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.kills.driver"],
            env=environment_for(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._ask({})

    def start(self, root: Path, *arguments: str, **constants: int) -> Started:
        """Start a command in the project ``root``; returns when it has opened the store, or ended.

        ``constants`` of the upload's module are made so small that it takes several steps.
        """
        tasks = root / "tasks.py"
        if not tasks.exists():
            tasks.write_text(TASKS)
        self._count += 1
        out, err = (self._folder / f"{self._count}.{name}" for name in ("out", "err"))
        answer = self._ask(
            {
                "root": str(root),
                "arguments": arguments,
                "constants": constants,
                "out": str(out),
                "err": str(err),
            }
        )
        return Started(answer["pid"], out, err)

    def wait(self, started: Started) -> Ran:
        """Wait for a command's end."""
        code = self._ask({"pid": started.pid})["code"]
        seconds = time.monotonic() - started.since
        ran = Ran(code, started.out.read_text(), started.err.read_text(), seconds)
        started.out.unlink()
        started.err.unlink()
        assert "Traceback" not in ran.out + ran.err, ran.err
        return ran

    def run(
        self, root: Path, *arguments: str, kill_after: float | None = None, **constants: int
    ) -> Ran:
        """Run a command; ``kill_after`` so many seconds from when it opened the store."""
        started = self.start(root, *arguments, **constants)
        if kill_after is not None:
            time.sleep(kill_after)
            started.send(signal.SIGKILL)
        return self.wait(started)

    def document(self, root: Path, *arguments: str, code: int = 0, **constants: int) -> Any:
        """What a command prints as JSON."""
        ran = self.run(root, *arguments, "--json", **constants)
        assert ran.code == code, (arguments, ran.code, ran.err)
        return json.loads(ran.out)

    def close(self) -> None:
        """End it, and with it every command that still runs."""
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait(PATIENCE)
        assert self._process.stdout
        self._process.stdout.close()

    def _ask(self, request: dict[str, Any]) -> Any:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, "the driver has died"
        found = json.loads(answer)
        assert "error" not in found, found["error"]
        return found


def serve() -> None:
    """Fork the commands that are asked for on stdin, a request a line, until that is closed."""
    for module in pkgutil.walk_packages(nimbus_tasks.__path__, "nimbus_tasks."):
        importlib.import_module(module.name)
    importlib.import_module("invoke.main")
    running: set[int] = set()
    for line in sys.stdin:
        request = json.loads(line)
        answer: dict[str, Any] = {}
        if "root" in request:
            answer["pid"] = _fork(request)
            running.add(answer["pid"])
        elif "pid" in request:
            code = _wait(request["pid"])
            answer = {"error": f"{request['pid']} hangs"} if code is None else {"code": code}
            if code is not None:
                running.discard(request["pid"])
        print(json.dumps(answer), flush=True)
    for pid in running:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def _fork(request: dict[str, Any]) -> int:
    opened, opens = os.pipe()
    pid = os.fork()
    if not pid:
        _run(request, opens)
    os.close(opens)
    select.select([opened], [], [], PATIENCE)  # readable when a byte comes, and when it has ended
    os.close(opened)
    return pid


def _run(request: dict[str, Any], opens: int) -> NoReturn:
    """In the child: be the command."""
    for stream, path in ((0, os.devnull), (1, request["out"]), (2, request["err"])):
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        os.dup2(file, stream)
        os.close(file)
    os.chdir(request["root"])
    sending = importlib.import_module("nimbus_tasks.upload.sending")
    for name, value in request["constants"].items():
        setattr(sending, name, value)
    told: list[str] = []

    def hook(event: str, _arguments: object) -> None:
        if event == "sqlite3.connect" and not told:
            told.append(event)
            with suppress(OSError):
                os.write(opens, b".")

    sys.addaudithook(hook)
    code = _program(request["arguments"])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # what the parent has registered for its own end is none of ours


def _program(arguments: list[str]) -> int:
    from invoke.main import program

    try:
        program.run(["invoke", *arguments])
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:  # noqa: BLE001 - whatever it is, the test is to see it
        sys.excepthook(*sys.exc_info())
        return 1
    return 0


def _wait(pid: int) -> int | None:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.001)
    return None


def run_measured(file: Path, gate: Path, arguments: list[str]) -> NoReturn:
    """Be a command that begins with others, and tell how long it has waited for the store's lock.

    The lock is what a write waits for: within it no other process writes.
    """
    waits: list[float] = []
    acquire = FileLock.acquire

    def measured(lock: FileLock, *args: Any, **kwargs: Any) -> bool:
        begun = time.monotonic()
        try:
            return acquire(lock, *args, **kwargs)
        finally:
            waits.append(time.monotonic() - begun)

    setattr(FileLock, "acquire", measured)  # noqa: B010 - to mypy it is another method
    deadline = time.monotonic() + PATIENCE
    while not gate.exists() and time.monotonic() < deadline:
        time.sleep(0.005)
    code = _program(arguments)
    file.write_text(json.dumps(waits))
    sys.exit(code)


if __name__ == "__main__":
    if sys.argv[1:]:
        run_measured(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
    serve()
