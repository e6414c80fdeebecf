"""Runs of pretrain_gpt.py with virtual tokens and bottleneck adapters: data, resume, base model, export and errors."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from hugging_face_models import make_model
from peft_adapters import adapter_tensors, export, import_peft, logits_of, merge
from safetensors.torch import load_file, save_file
from tiny_runs import losses, pretrain
from virtual_packs import PACKS, STEPS, prediction_targets, samples_of_step, slots_of, write_packs

from mindspeed_llm.adapters import AdapterRecord, adapter_settings
from mindspeed_llm.data.splits import split_packs
from mindspeed_llm.errors import CheckpointError, ConfigError, UserError

peft = pytest.importorskip("peft", reason="peft is the reference of virtual tokens")
transformers = pytest.importorskip("transformers", reason="peft needs transformers")

P = 3
METHODS = {
    "prompt": ("--tuning", "prompt", "--virtual-tokens", str(P)),
    "p-tuning": ("--tuning", "p-tuning", "--virtual-tokens", str(P), "--prompt-encoder-size", "24"),
    "prefix": ("--tuning", "prefix", "--virtual-tokens", str(P)),
    "adapter": ("--tuning", "adapter", "--adapter-size", "6"),
}
# P-tuning passes the code of prompt tuning and more.
IN_LONG = {name: pytest.param(name, marks=pytest.mark.long) for name in METHODS}
RUN = (
    "--device cpu --micro-batch-size 2 --global-batch-size 4 --lr 1e-2 --min-lr 1e-3 --train-iters 4 "
    "--is-instruction-dataset --neat-pack --reset-position-ids --log-interval 1 --split 80,20,0 --eval-iters 1"
)


class Setting:
    """A base model, packed files with and without reserved slots, and runs on them."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.monkeypatch, self.base = folder, monkeypatch, folder / "base"

    def run(
        self,
        *flags: str,
        method: str = "prompt",
        tuning: tuple[str, ...] | None = None,
        save: str | None = "save",
        load: Path | None = None,
        virtual: bool | None = None,
    ) -> Path:
        """Run, and return the --save directory."""
        reserved = method != "adapter" if virtual is None else virtual
        words = ["--data-path", str(self.folder / ("virtual" if reserved else "plain"))]
        words += ["--seq-length", str(slots_of(P if reserved else 0)), "--load", str(load or self.base)]
        words += [*(METHODS[method] if tuning is None else tuning), *flags]
        if save is not None:
            words += ["--save", str(self.folder / save)]
        pretrain(self.monkeypatch, *words, run=RUN)
        return self.folder / str(save)


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("material")
    make_model("Qwen2.5", folder / "base")
    write_packs(folder / "plain", 0)
    write_packs(folder / "virtual", P)
    return folder


@pytest.fixture
def setting(material: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Setting:
    for path in material.iterdir():
        (tmp_path / path.name).symlink_to(path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return Setting(tmp_path, monkeypatch)


def make_prompt(base: Path, folder: Path, method: str, **settings: object) -> Path:
    """Save random virtual tokens with peft."""
    torch.manual_seed(3)
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    values = {"task_type": "CAUSAL_LM", "num_virtual_tokens": P, **settings}
    if method == "prompt":
        config = peft.PromptTuningConfig(**values)
    elif method == "p-tuning":
        config = peft.PromptEncoderConfig(**{"encoder_hidden_size": 20, **values})
    else:
        config = peft.PrefixTuningConfig(num_attention_heads=2, token_dim=32, **values)
    peft.get_peft_model(model, config).save_pretrained(folder)
    return folder


def assert_same(one: Path, two: Path) -> None:
    """The adapters in two folders are the same, bit for bit."""
    first, second = adapter_tensors(one), adapter_tensors(two)
    assert first.keys() == second.keys() and all(first[name].equal(second[name]) for name in first)


@pytest.mark.parametrize("method", ["p-tuning", IN_LONG["prompt"], IN_LONG["prefix"], IN_LONG["adapter"]])
def test_a_resumed_run_equals_one_that_was_not_stopped(setting: Setting, method: str) -> None:
    """Bit for bit; the checkpoint has the adapter alone, the base is not changed, and the loss falls."""
    before = (setting.base / "model.safetensors").read_bytes()
    flags = ("--save-interval", "2", "--lr", "1e-1", "--min-lr", "1e-1")
    whole = setting.run(*flags, "--save-hf", str(setting.folder / "whole_hf"), method=method, save="whole")
    stopped = setting.folder / "stopped"
    shutil.copytree(whole, stopped)
    shutil.rmtree(stopped / "iter_0000004")
    (stopped / "latest_checkpointed_iteration.txt").write_text("2\n")
    setting.run(*flags, "--save-hf", str(setting.folder / "stopped_hf"), method=method, save="stopped")
    assert losses(stopped) == losses(whole) and len(losses(whole)) == 4
    assert_same(setting.folder / "whole_hf", setting.folder / "stopped_hf")
    assert (setting.base / "model.safetensors").read_bytes() == before
    folder = whole / "iter_0000004"
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) < 1e6
    record = AdapterRecord.read(folder)
    assert record is not None and record.base is not None and record.settings.method == method
    assert record.base.path == str(setting.base) and record.base.dtype == "fp32"
    assert AdapterRecord.read(folder) == record


@pytest.mark.parametrize("method", ["prefix", "adapter", IN_LONG["prompt"], IN_LONG["p-tuning"]])
def test_an_export_is_the_model_that_was_trained(setting: Setting, method: str) -> None:
    """peft, or examples/chat.py, compute the run's last evaluation from the exported folder, sample by sample."""
    out = setting.folder / "out"
    save = setting.run("--save-hf", str(out), "--lr", "1e-1", method=method)
    lines = [json.loads(line) for line in (save / "run" / "metrics.jsonl").read_text().splitlines()]
    evaluated = [line["loss"] for line in lines if line["kind"] == "eval"][-1]
    setting.monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "examples"))
    import chat

    base = transformers.AutoModelForCausalLM.from_pretrained(setting.base)
    model = chat.with_adapter(base, out).eval()
    settings = AdapterRecord.read(save / "iter_0000004").settings
    total = count = 0.0
    packs = split_packs(STEPS * PACKS, (0.8, 0.2, 0.0), 1234)[1][:4]
    for ids, labels in (each for n in packs.tolist() for each in samples_of_step(n // PACKS, [n % PACKS])):
        target = prediction_targets(settings, labels)
        if not (target != -100).any():
            continue
        with torch.no_grad():
            logits = model(input_ids=ids[None]).logits[0, :-1][-len(target) :]
        total += float(torch.nn.functional.cross_entropy(logits, target, ignore_index=-100, reduction="sum"))
        count += int((target != -100).sum())
    assert total / count == pytest.approx(evaluated, rel=1e-5)


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("prompt", {}),
        ("p-tuning", {}),
        ("prefix", {}),
        ("prefix", {"prefix_projection": True, "encoder_hidden_size": 20}),
    ],
)
def test_a_peft_folder_comes_back_bit_for_bit(
    setting: Setting, capfd: pytest.CaptureFixture[str], method: str, settings: dict
) -> None:
    """Through a checkpoint of convert_ckpt.py, and through a run that changes nothing."""
    is_encoder = method == "p-tuning" or bool(settings)
    theirs = make_prompt(setting.base, setting.folder / "theirs", method, **settings)
    checkpoint = import_peft(theirs, setting.base, setting.folder / "mcore")
    trained_as = "prompt" if method == "p-tuning" else method
    assert adapter_settings(checkpoint).method == trained_as
    written = export(setting.folder / "mcore", setting.folder / "peft", hf_dir=setting.base)
    assert_same(theirs, written)
    expected = logits_of(setting.base, theirs)
    assert (logits_of(setting.base, written) - expected).abs().max() < 1e-5
    ours = setting.folder / "ours"
    flags = ("--lr", "0", "--min-lr", "0", "--train-iters", "1", "--save-hf", str(ours))
    setting.run(*flags, tuning=("--adapter-load", str(theirs)))
    assert ("virtual tokens train directly" in capfd.readouterr().out) == is_encoder
    assert_same(theirs, ours)
    assert (logits_of(setting.base, ours) - expected).abs().max() < 1e-5
    if method == "p-tuning":
        with pytest.raises(UserError, match="--tuning p-tuning: the adapter of --lora-load is one of --tuning prompt"):
            setting.run(tuning=("--adapter-load", str(theirs), "--tuning", "p-tuning"), save="other")


def test_an_encoder_continues_from_a_checkpoint_only(setting: Setting) -> None:
    first = setting.run("--save-hf", str(setting.folder / "one"), method="p-tuning", save="first")
    flags = ("--lr", "0", "--min-lr", "0", "--train-iters", "1", "--save-hf", str(setting.folder / "two"))
    again = setting.run(*flags, tuning=("--adapter-load", str(first)), save="second")
    assert adapter_settings(again).method == "p-tuning" and adapter_settings(again).encoder_size == 24
    assert_same(setting.folder / "one", setting.folder / "two")
    written = export(first, setting.folder / "three")
    assert_same(setting.folder / "one", written)
    config = json.loads((written / "adapter_config.json").read_text())
    assert (config["peft_type"], config["encoder_hidden_size"]) == ("P_TUNING", 24)


def test_a_bottleneck_adapter_comes_back_bit_for_bit(setting: Setting) -> None:
    one, two = setting.folder / "one", setting.folder / "two"
    save = setting.run("--save-hf", str(one), method="adapter")
    assert_same(one, export(save, setting.folder / "exported"))
    checkpoint = import_peft(one, setting.base, setting.folder / "mcore")
    assert_same(one, export(checkpoint, setting.folder / "again", hf_dir=setting.base))
    flags = ("--lr", "0", "--min-lr", "0", "--train-iters", "1", "--save-hf", str(two))
    setting.run(*flags, tuning=("--adapter-load", str(one)), save="second", virtual=False)
    assert_same(one, two)
    names = sorted(
        name.removeprefix("model.layers.0.") for name in load_file(one / "adapter_model.safetensors") if ".0." in name
    )
    assert names[:4] == [
        "mlp.adapter.down.bias",
        "mlp.adapter.down.weight",
        "mlp.adapter.up.bias",
        "mlp.adapter.up.weight",
    ]
    with pytest.raises(Exception, match="BOTTLENECK"):
        logits_of(setting.base, one)
    for target, flags in ((setting.folder / "merged", {}), (setting.folder / "merged_mg", {"save_model_type": "mg"})):
        with pytest.raises(ConfigError, match="an adapter of --tuning adapter cannot be merged"):
            merge(setting.base, one, target, **flags)
        assert not target.exists() or not list(target.iterdir())


def test_another_base_model_is_refused(setting: Setting) -> None:
    save = setting.run("--train-iters", "2")
    other = setting.folder / "other"
    shutil.copytree(setting.base, other)
    setting.run("--train-iters", "3", load=other)
    weights = load_file(other / "model.safetensors")
    weights["model.layers.0.mlp.up_proj.weight"][0, 0] += 1e-3
    save_file(weights, other / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"other is not the base model of the adapter .*its tensors differ; give"):
        setting.run("--train-iters", "4", load=other)
    with pytest.raises(UserError, match=r"other is not the base model of the adapter"):
        setting.run("--train-iters", "1", load=other, save="next", tuning=("--adapter-load", str(save)))
    assert len(losses(save)) == 3


def test_settings_of_the_method_belong_to_the_run(setting: Setting) -> None:
    setting.run("--train-iters", "1", method="p-tuning")
    for tuning, named in (
        (METHODS["prompt"], "--tuning: p-tuning in that run, prompt in this command"),
        ((*METHODS["p-tuning"][:-1], "20"), "--prompt-encoder-size: 24 in that run, 20 in this command"),
    ):
        with pytest.raises(UserError, match=named):
            setting.run("--train-iters", "2", tuning=tuning)


REFUSED = {
    "two methods": (
        {"tuning": (*METHODS["prompt"], "--lora-target-modules", "q_proj")},
        "--tuning prompt and --lora-target-modules q_proj: a run trains one method",
    ),
    "rank of LoRA": ({"tuning": (*METHODS["prefix"], "--lora-r", "4")}, "--lora-r 4 has an effect only with LoRA"),
    "lora without targets": ({"tuning": ("--tuning", "lora"), "virtual": False}, "--tuning lora needs --lora-target"),
    "no number": ({"tuning": ("--tuning", "prompt")}, "--tuning prompt needs --virtual-tokens N"),
    "no size": ({"tuning": ("--tuning", "adapter"), "virtual": False}, "--tuning adapter needs --adapter-size N"),
    "number without a method": ({"tuning": ("--virtual-tokens", "3")}, "--virtual-tokens 3 has an effect only with"),
    "size of another": (
        {"tuning": (*METHODS["prompt"], "--prompt-encoder-size", "8")},
        "--prompt-encoder-size 8 has an effect only with --tuning p-tuning",
    ),
    "merged": (
        {"tuning": (*METHODS["prompt"], "--save-hf-merged", "m")},
        "--tuning prompt is no change of the weights; leave the flag out",
    ),
    "another number": (
        {"tuning": ("--tuning", "prompt", "--virtual-tokens", "5")},
        r"--virtual-tokens 5: .*virtual has slots for 3 virtual tokens in every sample; use --virtual-tokens 3, or",
    ),
    "no slots": (
        {"virtual": False},
        r"--virtual-tokens 3: .*plain has no reserved slots for virtual tokens; preprocess again with --virtual-tokens",
    ),
    "slots without a method": ({"tuning": ()}, r"virtual has slots for 3 virtual tokens in every sample; train with"),
    "slots with LoRA": ({"tuning": ("--lora-target-modules", "q_proj")}, "virtual has slots for 3 virtual tokens"),
    "slots with bottlenecks": ({"method": "adapter", "virtual": True}, "virtual has slots for 3 virtual tokens"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_wrong_input_is_one_clear_line(setting: Setting, name: str) -> None:
    given, message = REFUSED[name]
    with pytest.raises(UserError, match=message):
        setting.run(save="refused", **given)
    assert not (setting.folder / "refused").exists()


def test_flags_that_virtual_tokens_need() -> None:
    from tiny import RUN as TINY
    from tiny import SHAPE

    from mindspeed_llm.arguments.pretrain_parser import parse_pretrain_arguments

    words = f"{SHAPE} {TINY} --tuning prefix --virtual-tokens 32"
    for left_out, message in (
        ("--neat-pack", "--tuning prefix needs --neat-pack"),
        ("--reset-position-ids", "--tuning prefix needs --reset-position-ids"),
        ("", "--virtual-tokens 32 leaves no slot for a token in --seq-length 32"),
    ):
        with pytest.raises(ConfigError, match=message):
            parse_pretrain_arguments([word for word in words.split() if word != left_out], 1)


def test_adapters_that_do_not_fit_are_refused(setting: Setting) -> None:
    theirs = make_prompt(setting.base, setting.folder / "theirs", "prefix")
    path = theirs / "adapter_config.json"
    config = json.loads(path.read_text())
    for values, message in (
        ({"peft_type": "ADALORA"}, "peft_type 'ADALORA' is not supported; supported are LORA, PREFIX_TUNING"),
        ({"peft_type": ["LORA"]}, "is not supported; supported are"),
        ({"num_virtual_tokens": 0}, "num_virtual_tokens is 0, not a whole number above 0"),
        ({"num_virtual_tokens": True}, "num_virtual_tokens is True"),
        ({"num_transformer_submodules": 2}, "num_transformer_submodules 2"),
        ({"num_virtual_tokens": 4}, r"prompt_embeddings has the shape \[3, 256\]"),
        ({"peft_type": "PROMPT_TUNING"}, r"made for another model .*prompt_embeddings has the shape \[3, 256\]"),
    ):
        path.write_text(json.dumps({**config, **values}))
        with pytest.raises((ConfigError, CheckpointError), match=message):
            import_peft(theirs, setting.base, setting.folder / "mcore")
    for text in (
        '{"method": "nothing"}',
        '{"method": []}',
        '{"method": "prompt", "virtual_tokens": -1}',
        '{"size": 0, "method": "adapter"}',
    ):
        (setting.folder / "adapter.json").write_text(text)
        with pytest.raises(CheckpointError, match=r"adapter\.json: cannot be read"):
            AdapterRecord.read(setting.folder)
