"""Load the model of this project on its parallel layout."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import torch
from megatron.core.transformer.transformer_config import TransformerConfig

from mindspeed_llm.arguments.hugging_face_config import HuggingFaceConfig
from mindspeed_llm.arguments.pretrain_arguments import PretrainArguments
from mindspeed_llm.checkpoints import TrainingState, import_adapter, load_weights
from mindspeed_llm.checkpoints.import_weights import global_name
from mindspeed_llm.conversion import AdapterCatalogue, TensorCatalogue, open_adapter
from mindspeed_llm.conversion.convert_adapter import check_base
from mindspeed_llm.devices import Device
from mindspeed_llm.training.derived_settings import DerivedSettings
from mindspeed_llm.training.model_and_optimizer import build_chunks
from mindspeed_llm.training.rank_zero import run_on_rank_zero

_LAYER = re.compile(r"decoder\.layers\.\d+")  # a layer itself, which has no name within itself


@dataclass
class OwnModel:
    """The loaded model on this rank.

    Attributes:
        arguments: arguments of the job.
        device: device of this rank.
        config: configuration of megatron-core.
        bare: model chunks of this rank, without wrappers.
        catalogue: tensors of the model, or of the base model of an adapter.
        adapter: tensors of the adapter; None without one.
    """

    arguments: PretrainArguments
    device: Device
    config: TransformerConfig
    bare: list[torch.nn.Module]
    catalogue: TensorCatalogue
    adapter: AdapterCatalogue | None

    @property
    def modules(self) -> dict[str, torch.nn.Module]:
        """Modules of this rank by their names in the complete model, layers numbered from the first of the model."""
        return {
            global_name(chunk, name, tied=False): module
            for chunk in self.bare
            for name, module in chunk.named_modules()
            if not _LAYER.fullmatch(name)
        }


def load_own_model(
    arguments: PretrainArguments, device: Device, derived: DerivedSettings, folder: Path, config: HuggingFaceConfig
) -> OwnModel:
    """Build the model of this rank and load its weights, and those of --lora-load. Collective.

    Args:
        arguments: arguments of the job.
        device: device of this rank.
        derived: vocabulary, operators and attention kernel.
        folder: Hugging Face folder or checkpoint of the complete model.
        config: its shape.

    Raises:
        UserError: weights are damaged, or of another model, or the adapter was trained on another base model.
    """
    transformer, bare = build_chunks(arguments, device, derived)
    adapter, lora = None, arguments.lora
    base = TrainingState(bare, part="all" if lora.settings is None else "base")
    load_weights(folder, base, config)
    if lora.settings is not None:
        assert lora.lora_load is not None
        opened = open_adapter(lora.lora_load, config)
        record = opened.record
        if record is not None:
            run_on_rank_zero(lambda: check_base(record, folder, config))
        import_adapter(opened, TrainingState(bare, part="adapter"))
        adapter = opened.catalogue
    return OwnModel(arguments, device, transformer, bare, TensorCatalogue(config), adapter)
