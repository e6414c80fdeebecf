"""Read the weights of an adapter, from a peft folder or from a checkpoint, and write them as a peft folder."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

import torch

from mindspeed_llm.adapters import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    AdapterRecord,
    AdapterSettings,
    BaseShape,
    LoraSettings,
    VirtualTokenSettings,
    find_adapter,
)
from mindspeed_llm.adapters import peft_config as content_of_peft_config
from mindspeed_llm.arguments.hugging_face_config import HuggingFaceConfig, read_config
from mindspeed_llm.arguments.loaded_shape import read_config_shape, shape_differences, shown
from mindspeed_llm.conversion.adapter_catalogue import PEFT_PREFIX, PROMPT_EMBEDDINGS, AdapterCatalogue
from mindspeed_llm.conversion.distributed_checkpoint import DistributedWeights
from mindspeed_llm.conversion.hugging_face_weights import HuggingFaceWeights, raise_problems
from mindspeed_llm.conversion.model_assets import ModelAssets
from mindspeed_llm.conversion.model_weights import FullWeights, common_dtype
from mindspeed_llm.conversion.model_writers import write_hugging_face_folder
from mindspeed_llm.conversion.prompt_embeddings import PromptEmbeddings, PromptFolderWeights
from mindspeed_llm.conversion.tensor_catalogue import CatalogueTensor
from mindspeed_llm.errors import CheckpointError, ConfigError
from mindspeed_llm.storage.checkpoint_directory import CARRIED

# Modules outside the layers that peft can also train; they are no part of a checkpoint here.
OUTSIDE_LAYERS = ("embed_tokens", "lm_head")


@dataclass(frozen=True)
class AdapterWeights:
    """An adapter whose weights can be read.

    Attributes:
        folder: the peft folder, or the checkpoint (an iter_ directory).
        settings: settings of the adapter.
        catalogue: its tensors.
        weights: the weights, with `shard` and `full_tensor`.
        record: adapter.json of the checkpoint; None for a peft folder.
    """

    folder: Path
    settings: AdapterSettings
    catalogue: AdapterCatalogue
    weights: HuggingFaceWeights | DistributedWeights | PromptFolderWeights
    record: AdapterRecord | None

    @property
    def dtype(self) -> torch.dtype:
        """Dtype that all tensors share, else float32."""
        return common_dtype(self.weights.dtypes.values())

    def full_tensor(self, tensor: CatalogueTensor) -> torch.Tensor:
        """Read a full tensor of the adapter, [*tensor.shape]."""
        return self.weights.full_tensor(tensor)

    def shard(self, tensor: CatalogueTensor, rank: int, ranks: int, vocabulary_rows: int = 0) -> torch.Tensor:
        """Read the part of one tensor-parallel rank.

        Args:
            tensor: one of the catalogue.
            rank: tensor-parallel rank.
            ranks: tensor-parallel size.
            vocabulary_rows: not used, because no tensor of an adapter has the vocabulary as a dimension.

        Returns:
            Tensor of the shape that `shard_shape` returns, such as [rows / ranks, columns].
        """
        return self.weights.shard(tensor, rank, ranks, vocabulary_rows)


def open_adapter(
    folder: str | Path, config: HuggingFaceConfig, flag: str = "--lora-load", settings: AdapterSettings | None = None
) -> AdapterWeights:
    """Open the weights of an adapter, and check that they belong to this base model.

    Args:
        folder: a peft folder, a checkpoint that contains an adapter, or a --save directory whose tracker names one.
        config: configuration of the base model.
        flag: flag that names the directory, for messages.
        settings: settings to read a peft folder with, if they differ from its own: the same projections, with the
            names of linear layers (linear_qkv), whose projections then share one A.

    Raises:
        ConfigError: the directory contains no adapter, or one that is not supported.
        CheckpointError: the weights are missing or damaged, or the adapter was made for another model.
    """
    found = find_adapter(folder, flag)
    settings = settings or found.settings
    catalogue = AdapterCatalogue(settings, config)
    if found.record is None:
        weights = HuggingFaceWeights(found.path, single=ADAPTER_WEIGHTS)
        if isinstance(settings, LoraSettings):
            _check_names(weights)
        _check_base(weights, catalogue)
        weights.check(catalogue.folder_catalogue())
        if isinstance(settings, VirtualTokenSettings):
            return AdapterWeights(found.path, settings, catalogue, PromptFolderWeights(weights, catalogue), None)
        return AdapterWeights(found.path, settings, catalogue, weights, None)
    if settings != found.settings:
        raise ConfigError(f"{flag} {folder}: the settings differ from those of the checkpoint")
    _check_carried_config(found.path, config)
    return AdapterWeights(found.path, settings, catalogue, DistributedWeights(found.path, catalogue), found.record)


def _check_names(weights: HuggingFaceWeights) -> None:
    """Refuse tensors of an adapter that are not matrices of a projection in a layer."""
    problems = []
    for name in weights.shapes:
        outside = next((module for module in OUTSIDE_LAYERS if f".{module}." in f".{name}"), None)
        if outside is not None:
            kind = "a LoRA matrix" if ".lora_" in name else "a trained copy (modules_to_save)"
            problems.append(f"{name}: {kind} of {outside} is not supported; train without it")
        elif not name.startswith(PEFT_PREFIX):
            problems.append(f"{name}: not a name of peft, which begins with {PEFT_PREFIX}")
        elif ".lora_magnitude_vector" in name:
            problems.append(f"{name}: DoRA is not supported")
    raise_problems(weights.folder / ADAPTER_WEIGHTS, problems)


def _check_base(weights: HuggingFaceWeights, catalogue: AdapterCatalogue) -> None:
    """Refuse an adapter that was made for another model, in one line instead of one for each tensor."""
    where = f"{weights.folder}: the adapter was made for another model than {_named(catalogue.config)}"
    settings = catalogue.settings
    if isinstance(settings, VirtualTokenSettings):
        shape = weights.shapes.get(PROMPT_EMBEDDINGS)
        if shape is not None and len(shape) == 2 and shape[1] != catalogue.prompt_shape[1]:
            required = list(catalogue.prompt_shape)
            raise CheckpointError(
                f"{where}: {PROMPT_EMBEDDINGS} has the shape {list(shape)}, and it requires {required}"
            )
        return
    beginning = PEFT_PREFIX if isinstance(settings, LoraSettings) else ""
    prefix = re.escape(beginning + catalogue.config.family.layer_prefix).replace(r"\{\}", r"(\d+)")
    layers = {int(match[1]) for name in weights.shapes if (match := re.match(prefix, name))}
    if layers and max(layers) + 1 != catalogue.layers:
        raise CheckpointError(f"{where}: it has {max(layers) + 1} layers, and the base model {catalogue.layers}")
    if not isinstance(settings, LoraSettings):
        return
    rank = settings.rank
    for name, expected in catalogue.hugging_face_shapes().items():
        shape = weights.shapes.get(name)
        side = 1 if ".lora_A." in name else 0
        # A tensor of another rank is no sign of another model; `check` reports it.
        if shape is not None and len(shape) == 2 and shape[1 - side] == rank and shape != expected:
            raise CheckpointError(f"{where}: {name} has the shape {list(shape)}, and it requires {list(expected)}")


def _check_carried_config(checkpoint: Path, config: HuggingFaceConfig) -> None:
    """Refuse a checkpoint whose adapter was trained on a model of another shape."""
    carried = checkpoint / CARRIED
    if not (carried / "config.json").is_file():
        return
    shape = read_config_shape(carried, is_checkpoint=True)
    for flag, in_base, in_checkpoint in shape_differences(shape, config.model):
        raise CheckpointError(
            f"{checkpoint}: the adapter was made for another model than {_named(config)}: {flag} "
            f"{shown(in_checkpoint)}, and the base model has {shown(in_base)}"
        )


def _named(config: HuggingFaceConfig) -> str:
    """Return the folder of a config.json for messages; a config that was made from flags has none."""
    return str(config.folder) if config.folder != Path() else "the one of the flags"


def name_of_base(base: str | Path | None) -> str | None:
    """Return the base model for adapter_config.json: the absolute path of a directory, else the name as given."""
    if base is None:
        return None
    return str(Path(base).absolute()) if Path(base).is_dir() else str(base)


def assets_of_adapter(adapter: AdapterWeights, config: HuggingFaceConfig) -> ModelAssets:
    """Return the assets of the base model, with tokenizer, generation settings and chat template of the adapter.

    Args:
        adapter: the adapter.
        config: configuration of the base model.

    Raises:
        ConfigError: an asset cannot be read.
    """
    base = ModelAssets.read(config)
    carried = adapter.folder / CARRIED
    if adapter.record is None:
        return base.with_files_of_adapter(adapter.folder)
    if not (carried / "config.json").is_file() or carried == config.folder:
        return base
    theirs = ModelAssets.read(read_config(carried))
    return base.with_tokenizer(theirs.tokenizer_files).with_generation_settings_of(theirs)


def write_peft_folder(
    target: Path,
    catalogue: AdapterCatalogue,
    weights: FullWeights,
    settings: AdapterSettings,
    assets: ModelAssets | None,
    base_path: str | Path | None,
    dtype: torch.dtype,
) -> Path:
    """Write an adapter as a peft folder, with tokenizer, generation settings and chat template.

    Args:
        target: folder to write; an earlier export in it is replaced.
        catalogue: tensors of the adapter.
        weights: weights of the adapter.
        settings: settings of the adapter.
        assets: assets of the trained model; config.json of the base model is not written.
        base_path: base model, for adapter_config.json.
        dtype: dtype of the weights.

    Returns:
        `target`.

    Raises:
        CheckpointError: a tensor cannot be read, or `target` cannot be written.
        ConfigError: `target` contains something other than an earlier export.
    """
    described = content_of_peft_config(settings, name_of_base(base_path), _base_shape(catalogue.config))

    def write_assets(folder: Path) -> None:
        if assets is not None:
            assets.write(folder, has_config=False)
        (folder / ADAPTER_CONFIG).write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")

    if isinstance(settings, VirtualTokenSettings):
        weights = PromptEmbeddings(catalogue, weights)
    folder_catalogue = catalogue.folder_catalogue()
    return write_hugging_face_folder(target, folder_catalogue, weights, dtype, write_assets, "adapter → peft")


def _base_shape(config: HuggingFaceConfig) -> BaseShape:
    """Return what adapter_config.json of virtual tokens says about the base model."""
    model = config.model
    groups = model.query_groups
    return BaseShape(model.num_layers, model.hidden_size, model.num_attention_heads, groups, groups * model.head_size)
