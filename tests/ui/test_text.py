"""Text from outside: nothing in it moves a cursor, and what is shown fits its columns."""

from __future__ import annotations

import os
import shlex
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nimbus_tasks.ui.text import clean, clip, command_lines, pad, shown, width

ANY = st.text(st.characters(exclude_categories=()), max_size=60)


@pytest.mark.parametrize(
    ("hostile", "shown"),
    [
        ("plain", "plain"),
        ("\x1b[31mred\x1b[0m", "red"),
        ("\x1b[2J\x1b[Hgone", "gone"),
        ("\x1b]52;c;c2VjcmV0\x07copied", "copied"),
        ("\x1b]8;;http://evil\x1b\\link\x1b]8;;\x1b\\", "link"),
        ("\x1b]0;title without end", ""),
        ("\x9b31mred", "red"),
        ("\x9d52;c;x\x9cdone", "done"),
        ("\x1bPdevice\x1b\\x", "x"),
        ("\x1bcreset", "reset"),
        ("a\rb", "a b"),
        ("two\nlines\tand\vmore", "two lines and more"),
        ("\u202eevil\u202c \u2066x\u2069", "evil x"),
        ("zero\u200bwidth\ufeff", "zerowidth"),
        ("half \ud800 pair", "half \N{REPLACEMENT CHARACTER} pair"),
        ("nul\x00 del\x7f", "nul del"),
        ("日本語 é 🎉", "日本語 é 🎉"),
        ("  around  ", "around"),
    ],
)
def test_what_a_terminal_would_obey_is_taken_out(hostile: str, shown: str) -> None:
    assert clean(hostile) == shown


@given(ANY)
def test_nothing_that_a_terminal_would_obey_is_left(text: str) -> None:
    found = {unicodedata.category(char) for char in clean(text)}
    assert not found & {"Cc", "Cf", "Cs", "Zl", "Zp"}


@given(ANY)
def test_clean_text_is_left_as_it_is(text: str) -> None:
    assert clean(clean(text)) == clean(text)


@pytest.mark.parametrize(
    ("text", "columns"),
    [
        ("abc", 3),
        ("日本", 4),
        ("e\u0301", 1),
        ("✅", 2),
        ("⚙️", 2),
        ("\x1b[31mred\x1b[0m", 3),
        ("", 0),
    ],
)
def test_width_is_counted_in_columns(text: str, columns: int) -> None:
    assert width(text) == columns


@given(ANY.map(clean), st.integers(0, 40), st.booleans())
def test_what_is_clipped_fits(text: str, columns: int, keep_end: bool) -> None:
    clipped = clip(text, columns, keep_end=keep_end)
    assert width(clipped) <= columns
    assert clipped == text or "…" in clipped or columns == 0


def test_the_end_of_a_path_is_kept_where_that_says_more() -> None:
    assert clip("dist/brands/fossil.html", 12, keep_end=True) == "…fossil.html"
    assert clip("dist/brands/fossil.html", 12) == "dist/brands…"


@given(ANY.map(clean), st.integers(0, 40))
def test_padding_fills_and_never_cuts(text: str, columns: int) -> None:
    assert width(pad(text, columns)) == max(width(text), columns)
    assert pad(text, columns, right=True).endswith(text)


@pytest.mark.parametrize("keep_end", [False, True])
@pytest.mark.parametrize("text", ["x" * 10**6, "\u200b" * 10**6 + "x", "\x1b[" * 10**6, "長" * 99])
def test_a_text_is_shown_as_far_as_there_is_room(text: str, keep_end: bool) -> None:
    found = shown(text, 50, keep_end=keep_end)
    assert len(found) <= 50
    assert found.strip("…").isprintable()
    assert "…" in found


def test_a_text_that_fits_is_shown_whole_and_none_is_nothing() -> None:
    assert [shown(text, 3) for text in (None, "", 0, " abc\n")] == ["", "", "0", "abc"]
    assert [shown("abcd", 3, keep_end=end) for end in (False, True)] == ["ab…", "…cd"]


@pytest.mark.skipif(
    os.name == "nt", reason="cmd.exe knows neither these quotes nor a line that goes on"
)
@given(st.lists(st.text(" 'ab\"\\\\", max_size=9).map(shlex.quote), min_size=1), st.integers(1, 40))
def test_a_command_is_broken_between_its_words_as_a_shell_takes_it(
    words: list[str], columns: int
) -> None:
    lines = command_lines(" ".join(["invoke", *words]), columns)
    joined = "\n".join(lines).replace("\\\n", "")  # as a shell does
    assert shlex.split(joined) == shlex.split(" ".join(["invoke", *words]))
    longest = max(map(width, ["invoke", *words]))
    assert all(width(line) <= max(columns, longest + len("invoke  \\")) for line in lines)
