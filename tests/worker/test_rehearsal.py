"""``nimbus.worker --dry-run``: what all queued pages may take."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from nimbus_tasks.core.project import Project
from nimbus_tasks.kv.store import Store
from nimbus_tasks.processors.llm_settings import LlmSettings
from nimbus_tasks.ui.style import Style
from nimbus_tasks.worker.rehearsal import rehearsal_lines, rehearse
from tests.factories import a_map, upload, write_map, write_maps

SETTINGS = LlmSettings(model="small", max_tokens=100, price_in=10.0, price_out=1000.0)


def last_lines(project: Project, store: Store, settings: LlmSettings) -> list[str]:
    return rehearsal_lines(rehearse(project, store, settings), Style(colour=False, unicode=True))


def test_all_queued_pages_are_estimated_by_some_of_them(project: Project, store: Store) -> None:
    maps = project.folder / "maps"
    write_maps(maps, 47)
    for number in range(3):
        there_is_nothing_to_ask = a_map(f"dist/empty-{number}.html", head={}, blocks=[])
        write_map(maps, f"empty-{number}.json", there_is_nothing_to_ask)
    upload(project, store, maps)
    rehearsal = rehearse(project, store, SETTINGS)
    one, queued = rehearsal.tokens, rehearsal.queued
    assert queued.pages == 50
    assert 42 * one <= queued.tokens_in <= 51 * one
    assert 4_200 <= queued.tokens_out <= 5_000
    assert queued.cost_in == pytest.approx(queued.tokens_in / 100_000)
    assert queued.cost_most == pytest.approx(queued.tokens_in / 100_000 + queued.tokens_out / 1000)


def test_it_is_said_to_be_an_estimate_and_names_no_price_that_is_not_set(
    project: Project, store: Store, maps: Path
) -> None:
    upload(project, store, maps)
    lines = last_lines(project, store, SETTINGS)[-6:]
    assert lines[0].startswith("Estimate by the length of the texts")
    assert lines[1].startswith("   this page        about ")
    assert lines[2].startswith("   10 queued        about ")
    assert lines[3] == " " * 20 + "at most 1,000 tokens out"
    assert re.fullmatch(r" +at most 1\.\d+ in all", lines[4])
    assert lines[5] == "Nothing was claimed, written or sent."
    free = last_lines(project, store, replace(SETTINGS, price_in=None, price_out=None))
    assert free[-5:] == [re.sub(r", \d.\d+$", "", line) for line in (*lines[:4], lines[5])]
