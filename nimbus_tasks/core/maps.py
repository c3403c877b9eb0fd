"""Content maps: what a folder of them holds, which are usable, and why the others are not.

A content map is the JSON object that a scan of a site writes for one page: ``path`` (or ``route``,
or ``url``), ``head`` and ``blocks``. Nothing here keeps a map's content: a folder of 100,000 maps
is checked with the memory of one.
"""

from __future__ import annotations

import codecs
import hashlib
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from nimbus_tasks.core.errors import UsageError
from nimbus_tasks.core.keys import page_id_for
from nimbus_tasks.core.wire import NoJsonError, dump_json, strict_loads
from nimbus_tasks.kv.store import MAX_VALUE_BYTES

#: What the page record needs besides the map: ids, path, times.
_RECORD_BYTES = 16 * 1024
MAX_MAP_BYTES = MAX_VALUE_BYTES - _RECORD_BYTES
MAX_PATH_LENGTH = 2048
_PATH_FIELDS = ("path", "route", "url")
#: What a listing gives of each page.
_PAGE_FIELDS = frozenset({"file", *_PATH_FIELDS})


class RefusedMapError(Exception):
    """Why a file is no usable content map: one line for a person."""


@dataclass(frozen=True, slots=True)
class ContentMap:
    """A usable map. ``file`` is relative to its folder; ``digest`` is the SHA-256 of its text."""

    file: str
    source_path: str
    page_id: str
    digest: bytes
    size: int

    @property
    def sha256(self) -> str:
        """The digest as the page record has it, in hex."""
        return self.digest.hex()


@dataclass(frozen=True)
class Listing:
    """The scan's own listing of its pages (often ``index.json``): no page, and no fault."""

    file: str


def find_map_files(folder: Path) -> Iterator[str]:
    """Every ``*.json`` under ``folder``, in the order of their names; what is hidden, and links to
    folders, are left out.

    As names below the folder, with ``/``: of 100,000 of them paths would take 39 MB. Raises
    :class:`UsageError` where ``folder`` is none or cannot be read.
    """
    # A stack, as folders may lie in one another deeper than calls may.
    levels = [("", iter(_children(folder)))]
    while levels:
        above, children = levels[-1]
        child = next(children, None)
        if child is None:
            levels.pop()
        elif child.name.startswith("."):
            continue
        elif child.is_dir(follow_symlinks=False):
            levels.append((f"{above}{child.name}/", iter(_children(Path(child.path)))))
        elif child.name.lower().endswith(".json"):
            yield above + child.name


def _children(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as found:
            return sorted(found, key=lambda child: child.name)
    except NotADirectoryError:
        raise UsageError(f"{folder} is no folder", advice="Give one with --folder.") from None
    except FileNotFoundError:
        raise UsageError(
            f"there is no folder {folder}", advice="Put your content maps there, or give --folder."
        ) from None
    except OSError as error:
        raise UsageError(f"cannot read {folder}: {error.strerror}") from error


def read_map(folder: Path, file: str, project_id: str) -> ContentMap | Listing:
    """Check one file of a folder. Raises :class:`RefusedMapError` for one that is no usable map."""
    data, digest = read_map_data(folder, file)
    try:
        content = strict_loads(data.decode())
    except UnicodeDecodeError as error:
        raise RefusedMapError(f"is not UTF-8 text (byte {error.start})") from error
    except NoJsonError as error:
        raise RefusedMapError(str(error)) from error
    if not isinstance(content, dict):
        raise RefusedMapError(f"holds {_kind(content)}, not an object")
    if _is_listing(content):
        return Listing(file)
    source_path = _source_path(content)
    _check_shape(content)
    return ContentMap(
        file=file,
        source_path=source_path,
        page_id=page_id_for(project_id, source_path),
        digest=digest,
        size=len(data),
    )


class MapData(NamedTuple):
    """The JSON of a map's file, without a byte order mark and outer white space; the SHA-256 that
    it is recognised by. As bytes, which take half of what a text with one typographic dash does."""

    data: bytes
    digest: bytes


def read_map_data(folder: Path, file: str) -> MapData:
    """Read a map's file. Raises :class:`RefusedMapError` where it cannot be."""
    path = folder / file
    try:
        if path.is_symlink() and not path.resolve().is_relative_to(folder.resolve()):
            raise RefusedMapError("is a link that leads out of the folder")
        found = path.stat()
        # Opening a pipe would wait for a writer that may never come.
        if not stat.S_ISREG(found.st_mode):
            raise RefusedMapError("is no regular file")
        if found.st_size > MAX_MAP_BYTES:
            raise RefusedMapError(
                f"is too large: {found.st_size / 2**20:.1f} MB; a store takes"
                f" {MAX_MAP_BYTES / 2**20:.0f} MB"
            )
        raw = path.read_bytes()
    except (OSError, RuntimeError) as error:  # RuntimeError: a link that leads to itself
        reason = getattr(error, "strerror", None) or str(error)
        raise RefusedMapError(f"cannot be read: {reason}") from error
    data = raw.removeprefix(codecs.BOM_UTF8).strip()
    if not data:
        raise RefusedMapError("is empty")
    return MapData(data, hashlib.sha256(data).digest())


def page_value(content_map: ContentMap, text: str, project_id: str, batch_id: str, now: str) -> str:
    """The page record's JSON: the map's own text is put in as it is, not parsed and written anew.

    ``text`` has been checked by :func:`read_map`; so numbers, order and spelling stay the author's.
    """
    fields = {
        "page_id": content_map.page_id,
        "project_id": project_id,
        "batch_id": batch_id,
        "source_path": content_map.source_path,
        "uploaded": now,
        "sha256": content_map.sha256,
    }
    return f'{dump_json(fields)[:-1]},"extraction":{text}}}'


def _is_listing(content: dict[str, Any]) -> bool:
    """Whether this is the scan's listing: told by its content, as a home page's map may well be
    called ``index.json`` too."""
    pages = content.get("pages")
    if not isinstance(pages, list) or "blocks" in content or "head" in content:
        return False
    return all(isinstance(page, dict) and _PAGE_FIELDS & page.keys() for page in pages)


def _source_path(content: dict[str, Any]) -> str:
    given = [name for name in _PATH_FIELDS if content.get(name) not in (None, "")]
    if not given:
        raise RefusedMapError("names no page: it has no 'path', 'route' or 'url'")
    source_path = content[given[0]]
    if not isinstance(source_path, str):
        raise RefusedMapError(f"has {_kind(source_path)} for its '{given[0]}', not a text")
    if not source_path.strip():
        raise RefusedMapError(f"has nothing but white space for its '{given[0]}'")
    if len(source_path) > MAX_PATH_LENGTH:
        raise RefusedMapError(
            f"has a '{given[0]}' of {len(source_path)} characters; {MAX_PATH_LENGTH} are the limit"
        )
    return source_path


def _check_shape(content: dict[str, Any]) -> None:
    if "head" not in content and "blocks" not in content:
        raise RefusedMapError("has neither 'head' nor 'blocks': there is nothing to work on")
    head, blocks = content.get("head", {}), content.get("blocks", [])
    if not isinstance(head, dict):
        raise RefusedMapError(f"has {_kind(head)} for its 'head', not an object")
    if not isinstance(blocks, list):
        raise RefusedMapError(f"has {_kind(blocks)} for its 'blocks', not an array")
    for number, block in enumerate(blocks):
        if not isinstance(block, dict):
            raise RefusedMapError(f"has {_kind(block)} for block {number}, not an object")


def _kind(value: object) -> str:
    if value is None:
        return "null"
    names = {dict: "an object", list: "an array", str: "a text", bool: "true or false"}
    return names.get(type(value), "a number")
