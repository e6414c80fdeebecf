"""Small packed files, and runs of pretrain_gpt.py on them in this process."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
from thread_counts import threads_after_job
from tiny import SHAPE, VOCABULARY, manifest_of

from mindspeed_llm.indexed_dataset import PackedFilesWriter

ROOT = Path(__file__).parents[1]


SEQ_LENGTH = 32


RUN = (
    f"{SHAPE} --device cpu --seq-length {SEQ_LENGTH} --micro-batch-size 2 --global-batch-size 4 --lr 1e-3 "
    "--min-lr 1e-4 --lr-decay-style cosine --train-iters 6 --is-instruction-dataset --prompt-type qwen --neat-pack "
    "--reset-position-ids --log-interval 1 --split 80,20,0 --eval-iters 1 --no-save-model"
)


def write_files(prefix: Path, packed: bool = True, neat: bool = True, count: int = 20, seed: int = 0) -> Path:
    """Write packed or unpacked files of random samples with a manifest."""
    draw = np.random.default_rng(seed)
    with PackedFilesWriter(prefix) as writer:
        tokens = trained = 0
        for _ in range(count):
            lengths = [5, 9, 1, 12] if packed else [int(draw.integers(3, SEQ_LENGTH))]
            total = SEQ_LENGTH if packed else lengths[0]
            ids = draw.integers(2, VOCABULARY, total).astype(np.int32)
            mask = np.repeat(np.arange(1, len(lengths) + 1), lengths)
            mask = np.pad(mask, (0, total - len(mask))).astype(np.int32)
            labels = np.where((mask > 0) & (draw.random(total) < 0.6), ids, -100).astype(np.int32)
            writer.add(ids, mask if neat else (mask > 0).astype(np.int32), labels)
            tokens, trained = tokens + int((mask > 0).sum()), trained + int((labels != -100).sum())
        writer.commit(
            manifest_of(
                packed=packed,
                neat=neat and packed,
                seq_length=SEQ_LENGTH,
                samples=(4 if packed else 1) * count,
                tokens=tokens,
                trained=trained,
                packs=count,
            )
        )
    return prefix


def pretrain(monkeypatch, *flags: str, run: str = RUN) -> None:
    """Run pretrain_gpt.py in this process after freeing the process groups of the previous run."""
    import pretrain_gpt

    threads_after_job()
    monkeypatch.setattr(sys, "argv", ["pretrain_gpt.py", *run.split(), *flags])
    pretrain_gpt.main()


def train_records(run_dir: Path) -> dict[int, dict]:
    """Return the last record of every iteration."""
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return {line["iteration"]: line for line in lines if line["kind"] == "train"}


def losses(save: Path) -> list[float]:
    """Return the loss of every iteration of the run that saved there."""
    return [record["loss"] for _, record in sorted(train_records(save / "run").items())]


def stopped_run(finished: Path, save: Path, iteration: int) -> Path:
    """Copy a --save folder to `save`, as the run would have left it if it had been stopped after `iteration`."""
    shutil.copytree(finished, save)
    for folder in save.glob("iter_*"):
        if int(folder.name.removeprefix("iter_")) > iteration:
            shutil.rmtree(folder)
    (save / "latest_checkpointed_iteration.txt").write_text(f"{iteration}\n")
    (save / "run" / "metrics.jsonl").unlink()
    return save
