"""The scripts under examples/mcore: what they pass on, what they return, and that their flags are accepted."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from script_stubs import FROM_OUTSIDE, GIVEN, PRETRAIN_SCRIPTS, ROOT, TUNE_SCRIPTS, ranks_and_words, run_with_stub
from shell_flags import as_mapping

from mindspeed_llm.adapters.projections import LINEAR_LAYERS
from mindspeed_llm.arguments.convert_arguments import parse_convert_arguments
from mindspeed_llm.arguments.preprocess_arguments import parse_preprocess_arguments
from mindspeed_llm.arguments.pretrain_parser import parse_pretrain_arguments

QWEN = ROOT / "examples/mcore/qwen25/tune_qwen25_7b_4k_full_pack.sh"
LLAMA = ROOT / "examples/mcore/llama2/tune_llama2_7B_full_pack_ptd.sh"
QWEN_LORA = ROOT / "examples/mcore/qwen25/tune_qwen25_7b_4k_lora_pack.sh"
LLAMA_LORA = ROOT / "examples/mcore/llama2/tune_llama2_7b_lora_pack.sh"
QWEN_DATA = ROOT / "examples/mcore/qwen25/data_convert_qwen25_instruction_pack.sh"
LLAMA_DATA = ROOT / "examples/mcore/llama2/data_convert_llama2_instruction_pack.sh"
QWEN3_DATA = ROOT / "examples/mcore/qwen3/data_convert_qwen3_instruction_pack.sh"
LLAMA31_DATA = ROOT / "examples/mcore/llama31/data_convert_llama31_instruction_pack.sh"
DOCUMENTS = ROOT / "examples/mcore/qwen25/data_convert_qwen25_pretrain.sh"
DATA_SCRIPTS = (QWEN_DATA, LLAMA_DATA, QWEN3_DATA, LLAMA31_DATA)
QWEN_EXPECTED = {
    "tensor-model-parallel-size": "4",
    "pipeline-model-parallel-size": "1",
    "sequence-parallel": None,
    "use-distributed-optimizer": None,
    "micro-batch-size": "1",
    "global-batch-size": "8",
    "train-iters": "2000",
    "seq-length": "4096",
    "num-layers": "28",
    "hidden-size": "3584",
    "ffn-hidden-size": "18944",
    "num-attention-heads": "28",
    "num-query-groups": "4",
    "add-qkv-bias": None,
    "disable-bias-linear": None,
    "norm-epsilon": "1e-6",
    "rotary-base": "1000000",
    "padded-vocab-size": "152064",
    "untie-embeddings-and-output-weights": None,
    "lr": "7.75e-7",
    "min-lr": "7.75e-8",
    "lr-warmup-fraction": "0.01",
    "bf16": None,
    "initial-loss-scale": "4096",
    "neat-pack": None,
    "padded-samples": None,
    "reset-position-ids": None,
    "split": "100,0,0",
    "no-save-optim": None,
    "no-save-rng": None,
    "save-interval": "2000",
    "eval-interval": "2000",
    "eval-iters": "0",
    "log-interval": "1",
}
LLAMA_EXPECTED = {
    "tensor-model-parallel-size": "8",
    "micro-batch-size": "4",
    "global-batch-size": "128",
    "num-layers": "32",
    "hidden-size": "4096",
    "ffn-hidden-size": "11008",
    "num-attention-heads": "32",
    "norm-epsilon": "1e-5",
    "rotary-base": "10000",
    "padded-vocab-size": "32000",
    "lr": "5e-5",
    "min-lr": "1.25e-7",
    "eval-interval": "1000",
    "prompt-type": "llama2",
    "finetune": None,
    "no-load-optim": None,
    "no-load-rng": None,
}
LLAMA_LACKS = {"neat-pack", "padded-samples", "add-qkv-bias", "group-query-attention", "no-save-optim", "no-save-rng"}


@pytest.mark.parametrize(
    ("script", "expected", "lacks"), [(QWEN, QWEN_EXPECTED, set()), (LLAMA, LLAMA_EXPECTED, LLAMA_LACKS)]
)
def test_tune_scripts_pass_the_published_values(
    script: Path, expected: dict[str, str | None], lacks: set[str], tmp_path: Path
) -> None:
    status, seen, _ = run_with_stub(script, tmp_path)
    flags = as_mapping(seen)
    assert status == 0 and seen[0] == "torchrun"
    assert {name: flags.get(name, "absent") for name in expected} == expected
    assert not lacks & set(flags)
    assert flags["nproc_per_node"] == "8" and flags["nnodes"] == "1"
    assert (tmp_path / "logs").is_dir() and any((tmp_path / "logs").iterdir())


# Script → ranks, TP, PP, DP, packs of a step, and the shape that the model publishes.
JOBS = {
    "qwen3/tune_qwen3_8b_4K_full_pack.sh": ((8, 4, 1, 2, 16), (36, 4096, 12288, 32, 8, 128, 151936, 1e6)),
    "qwen3/tune_qwen3_32b_4K_full_pack.sh": ((16, 8, 2, 1, 16), (64, 5120, 25600, 64, 8, 128, 151936, 1e6)),
    "qwen25/tune_qwen25_7b_4k_full_pack.sh": ((8, 4, 1, 2, 8), (28, 3584, 18944, 28, 4, 128, 152064, 1e6)),
    "qwen25/tune_qwen25_72b_4k_full_pack.sh": ((32, 8, 4, 1, 32), (80, 8192, 29568, 64, 8, 128, 152064, 1e6)),
    "qwen25/tune_qwen25_7b_4k_lora_pack.sh": ((8, 1, 1, 8, 16), (28, 3584, 18944, 28, 4, 128, 152064, 1e6)),
    "llama2/tune_llama2_7B_full_pack_ptd.sh": ((8, 8, 1, 1, 128), (32, 4096, 11008, 32, 32, 128, 32000, 1e4)),
    "llama2/tune_llama2_7b_lora_pack.sh": ((8, 8, 1, 1, 128), (32, 4096, 11008, 32, 32, 128, 32000, 1e4)),
    "llama31/tune_llama31_8b_4k_full_pack_ptd.sh": ((8, 4, 1, 2, 8), (32, 4096, 14336, 32, 8, 128, 128256, 5e5)),
}


@pytest.mark.parametrize("script", TUNE_SCRIPTS, ids=lambda script: script.name)
def test_tune_scripts_flags_are_all_accepted(script: Path) -> None:
    ranks, words = ranks_and_words(script)
    arguments = parse_pretrain_arguments(words, ranks)
    model, parallel = arguments.model, arguments.parallel
    job, shape = JOBS[str(script.relative_to(ROOT / "examples/mcore"))]
    sizes = (parallel.tensor_model_parallel_size, parallel.pipeline_model_parallel_size, arguments.data_parallel_size)
    assert (ranks, *sizes, arguments.global_batch_size) == job
    assert shape == (
        model.num_layers, model.hidden_size, model.ffn_size, model.num_attention_heads, model.query_groups,
        model.head_size, model.padded_vocab_size, model.rotary_base,
    )  # fmt: skip
    family = script.parent.name
    assert (model.add_qkv_bias, model.qk_layernorm) == (family == "qwen25", family == "qwen3")
    assert model.use_rope_scaling == (family == "llama31") and model.rope_scaling_factor == 8
    assert model.untie_embeddings_and_output_weights and model.norm_epsilon == (1e-6 if "qwen" in family else 1e-5)
    assert arguments.data.seq_length == 4096 and arguments.data.neat_pack == (family != "llama2")


@pytest.mark.parametrize("script", TUNE_SCRIPTS, ids=lambda script: script.name)
def test_lora_scripts_train_an_adapter_and_export_it_to_peft(script: Path, tmp_path: Path) -> None:
    _, seen, _ = run_with_stub(script, tmp_path, CKPT_SAVE_DIR="to")
    checkpoint = as_mapping(seen)
    ranks, words = ranks_and_words(script)
    settings = parse_pretrain_arguments(words, ranks).lora.settings
    if script not in (QWEN_LORA, LLAMA_LORA):
        assert settings is None and "save-hf" not in checkpoint
        return
    assert settings is not None and (settings.rank, settings.alpha, settings.dropout) == (16, 32, 0)
    # Every projection of a layer: in Qwen2.5's with one A each, in Llama 2's with one A for each linear layer.
    assert settings.projections == tuple(name for layer in LINEAR_LAYERS for name in layer.projections)
    assert [adapter.is_shared for adapter in settings.layers.values()] == (
        [False] * 4 if script == QWEN_LORA else [True, False, True, False]
    )
    assert checkpoint["save-hf"] == "to/peft" and "no-save-optim" not in checkpoint
    _, seen, _ = run_with_stub(script, tmp_path, PEFT_DIR="adapter of peft")
    assert as_mapping(seen)["save-hf"] == "adapter of peft"


@pytest.mark.parametrize("script", PRETRAIN_SCRIPTS, ids=lambda script: script.name)
def test_pretraining_scripts(script: Path, tmp_path: Path) -> None:
    """Documents in blocks and random weights; with CKPT_LOAD_DIR a checkpoint whose pretraining is continued."""
    ranks, words = ranks_and_words(script)
    arguments = parse_pretrain_arguments(words, ranks)
    assert (ranks, arguments.data_parallel_size, arguments.global_batch_size) == (16, 2, 256)
    assert arguments.training_stage == "pretrain" and not arguments.data.is_instruction_dataset
    assert arguments.checkpoint.load is None and arguments.data.has_validation
    model = arguments.model
    assert (model.num_layers, model.hidden_size, model.query_groups, model.padded_vocab_size) == (28, 3584, 4, 152064)
    status, seen, _ = run_with_stub(script, tmp_path, "--lr", "1e-5", status=7, DATA_PATH="a b", CKPT_LOAD_DIR="from")
    flags = as_mapping(seen)
    assert status == 7 and (flags["load"], flags["data-path"], flags["lr"]) == ("from", "a b", "1e-5")
    status, seen, world_size = run_with_stub(script, tmp_path, "--dry-run")
    assert seen[0] == "python" and world_size == "16" and "finetune" not in as_mapping(seen)


def test_the_data_script_of_pretraining_writes_documents(tmp_path: Path) -> None:
    script = ROOT / "examples/mcore/qwen25/data_convert_qwen25_pretrain.sh"
    status, seen, _ = run_with_stub(
        script, tmp_path, "--workers", "2", status=2, RAW_DATA_PATH="in", TOKENIZER_MODEL="tok"
    )
    arguments = parse_preprocess_arguments(seen[2:])
    assert status == 2 and os.access(script, os.X_OK)
    assert arguments.output.output_format == "document" and arguments.sample.append_eod
    assert (arguments.input.input, arguments.run.workers) == (["in"], 2)


@pytest.mark.parametrize("script", TUNE_SCRIPTS, ids=lambda script: script.name)
def test_tune_scripts_return_the_status_of_the_training(script: Path, tmp_path: Path) -> None:
    assert run_with_stub(script, tmp_path, status=7)[0] == 7


@pytest.mark.parametrize("script", TUNE_SCRIPTS, ids=lambda script: script.name)
def test_tune_scripts_read_the_environment_and_pass_flags_on(script: Path, tmp_path: Path) -> None:
    given = {
        "DATA_PATH": "packed/with blank",
        "TOKENIZER_MODEL": "tok",
        "CKPT_LOAD_DIR": "from",
        "CKPT_SAVE_DIR": "to",
        "NPUS_PER_NODE": "4",
        "NNODES": "6",
        "NODE_RANK": "5",
        "MASTER_ADDR": "first",
        "MASTER_PORT": "6111",
    }
    _, seen, _ = run_with_stub(script, tmp_path, "--train-iters", "3", "--log-interval", "2", **given)
    flags = as_mapping(seen)
    assert flags["data-path"] == "packed/with blank" and flags["tokenizer-name-or-path"] == "tok"
    assert (flags["load"], flags["save"]) == ("from", "to")
    assert [flags[k] for k in ("nproc_per_node", "nnodes", "node_rank", "master_addr", "master_port")] == [
        "4", "6", "5", "first", "6111",
    ]  # fmt: skip
    assert flags["train-iters"] == "3" and seen[-4:] == ["--train-iters", "3", "--log-interval", "2"]


@pytest.mark.parametrize("script", TUNE_SCRIPTS, ids=lambda script: script.name)
def test_dry_run_is_one_python_process_that_knows_the_ranks(script: Path, tmp_path: Path) -> None:
    status, seen, world_size = run_with_stub(script, tmp_path, "--dry-run", status=3, NPUS_PER_NODE="8", NNODES="2")
    assert status == 3 and seen[0] == "python" and seen[1].endswith("pretrain_gpt.py") and seen[-1] == "--dry-run"
    assert world_size == "16"
    _, seen, world_size = run_with_stub(script, tmp_path)
    assert seen[0] == "torchrun" and world_size == ""


@pytest.mark.parametrize("script", [*TUNE_SCRIPTS, *DATA_SCRIPTS], ids=lambda script: script.name)
def test_defaults_name_the_missing_settings_and_errors_stop(script: Path) -> None:
    text = script.read_text("utf-8")
    assert "set -euo pipefail" in text
    names = ["TOKENIZER_MODEL"]
    names += ["DATA_PATH", "CKPT_LOAD_DIR", "CKPT_SAVE_DIR"] if "tune" in script.name else ["RAW_DATA_PATH"]
    for name in names:
        assert f'{name}="${{{name}:-' in text
    assert os.access(script, os.X_OK)


@pytest.mark.parametrize(
    ("script", "assets", "packs"), [(QWEN_DATA, "qwen25-tokenizer", 45), (LLAMA_DATA, "llama2-tokenizer", 49)]
)
def test_data_convert_scripts_on_real_data(script: Path, assets: str, packs: int, shared: Path, tmp_path: Path) -> None:
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "RAW_DATA_PATH": str(shared / "data" / "alpaca_en.json"),
        "TOKENIZER_MODEL": str(shared / "assets" / assets),
        "OUTPUT_PREFIX": "out/alpaca",
    }
    command = ["bash", str(script), "--workers", "2"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{shlex.join(command)}\n{done.stderr}"
    manifest = json.loads((tmp_path / "out" / "alpaca_packed_manifest.json").read_text("utf-8"))
    assert manifest["packs"] == packs and manifest["seq_length"] == 4096
    assert manifest["neat"] == (script is QWEN_DATA)


@pytest.mark.parametrize("script", DATA_SCRIPTS, ids=lambda script: script.name)
def test_data_convert_scripts_return_the_status_of_the_program(script: Path, tmp_path: Path) -> None:
    status, seen, _ = run_with_stub(
        script, tmp_path, "--max-samples", "5", status=2, RAW_DATA_PATH="in.json", TOKENIZER_MODEL="tok"
    )
    flags = as_mapping(seen)
    assert status == 2 and seen[0] == "python"
    assert flags["input"] == "in.json" and flags["tokenizer-name-or-path"] == "tok" and flags["max-samples"] == "5"
    assert flags["seq-length"] == "4096" and flags["workers"] == "4" and "pack" in flags
    assert ("neat-pack" in flags, "append-eod" in flags) == ((False, True) if script is LLAMA_DATA else (True, False))
    assert flags["prompt-type"] == {"llama31": "llama3", "qwen25": "qwen"}.get(script.parent.name, script.parent.name)
    assert parse_preprocess_arguments(seen[2:]).output.pack


CONVERSIONS = {
    "qwen25/ckpt_convert_qwen25_hf2mcore.sh": ("hf", "qwen25"),
    "qwen25/ckpt_convert_qwen25_mcore2hf.sh": ("mg", "qwen25"),
    "llama2/ckpt_convert_llama2_hf2mcore.sh": ("hf", "llama2"),
    "llama2/ckpt_convert_llama2_mcore2hf.sh": ("mg", "llama2"),
    "qwen3/ckpt_convert_qwen3_hf2mcore.sh": ("hf", "qwen3"),
    "qwen3/ckpt_convert_qwen3_mcore2hf.sh": ("mg", "qwen3"),
    "llama31/ckpt_convert_llama31_hf2mcore.sh": ("hf", "llama3"),
    "llama31/ckpt_convert_llama31_mcore2hf.sh": ("mg", "llama3"),
}


@pytest.mark.parametrize("name", CONVERSIONS)
def test_conversion_scripts_pass_accepted_flags(name: str, tmp_path: Path) -> None:
    script = ROOT / "examples/mcore" / name
    direction, kind = CONVERSIONS[name]
    status, seen, _ = run_with_stub(
        script, tmp_path, "--params-dtype", "fp32", status=5, HF_DIR="h f", MCORE_DIR="mcore"
    )
    assert status == 5 and seen[1].endswith("convert_ckpt.py") and os.access(script, os.X_OK)
    arguments = parse_convert_arguments(seen[2:])
    folders = ["h f", "mcore"] if direction == "hf" else ["mcore", "h f"]
    assert [arguments.load_dir, arguments.save_dir] == folders
    assert arguments.load_model_type == direction != arguments.save_model_type
    assert arguments.model_type_hf == kind and arguments.params_dtype == "fp32"


@pytest.mark.parametrize("family", ["qwen25", "llama2"])
def test_merging_scripts_pass_accepted_flags(family: str, tmp_path: Path) -> None:
    script = ROOT / "examples/mcore" / family / f"ckpt_convert_{family}_mcore2hf_lora.sh"
    folders = {"HF_DIR": "h f", "MCORE_DIR": "mcore", "LORA_DIR": "ad apter"}
    status, seen, _ = run_with_stub(script, tmp_path, "--params-dtype", "fp32", status=5, **folders)
    assert status == 5 and seen[1].endswith("convert_ckpt.py") and os.access(script, os.X_OK)
    arguments = parse_convert_arguments(seen[2:])
    assert (arguments.load_dir, arguments.lora_load, arguments.save_dir) == ("mcore", "ad apter", "h f")
    assert (arguments.load_model_type, arguments.save_model_type) == ("mg", "hf")
    assert arguments.model_type_hf == family and arguments.params_dtype == "fp32"


def settings_of(script: Path, name: str) -> str:
    """Return the default of a variable that a script takes from the environment."""
    return re.search(rf'^{name}="\$\{{{name}:-([^}}]*)\}}"', script.read_text("utf-8"), re.MULTILINE)[1]


@pytest.mark.parametrize("script", TUNE_SCRIPTS, ids=lambda script: script.name)
def test_tune_scripts_read_the_files_that_the_data_script_of_their_family_writes(script: Path) -> None:
    (data,) = script.parent.glob("data_convert_*_instruction_pack.sh")
    assert settings_of(script, "DATA_PATH") == settings_of(data, "OUTPUT_PREFIX")


def test_each_family_has_its_own_prefix_and_documents_have_their_name() -> None:
    prefixes = [settings_of(script, "OUTPUT_PREFIX") for script in DATA_SCRIPTS]
    assert len(set(prefixes)) == len(DATA_SCRIPTS)
    (training,) = PRETRAIN_SCRIPTS
    prefix = settings_of(training.parent / "data_convert_qwen25_pretrain.sh", "OUTPUT_PREFIX")
    assert settings_of(training, "DATA_PATH") == f"{prefix}_text_document"


@pytest.mark.parametrize("script", [QWEN, LLAMA, *PRETRAIN_SCRIPTS], ids=lambda script: script.name)
def test_sizes_and_length_come_from_the_environment(script: Path, tmp_path: Path) -> None:
    given = {"TP": "2", "PP": "4", "MBS": "3", "GBS": "24", "TRAIN_ITERS": "7"}
    flags = as_mapping(run_with_stub(script, tmp_path, **given)[1])
    names = ("tensor-model-parallel-size", "pipeline-model-parallel-size", "micro-batch-size", "global-batch-size")
    assert [flags[name] for name in (*names, "train-iters")] == list(given.values())
    epochs = as_mapping(run_with_stub(script, tmp_path, TRAIN_EPOCHS="3")[1])
    assert epochs["train-epochs"] == "3" and "train-iters" not in epochs
    default = as_mapping(run_with_stub(script, tmp_path)[1])
    assert default["train-iters"] == "2000" and "train-epochs" not in default
    of_the_flags = as_mapping(run_with_stub(script, tmp_path, "--train_epochs", "2")[1])
    assert of_the_flags["train_epochs"] == "2" and "train-iters" not in of_the_flags, "the default gives way to a flag"


@pytest.mark.parametrize("script", [*TUNE_SCRIPTS, *PRETRAIN_SCRIPTS], ids=lambda script: script.name)
def test_variables_that_are_not_set_and_wrong_numbers_are_refused_together(script: Path, tmp_path: Path) -> None:
    clean = {name: value for name, value in os.environ.items() if name not in FROM_OUTSIDE.split()}

    def lines(*flags: str, **variables: str) -> list[str]:
        command = ["bash", str(script), "--check-only", *flags]
        done = subprocess.run(command, cwd=tmp_path, env=clean | variables, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout, list(tmp_path.iterdir())) == (2, "", [])
        return done.stderr.splitlines()

    found = lines(NPUS_PER_NODE="8x", NNODES="0")
    assert found[0] == f"{script.name}: error: NPUS_PER_NODE=8x: not a whole number"
    names = [line.split()[0] for line in found[1:]]
    loaded = [] if script in PRETRAIN_SCRIPTS else ["CKPT_LOAD_DIR"]
    assert names == ["NNODES=0:", "TOKENIZER_MODEL", *loaded, "CKPT_SAVE_DIR"]
    (other,) = lines("--load=x", "--tokenizer_name_or_path", "x")
    assert other.startswith(f"{script.name}: error: CKPT_SAVE_DIR is not set")


def test_two_lengths_are_refused_before_anything_starts(tmp_path: Path) -> None:
    environment = os.environ | GIVEN | {"TRAIN_ITERS": "7", "TRAIN_EPOCHS": "2"}
    done = subprocess.run(
        ["bash", str(QWEN)], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"{QWEN.name}: error: TRAIN_ITERS=7 and TRAIN_EPOCHS=2 are both set; unset one\n"


@pytest.mark.parametrize("script", [*DATA_SCRIPTS, DOCUMENTS], ids=lambda script: script.name)
def test_raw_data_path_names_the_rows_and_data_path_still_does_with_a_notice(script: Path, tmp_path: Path) -> None:
    stub = tmp_path / "python"
    stub.write_text('#!/bin/sh\necho "$@"\n', "utf-8")
    stub.chmod(0o755)
    clean = {name: value for name, value in os.environ.items() if name not in FROM_OUTSIDE.split()}
    clean["PATH"] = f"{tmp_path}:{clean['PATH']}"

    def run(**variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", str(script)], cwd=tmp_path, env=clean | variables, capture_output=True, text=True, check=True
        )

    new, old = run(RAW_DATA_PATH="rows.json", DATA_PATH="packed/x"), run(DATA_PATH="rows.json")
    assert "--input rows.json " in new.stdout and new.stderr == ""
    assert "--input rows.json " in old.stdout
    assert old.stderr.startswith(f"{script.name}: notice: DATA_PATH is read as the raw data; set RAW_DATA_PATH")


def test_an_error_of_the_user_is_the_last_thing_on_the_screen(tmp_path: Path) -> None:
    """The real check runs before torchrun, and torchrun is not started."""
    torchrun = tmp_path / "torchrun"
    torchrun.write_text("#!/bin/sh\necho started\n", "utf-8")
    torchrun.chmod(0o755)
    environment = {name: value for name, value in os.environ.items() if name not in FROM_OUTSIDE.split()}
    environment |= GIVEN | {"PATH": f"{tmp_path}:{Path(sys.executable).parent}:{environment['PATH']}"}

    def run(**variables: str) -> subprocess.CompletedProcess[str]:
        command = ["bash", str(QWEN), "--load", str(tmp_path / "none"), "--learning_rate", "1"]
        return subprocess.run(
            command, cwd=tmp_path, env=environment | variables, capture_output=True, text=True, check=False
        )

    one = run(TP="3")
    assert (one.returncode, one.stdout) == (2, "")
    lines = [line.removeprefix("pretrain_gpt.py: error: ") for line in one.stderr.splitlines()]
    assert lines[0].startswith(f"--load {tmp_path / 'none'}: no such directory")
    assert any(line.startswith("8 ranks cannot be divided by --tensor-model-parallel-size 3") for line in lines)
    assert "finetune_dataset/alpaca_qwen25_packed_input_ids_document.idx: no such file" in lines[-1]
    several = run(TP="3", NNODES="2")
    lines = [line.removeprefix("pretrain_gpt.py: error: ") for line in several.stderr.splitlines()]
    assert several.returncode == 2 and any(line.startswith("16 ranks cannot be divided") for line in lines)


def test_a_file_that_is_missing_on_one_of_several_machines_is_left_to_the_run(tmp_path: Path) -> None:
    """Otherwise the machines that have the file would wait for the one that ended."""
    torchrun = tmp_path / "torchrun"
    torchrun.write_text("#!/bin/sh\necho started\n", "utf-8")
    torchrun.chmod(0o755)
    environment = {name: value for name, value in os.environ.items() if name not in FROM_OUTSIDE.split()}
    environment |= GIVEN | {"PATH": f"{tmp_path}:{Path(sys.executable).parent}:{environment['PATH']}", "NNODES": "2"}
    done = subprocess.run(
        ["bash", str(QWEN)], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "started\n"), done.stderr
