"""Select how the loss is computed: chunked cross entropy of the trained slots, or dense logits of all slots."""

from __future__ import annotations

from dataclasses import dataclass

from mindspeed_llm.arguments.bounds import AUTO
from mindspeed_llm.arguments.training_arguments import TrainingArguments

# Measured by benchmarks/loss.py: with more rows per chunk the loss is not faster, and its memory grows.
CHUNK_ROWS = 512
# Measured as well: the chunked loss takes about 0.53 of the time of the dense one with 38 % of the tokens trained and
# 1.27 with all of them, so both are equal at about 77 %.
DENSE_FROM_SHARE = 0.8
# Memory that the dense loss may take with `auto`: the logits of a micro-batch in float32, on one rank.
DENSE_BYTES = 2**30


@dataclass(frozen=True)
class LossChoice:
    """How the loss of a run is computed.

    Attributes:
        chunk_size: trained slots per chunk; 0 for the dense loss.
        reason: why, for the start table.
    """

    chunk_size: int
    reason: str

    def __str__(self) -> str:
        if self.chunk_size == 0:
            return f"dense logits of all slots: {self.reason}"
        return f"chunks of {self.chunk_size:,} trained slots: {self.reason}"


def select_loss(
    training: TrainingArguments, slots: int, vocabulary: int, tensor_parallel: int, trained_share: float | None
) -> LossChoice:
    """Select the loss computation of --loss-chunk-size. All ranks select the same one.

    Args:
        training: flags of the loss.
        slots: slots of a micro-batch.
        vocabulary: rows of the output layer, over all ranks.
        tensor_parallel: number of tensor-parallel ranks.
        trained_share: trained tokens ÷ tokens of the data; None if it is not known.
    """
    if training.loss_chunk_size != AUTO:
        return LossChoice(training.loss_chunk_size, f"--loss-chunk-size {training.loss_chunk_size}")
    if trained_share is None:
        return LossChoice(CHUNK_ROWS, "the share of trained tokens is not known")
    share = f"{100 * trained_share:.1f} % of the tokens are trained"
    if trained_share < DENSE_FROM_SHARE:
        return LossChoice(CHUNK_ROWS, share)
    logits = slots * vocabulary // tensor_parallel * 4
    if logits > DENSE_BYTES:
        return LossChoice(CHUNK_ROWS, f"{share}, but the logits would take {logits / 2**30:.1f} GiB")
    return LossChoice(0, share)
