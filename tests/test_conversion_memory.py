"""Streams: everything arrives, errors of the disk come out, and little is held."""

from __future__ import annotations

import errno
import io
import os
import threading
import weakref

import pytest
import torch
from hugging_face_models import make_model
from safetensors.torch import load_file, save_file

from mindspeed_llm.arguments.convert_arguments import parse_convert_arguments
from mindspeed_llm.arguments.hugging_face_config import read_config
from mindspeed_llm.conversion import HuggingFaceWeights, TensorCatalogue, convert
from mindspeed_llm.conversion.distributed_checkpoint import write_distributed_checkpoint
from mindspeed_llm.conversion.model_weights import common_dtype
from mindspeed_llm.conversion.rank_files import RankLayout, write_rank_files
from mindspeed_llm.conversion.tensor_streams import read_ahead
from mindspeed_llm.errors import CheckpointError
from mindspeed_llm.storage import uncached_file
from mindspeed_llm.storage.uncached_file import StreamedFile


def test_a_stream_writes_what_a_plain_file_does(tmp_path, monkeypatch):
    monkeypatch.setattr(uncached_file, "STRETCH", 1000)
    content = os.urandom(12_345)
    with io.BufferedWriter(StreamedFile(tmp_path / "file")) as file:
        for start in range(0, len(content), 77):
            file.write(content[start : start + 77])
    assert (tmp_path / "file").read_bytes() == content
    with StreamedFile(tmp_path / "file", "r+b") as file:
        file.seek(500)
        assert file.write(b"x" * 3000) == 3000
    assert (tmp_path / "file").read_bytes() == content[:500] + b"x" * 3000 + content[3500:]


@pytest.mark.parametrize("stretches", [0.5, 3])
def test_a_full_disk_is_reported_by_the_stream(tmp_path, monkeypatch, stretches):
    """Also when it is found behind the writer, by the thread that puts a stretch on the disk."""

    def full(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(uncached_file, "STRETCH", 1000)
    monkeypatch.setattr(uncached_file.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"), StreamedFile(tmp_path / "file") as file:
        for _ in range(10):
            file.write(b"x" * int(stretches * 100))
    assert file.closed


def test_reading_ahead_keeps_the_order_and_raises_in_turn():
    seen = []

    def read(number):
        seen.append((number, threading.current_thread() is threading.main_thread()))
        if number == 3:
            raise ValueError("the fourth")
        return number * number

    got = []
    with pytest.raises(ValueError, match="the fourth"):
        for number, square in read_ahead(read, range(6)):
            got.append((number, square))
    assert got == [(0, 0), (1, 1), (2, 4)]
    assert not any(main for _, main in seen)
    assert list(read_ahead(str, [])) == []


@pytest.mark.parametrize("layout", ["torch_dist", "torch"])
def test_conversion_keeps_at_most_one_layer_in_memory(tmp_path, layout):
    """Tensors that were read and still live, each time another one is asked for: a layer's and one outside."""
    make_model("Qwen2.5", tmp_path / "hf", torch.float32)
    config = read_config(tmp_path / "hf")
    catalogue, weights = TensorCatalogue(config), HuggingFaceWeights(tmp_path / "hf")
    alive: weakref.WeakSet[torch.Tensor] = weakref.WeakSet()
    most = 0

    def read(tensor):
        nonlocal most
        value = weights.full_tensor(tensor).clone()
        alive.add(value)
        most = max(most, len(alive))
        return value

    (tmp_path / "out").mkdir()
    dtype = common_dtype(weights.dtypes.values())
    if layout == "torch":
        write_rank_files(tmp_path / "out", catalogue, read, RankLayout(2, 1, config.vocab_size), dtype, lambda _: None)
    else:
        write_distributed_checkpoint(tmp_path / "out", catalogue, read, dtype, lambda _: None)
    in_a_layer = sum(tensor.layer == 0 for tensor in catalogue.tensors)
    assert most <= (3 if layout == "torch" else in_a_layer + 2)
    assert len(catalogue.tensors) > 2 * in_a_layer


def test_tensors_come_in_their_order_where_there_is_an_accelerator(tmp_path, monkeypatch):
    """torch's writer takes another loader there, which would ask for a layer's tensors by size."""
    source, target = tmp_path / "hf", tmp_path / "mcore"
    make_model("Qwen3, tied", source, torch.float32)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    convert(parse_convert_arguments(["--load-dir", str(source), "--save-dir", str(target)]))
    back = ["--load-model-type", "mg", "--save-model-type", "hf"]
    convert(parse_convert_arguments([*back, "--load-dir", str(target), "--save-dir", str(tmp_path / "back")]))
    own, theirs = load_file(tmp_path / "back" / "model.safetensors"), load_file(source / "model.safetensors")
    assert own.keys() == theirs.keys() and all(torch.equal(own[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("form", ["torch_dist", "torch"])
def test_a_write_that_fails_under_torch_is_named(tmp_path, monkeypatch, form):
    """torch.save ends its file after a failed write, and may hide the failure behind one of its own."""
    make_model("Qwen2.5", tmp_path / "hf", torch.float32)

    def full(self, data):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(StreamedFile, "write", full)
    flags = ["--load-dir", str(tmp_path / "hf"), "--save-dir", str(tmp_path / "out"), "--ckpt-format", form]
    with pytest.raises(CheckpointError, match="No space left on device"):
        convert(parse_convert_arguments(flags))
    assert list((tmp_path / "out").iterdir()) == []


def test_a_tied_model_without_its_embedding_is_refused(tmp_path):
    make_model("Qwen2.5, tied", tmp_path / "hf", torch.float32)
    weights = load_file(tmp_path / "hf" / "model.safetensors")
    weights["lm_head.weight"] = weights.pop("model.embed_tokens.weight")
    save_file(weights, tmp_path / "hf" / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"missing: model\.embed_tokens\.weight"):
        convert(parse_convert_arguments(["--load-dir", str(tmp_path / "hf"), "--save-dir", str(tmp_path / "out")]))
