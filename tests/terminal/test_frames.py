"""What the commands show in a real pseudo-terminal, whatever its size and whatever it can do."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from nimbus_tasks.core.project import Project
from nimbus_tasks.kv.store import Store
from nimbus_tasks.worker.display import WorkerDisplay
from tests.factories import a_map, upload, write_map, write_maps
from tests.terminal.conftest import Batch
from tests.terminal.pseudo_terminal import PseudoTerminal

Run = Callable[..., PseudoTerminal]
MONITOR = ("nimbus.batch.monitor", "--interval=0.2")
SIZES = [(60, 10), (80, 24), (200, 50)]
FRAMES = Path(__file__).parent / "frames"


@pytest.mark.parametrize("size", SIZES)
def test_the_frame_of_a_batch_at_work(batch: Batch, terminal: Run, size: tuple[int, int]) -> None:
    with terminal(size, *MONITOR) as seen:
        seen.shows("Ctrl-C ends the watching")
        expected = FRAMES / f"monitor-{size[0]}x{size[1]}.txt"
        assert seen.frame + "\n" == expected.read_text(encoding="utf-8")
        seen.press("\x03")
        assert seen.wait() == 130
        assert f"detached; {batch.batch_id} goes on · To come back:" in seen.text
        assert f"invoke nimbus.batch.monitor --batch={batch.batch_id}" in seen.text
        assert "^C" not in seen.text
        assert not seen.screen.cursor.hidden


def test_the_frame_follows_the_size_of_the_terminal(batch: Batch, terminal: Run) -> None:
    with terminal((60, 10), *MONITOR) as seen:
        seen.shows("… and 9 more", "Ctrl-C")
        seen.resize(100, 40)
        seen.shows("created", "In flight (12)", "Failed (3)")
        assert "more" not in seen.frame
        seen.resize(100, 10)
        seen.shows("… and 9 more", "Ctrl-C")
        batch.end_all()
        assert seen.wait() == 0
        assert "40/40 pages  100%" in seen.text


def test_failures_stay_in_the_scrollback_and_the_end_says_what_to_type(
    batch: Batch, terminal: Run
) -> None:
    with terminal((80, 12), *MONITOR) as seen:
        seen.shows("❌ failed 3")
        batch.end(2, error="no heading")
        seen.shows("❌ failed 5")
        batch.end_all()
        assert seen.wait() == 0
        named = [line for line in seen.text.splitlines() if re.match("❌ dist/", line)]
        assert len(named) == len(set(named)) == 5
        assert sum("no heading" in line for line in named) == 2
        assert not any("pages  30%" in line for line in seen.lines)
        assert "invoke nimbus.batch.retry" in seen.text
        assert seen.text.count(f"{batch.batch_id}  ") == 1


def test_no_color_is_a_frame_without_colours(batch: Batch, terminal: Run) -> None:
    with terminal((80, 24), *MONITOR, NO_COLOR="1") as seen:
        seen.shows("Ctrl-C")
        assert not re.search(rb"\x1b\[[0-9;]*m", seen.raw)
    with terminal((80, 24), *MONITOR) as seen:
        seen.shows("Ctrl-C")
        codes = set(re.findall(rb"\x1b\[([0-9;]*)m", seen.raw))
        assert codes <= {b"0", b"1", b"31", b"32", b"33", b"34", b"90"}  # of any terminal's 16


@pytest.mark.parametrize("environment", [{"TERM": "dumb"}, {"CI": "true"}])
def test_where_the_cursor_cannot_move_a_change_is_a_line(
    batch: Batch, terminal: Run, environment: dict[str, str]
) -> None:
    with terminal((80, 24), *MONITOR, **environment) as seen:
        seen.shows("processing: 12/40 pages 30%")
        batch.end_all()
        assert seen.wait() == 0
        assert "partially completed: 40/40 pages 100%, 37 done, 3 failed" in seen.text
        assert "next: invoke nimbus.batch.retry" in seen.text.replace("\n", "")
        assert not re.search(rb"\x1b\[[0-9;?]*[A-LN-Za-ln-z]", seen.raw)


def test_a_store_that_is_lost_and_comes_back(
    batch: Batch, terminal: Run, project: Project, tmp_path: Path
) -> None:
    away = tmp_path / "away.sqlite3"
    with terminal((80, 24), *MONITOR) as seen:
        seen.shows("Ctrl-C")
        project.store_path.rename(away)
        seen.shows("⏳ this is", "old:", "trying again")
        seen.until(lambda: re.search(r"this is [1-9]\S* s old", "\n".join(seen.lines)) is not None)
        assert "12/40 pages" in seen.frame
        away.rename(project.store_path)
        seen.until(lambda: "this is" not in "\n".join(seen.lines))
        batch.end_all()
        assert seen.wait() == 0


def test_ctrl_c_ends_it_while_the_store_is_lost(
    batch: Batch, terminal: Run, project: Project
) -> None:
    with terminal((80, 24), *MONITOR) as seen:
        seen.shows("Ctrl-C")
        project.store_path.rename(project.root / "away")
        project.store_path.write_bytes(b"no database at all" * 500)
        seen.shows("old:")
        seen.press("\x03")
        assert seen.wait() == 130


HOSTILE = "dist/\x1b[2J\x1b]0;owned\x07\x9b31mred\u202egnp.html"


def test_hostile_names_and_errors_are_text(project: Project, store: Store, terminal: Run) -> None:
    folder = project.folder / "maps"
    write_map(folder, "a.json", a_map(HOSTILE))
    (project.root / "bad.py").write_text(
        "def process(page, progress):\n"
        "    raise RuntimeError('\\x1b[2J\\x1b[31m\\rgone\\n\\n\\x07')\n"
    )
    upload(project, store, folder)
    for arguments in (
        ("nimbus.batch.monitor", "--once"),
        ("nimbus.worker", "--processor=bad:process"),
        ("nimbus.batch.monitor",),
        ("nimbus.batch.status", "--batch=latest"),
    ):
        with terminal((80, 24), *arguments) as seen:
            assert seen.wait() == 0
            assert b"\x1b[2J" not in seen.raw
            assert b"\x07" not in seen.raw
            assert "\u202e".encode() not in seen.raw
            assert "owned" not in seen.screen.title
    assert "gone" in seen.text


@pytest.mark.parametrize("columns", [60, 80, 200])
def test_no_line_of_upload_worker_and_status_is_broken_by_the_terminal(
    project: Project, terminal: Run, columns: int
) -> None:
    folder = project.folder / "maps"
    write_maps(folder, 12)
    write_map(folder, "a-map-with-quite-a-long-name-that-is-none.json", "[1, 2")
    (project.root / "bad.py").write_text(
        "def process(page, progress):\n"
        "    if '1' in page['source_path']: raise ValueError('far too much ' * 9)\n"
    )
    size = (columns, 60)
    with terminal(size, "nimbus.upload") as seen:
        assert seen.wait() == 3
        assert "refused" in seen.text
        assert_fits(seen)
    with terminal(size, "nimbus.worker", "--processor=bad:process") as seen:
        assert seen.wait() == 0
        assert re.search(r"❌ .*ValueError: far too much", seen.text)
        assert_fits(seen)
    with terminal(size, "nimbus.batch.status", "--batch=latest") as seen:
        assert seen.wait() == 0
        assert "Failed (" in seen.text
        assert_fits(seen)
    with terminal(size, "nimbus") as seen:
        assert seen.wait() == 0
        assert_fits(seen)


def assert_fits(seen: PseudoTerminal) -> None:
    """No line but a command to copy, or one long word, goes on in the next row."""
    columns = seen.screen.columns
    drawn = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\ufe0f", "", seen.raw.decode())
    for line in re.split(r"[\r\n]+", drawn):
        is_word = len(line.split()) <= 2
        assert len(line) <= columns or "invoke nimbus." in line or is_word, line


def test_a_burst_of_failures_of_a_worker_is_some_and_a_number(
    project: Project, store: Store, terminal: Run
) -> None:
    write_maps(project.folder / "maps", 60)
    upload(project, store, project.folder / "maps")
    (project.root / "bad.py").write_text("def process(page, progress):\n    raise OSError('no')\n")
    with terminal((80, 24), "nimbus.worker", "--processor=bad:process") as seen:
        assert seen.wait() == 0
        named = len(re.findall("❌ dist/page-", seen.text))
        more = sum(map(int, re.findall(r"❌ and (\d+) more failed", seen.text)))
        assert (named, more) == (WorkerDisplay.NAMED_OF_A_KIND, 55)
        *_, again = seen.text.split("Then work on them:")
        assert "--processor=bad:process" in again


def test_ctrl_c_in_a_wait_ends_the_waiting_alone(batch: Batch, terminal: Run) -> None:
    with terminal((80, 24), "nimbus.batch.wait") as seen:
        seen.shows("Waiting")
        seen.press("\x03")
        assert seen.wait() == 130
        assert f"detached; {batch.batch_id} goes on · To come back:" in seen.text
