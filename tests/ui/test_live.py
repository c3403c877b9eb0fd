"""Live frames: redrawn in place, only where something changed, and never more than fits."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nimbus_tasks.ui.live import LiveBlock
from tests.ui.terminal import FakeTerminal, Screen

PROPERTY = settings(derandomize=True, deadline=None, max_examples=100)
COLUMNS, LINES = 40, 8
HIDE, SHOW = "\x1b[?25l", "\x1b[?25h"


@pytest.fixture(autouse=True)
def _size(monkeypatch: pytest.MonkeyPatch) -> None:
    resize(monkeypatch, COLUMNS, LINES)


def resize(monkeypatch: pytest.MonkeyPatch, columns: int, lines: int) -> None:
    """The terminal has that size from now on."""
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("LINES", str(lines))


def screen_of(terminal: FakeTerminal) -> Screen:
    """What a terminal shows of all that was written, below the command that was typed."""
    return Screen(COLUMNS, LINES).feed("$ monitor\r\n" + terminal.text.replace("\n", "\r\n"))


def test_a_frame_is_shown_below_what_was_there() -> None:
    terminal = FakeTerminal()
    LiveBlock(terminal).show(["one", "two"])

    assert screen_of(terminal).shown == ["$ monitor", "one", "two"]


def test_the_next_frame_takes_the_place_of_the_last() -> None:
    terminal = FakeTerminal()
    block = LiveBlock(terminal)
    block.show(["one", "two"])
    block.show(["1", "two"])

    assert screen_of(terminal).shown == ["$ monitor", "1", "two"]


def test_lines_that_have_not_changed_write_nothing() -> None:
    terminal = FakeTerminal()
    block = LiveBlock(terminal)
    block.show(["one", "two"])
    written = len(terminal.writes)
    block.show(["one", "two"])
    block.show(("one", "two"))

    assert len(terminal.writes) == written


def test_a_frame_is_one_write() -> None:
    terminal = FakeTerminal()
    LiveBlock(terminal).show(["one", "two", "three"])

    assert len(terminal.writes) == 1


def test_no_frame_clears_the_screen_or_a_line_before_it_is_written() -> None:
    terminal = FakeTerminal()
    block = LiveBlock(terminal)
    block.show(["one", "two"])
    block.show(["three", "two"])

    frame = terminal.writes[-1]
    assert "\x1b[2J" not in frame
    assert "\x1b[J" not in frame[: frame.index("two")]
    assert frame.index("three") < frame.index("\x1b[K")


def test_a_shorter_frame_clears_the_rest() -> None:
    terminal = FakeTerminal()
    block = LiveBlock(terminal)
    block.show(["one", "two", "three", "four"])
    block.show(["1"])

    assert screen_of(terminal).shown == ["$ monitor", "1"]


def test_a_shorter_line_clears_the_rest_of_the_line() -> None:
    terminal = FakeTerminal()
    block = LiveBlock(terminal)
    block.show(["a long line", "two"])
    block.show(["short", "two"])

    assert screen_of(terminal).shown == ["$ monitor", "short", "two"]


def test_a_longer_frame_pushes_nothing_out_of_place() -> None:
    terminal = FakeTerminal()
    block = LiveBlock(terminal)
    block.show(["one"])
    block.show(["one", "two", "three"])
    block.show(["one", "two", "3"])

    assert screen_of(terminal).shown == ["$ monitor", "one", "two", "3"]


def test_the_cursor_is_hidden_while_the_block_lives_and_comes_back() -> None:
    terminal = FakeTerminal()
    with LiveBlock(terminal) as block:
        block.show(["one"])
        assert not screen_of(terminal).cursor_shown

    assert screen_of(terminal).cursor_shown


def test_the_cursor_comes_back_when_somebody_interrupts() -> None:
    terminal = FakeTerminal()

    def watch() -> None:
        with LiveBlock(terminal) as block:
            block.show(["one"])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        watch()
    assert screen_of(terminal).cursor_shown


def test_the_cursor_comes_back_after_an_empty_frame() -> None:
    terminal = FakeTerminal()
    with LiveBlock(terminal) as block:
        block.show(["one"])
        block.show([])

    assert screen_of(terminal).cursor_shown


def test_the_cursor_comes_back_when_the_first_frame_is_interrupted() -> None:
    class Interrupted(FakeTerminal):
        def flush(self) -> None:
            if SHOW not in self.text:
                raise KeyboardInterrupt

    terminal = Interrupted()

    def watch() -> None:
        with LiveBlock(terminal) as block:
            block.show(["one"])

    with pytest.raises(KeyboardInterrupt):
        watch()
    assert screen_of(terminal).cursor_shown


def test_a_block_that_never_showed_anything_writes_nothing() -> None:
    terminal = FakeTerminal()
    with LiveBlock(terminal):
        pass

    assert terminal.writes == []


def test_what_was_shown_last_stays_and_the_prompt_comes_below_it() -> None:
    terminal = FakeTerminal()
    with LiveBlock(terminal) as block:
        block.show(["one", "two"])
    terminal.write("$ ")

    assert screen_of(terminal).shown == ["$ monitor", "one", "two", "$"]


@pytest.mark.parametrize("count", [LINES - 1, LINES, LINES + 1, 100])
def test_a_frame_is_never_higher_than_the_terminal(count: int) -> None:
    terminal = FakeTerminal()
    block = LiveBlock(terminal)
    block.show([f"line {number}" for number in range(count)])
    block.show([f"LINE {number}" for number in range(count)])
    screen = screen_of(terminal)

    assert screen.shown == [f"LINE {number}" for number in range(LINES - 1)]
    assert screen.scrolled == ["$ monitor"]


def test_a_block_may_have_a_line_less_than_the_terminal() -> None:
    assert LiveBlock(FakeTerminal()).size == (COLUMNS, LINES - 1)


@PROPERTY
@given(
    st.lists(
        st.lists(st.text("ab ", min_size=1, max_size=COLUMNS - 1), min_size=1, max_size=LINES + 2),
        min_size=1,
        max_size=6,
    )
)
def test_whatever_came_before_the_screen_shows_the_last_frame(frames: list[list[str]]) -> None:
    terminal = FakeTerminal()
    block = LiveBlock(terminal)
    for frame in frames:
        block.show(frame)
    screen = screen_of(terminal)
    all_lines = [*screen.scrolled, *screen.shown]
    last = [line.rstrip() for line in frames[-1][: LINES - 1]]
    while last and not last[-1]:
        last.pop()

    # Nothing but the command is above the frame: no rest of an earlier one, no line twice.
    assert all_lines == ["$ monitor", *last]


def test_a_line_as_wide_as_the_terminal_keeps_its_last_character() -> None:
    terminal = FakeTerminal()
    LiveBlock(terminal).show(["x" * COLUMNS])

    assert screen_of(terminal).shown == ["$ monitor", "x" * COLUMNS]


def test_after_a_resize_the_same_lines_are_written_again(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = FakeTerminal()
    block = LiveBlock(terminal)
    block.show(["one"])
    resize(monkeypatch, COLUMNS + 10, LINES)
    block.show(["one"])

    assert len(terminal.writes) == 2


@pytest.mark.parametrize(
    ("line", "rows"), [("x" * 20, 1), ("x" * 21, 2), ("x" * 39, 2), ("漢" * 11, 2), ("", 1)]
)
def test_a_narrower_terminal_that_breaks_lines_is_counted_in_rows(
    monkeypatch: pytest.MonkeyPatch, line: str, rows: int
) -> None:
    terminal = FakeTerminal()
    block = LiveBlock(terminal)
    block.show(["one", line])
    resize(monkeypatch, 20, LINES)
    block.show(["1", "2"])

    assert f"\x1b[{1 + rows}A\r" in terminal.writes[-1]


def test_colours_are_not_counted_where_lines_break(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = FakeTerminal()
    block = LiveBlock(terminal)
    block.show([f"\x1b[32m{'x' * 20}\x1b[0m"])
    resize(monkeypatch, 20, LINES)
    block.show(["1"])

    assert "\x1b[1A\r" in terminal.writes[-1]


def test_the_cursor_never_goes_above_a_terminal_that_has_shrunk(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    terminal = FakeTerminal()
    block = LiveBlock(terminal)
    block.show(["x" * 39] * 7)
    resize(monkeypatch, 20, 5)
    block.show(["1"] * 7)

    assert "\x1b[4A\r" in terminal.writes[-1]
    assert terminal.writes[-1].count("\n") == 4
