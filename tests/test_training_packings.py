"""The same samples give the same losses however they are packed, in training and in evaluation."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tiny import VOCABULARY, manifest_of
from tiny_runs import RUN, SEQ_LENGTH, pretrain

from mindspeed_llm.indexed_dataset import PackedFilesWriter

LENGTHS = [5, 30, 12, 3, 9, 21, 17, 2, 32, 8, 6, 14, 25, 4, 11, 19, 7, 28, 10, 13, 1, 16, 20, 15]
HELD_OUT = [6, 18, 31, 9, 4, 22, 13, 2, 11, 27]


def samples_of(lengths: list[int], seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """ids and labels of one sample for each length; some are trained, some hardly, one not at all."""
    draw = np.random.default_rng(seed)
    samples = []
    for number, length in enumerate(lengths):
        ids = draw.integers(2, VOCABULARY, length).astype(np.int32)
        share = (0.0, 0.2, 0.9)[number % 3]
        samples.append((ids, np.where(draw.random(length) < share, ids, -100).astype(np.int32)))
    return samples


def packs_of(lengths: list[int], order: np.ndarray, most: int) -> list[list[int]]:
    """Numbers of the samples of each pack: in that order, a new pack where one does not fit or `most` are in it."""
    packs: list[list[int]] = [[]]
    for number in order.tolist():
        if sum(lengths[one] for one in packs[-1]) + lengths[number] > SEQ_LENGTH or len(packs[-1]) == most:
            packs.append([])
        packs[-1].append(number)
    return packs


def write(prefix: Path, samples: list[tuple[np.ndarray, np.ndarray]], packs: list[list[int]], packed: bool) -> str:
    """Neat packs of the samples, or one document for each."""
    tokens = sum(len(ids) for ids, _ in samples)
    with PackedFilesWriter(prefix) as writer:
        for pack in packs:
            ids, labels = (np.concatenate([samples[number][column] for number in pack]) for column in (0, 1))
            mask = np.repeat(np.arange(1, len(pack) + 1), [len(samples[number][0]) for number in pack])
            empty = SEQ_LENGTH - len(ids) if packed else 0
            writer.add(
                np.pad(ids, (0, empty)),
                np.pad(mask, (0, empty)).astype(np.int32),
                np.pad(labels, (0, empty), constant_values=-100),
            )
        writer.commit(
            manifest_of(
                packed=packed,
                neat=packed,
                seq_length=SEQ_LENGTH,
                samples=len(samples),
                tokens=tokens,
                trained=sum(int((labels != -100).sum()) for _, labels in samples),
                packs=len(packs),
            )
        )
    return str(prefix)


def losses(run_dir: Path) -> tuple[list[float], list[tuple[float, int]]]:
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    trained = [line["loss"] for line in lines if line["kind"] == "train"]
    return trained, [(line["loss"], line["trained_tokens"]) for line in lines if line["kind"] == "eval"]


@pytest.mark.parametrize("normalization", ["token", "sample"])
def test_the_same_samples_give_the_same_losses_however_they_are_packed(tmp_path, monkeypatch, normalization):
    """Three steps over all samples, and the whole held-out set, whose last batch is never full, before and after."""
    ways: dict[str, tuple[bool, list[list[int]], list[list[int]]]] = {}
    for way, most in (("full packs", 99), ("packs of two", 2)):
        draw = np.random.default_rng(most)
        ways[way] = (True, *(packs_of(n, draw.permutation(len(n)), most) for n in (LENGTHS, HELD_OUT)))
    ways["one by one"] = (False, *([[number] for number in range(len(n))] for n in (LENGTHS, HELD_OUT)))
    assert len({len(train) for _, train, _ in ways.values()}) == 3, "of another number each"
    found = {}
    for way, (packed, train, held_out) in ways.items():
        folder = tmp_path / way.replace(" ", "_")
        data = write(folder / "train", samples_of(LENGTHS, 3), train, packed)
        valid = write(folder / "valid", samples_of(HELD_OUT, 4), held_out, packed)
        run = RUN if packed else RUN.replace("--neat-pack --reset-position-ids", "--variable-seq-lengths")
        run = run.replace("--split 80,20,0", "").replace("--eval-iters 1", "--eval-iters 100")
        size = len(train)
        assert len(held_out) % size, "the last batch of the held-out set is not full"
        flags = f"--train-data-path {data} --valid-data-path {valid} --train-iters 3 --eval-interval 1 --no-shuffle "
        flags += f"--global-batch-size {size} --micro-batch-size {2 if size % 2 == 0 else 1} --run-dir {folder}/run "
        pretrain(monkeypatch, *f"{flags} --loss-normalization {normalization}".split(), run=run)
        found[way] = losses(folder / "run")
    trained, evaluated = found.pop("one by one")
    assert len(trained) == 3 and trained[0] != trained[2] and len(evaluated) == 4
    for way, (own, own_evaluated) in found.items():
        assert own == pytest.approx(trained, rel=2e-6), way
        assert [loss for loss, _ in own_evaluated] == pytest.approx([loss for loss, _ in evaluated], rel=2e-6), way
        assert [tokens for _, tokens in own_evaluated] == [tokens for _, tokens in evaluated], "each counts once"


def test_a_global_batch_without_a_trained_token_is_skipped_with_a_notice(tmp_path, monkeypatch, capsys):
    """It changes nothing and has no loss; the run goes on as if it had not been there. Nor has a held-out set one."""
    draw = np.random.default_rng(5)
    ids = [draw.integers(2, VOCABULARY, 20).astype(np.int32) for _ in range(6)]
    trained = [(one, one.copy()) for one in ids]
    silent = [(one, np.full_like(one, -100)) for one in ids]
    runs = {"with": [*trained[:2], *silent[2:4], *trained[4:]], "without": [*trained[:2], *trained[4:]]}
    held_out = write(tmp_path / "held_out", silent, [[0], [1]], packed=True)
    found = {}
    for name, samples in runs.items():
        data = write(tmp_path / name, samples, [[number] for number in range(len(samples))], packed=True)
        flags = f"--train-data-path {data} --valid-data-path {held_out} --train-iters {len(samples) // 2} --no-shuffle "
        flags += f"--global-batch-size 2 --lr-decay-style constant --run-dir {tmp_path}/run_{name}"
        pretrain(monkeypatch, *flags.split(), run=RUN.replace("--split 80,20,0", ""))
        found[name] = losses(tmp_path / f"run_{name}")
        said = capsys.readouterr().out
        notice = "iteration 2: no token of its global batch is trained; nothing was updated"
        assert (notice in said) == (name == "with") and "nan" not in said
    first, nothing, third = found["with"][0]
    assert nothing is None
    assert [first, third] == found["without"][0]
    assert found["with"][1] == [(None, 0), (None, 0)]
