"""Print the table of a comparison and its explanation."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from mindspeed_llm.console.text_tables import align_columns
from mindspeed_llm.verify.comparison import ComparedRow
from mindspeed_llm.verify.diagnosis import Diagnosis

logger = logging.getLogger(__name__)

HEADER = ("compared", "values", "difference", "limit", "", "where")


def print_report(rows: Sequence[ComparedRow], diagnosis: Diagnosis | None) -> None:
    """Log the table, and for a failed comparison where the difference begins and what it usually means.

    Args:
        rows: rows of the table.
        diagnosis: explanation; None if no row failed.
    """
    cells = [HEADER, *(_cells(row) for row in rows)]
    # The last column has texts of very different lengths, so it is not aligned.
    lines = align_columns([line[:-1] for line in cells])
    for line, (*_, where) in zip(lines, cells, strict=True):
        logger.info(f"{line}  {where}".rstrip())
    if diagnosis is None:
        logger.info("equal: every difference is within the limit of its type")
        return
    failed = ", ".join(row.name for row in rows if row.fails)
    logger.info(f"different: {failed}")
    logger.info(diagnosis.first)
    for pattern in diagnosis.patterns:
        logger.info(f"usually: {pattern}")
    if not diagnosis.patterns:
        logger.info("no known pattern: docs/verify.md describes how to narrow it down")


def _cells(row: ComparedRow) -> tuple[str, ...]:
    is_count = row.limit == 0
    difference = f"{row.difference:.0f}" if is_count else f"{row.difference:.1e}"
    limit = f"{row.limit:.0f}" if is_count else f"{row.limit:.1e}"
    return row.name, f"{row.count:,}", difference, limit, "FAIL" if row.fails else "ok", row.where
