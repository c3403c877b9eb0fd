"""What is seen of a batch: every line fits, counts add up, live blocks redraw without flicker."""

from __future__ import annotations

import io
import re
import unicodedata
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nimbus_tasks.core.batch_records import BatchHead
from nimbus_tasks.core.batches import BatchView
from nimbus_tasks.core.clock import to_iso
from nimbus_tasks.core.lifecycle import Tally
from nimbus_tasks.core.pace import UNKNOWN, Pace
from nimbus_tasks.core.pages import PageInfo
from nimbus_tasks.ui.batch_view import batch_lines, batch_table, mini_bar
from nimbus_tasks.ui.console import Console
from nimbus_tasks.ui.live import LiveBlock
from nimbus_tasks.ui.progress import ProgressBar
from nimbus_tasks.ui.style import Style
from nimbus_tasks.ui.text import width

NOW = datetime(2026, 11, 24, 12, 0, tzinfo=timezone.utc)
PLAIN = Style(colour=False, unicode=True)


def ago(seconds: float) -> str:
    return to_iso(NOW - timedelta(seconds=seconds))


def a_view(pages: list[dict[str, Any]], status: str = "processing", **fields: Any) -> BatchView:
    head = BatchHead("batch_20261124_115900", "proj", ago(60), len(pages), status, "run")
    tally = Tally(len(pages))
    for page in pages:
        tally.add(page)
    infos = [PageInfo(f"page_{number}", page) for number, page in enumerate(pages)]
    in_flight = [info for info in infos if info.status["status"] == "processing"]
    return BatchView(
        head=head,
        tally=tally,
        status=status,
        pace=fields.pop("pace", UNKNOWN),
        in_flight=in_flight,
        stalled=[info for info in in_flight if info.status.get("lease", "9") < to_iso(NOW)],
        failures=[info for info in infos if info.status["status"] == "failed"],
        **fields,
    )


def lines(view: BatchView, columns: int = 80, most: int = 10) -> list[str]:
    return batch_lines(view, PLAIN, columns, NOW, most=most)


ANY = st.text(st.characters(exclude_categories=()), max_size=90)
PAGES = st.lists(
    st.fixed_dictionaries(
        {
            "status": st.sampled_from(["queued", "processing", "done", "failed", "cancelled"]),
            "path": ANY,
            "step": ANY,
            "error": ANY,
            "code": ANY,
            "progress": st.floats(0, 100),
            "started": st.just(ago(5)),
            "lease": st.sampled_from([ago(30), ago(-30)]),
            "duration_ms": st.integers(0, 10**7),
        }
    ),
    max_size=12,
)


@settings(deadline=None)
@given(PAGES, st.sampled_from([60, 80, 200]))
def test_every_line_fits_whatever_the_pages_are_called(
    pages: list[dict[str, Any]], columns: int
) -> None:
    pace = Pace(1.5, 3600.0, 7200.0)
    shown = lines(a_view(pages, pace=pace), columns)
    assert [line for line in shown if width(line) > columns] == []
    categories = {unicodedata.category(char) for line in shown for char in line}
    assert not categories & {"Cc", "Cf", "Cs", "Zl", "Zp"}


def test_counts_that_are_shown_add_up() -> None:
    states = ["done"] * 5 + ["failed"] * 2 + ["queued"] * 3 + ["processing"] + ["cancelled"]
    text = "\n".join(lines(a_view([{"status": state} for state in states])))
    assert "8/12 pages  66%" in text
    for state, count in (("done", 5), ("failed", 2), ("queued", 3), ("processing", 1)):
        assert re.search(rf"{state} {count}\b", text)


def test_a_stalled_page_is_named_as_such_and_comes_first() -> None:
    pages = [
        {"status": "processing", "path": "alive.html", "lease": ago(-30), "started": ago(50)},
        {"status": "processing", "path": "gone.html", "lease": ago(20), "started": ago(90)},
    ]
    shown = lines(a_view(pages))
    gone = next(i for i, line in enumerate(shown) if "gone.html" in line)
    alive = next(i for i, line in enumerate(shown) if "alive.html" in line)
    assert gone < alive
    assert "stalled 20 s ago" in shown[gone]


def test_more_pages_than_fit_are_counted() -> None:
    pages = [{"status": "processing", "path": f"p{n}.html", "step": "ask"} for n in range(30)]
    assert "   … and 25 more" in lines(a_view(pages), most=5)


def test_a_page_in_flight_has_step_bar_and_time() -> None:
    page = {"status": "processing", "path": "a.html", "step": "ask", "progress": 50}
    [line] = [text for text in lines(a_view([{**page, "started": ago(7)}])) if "a.html" in text]
    assert "ask" in line
    assert mini_bar(50, PLAIN) in line
    assert line.endswith("7.0 s")


@pytest.mark.parametrize("columns", [60, 80])
@pytest.mark.parametrize("cancelled", [0, 1234])
def test_the_table_of_batches_fits(columns: int, cancelled: int) -> None:
    summary: dict[str, int | None] = {
        "completed": 99_000,
        "failed": 500,
        "pending": 500,
        "average_time_ms": 3,
    }
    summary["cancelled"] = cancelled
    rows = [("batch_20261124_115900", "partially_completed", ago(5), 100_000, summary)]
    assert all(width(line) <= columns for line in batch_table(rows, PLAIN, columns, NOW))


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self) -> bool:
        return True

    def taken(self) -> str:
        text = self.getvalue()
        self.seek(0)
        self.truncate()
        return text


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("LINES", "6")
    return Terminal()


def test_a_block_is_written_over_the_old_one(terminal: Terminal) -> None:
    block = LiveBlock(terminal)
    block.show(["one", "two"])
    first = terminal.taken()
    assert first.startswith("\x1b[?25l\r")  # nothing above it is touched
    block.show(["one", "three"])
    again = terminal.taken()
    assert "\x1b[2A\r" in again
    assert "three\x1b[K\n" in again
    assert "\x1b[2J" not in again  # never cleared, so it never flickers


def test_a_block_that_has_not_changed_is_not_written_again(terminal: Terminal) -> None:
    block = LiveBlock(terminal)
    block.show(["one"])
    terminal.taken()
    block.show(["one"])
    assert terminal.taken() == ""


def test_a_block_is_never_higher_than_the_terminal_and_clears_what_it_leaves(
    terminal: Terminal,
) -> None:
    block = LiveBlock(terminal)
    block.show([str(n) for n in range(50)])
    assert terminal.taken().count("\n") == 5
    block.show(["last"])
    shown = terminal.taken()
    assert "\x1b[5A\r" in shown
    assert shown.endswith("\x1b[J")


def test_a_narrower_terminal_counts_the_rows_of_broken_lines(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    block = LiveBlock(terminal)
    block.show(["x" * 39, "y"])
    terminal.taken()
    monkeypatch.setenv("COLUMNS", "20")
    block.show(["z"])
    assert "\x1b[3A\r" in terminal.taken()


def test_the_cursor_comes_back(terminal: Terminal) -> None:
    with LiveBlock(terminal) as block:
        block.show(["one"])
    assert terminal.getvalue().endswith("\x1b[?25h")


def test_a_progress_bar_is_silent_off_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressBar() as bar:
        bar.begin("Working", 10)
        bar.advance(5)
        bar.set_total(20)
        bar.note("1 failed")
    assert capsys.readouterr() == ("", "")


def test_a_console_of_json_says_everything_else_on_stderr(
    capsys: pytest.CaptureFixture[str],
) -> None:
    console = Console(json_only=True)
    console.say("a line")
    console.hint("never in a log")
    console.error("it\x1b[31m broke\n badly", "do\rthis")
    console.document({"text": "half \ud800", "n": 1})
    out, err = capsys.readouterr()
    assert out.startswith("{")
    assert err.splitlines()[0] == "a line"
    assert "it broke badly" in err.splitlines()[1]
    assert "do this" in err.splitlines()[1]
    assert len(err.splitlines()) == 2
