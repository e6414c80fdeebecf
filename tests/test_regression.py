"""Tests of ci/regression.py: how a script becomes a case, and what counts as a failure."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
spec = importlib.util.spec_from_file_location("regression", ROOT / "ci" / "regression.py")
assert spec is not None and spec.loader is not None
regression = importlib.util.module_from_spec(spec)
spec.loader.exec_module(regression)

DATA = json.loads((ROOT / "ci" / "regression" / "cases.json").read_text())
BASELINE = {"loss": [2.0, 1.0], "grad_norm": [4.0, 3.0], "step_seconds": 1.0, "peak_memory": 1e9}
BOUNDS = {"loss": 1e-3, "grad_norm": 1e-2, "step_seconds": 1.1, "peak_memory": 1.05}
CASES = [(suite, name) for suite, cases in DATA["suites"].items() for name in cases]


def test_flags_are_replaced_removed_and_added():
    words = ["--num-layers", "28", "--bf16", "--map", "a", "b", "--load", "x"]
    changes = {"--num-layers": 2, "--map": None, "--load": None, "--deterministic-mode": True}
    assert regression.with_changes(words, changes) == ["--bf16", "--num-layers", "2", "--deterministic-mode"]


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({}, None),
        ({"loss": [2.0, 1.0009]}, None),
        ({"loss": [2.0, 1.0011]}, "loss of step 2"),
        ({"loss": [2.0, float("nan")]}, "loss of step 2"),
        ({"loss": [2.0]}, "loss: 1 steps"),
        ({"grad_norm": [4.1, 3.0]}, "grad_norm of step 1"),
        ({"step_seconds": 1.2}, "step_seconds"),
        ({"peak_memory": 1.1e9}, "peak_memory"),
        ({"error": "status 1"}, "status 1"),
    ],
)
def test_values_outside_the_bounds_are_problems(changes, problem):
    problems = regression.compare({**BASELINE, **changes}, BASELINE, BOUNDS)
    assert (problems == []) if problem is None else (len(problems) == 1 and problem in problems[0])


def test_a_case_without_a_baseline_fails():
    assert regression.compare(BASELINE, None, BOUNDS)


@pytest.mark.parametrize(("suite", "name"), CASES)
def test_cases_are_commands_that_pretrain_accepts(suite, name):
    """The flags of every case, the cluster's too, parse with the ranks it starts; no flag is left without effect."""
    from mindspeed_llm.arguments.pretrain_parser import parse_pretrain_arguments

    case = DATA["suites"][suite][name]
    named = ("DATA_PATH", "TOKENIZER_MODEL", "CKPT_LOAD_DIR", "CKPT_SAVE_DIR")
    script = regression.flags_of_script(ROOT / case["script"], dict.fromkeys(named, "somewhere"))
    left_out = [flag for flag, value in case["flags"].items() if value is None]
    assert set(left_out) <= set(script), "what is left out stands in the script"
    words = regression.with_changes(script, regression.OF_EVERY_CASE | case["flags"])
    arguments = parse_pretrain_arguments([*words, "--neat-pack"], case["processes"])
    assert arguments.model.num_layers == case["flags"]["--num-layers"]
    assert arguments.checkpoint.load is None and arguments.checkpoint.save is None


def test_the_cpu_suite_has_baselines():
    baselines = json.loads((ROOT / "ci" / "regression" / "baselines.json").read_text())
    assert set(baselines["cpu"]) == set(DATA["suites"]["cpu"])
    assert all(len(baselines["cpu"][name]["loss"]) == case["steps"] for name, case in DATA["suites"]["cpu"].items())
