"""Virtual tokens in peft's form: one tensor `prompt_embeddings` in place of the tensors that are trained.

prompt     the trained embeddings [p, H]
p-tuning   what the encoder computes [p, H]; the encoder itself is not part of a folder
prefix     [p, 2 · layers · K], its columns ordered by layer, key before value, query group, element
"""

from __future__ import annotations

import torch

from mindspeed_llm.adapters import VirtualTokenSettings
from mindspeed_llm.conversion.adapter_catalogue import PROMPT_EMBEDDINGS, AdapterCatalogue
from mindspeed_llm.conversion.hugging_face_weights import HuggingFaceWeights
from mindspeed_llm.conversion.model_weights import FullWeights
from mindspeed_llm.conversion.tensor_catalogue import CatalogueTensor
from mindspeed_llm.conversion.tensor_mapping import shard


class PromptFolderWeights:
    """The virtual tokens of a peft folder, as the tensors of megatron-core.

    Args:
        weights: tensors of the folder.
        catalogue: tensors of the adapter.

    Attributes:
        dtypes: dtype of each tensor of the folder.
    """

    def __init__(self, weights: HuggingFaceWeights, catalogue: AdapterCatalogue) -> None:
        self._weights, self.dtypes = weights, weights.dtypes
        # The order of a prefix's tensors is that of the columns.
        self._numbers = {tensor.name: number for number, tensor in enumerate(catalogue.tensors)}

    def full_tensor(self, tensor: CatalogueTensor) -> torch.Tensor:
        """Read embeddings [p, H], or the keys or values [p, K] of a layer.

        Args:
            tensor: one of the catalogue.
        """
        width = tensor.shape[1]
        first = self._numbers[tensor.name] * width
        return self._weights.read(PROMPT_EMBEDDINGS)[:, first : first + width].contiguous()

    def shard(self, tensor: CatalogueTensor, rank: int, ranks: int, vocabulary_rows: int = 0) -> torch.Tensor:
        """Read the part of one tensor-parallel rank, [p, columns / ranks] of a prefix.

        Args:
            tensor: one of the catalogue.
            rank: tensor-parallel rank.
            ranks: tensor-parallel size.
            vocabulary_rows: not used.
        """
        return shard(tensor, self.full_tensor(tensor), rank, ranks, vocabulary_rows)


class PromptEmbeddings:
    """The tensor of a folder with virtual tokens, computed from the tensors of megatron-core.

    Args:
        catalogue: tensors of the adapter.
        weights: their values.
    """

    def __init__(self, catalogue: AdapterCatalogue, weights: FullWeights) -> None:
        self._catalogue, self._weights = catalogue, weights

    def full_tensor(self, tensor: CatalogueTensor) -> torch.Tensor:
        """Return the virtual tokens, [p, H] or [p, 2 · layers · K].

        Args:
            tensor: that of the folder.
        """
        settings = self._catalogue.settings
        assert isinstance(settings, VirtualTokenSettings)
        values = {each.name: self._weights.full_tensor(each) for each in self._catalogue.tensors}
        if settings.method != "p-tuning":
            # Of prompt tuning there is one tensor.
            return torch.cat(list(values.values()), dim=1)
        return encoded({name.removeprefix("virtual_tokens.source."): value for name, value in values.items()})


def encoded(values: dict[str, torch.Tensor]) -> torch.Tensor:
    """Compute the virtual tokens [p, H] of P-tuning in float32, or in float64 if the weights have that type.

    Args:
        values: tensors of tuning.virtual_tokens.PromptEncoder by their names.
    """
    dtype = torch.promote_types(values["embeddings"].dtype, torch.float32)
    states = values["embeddings"].to(dtype)
    for number in (1, 2, 3):
        weight, bias = (values[f"linear_{number}.{part}"].to(dtype) for part in ("weight", "bias"))
        states = torch.nn.functional.linear(states, weight, bias)
        states = torch.nn.functional.relu(states) if number < 3 else states
    return states.to(values["embeddings"].dtype)
