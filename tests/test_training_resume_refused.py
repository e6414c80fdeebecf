"""A command that would resume from an optimizer state that was saved wrongly; and figures of an overflow in fp16."""

from __future__ import annotations

import json

import pytest
from tiny_runs import pretrain, train_records, write_files
from wrong_offsets import BUCKETS, megatron_core_alone

from mindspeed_llm.errors import CheckpointError


def test_the_command_is_refused_with_the_way_out(tmp_path, monkeypatch):
    """And that way works: the weights are right, and with --no-load-optim so is the schedule."""
    save = tmp_path / "checkpoint"
    data = str(write_files(tmp_path / "data"))
    flags = ("--data-path", data, "--eval-iters", "0", "--lr-decay-iters", "4", *BUCKETS.split())
    with megatron_core_alone():
        pretrain(monkeypatch, *flags, "--save", str(save), "--train-iters", "2")
    with pytest.raises(CheckpointError, match=f"--load {save} --finetune and another --save"):
        pretrain(monkeypatch, *flags, "--save", str(save), "--train-iters", "3")
    assert list(train_records(save / "run")) == [1, 2], "no step was done"
    words = ("--load", str(save), "--no-load-optim", "--train-iters", "3")
    pretrain(monkeypatch, *flags, *words, "--run-dir", str(tmp_path / "on"))
    assert list(train_records(tmp_path / "on")) == [3]


def test_an_overflow_has_no_gradient_norm_but_a_loss_scale(tmp_path, monkeypatch, capsys):
    """The first loss scales of fp16 are too large for any gradient; every second overflow halves the scale."""
    data = str(write_files(tmp_path / "data"))
    flags = ("--data-path", data, "--eval-iters", "0", "--fp16", "--initial-loss-scale", str(2**32))
    pretrain(monkeypatch, *flags, "--train-iters", "3", "--run-dir", str(tmp_path / "run"))
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if line["kind"] == "train"]
    assert [line["grad_norm"] for line in steps] == [None] * 3
    assert [line["loss_scale"] for line in steps] == [2**32, 2**32, 2**31]
    said = capsys.readouterr().out
    assert "iteration 1: its gradient overflowed at a loss scale of 4,294,967,296; nothing was updated" in said
