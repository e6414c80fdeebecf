"""--merge-group-keys: finished files become one set, with one manifest."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from preprocess_command import Command, rows
from small_tokenizers import byte_level_folder

from mindspeed_llm.arguments.preprocess_arguments import parse_preprocess_arguments
from mindspeed_llm.errors import ConfigError, DataError
from mindspeed_llm.indexed_dataset import IndexedReader, IndexedWriter, PackedFiles
from mindspeed_llm.manifest import Manifest, manifest_path
from mindspeed_llm.preprocessing import merge_packed_files
from mindspeed_llm.preprocessing.merging import PACKED_KEYS


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Command]]:
    """A folder with two finished sets, and the commands that made them."""
    folder = tmp_path_factory.mktemp("merging")
    tokenizer = byte_level_folder(folder / "tokenizer")
    commands = []
    for name, data in (("first", rows(30)), ("second", [*rows(40)[30:], {"instruction": "x"}])):
        (folder / name).mkdir()
        command = Command(folder / name, tokenizer, data)
        command.prefix = folder / "done" / name
        command.flags["--output-prefix"] = str(command.prefix)
        command.run()
        commands.append(command)
    return folder / "done", commands


def merged(folder: Path, out: Path, *keys: str) -> Manifest | None:
    words = ["--input", str(folder), "--output-prefix", str(out), "--merge-group-keys", *(keys or PACKED_KEYS)]
    return merge_packed_files(parse_preprocess_arguments(words))


def test_sets_with_manifests_become_one(sets: tuple[Path, list[Command]], tmp_path: Path) -> None:
    folder, commands = sets
    manifest = merged(folder, tmp_path / "all")
    assert manifest is not None and manifest == Manifest.read(manifest_path(tmp_path / "all"))
    files = PackedFiles.open(tmp_path / "all")
    files.verify_hashes()
    whole = Command(tmp_path, Path(), None)
    whole.prefix = tmp_path / "all"
    assert Counter(whole.samples()) == Counter(commands[0].samples()) + Counter(commands[1].samples())
    parts = [Manifest.read(manifest_path(command.prefix)) for command in commands]
    assert manifest.packs == len(files) == sum(part.packs for part in parts)
    masks = np.stack([files.attention_mask[number] for number in range(len(files))])
    assert manifest.tokens == int((masks > 0).sum()) and manifest.fill == manifest.tokens / masks.size
    assert manifest.samples == 40 and manifest.counts.rows_read == 41 == manifest.counts.kept + 1
    assert manifest.counts.skipped == {"answer is missing": 1}
    assert sum(length * count for length, count in manifest.histograms.sample_length) == manifest.tokens
    assert sum(held * packs for held, packs in manifest.histograms.samples_per_pack) == 40
    assert [source.name for source in manifest.sources] == ["rows.json", "rows.json"]


def test_a_damaged_set_is_not_merged(sets: tuple[Path, list[Command]], tmp_path: Path) -> None:
    """The merged manifest would have the hash of the damaged bytes."""
    mixed = tmp_path / "done"
    shutil.copytree(sets[0], mixed)
    labels = next(mixed.glob("second_packed_labels*.bin"))
    data = labels.read_bytes()
    labels.write_bytes(bytes([data[0] ^ 1]) + data[1:])
    with pytest.raises(DataError, match=rf"{labels}: its bytes differ"):
        merged(mixed, tmp_path / "all")
    assert not list(tmp_path.glob("*all*"))


def test_sets_that_do_not_belong_together(sets: tuple[Path, list[Command]], tmp_path: Path) -> None:
    folder, commands = sets
    mixed = tmp_path / "done"
    shutil.copytree(folder, mixed)
    commands[1].run("--output-prefix", str(mixed / "second"), "--seq-length", "512", without=("--neat-pack",))
    with pytest.raises(ConfigError) as caught:
        merged(mixed, tmp_path / "all")
    said = str(caught.value)
    assert "--seq-length" in said and "--neat-pack" in said and not list(tmp_path.glob("all*"))
    commands[1].run("--output-prefix", str(mixed / "second"), "--prompt-type", "default")
    with pytest.raises(ConfigError) as caught:
        merged(mixed, tmp_path / "all")
    assert "differ in the end token (--prompt-type)" in str(caught.value) and "tokenizer" not in str(caught.value)
    manifest_path(mixed / "second").unlink()
    with pytest.raises(DataError, match="second: no manifest, but 1 of the 2 sets have one"):
        merged(mixed, tmp_path / "all")


def test_files_without_manifests(sets: tuple[Path, list[Command]], tmp_path: Path) -> None:
    folder, commands = sets
    bare = tmp_path / "done"
    shutil.copytree(folder, bare, ignore=shutil.ignore_patterns("*.json"))
    (tmp_path / "all_packed_manifest.json").write_text("an older one, of other files")
    assert merged(bare, tmp_path / "all") is None
    assert not manifest_path(tmp_path / "all").exists()
    readers = [
        IndexedReader(f"{prefix}_packed_labels_document")
        for prefix in (tmp_path / "all", *(command.prefix for command in commands))
    ]
    ours, theirs = readers[0], [one[number] for one in readers[1:] for number in range(len(one))]
    assert len(ours) == len(theirs) and all(np.array_equal(ours[n], theirs[n]) for n in range(len(ours)))
    assert not list(tmp_path.glob(".*"))


def test_files_with_any_other_key_are_merged(tmp_path: Path) -> None:
    done = tmp_path / "done"
    done.mkdir()
    for name in ("b", "a"):
        with IndexedWriter(done / f"{name}_text_document", np.uint16) as out:
            out.add(np.array([ord(name)] * 3, np.uint16))
    merged(done, tmp_path / "all", "text_document")
    reader = IndexedReader(tmp_path / "all_text_document")
    assert reader.dtype == np.uint16 and [int(reader[n][0]) for n in range(2)] == [ord("a"), ord("b")]
    with pytest.raises(DataError, match=r"has no \.bin and \.idx"):
        merged(done, tmp_path / "all", "packed_labels_document")
    with pytest.raises(DataError, match="itself among the files"):
        merged(done, done / "a", "text_document")
    (done / "b_text_document.idx").unlink()
    with pytest.raises(DataError, match=r"b_text_document\.idx: no such file; a \.bin and its \.idx"):
        merged(done, tmp_path / "other", "text_document")
    assert not list(tmp_path.glob("*other*"))
