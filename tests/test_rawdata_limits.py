"""Rows beyond the limits of size and nesting are bad rows: counted and listed, in bounded memory."""

from __future__ import annotations

import csv
import dataclasses
import gzip
import io
import json
import random
import tracemalloc
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from input_files import find_files

from mindspeed_llm.rawdata import TOO_DEEP, TOO_LARGE, Row, file_blocks, read_rows
from mindspeed_llm.rawdata.csv_lines import shorten_csv_text
from mindspeed_llm.rawdata.row_limits import DEPTH, is_nested_too_deep
from tests.preprocess_command import Command
from tests.small_tokenizers import byte_level_folder

LIMIT = 5_000


def rows_of(path: Path, limit: int = LIMIT) -> list[Row]:
    return list(read_rows([dataclasses.replace(file, row_bytes=limit) for file in find_files([str(path)])]))


def problems_of(path: Path, limit: int = LIMIT) -> list[tuple[int, str | None]]:
    return [(row.line, row.problem) for row in rows_of(path, limit)]


def nested(depth: int, opening: str = "[", closing: str = "]") -> str:
    """A row of `depth` levels."""
    return '{"a": ' + opening * (depth - 1) + "1" + closing * (depth - 1) + "}"


def write(path: Path, values: list[str]) -> list[int]:
    """JSON texts in the shape that the name of `path` says; the line of each."""
    if path.name.startswith("array"):
        text, first = "[\n" + ",\n".join(values) + "\n]", 2
    elif path.name.startswith("indented"):
        text, first = "\n" + "\n".join(value.replace("{", "{\n", 1) for value in values), 2
        path.write_text(text)
        return [2 * number + 2 for number in range(len(values))]
    else:
        text, first = "\n".join(values) + "\n", 1
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return list(range(first, first + len(values)))


SHAPES = ["array.json", "indented.json", "lines.json", "rows.jsonl", "array.json.gz", "rows.jsonl.gz"]


@pytest.mark.parametrize("name", SHAPES)
def test_a_row_that_is_nested_too_deeply_is_a_bad_row(tmp_path: Path, name: str) -> None:
    brackets_in_text = json.dumps({"a": '\\"' + "[" * 1000 + '"'})
    many_lists = json.dumps({"a": [[]] * 1000})
    objects = nested(20_000, '{"b":', "}")
    values = [
        nested(DEPTH),
        nested(DEPTH + 1),
        brackets_in_text,
        many_lists,
        nested(800),
        nested(40_000),
        objects,
        "{}",
    ]
    lines = write(tmp_path / name, values)
    wrong = [None, TOO_DEEP, None, None, TOO_DEEP, TOO_DEEP, TOO_DEEP, None]
    found = rows_of(tmp_path / name, 1 << 20)
    assert [(row.line, row.problem) for row in found] == list(zip(lines, wrong, strict=True))
    assert found[0].value == json.loads(values[0]) and "[" * 700 in found[4].value


@pytest.mark.parametrize("name", SHAPES)
def test_a_row_that_is_too_large_is_a_bad_row(tmp_path: Path, name: str) -> None:
    def sized(size: int) -> str:
        return '{"a": "' + "x" * (size - 9) + '"}'

    grown = len("\n") if "indented" in name else 0
    values = [sized(LIMIT - grown), sized(LIMIT + 1), sized(300_000), '{"a": [' + '"\\"]", ' * 40_000 + "1]}", "{}"]
    lines = write(tmp_path / name, values)
    found = rows_of(tmp_path / name)
    assert [row.line for row in found] == lines
    assert [row.problem for row in found] == [None, TOO_LARGE, TOO_LARGE, TOO_LARGE, None]
    assert found[2].value.startswith('{"a": "xxx' if not grown else '{\n"a": "xxx') and len(found[2].value) < 300


def test_deep_values_cost_memory_and_time_of_their_size(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(b"[" + b'{"a":' + b"[" * 30_000 + b"\xff" + b"]" * 30_000 + b"}, {}]")
    tracemalloc.start()
    assert problems_of(path, 1 << 20) == [(1, TOO_DEEP), (1, None)]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20 << 20


@pytest.mark.parametrize("name", ["a.jsonl.gz", "array.json.gz", "a.txt.gz", "a.csv.gz", "a.jsonl", "a.csv"])
def test_memory_does_not_grow_with_a_row_that_is_too_large(tmp_path: Path, name: str) -> None:
    text = "x" * 30_000_000
    whole = {
        "jsonl": '{"a": "%s"}\n{"a": 1}\n',
        "json": '[{"a": "%s"},\n{"a": 1}]',
        "txt": "%s\nshort\n",
        "csv": 'a\n"%s"\n1\n',
    }[name.split(".")[1]] % text
    data = whole.encode()
    (tmp_path / name).write_bytes(gzip.compress(data, 1) if name.endswith(".gz") else data)
    del whole, data, text
    tracemalloc.start()
    found = [(row.problem, row.value) for row in rows_of(tmp_path / name, 1 << 20)]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [problem for problem, _ in found] == [TOO_LARGE, None] and found[1][1] in (
        {"a": 1},
        {"a": "1"},
        {"text": "short"},
    )
    assert peak < 10 << 20


def test_reading_continues_after_a_csv_row_that_is_too_large(tmp_path: Path) -> None:
    random.seed(5)
    cells = ["x" * 400, 'say ""yes""', "a,b\nc", '""', "1\n2\n3", "x", 'y"z' * 30, "\n" * 50, ""]
    table = [["a", "b"], *([random.choice(cells) * random.choice([1, 1, 2]), random.choice(cells)] for _ in range(300))]
    with (tmp_path / "a.csv").open("w", newline="") as file:
        csv.writer(file).writerows(table)
    lines, expected = 1, []
    for cells in table:
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerow(cells)
        expected.append((lines, TOO_LARGE if len(text.getvalue()) - 1 > 200 else None))
        lines += text.getvalue().count("\n")
    found = rows_of(tmp_path / "a.csv", 200)
    close = {line for line, _ in expected}  # a row's inner line ends are CRLF or LF, which moves the limit a little
    assert [row.line for row in found] == [line for line, _ in expected[1:]] and close
    sound = [row.value for row in found if row.problem is None]
    assert all(dict(zip(["a", "b"], cells, strict=True)) in sound for cells in table[1:] if sum(map(len, cells)) < 90)
    assert {row.problem for row in found} == {None, TOO_LARGE}
    for row, (_, problem) in zip(found, expected[1:], strict=True):
        assert row.problem == problem or abs(sum(map(len, table[1 + found.index(row)])) - 200) < 20


def rows_of_csv(text: str) -> int:
    """How many rows `text` and a quoted cell after it are; -1 if they are no CSV."""
    try:
        return len(list(csv.reader(io.StringIO(text + ',"end\nend"\n', newline=""), strict=True)))
    except csv.Error:
        return -1


def test_a_shortened_csv_row_is_parsed_the_same_way() -> None:
    random.seed(7)
    for _ in range(3_000):
        text = "".join(random.choices('"",,xy\n', k=random.randint(1, 30)))
        first = shorten_csv_text(text.encode()).decode()
        assert rows_of_csv(text) == rows_of_csv(first), (text, first)


def test_rows_of_columnar_files_have_the_limit_too(tmp_path: Path) -> None:
    pyarrow.parquet.write_table(pyarrow.table({"a": ["x", "y" * 50_000, "z"]}), tmp_path / "a.parquet")
    assert problems_of(tmp_path / "a.parquet") == [(1, None), (2, TOO_LARGE), (3, None)]


def test_blocks_of_lines_keep_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_blocks, "PIECE", 64)
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(json.dumps({"a": "x" * (9_000 if n % 5 == 2 else 30)}) for n in range(20)))
    (file,) = (dataclasses.replace(file, row_bytes=LIMIT) for file in find_files([str(path)]))
    found = [row for block in file_blocks.split_into_blocks(file, 100) for row in file_blocks.read_block(block)]
    assert found == rows_of(path) and sum(row.problem == TOO_LARGE for row in found) == 4


@pytest.mark.parametrize(
    ("text", "depth"),
    [("[]", 1), ('{"[": "[\\\\"}', 1), ('["\\"[", "]"]', 1), ("[[[]]]", 3), ("[][[]]", 2), ('["[["]', 1)],
)
def test_brackets_outside_strings_count(text: str, depth: int) -> None:
    levels = DEPTH - depth
    for more in (0, 1):
        closed = "[" * (levels + more) + text + "]" * (levels + more)
        assert is_nested_too_deep(closed.encode()) == bool(more)
    assert not is_nested_too_deep(b"[" * (levels + 1) + text.encode())  # broken


def test_rows_beyond_the_limits_are_counted_and_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = Command(tmp_path, byte_level_folder(tmp_path / "tokenizer"))
    command.input = tmp_path / "rows.jsonl"
    command.flags["--input"] = str(command.input)
    sound: dict[str, Any] = {"instruction": "Say yes.", "input": "", "output": "yes"}
    large, tools = {**sound, "input": "x" * (1 << 20)}, {**sound, "tools": "[" * 100_000}
    deep = json.dumps(sound)[:-1] + ', "more": ' + "[" * 500 + "]" * 500 + "}"
    command.input.write_text("\n".join([json.dumps(sound), json.dumps(large), deep, json.dumps(tools)]) + "\n")
    manifest = command.run("--max-row-mib", "1")
    assert manifest.counts.rows_read == 4 and manifest.counts.kept == 1
    assert [(row["line"], row["reason"]) for row in command.rejected()[:2]] == [(2, TOO_LARGE), (3, TOO_DEEP)]
    assert command.rejected()[0]["row"].startswith('{"instruction": "Say yes."')
    command.input.write_text(json.dumps(large) + "\n")
    assert command.status("--max-row-mib", "1") == 2 and "raise --max-row-mib 1" in capsys.readouterr().err
