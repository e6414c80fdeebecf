"""Blocks of a file, read apart, are the rows of the file, each with its own line."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from input_files import find_files

from mindspeed_llm.errors import DataError
from mindspeed_llm.rawdata import file_blocks, read_block, read_rows, split_into_blocks

BLOCK_BYTES = 64


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_blocks, "PIECE", 10)


LINES = st.one_of(
    st.builds(lambda n, text: json.dumps({"n": n, "text": text}), st.integers(), st.text(max_size=90)),
    st.sampled_from(["", "  ", "7", '"\\ud800"', "null"]),
).map(str.encode) | st.just(b'{"bad": "\xff"}')


@given(
    lines=st.lists(LINES, max_size=30),
    end=st.sampled_from([b"\n", b"\r\n"]),
    mark=st.sampled_from([b"", b"\xef\xbb\xbf"]),
    last=st.booleans(),
    kind=st.sampled_from(["jsonl", "txt"]),
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_blocks_of_lines_are_the_rows_of_the_file(
    tmp_path: Path, lines: list[bytes], end: bytes, mark: bytes, last: bool, kind: str
) -> None:
    path = tmp_path / f"rows.{kind}"
    path.write_bytes(mark + end.join([b'{"first": 1}', *lines]) + (end if last else b""))
    (file,) = find_files([str(path)])
    cut = list(split_into_blocks(file, BLOCK_BYTES))
    assert [row for block in cut for row in read_block(block)] == list(read_rows([file]))
    assert cut[-1].bytes_read == file.size
    assert (len(cut) > 1) == (file.size > 64 and cut[0].end != file.size)


@pytest.mark.parametrize("group", [1, 7, 50])
def test_blocks_of_row_groups_are_the_rows_of_the_file(tmp_path: Path, group: int) -> None:
    rows = [{"n": n, "text": "x" * n} for n in range(50)]
    path = tmp_path / "rows.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=group)
    (file,) = find_files([str(path)])
    cut = list(split_into_blocks(file, BLOCK_BYTES))
    assert [row for block in cut for row in read_block(block)] == list(read_rows([file]))
    assert (len(cut) > 1) == (group < 50) and cut[-1].bytes_read == file.size


def test_an_indivisible_file_is_one_block(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([{"n": n} for n in range(50)]))
    (file,) = find_files([str(path)])
    (block,) = split_into_blocks(file, BLOCK_BYTES)
    assert list(read_block(block)) == list(read_rows([file])) and not file_blocks.is_splittable(file)


def test_a_broken_line_has_its_number_in_any_block(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(f'{{"n": {n}}}\n' for n in range(40)) + "{\n")
    (file,) = find_files([str(path)])
    last = list(read_block(list(split_into_blocks(file, BLOCK_BYTES))[-1]))[-1]
    assert (last.line, last.value, last.problem) == (41, "{", "broken JSON")


def test_a_file_that_shrinks_is_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"n": 1}\n' * 40)
    (file,) = find_files([str(path)])
    last = list(split_into_blocks(file, BLOCK_BYTES))[-1]
    path.write_text('{"n": 1}\n')
    with pytest.raises(DataError, match="has become shorter"):
        list(read_block(last))
