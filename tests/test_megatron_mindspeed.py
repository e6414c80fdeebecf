"""A Megatron-LM checkout under MindSpeed's adaptor: the same numbers as our own loop, and what is refused."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
from megatron_cases import CASES, STEPS, UNDER_MINDSPEED, MegatronCase
from megatron_runs import assert_equal, differences, make_data, print_differences, run_cases
from megatron_stand_ins import PACKS, assert_refused, checkout, mindspeed, run

from mindspeed_llm.errors import ConfigError
from mindspeed_llm.megatron.mindspeed_versions import REFUSED
from mindspeed_llm.megatron.pretrain_patch import check_order

LAYERS, GLOBAL_BATCH = 4, 4
NAMED = {"MEGATRON_LM", "MINDSPEED", "TORCH_NPU_SITE"} <= os.environ.keys()


@pytest.mark.long
@pytest.mark.skipif(not NAMED, reason="MEGATRON_LM, MINDSPEED and TORCH_NPU_SITE name no checkouts and no wheel")
def test_a_checkout_under_mindspeed_trains_as_our_own_loop(tmp_path: Path) -> None:
    """Its pretrain_gpt.py with MindSpeed's adaptor over torch_npu's wheel and strict CPU kernels, counted."""
    megatron = Path(os.environ["MEGATRON_LM"]).resolve()
    names = [f"under MindSpeed, {name}" for name in UNDER_MINDSPEED]
    (tmp_path / "saved").mkdir()
    make_data(tmp_path)
    run_cases(tmp_path, megatron, megatron / "pretrain_gpt.py", names, Path(os.environ["MINDSPEED"]).resolve())
    found = {name: differences(tmp_path, name) for name in names}
    print_differences(tmp_path, found)
    assert_equal(found, control="under MindSpeed, whole packs")
    for name in names:
        for rank in range(CASES[name].ranks):
            calls = json.loads((tmp_path / f"{name}.{rank}.calls.json").read_text())
            # Every layer of every micro-batch, and in the forward pass those of the evaluation and of recomputation.
            assert calls["npu_fusion_attention_grad"] == backward_calls(CASES[name]), name
            assert calls["npu_fusion_attention"] >= calls["npu_fusion_attention_grad"], name
    assert calls_of(tmp_path, "options")["npu_swiglu_backward"] == backward_calls(CASES["under MindSpeed, options"])


def calls_of(folder: Path, name: str) -> dict[str, int]:
    calls: dict[str, int] = json.loads((folder / f"under MindSpeed, {name}.0.calls.json").read_text())
    return calls


def backward_calls(case: MegatronCase) -> int:
    """Return the number of backward passes through an attention layer that one rank runs."""
    stages = 2 if "--pipeline-model-parallel-size 2" in case.layout else 1
    replicas = case.ranks // stages // (2 if "--tensor-model-parallel-size 2" in case.layout else 1)
    per_batch = 2 if "--micro-batch-size 2" in case.layout else 1
    steps = case.stop - (STEPS // 2 if case.loads else 0)
    return steps * (GLOBAL_BATCH // per_batch // replicas) * (LAYERS // stages)


# Of our own run only the patch is replaced: it would import megatron.core, of which the stand-in has nothing.
PATCH = (
    "from mindspeed_llm.megatron import pretrain_patch\n"
    "pretrain_patch.replace_pretrain = lambda version, under: print('patched' + ' under MindSpeed' * under)\n"
)
OURS, THEIRS = "import mindspeed_llm.megatron_adaptor\n", "import mindspeed.megatron_adaptor\n"
END = "import sys; print('went on', *sys.argv[1:])\n"
WORDS = (
    "--swap-attention --is-instruction-dataset --prompt-type qwen --reset-attention-mask --data-path a b --neat-pack"
)
SEEN = "MindSpeed --swap-attention --data-path a b"


@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("stand_ins")
    return checkout(folder / "megatron", "0.16.1"), mindspeed(folder / "MindSpeed")


def write(folder: Path, text: str) -> str:
    (folder / "script.py").write_text(PATCH + text)
    return str(folder / "script.py")


@pytest.mark.parametrize(
    ("text", "more"),
    [
        (OURS + THEIRS + END, ""),
        (f"{OURS}try:\n    from mindspeed import megatron_adaptor\nexcept ImportError:\n    pass\n{END}", ""),
        (OURS + END, " --use-mindspeed"),
    ],
)
def test_mindspeed_is_loaded_first_without_its_own_packing(
    stand_ins: tuple[Path, Path], tmp_path: Path, text: str, more: str
) -> None:
    """The script imports it after our line, or the command names it. Megatron's parser sees the whole command line."""
    words = f"{WORDS}{more}"
    done = run(*words.split(), path=stand_ins, code=write(tmp_path, text))
    lines = done.stdout.splitlines()
    assert lines[0] == SEEN and lines[2:] == ["patched under MindSpeed", f"went on {words}"], (lines, done.stderr)


def test_mindspeed_is_not_loaded_unless_the_run_uses_it(stand_ins: tuple[Path, Path], tmp_path: Path) -> None:
    done = run(*WORDS.split(), path=stand_ins, code=write(tmp_path, OURS + END))
    assert done.stdout == f"patched\nwent on {WORDS}\n", done.stderr
    # Without MindSpeed on the path, the script goes its own way; without our flags, MindSpeed sees the command line.
    caught = f"{OURS}try:\n    import mindspeed.megatron_adaptor\nexcept ImportError:\n    pass\n{END}"
    done = run(*WORDS.split(), path=stand_ins[:1], code=write(tmp_path, caught))
    assert done.stdout == f"patched\nwent on {WORDS}\n", done.stderr
    done = run("--reset-attention-mask", path=stand_ins, code=write(tmp_path, OURS + THEIRS + END))
    assert done.stdout == "MindSpeed --reset-attention-mask\nwent on --reset-attention-mask\n", done.stderr


def test_mindspeed_that_was_loaded_before_our_line(stand_ins: tuple[Path, Path], tmp_path: Path) -> None:
    script = write(tmp_path, THEIRS + OURS + END)
    done = run(*PACKS, path=stand_ins, code=script)
    assert "patched under MindSpeed" in done.stdout, done.stderr
    done = run(*PACKS, "--reset-attention-mask", path=stand_ins, code=script)
    done.stdout = done.stdout.removeprefix("MindSpeed")
    assert_refused(done, "mindspeed.megatron_adaptor was imported before", "--reset-attention-mask", "first line")


def test_mindspeed_that_is_loaded_after_our_patch(monkeypatch: pytest.MonkeyPatch) -> None:
    check_order(with_mindspeed=False)
    monkeypatch.setitem(sys.modules, "mindspeed.megatron_adaptor", sys)
    check_order(with_mindspeed=True)
    with pytest.raises(ConfigError, match=r"imported after .* --use-mindspeed"):
        check_order(with_mindspeed=False)


def test_versions_and_flags_of_mindspeed_are_refused_by_name(stand_ins: tuple[Path, Path], tmp_path: Path) -> None:
    use = (*PACKS, "--use-mindspeed")
    assert_refused(run(*use, path=stand_ins[:1]), "--use-mindspeed: there is no MindSpeed", "core_r0.16.0")
    older = mindspeed(tmp_path / "older", "0.12.1")
    assert_refused(run(*use, path=(stand_ins[0], older)), "MindSpeed 0.12.1 was not tried", "core_r0.16.0")
    newer = checkout(tmp_path / "newer", "0.17.1")
    assert_refused(run(*use, path=(newer, stand_ins[1])), "with Megatron-LM 0.17.1 was not tried", "core_v0.16.1")
    broken = mindspeed(tmp_path / "broken")
    (broken / "mindspeed" / "megatron_adaptor.py").write_text("from torch_npu.contrib import none\n")
    assert_refused(run(*use, path=(stand_ins[0], broken)), "MindSpeed does not load here (ModuleNotFoundError")


def test_all_flags_of_mindspeed_that_touch_packing_are_reported(stand_ins: tuple[Path, Path]) -> None:
    given = [*REFUSED, "--context-parallel-size", "2"]
    done = run(*PACKS, "--use-mindspeed", *given, path=stand_ins)
    lines = done.stderr.splitlines()
    assert done.returncode == 2 and [line.split(": ")[2] for line in lines] == [*REFUSED, "--context-parallel-size"]
