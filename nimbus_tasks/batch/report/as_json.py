"""The report as JSON: a head, then a page a line."""

from __future__ import annotations

import json
from typing import TextIO

from nimbus_tasks.batch.report.rows import Row
from nimbus_tasks.core.batches import BatchView
from nimbus_tasks.core.metrics import batch_metrics


class JsonReport:
    """Written row by row, so that it takes no memory."""

    def __init__(self, file: TextIO, view: BatchView, generated: str) -> None:
        head = {
            **view.to_json(),
            "generated": generated,
            "metrics": batch_metrics(view.tally).to_json(),
        }
        for passing in ("pages_per_second", "seconds_left"):
            del head[passing]
        self._file = file
        self._encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False).encode
        self._separator = "\n    "
        file.write(json.dumps(head, indent=2, ensure_ascii=False)[:-2] + ',\n  "pages": [')

    def add(self, row: Row) -> None:
        """Write the next page."""
        self._file.write(self._separator + self._encode(row))
        self._separator = ",\n    "

    def finish(self) -> None:
        """Write what is behind the last page."""
        self._file.write("\n  ]\n}\n")
