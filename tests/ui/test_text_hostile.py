"""Text of strangers, one trick at a time; and cuts that keep letters whole."""

from __future__ import annotations

import re
import unicodedata

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from nimbus_tasks.ui.text import clean, clip, pad, width

PROPERTY = settings(derandomize=True, deadline=None, max_examples=300)

#: Text as somebody would write it who wants to take a terminal over.
HOSTILE = st.lists(
    st.one_of(
        st.text(),
        st.characters(categories=["Cc", "Cf", "Cs", "Zl", "Zp"]),
        st.sampled_from(
            ["\x1b", "\x1b[", "\x1b]", "\x1bP", "\x1b\\", "\x07", "\x9b", "\x9d", "\x9c", "[31m"]
        ),
        st.sampled_from(["\r\n", "\u202e", "\ud800", "2J", ";", "?25l", "8;;http://x"]),
    ),
    max_size=12,
).map("".join)

#: Clean text of every width: plain, wide, combining, emoji of several code points.
READABLE = st.lists(
    st.one_of(
        st.text(max_size=6),
        st.sampled_from(["a", "e\u0301", "漢字", "カ", "⚙️", "📦", "👨👩👧", "🇩🇪", "1️⃣"]),
    ),
    max_size=20,
).map(lambda parts: clean("".join(parts)))


@pytest.mark.parametrize(
    ("dirty", "expected"),
    [
        ("\x1b[1;31mred", "red"),
        ("\x1b[?25lhidden", "hidden"),
        ("\x1b[38:2::255:0:0mred", "red"),
        ("\x1b[ qcursor", "cursor"),
        ("\x1b(Bcharset", "charset"),
        ("\x9b31mred\x9b0m", "red"),
    ],
)
def test_a_sequence_goes_whole(dirty: str, expected: str) -> None:
    assert clean(dirty) == expected


@pytest.mark.parametrize("end", ["\x07", "\x1b\\", "\x9c"])
@pytest.mark.parametrize("start", ["\x1b]", "\x9d"])
def test_of_a_hyperlink_the_text_stays_and_the_address_goes(start: str, end: str) -> None:
    link = f"see {start}8;;http://evil.example{end}here{start}8;;{end}!"

    assert clean(link) == "see here!"


@pytest.mark.parametrize("end", ["\x07", "\x1b\\", "\x9c"])
def test_nothing_is_put_on_the_clipboard(end: str) -> None:
    assert clean(f"before \x1b]52;c;cm0gLXJmIC8={end}after") == "before after"


@pytest.mark.parametrize(
    "start", ["\x1bP", "\x1bX", "\x1b^", "\x1b_", "\x90", "\x98", "\x9e", "\x9f"]
)
def test_device_control_and_private_strings_go_whole(start: str) -> None:
    assert clean(f"before {start}q#0;1\x1b\\after") == "before after"


@pytest.mark.parametrize("code", [*range(0x09), *range(0x0E, 0x1C), *range(0x7F, 0xA0)])
def test_no_control_is_left_over(code: int) -> None:
    assert clean(f"a{chr(code)}b\\").isprintable()


@pytest.mark.parametrize(
    "mark", list("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u200f")
)
def test_no_mark_turns_the_direction_of_the_text(mark: str) -> None:
    assert clean(f"invoice{mark}fdp.exe") == "invoicefdp.exe"


@pytest.mark.parametrize(
    "gap", ["\n", "\r", "\r\n", "\t", "\v", "\f", "\x85", "\u2028", "\u2029", "\n \t\n", "\x1c"]
)
def test_breaks_tabs_and_runs_of_space_become_one_space(gap: str) -> None:
    assert clean(f"one{gap}two") == "one two"


@pytest.mark.parametrize(
    "rest", ["\x1b", "\x1b[", "\x1b[31", "\x1b[?", "\x1b]8;;http://x", "\x1bPq", "\x9b3", "\x9d0;t"]
)
def test_a_sequence_that_does_not_end_leaves_the_text_before_it_and_no_control(rest: str) -> None:
    cleaned = clean(f"before{rest}")

    assert cleaned.startswith("before")
    assert cleaned.isprintable()


def test_a_sequence_inside_a_sequence_does_not_put_a_new_one_together() -> None:
    assert clean("\x1b[\x1b[31m31mred\x1b\x1b[0m").isprintable()


def test_wrongly_decoded_text_does_not_lose_what_follows() -> None:
    mojibake = "He said “no” and the page failed".encode().decode("latin-1")

    assert clean(mojibake).endswith("and the page failed")


@pytest.mark.parametrize("between", ["\0", "\u200b", "\u202e"])
def test_what_is_taken_out_between_spaces_leaves_one_space(between: str) -> None:
    assert clean(f"one {between} two") == "one two"


@pytest.mark.parametrize(
    "text", ["Größe – 漢字 · 한국어", "عربي", "📦 ⚙️ ok", "e\u0301", "a < b & c\\d"]
)
def test_text_that_is_clean_stays_as_it_is(text: str) -> None:
    assert clean(text) == text


@pytest.mark.parametrize(("value", "expected"), [(None, "None"), (7, "7"), (["a\n"], "['a\\n']")])
def test_what_is_no_text_is_shown_as_text(value: object, expected: str) -> None:
    assert clean(value) == expected


@PROPERTY
@given(HOSTILE)
@example("\x1b]\x1b[31m")
@example("\x9b\x9b31m")
def test_nothing_that_a_terminal_obeys_is_left_and_it_is_one_line(text: str) -> None:
    cleaned = clean(text)

    assert not {unicodedata.category(char) for char in cleaned} & {"Cc", "Cf", "Cs", "Zl", "Zp"}
    assert len(cleaned.splitlines()) <= 1
    assert cleaned == cleaned.strip()


@pytest.mark.parametrize(
    ("text", "columns"),
    [("ｆｕ", 4), ("한국", 4), ("a\u0300\u0301\u0302b", 2), ("🇩🇪", 2), ("1️⃣", 2), ("…–·█░", 5)],
)
def test_a_width_is_in_columns_not_in_characters(text: str, columns: int) -> None:
    assert width(text) == columns


@pytest.mark.parametrize("code", ["32", "1;31", "0", ""])
def test_our_own_colours_take_no_columns(code: str) -> None:
    coloured = f"\x1b[{code}mok ✅\x1b[0m"

    assert width(coloured) == 5
    assert pad(coloured, 7) == f"{coloured}  "
    assert pad(coloured, 7, right=True) == f"  {coloured}"


@pytest.mark.parametrize("text", ["page", "漢字", "e\u0301e\u0301e\u0301e\u0301", "📦📦"])
def test_what_fits_is_not_cut(text: str) -> None:
    assert clip(text, 4) == text
    assert clip(text, 4, keep_end=True) == text


def test_a_wide_character_is_not_cut_in_half() -> None:
    assert clip("漢字漢字", 6) == "漢字…"
    assert clip("漢字漢字", 6, keep_end=True) == "…漢字"


def test_an_accent_stays_with_its_letter_at_the_end_of_a_cut() -> None:
    assert clip("abe\u0301cd", 4) == "abe\u0301…"


def test_an_accent_goes_with_its_letter_at_the_beginning_of_a_cut() -> None:
    assert clip("abe\u0301cd", 3, keep_end=True) == "…cd"


@pytest.mark.parametrize(("columns", "expected"), [(0, ""), (1, "…")])
def test_where_there_is_no_room_there_is_no_text(columns: int, expected: str) -> None:
    assert clip("page", columns) == expected
    assert clip("page", columns, keep_end=True) == expected


@PROPERTY
@given(READABLE, st.integers(0, 40), st.booleans())
def test_what_is_cut_fits_and_is_a_piece_of_the_text(
    text: str, columns: int, keep_end: bool
) -> None:
    cut = clip(text, columns, keep_end=keep_end)

    assert width(cut) <= columns
    if width(text) > columns > 0:
        kept = cut.removeprefix("…") if keep_end else cut.removesuffix("…")
        assert len(kept) == len(cut) - 1
        assert text.endswith(kept) if keep_end else text.startswith(kept)
        assert width(cut) >= columns - 1  # a wide character may leave one column empty


@PROPERTY
@given(READABLE, st.integers(0, 60), st.booleans())
def test_what_is_filled_has_its_columns_and_all_of_its_text(
    text: str, columns: int, right: bool
) -> None:
    padded = pad(text, columns, right=right)

    assert width(padded) == max(columns, width(text))
    assert re.fullmatch(rf" *{re.escape(text)} *", padded)
