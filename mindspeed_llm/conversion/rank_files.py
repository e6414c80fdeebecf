"""The older layout of Megatron, which MindSpeed-LLM uses: one file for each model-parallel rank.

    iter_0000001/mp_rank_00/model_optim_rng.pt          without pipeline stages: mp_rank_TT
    iter_0000001/mp_rank_01_003/model_optim_rng.pt      tensor-parallel rank 1 of pipeline stage 3: mp_rank_TT_PPP

Each file counts its layers from 0. With virtual pipeline stages a file holds model0, model1, …: of 2 stages with 2 of
them each, stage 0 has the first and the third quarter of the layers. Such files are read as if each part were a stage
of its own; none are written. Files are read by `torch_file_reader.py`, without unpickling them; of what Megatron saves
beside the weights (its command line, random states, the optimizer) nothing is made.
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
# Names that TransformerEngine's layers give to the same weights.
FUSED_NAMES = {
    "self_attention.linear_qkv.layer_norm_weight": "input_layernorm.weight",
    "mlp.linear_fc1.layer_norm_weight": "pre_mlp_layernorm.weight",
}


@dataclass(frozen=True)
class RankLayout:
    """Sizes of a layout with one file for each rank; rows of the padded vocabulary."""

    tensor_parallel: int
    stages: int
    vocabulary_rows: int


def holds_rank_files(folder: Path) -> bool:
    """Whether an iter_ folder is of this layout."""
    return any(RANK.fullmatch(path.name) for path in folder.glob("mp_rank_*"))


def stage_layers(layers: int, stages: int, stage: int) -> range:
    """Numbers of a pipeline stage's layers."""
    count = layers // stages
    return range(stage * count, (stage + 1) * count)


def local_name(tensor: CatalogueTensor, first_layer: int) -> str:
    """Name inside a rank's file, where layers are counted from the stage's first."""
    if tensor.layer is None:
        return tensor.name
    rest = tensor.name.removeprefix(MCORE_LAYER.format(tensor.layer))
    return MCORE_LAYER.format(tensor.layer - first_layer) + rest


def tensors_of_stage(catalogue: TensorCatalogue, stages: int, stage: int) -> list[CatalogueTensor]:
    """What a pipeline stage holds; with tied embeddings the last one has a copy of the embedding as output layer."""
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
    """Write one file for each rank. Each tensor is read once, and each rank's part goes to its place in its file.

    Args:
        folder: an existing iter_ folder.
        catalogue: what is written.
        read: gives a whole tensor of megatron-core, in `dtype`.
        layout: of the ranks.
        dtype: of all tensors.
        done: called with the bytes of each tensor that is written.
    """
    ranks = layout.tensor_parallel
    for stage in range(layout.stages):
        first_layer = stage_layers(catalogue.layers, layout.stages, stage).start
        named = {local_name(t, first_layer): t for t in tensors_of_stage(catalogue, layout.stages, stage)}
        if catalogue.tied and layout.stages > 1 and stage == layout.stages - 1:
            named["output_layer.weight"] = catalogue.tensors[0]
        shapes = {name: shard_shape(tensor, ranks, layout.vocabulary_rows) for name, tensor in named.items()}
        ends = "" if layout.stages == 1 else f"_{stage:03d}"
        paths = [folder / f"mp_rank_{rank:02d}{ends}" / FILE for rank in range(ranks)]
        places = [_lay_out(path, shapes, dtype) for path in paths]
        with ExitStack() as stack:
            files = [stack.enter_context(StreamedFile(path, "r+b")) for path in paths]
            for (name, tensor), whole in read_ahead(lambda item: read(item[1]), named.items()):
                for rank in range(ranks):
                    part = shard(tensor, whole, rank, ranks, layout.vocabulary_rows)
                    assert tuple(part.shape) == shapes[name] and part.dtype == dtype, name
                    files[rank].seek(places[rank][name])
                    files[rank].write(as_bytes(part))
                if name == tensor.name or tensor.layer is not None:  # the copy of a tied embedding is no progress
                    done(whole.nbytes)


def _lay_out(path: Path, shapes: dict[str, tuple[int, ...]], dtype: torch.dtype) -> dict[str, int]:
    """Save a model of these shapes without its values; where in the file each one's bytes belong."""
    path.parent.mkdir()
    with FakeTensorMode():
        model = {name: torch.empty(shape, dtype=dtype) for name, shape in shapes.items()}
    with torch.serialization.skip_data(materialize_fake_tensors=True):
        torch.save({"checkpoint_version": 3.0, "iteration": 1, "model": model}, path)
    laid = TorchFile(path)
    return {name: laid.tensor(made).start for name, made in laid.content["model"].items()}


class RankFileWeights:
    """The weights of all model-parallel ranks' files.

    Args:
        folder: an iter_ folder.
        catalogue: of the model.
        once: as for HuggingFaceWeights.

    Raises:
        CheckpointError: a rank's file is missing or damaged, or tensors are missing, unknown or misshapen.
    """

    def __init__(self, folder: Path, catalogue: TensorCatalogue, once: bool = False) -> None:
        self.folder, self.catalogue, self._once = folder, catalogue, once
        ranks = {}
        for path in folder.iterdir():
            match = RANK.fullmatch(path.name)
            if match:
                ranks[int(match[1]), int(match[2] or 0)] = path / FILE
        if not ranks:
            raise CheckpointError(f"{folder}: holds no mp_rank_ folders")
        self.tensor_parallel = max(rank for rank, _ in ranks) + 1
        self._files_of_rank = max(stage for _, stage in ranks) + 1
        expected = [(rank, stage) for rank in range(self.tensor_parallel) for stage in range(self._files_of_rank)]
        raise_problems(
            folder,
            [f"the file of tensor rank {r}, stage {s} is not there" for r, s in expected if (r, s) not in ranks]
            + [f"{path} is not there" for path in ranks.values() if not path.is_file()],
        )
        self._paths = ranks
        self._files: dict[Path, TorchFile] = {}
        first = self._file(ranks[0, 0]).content
        self._virtual = sum(f"model{number}" in first for number in range(catalogue.layers) if isinstance(first, dict))
        self.stages = self._files_of_rank * max(self._virtual, 1)
        if catalogue.layers % self.stages:
            raise CheckpointError(f"{folder}: {self.stages} pipeline stages do not divide {catalogue.layers} layers")
        everywhere = [(rank, stage) for stage in range(self.stages) for rank in range(self.tensor_parallel)]
        self._models = {at: self._load(*at) for at in everywhere}
        raise_problems(folder, self._problems())
        self.dtypes = {
            tensor.name: self._stored(tensor)[0].dtype
            for tensor in (catalogue.tensors[0], *tensors_of_stage(catalogue, catalogue.layers, 0))
        }

    def _problems(self) -> list[str]:
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
                            f"{name} in {path} has the shape {list(model[name].shape)}; whole, config.json means "
                            f"{list(tensor.shape)}"
                        )
        return problems

    def _fits(self, tensor: CatalogueTensor, shape: tuple[int, ...]) -> bool:
        whole = list(shape)
        if len(whole) != len(tensor.shape):
            return False
        if tensor.split != "whole":
            whole[1 if tensor.split == "columns" else 0] *= self.tensor_parallel
        if tensor.split == "vocabulary":
            return whole[0] >= tensor.shape[0] and tuple(whole[1:]) == tensor.shape[1:]
        return tuple(whole) == tensor.shape

    def _path(self, rank: int, stage: int) -> Path:
        return self._paths[rank, stage % self._files_of_rank]

    def _file(self, path: Path) -> TorchFile:
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
        key = f"model{stage // self._files_of_rank}" if self._virtual else "model"
        path = self._path(rank, stage)
        file = self._file(path)
        if not isinstance(file.content, dict) or not isinstance(file.content.get(key), dict):
            raise CheckpointError(f"{path}: holds no {key!r}; give Megatron's own file")
        named = {}
        for name, value in file.content[key].items():
            if not isinstance(name, str) or not file.is_tensor(value):
                continue
            for fused, own in FUSED_NAMES.items():
                name = name.replace(fused, own)
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
        per_stage = self.catalogue.layers // self.stages
        stage = (0 if _is_first(tensor) else self.stages - 1) if tensor.layer is None else tensor.layer // per_stage
        name = local_name(tensor, stage * per_stage)
        return [self._models[rank, stage][name] for rank in range(self.tensor_parallel)]

    def full_tensor(self, tensor: CatalogueTensor) -> torch.Tensor:
        """A whole tensor of megatron-core, without the vocabulary's padding.

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
        """The part of one tensor-parallel rank of a layout of its own."""
        return shard(tensor, self.full_tensor(tensor), rank, ranks, vocabulary_rows)
