"""Colours and signs: as the environment and the stream allow, and one for every state."""

from __future__ import annotations

import io

import pytest

from nimbus_tasks.core.lifecycle import BatchStatus, PageState
from nimbus_tasks.ui.style import Style, style_for
from nimbus_tasks.ui.text import width
from tests.ui.terminal import FakeTerminal

STATES = sorted({state.value for state in (*PageState, *BatchStatus)} | {"stalled"})
FULL, BARE = Style(colour=True, unicode=True), Style(colour=False, unicode=False)


def a_file(encoding: str = "utf-8") -> io.TextIOWrapper:
    """A stream that is no terminal."""
    return io.TextIOWrapper(io.BytesIO(), encoding=encoding)


@pytest.fixture(autouse=True)
def a_capable_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")


def test_a_terminal_shows_colours() -> None:
    assert style_for(FakeTerminal()).colour


def test_a_file_is_written_without_colours() -> None:
    assert not style_for(a_file()).colour


def test_no_color_switches_colours_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")

    assert not style_for(FakeTerminal()).colour


def test_an_empty_no_color_means_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "")

    assert style_for(FakeTerminal()).colour


def test_a_dumb_terminal_gets_no_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")

    assert not style_for(FakeTerminal()).colour


def test_force_color_colours_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")

    assert style_for(a_file()).colour


def test_an_empty_force_color_means_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "")

    assert not style_for(a_file()).colour


@pytest.mark.parametrize(("name", "value"), [("NO_COLOR", "1"), ("TERM", "dumb")])
def test_who_wants_no_colours_has_the_last_word(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv(name, value)

    assert not style_for(FakeTerminal()).colour


@pytest.mark.parametrize("encoding", ["utf-8", "UTF-8", "utf8", "utf-16"])
def test_a_stream_that_can_encode_everything_shows_signs(encoding: str) -> None:
    assert style_for(a_file(encoding)).unicode


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "cp437"])
def test_a_stream_that_cannot_shows_ascii(encoding: str) -> None:
    assert not style_for(a_file(encoding)).unicode


def test_a_stream_that_does_not_say_what_it_can_shows_ascii() -> None:
    assert not style_for(io.StringIO()).unicode


@pytest.mark.parametrize("state", STATES)
def test_each_state_has_a_sign_two_columns_wide(state: str) -> None:
    assert width(FULL.sign(state)) == 2
    assert FULL.sign(state) != FULL.sign("no state at all")


@pytest.mark.parametrize("state", STATES)
def test_each_state_has_an_ascii_sign_two_columns_wide(state: str) -> None:
    sign = BARE.sign(state)

    assert sign.isascii()
    assert len(sign) == 2
    assert state == "stalled" or sign != BARE.sign("no state at all")


@pytest.mark.parametrize("state", ["ok", "warning", "error", "batch"])
def test_what_is_said_of_other_things_has_a_sign_too(state: str) -> None:
    assert width(FULL.sign(state)) == 2
    assert FULL.sign(state) != FULL.sign("no state at all")
    assert BARE.sign(state).isascii()


@pytest.mark.parametrize(
    "state",
    STATES,
)
def test_each_state_has_a_colour(state: str) -> None:
    assert FULL.state(state) != FULL.state("no state at all", state.replace("_", " "))


@pytest.mark.parametrize(
    "group",
    [
        ("completed", "done", "ok"),
        ("failed", "error"),
        ("partially_completed", "warning"),
    ],
)
def test_what_means_the_same_has_the_same_colour(group: tuple[str, ...]) -> None:
    assert len({FULL.state(state, "text") for state in group}) == 1


def test_good_and_bad_differ_in_colour_and_in_sign() -> None:
    for style in (FULL, Style(colour=False, unicode=True), BARE):
        ends = ("completed", "partially_completed", "failed", "cancelled")
        assert len({style.sign(state) for state in ends}) == len(ends)
    assert len({FULL.state(state, "text") for state in ("done", "failed", "cancelled")}) == 3


@pytest.mark.parametrize("state", STATES)
def test_a_state_is_named_in_words_where_there_is_no_colour(state: str) -> None:
    assert BARE.state(state) == state.replace("_", " ")


def test_colour_ends_where_the_text_ends() -> None:
    assert FULL.state("failed", "3") == "\x1b[31m3\x1b[0m"
    assert FULL.bold("x") == "\x1b[1mx\x1b[0m"
    assert FULL.dim("x").endswith("x\x1b[0m")


def test_nothing_is_not_coloured() -> None:
    assert FULL.paint("", "31") == ""


def test_without_colour_text_is_left_alone() -> None:
    assert BARE.bold("x") == BARE.dim("x") == BARE.paint("x", "1;31") == "x"


def test_our_typographic_signs_have_ascii_in_their_place() -> None:
    assert BARE.plain("a… 2–3 · ─ █▓░ → ≥") == "a~ 2-3 | - #=. > >"


def test_where_there_is_unicode_signs_stay() -> None:
    assert FULL.plain("a… █") == "a… █"


def test_the_text_of_strangers_is_not_rewritten() -> None:
    assert BARE.plain("Größe 漢字") == "Größe 漢字"
