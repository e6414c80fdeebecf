"""Odd files in a checkpoint, a model folder or packed data: one line that names the file, no wait, no traceback."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny import tiny_arguments

from mindspeed_llm.arguments.hugging_face_config import read_config
from mindspeed_llm.arguments.loaded_shape import find_loaded_shape
from mindspeed_llm.conversion.convert import latest_checkpoint
from mindspeed_llm.conversion.generation_info import GenerationInfo
from mindspeed_llm.conversion.model_assets import ModelAssets
from mindspeed_llm.conversion.pickle_reader import PickleError
from mindspeed_llm.conversion.torch_file_reader import TorchFile
from mindspeed_llm.errors import UserError
from mindspeed_llm.indexed_dataset import HashCache
from mindspeed_llm.indexed_dataset.hash_cache import HashCacheEntry
from mindspeed_llm.manifest import Manifest
from mindspeed_llm.storage.checkpoint_directory import TRACKER
from mindspeed_llm.storage.checkpoint_file_list import FORMAT, check_hashes
from mindspeed_llm.storage.hashing import FileDigest
from mindspeed_llm.storage.json_dataclass import decode_dataclass

CONFIG = {
    "model_type": "qwen2", "num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 4,
    "num_key_value_heads": 2, "intermediate_size": 64, "vocab_size": 259,
}  # fmt: skip
HALF = "\ud800"  # of a surrogate pair: JSON can escape it, UTF-8 cannot hold it


@pytest.fixture(scope="module")
def checkpoints() -> SimpleNamespace:
    """What reads a checkpoint's small files; importing it imports megatron-core, which has to be patched first."""
    from mindspeed_llm.devices import apply_patches

    apply_patches("cpu")
    from mindspeed_llm.checkpoints.metadata import RunMetadata
    from mindspeed_llm.checkpoints.run_checkpoints import RunCheckpoints

    return SimpleNamespace(record=RunMetadata.read, latest=lambda folder: RunCheckpoints(folder).latest())


def refused(read: Callable[[], Any]) -> str:
    with pytest.raises(UserError) as caught:
        read()
    message = str(caught.value)
    assert "\n" not in message and len(message) < 1000
    return message


def test_a_pipe_is_refused(tmp_path: Path, checkpoints: SimpleNamespace) -> None:
    for name in ("config.json", "run.json", TRACKER, "manifest.json"):
        os.mkfifo(tmp_path / name)
    for read, name in (
        (lambda: read_config(tmp_path), "config.json"),
        (lambda: checkpoints.record(tmp_path), "run.json"),
        (lambda: checkpoints.latest(tmp_path), TRACKER),
        (lambda: latest_checkpoint(tmp_path), TRACKER),
        (lambda: Manifest.read(tmp_path / "manifest.json"), "manifest.json"),
    ):
        assert name in refused(read)
    assert find_loaded_shape(["--load", str(tmp_path)]) is None


@pytest.mark.parametrize("record", ["run.json", "files.json"])
def test_a_pipe_in_a_checkpoint_gives_no_shape(tmp_path: Path, record: str) -> None:
    folder = tmp_path / "iter_0000001"
    folder.mkdir()
    (tmp_path / TRACKER).write_text("1")
    (folder / "run.json").write_text("{}") if record == "files.json" else None
    os.mkfifo(folder / record)
    assert find_loaded_shape(["--load", str(tmp_path)]) is None


@pytest.mark.parametrize("text", [b"9" * 5000, b"9" * 300, b"\xff\xfe", b"-3", b""])
def test_invalid_tracker_files(tmp_path: Path, checkpoints: SimpleNamespace, text: bytes) -> None:
    (tmp_path / TRACKER).write_bytes(text)
    assert TRACKER in refused(lambda: latest_checkpoint(tmp_path))
    assert TRACKER in refused(lambda: checkpoints.latest(tmp_path))
    assert find_loaded_shape(["--load", str(tmp_path)]) is None


def test_a_record_that_nests_too_deeply(tmp_path: Path, checkpoints: SimpleNamespace) -> None:
    (tmp_path / "run.json").write_text("[" * 100_000)
    assert "run.json" in refused(lambda: checkpoints.record(tmp_path))


@pytest.mark.parametrize(
    ("field", "value"),
    [("num_layers", 30_000_000), ("num_attention_heads", 0), ("hidden_size", 10**400), ("kv_channels", 10**400),
     ("vocab_size", 10**300)],
)  # fmt: skip
def test_sizes_beyond_any_memory(tmp_path: Path, field: str, value: int) -> None:
    folder = tmp_path / "iter_0000001"
    folder.mkdir()
    (tmp_path / TRACKER).write_text("1")
    model = dataclasses.asdict(tiny_arguments().model)
    (folder / "run.json").write_text(json.dumps({"arguments": {"model": model}}))
    assert find_loaded_shape(["--load", str(tmp_path)]) is not None
    (folder / "run.json").write_text(json.dumps({"arguments": {"model": {**model, field: value}}}))
    assert f"run.json: {field} is " in refused(lambda: find_loaded_shape(["--load", str(tmp_path)]))


@pytest.mark.parametrize(("name", "size"), [("a" * 300, 1), ("files.json/x", 1), ("files.json", int("9" * 4000))])
def test_lists_with_impossible_entries(tmp_path: Path, name: str, size: int) -> None:
    entries = {name: {"size": size, "sha256": "0" * 64}}
    (tmp_path / "files.json").write_text(json.dumps({"format": FORMAT, "files": entries}))
    assert str(tmp_path) in refused(lambda: check_hashes(tmp_path))


def test_numbers_beyond_the_range_of_a_float(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="fill"):
        decode_dataclass(10**400, float, "fill")
    data = tmp_path / "data"
    data.write_bytes(b"abc")
    facts, cache = FileDigest.of(data), HashCache(tmp_path)
    cache.keep(HashCacheEntry.of(data, data.stat(), facts, verified=True))
    assert cache.entry(data, facts) is not None
    entry_path = cache._entry_path(data)
    entry_path.write_text(entry_path.read_text().replace('"seconds": 0.0', f'"seconds": {10**400}'))
    assert cache.entry(data, facts) is None
    entry_path.unlink()
    os.mkfifo(entry_path)
    assert cache.entry(data, facts) is None


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "tokenizer_config.json"])
def test_half_a_surrogate_pair_is_exported_as_it_was_read(tmp_path: Path, name: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    own = json.loads((tmp_path / name).read_text()) if (tmp_path / name).exists() else {}
    (tmp_path / name).write_text(json.dumps({**own, "odd": HALF, "chat_template": "x"}))
    taught = GenerationInfo((3,), 0, keeps_template=False, chat_template="y")
    out = tmp_path / "out"
    out.mkdir()
    ModelAssets.read(read_config(tmp_path)).trained_on(taught).write(out)
    assert json.loads((out / name).read_text(encoding="utf-8"))["odd"] == HALF


def test_a_template_with_half_a_surrogate_pair(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    taught = GenerationInfo((3,), 0, keeps_template=False, chat_template=HALF)
    assert "surrogate" in refused(lambda: ModelAssets.read(read_config(tmp_path)).trained_on(taught))


def test_views_of_one_storage_do_not_fill_the_memory(tmp_path: Path) -> None:
    path = tmp_path / "common.pt"
    tensor = torch.zeros(1 << 20)
    torch.save({"optimizer": [tensor] * 8, "all": [tensor[:] for _ in range(1000)]}, path)
    file = TorchFile(path)
    assert len(file.value(file.content["optimizer"])) == 8
    with pytest.raises(PickleError, match="share storages"):
        file.value(file.content["all"])
