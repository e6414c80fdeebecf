"""Runs of pretrain_gpt.py that train an adapter: start, resume, base model, checkpoints, export and errors."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from hugging_face_models import make_model
from safetensors.torch import load_file, save_file
from tiny_runs import SEQ_LENGTH, losses, pretrain, stopped_run, write_files

from mindspeed_llm.adapters import AdapterRecord
from mindspeed_llm.errors import UserError

RUN = (
    f"--device cpu --seq-length {SEQ_LENGTH} --micro-batch-size 2 --global-batch-size 4 --lr 1e-2 --min-lr 1e-3 "
    "--train-iters 4 --is-instruction-dataset --neat-pack --reset-position-ids --log-interval 1 --split 80,20,0 "
    "--eval-iters 1"
)
LORA = ("--lora-target-modules", "all-linear", "--lora-r", "4")


class Setting:
    """A base model, packed files, and runs on them."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.monkeypatch = folder, monkeypatch
        self.base, self.data = folder / "base", folder / "data" / "set"

    def run(self, *flags: str, save: str | None = "save", load: Path | None = None, lora: tuple = LORA) -> Path:
        """Run, and return the --save directory."""
        words = ["--data-path", str(self.data), "--load", str(load or self.base), *lora, *flags]
        if save is not None:
            words += ["--save", str(self.folder / save)]
        pretrain(self.monkeypatch, *words, run=RUN)
        return self.folder / str(save)


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("material")
    make_model("Qwen2.5", folder / "base")
    write_files(folder / "data" / "set")
    return folder


@pytest.fixture
def setting(material: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Setting:
    for name in ("base", "data"):
        (tmp_path / name).symlink_to(material / name)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return Setting(tmp_path, monkeypatch)


@pytest.mark.parametrize(
    "more",
    [pytest.param((), marks=pytest.mark.long), ("--lora-plus-ratio", "4", "--fp16", "--initial-loss-scale", "1024")],
)
def test_a_resumed_run_equals_one_that_was_not_stopped(setting: Setting, more: tuple[str, ...]) -> None:
    """Bit for bit, with dropout; the checkpoint has the adapter alone, and the base is not changed."""
    before = (setting.base / "model.safetensors").read_bytes()
    dropout = ("--lora-dropout", "0.1", "--save-interval", "2", *more)
    whole = setting.run(*dropout, "--save-hf", str(setting.folder / "whole_hf"), save="whole")
    stopped = stopped_run(whole, setting.folder / "stopped", 2)
    setting.run(*dropout, "--save-hf", str(setting.folder / "stopped_hf"), save="stopped")
    assert losses(stopped) == losses(whole)[2:] and len(losses(whole)) == 4
    one, two = (load_file(setting.folder / f"{name}_hf" / "adapter_model.safetensors") for name in ("whole", "stopped"))
    assert one.keys() == two.keys() and all(one[name].equal(two[name]) for name in one)
    assert (setting.base / "model.safetensors").read_bytes() == before
    trained = sum(value.numel() for value in one.values())
    folder = whole / "iter_0000004"
    assert size_of(folder) < 14 * trained + 5e6
    record = AdapterRecord.read(folder)
    assert record is not None and record.base is not None and record.base.dtype == "fp32"
    assert record.base.path == str(setting.base)


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_a_checkpoint_has_fourteen_bytes_for_each_trained_parameter(setting: Setting) -> None:
    sizes, trained = [], []
    for rank in ("4", "64"):
        lora = ("--lora-target-modules", "all-linear", "--lora-r", rank)
        peft_folder = setting.folder / f"peft{rank}"
        save = setting.run("--bf16", "--train-iters", "1", "--save-hf", str(peft_folder), save=rank, lora=lora)
        sizes.append(size_of(save / "iter_0000001"))
        trained.append(sum(value.numel() for value in load_file(peft_folder / "adapter_model.safetensors").values()))
    assert (sizes[1] - sizes[0]) / (trained[1] - trained[0]) < 14.01


def test_another_base_model_is_refused_and_the_same_one_elsewhere_is_not(setting: Setting) -> None:
    save = setting.run("--train-iters", "2")
    moved = setting.folder / "moved"
    shutil.copytree(setting.base, moved)
    setting.run("--train-iters", "3", load=moved)
    assert len(losses(save)) == 3
    weights = load_file(moved / "model.safetensors")
    weights["model.layers.0.mlp.up_proj.weight"][0, 0] += 1e-3
    save_file(weights, moved / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"moved is not the base model of the adapter .*its tensors differ; give"):
        setting.run("--train-iters", "4", load=moved)
    half = {name: value.bfloat16() for name, value in load_file(setting.base / "model.safetensors").items()}
    save_file(half, moved / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"its data type is bf16, and that of the base model fp32; a model that was"):
        setting.run("--train-iters", "4", load=moved)
    assert len(losses(save)) == 3


def test_settings_of_the_adapter_belong_to_the_run(setting: Setting) -> None:
    setting.run("--train-iters", "1")
    for flags, named in (
        (("--lora-alpha", "8"), "--lora-alpha: 32.0 in that run, 8.0 in this command"),
        (("--use-rslora",), "--use-rslora: off in that run, on"),
        (("--lora-plus-ratio", "4"), "--lora-plus-ratio"),
    ):
        with pytest.raises(UserError, match=named):
            setting.run("--train-iters", "2", *flags)
    with pytest.raises(UserError, match="--lora-target-modules: q_proj k_proj"):
        setting.run("--train-iters", "2", lora=("--lora-target-modules", "linear_qkv", "--lora-r", "4"))
    with pytest.raises(UserError, match="--lora-target-modules: q_proj"):
        setting.run("--train-iters", "2", lora=())


def test_a_random_base_model_is_saved_once(setting: Setting, capfd: pytest.CaptureFixture[str]) -> None:
    """The shape comes from flags, and a resume needs no --load."""
    from tiny import SHAPE

    words = ["--data-path", str(setting.data), *LORA, "--save", str(setting.folder / "random"), "--keep-last", "1"]
    words += [*SHAPE.split(), "--save-interval", "1", "--prompt-type", "qwen"]
    merged = setting.folder / "merged"
    pretrain(setting.monkeypatch, *words, "--train-iters", "2", run=RUN)
    kept = (setting.folder / "random" / "base" / "iter_0000000" / "metadata.json").stat().st_mtime_ns
    pretrain(setting.monkeypatch, *words, "--train-iters", "4", "--save-hf-merged", str(merged), run=RUN)
    assert (setting.folder / "random" / "base" / "iter_0000000" / "metadata.json").stat().st_mtime_ns == kept
    assert "resuming from" in capfd.readouterr().out
    assert sorted(path.name for path in (setting.folder / "random").glob("iter_*")) == ["iter_0000004"]
    assert (merged / "model.safetensors").is_file()
    shutil.rmtree(setting.folder / "random" / "base")
    with pytest.raises(UserError, match=r"was trained on the base model .*; give it with --load"):
        pretrain(setting.monkeypatch, *words, "--train-iters", "5", run=RUN)


@pytest.mark.long
def test_a_random_base_model_of_another_run_is_refused(setting: Setting) -> None:
    """A run that stopped before its first checkpoint leaves its base, which another seed must not use."""
    from tiny import SHAPE

    random = setting.folder / "random"
    words = ["--data-path", str(setting.data), *LORA, "--save", str(random), *SHAPE.split(), "--prompt-type", "qwen"]
    pretrain(setting.monkeypatch, *words, "--train-iters", "1", run=RUN)
    shutil.rmtree(random / "iter_0000001")
    (random / "latest_checkpointed_iteration.txt").unlink()
    with pytest.raises(UserError, match=r"contains the random base model of another run \(they differ in --seed"):
        pretrain(setting.monkeypatch, *words, "--train-iters", "1", "--seed", "7", run=RUN)
    pretrain(setting.monkeypatch, *words, "--train-iters", "1", run=RUN)
    damage(random / "base" / "iter_0000000")
    with pytest.raises(UserError, match="the base model is damaged"):
        pretrain(setting.monkeypatch, *words, "--train-iters", "2", run=RUN)


def damage(folder: Path) -> None:
    """Change one byte in the middle of the weights of a checkpoint."""
    file = max(folder.glob("*.distcp"), key=lambda path: path.stat().st_size)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def test_a_damaged_checkpoint_falls_back_to_the_one_before(setting: Setting) -> None:
    """Also if the damaged file is adapter.json, which the flags are compared with."""
    start = setting.run("--train-iters", "1", save="start")
    words = ("--train-iters", "2", "--save-interval", "1")
    save = setting.run(*words, lora=("--lora-load", str(start)))
    whole = losses(save)
    damage(save / "iter_0000002")
    setting.run(*words, lora=("--lora-load", str(start)))
    assert losses(save) == whole
    (save / "iter_0000002" / "adapter.json").write_text("{")
    setting.run(*words, lora=("--lora-load", str(start)))
    assert losses(save) == whole


def test_a_loaded_checkpoint_is_checked_against_the_base_model(setting: Setting) -> None:
    save = setting.run("--train-iters", "1")
    other = setting.folder / "other"
    shutil.copytree(setting.base, other)
    weights = load_file(other / "model.safetensors")
    weights["model.layers.0.mlp.up_proj.weight"][0, 0] += 1e-3
    save_file(weights, other / "model.safetensors", {"format": "pt"})
    loaded = ("--lora-load", str(save))
    with pytest.raises(UserError, match=r"other is not the base model of the adapter .*its tensors differ"):
        setting.run("--train-iters", "1", load=other, save="next", lora=loaded)
    damage(save / "iter_0000001")
    with pytest.raises(UserError, match=r"iter_0000001.*(damaged|SHA-256)"):
        setting.run("--train-iters", "1", save="next", lora=loaded)


def test_a_peft_folder_continues_and_comes_out_again(setting: Setting) -> None:
    """Its settings replace the defaults; without a step it comes out bit for bit."""
    peft = pytest.importorskip("peft", reason="peft is the reference of LoRA")
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(setting.base)
    torch.manual_seed(3)
    config = peft.LoraConfig(r=3, lora_alpha=5, target_modules=["q_proj", "v_proj", "down_proj"], use_rslora=True)
    adapted = peft.get_peft_model(model, config)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    adapted.save_pretrained(setting.folder / "theirs")
    words = ("--lora-load", str(setting.folder / "theirs"))
    setting.run("--lr", "0", "--min-lr", "0", "--save-hf", str(setting.folder / "ours"), lora=words)
    one, two = (load_file(setting.folder / name / "adapter_model.safetensors") for name in ("theirs", "ours"))
    assert one.keys() == two.keys() and all(one[name].equal(two[name]) for name in one)
    config = json.loads((setting.folder / "ours" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["use_rslora"]) == (3, 5, True)
    # The first evaluation is that of the adapter, and a checkpoint is loaded in the same way.
    first = [json.loads(line) for line in (setting.folder / "save" / "run" / "metrics.jsonl").read_text().splitlines()]
    values = [line["loss"] for line in first if line["kind"] == "eval"]
    setting.run("--train-iters", "1", save="next", lora=("--lora-load", str(setting.folder / "save")))
    again = [json.loads(line) for line in (setting.folder / "next" / "run" / "metrics.jsonl").read_text().splitlines()]
    assert next(line["loss"] for line in again if line["kind"] == "eval") == values[0]
    # A resumed run does not need the folder any more.
    shutil.move(setting.folder / "theirs", setting.folder / "gone")
    setting.run("--lr", "0", "--min-lr", "0", "--train-iters", "5", lora=words)
    for flags, message in (
        (("--lora-r", "8"), "--lora-r 8: the adapter of --lora-load has 3"),
        (("--lora-target-modules", "q_proj"), "--lora-target-modules q_proj: the adapter of --lora-load has q_proj"),
    ):
        with pytest.raises(UserError, match=message):
            setting.run(*flags, save="other", lora=("--lora-load", str(setting.folder / "gone")))


def test_wrong_input_is_one_clear_line(setting: Setting) -> None:
    save = setting.run("--train-iters", "1")
    none = setting.folder / "none"
    none.mkdir()
    model = shutil.copytree(setting.base, setting.folder / "model")
    for flags, message in (
        ({"lora": ("--lora-target-modules", "wqkv")}, "--lora-target-modules wqkv: unknown; known are linear_qkv"),
        ({"lora": ("--lora-r", "4")}, "--lora-r 4 has an effect only with an adapter"),
        ({"lora": ("--use-dora", *LORA)}, "DoRA is not supported"),
        ({"lora": ("--qlora", *LORA)}, "QLoRA is not supported"),
        ({"lora": ("--lora-load", str(none))}, "--lora-load .*none"),
        ({"lora": ("--lora-load", str(setting.base))}, "give it with --load"),
        ({"lora": ("--save-hf", str(model), *LORA)}, "model: is not empty; give another folder"),
        ({"load": save}, "contains an adapter and no complete model; give it with --lora-load"),
        ({"load": save, "lora": ()}, "contains an adapter"),
    ):
        with pytest.raises(UserError, match=message):
            setting.run(save="refused", **flags)
        assert not (setting.folder / "refused").exists()


@pytest.mark.parametrize("precision", ["--bf16", pytest.param("--fp16", marks=pytest.mark.long)])
def test_sixteen_bits_learn(setting: Setting, precision: str) -> None:
    save = setting.run(precision, "--train-iters", "30", "--lr", "3e-2", "--initial-loss-scale", "1024")
    assert sum(losses(save)[-4:]) < sum(losses(save)[:4]) - 0.5


def test_lora_plus_gives_the_factors_b_another_rate(setting: Setting) -> None:
    from mindspeed_llm.training import model_and_optimizer

    seen = {}
    original = model_and_optimizer.build_scheduler

    def spy(training, batch, optimizer, length):
        seen["groups"] = optimizer.param_groups
        return original(training, batch, optimizer, length)

    setting.monkeypatch.setattr(model_and_optimizer, "build_scheduler", spy)
    setting.run("--lora-plus-ratio", "16", "--train-iters", "1", "--lr-decay-style", "constant")
    shapes = {round(group["lr"], 6): {weight.shape[1] for weight in group["params"]} for group in seen["groups"]}
    assert shapes == {0.01: {64, 96}, 0.16: {4}}
