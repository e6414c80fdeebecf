"""Comparisons of adapters and of finished runs, kinds of data, the program itself, and errors of the user."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hugging_face_models import make_model
from peft_adapters import import_peft, make_adapter, merge
from raw_data_runs import RawDataFolder
from safetensors.torch import load_file, save_file
from tiny_runs import ROOT, pretrain, write_files
from verify_runs import changed_copy, compare, failed_rows

from mindspeed_llm.adapters import AdapterRecord, BaseModel
from mindspeed_llm.errors import CheckpointError, ConfigError, DataError

pytest.importorskip("peft", reason="needs peft, which is not installed")

FAST = ("--reference-float64", "never")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("verify")
    make_model("Qwen2.5", folder / "base")
    make_adapter(folder / "base", folder / "adapter", targets=("q_proj", "o_proj", "up_proj"))
    write_files(folder / "data")
    return folder


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A finished run from raw data: its checkpoints, its export and its packed files."""
    folder = tmp_path_factory.mktemp("finished")
    raw, save, export, cache = RawDataFolder(folder), folder / "save", folder / "export", folder / "cache"
    words = ["--train-iters", "2", "--save", str(save), "--save-hf", str(export), "--data-cache-path", str(cache)]
    with pytest.MonkeyPatch.context() as patch:
        pretrain(patch, *raw.raw_words(*words), run="")
    manifest = next(cache.glob("packed-*/*_packed_manifest.json"))
    return {
        "save": save,
        "export": export,
        "data": manifest.with_name(manifest.name.removesuffix("_packed_manifest.json")),
    }


# First in the file: the run makes its own process groups.
def test_a_finished_run_is_equal_to_its_export(finished: dict[str, Path], one_rank: None) -> None:
    status, output = compare(finished["save"], finished["data"], "--export", str(finished["export"]), *FAST)
    assert status == 0 and not failed_rows(output), output
    assert "chat template" in output


def test_the_program_ends_with_4_and_names_another_chat_template(finished: dict[str, Path], tmp_path: Path) -> None:
    other = shutil.copytree(finished["export"], tmp_path / "other")
    (other / "chat_template.jinja").write_text("{% for m in messages %}{{ m['content'] }}{% endfor %}", "utf-8")
    words = [sys.executable, "-m", "mindspeed_llm.verify", "--device", "cpu", "--load", str(finished["save"]), *FAST]
    words += ["--data-path", str(finished["data"]), "--export", str(other)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 4 and failed_rows(done.stdout) == ["chat template"], done.stdout + done.stderr
    assert "usually: template: the exported model is prompted with another text" in done.stdout


def test_the_program_ends_with_2_after_an_error_of_the_user(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from mindspeed_llm.entry_point import run_command
    from mindspeed_llm.verify.__main__ import PROGRAM, main

    assert run_command(main, ["--data-path", str(folder / "data"), "--seq-length", "x"], PROGRAM) == 2
    assert "mindspeed_llm.verify: error: --seq-length" in capsys.readouterr().err


@pytest.mark.usefixtures("one_rank")
def test_an_adapter_is_equal_in_peft(folder: Path) -> None:
    status, output = compare(folder / "base", folder / "data", "--lora-load", str(folder / "adapter"), *FAST)
    assert status == 0 and not failed_rows(output), output
    assert "lora_" in next(line for line in output.splitlines() if line.startswith("gradient of each parameter"))


@pytest.mark.usefixtures("one_rank")
def test_exports_of_an_adapter_are_compared_with_its_checkpoint(folder: Path, tmp_path: Path) -> None:
    import_peft(folder / "adapter", folder / "base", tmp_path / "checkpoint")
    merge(folder / "base", folder / "adapter", tmp_path / "merged")
    words = ("--lora-load", str(tmp_path / "checkpoint"), *FAST)
    for export in (folder / "adapter", tmp_path / "merged"):
        status, output = compare(folder / "base", folder / "data", *words, "--export", str(export))
        assert status == 0 and not failed_rows(output), output
    shutil.copytree(folder / "adapter", tmp_path / "other")
    weights = load_file(tmp_path / "other" / "adapter_model.safetensors")
    name = "base_model.model.model.layers.2.mlp.up_proj.lora_B.weight"
    save_file({**weights, name: -weights[name]}, tmp_path / "other" / "adapter_model.safetensors", {"format": "pt"})
    status, output = compare(folder / "base", folder / "data", *words, "--export", str(tmp_path / "other"))
    assert status == 4 and f"usually: weights: other values: {name}" in output, output
    assert "first difference, each sample alone: layer 3, MLP" in output


@pytest.mark.usefixtures("one_rank")
def test_another_base_model_than_that_of_the_checkpoint_is_refused(folder: Path, tmp_path: Path) -> None:
    """Both sides would load it, and agree."""
    import_peft(folder / "adapter", folder / "base", tmp_path / "checkpoint")
    checkpoint = next((tmp_path / "checkpoint").glob("iter_*"))
    record = AdapterRecord.read(checkpoint)
    assert record is not None
    replace(record, base=BaseModel("0" * 64, "fp32")).write(checkpoint)
    words = ("--lora-load", str(tmp_path / "checkpoint"), "--export", str(folder / "adapter"), *FAST)
    with pytest.raises(ConfigError, match="base: is not the base model of the adapter: its tensors differ"):
        compare(folder / "base", folder / "data", *words)


@pytest.mark.usefixtures("one_rank")
def test_a_padding_token_in_the_data_is_reported_and_compared_alike(folder: Path, tmp_path: Path) -> None:
    padded = changed_copy(folder / "base", tmp_path / "padded", {"pad_token_id": 7})
    data = write_files(tmp_path / "data", seed=3)
    status, output = compare(padded, data, "--packs", "8", *FAST)
    assert status == 0 and "notice: transformers gives the input embedding of token 7 no gradient" in output, output


@pytest.mark.usefixtures("one_rank")
def test_float64_gives_the_limits_and_bfloat16_is_compared(folder: Path) -> None:
    status, output = compare(folder / "base", folder / "data", "--bf16", "--reference-float64", "always")
    assert status == 0 and "transformers in float64" in output, output
    _, of_the_type = compare(folder / "base", folder / "data", "--bf16", "--reference-float64", "never")
    first = [next(line for line in text.splitlines() if "first step: loss" in line) for text in (output, of_the_type)]
    assert "2.0e-02" in first[1] and "2.0e-02" not in first[0], first


def test_limits_follow_from_the_error_of_transformers() -> None:
    from mindspeed_llm.verify.limits import Limits

    limits = Limits("bf16", True)
    assert limits.of("logits", 1e-2) == 8e-2 and limits.of("logits") == 5e-2
    assert limits.of("logits", 1e-5) == pytest.approx(5e-3), "a part of the limit always remains"
    assert limits.of("exact", 1.0) == 0.0


@pytest.mark.usefixtures("one_rank")
@pytest.mark.parametrize(
    ("kind", "flags"),
    [
        ({"neat": False}, ("--loss-normalization", "micro-batch", "--micro-batch-size", "2")),
        ({"packed": False}, ("--padded-samples", "--loss-normalization", "sample", "--seq-length", "32")),
    ],
)
def test_other_kinds_of_data_are_equal(folder: Path, tmp_path: Path, kind: dict, flags: tuple[str, ...]) -> None:
    status, output = compare(folder / "base", write_files(tmp_path / "data", **kind), *flags, "--packs", "4", *FAST)
    assert status == 0 and not failed_rows(output), output


@pytest.mark.usefixtures("one_rank")
def test_errors_of_the_user(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, data = folder / "base", folder / "data"
    import_peft(folder / "adapter", base, tmp_path / "checkpoint")
    for flags, message in (
        (("--fp16",), "--fp16: small gradients would become 0"),
        (("--export", str(tmp_path)), "neither a Hugging Face folder nor a peft folder"),
        (("--export", str(folder / "adapter")), "is an adapter: give the checkpoint of the adapter with --lora-load"),
        (("--lora-load", str(tmp_path / "checkpoint")), "is a checkpoint: add --export with the peft folder"),
        (("--packs", "3", "--micro-batch-size", "2"), "--packs 3 is not a multiple of --micro-batch-size 2"),
        (("--pakcs", "3"), "--pakcs"),
        (("--stage", "pretrain"), "documents are not compared; give packed files"),
    ):
        with pytest.raises(ConfigError, match=message):
            compare(base, data, *flags)
    with pytest.raises(DataError, match="--packs 50: the data have only 20 packs"):
        compare(base, data, "--packs", "50")
    with pytest.raises(CheckpointError, match=r"GiB are free, and the comparison needs [\d.]+; give a directory on a"):
        monkeypatch.setattr("shutil.disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 1000))
        compare(base, data)
    with pytest.raises(ConfigError, match="is a checkpoint: add --export with the Hugging Face folder"):
        compare(tmp_path / "checkpoint", data)


def test_the_dry_run_names_the_memory_of_a_7b_model(folder: Path, tmp_path: Path) -> None:
    from mindspeed_llm.arguments.hugging_face_config import read_config
    from mindspeed_llm.conversion import TensorCatalogue
    from mindspeed_llm.verify.memory_need import format_need, memory_need
    from mindspeed_llm.verify.verify_arguments import parse_verify_arguments

    config = {
        "vocab_size": 152064, "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28,
        "num_attention_heads": 28, "num_key_value_heads": 4, "max_position_embeddings": 32768,
    }  # fmt: skip
    raw = json.loads((folder / "base" / "config.json").read_text()) | config
    raw.pop("layer_types", None)
    (tmp_path / "config.json").write_text(json.dumps(raw))
    words = f"--load {tmp_path} --data-path {folder / 'data'} --seq-length 4096 --bf16 --dry-run"
    command = parse_verify_arguments(words.split(), 1)
    need = memory_need(command.run, command.packs, TensorCatalogue(read_config(tmp_path)))
    assert 7.6e9 < need.parameters < 7.7e9 and need.weights == need.gradients == 2 * need.parameters
    lora = parse_verify_arguments([*words.split(), "--lora-load", str(folder / "adapter")], 1).run
    with_adapter = memory_need(lora, command.packs, TensorCatalogue(read_config(tmp_path)))
    assert need.weights < with_adapter.weights and with_adapter.gradients < 0.01 * need.gradients
    lines = format_need(need, command.run)
    assert "weights and gradients of one side: 28.4 GiB (14.2 and 14.2)" in lines[1]
    assert "together about 37 GiB" in lines[3], lines
