"""A folder for runs that are ended at every stage, with an old output and the files of a new one."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from preprocessing_stages import hashes_of_files
from small_tokenizers import byte_level_folder

from mindspeed_llm.arguments.preprocess_arguments import parse_preprocess_arguments
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
        return hashes_of_files(self.out)

    def results(self, kind: str) -> list[dict[str, Any]]:
        command = [sys.executable, str(PROGRAM), kind, str(self.folder), *self.words("new")]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        assert done.returncode == 0, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]
