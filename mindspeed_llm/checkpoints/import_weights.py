"""Starting from weights that are not a distributed checkpoint: a Hugging Face folder, or one file for each rank of some
layout. Every rank takes its own part of each tensor, whatever the layout that wrote them."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import torch
from megatron.core import parallel_state

from mindspeed_llm.arguments.hugging_face_config import HuggingFaceConfig, read_config
from mindspeed_llm.checkpoints.training_state import TrainingState
from mindspeed_llm.conversion import HuggingFaceWeights, TensorCatalogue
from mindspeed_llm.conversion.rank_files import RankFileWeights
from mindspeed_llm.conversion.tensor_catalogue import CatalogueTensor
from mindspeed_llm.errors import CheckpointError
from mindspeed_llm.families import MCORE_LAYER


class ShardedWeights(Protocol):
    """Gives the part of one of `ranks` tensor-parallel ranks."""

    def shard(self, tensor: CatalogueTensor, rank: int, ranks: int, vocabulary_rows: int) -> torch.Tensor: ...


def import_hugging_face(folder: Path, state: TrainingState) -> None:
    """Load the model from a Hugging Face folder; the optimizer's copies of the weights follow.

    Raises:
        CheckpointError: the folder is damaged, or is not one of this model.
    """
    catalogue = TensorCatalogue(read_config(folder))
    weights = HuggingFaceWeights(folder)
    weights.check(catalogue)
    _fill(folder, catalogue, weights, state)


def import_rank_files(folder: Path, shape: HuggingFaceConfig, state: TrainingState) -> None:
    """Load the model from the older layout, `mp_rank_TT[_PPP]/`; optimizer states in it are passed over.

    Args:
        folder: an iter_ folder.
        shape: of the model.
        state: what to load into.

    Raises:
        CheckpointError: files are missing or damaged, or are not of this model.
    """
    catalogue = TensorCatalogue(shape)
    _fill(folder, catalogue, RankFileWeights(folder, catalogue), state)


def _fill(folder: Path, catalogue: TensorCatalogue, weights: ShardedWeights, state: TrainingState) -> None:
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
