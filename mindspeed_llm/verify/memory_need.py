"""Memory and disk that a comparison needs (--dry-run), from config.json alone."""

from __future__ import annotations

from dataclasses import dataclass

from mindspeed_llm.arguments.pretrain_arguments import PretrainArguments
from mindspeed_llm.conversion.adapter_catalogue import AdapterCatalogue
from mindspeed_llm.conversion.tensor_catalogue import TensorCatalogue

_GIB = 2**30
_BYTES = {"fp32": 4, "bf16": 2}
# Bytes per logit in float32 at the peak of the backward pass: the logits, their log-softmax and its gradient.
_BYTES_OF_LOSS = 12
_BYTES_IN_FLOAT64 = 8


@dataclass(frozen=True)
class MemoryNeed:
    """What a comparison needs, in bytes.

    Attributes:
        parameters: number of parameters of the model.
        weights: weights of one side in the given type.
        gradients: gradients of one side; with an adapter only its parameters have one.
        logits: logits of one pack in the given type and in float32, at the peak of the backward pass.
        recomputed: inputs of all layers of one pack, which remain for the backward pass.
        disk: gradients and logits of both sides.
        float64: weights and gradients of transformers in float64.
        disk_float64: gradients and logits of that run.
    """

    parameters: int
    weights: int
    gradients: int
    logits: int
    recomputed: int
    disk: int
    float64: int
    disk_float64: int


def memory_need(run: PretrainArguments, packs: int, catalogue: TensorCatalogue) -> MemoryNeed:
    """Compute what a comparison needs.

    Args:
        run: arguments of the run.
        packs: number of compared packs.
        catalogue: tensors of the model, or of the base model of an adapter.
    """
    size, slots, lora = _BYTES[run.training.precision], run.data.seq_length, run.lora.settings
    parameters = sum(tensor.elements for tensor in catalogue.tensors)
    adapter = 0 if lora is None else sum(t.elements for t in AdapterCatalogue(lora, catalogue.config).tensors)
    trained = adapter or parameters
    one_pack = slots * catalogue.config.vocab_size
    return MemoryNeed(
        parameters=parameters,
        weights=(parameters + adapter) * size,
        gradients=trained * size,
        logits=one_pack * (size + _BYTES_OF_LOSS),
        recomputed=slots * run.model.hidden_size * run.model.num_layers * size,
        # Logits of this side in packs and alone, and of transformers.
        disk=2 * trained * size + packs * one_pack * 3 * size,
        float64=(parameters + adapter + trained) * _BYTES_IN_FLOAT64,
        disk_float64=(trained + packs * one_pack) * _BYTES_IN_FLOAT64,
    )


def format_need(need: MemoryNeed, run: PretrainArguments) -> list[str]:
    """Return the lines of the dry run.

    Args:
        need: from `memory_need`.
        run: arguments of the run.
    """
    ranks = run.parallel.model_parallel_size
    models = need.weights + need.gradients
    share = f", divided by {ranks} ranks here" if ranks > 1 else ""
    return [
        f"dry run: {need.parameters:,} parameters in {run.training.precision}; no weights are read",
        f"weights and gradients of one side: {models / _GIB:.1f} GiB ({need.weights / _GIB:.1f} and "
        f"{need.gradients / _GIB:.1f}){share}; "
        "transformers undivided on rank 0, after this side is freed",
        f"beside them at most: {need.logits / _GIB:.1f} GiB for the logits of a pack of {run.data.seq_length:,} slots, "
        f"{need.recomputed / _GIB:.1f} GiB for inputs of recomputed layers",
        f"together about {(models + need.logits + need.recomputed) / _GIB:.0f} GiB, and 1 GiB for the libraries",
        f"--scratch-dir: {need.disk / _GIB:.1f} GiB; give a disk and not a file system in memory (tmpfs)",
        f"a float64 run needs {need.float64 / _GIB:.0f} GiB and {need.disk_float64 / _GIB:.1f} GiB of disk: it is made "
        "if that is at most half of the free memory, or with --reference-float64 always",
    ]
