"""The report as JSON: a head, then a page a line."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TextIO

from nimbus_tasks.batch.report.rows import Row
from nimbus_tasks.core.batches import BatchView
from nimbus_tasks.core.metrics import batch_metrics


class JsonReport:
    """Written some rows at a time, so that it takes no memory."""

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

    def add(self, rows: Sequence[Row]) -> None:
        """Write the next pages, at least one."""
        # All in one call, at half the time; then each on a line of its own. What is looked for can
        # not be inside a text, where no quote stands without a backslash.
        text = self._encode(rows)[1:-1].replace('}, {"page_id": ', '},\n    {"page_id": ')
        self._file.write(self._separator + text)
        self._separator = ",\n    "

    def finish(self) -> None:
        """Write what is behind the last page."""
        self._file.write("\n  ]\n}\n")
