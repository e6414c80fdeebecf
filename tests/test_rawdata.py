"""Files of every format give the same rows, and damage is named with file and line."""

from __future__ import annotations

import csv
import gzip
import itertools
import json
import re
import tracemalloc
from pathlib import Path

import pyarrow
import pyarrow.ipc
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mindspeed_llm.errors import DataError
from mindspeed_llm.rawdata import Position, find_files, read_rows, text
from mindspeed_llm.rawdata.cleaning import Utf8Cleaner

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
        ("a.jsonl.gz", gzip.compress(b'{"a": 1}\n' * 9)[:-12], "cannot be read"),
        ("a.jsonl.zst", b"not zstd", "cannot be read"),
        ("a.parquet", b"PAR1 not parquet", "not a readable parquet file"),
        ("a.arrow", b"ARROW1 not arrow", "not a readable arrow file"),
        ("a.csv", b"a,a\n1,2\n", "same name"),
        ("a.csv", b"a,b\n", "no row"),
        ("a.json", b"", "is empty"),
        ("a.xml", b"<a/>", r"\.xml is not read"),
        ("a", b"x", "without an ending"),
        ("a.parquet.gz", b"x", r"\.parquet\.gz is not read"),
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
        ("a.json", rb'[{"a": "\udc00"}, {"a": 1}]'),
        ("a.json", rb'[{"a": "\ud800 and"}, {"a": 1}]'),
    ],
)
def test_a_row_that_is_not_utf8_is_a_bad_row(tmp_path: Path, name: str, text: bytes) -> None:
    (tmp_path / name).write_bytes(text)
    assert [row.problem for row in read_rows(find_files([str(tmp_path / name)]))] == ["not UTF-8", None]


@pytest.mark.parametrize(
    "broken",
    [b'{"a" 2}', b'{"a": 2', b"}", b"[" * 100_000, b'{"a": 1} {"a": 2}', b"\xff\xfe{", b"[\x007\x00", b"9" * 5000],
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


ESCAPES = [
    b"\\ud83d\\ude00",
    b"\\ud83d",
    b"\\ude00",
    b"\\\\ude00",
    b"\\\\",
    b'\\"',
    b"\xff",
    "é🙂".encode(),
    b"\xe4\xbd",
    b"x",
]


@settings(deadline=None)
@given(st.lists(st.sampled_from(ESCAPES), max_size=12), st.lists(st.integers(0, 60), max_size=6))
def test_cleaning_does_not_depend_on_how_the_text_comes_in(parts: list[bytes], cuts: list[int]) -> None:
    text = b"".join(parts)
    places = [0, *sorted(cuts), len(text)]
    pieces = [text[a:b] for a, b in itertools.pairwise(places) if b > a]
    split = b"".join(piece for _, piece in Utf8Cleaner().cleaned((1, piece) for piece in pieces))
    (whole,) = [piece for _, piece in Utf8Cleaner().cleaned(iter([(1, text + b"\n")]))]
    assert split == whole[:-1]
    value = whole[:-1].decode()
    without = value.replace("\U0010ffff", "")
    unpaired = re.sub(r"\\\\|\\u(d83d)\\ude00", "", without)
    assert not re.search(r"\\u", unpaired), "no half of a surrogate pair is left"
    if not re.search(rb"\xff|\xe4\xbd", text) and b"ud" not in text:
        assert value == text.decode()


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
    with pytest.raises(DataError, match="holds no file"):
        find_files([str(tmp_path)])
    (tmp_path / "inside").mkdir()
    with pytest.raises(DataError, match=r"holds no file, but directories \(inside\); name one of them"):
        find_files([str(tmp_path)])
    for name in ("a.json", "b.parquet", "c.json.gz"):
        (tmp_path / name).write_text("x")
    with pytest.raises(DataError, match=r"1 \.json, 1 \.json\.gz, 1 \.parquet"):
        find_files([str(tmp_path)])


def test_position_reaches_the_size(tmp_path: Path) -> None:
    for name in NAMES:
        position = Position()
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


def by_the_parser_alone(path: Path, monkeypatch: pytest.MonkeyPatch) -> object:
    def none_is_whole(pieces: text.Pieces) -> text.Pieces:
        yield from ()
        return b"", 1, pieces

    with monkeypatch.context() as patch:
        patch.setattr(text, "_whole_lines", none_is_whole)
        return found_in(path)


def found_in(path: Path) -> object:
    """Rows with their lines up to an error, and the error."""
    found: list[object] = []
    try:
        for row in read_rows(find_files([str(path)])):
            found.append((row.line, row.value, row.problem))  # noqa: PERF401 - up to an error
    except DataError as error:
        return found, str(error)
    return found, ""


ROW_LINES = [
    '{"a": 1},',
    '{"a": {"b": "],\\n"}},',
    ' {"c": "三"}',
    "{}",
    "{}, {}",
    "{",
    '"d": 2}',
    "},",
    ",",
    "",
    "]",
    "7,",
]
ROW_LINES += ['{"e": NaN},', r'{"f": "\ud83d\ude42"},', r'{"g": "\ud83d"},', '{"h": 1}},', "{},]"]
ROW_LINES += ['{"i": 1e400},', '{"j": 1.5},', '{"k": "\U0010ffff"},', '{"l": 9223372036854775807},']


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.sampled_from(ROW_LINES), max_size=7), st.sampled_from(["]", "\n]\n", ""]))
def test_rows_that_are_lines_are_those_that_the_parser_finds(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch, lines: list[str], end: str
) -> None:
    path = tmp_path_factory.mktemp("lines") / "a.json"
    path.write_text("\n".join(["[", *lines]) + end, encoding="utf-8")
    assert found_in(path) == by_the_parser_alone(path, monkeypatch)


def test_a_large_number_in_a_row_that_is_a_line(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('[\n{"id": 18446744073709551616}\n]')  # more than yajl can hold
    assert rows_of(path) == [{"id": 2**64}]


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
