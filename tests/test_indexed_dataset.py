"""Megatron's own reader and writer agree with ours byte for byte, and damage is named, never met later."""

from __future__ import annotations

import hashlib
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mindspeed_llm.errors import DataError
from mindspeed_llm.indexed_dataset import IndexedReader, IndexedWriter, PackedFiles
from mindspeed_llm.manifest import COLUMNS, column_prefix

DOCUMENTS = [[5, 6, 7], [8], [], [9, -100, 2147483647, 0]]


def write(prefix: Path, documents: list[list[int]], dtype: type = np.int32) -> Path:
    with IndexedWriter(prefix, dtype) as out:
        for document in documents:
            out.add(np.array(document, dtype))
    return prefix


def write_packed(prefix: Path, packs: int = 3, seq_length: int = 8) -> Path:
    """Packed files without a manifest, as MindSpeed-LLM leaves them."""
    for column in COLUMNS:
        write(column_prefix(prefix, column), [list(range(seq_length))] * packs)
    return prefix


@pytest.mark.parametrize("dtype", [np.int32, np.int64, np.uint16, np.int8])
def test_what_was_written_is_read(tmp_path: Path, dtype: type) -> None:
    documents = [[5, 6, 7], [8], [], [9, 100]]
    reader = IndexedReader(write(tmp_path / "data", documents, dtype))
    assert len(reader) == 4
    assert reader.dtype == dtype
    assert reader.lengths.tolist() == [3, 1, 0, 2]
    assert [tokens.tolist() for tokens in (reader[number] for number in range(4))] == documents
    assert reader[0].dtype == dtype
    assert not reader[0].flags.writeable
    assert reader[np.int64(3)].tolist() == [9, 100]
    for outside in (4, -1):
        with pytest.raises(IndexError):
            reader[outside]


def test_no_documents(tmp_path: Path) -> None:
    reader = IndexedReader(write(tmp_path / "data", []))
    assert len(reader) == 0
    assert reader.document_indices.tolist() == [0]


def test_rows_are_documents(tmp_path: Path) -> None:
    rows = np.arange(12, dtype=np.int64).reshape(4, 3)
    with IndexedWriter(tmp_path / "rows") as out:
        out.add_rows(rows)
    write(tmp_path / "one_by_one", rows.tolist())
    for ending in ("bin", "idx"):
        assert (tmp_path / f"rows.{ending}").read_bytes() == (tmp_path / f"one_by_one.{ending}").read_bytes()


def test_many_documents_pass_the_buffer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mindspeed_llm.indexed_dataset.indexed_writer.BUFFERED_BYTES", 64)
    documents = [list(range(number % 7)) for number in range(100)]
    reader = IndexedReader(write(tmp_path / "data", documents))
    assert [reader[number].tolist() for number in range(100)] == documents


def test_sizes_and_hashes_are_those_of_the_files(tmp_path: Path) -> None:
    with IndexedWriter(tmp_path / "data") as out:
        out.add(np.arange(1000, dtype=np.int32))
    assert set(out.files) == {"data.bin", "data.idx"}
    for name, facts in out.files.items():
        data = (tmp_path / name).read_bytes()
        assert facts.size == len(data)
        assert facts.sha256 == hashlib.sha256(data).hexdigest()


def test_tokens_that_do_not_fit_are_not_wrapped(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="do not fit"), IndexedWriter(tmp_path / "data") as out:
        out.add(np.array([2**31]))
    assert list(tmp_path.iterdir()) == []


def test_a_writer_left_by_an_exception_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), IndexedWriter(tmp_path / "data") as out:
        out.add(np.zeros(3, np.int32))
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


# --- Megatron's own reader and writer ---------------------------------------------------------------------------------


def test_megatron_reads_our_files(tmp_path: Path) -> None:
    megatron = pytest.importorskip("megatron.core.datasets.indexed_dataset")
    dataset = megatron.IndexedDataset(str(write(tmp_path / "data", DOCUMENTS)))
    assert [dataset[number].tolist() for number in range(len(dataset))] == DOCUMENTS
    assert dataset.sequence_lengths.tolist() == [3, 1, 0, 4]
    assert dataset.document_indices.tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("dtype", [np.int32, np.uint16])
def test_megatron_writes_the_same_bytes(tmp_path: Path, dtype: type) -> None:
    torch = pytest.importorskip("torch")
    megatron = pytest.importorskip("megatron.core.datasets.indexed_dataset")
    documents = [[5, 6, 7], [8], [9, 100, 2, 0]]
    builder = megatron.IndexedDatasetBuilder(str(tmp_path / "theirs.bin"), dtype=dtype)
    for document in documents:
        builder.add_document(torch.tensor(document), [len(document)])
    builder.finalize(str(tmp_path / "theirs.idx"))
    write(tmp_path / "ours", documents, dtype)
    for ending in ("bin", "idx"):
        assert (tmp_path / f"ours.{ending}").read_bytes() == (tmp_path / f"theirs.{ending}").read_bytes()


def test_we_read_megatron_documents_of_several_sequences(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    megatron = pytest.importorskip("megatron.core.datasets.indexed_dataset")
    builder = megatron.IndexedDatasetBuilder(str(tmp_path / "theirs.bin"), dtype=np.int32)
    builder.add_document(torch.tensor([1, 2, 3, 4, 5]), [2, 3])
    builder.add_document(torch.tensor([6]), [1])
    builder.finalize(str(tmp_path / "theirs.idx"))
    reader = IndexedReader(tmp_path / "theirs")
    assert [reader[number].tolist() for number in range(3)] == [[1, 2], [3, 4, 5], [6]]
    assert reader.document_indices.tolist() == [0, 2, 3]


# --- Damage -----------------------------------------------------------------------------------------------------------


@given(place=st.integers(0, 10_000), flip=st.integers(1, 255))
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_flipped_byte_of_an_index_is_reported_or_changes_no_token(tmp_path: Path, place: int, flip: int) -> None:
    prefix, index, kept = tmp_path / "data", tmp_path / "data.idx", tmp_path / "kept.idx"
    if not kept.exists():
        write(prefix, DOCUMENTS)
        kept.write_bytes(index.read_bytes())
    data = bytearray(kept.read_bytes())
    place %= len(data)
    data[place] ^= flip
    index.write_bytes(bytes(data))
    try:
        reader = IndexedReader(prefix)
    except DataError as error:
        assert "data.idx" in str(error) or "data.bin" in str(error)
    else:  # only where a document starts has changed, of which the tokens do not depend
        assert place >= len(data) - 8 * (len(DOCUMENTS) + 1)
        assert [reader[number].tolist() for number in range(len(reader))] == DOCUMENTS


@pytest.mark.parametrize("documents", [[1, 1, 2, 3, 4], [0, 1, 2, 3, 3], [0, 2, 1, 3, 4], [0, 1, 2, 3, 5]])
def test_documents_that_do_not_fit_the_sequences_are_named(tmp_path: Path, documents: list[int]) -> None:
    prefix = write(tmp_path / "data", DOCUMENTS)
    index = tmp_path / "data.idx"
    index.write_bytes(index.read_bytes()[: -8 * len(documents)] + np.array(documents, np.int64).tobytes())
    with pytest.raises(DataError, match=r"data\.idx: its document indices"):
        IndexedReader(prefix)


@given(data=st.binary(max_size=200), keep_magic=st.booleans())
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_as_an_index_give_a_named_error(tmp_path: Path, data: bytes, keep_magic: bool) -> None:
    prefix = tmp_path / "data"
    if not (tmp_path / "data.bin").exists():
        write(prefix, DOCUMENTS)
    head = b"MMIDIDX\x00\x00" + (1).to_bytes(8, "little") if keep_magic else b""
    (tmp_path / "data.idx").write_bytes(head + data)
    with pytest.raises(DataError, match=r"data.(idx|bin)"):
        IndexedReader(prefix)


@pytest.mark.parametrize("ending", ["bin", "idx"])
@pytest.mark.parametrize("change", ["cut", "longer", "empty", "missing", "directory"])
def test_files_of_a_wrong_size_are_named(tmp_path: Path, ending: str, change: str) -> None:
    prefix = write(tmp_path / "data", DOCUMENTS)
    path = tmp_path / f"data.{ending}"
    data = path.read_bytes()
    path.unlink()
    if change == "directory":
        path.mkdir()
    elif change != "missing":
        path.write_bytes({"cut": data[:-1], "longer": data + b"\0", "empty": b""}[change])
    with pytest.raises(DataError, match=f"data.{ending}"):
        IndexedReader(prefix)


def test_numbers_that_are_no_tokens_are_refused(tmp_path: Path) -> None:
    prefix = write(tmp_path / "data", [[1, 2]], np.float32)
    with pytest.raises(DataError, match="must be integers"):
        IndexedReader(prefix)


# --- The set of files -------------------------------------------------------------------------------------------------


def test_files_without_a_manifest_open_with_one_warning(tmp_path: Path) -> None:
    prefix = write_packed(tmp_path / "alpaca")
    with pytest.warns(UserWarning, match=r"no alpaca_packed_manifest.json") as warned:
        files = PackedFiles.open(prefix)
    assert len(warned) == 1
    assert files.manifest is None
    assert len(files) == 3
    assert files.seq_length == 8
    with pytest.raises(DataError, match="no such file"):
        files.verify_hashes()


def test_columns_of_different_runs_are_refused(tmp_path: Path) -> None:
    prefix = write_packed(tmp_path / "alpaca")
    labels = column_prefix(prefix, "labels")
    write(labels, [[1] * 8] * 2)
    with pytest.raises(DataError, match=r"labels.*2 sequences, but .* has 3"), warnings.catch_warnings():
        PackedFiles.open(prefix)
    write(labels, [[1] * 8, [1] * 7, [1] * 8])
    with pytest.raises(DataError, match=r"labels.*sequence 1 has 7 tokens, 8 in"):
        PackedFiles.open(prefix)


def test_a_missing_prefix_is_reported_with_a_fix(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nothing_packed_input_ids_document.idx: no such file; check the prefix"):
        PackedFiles.open(tmp_path / "nothing")
