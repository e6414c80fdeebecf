"""GPT-2's shape from end to end: dropout on every layout, folders from the hub, runs, exports and refusals.

tests/test_conversion_parity.py and tests/test_training_layouts.py compare logits, losses and gradients on all layouts.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import reference_gpt2
import torch
from dropout_program import CASES, LENGTHS, RATE, RECOMPUTED, batch_of_replica
from four_ranks import RANKS, run_four_ranks
from hugging_face_models import make_model, reference_logits, samples
from reference_qwen2 import Shape
from safetensors.torch import load_file, save_file
from thread_counts import assert_threads_end
from tiny import GPT2_SHAPE, SHAPE
from tiny_runs import RUN, pretrain, train_records, write_files

from mindspeed_llm.adapters import LoraSettings
from mindspeed_llm.arguments.hugging_face_config import read_config
from mindspeed_llm.arguments.pretrain_parser import parse_pretrain_arguments
from mindspeed_llm.conversion import AdapterCatalogue, HuggingFaceWeights, TensorCatalogue
from mindspeed_llm.errors import ConfigError
from mindspeed_llm.indexed_dataset import IndexedReader
from mindspeed_llm.manifest import column_prefix

GPT2_RUN = RUN.replace(SHAPE, GPT2_SHAPE)
LAYERS = 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("dropout")


@pytest.fixture(scope="module")
def dropped(folder) -> dict[str, dict[tuple[int, int, int], dict[str, Any]]]:
    """Case → (tensor, data, pipeline rank) → loss, masks and gradients of a step with dropout."""
    run_four_ranks("dropout_program", folder, [folder / f"done{rank}" for rank in range(RANKS)])
    found: dict[str, dict] = {}
    for name, (ranks, _) in {**CASES, **RECOMPUTED}.items():
        loaded = [torch.load(folder / f"{name} {rank}.pt", weights_only=True) for rank in range(ranks)]
        found[name] = {tuple(one.pop("place")): one for one in loaded}
    return found


def masks_of_model(ranks: dict, replica: int, sequence_parallel: bool) -> list[torch.Tensor]:
    """Masks [T, hidden] of the embedding and of both branches of each layer, put together from the ranks' parts."""
    stages = range(1 + max(stage for _, _, stage in ranks))
    tensor_ranks = range(1 + max(rank for rank, _, _ in ranks)) if sequence_parallel else (0,)
    masks = []
    for stage in stages:
        parts = [ranks[rank, replica, stage]["masks"] for rank in tensor_ranks]
        masks += [torch.cat(same).squeeze(1) for same in zip(*parts, strict=True)]
    assert len(masks) == 1 + 2 * LAYERS
    return masks


@pytest.mark.parametrize("name", CASES)
def test_masks_are_equal_where_activations_are_replicated(dropped, name):
    ranks = dropped[name]
    for (rank, replica, stage), one in ranks.items():
        for number, mask in enumerate(one["masks"]):
            if rank > 0:
                same = torch.equal(mask, ranks[0, replica, stage]["masks"][number])
                assert same == ("sequence parallel" not in name), (rank, number)
            if replica > 0:
                assert not torch.equal(mask, ranks[rank, 0, stage]["masks"][number]), "replicas have different samples"
    # No two masks of a rank are alike, nor those of two pipeline stages.
    own = [mask for (rank, replica, _), one in ranks.items() for mask in one["masks"] if (rank, replica) == (0, 0)]
    assert all(not torch.equal(a, b) for at, a in enumerate(own) for b in own[:at])


@pytest.mark.parametrize("name", CASES)
def test_loss_and_gradients_are_those_of_the_reference_with_the_same_masks(dropped, name):
    """In float64, unsharded, one sample at a time: where dropout is applied, with which factor, and its gradient."""
    ranks = dropped[name]
    weights = {key: value.double().requires_grad_() for key, value in dropped["tp1"][0, 0, 0]["weights"].items()}
    total, count, kept = torch.zeros((), dtype=torch.float64), 0, []
    for replica in range(1 + max(replica for _, replica, _ in ranks)):
        batch = batch_of_replica(replica)
        masks = masks_of_model(ranks, replica, "sequence parallel" in name)
        kept += masks
        start = 0
        for length in LENGTHS:
            at = slice(start, start + length)
            factors = [mask[at].double() / (1 - RATE) for mask in masks]
            shape = Shape(groups=4, epsilon=1e-5)
            logits = reference_gpt2.logits_of(batch.tokens[0, at], weights, shape, factors)
            losses = torch.nn.functional.cross_entropy(logits, batch.labels[0, at], reduction="none")
            total = total + (losses * (batch.loss_weights[0, at] > 0)).sum()
            count += int((batch.loss_weights[0, at] > 0).sum())
            start += length
    loss = total / count
    loss.backward()
    own = ranks[0, 0, 0]
    assert own["loss"] == pytest.approx(float(loss.detach()), rel=1e-6)
    for key, weight in weights.items():
        assert float((own["gradients"][key] - weight.grad).norm() / weight.grad.norm()) < 1e-5, key
    # The factor makes up for what is dropped, so that the expected value is that without dropout.
    share = torch.cat([mask.flatten() for mask in kept]).double()
    assert abs(float(share.mean()) - (1 - RATE)) < 5 * (RATE * (1 - RATE) / len(share)) ** 0.5


@pytest.mark.parametrize("name", [name.removesuffix(", full recompute") for name in RECOMPUTED])
def test_recomputed_layers_draw_the_same_masks(dropped, name):
    """Loss and every gradient bit for bit."""
    recomputed = dropped[f"{name}, full recompute"]
    for place, one in dropped[name].items():
        other = recomputed[place]
        assert one["loss"] == other["loss"]
        assert one["gradients"].keys() == other["gradients"].keys()
        assert all(torch.equal(value, other["gradients"][key]) for key, value in one["gradients"].items())
        assert len(other["masks"]) > len(one["masks"]), "something was recomputed"


def test_process_groups_of_a_finished_case_are_gone(dropped, folder):
    assert_threads_end(folder)


def test_the_reference_is_transformers_model(tmp_path):
    """The reference of the layouts, in float64, from weights that this project has joined."""
    pytest.importorskip("transformers", reason="needs transformers, which is not installed")
    model = make_model("GPT-2", tmp_path).double()
    config = read_config(tmp_path)
    weights = HuggingFaceWeights(tmp_path)
    joined = {tensor.name: weights.full_tensor(tensor).double() for tensor in TensorCatalogue(config).tensors}
    shape = Shape(groups=4, epsilon=1e-5, vocabulary=config.vocab_size)
    for ids, theirs in zip(samples(), reference_logits(model), strict=True):
        assert float((reference_gpt2.logits_of(ids, joined, shape) - theirs).abs().max()) < 1e-12


def test_a_folder_saved_without_the_output_layer(tmp_path):
    """As OpenAI's weights are on the hub: names without 'transformer.', and the causal masks beside the weights."""
    pytest.importorskip("transformers", reason="needs transformers, which is not installed")
    make_model("GPT-2", tmp_path / "complete")
    (tmp_path / "bare").mkdir()
    shutil.copy(tmp_path / "complete" / "config.json", tmp_path / "bare")
    bare = {key.removeprefix("transformer."): value for key, value in weights_in(tmp_path / "complete").items()}
    masks = {f"h.{layer}.attn.bias": torch.ones(1, 1, 128, 128).tril() for layer in range(LAYERS)}
    save_file(bare | masks, tmp_path / "bare" / "model.safetensors", metadata={"format": "pt"})
    catalogue = TensorCatalogue(read_config(tmp_path / "bare"))
    complete, opened = (HuggingFaceWeights(tmp_path / name) for name in ("complete", "bare"))
    for weights in (complete, opened):
        weights.check(catalogue)
    for tensor in catalogue.tensors:
        assert torch.equal(opened.full_tensor(tensor), complete.full_tensor(tensor)), tensor.name
        assert torch.equal(opened.shard(tensor, 1, 2, 302), complete.shard(tensor, 1, 2, 302)), tensor.name


def weights_in(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_files(tmp_path_factory.mktemp("data") / "alpaca")


def test_a_run_is_exported_as_transformers_computes_it(tmp_path, data, monkeypatch):
    """From random weights, with dropout; the loss of the last evaluation is that of the exported model."""
    transformers = pytest.importorskip("transformers", reason="needs transformers, which is not installed")
    words = ("--train-data-path", str(data), "--valid-data-path", str(data), "--hidden-dropout", "0.2")
    run = GPT2_RUN.replace("--split 80,20,0", "")
    exported = ("--save", str(tmp_path / "save"), "--save-hf", str(tmp_path / "hf"))
    pretrain(monkeypatch, *words, *exported, run=run)
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert (config["model_type"], config["n_positions"], config["resid_pdrop"]) == ("gpt2", 40, 0.2)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf", dtype=torch.float64).eval()
    lines = [json.loads(line) for line in (tmp_path / "save/run/metrics.jsonl").read_text().splitlines()]
    held_out = [line for line in lines if line["kind"] == "eval"][-1]
    assert loss_of_packs(model, data, 4) == pytest.approx(held_out["loss"], rel=1e-6)

    # From the export, whose config.json gives the shape, without an update: the same weights bit for bit.
    shapeless = run.replace(GPT2_SHAPE, "")
    again = ("--load", str(tmp_path / "hf"), "--finetune", "--lr", "0", "--min-lr", "0", "--train-iters", "1")
    pretrain(
        monkeypatch, *words, *again, "--save", str(tmp_path / "b"), "--save-hf", str(tmp_path / "c"), run=shapeless
    )
    before, after = weights_in(tmp_path / "hf"), weights_in(tmp_path / "c")
    assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)


def loss_of_packs(model: Any, data: Path, count: int) -> float:
    """Mean loss of the trained tokens of the first packs of a file, each sample by itself."""
    files = {name: IndexedReader(column_prefix(data, name)) for name in ("input_ids", "attention_mask", "labels")}
    total, trained = 0.0, 0
    for pack in range(count):
        ids, numbers, labels = (torch.from_numpy(reader[pack].astype("int64")) for reader in files.values())
        for number in range(1, int(numbers.max()) + 1):
            own, targets = ids[numbers == number], labels[numbers == number][1:]
            if bool((targets != -100).any()):
                with torch.no_grad():
                    logits = model(own[None]).logits[0, :-1]
                total += float(torch.nn.functional.cross_entropy(logits, targets, reduction="sum"))
                trained += int((targets != -100).sum())
    return total / trained


def test_a_stopped_run_goes_on_bit_for_bit(tmp_path, data, monkeypatch):
    """With dropout and recomputation."""
    recompute = "--recompute-granularity full --recompute-method uniform --recompute-num-layers 1"
    words = ("--data-path", str(data), "--hidden-dropout", "0.2", *recompute.split(), "--save-interval", "3")
    pretrain(monkeypatch, *words, "--save", str(tmp_path / "straight"), run=GPT2_RUN)
    shutil.copytree(tmp_path / "straight", tmp_path / "stopped")
    shutil.rmtree(tmp_path / "stopped" / "iter_0000006")
    (tmp_path / "stopped" / "latest_checkpointed_iteration.txt").write_text("3\n")
    pretrain(monkeypatch, *words, "--save", str(tmp_path / "stopped"), run=GPT2_RUN)
    straight, stopped = (train_records(tmp_path / name / "run") for name in ("straight", "stopped"))
    for iteration in (4, 5, 6):
        for key in ("loss", "grad_norm"):
            assert stopped[iteration][key] == straight[iteration][key], (iteration, key)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    pytest.importorskip("transformers", reason="needs transformers, which is not installed")
    folder = tmp_path_factory.mktemp("gpt2")
    make_model("GPT-2", folder)  # with 128 positions
    return folder


def parse(model: Path, *words: str) -> Any:
    others = GPT2_RUN.replace(GPT2_SHAPE, "").replace("--device cpu", "")
    return parse_pretrain_arguments([*others.split(), "--data-path", "none", "--load", str(model), *words], 1)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--seq-length 129", r"--seq-length 129 is more than --max-position-embeddings 128, the rows of the table"),
        ("--max-position-embeddings 64", r"--max-position-embeddings 64: .*config.json specifies 128"),
        ("--max-position-embeddings 256", r"--max-position-embeddings 256: .*config.json specifies 128"),
        ("--swiglu", r"--swiglu: .*config.json specifies a model without it"),
        ("--disable-bias-linear", r"--disable-bias-linear: .*config.json specifies a model without it"),
        ("--normalization RMSNorm", r"--normalization RMSNorm: .*config.json specifies LayerNorm"),
        ("--position-embedding-type rope", r"--position-embedding-type rope: .*specifies learned_absolute"),
        ("--lora-target-modules all-linear", r"--lora-target-modules needs --swiglu: adapters .* GPT-2"),
    ],
)
def test_flags_that_do_not_fit_the_model_are_refused(model, words, message):
    with pytest.raises(ConfigError, match=message):
        parse(model, *words.split())


def test_a_bias_of_query_key_and_value_is_part_of_the_model(model):
    assert parse(model, "--add-qkv-bias").model.has_qkv_bias and parse(model).model.has_qkv_bias


def test_adapters_are_refused(model):
    with pytest.raises(ConfigError, match="adapters of models of the family gpt2 are not supported"):
        AdapterCatalogue(LoraSettings(("q_proj",), 4, 8.0), read_config(model))


@pytest.mark.parametrize(
    ("flags", "missing"),
    [
        ("--swiglu", ["a model without --swiglu"]),
        ("--disable-bias-linear", ["a model without --disable-bias-linear"]),
        (
            "--group-query-attention --num-query-groups 2 --normalization RMSNorm",
            ["--normalization LayerNorm", "as many query groups as attention heads"],
        ),
        ("--kv-channels 8", ["a head size of --hidden-size / --num-attention-heads"]),
        ("--position-embedding-type rope", ["--normalization RMSNorm", "--swiglu", "--disable-bias-linear"]),
    ],
)
def test_what_no_family_has_is_not_exported(flags, missing):
    from mindspeed_llm.conversion import config_of_shape

    words = f"{GPT2_RUN} --data-path none {flags}".replace("--device cpu", "").split()
    with pytest.raises(ConfigError) as refusal:
        config_of_shape(parse_pretrain_arguments(words, 1).model, 300, 40)
    assert len(refusal.value.problems) == len(missing)
    assert all(
        f"--save-hf needs {one}:" in problem for one, problem in zip(missing, refusal.value.problems, strict=True)
    )


def test_counted_operations_are_those_of_transformers(model):
    """Products of a forward pass without attention, whose causal half this project counts and transformers does not."""
    transformers = pytest.importorskip("transformers", reason="needs transformers, which is not installed")
    from torch.utils.flop_counter import FlopCounterMode

    # It imports megatron.core, which conftest.py finds here and patches before any test.
    from mindspeed_llm.training.flops import layer_flops, output_flops

    shape, length = read_config(model).model, 50
    theirs = transformers.AutoModelForCausalLM.from_pretrained(model, attn_implementation="eager")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        theirs(torch.zeros(1, length, dtype=torch.int64))
    counted = sum(count for name, count in counter.get_flop_counts()["Global"].items() if "bmm" not in str(name))
    attention = 2 * length**2 * shape.hidden_size * shape.num_layers
    own = layer_flops(shape, [length]) / 3 - attention + output_flops(shape, int(shape.vocab_size or 0), length) / 3
    assert own == counted
