"""Packed files that change while they are read: an error that names the file, or the bytes from before."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import numpy as np
import pytest
from tiny_runs import pretrain, train_records, write_files

from mindspeed_llm.data import PackedDataLoader
from mindspeed_llm.errors import DataError
from mindspeed_llm.indexed_dataset import IndexedReader, IndexedWriter, PackedFiles
from mindspeed_llm.indexed_dataset.positional_file import PositionalFile
from mindspeed_llm.manifest import column_prefix

ROWS = np.arange(40, dtype=np.int32).reshape(10, 4)


def write(prefix: Path, rows: np.ndarray = ROWS) -> Path:
    with IndexedWriter(prefix) as out:
        out.add_rows(rows)
    return prefix


def open_descriptors(folder: Path) -> int:
    """Descriptors of this process that stand for files of `folder`."""
    # The descriptor that lists the directory is gone by the time it is asked about.
    entries = [entry for entry in Path("/proc/self/fd").iterdir() if entry.is_symlink()]
    return sum(entry.readlink().is_relative_to(folder) for entry in entries)


@pytest.mark.parametrize("size", [0, 100, 159])
def test_a_truncated_file_is_named(tmp_path: Path, size: int) -> None:
    reader = IndexedReader(write(tmp_path / "data"))
    os.truncate(tmp_path / "data.bin", size)
    whole = size // 16
    assert [reader[number].tolist() for number in range(whole)] == ROWS[:whole].tolist()
    with pytest.raises(DataError, match=rf"data\.bin: {size} bytes, but 160 when it was opened: it was truncated"):
        reader[9]


def test_an_index_is_not_needed_once_it_is_read(tmp_path: Path) -> None:
    reader = IndexedReader(write(tmp_path / "data"))
    os.truncate(tmp_path / "data.idx", 0)
    assert [reader[number].tolist() for number in range(10)] == ROWS.tolist()
    assert reader.lengths.tolist() == [4] * 10 and reader.document_indices.tolist() == list(range(11))


def test_a_run_whose_data_are_truncated_ends_with_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = write_files(tmp_path / "data")
    labels = Path(f"{column_prefix(data, 'labels')}.bin")
    micro_batches = PackedDataLoader.micro_batches

    def truncated_before_the_third_step(self, consumed_samples):
        if consumed_samples == 8:
            os.truncate(labels, 0)
        return micro_batches(self, consumed_samples)

    monkeypatch.setattr(PackedDataLoader, "micro_batches", truncated_before_the_third_step)
    with pytest.raises(DataError, match=rf"{labels}: 0 bytes, but 2,560 when it was opened"):
        pretrain(monkeypatch, "--data-path", str(data), "--run-dir", str(tmp_path / "run"), "--eval-iters", "0")
    assert list(train_records(tmp_path / "run")) == [1, 2], "the steps before it are finished"


def test_a_replaced_file_is_read_as_it_was(tmp_path: Path) -> None:
    reader = IndexedReader(write(tmp_path / "data"))
    write(tmp_path / "other", ROWS + 1).with_suffix(".bin").replace(tmp_path / "data.bin")
    assert [reader[number].tolist() for number in range(10)] == ROWS.tolist()


def test_a_process_holds_few_descriptors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mindspeed_llm.indexed_dataset.positional_file.MAX_OPEN", 3)
    readers = [IndexedReader(write(tmp_path / f"data{number}", ROWS + number)) for number in range(7)]
    for _ in range(2):
        for number, reader in enumerate(readers):
            assert reader[number].tolist() == (ROWS + number)[number].tolist()
            assert open_descriptors(tmp_path) <= 3
    write(tmp_path / "other").with_suffix(".bin").replace(tmp_path / "data0.bin")
    (tmp_path / "data1.bin").unlink()
    with pytest.raises(DataError, match=r"data0\.bin: was replaced by another file while it was in use"):
        readers[0][0]
    with pytest.raises(DataError, match=r"data1\.bin: cannot be read"):
        readers[1][0]
    del readers, reader
    assert open_descriptors(tmp_path) == 0


def test_threads_and_forked_processes_read_at_the_same_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With one descriptor for three files, which is closed and opened all the time."""
    monkeypatch.setattr("mindspeed_llm.indexed_dataset.positional_file.MAX_OPEN", 1)
    readers = [IndexedReader(write(tmp_path / f"data{number}", ROWS + number)) for number in range(3)]
    wrong: list[object] = []

    def read(seed: int) -> None:
        try:
            for which, row in np.random.default_rng(seed).integers(0, (3, 10), (300, 2)):
                if readers[which][row].tolist() != (ROWS + which)[row].tolist():
                    wrong.append((which, row))
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    child = os.fork()
    if child == 0:
        read(9)
        os._exit(1 if wrong else 0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    for thread in threads:
        thread.join()
    assert not wrong
    assert open_descriptors(tmp_path) <= 1


def test_an_error_of_the_disk_is_named() -> None:
    with pytest.raises(DataError, match="/proc/self/mem: cannot be read at byte 0: Input/output error"):
        PositionalFile(Path("/proc/self/mem")).read(0, 8)


def test_damage_is_found_in_every_block_of_an_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mindspeed_llm.indexed_dataset.indexed_reader.NUMBERS_AT_ONCE", 3)
    index = write(tmp_path / "data").with_suffix(".idx")
    kept, named = index.read_bytes(), 0
    for place in range(34, len(kept)):
        index.write_bytes(kept[:place] + bytes([kept[place] ^ 0x11]) + kept[place + 1 :])
        try:
            reader = IndexedReader(tmp_path / "data")
        except DataError as error:
            assert "data.idx" in str(error)
            named += 1
        else:  # where a document starts, of which the tokens do not depend
            assert place >= 34 + 12 * 10
            assert [reader[number].tolist() for number in range(10)] == ROWS.tolist()
            assert reader.document_indices.tolist() != list(range(11))
    assert named >= 12 * 10


def test_columns_share_one_index(tmp_path: Path) -> None:
    files = PackedFiles.open(write_files(tmp_path / "data", packed=False, count=30))
    assert files.labels.lengths is files.attention_mask.lengths is files.input_ids.lengths
    assert all(len(files.labels[number]) == len(files.input_ids[number]) for number in range(30))
