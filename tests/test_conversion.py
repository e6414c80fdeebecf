"""Conversions there and back, bit for bit, and what is refused."""

from __future__ import annotations

import argparse
import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from hugging_face_models import MODELS, folder_name, make_model
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from mindspeed_llm.arguments.convert_arguments import parse_convert_arguments
from mindspeed_llm.arguments.hugging_face_config import read_config
from mindspeed_llm.arguments.model_arguments import pad_vocab_size
from mindspeed_llm.conversion import HuggingFaceWeights, TensorCatalogue, convert, to_hugging_face
from mindspeed_llm.conversion.convert import latest_checkpoint
from mindspeed_llm.conversion.tensor_mapping import shard, unshard
from mindspeed_llm.errors import CheckpointError, ConfigError

pytest.importorskip("transformers", reason="needs transformers, which is not installed")


def run(**flags: object) -> Path:
    words = [word for name, value in flags.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    return convert(parse_convert_arguments(words))


def back(checkpoint: Path, target: Path, **flags: object) -> Path:
    return run(load_model_type="mg", save_model_type="hf", load_dir=checkpoint, save_dir=target, **flags)


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return {name: value for path in folder.glob("*.safetensors") for name, value in load_file(path).items()}


def assert_same(own: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert own.keys() == theirs.keys()
    for name, value in theirs.items():
        assert own[name].dtype == value.dtype and torch.equal(own[name], value), name


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Folder with one Hugging Face folder for each family, in bfloat16."""
    folder = tmp_path_factory.mktemp("models")
    for name in MODELS:
        make_model(name, folder / folder_name(name), torch.bfloat16)
    return folder


@pytest.fixture
def model(models, tmp_path):
    """A copy of the Qwen2.5 folder that a test may damage."""
    return Path(shutil.copytree(models / "Qwen2.5", tmp_path / "hf"))


FORMATS = {
    "torch_dist": {},
    "torch, TP1": {"ckpt_format": "torch"},
    "torch, TP2": {"ckpt_format": "torch", "target_tensor_parallel_size": 2},
    "torch, TP4": {"ckpt_format": "torch", "target_tensor_parallel_size": 4},
    "torch, TP2 PP2": {
        "ckpt_format": "torch",
        "target_tensor_parallel_size": 2,
        "target_pipeline_parallel_size": 2,
        "make_vocab_size_divisible_by": 64,
    },
}


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("name", MODELS)
def test_round_trip_conversion_is_bit_exact(models, tmp_path, name, form):
    source = models / folder_name(name)
    run(load_dir=source, save_dir=tmp_path / "mcore", **FORMATS[form])
    back(tmp_path / "mcore", tmp_path / "hf")
    assert_same(weights_of(tmp_path / "hf"), weights_of(source))
    assert json.loads((tmp_path / "hf" / "config.json").read_text()) == json.loads((source / "config.json").read_text())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_other_dtypes_are_kept(tmp_path, dtype):
    make_model("Qwen3", tmp_path / "hf", dtype)
    run(load_dir=tmp_path / "hf", save_dir=tmp_path / "mcore")
    back(tmp_path / "mcore", tmp_path / "again")
    assert_same(weights_of(tmp_path / "again"), weights_of(tmp_path / "hf"))


def test_a_requested_dtype_is_used(tmp_path):
    make_model("Llama 2", tmp_path / "hf", torch.float32)
    run(load_dir=tmp_path / "hf", save_dir=tmp_path / "mcore", params_dtype="bf16")
    back(tmp_path / "mcore", tmp_path / "again")
    rounded = {name: value.to(torch.bfloat16) for name, value in weights_of(tmp_path / "hf").items()}
    assert_same(weights_of(tmp_path / "again"), rounded)
    config = json.loads((tmp_path / "again" / "config.json").read_text())
    assert config.get("dtype", config.get("torch_dtype")) == "bfloat16"


def test_several_files_with_an_index_in_and_out(tmp_path):
    make_model("Qwen2.5", tmp_path / "hf", torch.bfloat16, max_shard_size="100KB")
    assert len(list((tmp_path / "hf").glob("model-*.safetensors"))) > 2
    checkpoint = run(load_dir=tmp_path / "hf", save_dir=tmp_path / "mcore")
    out = to_hugging_face(checkpoint, read_config(tmp_path / "hf"), tmp_path / "out", shard_bytes=100_000)
    index = json.loads((out / "model.safetensors.index.json").read_text())
    files = sorted(path.name for path in out.glob("*.safetensors"))
    assert len(files) > 2 and sorted(set(index["weight_map"].values())) == files
    assert all(path.stat().st_size < 110_000 for path in out.glob("*.safetensors"))
    assert_same(weights_of(out), weights_of(tmp_path / "hf"))


def test_transformers_loads_the_converted_model(models, tmp_path):
    import transformers

    run(load_dir=models / "Qwen2.5_tied", save_dir=tmp_path / "mcore")
    back(tmp_path / "mcore", tmp_path / "hf")
    before, after = (
        transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        for folder in (models / "Qwen2.5_tied", tmp_path / "hf")
    )
    ids = torch.arange(20)[None]
    assert torch.equal(before(ids).logits, after(ids).logits)
    with safe_open(tmp_path / "hf" / "model.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt"}


@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize("name", MODELS)
def test_slices_read_from_the_files_equal_those_of_the_full_tensors(models, name, ranks):
    """A rank that reads its slices gets what cutting the whole tensor gives; together the parts are the whole."""
    catalogue = TensorCatalogue(read_config(models / folder_name(name)))
    weights = HuggingFaceWeights(models / folder_name(name))
    rows = pad_vocab_size(catalogue.config.vocab_size, 8, ranks)
    for tensor in catalogue.tensors:
        whole = weights.full_tensor(tensor)
        parts = [weights.shard(tensor, rank, ranks, rows) for rank in range(ranks)]
        for rank, part in enumerate(parts):
            assert torch.equal(part, shard(tensor, whole, rank, ranks, rows)), tensor.name
        assert torch.equal(unshard(tensor, parts), whole), tensor.name


def test_query_key_and_value_interleave_by_group(models):
    """The rows of linear_qkv as megatron-core's attention reads them: for each group its queries, key and value."""
    catalogue = TensorCatalogue(read_config(models / "Qwen2.5"))
    weights = HuggingFaceWeights(models / "Qwen2.5")
    fused = weights.full_tensor(catalogue.by_name()["decoder.layers.2.self_attention.linear_qkv.weight"])
    part = {letter: weights.read(f"model.layers.2.self_attn.{letter}_proj.weight") for letter in "qkv"}
    for group in range(2):
        block = fused[group * 64 : (group + 1) * 64]  # 2 query heads, a key head, a value head of 16
        assert torch.equal(block[:32], part["q"][group * 32 : (group + 1) * 32])
        assert torch.equal(block[32:48], part["k"][group * 16 : (group + 1) * 16])
        assert torch.equal(block[48:], part["v"][group * 16 : (group + 1) * 16])


def test_output_goes_to_mg2hf_in_the_original_folder(model, tmp_path):
    run(load_dir=model, save_dir=tmp_path / "mcore", model_type_hf="llama2", model_type="GPT")
    shutil.rmtree(tmp_path / "mcore" / "iter_0000001" / "hugging_face")
    written = back(tmp_path / "mcore", model, model_type_hf="qwen25")
    assert written == model / "mg2hf"
    assert_same(weights_of(written), weights_of(model))
    assert back(tmp_path / "mcore", model) == written  # an export is replaced
    with pytest.raises(ConfigError, match="--hf-dir"):
        back(tmp_path / "mcore", tmp_path / "nowhere")
    back(tmp_path / "mcore", tmp_path / "elsewhere", hf_dir=model)
    assert_same(weights_of(tmp_path / "elsewhere"), weights_of(model))


def test_every_faulty_tensor_is_named(model, tmp_path):
    weights = weights_of(model)
    del weights["model.layers.1.self_attn.k_proj.bias"]
    weights["model.layers.3.mlp.up_proj.weight"] = torch.zeros(64, 96, dtype=torch.bfloat16)
    weights["model.layers.4.input_layernorm.weight"] = torch.zeros(64, dtype=torch.bfloat16)
    save_file(weights, model / "model.safetensors")
    with pytest.raises(CheckpointError) as refusal:
        run(load_dir=model, save_dir=tmp_path / "mcore")
    lines = str(refusal.value).splitlines()
    assert len(lines) == 3
    assert any("missing: model.layers.1.self_attn.k_proj.bias [32]" in line for line in lines)
    assert any(
        "model.layers.3.mlp.up_proj.weight has the shape [64, 96]; config.json requires [96, 64]" in x for x in lines
    )
    assert any("not of this model: model.layers.4.input_layernorm.weight" in line for line in lines)
    assert not (tmp_path / "mcore").exists()


@pytest.mark.parametrize("name", ["../outside.safetensors", "sub/model.safetensors", "..", "model.bin"])
def test_an_index_cannot_leave_the_folder(model, tmp_path, name):
    shutil.copy(model / "model.safetensors", tmp_path / "outside.safetensors")
    index = {"weight_map": dict.fromkeys(weights_of(model), name)}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"not the name of a \.safetensors file in this folder"):
        run(load_dir=model, save_dir=tmp_path / "mcore")


def test_damaged_and_pickled_folders(model, tmp_path):
    path = model / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="cannot be read"):
        run(load_dir=model, save_dir=tmp_path / "mcore")
    path.rename(model / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="pickles, which are not read"):
        run(load_dir=model, save_dir=tmp_path / "mcore")


def test_a_tied_model_may_carry_its_output_layer(models, tmp_path):
    folder = Path(shutil.copytree(models / "Qwen2.5_tied", tmp_path / "hf"))
    weights = weights_of(folder)
    assert "lm_head.weight" not in weights
    save_file({**weights, "lm_head.weight": weights["model.embed_tokens.weight"].clone()}, folder / "model.safetensors")
    run(load_dir=folder, save_dir=tmp_path / "same")
    save_file({**weights, "lm_head.weight": weights["model.embed_tokens.weight"] + 1}, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"not of this model: lm_head\.weight"):
        run(load_dir=folder, save_dir=tmp_path / "other")


def test_a_checkpoint_of_another_model_is_refused(models, tmp_path):
    run(load_dir=models / "Qwen2.5", save_dir=tmp_path / "mcore")
    run(load_dir=models / "Qwen2.5", save_dir=tmp_path / "ranks", ckpt_format="torch")
    for checkpoint in ("mcore", "ranks"):
        with pytest.raises(CheckpointError) as refusal:
            back(tmp_path / checkpoint, tmp_path / "hf", hf_dir=models / "Qwen3_tied")
        text = str(refusal.value)
        assert "missing: decoder.layers" in text and "q_layernorm" in text
        assert "not of this model: output_layer.weight" in text or checkpoint == "ranks"
        assert "has the shape" in text
    assert not (tmp_path / "hf").exists()


class Crafted:
    def __reduce__(self):
        return (print, ("this must not be printed",))


def test_a_crafted_checkpoint_executes_no_code(models, tmp_path, capsys):
    folder = run(load_dir=models / "Qwen2.5", save_dir=tmp_path / "mcore")
    (folder / ".metadata").write_bytes(pickle.dumps(Crafted()))
    with pytest.raises(CheckpointError, match="refused"):
        back(tmp_path / "mcore", tmp_path / "hf")
    ranks = run(load_dir=models / "Qwen2.5", save_dir=tmp_path / "ranks", ckpt_format="torch")
    torch.save({"model": {}, "args": Crafted()}, ranks / "mp_rank_00" / "model_optim_rng.pt")
    with pytest.raises(CheckpointError, match="weights_only"):
        back(tmp_path / "ranks", tmp_path / "hf")
    assert "must not" not in capsys.readouterr().out


def test_megatrons_own_command_line_and_names_are_read(models, tmp_path):
    """What Megatron puts beside the weights, and the names of TransformerEngine's layers."""
    folder = run(load_dir=models / "Qwen2.5", save_dir=tmp_path / "ranks", ckpt_format="torch")
    path = folder / "mp_rank_00" / "model_optim_rng.pt"
    content = torch.load(path, weights_only=True)
    fused = {
        name.replace("input_layernorm.weight", "self_attention.linear_qkv.layer_norm_weight").replace(
            "pre_mlp_layernorm.weight", "mlp.linear_fc1.layer_norm_weight"
        ): value
        for name, value in content["model"].items()
    }
    fused["decoder.layers.0.mlp.linear_fc1._extra_state"] = None
    torch.save({**content, "model": fused, "args": argparse.Namespace(params_dtype=torch.bfloat16)}, path)
    back(tmp_path / "ranks", tmp_path / "hf")
    assert_same(weights_of(tmp_path / "hf"), weights_of(models / "Qwen2.5"))


def test_a_failed_conversion_leaves_no_files(model, tmp_path, monkeypatch):
    def stop(*_: object) -> torch.Tensor:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(HuggingFaceWeights, "full_tensor", stop)
    with pytest.raises(CheckpointError, match="No space left on device"):
        run(load_dir=model, save_dir=tmp_path / "mcore")
    assert list((tmp_path / "mcore").iterdir()) == []


def test_overwriting_existing_output_is_refused(model, tmp_path):
    run(load_dir=model, save_dir=tmp_path / "mcore")
    with pytest.raises(ConfigError, match="holds a checkpoint already"):
        run(load_dir=model, save_dir=tmp_path / "mcore")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years of work")
    with pytest.raises(ConfigError, match="is not empty"):
        back(tmp_path / "mcore", tmp_path / "mine")
    with pytest.raises(ConfigError, match=r"thesis\.tex: is a file, not a folder"):
        back(tmp_path / "mcore", tmp_path / "mine" / "thesis.tex")


def test_flags_that_do_not_fit(model, tmp_path):
    with pytest.raises(ConfigError, match="describes a qwen2"):
        run(load_dir=model, save_dir=tmp_path / "m", model_type_hf="llama3")
    with pytest.raises(ConfigError, match="one must be hf, one mg"):
        run(load_dir=model, save_dir=tmp_path / "m", save_model_type="hf")
    with pytest.raises(ConfigError) as refusal:
        flags = {"target_tensor_parallel_size": 3, "target_pipeline_parallel_size": 3}
        run(load_dir=model, save_dir=tmp_path / "m", ckpt_format="torch", **flags)
    assert len(refusal.value.problems) >= 2
    with pytest.raises(CheckpointError, match=r"'hf download Qwen/Qwen2\.5-7B --local-dir Qwen2\.5-7B'"):
        latest_checkpoint(Path("Qwen/Qwen2.5-7B"))
    with pytest.raises(ConfigError, match=r"config\.json: no such file; .*'hf download Qwen/Qwen2\.5-7B"):
        read_config("Qwen/Qwen2.5-7B")
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        back(tmp_path, tmp_path / "hf")


@pytest.mark.parametrize("name", ["Qwen2.5", "Qwen3, tied"])
def test_virtual_pipeline_stages_are_read(models, tmp_path, name):
    """Two stages with two parts each: Megatron gives stage 0 the first and the third quarter of the layers."""
    source = models / folder_name(name)
    folder = run(load_dir=source, save_dir=tmp_path / "mcore", ckpt_format="torch", target_pipeline_parallel_size=4)
    quarters = [
        torch.load(folder / f"mp_rank_00_{quarter:03d}" / "model_optim_rng.pt", weights_only=True)["model"]
        for quarter in range(4)
    ]
    for stage in range(2):
        content = {"iteration": 1, "model0": quarters[stage], "model1": quarters[stage + 2]}
        torch.save(content, folder / f"mp_rank_00_{stage:03d}" / "model_optim_rng.pt")
        shutil.rmtree(folder / f"mp_rank_00_{stage + 2:03d}")
    back(tmp_path / "mcore", tmp_path / "hf")
    assert_same(weights_of(tmp_path / "hf"), weights_of(source))
    torch.save({"iteration": 1, "model0": quarters[1]}, folder / "mp_rank_00_001" / "model_optim_rng.pt")
    with pytest.raises(CheckpointError, match=r"mp_rank_00_001.*holds no 'model1'"):
        back(tmp_path / "mcore", tmp_path / "again")
