"""preprocess_data.py --output-format document: raw text to Megatron's document files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from document_files import random_documents, write_documents
from preprocess_command import Command
from small_tokenizers import byte_level_folder

from mindspeed_llm.arguments.preprocess_arguments import parse_preprocess_arguments
from mindspeed_llm.errors import ConfigError, DataError
from mindspeed_llm.indexed_dataset import DocumentFiles, token_dtype
from mindspeed_llm.manifest import document_prefix
from mindspeed_llm.preprocessing import merge_packed_files
from mindspeed_llm.tokenization import load_tokenizer

TEXTS = [("The river. " * (1 + number * number % 23)).strip() for number in range(300)]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Path:
    return byte_level_folder(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture
def command(tokenizer, tmp_path) -> Command:
    made = Command(tmp_path, tokenizer)
    made.input = tmp_path / "rows.jsonl"
    made.input.write_text("\n".join(json.dumps({"text": text}) for text in TEXTS))
    made.flags = {
        "--input": str(made.input),
        "--handler-name": "GeneralPretrainHandler",
        "--output-format": "document",
        "--tokenizer-name-or-path": str(tokenizer),
        "--output-prefix": str(made.prefix),
    }
    return made


def names_written(command: Command) -> list[str]:
    folder = command.prefix.parent
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def test_megatron_reads_the_documents(command, tokenizer, tmp_path):
    """Ids of the reference library with the end token, 2 bytes per token, as Megatron's builder writes them."""
    import torch
    from megatron.core.datasets.indexed_dataset import IndexedDataset, IndexedDatasetBuilder

    manifest = command.run("--append-eod")
    path = document_prefix(command.prefix, "text")
    assert names_written(command) == [
        "set_text_document.bin", "set_text_document.idx", "set_text_document_manifest.json",
    ]  # fmt: skip
    theirs = IndexedDataset(str(path), mmap=False)
    own = load_tokenizer("PretrainedFromHF", str(tokenizer), None, backend="tokenizers")
    assert theirs.index.dtype == np.uint16 == token_dtype(own.vocab_size)
    assert len(theirs) == len(theirs.document_indices) - 1 == len(TEXTS)
    builder = IndexedDatasetBuilder(str(tmp_path / "theirs.bin"), dtype=np.uint16)
    for number, text in enumerate(TEXTS):
        expected = [*own.encode_with_offsets(text).ids.tolist(), own.eos_id]
        assert theirs[number].tolist() == expected, number
        builder.add_document(torch.tensor(expected), [len(expected)])
    builder.finalize(str(tmp_path / "theirs.idx"))
    for ending in ("bin", "idx"):
        assert Path(f"{path}.{ending}").read_bytes() == (tmp_path / f"theirs.{ending}").read_bytes()
    assert manifest.documents is not None
    assert (manifest.documents.key, manifest.documents.ended, manifest.samples) == ("text", 300, 300)
    assert manifest.tokens == manifest.trained_tokens == sum(theirs.sequence_lengths)
    DocumentFiles.open(path).verify_hashes()


def test_a_large_vocabulary_takes_four_bytes():
    from megatron.core.datasets.indexed_dataset import DType

    for size in (300, 65499, 65500, 151665):
        assert token_dtype(size) == np.dtype(DType.optimal_dtype(size)), size


def test_the_files_do_not_depend_on_workers_or_the_token_cache(command, tmp_path, caplog):
    command.run()
    expected = command.written()
    assert len(expected) == 3
    cache = ("--cache-dir", str(tmp_path / "cache"))
    for flags in (("--workers", "2"), cache, cache):
        shutil.rmtree(command.prefix.parent)
        command.run(*flags)
        assert command.written() == expected, flags
    assert "using the cached tokens" in caplog.text


def test_another_column_names_the_files(command):
    command.input.write_text(json.dumps({"content": "The river."}))
    command.run("--json-keys", "content")
    assert names_written(command)[0] == "set_content_document.bin"


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"content": "a"}] * 3, r"none of 3 rows gives a sample .*they have content; name the columns"),
        ([], "no rows|empty|none of 0 rows"),
        ([{"text": ""}] * 3, "none of 3 rows gives a sample .*text is empty"),
    ],
    ids=["missing text column", "empty file", "documents without tokens"],
)
def test_refused_with_nothing_written(rows, message, command):
    command.input.write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises((DataError, ConfigError), match=message):
        command.run()
    assert names_written(command) == []


def test_rows_without_text_are_listed_and_left_out(command):
    command.input.write_text("\n".join(json.dumps(row) for row in ({"text": "A river."}, {"text": ""}, {"text": "B"})))
    manifest = command.run()
    assert (manifest.samples, manifest.counts.kept, sum(manifest.counts.skipped.values())) == (2, 2, 1)
    assert "set_rejected.jsonl" in names_written(command)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--handler-name", "AlpacaStyleInstructionHandler"), "reads instructions, whose labels document files do not"),
        (("--pack", "--seq-length", "64"), "--output-format document and --pack"),
        (("--seq-length", "64"), "leave --seq-length 64 out"),
    ],
)
def test_flags_that_do_not_fit(flags, message, command):
    with pytest.raises(ConfigError, match=message):
        command.run(*flags)


def merging(folder: Path, out: Path) -> list[str]:
    return ["--input", str(folder), "--output-prefix", str(out), "--merge-group-keys", "text_document"]


def test_merged_sets_are_read_as_one(tmp_path):
    sets = [random_documents(30, seed=seed, ended=seed == 1) for seed in (1, 2)]
    folder = tmp_path / "sets"
    for name, documents in zip("ab", sets, strict=True):
        write_documents(folder / name, documents)
    manifest = merge_packed_files(parse_preprocess_arguments(merging(folder, tmp_path / "all")))
    files = DocumentFiles.open(tmp_path / "all_text_document")
    files.verify_hashes()
    assert files.manifest == manifest and manifest.documents.ended == 30 and manifest.samples == 60
    every = [tokens for documents in sets for tokens in documents]
    assert files.index.lengths(0, 60).tolist() == [len(each) for each in every]
    assert np.array_equal(files.index.read(0, files.index.tokens), np.concatenate(every))
    (folder / "b_text_document_manifest.json").unlink()
    with pytest.raises(DataError, match="b_text_document: no manifest, but 1 of the 2 sets have one"):
        merge_packed_files(parse_preprocess_arguments(merging(folder, tmp_path / "all")))
    assert DocumentFiles.open(tmp_path / "all_text_document").manifest == manifest
