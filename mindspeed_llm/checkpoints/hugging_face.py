"""Starting from a Hugging Face folder: every rank reads its own part of the weights from the files."""

from __future__ import annotations

from pathlib import Path

import torch
from megatron.core import parallel_state

from mindspeed_llm.arguments.hugging_face import read_config
from mindspeed_llm.checkpoints.state import TrainingState
from mindspeed_llm.conversion import Catalogue, HuggingFaceWeights
from mindspeed_llm.conversion.families import MCORE_LAYER
from mindspeed_llm.errors import CheckpointError


def load_hugging_face(folder: Path, state: TrainingState) -> None:
    """Load the model from a Hugging Face folder; the optimizer's copies of the weights follow.

    Raises:
        CheckpointError: the folder is damaged, or is not one of this model.
    """
    catalogue = Catalogue(read_config(folder))
    weights = HuggingFaceWeights(folder)
    weights.check(catalogue)
    tensors = catalogue.by_name()
    rank = parallel_state.get_tensor_model_parallel_rank()
    ranks = parallel_state.get_tensor_model_parallel_world_size()
    with torch.no_grad():
        for chunk in state.bare_chunks():
            for name, parameter in chunk.named_parameters():
                tensor = tensors.get(_global_name(chunk, name, catalogue.tied))
                if tensor is None:
                    raise CheckpointError(f"{folder}: this model has {name}, of which its config.json knows nothing")
                part = weights.shard(tensor, rank, ranks, parameter.shape[0] * ranks)
                if part.shape != parameter.shape:
                    raise CheckpointError(
                        f"{folder}: {tensor.name} is {list(part.shape)} here, the model's {list(parameter.shape)}"
                    )
                parameter.copy_(part)
    if state.optimizer is not None:
        state.optimizer.reload_model_params()


def _global_name(chunk: torch.nn.Module, name: str, tied: bool) -> str:
    """Name of a chunk's parameter in the whole model: layers counted from the first, one embedding if it is tied."""
    if tied and name == "output_layer.weight":
        return "embedding.word_embeddings.weight"
    if not name.startswith("decoder.layers."):
        return name
    number, rest = name.removeprefix("decoder.layers.").split(".", 1)
    layer = chunk.decoder.layers[int(number)].layer_number - 1  # type: ignore[union-attr, index]
    return MCORE_LAYER.format(layer) + rest
