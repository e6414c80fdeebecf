"""Tests of benchmarks/training.py: all methods train the same samples; LoRA; ratios; reports of goals."""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import sys
from pathlib import Path

import numpy as np
import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"


pytestmark = pytest.mark.filterwarnings("ignore:.*no .*manifest.json beside the files")


@pytest.fixture(scope="module")
def benchmark(one_rank):
    """Import training and training_steps with a model so small that a step takes milliseconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        training, own = (importlib.import_module(name) for name in ("training", "training_steps"))
        patch.setattr(training, "SEQ_LENGTH", 128)
        for name, size in (("VOCABULARY", 64), ("LAYERS", 1), ("HIDDEN", 32), ("FFN", 48), ("HEADS", 2), ("GROUPS", 1)):
            patch.setattr(own, name, size)
        patch.setattr(own, "alpaca_like", lambda count: np.random.default_rng(0).integers(3, 60, count))
        yield training, own
        for name in ("training", "training_processes", "training_steps"):
            sys.modules.pop(name, None)


@pytest.fixture
def options():
    return argparse.Namespace(
        leave_out="ef", packs=2, rounds=1, peers_python=sys.executable, threads=1, clock="processor"
    )


def test_lengths_are_like_alpacas():
    """Before the sizes are changed: a mean of about 100 tokens and a long tail."""
    sys.path.insert(0, str(FOLDER))
    try:
        lengths = importlib.import_module("training_steps").alpaca_like(10_000)
    finally:
        sys.path.remove(str(FOLDER))
    assert 95 < lengths.mean() < 105 and np.median(lengths) < 80 and lengths.min() >= 8 and lengths.max() > 500


def test_a_small_run_prints_all_methods(benchmark, options, tmp_path, capsys):
    found = benchmark[0].contest(options, tmp_path)
    printed = capsys.readouterr().out
    assert found.keys() == {"packing"}
    for name in "abcd":
        assert printed.count(f"({name})") >= 2


def test_a_method_with_another_loss_ends_the_program(benchmark, options, tmp_path):
    """One method trains other data (here an additional segment), so its times would not be comparable."""
    training, own = benchmark
    samples = own.Samples.planned(own.alpaca_like(20), 128)
    trainers = own.training_methods(tmp_path, samples, "ad")
    plain = trainers["d"].batches

    def cut(step):
        first, *rest = plain(step)
        return [dataclasses.replace(first, actual_seq_len=(2, *first.actual_seq_len)), *rest]

    trainers["d"].batches = cut
    with pytest.raises(SystemExit, match=r"\(d\) does not train what \(a\) trains"):
        training.compare_first_steps(trainers)


def test_a_missing_peer_is_reported(benchmark, options, tmp_path, capsys):
    options.leave_out = "bcd"
    training, _ = benchmark
    with pytest.MonkeyPatch.context() as patch:
        processes = importlib.import_module("training_processes")
        patch.setattr(processes, "__file__", str(tmp_path / "training_processes.py"))
        (tmp_path / "training_peers.py").write_text("import json; print(json.dumps({'missing': 'no trl here'}))")
        training.contest(options, tmp_path)
    assert capsys.readouterr().out.count("skipped, no trl here") == 2


@pytest.mark.long
def test_lora_beside_full_fine_tuning_and_peft(benchmark, options, tmp_path, capsys):
    """LoRA on packs, full fine-tuning, and Hugging Face's Trainer with peft, each in its own process."""
    options.leave_out = "i"
    found = benchmark[0].lora_contest(options, tmp_path)
    printed = capsys.readouterr().out
    assert found.keys() == {"lora step", "lora peers"} and all(value > 0 for value in found.values())
    assert "peft 0." in printed and "peak memory of the process, MiB: (g) " in printed
    trained, whole = (line.split(" is ")[1].split()[0] for line in printed.splitlines() if "parameters trained" in line)
    # r (in + out) of q, k, v, o, gate, up and down.
    assert int(trained.replace(",", "")) == 16 * ((32 + 32) * 2 + (32 + 16) * 2 + (32 + 48) * 3)
    assert int(whole.replace(",", "")) > 2 * 64 * 32


def test_lora_that_starts_from_another_model_ends_the_program(benchmark, options, tmp_path):
    """With another loss in the first step, the two methods would not train the same model."""
    training, _ = benchmark
    options.leave_out = "hi"
    losses = iter((4.0, 4.1))

    class Other:
        """A process whose loss is not the one of the other process."""

        def __init__(self):
            self.last = {"loss": next(losses)}
            self.step, self.close = (lambda: (1.0, 1.0)), (lambda: None)

    with pytest.MonkeyPatch.context() as patch:
        processes = importlib.import_module("training_processes")
        patch.setattr(processes, "peers_of", lambda *_: ({"g": Other(), "a": Other()}, {}))
        with pytest.raises(SystemExit, match=r"\(g\) does not start from the model of \(a\)"):
            training.lora_contest(options, tmp_path)


def test_a_ratio_compares_neighboring_steps(benchmark):
    """If the machine slows down to half its speed, the ratio of each round does not change."""
    speeds = iter([100, 40, 80, 50, 20, 40])  # (a) (b) (a), then the same at half speed
    in_order = lambda: (next(speeds), 0.5)  # noqa: E731
    times = benchmark[0].measure_interleaved({"a": in_order, "b": in_order}, 2)
    assert times["b"].ratios == [pytest.approx(2 / (1 / 100 + 1 / 80) / 40)] * 2


def test_missed_goals_are_reported(benchmark):
    lines = benchmark[0].goal_report({"packing": 0.94, "peers": 1.6})
    assert len(lines) == 2 and lines[0].endswith("0.94, goal 0.95, MISSED") and lines[1].endswith("1.60, goal 1.5")
    assert benchmark[0].goal_report({"lora step": 0.9})[0].endswith("0.90, goal at most 0.88, MISSED")
    assert benchmark[0].goal_report({"lora step": 0.8})[0].endswith("0.80, goal at most 0.88")
