"""The commands to type next, as a person at a terminal reads them."""

from __future__ import annotations

from collections.abc import Sequence

from nimbus_tasks.core.advice import NextStep
from nimbus_tasks.ui.console import Console
from nimbus_tasks.ui.style import Style
from nimbus_tasks.ui.text import command_lines, wrap


def next_lines(steps: Sequence[NextStep], style: Style, columns: int) -> list[str]:
    """Why, and the command below it."""
    lines = []
    for step in steps:
        lines += [f"   {line}" for line in wrap(f"{step.why}:", columns, indent=3)]
        lines += [f"     {style.bold(line)}" for line in command_lines(step.command, columns - 5)]
    return ["", *lines] if lines else []


def show_next(console: Console, steps: Sequence[NextStep]) -> None:
    """Say them to a person at a terminal, not to a build's log, where they have their place
    already."""
    if console.is_terminal:
        console.say(*next_lines(steps, console.style, console.columns))
