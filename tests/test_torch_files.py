"""Files of torch.save are read as torch.load reads them, and a crafted or damaged one is refused before it is used."""

from __future__ import annotations

import argparse
import io
import os
import pickle
import random
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from crafted_pickles import Touch, honest_index, saved

from mindspeed_llm.conversion.pickle_reader import PickledName, PickleError
from mindspeed_llm.conversion.torch_file_reader import OF_MEGATRON, TorchFile
from mindspeed_llm.errors import CheckpointError

DTYPES = [
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8,
    torch.uint8, torch.bool, torch.float8_e4m3fn, torch.uint16, torch.uint64,
]  # fmt: skip


@pytest.fixture(scope="module")
def check_safe() -> Callable[..., Any]:
    """The check of a whole folder; importing it imports megatron-core, which has to be patched first."""
    from mindspeed_llm.devices import apply_patches

    apply_patches("cpu")
    from mindspeed_llm.checkpoints.pickle_safety import check_checkpoint_safety

    return check_checkpoint_safety


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def bits(tensor: torch.Tensor) -> list[int]:
    return tensor.contiguous().flatten().view(torch.uint8).tolist()


def values() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    base = torch.randn(6, 8)
    cut = {
        "plain": base, "row": base[2], "rows": base[1:3], "column": base[:, 3], "turned": base.t(),
        "step": base[::2, 1::3], "scalar": torch.tensor(3.5), "empty": torch.empty(0),
        "no rows": torch.empty(0, 4), "one": torch.ones(1, 1, 1),
        "parameter": torch.nn.Parameter(base[:2].clone()), "tied": base,
    }  # fmt: skip
    return {**cut, **{str(dtype): torch.arange(7).to(torch.float32).to(dtype) for dtype in DTYPES}}


def test_every_tensor_is_read_as_torch_load_reads_it(tmp_path):
    path = write(tmp_path / "a.pt", b"before" + saved(values()) + b"after")
    inside = (6, path.stat().st_size - 11)
    expected = torch.load(io.BytesIO(path.read_bytes()[6:-5]), weights_only=True)
    file = TorchFile(path, *inside)
    assert list(file.content) == list(expected)
    for name, tensor in expected.items():
        stored = file.tensor(file.content[name])
        own = stored.read()
        assert (own.dtype, own.shape, stored.dtype, stored.shape) == (
            tensor.dtype,
            tensor.shape,
            tensor.dtype,
            own.shape,
        )
        assert bits(own) == bits(tensor), name


def test_plain_values_are_read_as_torch_load_reads_them(tmp_path):
    value = {
        "numbers": [0, 1, -1, 255, 256, 65535, 65536, -(1 << 31), 1 << 40, -(1 << 70), 1.5, float("inf"), True, None],
        "text": ["", "ü" * 300, "a\nb"],
        7: ((), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4), {"betas": (0.9, 0.999)}),
        "ordered": OrderedDict(a=1, b=torch.Size([2, 3])),
        "dtype": torch.bfloat16,
        "many": list(range(3000)),
        "tensor": torch.ones(2),
    }
    file = TorchFile(write(tmp_path / "a.pt", saved(value)))
    own, expected = file.value(file.content), torch.load(tmp_path / "a.pt", weights_only=True)
    assert own.pop("tensor").tolist() == expected.pop("tensor").tolist() == [1, 1]
    assert own == expected


def test_what_megatron_saves_beside_the_weights_is_passed_over(tmp_path):
    state = np.random.default_rng(0).bit_generator.state
    content = {
        "model": OrderedDict(weight=torch.ones(3)),
        "args": argparse.Namespace(params_dtype=torch.bfloat16, betas=(0.9, 0.95), extra=io.BytesIO(b"abc")),
        "rng_state": [{"np_rng_state": np.random.RandomState(0).get_state(), "other": str(state)}],
    }
    file = TorchFile(write(tmp_path / "a.pt", saved(content)), also_allowed=OF_MEGATRON)
    assert file.tensor(file.content["model"]["weight"]).read().tolist() == [1, 1, 1]
    with pytest.raises(PickleError, match="plain values"):
        file.value({"args": PickledName("argparse", "Namespace")})


def tensor_of(**changes: object) -> bytes:
    """A file with one tensor of 2 x 3 numbers in a storage of 6, some of it changed."""
    fields = {"key": "0", "elements": 6, "offset": 0, "shape": (2, 3), "stride": (3, 1), **changes}
    written = {name: pickle.dumps(value, 2)[2:-1] for name, value in fields.items()}
    written = {name: opcodes.replace(b"q\x00", b"").replace(b"q\x01", b"") for name, opcodes in written.items()}
    pickled = (
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storagectorch\nFloatStorage\n"
        + b"".join([written["key"], b"X\x03\x00\x00\x00cpu", written["elements"], b"tQ"])
        + b"".join([written["offset"], written["shape"], written["stride"], b"\x89}tR."])
    )
    return archive({"data.pkl": pickled, "byteorder": b"little", "data/0": struct.pack("6f", *range(6))})


def archive(members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", compression) as file:
        for name, value in members.items():
            file.writestr(f"archive/{name}", value)
    return content.getvalue()


def read(path: Path) -> torch.Tensor:
    file = TorchFile(path)
    return file.tensor(file.content).read()


BEYOND = {
    "more elements than bytes": {"elements": 1 << 40},
    "a shape beyond the storage": {"shape": (3, 3)},
    "a stride beyond the storage": {"stride": (4, 1)},
    "an offset beyond the storage": {"offset": 1},
    "a negative offset": {"offset": -1},
    "a negative stride": {"stride": (-3, 1)},
    "a negative shape": {"shape": (-2, -3)},
    "a huge shape": {"shape": (1 << 40, 1 << 40)},
    "a shape of text": {"shape": ("2", "3")},
    "other dimensions": {"stride": (3,)},
    "an unknown storage": {"key": "1"},
    "a storage of another name": {"key": "../0"},
    "elements of text": {"elements": "6"},
    "an expanded tensor": {"shape": (1 << 30, 1), "stride": (0, 0)},
}


def test_a_tensor_made_by_hand_is_read(tmp_path):
    assert read(write(tmp_path / "a.pt", tensor_of())).tolist() == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.parametrize("changes", BEYOND.values(), ids=BEYOND)
def test_a_tensor_that_leaves_its_storage_is_refused(tmp_path, changes):
    with pytest.raises(PickleError):
        read(write(tmp_path / "a.pt", tensor_of(**changes)))


def test_only_archives_of_torch_save_are_read(tmp_path):
    whole = saved(torch.ones(2))
    members = {"data.pkl": b"\x80\x02N.", "byteorder": b"little"}
    crafted = [
        b"", b"PK", whole[:-1], whole[:40], b"\x80\x02N.", archive(members, zipfile.ZIP_DEFLATED),
        saved(torch.ones(2), _use_new_zipfile_serialization=False),
        archive({"byteorder": b"little"}), archive({**members, "byteorder": b"big"}),
        archive({**members, "data.pkl": b"\x80\x02cos\nsystem\n."}), whole.replace(b"PK\3\4", b"PK\3\5", 1),
    ]  # fmt: skip
    for content in crafted:
        with pytest.raises(PickleError):
            TorchFile(write(tmp_path / "a.pt", content))
    with pytest.raises(PickleError, match="shorter"):
        TorchFile(write(tmp_path / "a.pt", whole), 10, len(whole))


def damaged(draw: random.Random, whole: bytes, count: int) -> list[bytes]:
    """A file cut at any place, or with a few bytes changed."""
    changed = [whole[: draw.randrange(len(whole))] for _ in range(count // 4)]
    for _ in range(count - len(changed)):
        content = bytearray(whole)
        for _ in range(draw.randrange(1, 4)):
            content[draw.randrange(len(content))] = draw.choice([0, 1, 127, 255, draw.randrange(256)])
        changed.append(bytes(content))
    return changed


def fuzz(path: Path, seed: int, count: int) -> int:
    """How many of the damaged files are read; others are refused, and neither ends the process."""
    whole, read_at_all = saved({"a": torch.ones(2, 3, dtype=torch.bfloat16), "b": [1, 2.5, "text"]}), 0
    for content in damaged(random.Random(seed), whole, count):
        path.write_bytes(content)
        try:
            file = TorchFile(path)
            read_at_all += file.value(file.content) is not None
        except (PickleError, OSError, RuntimeError):
            continue
    return read_at_all


def test_damaged_files_are_refused_or_read(tmp_path):
    assert 0 < fuzz(tmp_path / "a.pt", 0, 400) < 400


@pytest.mark.long
@pytest.mark.parametrize("seed", range(1, 5))
def test_many_damaged_files_are_refused_or_read(tmp_path, seed):
    assert 0 < fuzz(tmp_path / "a.pt", seed, 40_000) < 40_000


def doubled(depth: int) -> list[object]:
    """A value whose size in memory is `depth` lists, and that doubles each time it is walked through."""
    value: list[object] = []
    for _ in range(depth):
        value = [value, value]
    return value


@pytest.mark.parametrize(
    ("value", "message"),
    [(doubled(20), "nested too deeply"), (doubled(200), "nested too deeply"), ([Touch(Path("x"))], "could run code")],
    ids=["doubled", "deep", "code"],
)
def test_a_crafted_common_file_is_refused(check_safe, tmp_path, value, message):
    folder = whole_checkpoint(tmp_path)
    write(folder / "common.pt", saved({"optimizer": value}))
    with pytest.raises(CheckpointError, match=rf"common\.pt: refused.*{message}"):
        check_safe(folder, (), {"optimizer"})


def whole_checkpoint(folder: Path) -> Path:
    (folder / "metadata.json").write_text('{"sharded_backend": "torch_dist", "sharded_backend_version": 1}')
    write(folder / ".metadata", pickle.dumps(honest_index()))
    write(folder / "common.pt", saved({"optimizer": {"param_groups": [{"lr": 0.1}]}, "args": argparse.Namespace(a=1)}))
    return folder


def test_a_whole_checkpoint_is_handed_on(check_safe, tmp_path):
    checked = check_safe(whole_checkpoint(tmp_path), ["decoder.layers.mlp.linear_fc0.weight"], ["optimizer", "other"])
    assert checked.common == {"optimizer": {"param_groups": [{"lr": 0.1}]}}


@pytest.mark.parametrize(
    "content",
    ["", "{", "[1]", "null", "[" * 100_000, '{"sharded_backend": "zarr"}', '{"sharded_backend": ["torch_dist"]}', "{}",
     '{"sharded_backend": "torch_dist", "surprise": 1}', "9" * 5000],
)  # fmt: skip
def test_a_crafted_format_is_refused_in_one_line(check_safe, tmp_path, content):
    (whole_checkpoint(tmp_path) / "metadata.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"metadata\.json: ") as raised:
        check_safe(tmp_path, ())
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 1000


def test_files_that_are_no_files_are_refused(check_safe, tmp_path):
    for name in ("metadata.json", ".metadata", "common.pt", "__0_0.distcp"):
        folder = tmp_path / name.strip(".")
        folder.mkdir()
        (whole_checkpoint(folder) / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)  # opened, it would wait for a writer for ever
        with pytest.raises(CheckpointError, match="not a"):
            check_safe(folder, ())
    (tmp_path / "outside").write_bytes(b"")
    folder = tmp_path / "link"
    folder.mkdir()
    (whole_checkpoint(folder) / "__0_0.distcp").symlink_to(tmp_path / "outside")
    with pytest.raises(CheckpointError, match="points outside"):
        check_safe(folder, ())
