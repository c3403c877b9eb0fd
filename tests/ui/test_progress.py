"""The progress bar: on stderr, for whoever watches, and silent for everybody else."""

from __future__ import annotations

import pytest

from nimbus_tasks.ui.progress import ProgressBar
from tests.ui.terminal import FakeTerminal


def a_terminal(monkeypatch: pytest.MonkeyPatch) -> FakeTerminal:
    """A terminal in the place of stderr."""
    fake = FakeTerminal()
    monkeypatch.setattr("sys.stderr", fake)
    monkeypatch.delenv("CI", raising=False)  # there no terminal is drawn on
    monkeypatch.setenv("COLUMNS", "80")
    return fake


def use(bar: ProgressBar) -> None:
    """All that a command does with a bar."""
    with bar:
        bar.begin("checking", 3)
        bar.advance()
        bar.set_total(5)
        bar.note("dist/page.html")
        bar.advance(4)
        bar.begin("sending", None)
        bar.advance()


def test_off_a_terminal_it_is_silent(capsys: pytest.CaptureFixture[str]) -> None:
    use(ProgressBar())

    assert capsys.readouterr() == ("", "")


def test_on_a_terminal_it_goes_to_stderr_alone(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = a_terminal(monkeypatch)
    use(ProgressBar())

    assert "checking" in terminal.text
    assert "sending" in terminal.text
    assert "page/s" in terminal.text
    assert capsys.readouterr().out == ""


def test_a_bar_that_ends_is_taken_away(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = a_terminal(monkeypatch)
    with ProgressBar() as bar:
        bar.begin("checking", 3)

    assert terminal.text.rsplit("\r", 2)[1].strip() == ""
    assert "\n" not in terminal.text


def test_the_total_may_change(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = a_terminal(monkeypatch)
    with ProgressBar() as bar:
        bar.begin("working", 3)
        bar.set_total(7)

    assert "0/3" in terminal.text
    assert "0/7" in terminal.text


def test_a_total_that_stays_writes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = a_terminal(monkeypatch)
    with ProgressBar() as bar:
        bar.begin("working", 3)
        before = len(terminal.writes)
        bar.set_total(3)

        assert len(terminal.writes) == before


def test_a_bar_that_has_not_begun_takes_whatever_comes(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with ProgressBar() as bar:
        bar.advance()
        bar.set_total(3)
        bar.note("x")

    assert capsys.readouterr() == ("", "")


def test_a_line_that_stays_goes_to_stderr_on_a_terminal_or_off_one(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with ProgressBar() as bar:
        bar.begin("working", 3)
        bar.write("page failed")

    assert capsys.readouterr() == ("", "page failed\n")


def test_a_line_that_stays_stands_above_the_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = a_terminal(monkeypatch)
    with ProgressBar() as bar:
        bar.begin("working", 3)
        bar.write("page failed")

        assert "page failed\n" in terminal.text
        assert "working" in terminal.text.split("page failed\n")[1]
