"""Load the model of this project on its parallel layout."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from megatron.core.transformer.transformer_config import TransformerConfig

from mindspeed_llm.arguments.hugging_face_config import HuggingFaceConfig
from mindspeed_llm.arguments.pretrain_arguments import PretrainArguments
from mindspeed_llm.checkpoints import TrainingState, import_adapter, load_weights
from mindspeed_llm.conversion import AdapterCatalogue, TensorCatalogue, open_adapter
from mindspeed_llm.devices import Device
from mindspeed_llm.families import MCORE_LAYER
from mindspeed_llm.training.derived_settings import DerivedSettings
from mindspeed_llm.training.model_and_optimizer import build_chunks


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
        found: dict[str, torch.nn.Module] = {}
        for chunk in self.bare:
            for name, module in chunk.named_modules():
                parts = name.split(".", 3)
                if name.startswith("decoder.layers.") and len(parts) == 4:
                    number = chunk.decoder.layers[int(parts[2])].layer_number - 1  # type: ignore[union-attr, index]
                    name = MCORE_LAYER.format(number) + parts[3]
                found[name] = module
        return found


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
        CheckpointError: weights are damaged, or of another model.
    """
    transformer, bare = build_chunks(arguments, device, derived)
    adapter, lora = None, arguments.lora
    base = TrainingState(bare, part="all" if lora.settings is None else "base")
    load_weights(folder, base, config)
    if lora.settings is not None:
        assert lora.lora_load is not None
        opened = open_adapter(lora.lora_load, config)
        import_adapter(opened, TrainingState(bare, part="adapter"))
        adapter = opened.catalogue
    return OwnModel(arguments, device, transformer, bare, TensorCatalogue(config), adapter)
