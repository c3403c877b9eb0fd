"""Where a command writes: results to stdout, messages to stderr, one document for a program."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shlex
import subprocess
import sys

import pytest

from nimbus_tasks.ui.console import DEFAULT_COLUMNS, Console, stdout_to_stderr, terminal_size
from tests.ui.terminal import FakeTerminal


class Streams:
    """stdout and stderr of a command, as bytes in an encoding."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, encoding: str = "utf-8") -> None:
        self._encoding = encoding
        self._out, self._err = io.BytesIO(), io.BytesIO()
        monkeypatch.setattr(sys, "stdout", self._open(self._out))
        monkeypatch.setattr(sys, "stderr", self._open(self._err))

    def _open(self, raw: io.BytesIO) -> io.TextIOWrapper:
        return io.TextIOWrapper(raw, encoding=self._encoding, newline="\n", write_through=True)

    @property
    def out(self) -> str:
        return self._out.getvalue().decode(self._encoding)

    @property
    def err(self) -> str:
        return self._err.getvalue().decode(self._encoding)


def test_what_is_said_is_a_result_and_goes_to_stdout(monkeypatch: pytest.MonkeyPatch) -> None:
    streams = Streams(monkeypatch)
    Console().say("one", "two")

    assert (streams.out, streams.err) == ("one\ntwo\n", "")


def test_a_note_is_no_result_and_goes_to_stderr(monkeypatch: pytest.MonkeyPatch) -> None:
    streams = Streams(monkeypatch)
    Console().note("waits")

    assert (streams.out, streams.err) == ("", "waits\n")


def test_a_command_to_paste_is_never_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    command = f"invoke nimbus.worker --command='node rewrite.js {'x' * 2000}' --concurrency=3"
    streams = Streams(monkeypatch)
    Console().stopped("stopped", "Go on with:", command)

    assert streams.err.endswith(f" stopped · Go on with: {command}\n")


@pytest.mark.parametrize("columns", [30, 60])
def test_a_command_is_broken_where_a_shell_lets_it(
    monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    terminal = FakeTerminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("NO_COLOR", "1")
    Console().stopped("stopped", "Go on with:", "invoke nimbus.worker --processor=a.b:c --lease=9")

    first, *rest = terminal.text.splitlines()
    assert first.endswith("Go on with:")
    assert shlex.split("\n".join(rest).replace("\\\n", "")) == [
        "invoke", "nimbus.worker", "--processor=a.b:c", "--lease=9"
    ]  # fmt: skip


def test_with_json_whatever_is_said_goes_to_stderr(monkeypatch: pytest.MonkeyPatch) -> None:
    streams = Streams(monkeypatch)
    console = Console(json_only=True)
    console.say("said")
    console.note("noted")
    console.error("wrong")

    assert streams.out == ""
    assert streams.err.splitlines() == ["said", "noted", "❌ wrong"]


def test_with_json_stdout_is_one_document(monkeypatch: pytest.MonkeyPatch) -> None:
    streams = Streams(monkeypatch)
    document = {"batch_id": "batch_1", "counts": {"done": 3}, "title": "Größe 漢字 \x1b[31m\n"}
    console = Console(json_only=True)
    console.say("before")
    console.document(document)
    console.say("after")

    assert json.loads(streams.out) == document
    assert "\x1b" not in streams.out


def test_documents_are_one_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    streams = Streams(monkeypatch)
    written = [{"line": "a\nb"}, {"漢字": None}, []]
    Console(json_only=True).documents(written)

    assert [json.loads(line) for line in streams.out.splitlines()] == written


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "cp1252"])
def test_half_a_surrogate_pair_does_not_break_a_document(
    monkeypatch: pytest.MonkeyPatch, encoding: str
) -> None:
    streams = Streams(monkeypatch, encoding)
    console = Console(json_only=True)
    console.document({"path": "dist/\ud800.html"})
    console.documents([{"path": "dist/\udcff.html"}])

    *first, second = streams.out.splitlines()
    assert json.loads("".join(first)) == {"path": "dist/?.html"}
    assert json.loads(second) == {"path": "dist/?.html"}


def test_half_a_surrogate_pair_does_not_end_a_command(monkeypatch: pytest.MonkeyPatch) -> None:
    streams = Streams(monkeypatch)
    console = Console()
    console.say("a\ud800b")
    console.note("c\udfffd")

    assert (streams.out, streams.err) == ("a?b\n", "c?d\n")


def test_what_is_not_json_is_not_written_as_json(monkeypatch: pytest.MonkeyPatch) -> None:
    streams = Streams(monkeypatch)
    with pytest.raises(ValueError, match="not JSON compliant"):
        Console(json_only=True).document({"confidence": float("nan")})

    assert streams.out == ""


def test_an_error_is_one_line_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    streams = Streams(monkeypatch)
    Console().error("no such batch: x", "See: invoke nimbus.batch.list")

    assert (streams.out, streams.err) == (
        "",
        "❌ no such batch: x · See: invoke nimbus.batch.list\n",
    )


def test_an_error_without_advice_is_one_line_too(monkeypatch: pytest.MonkeyPatch) -> None:
    streams = Streams(monkeypatch)
    Console().error("the store is locked")

    assert streams.err == "❌ the store is locked\n"


def test_an_error_that_quotes_strangers_stays_one_line_without_controls(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    streams = Streams(monkeypatch)
    Console().error("bad name:\r\n\x1b[2Jx\ud800\u202e", "Rename\n it\x07")

    assert streams.err == "❌ bad name: x\ufffd · Rename it\n"


def test_an_ascii_stream_gets_ascii(monkeypatch: pytest.MonkeyPatch) -> None:
    streams = Streams(monkeypatch, "ascii")
    console = Console()
    console.say("2–3 min left · █░…")
    console.error("no batch", "Upload")

    assert streams.out == "2-3 min left | #.~\n"
    assert streams.err == "!! no batch | Upload\n"


def test_what_an_ascii_stream_cannot_show_is_a_question_mark(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    streams = Streams(monkeypatch, "ascii")
    Console().say("Größe 漢字")

    assert streams.out == "Gr??e ??\n"


def test_a_stream_that_cannot_be_reconfigured_will_do(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = io.StringIO()
    monkeypatch.setattr(sys, "stdout", plain)
    Console().say("text")

    assert plain.getvalue() == "text\n"


def test_the_next_command_is_hinted_at_to_a_person(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = FakeTerminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setenv("NO_COLOR", "1")
    Console().hint("invoke nimbus.worker")

    assert terminal.text == "   next: invoke nimbus.worker\n"


def test_a_command_that_is_too_long_is_broken_between_its_words(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    terminal = FakeTerminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "40")
    Console().hint("invoke nimbus.batch.verify --repair --batch=one")

    assert terminal.text.splitlines() == [
        "   next: invoke nimbus.batch.verify \\",
        "     --repair --batch=one",
    ]


def test_the_next_command_is_no_matter_for_a_build_log(monkeypatch: pytest.MonkeyPatch) -> None:
    streams = Streams(monkeypatch)
    Console().hint("invoke nimbus.worker")

    assert (streams.out, streams.err) == ("", "")


def test_colours_go_to_the_stream_that_can_show_them(monkeypatch: pytest.MonkeyPatch) -> None:
    Streams(monkeypatch)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", FakeTerminal())
    console = Console()

    assert not console.style.colour
    assert console.error_style.colour


def test_with_json_the_style_is_that_of_stderr(monkeypatch: pytest.MonkeyPatch) -> None:
    Streams(monkeypatch)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", FakeTerminal())

    assert Console(json_only=True).style.colour


def test_a_line_is_as_wide_as_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "72")
    monkeypatch.setenv("LINES", "30")
    monkeypatch.setattr(sys, "stdout", FakeTerminal())

    assert Console().columns == 72
    assert terminal_size(FakeTerminal()) == (72, 30)


def test_off_a_terminal_the_width_does_not_depend_on_who_watches(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    Streams(monkeypatch)
    monkeypatch.setenv("COLUMNS", "33")

    assert Console().columns == DEFAULT_COLUMNS


def test_a_terminal_that_is_no_size_at_all_still_has_some_room(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "1")
    monkeypatch.setenv("LINES", "1")

    assert terminal_size(FakeTerminal()) == (20, 4)


@pytest.mark.skipif(sys.platform == "win32", reason="a terminal of POSIX")
def test_a_terminal_that_does_not_know_its_size_has_that_of_a_file(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import pty

    master, slave = pty.openpty()
    with os.fdopen(master, "rb"), os.fdopen(slave, "w", encoding="utf-8") as terminal:
        monkeypatch.setattr(sys, "__stdout__", terminal)
        assert terminal_size(terminal) == (DEFAULT_COLUMNS, 24)


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "cp1252"])
def test_json_is_ascii_without_controls_and_the_same_everywhere(
    monkeypatch: pytest.MonkeyPatch, encoding: str
) -> None:
    streams = Streams(monkeypatch, encoding)
    document = {"größe": '漢字 \U0001f4e6 \x9b31m \x7f \x85 \u2028 \\ " \t'}
    Console(json_only=True).document(document)

    assert json.loads(streams.out) == document
    assert all(" " <= char <= "~" or char == "\n" for char in streams.out)


def test_what_is_json_already_is_written_in_ascii_too(monkeypatch: pytest.MonkeyPatch) -> None:
    streams = Streams(monkeypatch)
    Console(json_only=True).json_text(['{"a": "', "é\x9b", '"}\n'])

    assert streams.out == '{"a": "\\u00e9\\u009b"}\n'


def test_a_stream_that_takes_nothing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(io.StringIO):
        def write(self, text: str, /) -> int:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(sys, "stdout", Full())
    with pytest.raises(OSError, match=r"No space left.*'stdout'"):
        Console().say("text")
    with pytest.raises(OSError, match=r"No space left.*'stdout'"):
        Console(json_only=True).document({})


def test_what_would_go_to_stdout_goes_to_stderr_and_only_meanwhile(
    capfd: pytest.CaptureFixture[str],
) -> None:
    def write(word: str) -> None:
        print(word, "print", flush=True)
        os.write(1, f"{word} descriptor\n".encode())
        subprocess.run([sys.executable, "-c", f"print('{word} program')"], check=True)

    write("before")
    with stdout_to_stderr():
        write("meanwhile")
    write("after")
    out, err = capfd.readouterr()

    ways = ("print", "descriptor", "program")
    assert out.splitlines() == [f"{word} {way}" for word in ("before", "after") for way in ways]
    assert err.splitlines() == [f"meanwhile {way}" for way in ways]


def test_a_stdout_without_a_descriptor_will_do(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    plain = io.StringIO()
    monkeypatch.setattr(sys, "stdout", plain)
    with contextlib.suppress(KeyError), stdout_to_stderr():
        print("meanwhile")
        os.write(1, b"too\n")
        raise KeyError
    print("after")

    assert plain.getvalue() == "after\n"
    assert capfd.readouterr() == ("", "meanwhile\ntoo\n")


def test_on_a_narrow_terminal_words_stay_whole_and_the_advice_has_a_line_of_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("NO_COLOR", "1")
    terminal = FakeTerminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    advice = "Install it in the project with: npm install --save-dev wrangler"
    Console().error("what runs the Worker is missing: wrangler is not installed", advice)

    assert "".join(terminal.writes) == (
        f"❌ what runs the Worker is missing:\n   wrangler is not installed\n   {advice}\n"
    )
