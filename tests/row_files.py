"""Write rows to files of every format that preprocess_data.py reads."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.ipc
import pyarrow.parquet

# For --map-keys: OpenAI messages with other column names for the system text and the tools.
OPENAI_KEYS = {
    "messages": "messages",
    "system": "system_text",
    "tools": "functions",
    "tags": {
        "role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant",
        "observation_tag": "tool", "function_tag": "function", "system_tag": "system",
    },
}  # fmt: skip
ROW_GROUP = 5  # rows; small, so that a file of a few rows has several row groups


def write_rows(folder: Path, rows: list[dict[str, Any]], kind: str) -> Path:
    """Write `rows` to rows.KIND: json, jsonl, jsonl.gz, csv (where lists are JSON), parquet or arrow."""
    path = folder / f"rows.{kind}"
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    if kind == "csv":
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(map(cells_of, rows))
    elif kind == "parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=ROW_GROUP)
    elif kind == "arrow":
        table = pyarrow.Table.from_pylist(rows)
        with pyarrow.ipc.new_stream(str(path), table.schema) as out:
            out.write_table(table)
    elif kind == "json":
        path.write_text("[" + ",\n".join(lines) + "]", encoding="utf-8")
    else:
        content = "".join(line + "\n" for line in lines).encode()
        path.write_bytes(gzip.compress(content) if kind.endswith(".gz") else content)
    return path


def cells_of(row: dict[str, Any]) -> dict[str, Any]:
    """Convert a row to CSV cells; lists become JSON."""
    return {key: json.dumps(cell) if isinstance(cell, list) else cell for key, cell in row.items()}
