"""Checking a folder before anything is written: what is usable, what is refused and why."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nimbus_tasks.core.maps import (
    ContentMap,
    Listing,
    RefusedMapError,
    find_map_files,
    read_map,
)
from nimbus_tasks.core.progress import Progress, Silent


@dataclass(frozen=True)
class Rejected:
    """A file that was refused, by name, and why."""

    file: str
    error: str


@dataclass(frozen=True)
class Checked:
    """What a folder holds: usable maps, refused files, the scan's listings."""

    maps: Sequence[ContentMap]
    rejected: Sequence[Rejected]
    listings: Sequence[str]


def check_folder(
    folder: Path, project_id: str, *, limit: int | None = None, progress: Progress | None = None
) -> Checked:
    """Read and check the maps of ``folder``: at most the first ``limit`` usable ones.

    Files that name the same page are refused together: which of them is meant, nobody can say.
    """
    progress = progress or Silent()
    maps: list[ContentMap] = []
    rejected: list[Rejected] = []
    listings: list[str] = []
    files = list(find_map_files(folder))
    progress.begin("Checking", len(files))
    for file in files:
        if limit is not None and len(maps) >= limit:
            break
        try:
            found = read_map(folder, file, project_id)
            if isinstance(found, Listing):
                listings.append(found.file)
            else:
                maps.append(found)
        except RefusedMapError as error:
            rejected.append(Rejected(file, str(error)))
        progress.advance()
    maps, twice = _without_twins(maps)
    return Checked(maps, sorted(rejected + twice, key=lambda r: r.file), listings)


def _without_twins(maps: list[ContentMap]) -> tuple[list[ContentMap], list[Rejected]]:
    if len({content_map.page_id for content_map in maps}) == len(maps):
        return maps, []
    files_of: dict[str, list[str]] = defaultdict(list)
    for content_map in maps:
        files_of[content_map.page_id].append(content_map.file)
    rejected = []
    for content_map in maps:
        others = [file for file in files_of[content_map.page_id] if file != content_map.file]
        if others:
            rejected.append(Rejected(content_map.file, f"names the same page as {others[0]}"))
    return [m for m in maps if len(files_of[m.page_id]) == 1], rejected
