"""Model shape of --load: it completes the flags that are not given, and conflicting flags are refused."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from tiny import tiny_arguments
from tiny_runs import RUN, pretrain, train_records, write_files

from mindspeed_llm.arguments.hugging_face_config import parse_config
from mindspeed_llm.arguments.loaded_shape import LoadedShape, shape_differences
from mindspeed_llm.arguments.notices import collect_notices
from mindspeed_llm.arguments.pretrain_parser import parse_pretrain_arguments
from mindspeed_llm.conversion import config_of_shape
from mindspeed_llm.errors import ConfigError

ROPE = "--rotary-base 500000 --use-rope-scaling --rope-scaling-factor 4"
OTHERS = (
    "--seq-length 32 --no-save-model --micro-batch-size 1 --lr 1e-3 --train-iters 3 --data-path none --split 100,0,0 "
    "--is-instruction-dataset --neat-pack --reset-position-ids --eval-iters 0"
)


def checkpoint(folder: Path, kind: str, iteration: int = 1, extra: str = ROPE, **changes: Any) -> Path:
    """A --save directory whose checkpoint has its shape in run.json, in a carried config.json, or not at all."""
    model = tiny_arguments(extra).model
    own = folder / f"iter_{iteration:07d}"
    own.mkdir(parents=True)
    (folder / "latest_checkpointed_iteration.txt").write_text(f"{iteration}\n")
    if kind == "run":
        arguments = {"model": dataclasses.asdict(model) | changes}
        (own / "run.json").write_text(json.dumps({"format": "mindspeed_llm.checkpoint", "arguments": arguments}))
    elif kind in ("converted", "ranks"):
        (own / "hugging_face").mkdir()
        config = config_of_shape(model, 300, 512) | changes
        (own / "hugging_face" / "config.json").write_text(json.dumps(config))
    if kind == "ranks":
        (own / "mp_rank_00").mkdir()
    return folder


def parse(folder: Path, extra: str = "") -> Any:
    return parse_pretrain_arguments([*OTHERS.split(), "--load", str(folder), "--finetune", *extra.split()], 1)


@pytest.mark.parametrize("kind", ["run", "converted", "ranks"])
def test_missing_values_are_taken_from_the_checkpoint(tmp_path, kind):
    expected = tiny_arguments(ROPE).model
    model = parse(checkpoint(tmp_path, kind)).model
    assert shape_differences(LoadedShape(tmp_path, dataclasses.asdict(model)), expected) == []
    assert (model.rotary_base, model.use_rope_scaling, model.rope_scaling_factor) == (500000.0, True, 4.0)
    assert model.norm_epsilon == 1e-6 and model.vocab_size == 300


@pytest.mark.parametrize("kind", ["run", "converted", "ranks"])
@pytest.mark.parametrize(
    "words",
    [
        "--rotary-base 10000",
        "--norm-epsilon 1e-5",
        "--rope-scaling-factor 8",
        "--rotary-percent 0.5",
        "--qk-layernorm",
        "--ffn-hidden-size 128",
        "--kv-channels 32",
        "--num-query-groups 4",
        "--vocab-size 301",
    ],
)
def test_contradicting_values_are_refused(tmp_path, kind, words):
    with pytest.raises(ConfigError) as refusal:
        parse(checkpoint(tmp_path, kind), words)
    [line] = refusal.value.problems
    assert line.startswith(words.split()[0]) and ("run.json" in line) == (kind == "run")


@pytest.mark.parametrize("kind", ["run", "converted"])
def test_a_switch_that_the_checkpoint_does_not_have_is_refused(tmp_path, kind):
    with pytest.raises(ConfigError, match=r"--use-rope-scaling: .* specifies a model without it; leave the flag out"):
        parse(checkpoint(tmp_path, kind, extra=""), "--use-rope-scaling")


@pytest.mark.parametrize("kind", ["run", "converted"])
def test_all_contradictions_are_reported_together(tmp_path, kind):
    with pytest.raises(ConfigError) as refusal:
        parse(checkpoint(tmp_path, kind), "--rotary-base 7 --norm-epsilon 0.1 --no-such-flag --micro-batch-size 0")
    assert len(refusal.value.problems) == 4


@pytest.mark.parametrize("kind", ["run", "converted"])
def test_values_taken_from_the_checkpoint_are_reported_in_one_line(tmp_path, kind):
    shape = "--num-layers 4 --hidden-size 64 --num-attention-heads 4 --num-query-groups 2 --vocab-size 300"
    folder = checkpoint(tmp_path, kind)
    arguments = parse(folder, shape)
    [line] = [line for line in collect_notices(arguments, "cpu") if "not given" in line]
    assert line.startswith("warning: flags that are not given are taken from") and "--rotary-base 500000.0" in line
    assert "--use-rope-scaling" in line and "--kv-channels" not in line and "--num-layers" not in line


def test_a_checkpoint_without_a_shape(tmp_path):
    """A checkpoint of another program: the flags are used as they are."""
    folder = checkpoint(tmp_path, "none")
    with pytest.raises(ConfigError, match="--num-layers is required"):
        parse(folder)
    shape = "--num-layers 4 --hidden-size 64 --num-attention-heads 4 --vocab-size 300 --rotary-base 7"
    arguments = parse(folder, shape)
    assert arguments.model.rotary_base == 7 and arguments.shape_notice is None


def test_the_choices_of_a_run_are_not_its_shape(tmp_path):
    """Dropout, initialisation and a longer sequence are for each run to choose; padding, with the vocabulary, too."""
    folder = checkpoint(tmp_path, "run", extra="--hidden-dropout 0.1 --max-position-embeddings 32")
    model = parse(folder).model
    assert (model.hidden_dropout, model.init_method_std, model.max_position_embeddings) == (0.0, 0.02, 32)
    assert parse(folder, "--seq-length 64").model.max_position_embeddings is None
    assert parse(folder, "--padded-vocab-size 384").model.vocab_size is None


def test_a_run_that_resumes_from_load_keeps_its_choices(tmp_path):
    """Without --finetune the checkpoint's run goes on: another value would be refused, so none need be given."""
    extra = "--hidden-dropout 0.1 --make-vocab-size-divisible-by 8 --init-method-std 0.03"
    folder = checkpoint(tmp_path, "run", extra=extra)
    model = parse_pretrain_arguments([*OTHERS.split(), "--load", str(folder)], 1).model
    assert (model.hidden_dropout, model.make_vocab_size_divisible_by, model.init_method_std) == (0.1, 8, 0.03)


def test_a_damaged_record_is_passed_over_for_the_one_before(tmp_path):
    checkpoint(tmp_path, "run", 1)
    checkpoint(tmp_path, "run", 2, extra="--rotary-base 7")
    newest = tmp_path / "iter_0000002"
    seal = {"files": {"run.json": {"size": 1, "sha256": hashlib.sha256(b"as it was written").hexdigest()}}}
    (newest / "files.json").write_text(json.dumps(seal))
    assert parse(tmp_path).model.rotary_base == 500000
    (newest / "files.json").unlink()
    assert parse(tmp_path).model.rotary_base == 7
    for content in ("", "[]", "{", '{"arguments": 3}', '{"arguments": {"model": {"num_layers": "4"}}}', "[" * 9999):
        (newest / "run.json").write_text(content)
        assert parse(tmp_path).model.rotary_base == 500000, content
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("1\n")
    assert parse(tmp_path).model.rotary_base == 500000


@pytest.mark.parametrize("family", ["", "--qk-layernorm"])
@pytest.mark.parametrize("extra", ["", ROPE, "--norm-epsilon 3e-5 --kv-channels 32", "--num-query-groups 4"])
def test_the_config_of_an_export_is_the_model_that_was_trained(family, extra):
    """Every field, also as transformers reads it."""
    model = tiny_arguments(f"{extra} {family}").model
    model.add_qkv_bias = not family
    raw = config_of_shape(model, 300, 32)
    config = parse_config(Path(), raw)
    assert shape_differences(LoadedShape(Path("config.json"), config.fields), model) == []
    transformers = pytest.importorskip("transformers", reason="needs transformers, which is not installed")
    theirs = transformers.AutoConfig.for_model(**raw)
    rope = theirs.rope_parameters if hasattr(theirs, "rope_parameters") else {"rope_theta": theirs.rope_theta}
    assert rope["rope_theta"] == model.rotary_base and theirs.rms_norm_eps == model.norm_epsilon
    assert theirs.head_dim == model.head_size and theirs.num_key_value_heads == model.query_groups
    assert (rope.get("rope_type") == "llama3") == model.use_rope_scaling


def test_an_export_does_not_take_the_config_of_another_model(tmp_path):
    """--load has another checkpoint by the time the run ends: its config.json is not that of what was trained."""
    from mindspeed_llm.conversion import config_of_run

    folder = checkpoint(tmp_path, "converted")
    arguments = parse(folder)
    assert config_of_run(arguments, None, None).raw["rope_theta"] == 500000
    shutil.rmtree(folder)
    checkpoint(folder, "converted", extra="--rotary-base 7 --norm-epsilon 0.5")
    raw = config_of_run(arguments, None, None).raw
    assert (raw["rope_theta"], raw["rms_norm_eps"], raw["rope_scaling"]["factor"]) == (500000, 1e-6, 4.0)


def test_runs_and_conversions_of_a_checkpoint_keep_its_shape(tmp_path, monkeypatch, capsys):
    """A run, another from its checkpoint without shape flags, and the conversion of the latter."""
    from mindspeed_llm.arguments.convert_arguments import parse_convert_arguments
    from mindspeed_llm.conversion import convert

    data = write_files(tmp_path / "data")
    words = ("--data-path", str(data), "--train-iters", "1", "--eval-iters", "0", "--no-shuffle")
    still = ("--lr", "0", "--min-lr", "0")
    pretrain(monkeypatch, *words, *still, *ROPE.split(), "--save", str(tmp_path / "first"))
    others = RUN[RUN.index("--device") :]
    second = (*words, "--load", str(tmp_path / "first"), "--finetune", "--save", str(tmp_path / "second"))
    pretrain(monkeypatch, *second, "--save-hf", str(tmp_path / "hf"), run=others)
    losses = [train_records(tmp_path / name / "run")[1]["loss"] for name in ("first", "second")]
    assert losses[0] == losses[1]
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert config["rope_theta"] == 500000 and config["rope_scaling"]["factor"] == 4.0
    with pytest.raises(ConfigError, match=r"--rotary-base 10000: .*first.*run\.json specifies 500000"):
        pretrain(monkeypatch, *second, "--rotary-base", "10000", "--dry-run", run=others)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text(json.dumps({**config, "rope_theta": 10000.0}))
    ends = f"--load-dir {tmp_path}/second --save-dir {tmp_path}/converted --load-model-type mg --save-model-type hf"
    with pytest.raises(ConfigError, match=r"--rotary-base 10000, but .*run\.json specifies 500000; give --hf-dir"):
        convert(parse_convert_arguments(f"{ends} --hf-dir {tmp_path}/other".split()))
    convert(parse_convert_arguments(f"{ends} --hf-dir {tmp_path}/hf".split()))
    shutil.rmtree(tmp_path / "first")
    capsys.readouterr()
    pretrain(monkeypatch, *second, "--train-iters", "2", run=others)
    assert list(train_records(tmp_path / "second" / "run")) == [1, 2], "a run goes on when its --load is gone"
