"""All tensors of an adapter, with their names in megatron-core and in the folder of the adapter."""

from __future__ import annotations

from collections.abc import Iterator

from mindspeed_llm.adapters import (
    SHARED,
    AdapterSettings,
    BottleneckSettings,
    LayerAdapter,
    LoraSettings,
    VirtualTokenSettings,
)
from mindspeed_llm.arguments.hugging_face_config import HuggingFaceConfig
from mindspeed_llm.conversion.tensor_catalogue import CatalogueTensor, TensorCatalogue
from mindspeed_llm.errors import ConfigError
from mindspeed_llm.families import MCORE_LAYER, Form, Split

PEFT_PREFIX = "base_model.model."
# The only tensor of a folder with virtual tokens, and its name there.
PROMPT_EMBEDDINGS = "prompt_embeddings"
# Module of megatron-core after which there is a bottleneck adapter → module of transformers with the same output.
BOTTLENECK_PLACES = {"self_attention.linear_proj": "self_attn", "mlp.linear_fc2": "mlp"}


class AdapterCatalogue(TensorCatalogue):
    """All tensors of an adapter.

    With r as the rank, layer N has for LoRA on the projections q_proj and o_proj

        decoder.layers.N.self_attention.linear_qkv.lora_A.q_proj    [r, H]    whole on each tensor-parallel rank
        decoder.layers.N.self_attention.linear_qkv.lora_B.q_proj    [Q, r]    divided by rows
        decoder.layers.N.self_attention.linear_proj.lora_A.o_proj   [r, Q]    divided by columns
        decoder.layers.N.self_attention.linear_proj.lora_B.o_proj   [H, r]    whole

    The projections of a linear layer that share one A have `lora_A.shared` instead; peft has equal copies of it.

    With p virtual tokens, and m as the size of a bottleneck, the other methods have

        prompt     virtual_tokens.source.embeddings                                     [p, H]    whole
        p-tuning   virtual_tokens.source.embeddings, linear_1, linear_2, linear_3       whole
        prefix     decoder.layers.N.self_attention.core_attention.prefix_key, _value    [p, K]    divided by columns
        adapter    decoder.layers.N.self_attention.linear_proj.bottleneck.down.weight   [m, H]    whole
                   … .bottleneck.up.weight [H, m], the biases, and the same after mlp.linear_fc2

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

    def __init__(self, settings: AdapterSettings, config: HuggingFaceConfig) -> None:
        if not config.family.features.gated_mlp:
            raise ConfigError(f"adapters of models of the family {config.family.model_type} are not supported")
        super().__init__(config)
        self.settings = settings
        if isinstance(settings, LoraSettings):
            self.tensors = [
                tensor
                for layer in range(self.layers)
                for adapter in settings.layers.values()
                for tensor in self._lora_tensors(settings.rank, adapter, layer)
            ]
        elif isinstance(settings, BottleneckSettings):
            self.tensors = [
                tensor for layer in range(self.layers) for tensor in self._bottleneck_tensors(settings.size, layer)
            ]
        elif settings.method == "prefix":
            self.tensors = [
                self._prefix_tensor(settings, layer, name)
                for layer in range(self.layers)
                for name in ("prefix_key", "prefix_value")
            ]
        else:
            self.tensors = list(self._prompt_tensors(settings))

    def folder_catalogue(self) -> TensorCatalogue:
        """Return the tensors of a folder with this adapter, which for a prefix and for P-tuning are others."""
        if not isinstance(self.settings, VirtualTokenSettings):
            return self
        catalogue = AdapterCatalogue(self.settings, self.config)
        catalogue.tensors = [self._outside(PROMPT_EMBEDDINGS, self.prompt_shape, PROMPT_EMBEDDINGS)]
        return catalogue

    @property
    def prompt_shape(self) -> tuple[int, int]:
        """Shape of the tensor of a folder with virtual tokens: [p, H], or for a prefix [p, 2 · layers · K]."""
        assert isinstance(self.settings, VirtualTokenSettings)
        is_prefix = self.settings.method == "prefix"
        columns = 2 * self.layers * self._sizes["K"] if is_prefix else self._sizes["H"]
        return self.settings.virtual_tokens, columns

    def _outside(self, name: str, shape: tuple[int, ...], folder_name: str = "") -> CatalogueTensor:
        """Return a tensor outside the layers that is whole on every rank."""
        return CatalogueTensor(name, ((folder_name or name, shape),), "same", "whole", None, self._groups)

    def _prompt_tensors(self, settings: VirtualTokenSettings) -> Iterator[CatalogueTensor]:
        """Yield the tensors of prompt tuning or P-tuning."""
        count, hidden, source = settings.virtual_tokens, self._sizes["H"], "virtual_tokens.source"
        is_encoder = settings.method == "p-tuning"
        yield self._outside(f"{source}.embeddings", (count, hidden), "" if is_encoder else PROMPT_EMBEDDINGS)
        if not is_encoder:
            return
        size = settings.encoder_width(hidden)
        for number, shape in enumerate(((size, hidden), (size, size), (hidden, size)), 1):
            yield self._outside(f"{source}.linear_{number}.weight", shape)
            yield self._outside(f"{source}.linear_{number}.bias", shape[:1])

    def _prefix_tensor(self, settings: VirtualTokenSettings, layer: int, name: str) -> CatalogueTensor:
        """Return keys or values of a prefix in one layer; a folder has those of all layers in one tensor."""
        mcore = f"{MCORE_LAYER.format(layer)}self_attention.core_attention.{name}"
        shape = (settings.virtual_tokens, self._sizes["K"])
        return CatalogueTensor(mcore, ((PROMPT_EMBEDDINGS, shape),), "same", "columns", layer, self._groups)

    def _bottleneck_tensors(self, size: int, layer: int) -> Iterator[CatalogueTensor]:
        """Yield the tensors of the bottleneck adapters of one layer."""
        hidden = self._sizes["H"]
        shapes = {
            "down.weight": (size, hidden),
            "down.bias": (size,),
            "up.weight": (hidden, size),
            "up.bias": (hidden,),
        }
        for module, place in BOTTLENECK_PLACES.items():
            mcore = f"{MCORE_LAYER.format(layer)}{module}.bottleneck"
            folder = f"{self.config.family.layer_prefix.format(layer)}{place}.adapter"
            for name, shape in shapes.items():
                parts = ((f"{folder}.{name}", shape),)
                yield CatalogueTensor(f"{mcore}.{name}", parts, "same", "whole", layer, self._groups)

    def _lora_tensors(self, rank: int, adapter: LayerAdapter, layer: int) -> list[CatalogueTensor]:
        """Return the tensors of one linear layer with LoRA, in the order of its projections."""
        linear = adapter.layer
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
