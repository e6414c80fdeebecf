"""Memory and disk that a comparison needs (--dry-run), from config.json alone."""

from __future__ import annotations

from dataclasses import dataclass

from mindspeed_llm.arguments.pretrain_arguments import PretrainArguments
from mindspeed_llm.conversion.tensor_catalogue import TensorCatalogue

_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}
_GIB = 2**30


@dataclass(frozen=True)
class MemoryNeed:
    """What a comparison needs, in bytes.

    Attributes:
        parameters: number of parameters.
        weights: weights of one model in the given type.
        logits: logits of one pack in the given type and in float32.
        recomputed: inputs of all layers of one pack, which remain for the backward pass.
        disk: gradients and logits of both sides.
        float64: weights and gradients of transformers in float64.
    """

    parameters: int
    weights: int
    logits: int
    recomputed: int
    disk: int
    float64: int

    @property
    def models(self) -> int:
        """Weights and gradients of one side: only one side is in memory at a time."""
        return 2 * self.weights


def memory_need(run: PretrainArguments, packs: int, catalogue: TensorCatalogue) -> MemoryNeed:
    """Compute what a comparison needs.

    Args:
        run: arguments of the run.
        packs: number of compared packs.
        catalogue: tensors of the model.
    """
    size, slots = _BYTES[run.training.precision], run.data.seq_length
    parameters = sum(tensor.elements for tensor in catalogue.tensors)
    one_pack = slots * catalogue.config.vocab_size
    return MemoryNeed(
        parameters=parameters,
        weights=parameters * size,
        logits=one_pack * (size + 4),
        recomputed=slots * run.model.hidden_size * run.model.num_layers * size,
        # Logits of this side in packs and alone, and of transformers.
        disk=2 * parameters * size + packs * one_pack * 3 * size,
        float64=parameters * 16,
    )


def format_need(need: MemoryNeed, run: PretrainArguments) -> list[str]:
    """Return the lines of the dry run.

    Args:
        need: from `memory_need`.
        run: arguments of the run.
    """
    ranks = run.parallel.model_parallel_size
    share = f", divided by {ranks} ranks here" if ranks > 1 else ""
    return [
        f"dry run: {need.parameters:,} parameters in {run.training.precision}; no weights are read",
        f"weights and gradients of one side: {need.models / _GIB:.1f} GiB (2 × {need.weights / _GIB:.1f}){share}; "
        "transformers undivided on rank 0, after this side is freed",
        f"beside them at most: {need.logits / _GIB:.1f} GiB for the logits of a pack of {run.data.seq_length:,} slots, "
        f"{need.recomputed / _GIB:.1f} GiB for inputs of recomputed layers",
        f"together about {(need.models + need.logits + need.recomputed) / _GIB:.0f} GiB, and 1 GiB for the libraries",
        f"--scratch-dir: {need.disk / _GIB:.1f} GiB of disk",
        f"a float64 run needs {need.float64 / _GIB:.0f} GiB: it is made if that is at most half of the free memory, or "
        "with --reference-float64 always",
    ]
