"""All tensors of an adapter: two matrices for each projection that it changes, with peft's names."""

from __future__ import annotations

from mindspeed_llm.adapters import SHARED, LayerAdapter, LoraSettings
from mindspeed_llm.arguments.hugging_face_config import HuggingFaceConfig
from mindspeed_llm.conversion.tensor_catalogue import CatalogueTensor, TensorCatalogue
from mindspeed_llm.errors import ConfigError
from mindspeed_llm.families import MCORE_LAYER, Form, Split

PEFT_PREFIX = "base_model.model."


class AdapterCatalogue(TensorCatalogue):
    """All tensors of an adapter.

    With r as the rank, layer N has for the projections q_proj and o_proj

        decoder.layers.N.self_attention.linear_qkv.lora_A.q_proj    [r, H]    whole on each tensor-parallel rank
        decoder.layers.N.self_attention.linear_qkv.lora_B.q_proj    [Q, r]    divided by rows
        decoder.layers.N.self_attention.linear_proj.lora_A.o_proj   [r, Q]    divided by columns
        decoder.layers.N.self_attention.linear_proj.lora_B.o_proj   [H, r]    whole

    The projections of a linear layer that share one A have `lora_A.shared` instead; peft has equal copies of it.

    Args:
        settings: settings of the adapter.
        config: parsed config.json of the base model.

    Attributes:
        settings: settings of the adapter.

    Raises:
        ConfigError: the family of the base model has other linear layers than the projections of an adapter.
    """

    is_adapter = True
    required_by = "the base model"

    def __init__(self, settings: LoraSettings, config: HuggingFaceConfig) -> None:
        if not config.family.features.gated_mlp:
            raise ConfigError(f"adapters of models of the family {config.family.model_type} are not supported")
        super().__init__(config)
        self.settings = settings
        self.tensors = [
            tensor
            for layer in range(self.layers)
            for adapter in settings.layers.values()
            for tensor in self._layer_tensors(adapter, layer)
        ]

    def _layer_tensors(self, adapter: LayerAdapter, layer: int) -> list[CatalogueTensor]:
        """Return the tensors of one linear layer, in the order of its projections."""
        linear, rank = adapter.layer, self.settings.rank
        mcore = f"{MCORE_LAYER.format(layer)}{linear.module}.{linear.name}"
        peft = f"{PEFT_PREFIX}{self.config.family.layer_prefix.format(layer)}{linear.hugging_face_module}"
        a_split: Split = "whole" if linear.is_column_parallel else "columns"
        b_split: Split = "rows" if linear.is_column_parallel else "whole"

        def tensor(matrix: str, factor: str, sizes: dict[str, tuple[int, ...]], split: Split) -> CatalogueTensor:
            parts = tuple((f"{peft}.{name}.{matrix}.weight", shape) for name, shape in sizes.items())
            form: Form = "copies" if factor == SHARED else "same"
            return CatalogueTensor(f"{mcore}.{matrix}.{factor}", parts, form, split, layer, self._groups)

        a_shape = (rank, self._sizes[linear.input])
        outputs = dict(zip(linear.projections, (self._sizes[letter] for letter in linear.outputs), strict=True))
        if adapter.is_shared:
            found = [tensor("lora_A", SHARED, dict.fromkeys(adapter.targets, a_shape), a_split)]
        else:
            found = [tensor("lora_A", name, {name: a_shape}, a_split) for name in adapter.targets]
        found += [tensor("lora_B", name, {name: (outputs[name], rank)}, b_split) for name in adapter.targets]
        return found
