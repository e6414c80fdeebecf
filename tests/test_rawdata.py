"""Files of every format give the same rows, and damage is named with file and line."""

from __future__ import annotations

import csv
import gzip
import json
import tracemalloc
from pathlib import Path

import pyarrow
import pyarrow.ipc
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from input_files import find_files

from mindspeed_llm.errors import DataError
from mindspeed_llm.rawdata import ReadPosition, read_rows

ROWS = [
    {"instruction": "Name a river.", "input": "", "output": 'The Rhône,\n"a river".'},
    {"instruction": "Add.", "input": "1, 2", "output": "3 – 三 🙂"},
    {"instruction": "x", "input": "y", "output": "z"},
]


def rows_of(path: Path) -> list[object]:
    return [row.value for row in read_rows(find_files([str(path)]))]


def write(path: Path) -> Path:
    """ROWS in the format that the name of `path` says."""
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)
    name = path.name
    if name.endswith((".jsonl", ".lines.json")):
        path.write_text(lines, encoding="utf-8")
    elif name.endswith(".json"):
        path.write_text(json.dumps(ROWS, ensure_ascii=False, indent=None if "flat" in name else 2), encoding="utf-8")
    elif name.endswith((".gz", ".zst")):  # in two members, as joined downloads are
        plain = write(path.with_suffix("")).read_bytes()
        pieces = [plain[:50], plain[50:]]
        if name.endswith(".gz"):
            path.write_bytes(b"".join(map(gzip.compress, pieces)))
        else:
            path.write_bytes(b"".join(bytes(pyarrow.compress(piece, "zstd")) for piece in pieces))
        path.with_suffix("").unlink()
    elif name.endswith(".csv"):
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(ROWS[0]))
            writer.writeheader()
            writer.writerows(ROWS)
    else:
        table = pyarrow.Table.from_pylist(ROWS)
        if name.endswith(".parquet"):
            pyarrow.parquet.write_table(table, path)
        else:
            kind = pyarrow.ipc.new_stream if "stream" in name else pyarrow.ipc.new_file
            with kind(str(path), table.schema) as writer:
                writer.write_table(table)
    return path


PACKED = ["d.jsonl.gz", "d.jsonl.zst", "flat.json.gz", "a.json.zst", "e.csv.gz", "e.csv.zst"]
NAMES = ["a.json", "flat.json", "b.lines.json", "c.jsonl", "e.csv", "f.parquet", "g.arrow", *PACKED]


@pytest.mark.parametrize("name", [*NAMES, "stream.arrow", "UPPER.JSONL"])
def test_every_format_gives_the_same_rows(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name.replace("UPPER.JSONL", "lower.jsonl")).rename(tmp_path / name)
    assert rows_of(path) == ROWS


def test_text_files_have_one_column(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"one\r\n\n two \n")
    assert rows_of(path) == [{"text": "one"}, {"text": " two "}]


@pytest.mark.parametrize(
    ("name", "text", "lines"),
    [
        ("a.jsonl", '{"a":1}\n\n{"a":2}\n', [1, 3]),
        ("a.json", '[\n {\n  "a": 1\n },\n\n {"a": 2},\n 7,\n {}\n]\n', [2, 6, 7, 8]),
        ("a.json", '[{"a":\n1}, {"a": 2}]', [1, 2]),
        ("a.json", '[{\n"a": 1\n}, {\n"a": 2\n}, {}\n,\n{\n}]', [1, 3, 5, 7]),
        ("a.json", '[{"a": "' + "x" * 200_000 + '"},\n{}]', [1, 2]),
        ("b.json", '\n{\n"a": 1}\n{"a": 2}\n', [2, 4]),
        ("b.json", '\n{"a": 1}\n\n{"a": 2}', [2, 4]),
        ("a.csv", 'a,b\n1,"x\ny"\n3,4\n', [2, 4]),
    ],
)
def test_rows_know_their_lines(tmp_path: Path, name: str, text: str, lines: list[int]) -> None:
    path = tmp_path / name
    path.write_text(text)
    assert [row.line for row in read_rows(find_files([str(path)]))] == lines


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.json", b'[{"a": 1},\n {"a": }]', r"a\.json:2: bad JSON"),
        ("a.json", b'[{"a": 1},\n {"a": 2}\n', r"a\.json:2: bad JSON: premature EOF"),
        ("a.json", b'"text"', r"a\.json:1: bad JSON: neither an array"),
        ("a.json", b"[]", "no row"),
        ("a.json", b" \n\n", "bad JSON"),
        ("a.jsonl", b"\n\n", "no row"),
        ("a.jsonl.gz", b"not gzip", "cannot be read"),
        ("a.jsonl.gz", gzip.compress(b'{"a": 1}\n' * 9, mtime=0)[:-12], "cannot be read"),
        ("a.jsonl.zst", b"not zstd", "cannot be read"),
        ("a.parquet", b"PAR1 not parquet", "not a readable parquet file"),
        ("a.arrow", b"ARROW1 not arrow", "not a readable arrow file"),
        ("a.csv", b"a,a\n1,2\n", "same name"),
        ("a.csv", b"a,b\n", "no row"),
        ("a.json", b"", "is empty"),
        ("a.xml", b"<a/>", r"\.xml is not supported; use \.json, "),
        ("a", b"x", "without an extension is not supported"),
        ("a.parquet.gz", b"x", r"\.parquet\.gz is not supported"),
    ],
)
def test_damage_is_named(tmp_path: Path, name: str, text: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(text)
    with pytest.raises(DataError, match=message) as caught:
        rows_of(tmp_path / name)
    assert name in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.jsonl", b'{"a": "\xff"}\n{"a": 1}\n'),
        ("a.csv", b"a\n\xff\n1\n"),
        ("a.json", b'[{"a": "\xff"},\n{"a": 1}]'),
        ("a.json", b'[{"a": "\xe4\xbd"}, {"a": 1}]'),
        ("a.json", b'{"a":\n"\xff"}\n{"a": 1}'),
    ],
)
def test_a_row_that_is_not_utf8_is_a_bad_row(tmp_path: Path, name: str, text: bytes) -> None:
    (tmp_path / name).write_bytes(text)
    assert [row.problem for row in read_rows(find_files([str(tmp_path / name)]))] == ["not UTF-8", None]


@pytest.mark.parametrize(
    "broken",
    [
        b'{"a" 2}',
        b'{"a": 2',
        b"}",
        b"[" * 100_000,
        b'{"a": 1} {"a": 2}',
        b"\xff\xfe{",
        b"[\x007\x00",
        b"9" * 5000 + b",",
    ],
)
@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.json"])
def test_a_broken_line_of_json_lines_is_a_bad_row(tmp_path: Path, broken: bytes, name: str) -> None:
    text, path = b'{"a": 1}\n\n' + broken + b'\n{"a": 3}\n', tmp_path / name
    path.write_bytes(gzip.compress(text) if name.endswith(".gz") else text)
    first, bad, last = read_rows(find_files([str(path)]))
    assert (first.value, first.problem, last.value, last.problem) == ({"a": 1}, None, {"a": 3}, None)
    wanted = "not UTF-8" if broken.startswith(b"\xff") else "broken JSON"
    assert (bad.problem, bad.line, last.line) == (wanted, 3, 4)
    assert bad.value == broken.decode(errors="replace")


def test_a_csv_row_of_another_width_is_a_bad_row(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("a,b\n1\n1,2,3\n1,2\n")
    found = [(row.line, row.problem) for row in read_rows(find_files([str(tmp_path / "a.csv")]))]
    assert found == [(2, "more or fewer cells than columns"), (3, "more or fewer cells than columns"), (4, None)]


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow"])
def test_a_columnar_row_that_is_not_utf8_is_a_bad_row(tmp_path: Path, name: str) -> None:
    column = pyarrow.array([b"a", b"\xff", b"b"], pyarrow.binary()).view(pyarrow.string())
    table, path = pyarrow.table({"text": column}), tmp_path / name
    if name == "a.parquet":
        pyarrow.parquet.write_table(table, path)
    else:
        with pyarrow.ipc.new_file(path, table.schema) as out:
            out.write_table(table)
    found = [(row.line, row.value, row.problem) for row in read_rows(find_files([str(path)]))]
    assert found == [(1, {"text": "a"}, None), (2, None, "not UTF-8"), (3, {"text": "b"}, None)]


def test_byte_order_mark(tmp_path: Path) -> None:
    for name in ("a.json", "a.jsonl"):
        (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + b'{"a": 1}\n')
        assert rows_of(tmp_path / name) == [{"a": 1}]


def test_directory_glob_and_order(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.jsonl", ".hidden"):
        (tmp_path / name).write_text(json.dumps({"from": name}) + "\n")
    by_directory = [str(file.path) for file in find_files([str(tmp_path)])]
    assert by_directory == [str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl")]
    assert [str(file.path) for file in find_files([str(tmp_path / "*.jsonl")])] == by_directory
    both = find_files([str(tmp_path / "b.jsonl"), str(tmp_path / "a.jsonl")])
    assert [row.value["from"] for row in read_rows(both)] == ["b.jsonl", "a.jsonl"]


def test_what_is_not_there_or_mixed_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        find_files([str(tmp_path / "none.json")])
    with pytest.raises(DataError, match="no file matches"):
        find_files([str(tmp_path / "*.json")])
    with pytest.raises(DataError, match="contains no file"):
        find_files([str(tmp_path)])
    (tmp_path / "inside").mkdir()
    with pytest.raises(DataError, match=r"contains no file, only directories \(inside\); specify one of them"):
        find_files([str(tmp_path)])
    for name in ("a.json", "b.parquet", "c.json.gz"):
        (tmp_path / name).write_text("x")
    with pytest.raises(DataError, match=r"1 \.json, 1 \.json\.gz, 1 \.parquet"):
        find_files([str(tmp_path)])


def test_position_reaches_the_size(tmp_path: Path) -> None:
    for name in NAMES:
        position = ReadPosition()
        files = find_files([str(write(tmp_path / name))])
        for _ in read_rows(files, position):
            pass
        assert position.bytes_read == files[0].size


def test_a_json_array_on_one_line_is_streamed(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    row = json.dumps({"a": "x" * 1000})
    path.write_text("[" + ",".join([row] * 20_000) + "]")
    tracemalloc.start()
    count = sum(1 for _ in read_rows(find_files([str(path)])))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 20_000 and peak < 3_000_000 < path.stat().st_size


@settings(deadline=None)
@given(
    st.binary(max_size=200),
    st.sampled_from(["a.json", "a.jsonl", "a.csv", "a.txt", "a.jsonl.gz", "a.parquet", "a.arrow"]),
)
def test_no_bytes_give_anything_but_rows_or_a_named_error(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, name: str
) -> None:
    path = tmp_path_factory.mktemp("fuzz") / name
    path.write_bytes(data)
    try:
        rows_of(path)
    except DataError as error:
        assert name in str(error)
