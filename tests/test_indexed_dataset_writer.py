"""A set of packed files is replaced whole or not at all, and its manifest is checked like any input."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mindspeed_llm.errors import DataError
from mindspeed_llm.indexed_dataset import PackedFiles, PackedFilesWriter
from mindspeed_llm.manifest import (
    COLUMNS,
    Histograms,
    Manifest,
    PackingInfo,
    RowCounts,
    SourceFile,
    TemplateInfo,
    TokenizerInfo,
    column_prefix,
    manifest_path,
)

MANIFEST = Manifest(
    packed=True,
    neat=True,
    seq_length=4,
    append_eod=False,
    eod_inside_sample=True,
    tokenizer=TokenizerInfo("PretrainedFromHF", "ab" * 32, 151_936, None, 151_645),
    template=TemplateInfo("qwen", "cd" * 32),
    handler="AlpacaStyleInstructionHandler",
    sources=[SourceFile("数据.json", 123)],
    counts=RowCounts(rows_read=10, kept=8, skipped={"empty answer": 2}, truncated=1),
    samples=8,
    tokens=8,
    trained_tokens=5,
    packs=2,
    fill=1.0,
    packing=PackingInfo("mixed", 42),
    histograms=Histograms([[4, 2]], [[1, 2]]),
)


def write(prefix: Path, value: int, packs: int = 2) -> Manifest:
    """Write a set whose tokens are all `value`."""
    with PackedFilesWriter(prefix) as out:
        for _ in range(packs):
            out.add(*[np.full(4, value, np.int32)] * 3)
        return out.commit(dataclasses.replace(MANIFEST, packs=packs))


def tokens_of(prefix: Path) -> list[list[int]]:
    files = PackedFiles.open(prefix)
    files.verify_hashes()
    return [files.labels[number].tolist() for number in range(len(files))]


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def expected_names(prefix: Path) -> set[str]:
    columns = {f"{column_prefix(prefix, column).name}.{ending}" for column in COLUMNS for ending in ("bin", "idx")}
    return columns | {manifest_path(prefix).name}


def test_a_set_is_written_and_read(tmp_path: Path) -> None:
    prefix = tmp_path / "new" / "folder" / "alpaca"
    written = write(prefix, 7)
    files = PackedFiles.open(prefix)
    assert files.manifest == written
    assert written.files.keys() == expected_names(prefix) - {manifest_path(prefix).name}
    assert len(files) == 2
    assert tokens_of(prefix) == [[7] * 4] * 2
    assert names_in(prefix.parent) == expected_names(prefix)


def test_rows_and_single_packs_are_the_same(tmp_path: Path) -> None:
    rows = np.arange(8, dtype=np.int32).reshape(2, 4)
    with PackedFilesWriter(tmp_path / "rows") as out:
        out.add_rows(rows, rows + 1, rows + 2)
        out.commit(MANIFEST)
    assert tokens_of(tmp_path / "rows") == (rows + 2).tolist()


def test_a_set_is_replaced(tmp_path: Path) -> None:
    write(tmp_path / "alpaca", 7)
    write(tmp_path / "alpaca", 8, packs=3)
    assert tokens_of(tmp_path / "alpaca") == [[8] * 4] * 3


def test_a_set_of_renamed_files_is_recognized(tmp_path: Path) -> None:
    write(tmp_path / "alpaca", 7)
    for path in list(tmp_path.iterdir()):
        path.rename(path.with_name(path.name.replace("alpaca", "moved")))
    assert tokens_of(tmp_path / "moved") == [[7] * 4] * 2


@pytest.mark.parametrize("stop", [KeyboardInterrupt, RuntimeError, None])
def test_leaving_without_commit_leaves_the_old_set(tmp_path: Path, stop: type[BaseException] | None) -> None:
    prefix = tmp_path / "alpaca"
    write(prefix, 7)
    try:
        with PackedFilesWriter(prefix) as out:
            out.add(*[np.full(4, 8, np.int32)] * 3)
            if stop is not None:
                raise stop
    except (KeyboardInterrupt, RuntimeError):
        pass
    assert tokens_of(prefix) == [[7] * 4] * 2
    assert names_in(tmp_path) == expected_names(prefix)


@pytest.mark.parametrize("renames_done", range(7))
def test_a_failure_during_the_renames_never_mixes_two_sets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, renames_done: int
) -> None:
    """After any number of renames: the old set, the new one, or a refusal that says what to do."""
    prefix = tmp_path / "alpaca"
    write(prefix, 7)
    done, plain = 0, Path.replace

    def replace(self: Path, target: Path) -> Path:
        nonlocal done
        if "document" in self.name:
            if done == renames_done:
                raise KeyboardInterrupt
            done += 1
        return plain(self, target)

    monkeypatch.setattr(Path, "replace", replace)
    if renames_done < 6:
        with pytest.raises(KeyboardInterrupt):
            write(prefix, 8)
    else:
        write(prefix, 8)
    monkeypatch.undo()
    assert not [name for name in names_in(tmp_path) if name.endswith((".partial", ".lock"))]
    if renames_done == 0:
        assert tokens_of(prefix) == [[7] * 4] * 2
    elif renames_done < 6:
        with pytest.raises(DataError, match=r"not complete.*again"):
            PackedFiles.open(prefix)
        write(prefix, 8)
    if renames_done > 0:
        assert tokens_of(prefix) == [[8] * 4] * 2


def test_the_manifest_says_in_progress_before_the_first_file_is_moved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    states: list[str] = []
    plain = Path.replace

    def replace(self: Path, target: Path) -> Path:
        if "document" in self.name:
            states.append(json.loads(manifest_path(tmp_path / "alpaca").read_text())["state"])
        return plain(self, target)

    monkeypatch.setattr(Path, "replace", replace)
    write(tmp_path / "alpaca", 7)
    assert states == ["in progress"] * 6


def test_a_killed_run_leaves_the_old_set_and_the_next_starts_clean(tmp_path: Path) -> None:
    prefix = tmp_path / "alpaca"
    write(prefix, 7)
    code = (
        "import os, sys, numpy as np; from mindspeed_llm.indexed_dataset import PackedFilesWriter\n"
        "out = PackedFilesWriter(sys.argv[1])\n"
        "out.add(*[np.zeros(10_000_000, np.int32)] * 3)\n"
        "os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(prefix)], check=False).returncode == -9
    assert tokens_of(prefix) == [[7] * 4] * 2
    write(prefix, 8)
    assert tokens_of(prefix) == [[8] * 4] * 2
    assert names_in(tmp_path) == expected_names(prefix)


def test_two_runs_cannot_write_one_prefix(tmp_path: Path) -> None:
    pytest.importorskip("fcntl")
    with PackedFilesWriter(tmp_path / "alpaca") as out:
        with pytest.raises(DataError, match="another run is writing"):
            PackedFilesWriter(tmp_path / "alpaca")
        PackedFilesWriter(tmp_path / "other").discard()
        out.add(*[np.full(4, 7, np.int32)] * 3)
        out.commit(dataclasses.replace(MANIFEST, packs=1))
    assert tokens_of(tmp_path / "alpaca") == [[7] * 4]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_a_clear_error_and_the_old_set_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prefix = tmp_path / "alpaca"
    write(prefix, 7)
    plain = Path.open
    monkeypatch.setattr(
        Path, "open", lambda self, *a, **k: plain(Path("/dev/full") if "labels" in self.name else self, *a, **k)
    )
    with pytest.raises(DataError, match=r"labels.*no space left"):
        write(prefix, 8)
    monkeypatch.undo()
    assert tokens_of(prefix) == [[7] * 4] * 2
    assert names_in(tmp_path) == expected_names(prefix)


def test_a_full_disk_for_the_manifest_leaves_the_old_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prefix = tmp_path / "alpaca"
    write(prefix, 7)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("mindspeed_llm.indexed_dataset.file_set_writer.Manifest.write", full)
    with pytest.raises(DataError, match=r"manifest.json: no space left"):
        write(prefix, 8)
    monkeypatch.undo()
    assert tokens_of(prefix) == [[7] * 4] * 2
    assert names_in(tmp_path) == expected_names(prefix)


def test_an_unwritable_directory_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"file.*--output-prefix"):
        PackedFilesWriter(tmp_path / "file" / "alpaca")


# --- What a reader checks ---------------------------------------------------------------------------------------------


def change_manifest(prefix: Path, **changes: Any) -> None:
    path = manifest_path(prefix)
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"state": "in progress"}, "not complete"),
        ({"seq_length": 8}, "exactly 8 tokens"),
        ({"packs": 3}, "records 3 packs, but the files have 2"),
        ({"files": {}}, "does not list alpaca_packed_input_ids_document.bin"),
        ({"version": 2}, "manifest version 2, this program reads 1"),
        ({"version": True}, "manifest version True"),
        ({"format": "other"}, "not a manifest"),
        ({"state": "done"}, "state must be one of 'complete', 'in progress'"),
        ({"neat": "yes"}, "neat must be of type bool"),
        ({"seq_length": True}, "seq_length must be of type int"),
        ({"seq_length": 4.5}, "seq_length must be of type int"),
        ({"tokenizer": {"kind": "x"}}, "tokenizer.sha256 is missing"),
        ({"tokenizer": []}, "tokenizer must be a dictionary"),
        ({"counts": {"skipped": {"why": "2"}}}, "counts.skipped.why must be of type int"),
        ({"histograms": {"sample_length": [3]}}, "histograms.sample_length must be a list"),
        ({"fill": "full"}, "fill must be of type float"),
    ],
)
def test_a_manifest_that_does_not_fit_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    prefix = tmp_path / "alpaca"
    write(prefix, 7)
    change_manifest(prefix, **changes)
    with pytest.raises(DataError, match=message):
        PackedFiles.open(prefix)


def test_unknown_fields_of_a_newer_manifest_are_ignored(tmp_path: Path) -> None:
    write(tmp_path / "alpaca", 7)
    change_manifest(tmp_path / "alpaca", colour="red")
    assert tokens_of(tmp_path / "alpaca") == [[7] * 4] * 2


@pytest.mark.parametrize("data", [b"", b"[]", b"nonsense", b"\xff\xfe\x00", b"[" * 100_000, b'{"format": NaN}'])
def test_a_manifest_that_is_not_json_is_named(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "alpaca_packed_manifest.json"
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"alpaca_packed_manifest.json"):
        Manifest.read(path)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@given(field=st.sampled_from([one.name for one in dataclasses.fields(Manifest)]), value=json_values)
@settings(max_examples=300, deadline=None)
def test_arbitrary_field_values_are_read_or_reported(
    tmp_path_factory: pytest.TempPathFactory, field: str, value: Any
) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzz_manifest.json"
    path.write_text(json.dumps(MANIFEST.to_json() | {field: value}))
    try:
        read = Manifest.read(path)
    except DataError as error:
        assert "fuzz_manifest.json" in str(error)
    else:
        read.write(path)
        assert Manifest.read(path) == read


def test_a_manifest_comes_back_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "manifest.json"
    strange = dataclasses.replace(MANIFEST, sources=[SourceFile("name\udcff", 1)], template=None, packing=None)
    for manifest in (MANIFEST, strange):
        manifest.write(path)
        assert Manifest.read(path) == manifest
    assert names_in(tmp_path) == {"manifest.json"}


def test_a_changed_token_is_found_by_its_hash(tmp_path: Path) -> None:
    prefix = tmp_path / "alpaca"
    write(prefix, 7)
    path = Path(f"{column_prefix(prefix, 'labels')}.bin")
    data = bytearray(path.read_bytes())
    data[5] ^= 1
    path.write_bytes(bytes(data))
    files = PackedFiles.open(prefix)
    with pytest.raises(DataError, match=r"labels_document.bin: its bytes differ"):
        files.verify_hashes()


def test_a_file_of_another_size_than_the_manifest_says_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "alpaca", 7)
    write(tmp_path / "other", 7, packs=3)
    manifest_path(tmp_path / "other").replace(manifest_path(tmp_path / "alpaca"))
    with pytest.raises(DataError, match=r"bytes, but \d+ according to alpaca_packed_manifest.json"):
        PackedFiles.open(tmp_path / "alpaca")
