"""Run preprocess_data.py on small data in the test process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mindspeed_llm.arguments.preprocess_arguments import PROGRAM, parse_preprocess_arguments
from mindspeed_llm.entry_point import run_program
from mindspeed_llm.indexed_dataset import PackedFiles
from mindspeed_llm.manifest import Manifest
from mindspeed_llm.preprocessing import preprocess

ROOT = Path(__file__).parents[1]


ALPACA = "AlpacaStyleInstructionHandler"


def rows(count: int) -> list[dict[str, Any]]:
    return [
        {"instruction": f"Name {n} rivers.", "input": "in Asia" * (n % 3), "output": f"River {n}. " * (1 + n * n % 17)}
        for n in range(count)
    ]


class Command:
    """A command line of preprocess_data.py in its own directory."""

    def __init__(self, folder: Path, tokenizer: Path, data: list[dict[str, Any]] | None = None) -> None:
        self.folder, self.prefix = folder, folder / "out" / "set"
        self.input = folder / "rows.json"
        if data is not None:
            self.input.write_text(json.dumps(data))
        self.flags: dict[str, str | None] = {
            "--input": str(self.input),
            "--handler-name": ALPACA,
            "--tokenizer-name-or-path": str(tokenizer),
            "--prompt-type": "qwen",
            "--output-prefix": str(self.prefix),
            "--seq-length": "256",
            "--pack": None,
            "--neat-pack": None,
        }

    def words(self, *more: str, without: tuple[str, ...] = ()) -> list[str]:
        given = {name: value for name, value in self.flags.items() if name not in (*without, *more)}
        return [word for pair in given.items() for word in pair if word is not None] + list(more)

    def run(self, *more: str, without: tuple[str, ...] = ()) -> Manifest:
        return preprocess(parse_preprocess_arguments(self.words(*more, without=without)))

    def status(self, *more: str, without: tuple[str, ...] = ()) -> int:
        def main() -> None:
            self.run(*more, without=without)

        return run_program(main, PROGRAM)

    def written(self) -> dict[str, bytes]:
        folder = self.prefix.parent
        return {path.name: path.read_bytes() for path in sorted(folder.iterdir())} if folder.exists() else {}

    def rejected(self) -> list[dict[str, Any]]:
        text = (self.prefix.parent / "set_rejected.jsonl").read_text(encoding="utf-8")
        return [json.loads(line) for line in text.split("\n")[:-1]]  # text may hold other ends of lines

    def samples(self) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
        """Return (ids, labels) of every sample of neat-packed or unpacked files."""
        files = PackedFiles.open(self.prefix)
        found = []
        for pack in range(len(files)):
            ids, mask, labels = files.input_ids[pack], files.attention_mask[pack], files.labels[pack]
            found += [
                (tuple(ids[mask == number].tolist()), tuple(labels[mask == number].tolist()))
                for number in range(1, int(mask.max()) + 1)
            ]
        return found
