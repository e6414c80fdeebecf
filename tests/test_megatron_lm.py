"""Megatron's own training loop on our packs, compared with this project's loop on every layout."""

from __future__ import annotations

import os
import re
import zipfile
from pathlib import Path

import pytest
import torch
from megatron_cases import CASES, SHORT
from megatron_runs import (
    TESTS,
    assert_equal,
    complete,
    differences,
    make_data,
    print_differences,
    python,
    run_cases,
    wheel,
)
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from mindspeed_llm.conversion.pickle_reader import ForbiddenNameError, PickledObject
from mindspeed_llm.conversion.torch_file_reader import OF_MEGATRON, TorchFile

LONG = [name for name, case in CASES.items() if name not in SHORT and not case.starts and not case.mindspeed]
COMPARED = [name for name, case in CASES.items() if case.own is not None and case.boundaries]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("megatron")
    wheel()
    (folder / "saved").mkdir()
    make_data(folder)
    return folder


@pytest.fixture(scope="module")
def short_runs(folder: Path) -> Path:
    run_cases(folder, wheel(), TESTS / "megatron_script.py", list(SHORT))
    return folder


@pytest.fixture(scope="module")
def long_runs(folder: Path) -> Path:
    run_cases(folder, wheel(), TESTS / "megatron_script.py", LONG)
    return folder


CHECKOUT = (
    "tp1",
    "module",
    "tp2 sp",
    "pp2 mbs2",
    "interleaved",
    "dp2",
    "epochs",
    "saved",
    "resumed",
    "theirs",
    "whole packs",
)


@pytest.mark.long
@pytest.mark.skipif("MEGATRON_LM" not in os.environ, reason="MEGATRON_LM names no checkout")
def test_the_script_of_a_checkout_trains_as_our_own_loop(tmp_path: Path) -> None:
    """Its unchanged pretrain_gpt.py plus one import line, and started by our module (ci/megatron_checkout.sh)."""
    checkout = Path(os.environ["MEGATRON_LM"]).resolve()
    (tmp_path / "saved").mkdir()
    make_data(tmp_path)
    if (
        "MINOR = 12\n" in (checkout / "megatron" / "core" / "package_info.py").read_text()
    ):  # cannot load our checkpoints
        program = [str(TESTS / "megatron_program.py"), str(tmp_path), str(checkout), str(checkout / "pretrain_gpt.py")]
        complete(python(*program, "start"))
    run_cases(tmp_path, checkout, checkout / "pretrain_gpt.py", list(CHECKOUT))
    found = {name: differences(tmp_path, name) for name in CHECKOUT}
    print_differences(tmp_path, found)
    assert_equal(found, control="whole packs")


@pytest.mark.parametrize("name", [name for name in COMPARED if name in SHORT])
def test_megatron_trains_as_our_own_loop(short_runs: Path, name: str) -> None:
    found = differences(short_runs, name)
    print_differences(short_runs, {name: found})
    assert len(found) == 3 and max(found.values()) < 1e-6, found


@pytest.mark.long
@pytest.mark.parametrize("name", [name for name in COMPARED if name in LONG])
def test_megatron_trains_as_our_own_loop_on_other_layouts(long_runs: Path, name: str) -> None:
    """With a checkpoint that Megatron saved under our data, the run continues with the right sample.

    Both loops load the weights of the other: "theirs" is Megatron's checkpoint in both, all others start with ours.
    """
    found = differences(long_runs, name)
    print_differences(long_runs, {name: found})
    assert max(found.values()) < 1e-6, found


@pytest.mark.long
def test_without_boundaries_the_comparison_fails(long_runs: Path) -> None:
    found = differences(long_runs, "whole packs")
    print_differences(long_runs, {"whole packs": found})
    assert found["loss"] > 1e-4 and found["norm"] > 1e-3, found


@pytest.mark.long
def test_without_our_flags_the_import_changes_nothing(long_runs: Path) -> None:
    """Mock data: what is printed and what is saved are equal with and without the import line."""
    with_import, without = ((long_runs / f"{name}.json").read_text() for name in ("mock imported", "mock"))
    assert with_import == without
    arguments = [printed_arguments(long_runs / f"{name}.0.log") for name in ("mock imported", "mock")]
    assert arguments[0] == arguments[1] and len(arguments[0]) > 300
    values = [printed_values(long_runs / f"{name}.0.log") for name in ("mock imported", "mock")]
    assert values[0] == values[1] and len(values[0]) > 20
    saved = [saved_tensors(max((long_runs / "saved" / name).glob("iter_*"))) for name in ("mock imported", "mock")]
    assert saved[0].keys() == saved[1].keys() and len(saved[0]) > 20
    assert all(torch.equal(tensor, saved[1][key]) for key, tensor in saved[0].items())


@pytest.mark.long
def test_common_state_of_megatron_is_read_as_inert_values(long_runs: Path, tmp_path: Path) -> None:
    """Its Namespace and enumerations are records; a name beside them is still refused, and nothing is imported."""
    path = next((long_runs / "saved" / "resume").glob("iter_*/common.pt"))
    content = TorchFile(path, also_allowed=OF_MEGATRON).content
    assert str(content["args"].kind) == "argparse.Namespace" and isinstance(content["args"], PickledObject)
    assert content["checkpoint_version"] == 3.0 and content["iteration"] == 2
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(tmp_path / "common.pt", "w") as crafted:
        for member in archive.infolist():
            data = archive.read(member)
            assert b"argparse\nNamespace\n" in data or not member.filename.endswith("data.pkl")
            crafted.writestr(member.filename, data.replace(b"argparse\nNamespace\n", b"shutil\nrmtree\n"))
    with pytest.raises(ForbiddenNameError, match=r"shutil\.rmtree"):
        TorchFile(tmp_path / "common.pt", also_allowed=OF_MEGATRON)


def printed_arguments(log: Path) -> list[str]:
    """Return the table of arguments that Megatron prints, without the folder of the checkpoint."""
    table = log.read_text().partition("-- end of arguments --")[0].splitlines()
    return [line for line in table if " ..." in line and not line.startswith("  save ")]


def printed_values(log: Path) -> list[str]:
    """Return the values of each step and evaluation that Megatron prints, without its times."""
    names = "consumed samples|learning rate|lm loss|lm loss value|lm loss PPL|loss scale|grad norm"
    return re.findall(rf"(?:{names}): +\S+", log.read_text())


def saved_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """Read the tensors of a checkpoint. torch writes a random number into each shard, so bytes cannot be compared."""
    reader = FileSystemReader(folder)
    entries = reader.read_metadata().state_dict_metadata
    tensors = {
        key: torch.empty(entry.size) for key, entry in entries.items() if isinstance(entry, TensorStorageMetadata)
    }
    torch.distributed.checkpoint.load(tensors, storage_reader=reader, no_dist=True)
    return tensors
