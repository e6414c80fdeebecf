"""What a user of a Megatron-LM checkout can get wrong: one clear line each, and status 2."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path

import pytest
from megatron_stand_ins import LINE, PACKS, assert_refused, checkout, run

from mindspeed_llm.megatron.megatron_flags import add_flags, data_arguments
from mindspeed_llm.megatron.refused_flags import REFUSED, problems_of_arguments, problems_of_command


def test_without_our_flags_the_import_does_nothing(tmp_path: Path) -> None:
    """Not even a version that was never tried is looked at, and nothing of Megatron is imported."""
    code = f"{LINE}; import sys; assert not any(name.startswith(('megatron', 'torch')) for name in sys.modules)"
    done = run("--data-path", "text", "--reset-position-ids", path=(checkout(tmp_path, "0.9.0"),), code=code)
    assert (done.returncode, done.stdout, done.stderr) == (0, "went on\n", "")


def test_versions_that_were_not_compared_are_refused(tmp_path: Path) -> None:
    for number in ("0.13.0", "0.18.0"):
        folder = checkout(tmp_path / number, number)
        assert_refused(run(*PACKS, path=(folder,)), f"Megatron-LM {number} was not tried", "core_v0.17.1")
    assert_refused(run(*PACKS), "megatron-core 0.16.1 without megatron.training", "as PyPI's wheels are")
    bare = checkout(tmp_path / "bare", "0.16.1", training=False)
    assert_refused(run(*PACKS, path=(bare,)), "megatron-core 0.16.1 without megatron.training")
    newer = checkout(tmp_path / "newer", "0.17.1")
    assert_refused(run(*PACKS, path=(bare, newer)), "megatron.training of 0.17.1, but megatron.core of 0.16.1")


def test_another_package_of_our_name_is_refused(tmp_path: Path) -> None:
    upstream = tmp_path / "MindSpeed-LLM"
    (upstream / "mindspeed_llm" / "features_manager").mkdir(parents=True)
    folder = checkout(tmp_path / "megatron", "0.17.1")
    assert_refused(run(*PACKS, path=(upstream, folder)), str(upstream / "mindspeed_llm"), "another package of the name")


def test_order_of_imports_and_command_line(tmp_path: Path) -> None:
    folder = checkout(tmp_path, "0.17.1")
    late = f"from megatron.training import pretrain; {LINE}"
    assert_refused(run(*PACKS, path=(folder,), code=late), "before mindspeed_llm.megatron_adaptor", "first line")
    assert_refused(run("--neat-pack", path=(folder,)), "--is-instruction-dataset is missing")
    done = run(path=(folder,), code="-m mindspeed_llm.megatron none.py --neat-pack")
    assert_refused(done, "none.py: no such file")


def arguments(**values: object) -> Namespace:
    defaults = {"attention_dropout": 0.0, "data_path": ["p"], "train_data_path": None, "transformer_impl": "local"}
    return Namespace(**{**defaults, **values})


@pytest.mark.parametrize(
    ("values", "flag"),
    [
        ({"context_parallel_size": 2}, "--context-parallel-size"),
        ({"num_experts": 8}, "--num-experts"),
        ({"transformer_impl": "transformer_engine"}, "--transformer-impl"),
        ({"attention_dropout": 0.1}, "--attention-dropout"),
        ({"sft": True}, "--sft"),
        ({"window_size": (128, 0)}, "--window-size"),
        ({"data_path": None}, "--is-instruction-dataset needs --data-path"),
    ],
)
def test_flags_that_packs_do_not_support_are_refused_by_name(values: dict[str, object], flag: str) -> None:
    assert problems_of_arguments(arguments()) == []
    (problem,) = problems_of_arguments(arguments(**values))
    assert problem.startswith(flag)


def test_all_problems_are_reported_at_once() -> None:
    assert len(problems_of_arguments(arguments(num_experts=2, sft=True, mock_data=True))) == 3
    assert len({refused.flag for refused in REFUSED}) == len(REFUSED)
    assert problems_of_command(["--yaml-cfg", "x", "--is-instruction-dataset"])[0].startswith("--yaml-cfg")


def test_flags_are_added_to_a_parser_that_has_some_of_them() -> None:
    parser = ArgumentParser(allow_abbrev=False)
    for flag in ("--reset-position-ids", "--reset-attention-mask", "--no-shuffle", "--calculate-per-token-loss"):
        parser.add_argument(flag, action="store_true")
    parser.add_argument("--seq-length", type=int)
    parser.add_argument("--split")
    parser.add_argument("--data-path", nargs="*")
    words = "--seq-length 32 --is-instruction-dataset --neat-pack --prompt-type qwen --no-shuffle --data-path a b"
    parsed = add_flags(parser).parse_args(words.split())
    assert parsed.calculate_per_token_loss and parsed.dataloader_type == "external"
    data = data_arguments(parsed)
    assert (data.seq_length, data.neat_pack, data.prompt_type, data.no_shuffle) == (32, True, "qwen", True)
    assert data.data_path == ["a", "b"] and not data.padded_samples and data.is_instruction_dataset
