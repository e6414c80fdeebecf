"""A run that is killed, or meets a full disk, at every stage: the old output or none, and the next run is clean."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from small_tokenizers import byte_level_folder

from mindspeed_llm.arguments.preprocess_arguments import parse_preprocess_arguments
from mindspeed_llm.errors import DataError
from mindspeed_llm.indexed_dataset import PackedFiles
from mindspeed_llm.preprocessing import preprocess

ROOT = Path(__file__).parents[1]
PROGRAM = Path(__file__).with_name("preprocessing_stages.py")
Left = dict[str, str]


class Setting:
    """A folder with rows of two kinds (some of them bad), and what each makes of them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.out = folder / "out"
        byte_level_folder(folder / "tokenizer")
        self.old = self.made("old", 20)
        shutil.copytree(self.out, folder / "old")
        shutil.rmtree(self.out)
        self.new = self.made("new", 90)
        shutil.rmtree(self.out)

    def words(self, kind: str) -> list[str]:
        return [
            "--input", str(self.folder / f"{kind}.json"), "--handler-name", "AlpacaStyleInstructionHandler",
            "--tokenizer-name-or-path", str(self.folder / "tokenizer"), "--prompt-type", "qwen", "--pack",
            "--neat-pack", "--seq-length", "256", "--output-prefix", str(self.out / "set"),
        ]  # fmt: skip

    def made(self, kind: str, count: int) -> Left:
        rows = [{"instruction": f"{kind} {n}", "output": f"{kind} " * (1 + n % 40)} for n in range(count)]
        rows[3] = {"instruction": kind, "output": ""}
        (self.folder / f"{kind}.json").write_text(json.dumps(rows))
        preprocess(parse_preprocess_arguments(self.words(kind)))
        return digests(self.out)

    def results(self, kind: str) -> list[dict[str, Any]]:
        command = [sys.executable, str(PROGRAM), kind, str(self.folder), *self.words("new")]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        assert done.returncode == 0, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]


def digests(folder: Path) -> Left:
    sys.path.insert(0, str(PROGRAM.parent))
    from preprocessing_stages import hashes_of_files

    return hashes_of_files(folder)


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
    from mindspeed_llm.indexed_dataset import Manifest

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
