"""What one side of the comparison computed: this project, transformers, or transformers in float64."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch

from mindspeed_llm.conversion.tensor_streams import as_bytes
from mindspeed_llm.storage.hashing import sha256_of_blocks
from mindspeed_llm.verify.tensor_folder import TensorFolder

# packed: the samples of a pack in one stream. alone: each sample in a stream of its own.
Way = Literal["packed", "alone"]
WAYS: tuple[Way, ...] = ("packed", "alone")
# Slots of the first pack whose hidden states are kept for every layer.
PROBED_SLOTS = 256


@dataclass
class Recording:
    """Everything that one side computed. Large values are on disk.

    Attributes:
        tensors: `logits/WAY/SAMPLE` [tokens, vocabulary], `hidden/WAY/TAP` [probed slots, hidden size] and
            `gradient/NAME` with Hugging Face's names.
        losses: way → number of the sample → mean loss of its trained tokens.
        step_loss: loss of the first step.
        gradient_norm: norm of its gradient.
        digests: Hugging Face name of each weight → SHA-256 of its bytes.
        frequencies: rotary frequencies, float64 [rotary size / 2]; None without rotary positions.
        epsilons: epsilon of each norm that is probed, by the name of its tap.
        tied: whether input embedding and output layer are one tensor; in transformers by config.json.
        missing: weights that the files do not have, so that transformers has initialised them.
    """

    tensors: TensorFolder
    losses: dict[Way, dict[int, float]] = field(default_factory=lambda: {way: {} for way in WAYS})
    step_loss: float = float("nan")
    gradient_norm: float = float("nan")
    digests: dict[str, str] = field(default_factory=dict)
    frequencies: torch.Tensor | None = None
    epsilons: dict[str, float] = field(default_factory=dict)
    tied: bool = False
    missing: tuple[str, ...] = ()


def digest_of(tensor: torch.Tensor) -> str:
    """Return SHA-256 of the bytes of a tensor [...]; its shape and dtype are not part of it."""
    return sha256_of_blocks((as_bytes(tensor.detach().cpu()),))  # type: ignore[arg-type]
