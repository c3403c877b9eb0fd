"""A table in the columns that there are: the one flexible column gives way first."""

from __future__ import annotations

from collections.abc import Sequence

from nimbus_tasks.ui.text import clip, pad, width

#: Columns between two cells.
GAP = 2


def table(
    rows: Sequence[Sequence[str]],
    columns: int,
    *,
    flexible: int = 0,
    right: Sequence[int] = (),
    indent: int = 0,
) -> list[str]:
    """Lines of aligned cells, at most ``columns`` wide.

    Cells are clean text and may be coloured, but for those of the ``flexible`` column, which is
    cut, at its beginning, where the table is too wide. ``right`` are columns of figures.
    """
    if not rows:
        return []
    widths = [max(width(row[i]) for row in rows) for i in range(len(rows[0]))]
    spare = columns - indent - sum(widths) - GAP * (len(widths) - 1)
    if spare < 0:
        widths[flexible] = max(8, widths[flexible] + spare)
    lines = []
    for row in rows:
        cells = [
            pad(
                clip(cell, widths[i], keep_end=True) if i == flexible else cell,
                widths[i],
                right=i in right,
            )
            for i, cell in enumerate(row)
        ]
        lines.append((" " * indent + (" " * GAP).join(cells)).rstrip())
    return lines
