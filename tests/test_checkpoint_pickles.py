"""A checkpoint is data: no crafted file of one runs code, sets an attribute of a class, or imports a module."""

from __future__ import annotations

import enum
import io
import json
import pickle
import random
import shutil
from collections.abc import Iterator
from pathlib import Path, PosixPath

import pytest
import torch
from crafted_pickles import (
    CLASSES,
    Touch,
    attributes,
    make_index_malicious,
    saved,
    set_attributes,
    snapshot,
    valid_index,
    with_opcodes,
)
from tiny import VOCABULARY, tiny_arguments
from tiny_runs import pretrain, write_files
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import SavePlan, WriteItem, WriteItemType

from mindspeed_llm.conversion.checkpoint_index import read_checkpoint_index
from mindspeed_llm.errors import CheckpointError

KEY = "decoder.final_layernorm.weight"


@pytest.fixture(autouse=True)
def classes_are_as_they_were() -> Iterator[None]:
    """No test may leave a class changed, and a test that fails must not spoil the next one."""
    before = [(one, attributes(one)) for one in CLASSES]
    yield
    changed = []
    for one, expected in before:
        own = attributes(one)
        for name in (name for name in own | expected if own.get(name) is not expected.get(name)):
            changed.append(f"{one.__qualname__}.{name}")
            setattr(one, name, expected[name]) if name in expected else delattr(one, name)
    assert not changed, f"changed by a file: {changed}"


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> str:
    return str(write_files(tmp_path_factory.mktemp("data") / "data"))


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory) -> Path:
    """--save folder of a run of one iteration."""
    save = tmp_path_factory.mktemp("trained") / "checkpoint"
    with pytest.MonkeyPatch.context() as monkeypatch:
        pretrain(monkeypatch, "--data-path", data, "--save", str(save), "--train-iters", "1")
    return save


def reseal(folder: Path) -> None:
    """Write files.json anew, as somebody who changes a checkpoint can."""
    from mindspeed_llm.checkpoints.integrity import seal_checkpoint

    seal_checkpoint(folder)


@pytest.fixture
def poisoned(trained, tmp_path) -> tuple[Path, Path]:
    """That folder with a checkpoint that runs code, and the file which the code would create."""
    save, trace = tmp_path / "checkpoint", tmp_path / "trace"
    shutil.copytree(trained, save)
    make_index_malicious(save / "iter_0000001", KEY, trace)
    reseal(save / "iter_0000001")
    return save, trace


REFUSED = r"iter_0000001/\.metadata: refused, .*; use a checkpoint from a source that you trust"


@pytest.mark.parametrize("how", ["resume", "--load"])
def test_an_index_that_changes_its_class_executes_no_code(poisoned, data, monkeypatch, how):
    save, trace = poisoned
    flags = ("--save", str(save)) if how == "resume" else ("--load", str(save), "--finetune", "--run-dir", str(save))
    with pytest.raises(CheckpointError, match=REFUSED):
        pretrain(monkeypatch, "--data-path", data, "--train-iters", "2", *flags)
    assert not trace.exists(), "code of the file was run"


def test_an_index_that_changes_its_class_is_not_converted(poisoned, tmp_path):
    from mindspeed_llm.arguments.convert_arguments import parse_convert_arguments
    from mindspeed_llm.conversion import config_of_shape, convert

    save, trace = poisoned
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "config.json").write_text(json.dumps(config_of_shape(tiny_arguments().model, VOCABULARY, 32)))
    folders = f"--load-dir {save} --hf-dir {tmp_path}/hf --save-dir {tmp_path}/out"
    with pytest.raises(CheckpointError, match=REFUSED):
        convert(parse_convert_arguments(f"--load-model-type mg --save-model-type hf {folders}".split()))
    assert not trace.exists(), "code of the file was run"


def test_the_crafted_pickle_has_an_effect_when_unpickled(tmp_path):
    """The two tests above would prove nothing with a file that does nothing."""
    index = valid_index()
    (tmp_path / ".metadata").write_bytes(
        with_opcodes(index, set_attributes(Metadata, {"__setstate__": StorageMeta, "storage_data": 3}))
    )
    content = (tmp_path / ".metadata").read_bytes()
    try:
        assert pickle.loads(content) == index, "harmless at first"
        assert pickle.loads(content).storage_data == 3, "and another one the second time"
    finally:
        del Metadata.__setstate__
        Metadata.storage_data = None


def refused(folder: Path, content: bytes, match: str = "refused") -> None:
    """An index of these bytes is refused in one line, and nothing is changed or imported by it."""
    (folder / ".metadata").write_bytes(content)
    before = snapshot()
    with pytest.raises(CheckpointError, match=match) as raised:
        read_checkpoint_index(folder)
    assert "\n" not in str(raised.value) and str(folder / ".metadata") in str(raised.value)
    assert snapshot() == before


NAME = b"ctorch.distributed.checkpoint.metadata\nMetadata\n"
PATH = b"cpathlib\nPosixPath\n"
CRAFTED = {
    "an attribute of a class": set_attributes(PosixPath, {"is_relative_to": StorageMeta}),
    "an attribute of a class, by dict": PATH + b"}X\x01\x00\x00\x00aK\x01sb0",
    "an attribute of a function": set_attributes(torch.serialization._get_layout, {"cache": {"torch.strided": 1}}),
    "an attribute of a member of an enumeration": set_attributes(WriteItemType, {"_value_": 2}),
    "an extension code": b"\x82\x010",
    "an extension code of two bytes": b"\x83\x01\x010",
    "an extension code of four bytes": b"\x84\x01\x00\x00\x000",
    "a persistent identifier": b"Px\n0",
    "INST": b"(ios\nsystem\n0",
    "INST of an allowed name": b"(ipathlib\nPosixPath\n0",
    "OBJ": b"(" + PATH + b"o0",
    "NEWOBJ_EX": PATH + b")}\x920",
    "REDUCE of an allowed name with a hostile argument": PATH + b"(X\x0b\x00\x00\x00/etc/passwdtR0",
    "a value and POP_MARK": b"(NNN1",
    "DUP": b"20",
    "a second pickle": b"." + pickle.dumps({}),
    "nine exabytes": b"\x96" + b"\xff" * 7 + b"\x7f0",
    "four gigabytes of text": b"X\xff\xff\xff\xff0",
    "a long integer of a gigabyte": b"\x8b\x00\x00\x00\x400",
    "a frame beyond the end": b"\x95\xff\xff\xff\xff\xff\xff\xff\x7f",
    "an entry of the memo that is far away": b"Nr\xff\xff\xff\x7f0",
    "an entry of the memo that is not there": b"j\xff\xff\xff\x7f0",
    "an entry of the memo twice": b"Nq\x000",
    "the memo as text": b"Np1000000000\n0",
    "out-of-band data": b"\x970",
    "no end": b"N",
}


@pytest.mark.parametrize("crafted", CRAFTED.values(), ids=CRAFTED)
def test_crafted_opcodes_are_refused(tmp_path, crafted):
    refused(tmp_path, with_opcodes(valid_index(), crafted))


class PicklerOfPython3112(pickle.Pickler):
    """Python 3.11.0 to 3.11.3 writes a member of an enumeration as getattr(class, name)."""

    def reducer_override(self, value):
        return (getattr, (type(value), value.name)) if isinstance(value, enum.Enum) else NotImplemented


def test_an_index_of_every_python_is_read(tmp_path):
    content = io.BytesIO()
    PicklerOfPython3112(content).dump(valid_index())
    (tmp_path / ".metadata").write_bytes(content.getvalue())
    read = read_checkpoint_index(tmp_path)
    assert b"getattr" in content.getvalue() and read.storage_data == valid_index().storage_data


def test_an_index_must_be_exactly_one_complete_pickle(tmp_path):
    whole = pickle.dumps(valid_index())
    cut = (b"", b"\x80", whole[:-1], whole + b".", whole + whole)
    for content in (*cut, b"\x80\x00" + whole[2:], b"\x80\x09" + whole[2:]):
        refused(tmp_path, content)
    for protocol in (0, 1):  # of text; no torch writes them
        refused(tmp_path, pickle.dumps(valid_index(), protocol))


def test_deep_and_wide_values_are_refused_at_once(tmp_path):
    """A key that is nested 300,000 times overflows C's stack when it is hashed; doubled lists fill any memory."""
    nested, tuples = b"]" * 300_000 + b"a" * (300_000 - 1), b")" + b"\x85" * 300_000
    for value in (nested, tuples):
        refused(tmp_path, b"\x80\x04" + value + b".")
        refused(tmp_path, b"\x80\x04}" + value + b"Ns.")
    doubled = b"]\x94" + b"".join(b"(" + b"h" + bytes([i]) + b"h" + bytes([i]) + b"t\x94" for i in range(200))
    refused(tmp_path, b"\x80\x04" + doubled + b"0" * 200 + b".")


def with_state(**changes: object) -> Metadata:
    index = valid_index()
    vars(index).update(changes)
    return index


def place(**changes: object) -> Metadata:
    index = valid_index()
    vars(next(iter(index.storage_data.values()))).update(changes)
    return index


def tensor(**changes: object) -> Metadata:
    index = valid_index()
    entry = next(iter(index.state_dict_metadata.values()))
    for name, value in changes.items():
        setattr(entry.chunks[0] if name in ("offsets", "sizes") else entry, name, value)
    return index


WRONG = {
    "another class": {"state_dict_metadata": {}},
    "an unknown attribute": with_state(surprise=1),
    "a method": with_state(__setstate__=dict),
    "tensors that are no dict": with_state(state_dict_metadata=[]),
    "places that are none": with_state(storage_data=None),
    "a tensor that is text": with_state(state_dict_metadata={"a": "b"}),
    "a place that is text": with_state(storage_data={MetadataIndex("a"): "b"}),
    "a key that is text": with_state(storage_data={"a": _StorageInfo("b", 0, 1)}),
    "a version that is a number": with_state(version=3),
    "a parent folder": place(relative_path="../__0_0.distcp"),
    "an absolute path": place(relative_path="/etc/passwd"),
    "this folder": place(relative_path="."),
    "the parent": place(relative_path=".."),
    "no name": place(relative_path=""),
    "a zero byte": place(relative_path="a\0b"),
    "a path object": place(relative_path=Path("a")),
    "a negative place": place(offset=-1),
    "a huge place": place(offset=1 << 70),
    "a place that is true": place(offset=True),
    "a length in fractions": place(length=1.5),
    "compressed bytes": place(transform_descriptors=["zstd"]),
    "a negative size": tensor(size=(-1, 2)),
    "a size that is a tuple": tensor(size=(1,)),
    "chunks that are a tuple": tensor(chunks=()),
    "a chunk outside": tensor(offsets=torch.Size([1 << 40] * 3)),
    "properties that are none": tensor(properties=None),
}


@pytest.mark.parametrize("index", WRONG.values(), ids=WRONG)
def test_every_field_of_an_index_is_checked(tmp_path, index):
    refused(tmp_path, pickle.dumps(index))


def assert_same(read: Metadata, expected: Metadata) -> None:
    assert type(read) is Metadata
    assert read.storage_data == expected.storage_data
    assert list(read.state_dict_metadata) == list(expected.state_dict_metadata)
    for name, entry in expected.state_dict_metadata.items():
        own = read.state_dict_metadata[name]
        assert type(own) is type(entry) and vars(own) == vars(entry), name
        for chunk in entry.chunks if isinstance(entry, TensorStorageMetadata) else ():
            assert type(chunk.offsets) is torch.Size
    keys = zip(read.storage_data, expected.storage_data, strict=True)
    assert all((one.fqn, one.offset, one.index) == (other.fqn, other.offset, other.index) for one, other in keys)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("dumps", [pickle.dumps, pickle._dumps], ids=["C", "Python"])
def test_a_valid_index_is_read_back_unchanged(tmp_path, protocol, dumps):
    for seed in range(4):
        index = valid_index(1 + 40 * seed, seed)
        (tmp_path / ".metadata").write_bytes(dumps(index, protocol))
        assert_same(read_checkpoint_index(tmp_path), index)


def older(name: str) -> Metadata:
    """An index as other versions write it."""
    index = valid_index()
    if name == "torch 2.7":  # no version
        del vars(index)["version"]
    elif name == "torch 2.3":  # no storage_meta and no transform_descriptors in memory either
        del vars(index)["version"], vars(index)["storage_meta"]
    elif name == "torch with a planner that flattens":
        index.planner_data = {name: (name, 0) for name in index.state_dict_metadata}
    elif name == "megatron-core with plans":
        item = WriteItem(MetadataIndex("a", [0], 0), WriteItemType.SHARD)
        vars(index)["all_local_plans"] = [SavePlan([item], planner_data={})]
    elif name == "megatron-core with mcore_data":
        vars(index)["mcore_data"] = {"a": {"nd_reformulated_orig_global_shape": (2, 3)}}
    elif name == "a newer version":
        index.version = "1.0"
    index.storage_meta = StorageMeta() if "storage_meta" not in vars(index) else index.storage_meta
    return index


@pytest.mark.parametrize(
    "name",
    ["torch 2.7", "torch 2.3", "torch with a planner that flattens", "megatron-core with plans",
     "megatron-core with mcore_data", "a newer version"],
)  # fmt: skip
def test_an_index_of_another_version_is_read(tmp_path, name):
    index = older(name)
    (tmp_path / ".metadata").write_bytes(pickle.dumps(index))
    assert_same(read_checkpoint_index(tmp_path), index)


def test_an_index_written_under_other_module_names_is_read(tmp_path):
    """Python 3.13 has its paths in pathlib._local, and megatron-core 0.15 a class of its own for the index."""
    index = valid_index()
    content = pickle.dumps(index, 2)
    content = content.replace(b"cpathlib\nPosixPath\n", b"cpathlib._local\nPosixPath\n")
    mcore = b"cmegatron.core.dist_checkpointing.strategies.torch\nMCoreMetadata\n"
    content = content.replace(NAME, mcore)
    (tmp_path / ".metadata").write_bytes(content)
    assert_same(read_checkpoint_index(tmp_path), index)


def programs(draw: random.Random, count: int) -> Iterator[bytes]:
    """Pickles that are nearly an index: bytes changed, opcodes put in, pieces moved; and opcodes at random."""
    honest = [pickle.dumps(valid_index(2, seed), protocol) for seed in range(3) for protocol in (2, 4)]
    pieces = [*CRAFTED.values(), NAME, PATH, b"b", b"R", b"\x81", b"0", b"1", b"2", b"}", b"(", b"u", b"]", b"a", b"t",
              b"h\x03", b"q\x05", b"\x94", b"N", b"\x85", b"Q", b"}X\x01\x00\x00\x00aNs"]  # fmt: skip
    for number in range(count):
        content = bytearray(draw.choice(honest))
        for _ in range(draw.randrange(1, 4)):
            at = draw.randrange(2, len(content))
            kind = number % 4
            if kind == 0:
                content[at] = draw.randrange(256)
            elif kind == 1:
                content[at:at] = draw.choice(pieces)
            elif kind == 2:
                content[at : at + draw.randrange(40)] = content[draw.randrange(len(content)) :][: draw.randrange(40)]
            else:
                content = bytearray(b"\x80\x04" + b"".join(draw.choices(pieces, k=draw.randrange(30))) + b".")
        yield bytes(content)


def fuzz(folder: Path, seed: int, count: int) -> int:
    """How many of the programs are read, of `count`; each one is, or is refused in one line."""
    before, accepted = snapshot(), 0
    for content in programs(random.Random(seed), count):
        (folder / ".metadata").write_bytes(content)
        try:
            index = read_checkpoint_index(folder)
        except CheckpointError as error:
            assert "\n" not in str(error) and "refused" in str(error)
            continue
        accepted += 1
        kinds = {type(entry) for entry in index.state_dict_metadata.values()}
        fields = {type(value) for entry in index.storage_data.values() for value in vars(entry).values()}
        assert type(index) is Metadata and kinds <= {TensorStorageMetadata, BytesStorageMetadata}
        assert fields <= {str, int, type(None)}
    assert snapshot() == before, "a class or the imported modules have changed"
    return accepted


def test_mutated_indexes_execute_no_code(tmp_path):
    assert 0 < fuzz(tmp_path, 0, 600) < 600


@pytest.mark.long
@pytest.mark.parametrize("seed", range(1, 9))
def test_many_mutated_indexes_execute_no_code(tmp_path, seed):
    assert 0 < fuzz(tmp_path, seed, 50_000) < 50_000


def test_a_file_changed_between_check_and_load_has_no_effect(trained, tmp_path, data, monkeypatch):
    """The index that was checked is the one that is loaded: the file is gone before megatron-core's load."""
    from mindspeed_llm.checkpoints import load_checkpoint

    save = tmp_path / "checkpoint"
    shutil.copytree(trained, save)
    real = load_checkpoint.check_checkpoint_safety

    def check_and_swap(folder: Path, *rest: object):
        checked = real(folder, *rest)
        for name in (".metadata", "common.pt"):
            (folder / name).write_bytes(pickle.dumps(Touch(tmp_path / "trace")))
        return checked

    monkeypatch.setattr(load_checkpoint, "check_checkpoint_safety", check_and_swap)
    pretrain(monkeypatch, "--data-path", data, "--save", str(save), "--train-iters", "2")
    assert (save / "iter_0000002").is_dir() and not (tmp_path / "trace").exists()


def test_megatron_core_cannot_read_an_index_past_the_check(trained):
    from megatron.core.dist_checkpointing.serialization import load_sharded_metadata, load_tensors_metadata

    for load in (load_tensors_metadata, load_sharded_metadata):
        with pytest.raises(RuntimeError, match="would be unpickled"):
            load(str(trained / "iter_0000001"))


def test_a_shard_that_is_not_a_tensor_executes_no_code(trained, data, tmp_path, monkeypatch):
    save, trace = tmp_path / "checkpoint", tmp_path / "trace"
    shutil.copytree(trained, save)
    folder = save / "iter_0000001"
    (folder / "files.json").unlink()
    index: Metadata = pickle.loads((folder / ".metadata").read_bytes())
    content = saved(Touch(trace))
    for at, entry in index.storage_data.items():
        if at.fqn == KEY:
            (folder / "evil.distcp").write_bytes(content)
            vars(entry).update(relative_path="evil.distcp", offset=0, length=len(content))
    (folder / ".metadata").write_bytes(pickle.dumps(index))
    reseal(folder)
    with pytest.raises(CheckpointError, match=r"evil\.distcp: .* cannot be read \(it names "):
        pretrain(monkeypatch, "--data-path", data, "--save", str(save), "--train-iters", "2")
    assert not trace.exists()
