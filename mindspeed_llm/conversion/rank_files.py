"""Read and write per-rank checkpoint files (the older Megatron layout, which MindSpeed-LLM uses).

    iter_0000001/mp_rank_00/model_optim_rng.pt          one pipeline stage: mp_rank_TT
    iter_0000001/mp_rank_01_003/model_optim_rng.pt      tensor-parallel rank 1 of pipeline stage 3: mp_rank_TT_PPP

Each file numbers its layers from 0. With virtual pipeline stages a file contains model0, model1, …: with 2 stages of 2
virtual stages each, stage 0 has the first and the third quarter of the layers. Such files are read as if each part were
a separate pipeline stage; they are not written. The files are read by `torch_file_reader.py` without unpickling. What
Megatron saves beside the weights (its arguments, RNG states, the optimizer state) is ignored.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from mindspeed_llm.conversion.checkpoint_index import TRUST
from mindspeed_llm.conversion.hugging_face_weights import raise_problems
from mindspeed_llm.conversion.pickle_reader import ForbiddenNameError, PickleError
from mindspeed_llm.conversion.tensor_catalogue import CatalogueTensor, TensorCatalogue
from mindspeed_llm.conversion.tensor_mapping import shard, shard_shape, unshard
from mindspeed_llm.conversion.tensor_streams import as_bytes, read_ahead
from mindspeed_llm.conversion.torch_file_reader import OF_MEGATRON, StoredTensor, TorchFile
from mindspeed_llm.errors import CheckpointError
from mindspeed_llm.families import MCORE_LAYER
from mindspeed_llm.storage.uncached_file import StreamedFile, drop_cached_pages

FILE = "model_optim_rng.pt"
RANK = re.compile(r"mp_rank_(\d{2})(?:_(\d{3}))?")
# Names of the same weights in the layers of TransformerEngine, which fuse a norm with the linear layer that follows.
FUSED_NAMES = {
    "self_attention.linear_qkv.layer_norm_": "input_layernorm.",
    "mlp.linear_fc1.layer_norm_": "pre_mlp_layernorm.",
}


@dataclass(frozen=True)
class RankLayout:
    """Layout of per-rank checkpoint files.

    Attributes:
        tensor_parallel: tensor-parallel size.
        stages: number of pipeline stages.
        vocabulary_rows: rows of the padded vocabulary over all ranks.
    """

    tensor_parallel: int
    stages: int
    vocabulary_rows: int


def holds_rank_files(folder: Path) -> bool:
    """Return whether an iter_ directory contains per-rank checkpoint files."""
    return any(RANK.fullmatch(path.name) for path in folder.glob("mp_rank_*"))


def stage_layers(layers: int, stages: int, stage: int) -> range:
    """Return the numbers of the layers of one pipeline stage.

    Args:
        layers: number of layers of the model; a multiple of `stages`.
        stages: number of pipeline stages.
        stage: number of the stage, from 0.
    """
    count = layers // stages
    return range(stage * count, (stage + 1) * count)


def local_name(tensor: CatalogueTensor, first_layer: int) -> str:
    """Return the name of a tensor in the file of a rank, where layers are numbered from the first of the stage."""
    if tensor.layer is None:
        return tensor.name
    rest = tensor.name.removeprefix(MCORE_LAYER.format(tensor.layer))
    return MCORE_LAYER.format(tensor.layer - first_layer) + rest


def tensors_of_stage(catalogue: TensorCatalogue, stages: int, stage: int) -> list[CatalogueTensor]:
    """Return the tensors of one pipeline stage.

    The copy of tied embeddings, which the last stage has as output layer, is not included.

    Args:
        catalogue: tensors of the model.
        stages: number of pipeline stages.
        stage: number of the stage, from 0.
    """
    own = stage_layers(catalogue.layers, stages, stage)
    last = stage == stages - 1
    return [
        tensor
        for tensor in catalogue.tensors
        if (tensor.layer in own if tensor.layer is not None else (stage == 0) if _is_first(tensor) else last)
    ]


def _is_first(tensor: CatalogueTensor) -> bool:
    return tensor.name.startswith("embedding.")


def write_rank_files(
    folder: Path,
    catalogue: TensorCatalogue,
    read: Callable[[CatalogueTensor], torch.Tensor],
    layout: RankLayout,
    dtype: torch.dtype,
    done: Callable[[int], None],
) -> None:
    """Write one file per rank. Each tensor is read once, and its parts are written into the files of all ranks.

    Args:
        folder: existing iter_ directory.
        catalogue: tensors to write.
        read: returns the full tensor of megatron-core in `dtype`, such as [output, input] for a linear layer.
        layout: layout of the files.
        dtype: dtype of all tensors.
        done: progress callback; it receives the size of each written tensor in bytes.
    """
    ranks = layout.tensor_parallel
    for stage in range(layout.stages):
        first_layer = stage_layers(catalogue.layers, layout.stages, stage).start
        named = {local_name(t, first_layer): t for t in tensors_of_stage(catalogue, layout.stages, stage)}
        # With tied embeddings the last of several stages has its own copy of the embedding as output layer.
        if catalogue.tied and layout.stages > 1 and stage == layout.stages - 1:
            named["output_layer.weight"] = catalogue.tensors[0]
        shapes = {name: shard_shape(tensor, ranks, layout.vocabulary_rows) for name, tensor in named.items()}
        suffix = "" if layout.stages == 1 else f"_{stage:03d}"
        paths = [folder / f"mp_rank_{rank:02d}{suffix}" / FILE for rank in range(ranks)]
        # torch.save needs all tensors of a file in memory. The files are therefore created without values and filled
        # in one tensor at a time.
        offsets = [_create_file(path, shapes, dtype) for path in paths]
        with ExitStack() as stack:
            files = [stack.enter_context(StreamedFile(path, "r+b")) for path in paths]
            for (name, tensor), value in read_ahead(lambda item: read(item[1]), named.items()):
                for rank in range(ranks):
                    part = shard(tensor, value, rank, ranks, layout.vocabulary_rows)
                    assert tuple(part.shape) == shapes[name] and part.dtype == dtype, name
                    files[rank].seek(offsets[rank][name])
                    files[rank].write(as_bytes(part))
                # The copy of a tied embedding is not part of the total that the progress refers to.
                if name == tensor.name or tensor.layer is not None:
                    done(value.nbytes)


def _create_file(path: Path, shapes: dict[str, tuple[int, ...]], dtype: torch.dtype) -> dict[str, int]:
    """Save a model of these shapes without values, and return the offset of each tensor in the file in bytes."""
    path.parent.mkdir()
    with FakeTensorMode():
        model = {name: torch.empty(shape, dtype=dtype) for name, shape in shapes.items()}
    with torch.serialization.skip_data(materialize_fake_tensors=True):
        torch.save({"checkpoint_version": 3.0, "iteration": 1, "model": model}, path)
    file = TorchFile(path)
    return {name: file.tensor(described).start for name, described in file.content["model"].items()}


class RankFileWeights:
    """Weights in the per-rank checkpoint files of all model-parallel ranks.

    Args:
        folder: an iter_ directory.
        catalogue: tensors of the model.
        once: whether each tensor is read once and only by this process; see `HuggingFaceWeights`.

    Attributes:
        folder: the iter_ directory.
        catalogue: tensors of the model.
        tensor_parallel: tensor-parallel size of the files.
        stages: number of pipeline stages of the files, virtual stages included.
        dtypes: dtype of the embedding and of the tensors of the first layer, by name.

    Raises:
        CheckpointError: the file of a rank is missing or damaged, or tensors are missing, unexpected or of another
            shape.
    """

    def __init__(self, folder: Path, catalogue: TensorCatalogue, once: bool = False) -> None:
        self.folder, self.catalogue, self._once = folder, catalogue, once
        ranks = {}
        for path in folder.iterdir():
            match = RANK.fullmatch(path.name)
            if match:
                ranks[int(match[1]), int(match[2] or 0)] = path / FILE
        if not ranks:
            raise CheckpointError(f"{folder}: holds no mp_rank_ directories")
        self.tensor_parallel = max(rank for rank, _ in ranks) + 1
        self._files_of_rank = max(stage for _, stage in ranks) + 1
        expected = [(rank, stage) for rank in range(self.tensor_parallel) for stage in range(self._files_of_rank)]
        raise_problems(
            folder,
            [f"the file of tensor-parallel rank {r}, stage {s} is missing" for r, s in expected if (r, s) not in ranks]
            + [f"{path} is missing" for path in ranks.values() if not path.is_file()],
        )
        self._paths = ranks
        self._files: dict[Path, TorchFile] = {}
        first = self._file(ranks[0, 0]).content
        # model0, model1, … instead of model show that the files have virtual pipeline stages, and how many.
        self._virtual = sum(f"model{number}" in first for number in range(catalogue.layers) if isinstance(first, dict))
        self.stages = self._files_of_rank * max(self._virtual, 1)
        if catalogue.layers % self.stages:
            raise CheckpointError(f"{folder}: {self.stages} pipeline stages do not divide {catalogue.layers} layers")
        positions = [(rank, stage) for stage in range(self.stages) for rank in range(self.tensor_parallel)]
        self._models = {position: self._load(*position) for position in positions}
        raise_problems(folder, self._problems())
        # The embedding and the first layer are enough: the other layers have the same dtypes.
        self.dtypes = {
            tensor.name: self._stored(tensor)[0].dtype
            for tensor in (catalogue.tensors[0], *tensors_of_stage(catalogue, catalogue.layers, 0))
        }

    def _problems(self) -> list[str]:
        """Return one line for each tensor that is missing, unexpected or of another shape."""
        problems = []
        for stage in range(self.stages):
            first = stage_layers(self.catalogue.layers, self.stages, stage).start
            names = {local_name(t, first): t for t in tensors_of_stage(self.catalogue, self.stages, stage)}
            for rank in range(self.tensor_parallel):
                path, model = self._path(rank, stage), self._models[rank, stage]
                problems += [f"missing: {name} in {path}" for name in names if name not in model]
                allowed = {*names, "output_layer.weight"} if self.catalogue.tied else set(names)
                problems += [f"not of this model: {name} in {path}" for name in model if name not in allowed]
                for name, tensor in names.items():
                    if name in model and not self._fits(tensor, model[name].shape):
                        problems.append(
                            f"{name} in {path} has the shape {list(model[name].shape)}; config.json requires "
                            f"{list(tensor.shape)} over all tensor-parallel ranks"
                        )
        return problems

    def _fits(self, tensor: CatalogueTensor, shape: tuple[int, ...]) -> bool:
        """Return whether the part of a rank has the right shape; the vocabulary may be padded."""
        full_shape = list(shape)
        if len(full_shape) != len(tensor.shape):
            return False
        if tensor.split != "whole":
            full_shape[1 if tensor.split == "columns" else 0] *= self.tensor_parallel
        if tensor.split == "vocabulary":
            return full_shape[0] >= tensor.shape[0] and tuple(full_shape[1:]) == tensor.shape[1:]
        return tuple(full_shape) == tensor.shape

    def _path(self, rank: int, stage: int) -> Path:
        # Virtual stages are dealt out in turn: stage s is in the file of pipeline rank s modulo their number.
        return self._paths[rank, stage % self._files_of_rank]

    def _file(self, path: Path) -> TorchFile:
        """Open a file, once even if it contains several virtual stages."""
        if path not in self._files:
            try:
                self._files[path] = TorchFile(path, also_allowed=OF_MEGATRON)
            except ForbiddenNameError as error:
                raise CheckpointError(
                    f"{path}: refused, loading it without weights_only could run code: {error}; {TRUST}"
                ) from None
            except (PickleError, OSError) as error:
                raise CheckpointError(
                    f"{path}: cannot be read ({error}); restore the file, or use another checkpoint"
                ) from error
        return self._files[path]

    def _load(self, rank: int, stage: int) -> dict[str, StoredTensor]:
        """Return the tensors of one rank and stage by their names without TransformerEngine, not read yet."""
        key = f"model{stage // self._files_of_rank}" if self._virtual else "model"
        path = self._path(rank, stage)
        file = self._file(path)
        if not isinstance(file.content, dict) or not isinstance(file.content.get(key), dict):
            raise CheckpointError(f"{path}: holds no {key!r}; give a file that Megatron saved")
        named = {}
        for name, value in file.content[key].items():
            if not isinstance(name, str) or not file.is_tensor(value):
                continue
            for fused_name, plain_name in FUSED_NAMES.items():
                name = name.replace(fused_name, plain_name)
            # Extra states and rotary frequencies are not weights.
            if "_extra_state" in name or name.endswith("inv_freq"):
                continue
            try:
                named[name] = file.tensor(value)
            except PickleError as error:
                raise CheckpointError(
                    f"{path}: {name[:200]} cannot be read ({error}); restore the file, or use another checkpoint"
                ) from error
        return named

    def _stored(self, tensor: CatalogueTensor) -> list[StoredTensor]:
        """Return the parts of a tensor, one per tensor-parallel rank."""
        per_stage = self.catalogue.layers // self.stages
        stage = (0 if _is_first(tensor) else self.stages - 1) if tensor.layer is None else tensor.layer // per_stage
        name = local_name(tensor, stage * per_stage)
        return [self._models[rank, stage][name] for rank in range(self.tensor_parallel)]

    def full_tensor(self, tensor: CatalogueTensor) -> torch.Tensor:
        """Read a full tensor of megatron-core from the parts of all tensor-parallel ranks.

        Args:
            tensor: one of the catalogue.

        Returns:
            Tensor [*tensor.shape], without the padding of the vocabulary.

        Raises:
            CheckpointError: a file cannot be read.
        """
        parts = []
        for stored in self._stored(tensor):
            try:
                parts.append(stored.read())
            except (OSError, RuntimeError) as error:
                raise CheckpointError(f"{stored.path}: {tensor.name} cannot be read ({error})") from error
            if self._once:
                drop_cached_pages(stored.path)
        return unshard(tensor, parts)

    def shard(self, tensor: CatalogueTensor, rank: int, ranks: int, vocabulary_rows: int) -> torch.Tensor:
        """Read the part of one tensor-parallel rank of any layout; it need not be the layout of the files.

        Args:
            tensor: one of the catalogue.
            rank: tensor-parallel rank.
            ranks: tensor-parallel size.
            vocabulary_rows: rows of the padded vocabulary over all ranks.

        Returns:
            Tensor of the shape that `shard_shape` returns, such as [rows / ranks, columns].

        Raises:
            CheckpointError: a file cannot be read.
        """
        return shard(tensor, self.full_tensor(tensor), rank, ranks, vocabulary_rows)
