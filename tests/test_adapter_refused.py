"""LoRA adapters that are refused: damaged, of another model, of another kind, or given with the wrong flags."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from hugging_face_models import make_model
from peft_adapters import adapter_tensors, change_config, export, import_peft, make_adapter, merge, run
from safetensors.torch import save_file
from small_tokenizers import byte_level_folder

from mindspeed_llm.adapters import AdapterRecord, BaseModel, adapter_settings, find_adapter
from mindspeed_llm.arguments.hugging_face_config import read_config
from mindspeed_llm.conversion import TensorCatalogue, open_adapter
from mindspeed_llm.conversion.convert import to_hugging_face
from mindspeed_llm.conversion.model_weights import open_model
from mindspeed_llm.errors import CheckpointError, ConfigError, UserError

pytest.importorskip("peft", reason="needs peft, which is not installed")
WEIGHTS = "adapter_model.safetensors"


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Folder with the model Qwen2.5, an adapter of it, and a checkpoint of the adapter."""
    folder = tmp_path_factory.mktemp("models")
    make_model("Qwen2.5", folder / "base")
    make_adapter(folder / "base", folder / "lora", ("q_proj", "v_proj"))
    import_peft(folder / "lora", folder / "base", folder / "save")
    return folder


@pytest.fixture
def base(models):
    return models / "base"


@pytest.fixture
def adapter(models, tmp_path):
    """A copy of the adapter that a test may damage."""
    return Path(shutil.copytree(models / "lora", tmp_path / "lora"))


def refusal(adapter: Path, base: Path, target: Path) -> str:
    """Return the message for an adapter that is not imported, after a check that merging refuses it as well."""
    with pytest.raises(UserError) as imported:
        import_peft(adapter, base, target)
    with pytest.raises(UserError) as merged:
        merge(base, adapter, target)
    assert str(merged.value) == str(imported.value).replace("--load-dir", "--lora-load") and not target.exists()
    return str(imported.value)


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"use_dora": True}, "DoRA is not supported"),
        ({"init_lora_weights": "pissa_niter_4"}, "PiSSA"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"base_model_name_or_path": "unsloth/Qwen2.5-7B-bnb-4bit"}, "QLoRA is not supported: the base model unsloth"),
        ({"base_model_name_or_path": "Qwen/Qwen2.5-7B-Instruct-AWQ"}, "QLoRA is not supported"),
        ({"target_modules": ["q_proj", "c_attn"]}, "target_modules c_attn: unknown; known are linear_qkv, q_proj"),
        ({"target_modules": "q_proj|v_proj"}, "a pattern is not supported"),
        ({"target_modules": ["q_proj", "lm_head"]}, "lm_head: unknown"),
        ({"peft_type": "ADALORA"}, "'ADALORA' is not supported"),
        ({"r": 0}, "r is 0, not a whole number above 0"),
        ({"lora_alpha": float("nan")}, "lora_alpha is nan"),
        ({"lora_alpha": 10**400}, "not a number above 0"),
        ({"rank_pattern": {"q_proj": 8}}, "rank_pattern"),
        ({"use_rslora": "no"}, "use_rslora is 'no', not true or false"),
    ],
)
def test_unsupported_settings_are_refused_by_name(base, adapter, tmp_path, values, reason):
    change_config(adapter, **values)
    text = refusal(adapter, base, tmp_path / "out")
    assert reason in text and "adapter_config.json" in text and "\n" not in text


def test_an_adapter_of_another_model_gets_one_line(models, adapter, tmp_path):
    make_model("Qwen3", tmp_path / "wide")
    text = refusal(adapter, tmp_path / "wide", tmp_path / "out")
    where = f"{adapter}: the adapter was made for another model than {tmp_path / 'wide'}: "
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"
    assert text == f"{where}{name} has the shape [64, 4], and it requires [128, 4]"
    tensors = {key: value for key, value in adapter_tensors(adapter).items() if ".layers.3." not in key}
    save_file(tensors, adapter / WEIGHTS)
    assert refusal(adapter, models / "base", tmp_path / "out").endswith("it has 3 layers, and the base model 4")
    with pytest.raises(CheckpointError, match=r"was made for another model than .*: --kv-channels 16, .* has 32"):
        open_adapter(models / "save", read_config(tmp_path / "wide"))
    shutil.copytree(models / "save", tmp_path / "save")
    shutil.rmtree(tmp_path / "save" / "iter_0000001" / "hugging_face")
    with pytest.raises(CheckpointError, match=r"has the shape \[4, 64, 4\]; the base model requires \[4, 128, 4\]"):
        open_adapter(tmp_path / "save", read_config(tmp_path / "wide"))


def test_missing_unexpected_and_damaged_tensors_are_named(base, adapter, tmp_path):
    prefix = "base_model.model.model.layers.1.self_attn."
    tensors = adapter_tensors(adapter)
    whole = dict(tensors)
    del tensors[f"{prefix}q_proj.lora_B.weight"]
    tensors[f"{prefix}v_proj.lora_A.weight"] = torch.zeros(5, 64)
    tensors[f"{prefix}k_proj.lora_A.weight"] = torch.zeros(4, 64)
    save_file(tensors, adapter / WEIGHTS)
    lines = refusal(adapter, base, tmp_path / "out").splitlines()
    assert [line.removeprefix(f"{adapter}: ") for line in lines] == [
        f"missing: {prefix}q_proj.lora_B.weight [64, 4]",
        f"not of this model: {prefix}k_proj.lora_A.weight [4, 64]",
        f"{prefix}v_proj.lora_A.weight has the shape [5, 64]; the base model requires [4, 64]",
    ]
    for name, reason in (
        ("base_model.model.lm_head.lora_A.weight", "a LoRA matrix of lm_head is not supported"),
        ("base_model.model.model.embed_tokens.lora_embedding_A", "a LoRA matrix of embed_tokens is not supported"),
        ("base_model.model.lm_head.weight", "a trained copy (modules_to_save) of lm_head"),
        (f"{prefix}q_proj.lora_magnitude_vector", "DoRA is not supported"),
        ("model.layers.0.self_attn.q_proj.lora_A.weight", "begins with base_model.model."),
    ):
        save_file({**whole, name: torch.zeros(4, 64)}, adapter / WEIGHTS)
        text = refusal(adapter, base, tmp_path / "out")
        assert name in text and reason in text and "\n" not in text
    (adapter / WEIGHTS).write_bytes((adapter / WEIGHTS).read_bytes()[:-9])
    assert "cannot be read" in refusal(adapter, base, tmp_path / "out")
    (adapter / WEIGHTS).rename(adapter / "adapter_model.bin")
    text = refusal(adapter, base, tmp_path / "out")
    assert f"holds neither {WEIGHTS} nor" in text and "pickles, which are not read; save it as safetensors" in text
    (adapter / "adapter_model.bin").unlink()
    assert f"holds neither {WEIGHTS}" in refusal(adapter, base, tmp_path / "out")


def test_a_directory_without_an_adapter_is_described(models, base, tmp_path):
    run(load_dir=base, save_dir=tmp_path / "mcore")
    for folder, reason in (
        (base, "contains a complete model, not an adapter; give it with --load$"),
        (tmp_path / "mcore", "contains a complete model, not an adapter; give it with --load$"),
        (tmp_path / "mcore" / "iter_0000001", "contains a complete model"),
        (tmp_path / "nowhere", "no such directory"),
        (base / "config.json", "a file, not a"),
        (tmp_path, "contains no adapter: neither adapter_config.json of peft, nor adapter.json of a checkpoint"),
    ):
        with pytest.raises(UserError, match=reason):
            adapter_settings(folder)
    only = tmp_path / "only"
    only.mkdir()
    shutil.copy(models / "lora" / WEIGHTS, only)
    with pytest.raises(ConfigError, match=r"--lora-load .*, but no adapter_config\.json, which peft writes beside it"):
        adapter_settings(only)
    assert find_adapter(models / "save").path == models / "save" / "iter_0000001"
    with pytest.raises(ConfigError, match="contains a complete model, not an adapter; give it with --load-dir"):
        merge(base, base, tmp_path / "out")


def test_an_adapter_in_the_place_of_a_model_names_the_flags(models, adapter, base, tmp_path):
    out, mg = tmp_path / "out", {"load_model_type": "mg", "save_model_type": "hf"}
    with pytest.raises(ConfigError, match=r"contains an adapter, not a complete model; give --save-lora-to-hf .*merge"):
        run(load_dir=models / "save", save_dir=out, **mg)
    with pytest.raises(ConfigError, match=r"contains an adapter, not a complete model; give --hf-dir with .*merge"):
        run(load_dir=adapter, save_dir=out)
    with pytest.raises(ConfigError, match="--lora-load needs the base model there"):
        merge(adapter, adapter, out)
    config = read_config(base)
    for use in (
        lambda: open_model(models / "save", TensorCatalogue(config)),
        lambda: to_hugging_face(models / "save" / "iter_0000001", config, out),
    ):
        with pytest.raises(ConfigError, match="contains an adapter, not a complete model"):
            use()
    assert not out.exists()
    for target in (base, adapter):
        with pytest.raises(ConfigError, match="holds what is merged; give another folder"):
            merge(base, adapter, target)
    with pytest.raises(ConfigError, match="holds an adapter of peft, which could not be loaded any more"):
        run(load_dir=base, save_dir=adapter)


def test_flags_that_contradict_the_adapter_are_refused(models, adapter, base, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(ConfigError) as refused:
        merge(base, adapter, out, lora_r=8, lora_alpha=7.5, lora_target_modules=("q_proj",))
    assert [line.partition(":")[0] for line in refused.value.problems] == [
        "--lora-r 8",
        "--lora-alpha 7.5",
        "--lora-target-modules q_proj",
    ]
    with pytest.raises(ConfigError, match="--lora-target-modules q_porj: unknown"):
        merge(base, adapter, out, lora_target_modules=("q_porj",))
    with pytest.raises(ConfigError, match=r"--lora-r, --lora-alpha: --load-dir .* contains no adapter"):
        run(load_dir=base, save_dir=out, lora_r=4, lora_alpha=6)
    with pytest.raises(ConfigError, match="give one of them"):
        run("save-lora-to-hf", load_dir=base, save_dir=out, lora_load=adapter)
    with pytest.raises(ConfigError, match="needs --load-model-type mg and --save-model-type hf"):
        run("save-lora-to-hf", load_dir=models / "save", save_dir=out)
    with pytest.raises(ConfigError, match="is a peft folder already"):
        export(adapter, out)
    with pytest.raises(ConfigError, match="needs no import"):
        import_peft(models / "save", base, out)
    with pytest.raises(ConfigError, match="--ckpt-format torch: a checkpoint of an adapter is always torch_dist"):
        import_peft(adapter, base, out, ckpt_format="torch")
    assert not out.exists()
    agreeing = {"lora_r": 4, "lora_alpha": 6, "lora_target_modules": ("v_proj", "q_proj")}
    merge(base, models / "save", out, **agreeing)
    with pytest.raises(ConfigError, match="is not empty"):
        export(models / "save", tmp_path)


def test_a_base_model_with_another_hash_is_refused(models, base, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    save = Path(shutil.copytree(models / "save", tmp_path / "save"))
    settings = adapter_settings(save)
    AdapterRecord(settings, BaseModel("0" * 64, "fp32", "./base")).write(save / "iter_0000001")
    with pytest.raises(ConfigError, match=r"is not the base model of the adapter \(\./base\): its tensors differ"):
        merge(base, save, tmp_path / "out")
    AdapterRecord(settings, BaseModel("0" * 64, "bf16")).write(save / "iter_0000001")
    with pytest.raises(ConfigError, match="its data type is fp32, and that of the base model bf16; a model that was"):
        merge(base, save, tmp_path / "out")
    (save / "iter_0000001" / "adapter.json").write_text('{"rank": 4}')
    with pytest.raises(CheckpointError, match=r"adapter\.json: cannot be read"):
        merge(base, save, tmp_path / "out")


def test_chat_answers_with_an_adapter(base, adapter, tmp_path, monkeypatch, capsys):
    import transformers

    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "examples"))
    import chat

    def answer() -> str:
        monkeypatch.setattr(sys, "argv", ["chat.py", str(adapter), "--prompt", "hi", "--max-new-tokens", "2"])
        try:
            assert chat.main() == 0
        except SystemExit as end:
            assert end.code == 2
            return capsys.readouterr().err
        return capsys.readouterr().out

    large = tmp_path / "large"
    config = json.loads((base / "config.json").read_text())
    transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**{**config, "vocab_size": 410})).save_pretrained(large)
    change_config(adapter, base_model_name_or_path=str(tmp_path / "gone"))
    assert f"its base model '{tmp_path / 'gone'}' is no folder on this machine" in answer()
    change_config(adapter, base_model_name_or_path=str(large))
    assert f"{large}: holds no tokenizer" in answer()
    byte_level_folder(adapter)
    (adapter / "chat_template.jinja").write_text("{% for m in messages %}<|im_start|>{{ m.content }}{% endfor %}")
    (adapter / "generation_config.json").write_text('{"eos_token_id": 3}')
    assert "question" in answer()
    model, tokenizer = chat.load(adapter)
    assert model.generation_config.eos_token_id == 3 and tokenizer.chat_template is not None
    with monkeypatch.context() as without_peft:
        without_peft.setitem(sys.modules, "peft", None)
        assert "peft, which adapters need, is not installed: pip install '.[peft]'" in answer()
    tensors = {name.replace("q_proj", "k_proj"): value for name, value in adapter_tensors(adapter).items()}
    save_file(tensors, adapter / WEIGHTS)
    assert "its adapter cannot be loaded" in answer()
    (adapter / WEIGHTS).unlink()
    assert f"{adapter}: holds no {WEIGHTS}" in answer()
    (adapter / "adapter_config.json").write_text("[")
    assert "cannot be read" in answer()
