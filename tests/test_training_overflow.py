"""What a run logs of a step whose gradient overflows in fp16."""

from __future__ import annotations

import json

from tiny_runs import pretrain, write_files


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
