"""JSON arrays, and objects one after another: rows, lines and errors are those of Python's own parser over the text."""

from __future__ import annotations

import gzip
import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from input_files import find_files

from mindspeed_llm.errors import DataError
from mindspeed_llm.rawdata import json_splitter, read_rows
from mindspeed_llm.rawdata.text_formats import parse_json  # before a test patches `splitting`, which this imports

Found = tuple[list[tuple[int, Any]], bool]


def found_in(path: Path) -> Found:
    """Rows with their lines up to an error, and whether there was one."""
    found: list[tuple[int, Any]] = []
    try:
        for row in read_rows(find_files([str(path)])):
            assert row.problem is None
            found.append((row.line, row.value))
    except DataError as error:
        if "no row in the file" not in str(error):
            assert "bad JSON" in str(error) and path.name in str(error)
            return found, True
    return found, False


def expected_of(text: str) -> Found:
    """The same from the whole text, value by value; what is no array is values one after another."""
    decoder, found = json.JSONDecoder(), []

    def skip(at: int) -> int:
        while at < len(text) and text[at] in " \t\r\n":
            at += 1
        return at

    at = skip(0)
    array = text[at] == "["
    at, opening = skip(at + array), True
    while at < len(text) and not (array and opening and text[at] == "]"):
        try:
            value, end = decoder.raw_decode(text, at)
        except ValueError:
            return found, True
        after = skip(end)
        found.append((text.count("\n", 0, at) + 1, value))
        at, opening = after, False
        if array:
            if text[at : at + 1] == "]":
                break
            if text[at : at + 1] != ",":
                return found, True
            at = skip(at + 1)
    return found, array and (at >= len(text) or skip(at + 1) < len(text))


ROW_LINES = [
    '{"a": 1},', '{"a": {"b": "],\\n"}},', ' {"c": "三"}', "{}", "{}, {}", "{", '"d": 2}', "},", ",", "", "]", "7,",
    '{"e": "\\\\"},', r'{"f": "\ud83d\ude42"},', '{"h": 1}},', "{},]", '{"i": 1e999},', '{"j": 1.5},', '"x",', "true",
    '[[], {"k": [1, "[{"]}],', '{"l": 9223372036854775808},', '{"m": "\\"', 'n"}',
]  # fmt: skip


@settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.sampled_from(ROW_LINES), max_size=7), st.sampled_from(["]", "\n]\n", ""]), st.integers(1, 9))
def test_rows_are_those_of_the_whole_text(
    tmp_path_factory: pytest.TempPathFactory, lines: list[str], end: str, piece: int
) -> None:
    path = tmp_path_factory.mktemp("lines") / "a.json"
    path.write_text(text := "\n".join(["[", *lines]) + end, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_splitter, "PIECE", piece)  # every value comes in pieces
        rows, failed = found_in(path)
    wanted, wrong = expected_of(text)
    if wrong:  # a broken value ends where its brackets do, so that its error may come before those of its neighbours
        assert failed and rows == wanted[: len(rows)] and len(rows) >= len(wanted) - 1
    else:
        assert (rows, failed) == (wanted, False)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.dictionaries(st.text(max_size=4), VALUES, max_size=4), min_size=1), st.sampled_from([None, 0, 2]))
def test_any_rows_come_back(tmp_path_factory: pytest.TempPathFactory, rows: list[Any], indent: int | None) -> None:
    folder = tmp_path_factory.mktemp("rows")
    (folder / "array.json").write_text(json.dumps(rows, indent=indent))
    (folder / "one_by_one.json").write_text(" ".join(json.dumps(row, indent=indent) for row in rows))
    for path in folder.iterdir():
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(json_splitter, "PIECE", 3)
            found, failed = found_in(path)
        assert [value for _, value in found] == rows and not failed


NUMBERS = ["18446744073709551616", "-" + "1" * 30, "9" * 5000, "NaN", "-Infinity", "1e999", "-1e999", "1.5"]


@pytest.mark.parametrize("number", NUMBERS)
def test_every_kind_of_json_file_reads_the_same_numbers(tmp_path: Path, number: str) -> None:
    rows = ['{"a": "one", "id": %s}' % number, '{"a": "two", "id": [%s, 1]}' % number]  # noqa: UP031
    texts = {
        "a.jsonl": "\n".join(rows),
        "lines.json": "\n".join(rows),
        "one_line.json": f"[{', '.join(rows)}]",
        "each_a_line.json": "[\n" + ",\n".join(rows) + "\n]",
        "indented.json": "[\n" + ",\n".join(row.replace(",", ",\n ") for row in rows) + "\n]",
        "after_another.json": "\n".join(row.replace(",", ",\n ") for row in rows),
    }
    seen = set()
    for name, text in texts.items():
        for ending, packed in ((".gz", gzip.compress), (".zst", lambda data: bytes(pyarrow.compress(data, "zstd")))):
            (tmp_path / name).write_text(text)
            (tmp_path / f"{name}{ending}").write_bytes(packed(text.encode()))
            for path in (tmp_path / name, tmp_path / f"{name}{ending}"):
                found = [(row.value, row.problem) for row in read_rows(find_files([str(path)]))]
                assert [value["a"] for value, _ in found] == ["one", "two"]
                seen.add(str(found))
    assert len(seen) == 1
    value = found[0][0]["id"]
    assert str(value) in (number, "nan", "-inf", "inf") and isinstance(value, (int, float, Decimal))
    assert str(parse_json(number)) == str(value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[{"a": 1},\n{"a": "x}\n]', r"a\.json:2: bad JSON: premature EOF in the row that begins here"),
        ('[{"a": 1},\n\n{"a": [\n1 2]},\n{}]', r"a\.json:4: bad JSON: Expecting ',' delimiter"),
        ('[{"a": 1}\n{"a": 2}]', r"a\.json:2: bad JSON: neither ',' nor '\]' after a value"),
        ('[{"a": 1},\n]', r"a\.json:2: bad JSON: a value is missing"),
        ('[{"a": 1}]\n[]', r"a\.json:2: bad JSON: text after the end of the array"),
        ('[{"a": 1},\n}]', r"a\.json:2: bad JSON: '}' is not a value"),
        ('[{"a": 1},\n{"a": 1]}', r"a\.json:2: bad JSON: Expecting"),
        ('{"a":\n 1}\n]', r"a\.json:3: bad JSON: '\]' between values"),
    ],
)
def test_what_is_broken_is_named_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        list(read_rows(find_files([str(path)])))


def test_a_row_that_is_nested_too_deeply_is_a_bad_one(tmp_path: Path) -> None:
    path, deep = tmp_path / "a.json", "[" * 100_000 + "]" * 100_000
    path.write_text(f'[{{"a": {deep}}}, {{"a": 1}}]')
    assert [row.problem for row in read_rows(find_files([str(path)]))] == ["nested deeper than 256 levels", None]


def test_half_a_surrogate_pair_is_read_as_in_json_lines(tmp_path: Path) -> None:
    """A column that is read refuses it; another one may hold it."""
    for name, text in (("a.json", '[{"a": "\\udc00"}, {"a": 1}]'), ("a.jsonl", '{"a": "\\udc00"}\n{"a": 1}')):
        (tmp_path / name).write_text(text)
        assert found_in(tmp_path / name)[0][0][1] == {"a": "\udc00"}
