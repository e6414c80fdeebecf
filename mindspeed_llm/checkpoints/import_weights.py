"""Load weights that are not a distributed checkpoint: a Hugging Face folder, or Megatron's layout of one file per rank.

Every rank reads its own part of each tensor, independent of the layout that wrote the files.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import torch
from megatron.core import parallel_state

from mindspeed_llm.arguments.hugging_face_config import HuggingFaceConfig, read_config
from mindspeed_llm.checkpoints.training_state import TrainingState
from mindspeed_llm.conversion import AdapterCatalogue, AdapterWeights, HuggingFaceWeights, TensorCatalogue
from mindspeed_llm.conversion.rank_files import RankFileWeights
from mindspeed_llm.conversion.tensor_catalogue import CatalogueTensor
from mindspeed_llm.errors import CheckpointError
from mindspeed_llm.families import MCORE_LAYER
from mindspeed_llm.tuning import is_adapter_parameter


class ShardedWeights(Protocol):
    """Weights from which the part of one tensor-parallel rank can be read."""

    def shard(self, tensor: CatalogueTensor, rank: int, ranks: int, vocabulary_rows: int) -> torch.Tensor:
        """Read the part of a tensor for one tensor-parallel rank.

        Args:
            tensor: which tensor.
            rank: tensor-parallel rank.
            ranks: tensor-parallel size.
            vocabulary_rows: number of rows to which a tensor [vocabulary, ...] is padded.

        Returns:
            The part: the shape of the tensor in the model, [rows / ranks, ...] or [rows, columns / ranks] where the
            tensor is sharded.
        """
        ...


def import_hugging_face(folder: Path, state: TrainingState) -> None:
    """Load the model from a Hugging Face folder, and copy it to the main weights (float32) of the optimizer.

    Args:
        folder: the Hugging Face folder.
        state: model and optimizer to load into.

    Raises:
        CheckpointError: The folder is damaged, or contains another model.
    """
    catalogue = TensorCatalogue(read_config(folder))
    weights = HuggingFaceWeights(folder)
    weights.check(catalogue)
    _fill(folder, catalogue, weights, state)


def import_adapter(adapter: AdapterWeights, state: TrainingState) -> None:
    """Load an adapter, and copy it to the main weights (float32) of the optimizer.

    Args:
        adapter: the opened adapter.
        state: model and optimizer to load into; its part is the adapter.

    Raises:
        CheckpointError: The files are damaged, or contain an adapter of another model.
    """
    _fill(adapter.folder, adapter.catalogue, adapter, state)


def import_rank_files(folder: Path, shape: HuggingFaceConfig, state: TrainingState) -> None:
    """Load the model from the older layout, `mp_rank_TT[_PPP]/`. Optimizer states in it are ignored.

    Args:
        folder: an iter_ folder.
        shape: shape of the model.
        state: model and optimizer to load into.

    Raises:
        CheckpointError: Files are missing or damaged, or contain another model.
    """
    catalogue = TensorCatalogue(shape)
    _fill(folder, catalogue, RankFileWeights(folder, catalogue), state)


def _fill(
    folder: Path, catalogue: TensorCatalogue | AdapterCatalogue, weights: ShardedWeights, state: TrainingState
) -> None:
    """Copy this rank's part of each tensor into the model, and the model into the main weights of the optimizer."""
    tensors = catalogue.by_name()
    ranks = parallel_state.get_tensor_model_parallel_world_size()
    with torch.no_grad():
        for chunk in state.bare_chunks():
            for name, parameter in chunk.named_parameters():
                if not state.contains(name):
                    continue
                tensor = tensors.get(global_name(chunk, name, catalogue.tied))
                if tensor is None:
                    raise CheckpointError(f"{folder}: its config.json does not describe {name}, which this model has")
                # The padding of the vocabulary depends on the layout, so it can differ from that of the files.
                part = weights.shard(tensor, *_own_part(name, parameter), parameter.shape[0] * ranks)
                # copy_ would broadcast a smaller tensor.
                if part.shape != parameter.shape:
                    raise CheckpointError(
                        f"{folder}: {tensor.name} has the shape {list(part.shape)}, but {list(parameter.shape)} in "
                        "this model"
                    )
                parameter.copy_(part)
    if state.optimizer is not None:
        # The optimizer updates its main weights (float32) and overwrites the model with them after the first step.
        state.optimizer.reload_model_params()


def _own_part(name: str, parameter: torch.nn.Parameter) -> tuple[int, int]:
    """Return the part of the tensor that this rank has, and the number of parts."""
    if is_whole_factor(name, parameter):
        return 0, 1
    return (
        parallel_state.get_tensor_model_parallel_rank(),
        parallel_state.get_tensor_model_parallel_world_size(),
    )


def is_whole_factor(name: str, parameter: torch.nn.Parameter) -> bool:
    """Return whether a parameter is a factor of an adapter that every tensor-parallel rank has as a whole.

    Where the ranks do not divide the query groups, these are also factors that are divided otherwise.

    Args:
        name: name of the parameter.
        parameter: the parameter on this rank.
    """
    return is_adapter_parameter(name) and not getattr(parameter, "tensor_model_parallel", False)


def global_name(chunk: torch.nn.Module, name: str, tied: bool) -> str:
    """Return the name of a chunk's parameter in the complete model.

    Layers are numbered from the first layer of the model, not of the pipeline stage. With tied embeddings the last
    stage's copy has the name of the embedding.

    Args:
        chunk: the chunk, without wrappers.
        name: name of the parameter in the chunk.
        tied: whether input embedding and output layer are one tensor.
    """
    if tied and name == "output_layer.weight":
        return "embedding.word_embeddings.weight"
    if not name.startswith("decoder.layers."):
        return name
    number, rest = name.removeprefix("decoder.layers.").split(".", 1)
    layer = chunk.decoder.layers[int(number)].layer_number - 1  # type: ignore[union-attr, index]
    return MCORE_LAYER.format(layer) + rest
