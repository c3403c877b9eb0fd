"""A command as a processor: JSON in, JSON out, and whatever it does wrong fails its page only."""

from __future__ import annotations

import json
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from nimbus_tasks.core.errors import ProcessorError, ProcessorUnusableError, UsageError
from nimbus_tasks.processors import load_processor
from nimbus_tasks.processors.audit import audit
from nimbus_tasks.processors.command import CommandProcessor

PAGE = {"page_id": "page_a", "source_path": "a.html", "extraction": {"title": "é"}}
posix = pytest.mark.skipif(sys.platform == "win32", reason="commands of a POSIX shell")
pytestmark = posix


def run(command: str, tmp_path: Path, timeout: float | None = 20, page: Any = PAGE) -> Any:
    steps: list[Any] = []

    def progress(*step: Any) -> None:
        steps.append(step)

    return CommandProcessor(command, tmp_path, timeout)(page, progress)


def failure(command: str, tmp_path: Path, timeout: float | None = 20) -> ProcessorError:
    with pytest.raises(ProcessorError) as raised:
        run(command, tmp_path, timeout)
    return raised.value


def test_the_page_comes_on_stdin_and_the_answer_on_stdout(tmp_path: Path) -> None:
    script = tmp_path / "answer.py"
    script.write_text(
        "import json, os, sys\npage = json.load(sys.stdin)\n"
        "print(json.dumps({'changes': 2, 'optimization': [page['extraction'],"
        " os.environ['NIMBUS_PAGE_ID'], os.getcwd()]}))\n"
    )
    answer = run(f"{sys.executable} answer.py", tmp_path)
    assert answer == {
        "changes": 2,
        "optimization": [{"title": "é"}, "page_a", str(tmp_path.resolve())],
    }


def test_a_command_need_not_read_its_input(tmp_path: Path) -> None:
    page = {**PAGE, "extraction": "x" * 5_000_000}
    assert run("echo '{}'", tmp_path, page=page) == {}


def test_an_exit_code_fails_the_page_with_its_last_words(tmp_path: Path) -> None:
    error = failure("echo first >&2; echo 'no such model' >&2; exit 3", tmp_path)
    assert (error.code, str(error)) == ("command_failed", "exit code 3: no such model")


def script(folder: Path, text: str, mode: int = 0o700) -> Path:
    path = folder / "script"
    path.write_text(text)
    path.chmod(mode)
    return path


def test_a_command_that_is_not_there_can_do_no_page(tmp_path: Path) -> None:
    with pytest.raises(ProcessorUnusableError, match="no-such-command-anywhere"):
        run("no-such-command-anywhere", tmp_path)


@pytest.mark.parametrize(
    ("first_line", "mode"),
    [("#!/usr/bin/env no-such", 0o700), ("#!/no/such", 0o700), ("#!/bin/sh", 0o600)],
)
def test_nor_can_a_script_that_nothing_runs(tmp_path: Path, first_line: str, mode: int) -> None:
    path = script(tmp_path, f"{first_line}\nexit 3\n", mode)
    with pytest.raises(ProcessorUnusableError):
        run(f"'{path}'", tmp_path)


def test_what_a_command_itself_does_not_find_fails_the_page_alone(tmp_path: Path) -> None:
    """Else the page that needs it would end every worker before the others are reached."""
    path = script(tmp_path, "#!/bin/sh\nno-such-command-anywhere\n")
    assert failure(f"'{path}'", tmp_path).code == "command_failed"


def test_what_a_command_does_not_find_once_it_has_run_fails_the_page(tmp_path: Path) -> None:
    process = CommandProcessor(
        "test -e ran && { no-such-command-anywhere; exit; }; touch ran; exit 3", tmp_path
    )
    codes = []
    for _ in range(2):
        with pytest.raises(ProcessorError) as raised:
            process(PAGE, lambda *_: None)
        codes.append(str(raised.value).partition(":")[0])
    assert codes == ["exit code 3", "exit code 127"]


@pytest.mark.parametrize("answer", ["", "rubbish", "[1]", "{"])
def test_an_answer_that_is_no_json_object_fails_the_page(tmp_path: Path, answer: str) -> None:
    assert failure(f"printf '%s' '{answer}'", tmp_path).code == "bad_result"


def test_an_endless_answer_fails_the_page_and_fills_no_memory(tmp_path: Path) -> None:
    error = failure("yes", tmp_path)
    assert error.code in ("bad_result", "command_failed")


def test_one_that_takes_too_long_is_killed_with_all_that_it_has_started(tmp_path: Path) -> None:
    begun = time.monotonic()
    error = failure("(sleep 60; touch survived) & sleep 60", tmp_path, timeout=0.3)
    assert error.code == "timeout"
    assert time.monotonic() - begun < 10
    assert not (tmp_path / "survived").exists()


def test_commands_in_flight_can_be_killed_together(tmp_path: Path) -> None:
    processor = CommandProcessor("touch begun; sleep 60", tmp_path)
    caught: list[ProcessorError] = []

    def process() -> None:
        try:
            processor(PAGE, lambda *step: None)
        except ProcessorError as error:
            caught.append(error)

    thread = threading.Thread(target=process)
    thread.start()
    deadline = time.monotonic() + 20
    while not (tmp_path / "begun").exists():
        assert time.monotonic() < deadline
    processor.kill_all()
    thread.join(20)
    assert [error.code for error in caught] == ["command_failed"]


def test_what_it_says_on_stderr_is_a_step_of_its_log(tmp_path: Path) -> None:
    steps: list[Any] = []
    processor = CommandProcessor("echo 'used 12 tokens' >&2; echo '{}'", tmp_path)
    processor(PAGE, lambda *step: steps.append(step))
    assert steps[-1] == ("command", 100, "used 12 tokens")


@pytest.mark.parametrize("answer", [b'\xef\xbb\xbf{"changes": 1}\r\n', b' \n{"changes": 1}\n\n'])
def test_an_answer_may_have_a_byte_order_mark_and_white_space(
    tmp_path: Path, answer: bytes
) -> None:
    (tmp_path / "answer").write_bytes(answer)
    assert run("cat answer", tmp_path) == {"changes": 1}


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (b"{'a': 1}", "is no JSON"),
        (b'{"a": NaN}', "holds NaN"),
        (b'{"a": "\xff"}', "is not UTF-8"),
        (b'{"a": "\\ud800"}', "half of a surrogate pair"),
        (b'{"a": ' + b"9" * 5000 + b"}", "thousands of digits"),
        (b"[" * 100_000, "nested too deeply"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_an_answer_that_no_store_can_hold_is_refused_for_what_it_is(
    tmp_path: Path, answer: bytes, why: str
) -> None:
    (tmp_path / "answer").write_bytes(answer)
    error = failure("cat answer", tmp_path)
    assert error.code == "bad_result"
    assert why in str(error)


def test_what_is_left_in_the_background_holds_no_page_up(tmp_path: Path) -> None:
    """It has the pipes; the command has ended, and all that it said is there."""
    begun = time.monotonic()
    big = "x" * 300_000
    (tmp_path / "answer").write_text(json.dumps({"optimization": big}))
    answer = run("sleep 5 & cat answer", tmp_path, timeout=3)
    assert answer == {"optimization": big}
    assert time.monotonic() - begun < 1.5


def test_what_writes_on_in_the_background_holds_no_page_up_for_long(tmp_path: Path) -> None:
    begun = time.monotonic()
    assert run("(timeout 4 yes >&2) & echo '{}'", tmp_path) == {}
    assert time.monotonic() - begun < 3


def test_a_processor_is_named_by_module_and_function() -> None:
    assert load_processor("audit") is audit
    assert load_processor("json:dumps").__name__ == json.dumps.__name__


@pytest.mark.parametrize(
    "name",
    ["", "json", ":x", "json:", "json:nothing", "no_such_module_x:f", "json:__doc__", "a:b c"],
)
def test_a_processor_that_is_not_there_is_a_usage_error(name: str) -> None:
    with pytest.raises(UsageError):
        load_processor(name)


def test_a_module_that_cannot_be_imported_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_processor.py").write_text("raise RuntimeError('no key')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(UsageError, match="RuntimeError: no key"):
        load_processor("broken_processor:process")
