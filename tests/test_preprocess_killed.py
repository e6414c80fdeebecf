"""A run that is killed, or meets a full disk, at every stage: the old output or none, and the next run is clean."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from stopped_runs import Left, Setting

from mindspeed_llm.errors import DataError
from mindspeed_llm.indexed_dataset import PackedFiles


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Setting:
    if not hasattr(os, "fork"):
        pytest.skip("needs os.fork, which this system lacks")
    return Setting(tmp_path_factory.mktemp("stages"))


def visible(files: Left) -> Left:
    """Without what a killed process leaves under hidden names, which no reader looks at."""
    return {name: digest for name, digest in files.items() if not any(p.startswith(".") for p in Path(name).parts)}


def test_a_kill_at_any_stage_leaves_the_old_output_or_a_refusal(setting: Setting) -> None:
    results = setting.results("kill")
    assert results[-1]["status"] == 0 and results[-1]["left"] == setting.new, "the last one is not killed any more"
    assert all(result["status"] == -9 for result in results[:-1]) and len(results) > 40
    seen = {"old": 0, "refused": 0, "new": 0}
    manifest = "set_packed_manifest.json"
    for result in results[:-1]:
        files = visible(result["left"])
        if files == setting.old:
            seen["old"] += 1
        elif files == setting.new:
            seen["new"] += 1
        else:
            assert files[manifest] not in (setting.old[manifest], setting.new[manifest]), result["stage"]
            seen["refused"] += 1
        assert result["again"] == 0 and result["after"] == setting.new, f"stage {result['stage']}: not clean afterwards"
    assert seen["old"] > 30 and seen["refused"] > 5, seen
    # What was refused above is refused by readers: the in-progress manifest of the last such stage.
    assert setting.old[manifest] != setting.new[manifest]


def test_readers_refuse_what_a_kill_between_the_renames_left(setting: Setting, tmp_path: Path) -> None:
    from mindspeed_llm.manifest import Manifest

    shutil.copytree(setting.folder / "old", tmp_path / "set")
    path = tmp_path / "set" / "set_packed_manifest.json"
    import dataclasses

    dataclasses.replace(Manifest.read(path), state="in progress").write(path)
    with pytest.raises(DataError, match="not complete"):
        PackedFiles.open(tmp_path / "set" / "set")


def test_a_full_disk_at_any_stage_is_one_clear_error_and_leaves_the_old_output(setting: Setting) -> None:
    results = setting.results("limit")
    failed = [result for result in results if result["status"] != 0]
    assert len(failed) >= 4
    for result in failed:
        assert result["status"] == 2 and result["errors"].count("error:") == 1, result
        assert "cannot be written (File too large)" in result["errors"]
        assert result["left"] == setting.old, f"limit {result['stage']}"
