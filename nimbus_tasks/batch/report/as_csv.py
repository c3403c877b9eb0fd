"""The report as CSV (RFC 4180), for spreadsheets: a header row, then a page a row."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from typing import TextIO

from nimbus_tasks.batch.report.rows import FIELDS, Row

#: A cell of Excel takes no more; the JSON has all of it.
_MOST_IN_A_CELL = 32_000
#: What a spreadsheet takes for the beginning of a formula.
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")


class CsvReport:
    """Written some rows at a time; Excel knows it for UTF-8 by the mark at its beginning."""

    def __init__(self, file: TextIO) -> None:
        file.write("\ufeff")
        self._writer = csv.writer(file)
        self._writer.writerow(FIELDS)

    def add(self, rows: Sequence[Row]) -> None:
        """Write the next pages."""
        for row in rows:
            values = [row.get(name) for name in FIELDS]
            self._writer.writerow([_text(v) if isinstance(v, str) else v for v in values])

    def finish(self) -> None:
        """There is nothing behind the last page."""


def _text(value: str) -> str:
    """The text so that a cell with it stays one: no formula, no NUL, no more than fits."""
    text = value[:_MOST_IN_A_CELL].replace("\0", "\N{REPLACEMENT CHARACTER}")
    if len(value) > _MOST_IN_A_CELL:  # not ours: what we store of an error is shorter
        text += "…"
    return "'" + text if text.startswith(_FORMULA) else text
