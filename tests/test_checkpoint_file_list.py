"""files.json, the list of a checkpoint's files: whatever stands in it, it is read or refused in one line."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from mindspeed_llm.errors import CheckpointError
from mindspeed_llm.storage.checkpoint_file_list import FORMAT, read_file_list
from mindspeed_llm.storage.hashing import FileDigest

DIGEST = "0" * 64
WHOLE = {"size": 3, "sha256": DIGEST}


def write(folder: Path, files: object) -> None:
    (folder / "files.json").write_text(json.dumps({"format": FORMAT, "files": files}))


def refused(folder: Path) -> None:
    with pytest.raises(CheckpointError, match=r"files\.json: damaged") as raised:
        read_file_list(folder)
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 600


def test_a_list_is_read(tmp_path):
    assert read_file_list(tmp_path) is None
    write(tmp_path, {"a": WHOLE, "b/c": WHOLE})
    assert read_file_list(tmp_path) == {"a": FileDigest(3, DIGEST), "b/c": FileDigest(3, DIGEST)}


@pytest.mark.parametrize(
    "name",
    ["../x", "/etc/passwd", "a/../../x", ".", "..", "", "a//b", "./a", "a/", "a\\b", "a\nb", "a\0b", "\x1b[2J"],
)
def test_a_name_that_leaves_the_folder_is_refused(tmp_path, name):
    write(tmp_path, {name: WHOLE})
    refused(tmp_path)


@pytest.mark.parametrize(
    "entry",
    [None, 3, [], {}, {"size": 3}, {**WHOLE, "size": -1}, {**WHOLE, "size": 1.5}, {**WHOLE, "size": True},
     {**WHOLE, "size": float("nan")}, {**WHOLE, "size": float("inf")}, {**WHOLE, "size": "3"},
     {**WHOLE, "sha256": None}, {**WHOLE, "sha256": "x" * 64}, {**WHOLE, "sha256": "0" * 63}],
)  # fmt: skip
def test_an_invalid_entry_is_refused(tmp_path, entry):
    write(tmp_path, {"a": entry})
    refused(tmp_path)


@pytest.mark.parametrize("content", ["", "[", "[]", "null", "3", "{}", "[" * 100_000, "9" * 10_000, "\ud83d"])
def test_an_invalid_list_is_refused(tmp_path, content):
    (tmp_path / "files.json").write_bytes(content.encode("utf-8", "surrogatepass"))
    refused(tmp_path)


def test_a_list_that_is_not_a_regular_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "files.json")  # opened, it would wait for a writer for ever
    refused(tmp_path)
