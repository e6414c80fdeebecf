"""Notices with numbers: flags without effect on one line, bfloat16 on the CPU, epochs, ranks and held-out packs."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_runs import RUN, pretrain, write_files

from mindspeed_llm.arguments import notices
from mindspeed_llm.arguments.pretrain_arguments import PretrainArguments
from mindspeed_llm.arguments.pretrain_parser import parse_pretrain_arguments
from mindspeed_llm.data import build_datasets
from mindspeed_llm.devices import apply_patches, bf16_slowdown, cpu_flags

SPLIT = " --split 80,20,0"
WITHOUT_SPLIT = RUN.replace(SPLIT, "")
OF_A_SCRIPT = (
    "--use-mcore-models --no-gradient-accumulation-fusion --log-throughput --use-fused-rmsnorm "
    "--initial-loss-scale 4096 --sequence-parallel"
)


def arguments_of(words: str, world_size: int = 1) -> PretrainArguments:
    return parse_pretrain_arguments(words.split(), world_size)


def test_flags_without_effect_are_on_one_line() -> None:
    arguments = arguments_of(f"{RUN} {OF_A_SCRIPT} --data-path none")
    assert notices.collect_notices(arguments, "cpu") == [
        "no effect: --use-mcore-models, --no-gradient-accumulation-fusion, --log-throughput, --use-fused-rmsnorm "
        "(reasons: docs/flags-without-effect.md); --sequence-parallel (--tensor-model-parallel-size is 1); "
        "--initial-loss-scale (the loss is scaled only with --fp16, not fp32)"
    ]


@pytest.mark.parametrize(
    ("flags", "slowdown"),
    [
        ("sse2 avx2", "at least ten times"),
        ("sse2 avx2 avx512f", "at least twice"),
        ("sse2 avx512f avx512_bf16", None),
        ("avx512f amx_bf16 amx_tile", None),
        ("fp asimd bf16", None),
        ("", None),  # not known
    ],
)
def test_bfloat16_on_a_cpu_without_its_instructions(
    flags: str, slowdown: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert bf16_slowdown(frozenset(flags.split())) == slowdown
    monkeypatch.setattr(notices, "cpu_flags", lambda: frozenset(flags.split()))
    arguments = arguments_of(f"{RUN} --bf16 --data-path none")
    lines = notices.collect_notices(arguments, "cpu")
    assert [line.startswith("--bf16: this CPU has no bfloat16 instructions") for line in lines] == [True] * bool(
        slowdown
    )
    assert slowdown is None or f"takes {slowdown} as long as in float32" in lines[0]
    assert notices.collect_notices(arguments, "cuda") == []
    assert notices.collect_notices(arguments_of(f"{RUN} --data-path none"), "cpu") == []


def test_instructions_are_read_from_linux(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.system", lambda: "Linux")
    x86, arm = tmp_path / "x86", tmp_path / "arm"
    x86.write_text("processor\t: 0\nmodel name\t: x\nflags\t\t: fpu avx512_bf16\n\nprocessor\t: 1\nflags\t\t: fpu\n")
    arm.write_text("processor : 0\nFeatures  : fp bf16\n")
    assert cpu_flags(x86) == {"fpu", "avx512_bf16"} and cpu_flags(arm) == {"fp", "bf16"}
    assert cpu_flags(tmp_path / "none") == frozenset()
    monkeypatch.setattr("platform.system", lambda: "Darwin")
    assert cpu_flags(x86) == frozenset()


@pytest.fixture(scope="module")
def prefix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_files(tmp_path_factory.mktemp("data") / "data", count=64)


def notices_of(words: str, prefix: Path, world_size: int = 1) -> list[str]:
    apply_patches("cpu")
    from mindspeed_llm.checkpoints import StartPoint, TrainingProgress
    from mindspeed_llm.training.data_notices import data_notices
    from mindspeed_llm.training.derived_settings import locate_start_point

    arguments = arguments_of(f"{words} --data-path {prefix}", world_size)
    datasets = build_datasets(arguments.data, arguments.training.seed, evaluate=False)
    start = StartPoint("new", None, None, TrainingProgress(), False, False, "")
    arguments, _, _, length = locate_start_point(arguments, datasets, start)
    return data_notices(arguments, datasets, length)


def test_the_default_of_split_is_given_in_packs(prefix: Path) -> None:
    # 64 · 0.969 = 62.0, 64 · 0.999 = 63.9
    held_out = "holds out 2 of 64 neat packs, 2 to validate on and 0 to test on"
    assert notices_of(WITHOUT_SPLIT, prefix) == [
        f"--split is not given: Megatron's default 969,30,1 {held_out}; --split 100,0,0 trains on all, --split 95,5,0 "
        "holds out 5 %"
    ]
    (line,) = notices_of(WITHOUT_SPLIT.replace("--eval-iters 1", "--eval-iters 0"), prefix)
    assert "0 to test on, but --eval-iters 0 evaluates nothing; --split 100,0,0" in line
    assert notices_of(RUN, prefix) == []


def test_an_implausible_number_of_epochs(prefix: Path) -> None:
    iterations = RUN.replace("--train-iters 6", "--train-iters 2000").replace("80,20,0", "50,50,0")
    assert notices_of(iterations, prefix) == [
        "--train-iters 2000 with 4 neat packs a step is 250 epochs of 32 neat packs; --train-epochs 3 in its place is "
        "24 iterations"
    ]
    (line,) = notices_of(iterations.replace("--train-iters 2000", "--train-samples 3200"), prefix)
    assert line.startswith("--train-samples 3200 is 100 epochs of 32 neat packs")
    assert notices_of(iterations.replace("--train-iters 2000", "--train-iters 160"), prefix) == [], "20 epochs"
    assert notices_of(iterations.replace("--train-iters 2000", "--train-epochs 2000"), prefix) == [], "asked for"


def test_more_ranks_than_packs(prefix: Path) -> None:
    words = RUN.replace("--micro-batch-size 2 --global-batch-size 4", "--micro-batch-size 1")
    few = words.replace("80,20,0", "5,95,0")  # three packs
    assert notices_of(few, prefix, 2) == []
    assert notices_of(few, prefix, 8) == [
        "8 data-parallel ranks, but only 3 neat packs to train on: every step of 8 trains each 2.67 times on average; "
        "use fewer ranks or a smaller --global-batch-size"
    ]
    assert notices_of(f"{few} --global-batch-size 8", prefix, 2) == [
        "a step takes 8 neat packs, but only 3 are there to train on: every step of 8 trains each 2.67 times on "
        "average; use fewer ranks or a smaller --global-batch-size"
    ]
    once = few.replace("--train-iters 6", "--train-epochs 1")
    assert notices_of(once, prefix, 8) == [
        "8 data-parallel ranks, but only 3 neat packs to train on: the run is one step, and 5 of its 8 neat packs are "
        "computed but not trained; use fewer ranks or a smaller --global-batch-size"
    ]


def test_a_run_and_a_plan_without_data_say_it(
    prefix: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from mindspeed_llm.training.data_notices import data_notices

    run = WITHOUT_SPLIT.replace("--train-iters 6", "--train-iters 1")
    flags = ("--data-path", str(prefix), "--run-dir", str(tmp_path), "--use-flash-attn", "--num-workers", "2")
    pretrain(monkeypatch, *flags, run=run)
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("no effect: --num-workers, --use-flash-attn (") for line in lines) == 1
    assert sum("holds out 2 of 64 neat packs" in line for line in lines) == 1
    (line,) = data_notices(arguments_of(f"{run} --data-path nowhere"), None, None)
    assert "holds out 3.1 % of --data-path" in line
