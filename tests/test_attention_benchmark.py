"""Tests of benchmarks/attention.py: packs, goals and a small run. Whether the goals are met needs an idle machine."""

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
sys.modules[spec.name] = benchmark  # dataclasses look their module up
spec.loader.exec_module(benchmark)


@pytest.mark.parametrize("tokens", [256, 4096, 131072])
def test_packs_fill_the_stream(tokens):
    for ends in benchmark.distributions(tokens).values():
        assert ends[-1] == tokens and all(a < b for a, b in itertools.pairwise(ends))


def test_missed_goals_are_reported():
    within = {"segments": 1.29, "each alone": 1.0, "dense mask": 13.0}
    assert benchmark.missed_goals("100 tokens each", within, "segments") == []
    missed = benchmark.missed_goals("100 tokens each", {**within, "segments": 1.31}, "segments")
    assert len(missed) == 2 and "goal 1.3" in missed[0] and "goal 10" in missed[1]
    assert benchmark.missed_goals("long and short", {**within, "segments": 3.3}, "segments")
    assert benchmark.missed_goals("skewed", {**within, "segments": 99.0}, "segments") == []


SMALL = ("--heads", "4", "--groups", "2", "--size", "16", "--rounds", "1", "--clock", "processor")


def run(monkeypatch, capsys, *flags):
    monkeypatch.setattr(sys, "argv", ["attention", *SMALL, *flags])
    assert benchmark.main() == 0
    return capsys.readouterr().out


def test_a_small_run(monkeypatch, capsys):
    printed = run(monkeypatch, capsys, "--tokens", "1024")
    assert printed.count("* segments") == 3
    assert printed.count("  dense mask  ") == printed.count("  causal, samples mixed  ") == 3
    assert "padded                 not run: " in printed, "long rows for many short segments"


def test_entries_that_do_not_fit_in_memory_are_skipped_with_their_size(monkeypatch, capsys):
    """The dense mask of 128k tokens: 16 GiB as bool and 64 as float32, and no attempt at it."""
    monkeypatch.setattr(benchmark, "free_bytes", lambda _: 24 * 2**30)
    assert "needs 82 GiB, 24 are free" in benchmark.Case((131072,), options_of()).full_stream(dense=True).skip_reason
    monkeypatch.setattr(benchmark, "free_bytes", lambda _: 2**19)
    printed = run(monkeypatch, capsys, "--tokens", "512")
    assert printed.count("dense mask             does not fit: needs") == 3
    assert printed.count("  causal, samples mixed  ") == 3


def options_of(*flags):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["attention", *flags])
        return benchmark.read_options()


def test_quadratic_references_are_timed_on_some_heads(monkeypatch):
    options = options_of("--heads", "14", "--groups", "2", "--size", "8")
    monkeypatch.setattr(benchmark, "ALL_HEADS", 128)
    assert benchmark.Case((128,), options).full_stream(dense=False).factor == 1
    case = benchmark.Case((100, 256), options)
    entries = (case.full_stream(dense=False), case.padded(), case.full_stream(dense=True))
    assert [entry.factor for entry in entries] == [7, 7, 1]


def test_rounds_end_with_the_budget_and_the_first_counts_only_if_it_is_the_only_one(monkeypatch):
    ticks = iter(range(1000))
    monkeypatch.setattr(benchmark.time, "perf_counter", lambda: next(ticks))
    called = []
    entries = {
        name: benchmark.Entry(lambda name=name: called.append(name), times) for name, times in (("a", 1), ("b", 7))
    }
    entries["never"] = benchmark.Entry(None, skip_reason="does not fit")
    found = benchmark.fastest(entries, options_of("--budget", "2.5", "--rounds", "9"), lambda: None)
    assert called == ["a", "b"] * 3 and found == {"a": 1, "b": 7}, "a tick each, three of them exceed the budget"
    monkeypatch.setattr(benchmark.time, "perf_counter", iter([0, 17, 0, 1, 0, 2, 0, 3]).__next__)
    slow_and_fast = {"slow": benchmark.Entry(lambda: None), "fast": benchmark.Entry(lambda: None)}
    assert benchmark.fastest(slow_and_fast, options_of("--budget", "4", "--rounds", "2"), lambda: None) == {
        "slow": 17,
        "fast": 2,
    }
