"""An exported model ends answers and is asked as it was trained: end tokens, generation settings, chat template."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from preprocess_command import Command, rows
from small_tokenizers import MARKERS, CharacterTokenizer, byte_level_folder
from tiny import SHAPE, manifest_of
from tiny_runs import RUN, pretrain

from mindspeed_llm.arguments.convert_arguments import parse_convert_arguments
from mindspeed_llm.arguments.data_arguments import DataArguments
from mindspeed_llm.arguments.hugging_face_config import parse_config, read_config
from mindspeed_llm.chat import JinjaTemplate, export_chat_template, load_chat_template
from mindspeed_llm.conversion import GenerationInfo, ModelAssets, convert, read_generation_info
from mindspeed_llm.errors import ConfigError
from mindspeed_llm.manifest import Manifest, TemplateInfo
from mindspeed_llm.tokenization import find_stop_ids, load_tokenizer

QWEN = load_chat_template("qwen")
CONFIG = {"model_type": "qwen2", "vocab_size": 410}


@pytest.mark.parametrize(
    ("name", "ends"),
    [
        ("qwen", ["<|im_end|>"]),
        ("llama3", ["<|eot_id|>"]),
        ("intern2", ["<|im_end|>", "</s>"]),  # the first as text in the answer; the second after calls
        ("mistral", ["</s>"]),
        ("gemma", ["</s>"]),  # at the end of the sample, and as the first label of each later prompt
        ("empty", ["</s>"]),  # only after calls
    ],
)
def test_end_tokens_of_each_template(name: str, ends: list[str]) -> None:
    tokenizer = CharacterTokenizer()
    assert find_stop_ids(load_chat_template(name), tokenizer, False) == [tokenizer.token_id(token) for token in ends]
    assert find_stop_ids(load_chat_template("intern2"), tokenizer, True)[-1] == tokenizer.eos_id
    source = "{% for m in messages %}{% generation %}{{ m.content }}<|end|>\n{% endgeneration %}{% endfor %}"
    assert find_stop_ids(JinjaTemplate(source, {}), tokenizer, False) == [tokenizer.token_id("<|end|>")]


def assets(generation: Any = None, settings: Any = None, **config: Any) -> ModelAssets:
    files = {"generation_config.json": generation, "tokenizer_config.json": settings}
    given = {name: json.dumps(content).encode() for name, content in files.items() if content is not None}
    return ModelAssets(parse_config(Path("base"), {**CONFIG, **config}), given)


@pytest.mark.parametrize(
    ("given", "eos"),
    [
        ({"generation": {"eos_token_id": 5}, "eos_token_id": 4}, [7, 5]),
        ({"generation": {"eos_token_id": [5, 7]}}, [7, 5]),
        ({"eos_token_id": [4, 3]}, [7, 4, 3]),
        ({}, 7),
        ({"model_type": "llama"}, [7, 2]),  # transformers' default
        ({"generation": {"eos_token_id": 7}}, 7),
        ({"eos_token_id": 410}, 7),  # no such token
    ],
)
def test_end_tokens_of_data_and_base(given: dict[str, Any], eos: Any) -> None:
    made = assets(**given).trained_on(GenerationInfo(ends=(7,), pad=1))
    generation = json.loads(made.files["generation_config.json"])
    assert made.config.raw["eos_token_id"] == generation["eos_token_id"] == eos


def test_other_generation_settings_stay() -> None:
    given = {"temperature": 0.7, "pad_token_id": 3, "eos_token_id": 5}
    made = assets(given).trained_on(GenerationInfo(ends=(7,), pad=1))
    assert json.loads(made.files["generation_config.json"]) == {**given, "eos_token_id": [7, 5]}
    made = assets(pad_token_id=3).trained_on(GenerationInfo(ends=(7,), pad=1))
    assert json.loads(made.files["generation_config.json"]) == {"pad_token_id": 3, "eos_token_id": 7}
    made = assets().trained_on(GenerationInfo(ends=(7,), pad=1))
    assert json.loads(made.files["generation_config.json"]) == {"pad_token_id": 1, "eos_token_id": 7}
    unchanged = assets(given)
    assert unchanged.trained_on(GenerationInfo()) == unchanged  # plain text: nothing is known


def test_the_chat_template_takes_the_place_of_the_tokenizers() -> None:
    base = assets(settings={"chat_template": "old", "eos_token": "<e>"})
    made = base.trained_on(GenerationInfo(keeps_template=False, chat_template="new"))
    assert made.files["chat_template.jinja"] == b"new"
    assert json.loads(made.files["tokenizer_config.json"]) == {"eos_token": "<e>"}
    without = base.trained_on(GenerationInfo(keeps_template=False, problem="none"))
    assert "chat_template.jinja" not in without.files and b"chat_template" not in without.files["tokenizer_config.json"]
    assert base.trained_on(GenerationInfo(keeps_template=False, chat_template="old")) == base


def test_an_end_token_that_only_the_generation_settings_name() -> None:
    base = assets({"eos_token_id": 5}, {"eos_token": None})
    words = json.dumps({"added_tokens": [{"id": 5, "content": "<it's>"}]}).encode()
    base = ModelAssets(base.config, {**base.files, "tokenizer.json": words})
    made = base.trained_on(GenerationInfo(ends=(5,), keeps_template=False, chat_template="{{ eos_token }}"))
    assert made.files["chat_template.jinja"].decode() == "{%- set eos_token = '<it\\'s>' %}\n{{ eos_token }}"


@pytest.mark.parametrize("value", ["text", True, -5, 1.5, [1, "x"], {"a": 1}, 10**30, float("nan")])
@pytest.mark.parametrize("key", ["eos_token_id", "pad_token_id", "bos_token_id"])
def test_faults_of_generation_settings_are_one_line(key: str, value: Any) -> None:
    with pytest.raises(ConfigError) as refusal:
        assets({key: value}).trained_on(GenerationInfo(ends=(7,)))
    assert len(refusal.value.problems) == 1 and f"generation_config.json: {key}" in str(refusal.value)


@pytest.mark.parametrize("text", ["[" * 100_000, "{", "[1]", "\xff", "7"])
@pytest.mark.parametrize("name", ["generation_config.json", "tokenizer_config.json"])
def test_files_that_are_no_object_are_one_line(name: str, text: str) -> None:
    broken = ModelAssets(assets().config, {name: text.encode("latin-1")})
    with pytest.raises(ConfigError) as refusal:
        broken.trained_on(GenerationInfo(ends=(7,), keeps_template=False, chat_template="new"))
    assert len(refusal.value.problems) == 1 and name in str(refusal.value)


def manifest_with(template: TemplateInfo | None, append_eod: bool = False) -> Manifest:
    return dataclasses.replace(
        manifest_of(packed=True, neat=True, seq_length=8, samples=1, tokens=8, trained=4, packs=1),
        template=template,
        append_eod=append_eod,
    )


def test_sources_of_the_exported_template(tmp_path: Path) -> None:
    data = DataArguments(seq_length=8)
    jinja = export_chat_template(QWEN)
    new = TemplateInfo("mine", "1" * 64, "the Jinja", [4, 5])
    found = read_generation_info(data, [manifest_with(new)], None)
    assert (found.chat_template, found.ends, found.pad, found.keeps_template) == ("the Jinja", (4, 5), 0, False)
    old = read_generation_info(data, [manifest_with(TemplateInfo("qwen", QWEN.sha256))], None)  # of an earlier version
    assert (old.chat_template, old.ends) == (jinja, (1,))
    variant = load_chat_template("qwen3").with_options("default", False)
    old = read_generation_info(data, [manifest_with(TemplateInfo("qwen3", variant.sha256))], None)
    assert old.chat_template == export_chat_template(variant) != export_chat_template(load_chat_template("qwen3"))
    other = read_generation_info(data, [manifest_with(TemplateInfo("qwen", "0" * 64))], None)
    assert other.chat_template is None and not other.keeps_template and "qwen" in str(other.problem)
    two = read_generation_info(data, [manifest_with(new), manifest_with(TemplateInfo("qwen", QWEN.sha256))], None)
    assert two.chat_template is None and "mine, qwen" in str(two.problem) and two.ends == (4, 5, 1)
    plain = read_generation_info(data, [manifest_with(None, append_eod=True)], None)
    assert plain.keeps_template and plain.ends == (1,)
    assert read_generation_info(data, [manifest_with(None)], None).ends == ()
    (tmp_path / "own.json").write_text(json.dumps({"name": "own", "end_token": "<|im_end|>"}))
    for name, path in (("qwen", None), ("own", str(tmp_path / "own.json"))):  # files without a manifest
        named = DataArguments(seq_length=8, prompt_type=name, prompt_type_path=path)
        tokenizer = CharacterTokenizer()
        found = read_generation_info(named, [], tokenizer)
        assert found.chat_template == export_chat_template(load_chat_template(name, path))
        assert found.ends == (tokenizer.token_id("<|im_end|>"),)


def test_a_run_its_export_and_its_checkpoint_agree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    transformers = pytest.importorskip("transformers", reason="needs transformers, which is not installed")
    from hugging_face_models import SHAPE as TINY

    base = byte_level_folder(tmp_path / "base")
    tokenizer = load_tokenizer("PretrainedFromHF", str(base))
    begin, end = (tokenizer.token_id(MARKERS[number]) for number in (0, 2))
    config = transformers.Qwen2Config(**{**TINY, "vocab_size": 410, "eos_token_id": begin})
    transformers.Qwen2ForCausalLM(config).save_pretrained(base)
    (base / "generation_config.json").write_text(json.dumps({"eos_token_id": begin, "do_sample": False}))
    command = Command(tmp_path, base, rows(4))
    command.run()
    out, saved = tmp_path / "exported", tmp_path / "save"
    flags = ["--data-path", str(command.prefix), "--load", str(base), "--save", str(saved), "--save-hf", str(out)]
    run = f"{RUN.replace(SHAPE, '')} --seq-length 256 --train-iters 1 --micro-batch-size 1 --global-batch-size 1"
    pretrain(monkeypatch, *flags, run=f"{run} --split 100,0,0 --eval-iters 0")
    for name in ("config.json", "generation_config.json"):
        assert json.loads((out / name).read_text())["eos_token_id"] == [end, begin], name
    theirs = transformers.AutoTokenizer.from_pretrained(out)
    messages = [{"role": "user", "content": "Name 0 rivers."}, {"role": "assistant", "content": "River 0. "}]
    ids = theirs.apply_chat_template(messages, return_dict=False)
    assert tuple(ids) in {sample for sample, _ in command.samples()}

    def companions_in(folder: Path) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in folder.iterdir() if not path.match("*.safetensors*")}

    for extra in ((), ("--hf-dir", str(base))):  # from the checkpoint alone, and with the base's files
        words = ["--load-dir", str(saved), "--save-dir", str(tmp_path / f"mg{len(extra)}")]
        words += ["--load-model-type", "mg", "--save-model-type", "hf", *extra]
        assert companions_in(convert(parse_convert_arguments(words))) == companions_in(out)
    other = {**json.loads((base / "config.json").read_text()), "rms_norm_eps": 1e-3}
    (base / "config.json").write_text(json.dumps(other))
    with pytest.raises(ConfigError, match="norm-epsilon"):
        convert(parse_convert_arguments([*words[:3], str(tmp_path / "third"), *words[4:]]))
    assert read_config(saved / "iter_0000001" / "hugging_face").raw["eos_token_id"] == [end, begin]
