"""LoRA adapters: peft folders there and back bit for bit, merging, the hash of the base model, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from captured_logs import captured_logs
from hugging_face_models import make_model
from peft_adapters import ALL, adapter_tensors, export, import_peft, logits_of, make_adapter, merge, run
from safetensors.torch import load_file, save_file

from mindspeed_llm.adapters import AdapterRecord, BaseModel, LoraSettings, adapter_settings
from mindspeed_llm.arguments.hugging_face_config import read_config
from mindspeed_llm.arguments.output_arguments import CheckpointArguments
from mindspeed_llm.conversion import AdapterCatalogue, ModelAssets, export_adapter_run, open_adapter
from mindspeed_llm.conversion import base_hash as base_hash_module
from mindspeed_llm.conversion.base_hash import base_hash, cached_base_hash, combine_digests, tensor_digests
from mindspeed_llm.conversion.convert_adapter import check_base
from mindspeed_llm.conversion.model_writers import check_export_target
from mindspeed_llm.conversion.tensor_mapping import shard, shard_shape, split_parts, unshard
from mindspeed_llm.errors import CheckpointError, ConfigError

pytest.importorskip("peft", reason="needs peft, which is not installed")
FAMILIES = {"Qwen2.5": ALL, "Qwen3, tied": ("q_proj", "v_proj"), "Llama 2": ("o_proj", "gate_proj", "down_proj")}


def assert_same(own: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert own.keys() == theirs.keys()
    for name, value in theirs.items():
        assert own[name].dtype == value.dtype and torch.equal(own[name], value), name


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Folder with a float32 model and its adapter for three families: NAME and NAME-lora."""
    folder = tmp_path_factory.mktemp("models")
    for name, targets in FAMILIES.items():
        make_model(name, folder / name)
        (folder / name / "chat_template.jinja").write_text("of the base")
        make_adapter(folder / name, folder / f"{name}-lora", targets, use_rslora=name == "Llama 2")
    return folder


@pytest.fixture
def adapter(models, tmp_path):
    """A copy of the Qwen2.5 adapter that a test may damage."""
    return Path(shutil.copytree(models / "Qwen2.5-lora", tmp_path / "lora"))


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache of hashes for each test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.mark.parametrize("name", FAMILIES)
def test_an_adapter_comes_back_from_a_checkpoint_bit_for_bit(models, tmp_path, name):
    base, adapter = models / name, models / f"{name}-lora"
    checkpoint = import_peft(adapter, base, tmp_path / "mcore")
    assert AdapterRecord.read(checkpoint) == AdapterRecord(adapter_settings(adapter))
    assert adapter_settings(tmp_path / "mcore") == adapter_settings(checkpoint) == adapter_settings(adapter)
    index = (checkpoint / ".metadata").read_bytes()
    assert b"lora_A" in index and b"_extra_state" not in index and b"embedding" not in index
    written = export(tmp_path / "mcore", tmp_path / "peft", hf_dir=base)
    assert_same(adapter_tensors(written), adapter_tensors(adapter))
    assert adapter_settings(written) == adapter_settings(adapter)
    assert (written / "chat_template.jinja").read_text() == "of the base"
    assert not (written / "config.json").exists()
    difference = logits_of(base, written) - logits_of(base, adapter)
    assert difference.abs().max() < 1e-5 and (logits_of(base, written) - logits_of(base)).abs().max() > 0.1
    assert json.loads((written / "adapter_config.json").read_text())["base_model_name_or_path"] == str(base)


def test_a_bfloat16_adapter_keeps_its_type_and_files(models, tmp_path):
    adapter = make_adapter(models / "Qwen2.5", tmp_path / "lora", ("v_proj",), torch.bfloat16)
    (adapter / "chat_template.jinja").write_text("of the adapter")
    (adapter / "generation_config.json").write_text('{"eos_token_id": [5, 6]}')
    checkpoint = import_peft(adapter, models / "Qwen2.5", tmp_path / "mcore")
    carried = checkpoint / "hugging_face"
    assert json.loads((carried / "config.json").read_text())["eos_token_id"] == [5, 6]
    assert (carried / "chat_template.jinja").read_text() == "of the adapter"
    written = export(tmp_path / "mcore", tmp_path / "peft")
    assert_same(adapter_tensors(written), adapter_tensors(adapter))
    assert json.loads((written / "generation_config.json").read_text()) == {"eos_token_id": [5, 6]}
    merged = merge(models / "Qwen2.5", checkpoint, tmp_path / "merged")
    assert (merged / "chat_template.jinja").read_text() == "of the adapter"
    assert export(tmp_path / "mcore", tmp_path / "peft") == written  # an export is replaced


@pytest.mark.parametrize("targets", [ALL, ("linear_qkv", "linear_proj", "linear_fc1", "linear_fc2")])
def test_shards_of_an_adapter_form_the_whole(models, tmp_path, targets):
    config = read_config(models / "Qwen2.5")
    adapter = open_adapter(models / "Qwen2.5-lora", config)
    settings = LoraSettings(targets, 4, 6.0)
    catalogue = AdapterCatalogue(settings, config)
    shapes = {name.removeprefix("decoder.layers.3."): t.shape for name, t in catalogue.by_name().items()}
    assert shapes["self_attention.linear_proj.lora_A.o_proj"] == (4, 64)
    assert shapes["self_attention.linear_qkv.lora_B.k_proj"] == (32, 4)
    assert shapes["mlp.linear_fc1.lora_B.up_proj"] == (96, 4) and shapes["mlp.linear_fc2.lora_A.down_proj"] == (4, 96)
    assert ("self_attention.linear_qkv.lora_A.shared" in shapes) == ("linear_qkv" in targets)
    for tensor in catalogue.tensors:
        if tensor.form == "copies":
            with pytest.raises(
                CheckpointError, match=r"k_proj\.lora_A\.weight differs|up_proj\.lora_A\.weight differs"
            ):
                adapter.full_tensor(tensor)
            full = torch.randn(tensor.shape)
            assert len(split_parts(tensor, full)) == len(tensor.parts)
        else:
            full = adapter.full_tensor(tensor)
        for ranks in (1, 2, 4):
            parts = [shard(tensor, full, rank, ranks) for rank in range(ranks)]
            assert all(tuple(part.shape) == shard_shape(tensor, ranks, 0) for part in parts)
            assert torch.equal(unshard(tensor, parts), full)
            if tensor.form != "copies":
                assert all(torch.equal(adapter.shard(tensor, rank, ranks), part) for rank, part in enumerate(parts))


def test_a_shared_matrix_is_written_as_equal_copies(models, tmp_path, adapter):
    tensors = adapter_tensors(adapter)
    for name in tensors:
        if ".lora_A." in name:
            for follower, first in (("k_proj", "q_proj"), ("v_proj", "q_proj"), ("up_proj", "gate_proj")):
                if f".{follower}." in name:
                    tensors[name] = tensors[name.replace(follower, first)].clone()
    save_file(tensors, adapter / "adapter_model.safetensors")
    shared = ("linear_qkv", "linear_proj", "linear_fc1", "linear_fc2")
    checkpoint = import_peft(adapter, models / "Qwen2.5", tmp_path / "mcore", lora_target_modules=shared)
    # A layer with one projection has one A under either name.
    assert adapter_settings(checkpoint).targets == ("linear_qkv", "o_proj", "linear_fc1", "down_proj")
    opened = open_adapter(checkpoint, read_config(models / "Qwen2.5"))
    assert len(opened.catalogue.tensors) == 4 * (4 + 2 + 3 + 2)
    assert_same(adapter_tensors(export(checkpoint, tmp_path / "peft", lora_target_modules=shared)), tensors)
    merged = merge(models / "Qwen2.5", checkpoint, tmp_path / "merged")
    assert_same(load_file(merged / "model.safetensors"), load_file(merge_twin(models, adapter, tmp_path)))
    with pytest.raises(CheckpointError, match=r"k_proj\.lora_A\.weight differs from .*q_proj\.lora_A"):
        import_peft(models / "Qwen2.5-lora", models / "Qwen2.5", tmp_path / "m2", lora_target_modules=shared)
    assert not list((tmp_path / "m2").glob("*"))


def merge_twin(models: Path, adapter: Path, tmp_path: Path) -> Path:
    return merge(models / "Qwen2.5", adapter, tmp_path / "merged again") / "model.safetensors"


@pytest.mark.parametrize("name", FAMILIES)
def test_a_model_merged_in_float32_equals_the_adapter(models, tmp_path, name):
    base, adapter = models / name, models / f"{name}-lora"
    with captured_logs() as lines:
        merged = merge(base, adapter, tmp_path / "merged")
    assert any("fp32 keeps 100.0% of the adapter's change" in line for line in lines)
    assert not any("warning" in line for line in lines)
    assert (logits_of(merged) - logits_of(base, adapter)).abs().max() < 1e-5
    unchanged = load_file(base / "model.safetensors")
    changed = {key for key, value in load_file(merged / "model.safetensors").items() if (value != unchanged[key]).any()}
    assert changed == {
        f"{key.rpartition('.')[0].removeprefix('base_model.model.').rpartition('.')[0]}.weight"
        for key in adapter_tensors(adapter)
    }


def test_every_format_of_the_base_gives_the_same_merged_model(models, tmp_path):
    base, adapter = models / "Qwen2.5", models / "Qwen2.5-lora"
    expected = load_file(merge(base, adapter, tmp_path / "merged") / "model.safetensors")
    checkpoint = import_peft(adapter, base, tmp_path / "lora")
    mg = {"load_model_type": "mg"}
    for number, flags in enumerate(
        ({}, {"ckpt_format": "torch", "target_tensor_parallel_size": 2, "make_vocab_size_divisible_by": 64})
    ):
        run(load_dir=base, save_dir=tmp_path / f"mcore{number}", **flags)
        merged = merge(tmp_path / f"mcore{number}", checkpoint, tmp_path / f"hf{number}", **mg)
        assert_same(load_file(merged / "model.safetensors"), expected)
        again = merge(
            tmp_path / f"mcore{number}", adapter, tmp_path / f"mg{number}", save_model_type="mg", **mg, **flags
        )
        back = run(load_dir=again, save_dir=tmp_path / f"back{number}", save_model_type="hf", **mg)
        assert_same(load_file(back / "model.safetensors"), expected)


def test_merging_reports_what_the_type_loses(models, tmp_path):
    base = tmp_path / "base"
    make_model("Qwen2.5", base, torch.bfloat16)
    adapter = make_adapter(base, tmp_path / "lora", ("q_proj", "down_proj"), size=0.004)
    with captured_logs() as lines:
        merged = merge(base, adapter, tmp_path / "merged")
    before, after = (load_file(folder / "model.safetensors") for folder in (base, merged))
    change = lost = 0.0
    for key, a in adapter_tensors(adapter).items():
        if ".lora_A." not in key:
            continue
        weight = key.removeprefix("base_model.model.").replace(".lora_A", "")
        delta = 1.5 * adapter_tensors(adapter)[key.replace("lora_A", "lora_B")].double() @ a.double()
        change += float(delta.square().sum())
        lost += float((delta - (after[weight].double() - before[weight].double())).square().sum())
    share = (lost / change) ** 0.5
    assert share > 0.3
    (warning,) = (line for line in lines if line.startswith("warning"))
    assert f"{share:.1%} of the adapter's change is lost" in warning and "--params-dtype fp32" in warning
    with captured_logs() as lines:
        merged = merge(base, adapter, tmp_path / "merged32", params_dtype="fp32")
    assert any("merged 8 projections; fp32 keeps 100.0%" in line for line in lines)
    assert not any("warning" in line for line in lines)
    assert load_file(merged / "model.safetensors")["model.norm.weight"].dtype == torch.float32
    save_file(
        {k: v * ("lora_A" in k) for k, v in adapter_tensors(adapter).items()}, adapter / "adapter_model.safetensors"
    )
    with captured_logs() as lines:
        merge(base, adapter, tmp_path / "merged")
    assert any("the adapter changes nothing" in line for line in lines)


@pytest.mark.parametrize("name", ["Qwen2.5", "Qwen3, tied"])
def test_a_folder_and_its_checkpoints_have_the_same_base_hash(models, tmp_path, name):
    folder, config = models / name, read_config(models / name)
    expected = base_hash(folder, config)
    assert expected.dtype == "fp32" and len(expected.sha256) == 64 and expected.path is None
    shares = [tensor_digests(folder, config, rank, 3) for rank in range(3)]
    assert combine_digests({**shares[2], **shares[0], **shares[1]}) == expected
    assert sum(map(len, shares)) == len(load_file(folder / "model.safetensors")) and all(shares)
    torch_files = {"ckpt_format": "torch", "target_tensor_parallel_size": 2, "make_vocab_size_divisible_by": 64}
    for number, flags in enumerate(({}, torch_files)):
        checkpoint = run(load_dir=folder, save_dir=tmp_path / str(number), **flags)
        assert base_hash(checkpoint, config) == base_hash(tmp_path / str(number), config) == expected
    other = run(load_dir=folder, save_dir=tmp_path / "bf16", params_dtype="bf16")
    assert base_hash(other, config) != expected and base_hash(other, config).dtype == "bf16"
    record = AdapterRecord(LoraSettings(("q_proj",)), BaseModel(expected.sha256, "fp32", "./base"))
    check_base(record, folder, config)
    with pytest.raises(ConfigError, match=r"not the base model of the adapter \(\./base\): its data type is bf16"):
        check_base(record, other, config)
    changed = Path(shutil.copytree(folder, tmp_path / "changed"))
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"][3] += 1
    save_file(weights, changed / "model.safetensors")
    with pytest.raises(ConfigError, match="its tensors differ"):
        check_base(record, changed, config)


def test_the_base_hash_is_cached_until_a_file_changes(models, tmp_path, monkeypatch):
    folder = Path(shutil.copytree(models / "Qwen2.5", tmp_path / "hf"))
    config = read_config(folder)
    assert cached_base_hash(folder) is None
    expected = base_hash(folder, config)
    with monkeypatch.context() as patched:
        patched.setattr(base_hash_module, "tensor_digests", lambda *_: pytest.fail("the weights were read"))
        assert base_hash(folder, config) == cached_base_hash(folder) == expected
    (folder / "model.safetensors").touch()
    assert cached_base_hash(folder) is None and base_hash(folder, config) == expected
    shutil.copy(folder / "model.safetensors", tmp_path / "other")
    (tmp_path / "other").replace(folder / "model.safetensors")
    assert cached_base_hash(folder) is None
    (cache_file,) = (path for path in (tmp_path / "cache").rglob("*.json") if "base_hash" in str(path))
    cache_file.write_text("{")
    assert cached_base_hash(folder) is None and cached_base_hash(tmp_path / "nowhere") is None


def test_a_run_exports_its_adapter_and_the_merged_model(models, tmp_path, monkeypatch):
    base, adapter = models / "Qwen2.5", models / "Qwen2.5-lora"
    import_peft(adapter, base, tmp_path / "save")
    assets = ModelAssets.read(read_config(base))
    flags = CheckpointArguments(
        save=str(tmp_path / "save"), save_hf=str(tmp_path / "peft"), save_hf_merged=str(tmp_path / "merged")
    )
    monkeypatch.chdir(models)
    assert export_adapter_run(flags, assets, "Qwen2.5") == [tmp_path / "peft", tmp_path / "merged"]
    assert json.loads((tmp_path / "peft/adapter_config.json").read_text())["base_model_name_or_path"] == str(base)
    assert_same(adapter_tensors(tmp_path / "peft"), adapter_tensors(adapter))
    assert (logits_of(tmp_path / "merged") - logits_of(base, tmp_path / "peft")).abs().max() < 1e-5
    with pytest.raises(ConfigError, match=r"--save-hf-merged .*not on disk"):
        export_adapter_run(CheckpointArguments(save=flags.save, save_hf_merged="x"), assets, None)
    check_export_target(tmp_path / "peft", is_adapter=True)
    check_export_target(tmp_path / "merged")
    for kind in (True, False):
        with pytest.raises(ConfigError, match="is not empty"):
            check_export_target(tmp_path / ("merged" if kind else "peft"), kind)
    # A base model that changed while the adapter was trained is not merged.
    other = BaseModel("0" * 64, "fp32")
    AdapterRecord(open_adapter(tmp_path / "save", assets.config).settings, other).write(tmp_path / "save/iter_0000001")
    with pytest.raises(ConfigError, match=r"Qwen2.5: is not the base model of the adapter: its tensors differ"):
        export_adapter_run(flags, assets, "Qwen2.5")
