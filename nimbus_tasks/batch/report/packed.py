"""A report's rows, packed: 100,000 of them are to fit into one HTML file of 2 MB.

The browser unpacks them (``templates/report.js`` is the other half of this). Like goes beside like:
chunks of rows, each chunk a line of JSON with a list a column, all of them deflated as one stream
and written in base64.
"""

from __future__ import annotations

import json
import zlib
from base64 import b64encode
from typing import Any

from nimbus_tasks.batch.report.rows import Row
from nimbus_tasks.core.clock import parse_iso
from nimbus_tasks.ui.text import shown

_ROWS_A_CHUNK = 5_000
#: More of a text than anybody reads in a table; the JSON has all of it.
PATH_SHOWN, ERROR_SHOWN, CODE_SHOWN = 300, 300, 60


def page_name(row: Row) -> str:
    """What a person knows the page by: its path, or else its id."""
    return shown(row["path"], PATH_SHOWN, keep_end=True) or str(row["page_id"])


class PackedRows:
    """Rows as they are added, deflated."""

    def __init__(self) -> None:
        self._deflate = zlib.compressobj(9)
        self._packed = bytearray()
        self._rows: list[Row] = []

    def add(self, row: Row) -> None:
        """Take the next row."""
        self._rows.append(row)
        if len(self._rows) == _ROWS_A_CHUNK:
            self._pack()

    def base64(self) -> str:
        """All of them. Ends the stream."""
        self._pack()
        self._packed += self._deflate.flush()
        return b64encode(self._packed).decode("ascii")

    def _pack(self) -> None:
        if self._rows:
            chunk = json.dumps(_columns(self._rows), ensure_ascii=False, separators=(",", ":"))
            self._packed += self._deflate.compress(chunk.encode() + b"\n")
            self._rows.clear()


def _columns(rows: list[Row]) -> dict[str, Any]:
    """Names, first letters of states, figures; times in seconds since the row before; what few rows
    have with the number of the row."""
    confidences = [row["confidence"] for row in rows]
    return {
        "names": [page_name(row) for row in rows],
        "states": "".join(row["status"][0] for row in rows),
        "changes": [row["changes"] for row in rows],
        "percent": [None if one is None else round(100 * one) for one in confidences],
        "duration": [row["duration_ms"] for row in rows],
        "attempts": [row["attempts"] for row in rows],
        "ended": _steps(rows),
        "errors": [
            [at, shown(row["code"], CODE_SHOWN), shown(row["error"], ERROR_SHOWN)]
            for at, row in enumerate(rows)
            if row["error"] or row["code"]
        ],
        "later": [
            [at, row["superseded_by"]] for at, row in enumerate(rows) if "superseded_by" in row
        ],
    }


def _steps(rows: list[Row]) -> list[int | None]:
    steps: list[int | None] = []
    before = 0
    for row in rows:
        moment = parse_iso(row["completed"])
        if moment is None:
            steps.append(None)
        else:
            seconds = int(moment.timestamp())
            steps.append(seconds - before)
            before = seconds
    return steps
