"""What a run says of its speed: operations of the model, counted apart, and the share of what the device could do."""

from __future__ import annotations

import importlib

import pytest
import reference_qwen2 as reference
import torch
from tiny import batch_of, pack, tiny_arguments
from tiny_runs import pretrain, train_records, write_files
from torch.utils.flop_counter import FlopCounterMode

from mindspeed_llm.devices import Device, apply_patches


def counted(work) -> dict[str, int]:
    """Operations by kind of what `work` does, as torch counts them."""
    with FlopCounterMode(display=False) as counter:
        work()
    return {str(operator): operations for operator, operations in counter.get_flop_counts()["Global"].items()}


def test_peaks_are_known_by_name_and_never_guessed(monkeypatch):
    apply_patches("cpu")
    from mindspeed_llm.training.flops import peak_flops

    cuda = Device("cuda")
    for name, peak in (("NVIDIA H100 80GB HBM3", 989e12), ("NVIDIA H100 PCIe", 756e12), ("Some Other Device", None)):
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda index, name=name: name)
        assert peak_flops(cuda, "bf16") == peak
        assert peak_flops(cuda, "fp32") is None
    assert peak_flops(Device("cpu"), "bf16") is None


def test_utilisation_is_in_the_figures_where_the_peak_is_known(tmp_path, monkeypatch):
    apply_patches("cpu")
    trainer = importlib.import_module("mindspeed_llm.training.trainer")
    data = str(write_files(tmp_path / "data"))
    flags = ("--data-path", data, "--train-iters", "2", "--eval-iters", "0", "--run-dir")
    pretrain(monkeypatch, *flags, str(tmp_path / "unknown"))
    assert all("model_flops_utilisation" not in record for record in train_records(tmp_path / "unknown").values())
    monkeypatch.setattr(trainer, "peak_flops", lambda device, precision: 2e12)
    pretrain(monkeypatch, *flags, str(tmp_path / "known"))
    for record in train_records(tmp_path / "known").values():
        assert record["model_flops_utilisation"] == pytest.approx(record["model_tflops_per_device"] / 2)
        operations = record["model_tflops_per_device"] * 1e12 * record["step_seconds"]
        packs = 4  # of 5, 9, 1 and 12 tokens and 5 of padding, each of 32 slots
        # 162,368 weights, of which 19,200 are looked up and 19,200 are multiplied by the trained rows only.
        dense, attention = 6 * 32 * (162_368 - 2 * 19_200), 6 * (25 + 81 + 1 + 144 + 25) * 64 * 4
        expected = packs * (dense + attention) + 6 * record["trained_tokens"] * 19_200
        assert operations == pytest.approx(expected, rel=0.02), "biases and norms are not products"
        assert record["trained_share"] == record["trained_tokens"] / record["tokens"]


# Last: one_rank's process group stands until the end of the module.
@pytest.mark.parametrize("chunk_size", [0, 4])
@pytest.mark.parametrize("lengths", [(32,), (16, 16), (5, 13, 9), (2, 2, 2)], ids=str)
def test_operations_are_those_of_the_products(one_rank, lengths, chunk_size):
    """Matrix products of a step of the model, and half of the products of plain attention, sample by sample: causal
    attention looks at half of the pairs. So a pack of short samples has fewer than one long sample.

    The chunked loss has the logits twice among these products, and not the gradient of the output weight, because it
    is added in place by another operator. The logits that are computed again do not count as operations.
    """
    from mindspeed_llm.training.flops import layer_flops, output_flops

    arguments = tiny_arguments(f"--loss-chunk-size {chunk_size}")
    batch = batch_of([pack(lengths, seed=1)])
    products, attention, padded = products_of(arguments, batch, lengths)
    rows = len(batch.trained_slots) if chunk_size else batch.slots
    operations = layer_flops(arguments.model, batch.actual_seq_len)
    operations += output_flops(arguments.model, padded, rows)
    assert operations == products["aten.mm"] + attention / 2


@pytest.mark.parametrize(
    ("flags", "chunks"),
    [
        ("--recompute-granularity full --recompute-method uniform --recompute-num-layers 2", [4]),
        ("--recompute-granularity full --recompute-method block --recompute-num-layers 3", [4]),
        ("--recompute-activations", [4]),
    ],
)
def test_recomputation_adds_a_forward_pass(one_rank, flags, chunks):
    """The products of a step with and without recomputation; attention alone is no product of weights."""
    from mindspeed_llm.training.flops import ForwardFlops, recomputed_flops

    lengths = (5, 13, 9)
    batch = batch_of([pack(lengths, seed=1)])
    plain, recomputing = tiny_arguments(), tiny_arguments(flags)
    products = [products_of(arguments, batch, lengths)[0]["aten.mm"] for arguments in (plain, recomputing)]
    attention = ForwardFlops.of(plain.model, batch.actual_seq_len).attention
    added = recomputed_flops(plain.model, recomputing.training, batch.actual_seq_len, chunks)
    share = {"uniform": 1, "block": 3 / 4}.get(str(recomputing.training.recompute_method))
    assert products[1] - products[0] == added - attention * (1 if share is None else share)


def products_of(arguments, batch, lengths) -> tuple[dict[str, int], int, int]:
    """Operations of a step of the model by kind, those of plain attention, and the padded vocabulary."""
    from tiny_model import derived_of

    from mindspeed_llm.training.model_and_optimizer import setup_model_and_optimizer
    from mindspeed_llm.training.train_step import train_step

    model_and_optimizer = setup_model_and_optimizer(arguments, Device("cpu"), derived_of(arguments, 1))
    products = counted(lambda: train_step(model_and_optimizer, [batch], torch.device("cpu")))
    weights = {
        name: value.detach().double() for name, value in model_and_optimizer.state.bare_chunks()[0].named_parameters()
    }
    weights = {name: value.clone().requires_grad_() for name, value in weights.items()}

    def attend_alone() -> None:
        padding = batch.slots - sum(lengths)  # a segment like any other
        for length in (*lengths, *([padding] if padding else [])):
            x = torch.randn(length, 64, dtype=torch.float64, requires_grad=True)
            reference.attend(x, weights, "decoder.layers.0.self_attention.", reference.Shape()).sum().backward()

    attention = counted(attend_alone)["aten.bmm"] * arguments.model.num_layers
    return products, attention, model_and_optimizer.padded_vocab_size


@pytest.mark.parametrize("chunk_size", [0, 4])
@pytest.mark.parametrize(
    ("targets", "zeros"),
    [
        ("linear_qkv linear_proj linear_fc1 linear_fc2", 0),
        ("o_proj down_proj", 0),
        # linear_qkv multiplies its 64 + 32 + 32 rows by the columns of three factors, linear_fc1 96 + 96 by two.
        ("all-linear", 2 * 128 + 192),
        ("q_proj v_proj", 2 * 128 - (64 + 32)),
    ],
)
def test_operations_of_an_adapter_leave_out_the_gradients_of_frozen_weights(one_rank, targets, zeros, chunk_size):
    """The products of a step, without those with the zeros of expanded factors B and with the logits of the chunked
    loss that are computed again.
    """
    from mindspeed_llm.training.flops import layer_flops, output_flops

    lengths = (5, 13, 9)
    arguments = tiny_arguments(f"--loss-chunk-size {chunk_size} --lora-r 8 --lora-target-modules {targets}")
    batch = batch_of([pack(lengths, seed=1)])
    products, attention, padded = products_of(arguments, batch, lengths)
    rows = len(batch.trained_slots) if chunk_size else batch.slots
    operations = layer_flops(arguments.model, batch.actual_seq_len, arguments.lora.settings)
    output = output_flops(arguments.model, padded, rows, is_frozen=True)
    again = output / 2 if chunk_size else 0
    with_zeros = 3 * 2 * batch.slots * zeros * 8 * arguments.model.num_layers
    assert operations + output == products["aten.mm"] + products["aten.addmm"] - again - with_zeros + attention / 2
