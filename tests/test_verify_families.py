"""Every family is equal in this project and in transformers, on one tensor-parallel rank and on two."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from four_ranks import run_four_ranks
from hugging_face_models import MODELS, folder_name, make_model
from tiny_runs import write_files
from verify_runs import compare, failed_rows

pytest.importorskip("transformers", reason="needs transformers, which is not installed")

# Families without rotary positions have no rotary frequencies.
ROWS = {
    "weights that differ",
    "tied embeddings",
    "epsilon of the norms",
    "logits, each sample alone",
    "logits, each sample in its pack",
    "loss, each sample alone",
    "loss, each sample in its pack",
    "first step: loss",
    "first step: gradient norm",
    "gradient of each parameter",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("families")
    for name in MODELS:
        make_model(name, folder / folder_name(name))
    write_files(folder / "data")
    return folder


@pytest.fixture(scope="module")
def two_ranks(folder: Path) -> dict[str, tuple[int, str]]:
    run_four_ranks("verify_program", folder, [folder / "results.json"], world_size=2)
    return json.loads((folder / "results.json").read_text())


@pytest.mark.usefixtures("one_rank")
@pytest.mark.parametrize("name", MODELS)
def test_a_family_is_equal_on_one_rank(folder: Path, name: str) -> None:
    status, output = compare(folder / folder_name(name), folder / "data", "--reference-float64", "never")
    assert status == 0 and not failed_rows(output), output
    assert {line.split("  ")[0] for line in output.splitlines() if "  ok" in line} >= ROWS, output


@pytest.mark.parametrize("name", MODELS)
def test_a_family_is_equal_on_two_ranks(two_ranks: dict[str, tuple[int, str]], name: str) -> None:
    status, output = two_ranks[name]
    assert status == 0 and not failed_rows(output), output
    assert {line.split("  ")[0] for line in output.splitlines() if "  ok" in line} >= ROWS, output


def test_a_fault_of_the_layout_is_named(two_ranks: dict[str, tuple[int, str]]) -> None:
    """Gradients of the norms that are not summed under sequence parallelism."""
    status, output = two_ranks["fault"]
    assert status == 4 and "usually: the backward pass or the sum over ranks" in output, output
    assert {"first step: gradient norm", "gradient of each parameter"} >= set(failed_rows(output)) != set(), output
