"""benchmarks/attention.py: its packs, its verdict, a small run. The goals are for a quiet machine: --check."""

from __future__ import annotations

import importlib.util
import itertools
import sys
from pathlib import Path

import pytest

spec = importlib.util.spec_from_file_location(
    "attention_benchmark", Path(__file__).parents[1] / "benchmarks" / "attention.py"
)
assert spec is not None and spec.loader is not None
benchmark = importlib.util.module_from_spec(spec)
spec.loader.exec_module(benchmark)


@pytest.mark.parametrize("tokens", [256, 4096, 131072])
def test_packs_fill_the_stream(tokens):
    for ends in benchmark.distributions(tokens).values():
        assert ends[-1] == tokens and all(a < b for a, b in itertools.pairwise(ends))


def test_the_verdict():
    within = {"segments": 1.29, "each alone": 1.0, "dense mask": 13.0}
    assert benchmark.missed_goals("100 tokens each", within, "segments") == []
    missed = benchmark.missed_goals("100 tokens each", {**within, "segments": 1.31}, "segments")
    assert len(missed) == 2 and "goal 1.3" in missed[0] and "goal 10" in missed[1]
    assert benchmark.missed_goals("long and short", {**within, "segments": 3.3}, "segments")
    assert benchmark.missed_goals("skewed", {**within, "segments": 99.0}, "segments") == []


def test_a_small_run(monkeypatch, capsys):
    monkeypatch.setattr(
        sys,
        "argv",
        ["attention", "--tokens", "256", "--heads", "4", "--size", "16", "--rounds", "1", "--clock", "processor"],
    )
    assert benchmark.main() == 0
    printed = capsys.readouterr().out
    assert printed.count("* segments") == 3 and printed.count("dense mask") == 3
