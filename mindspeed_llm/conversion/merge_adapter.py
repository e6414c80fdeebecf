"""Merge an adapter into its base model, one tensor at a time.

For each projection W with the matrices A and B of the adapter, and s as its scale,

    W'  =  cast(W + ΔW)        ΔW = s · B A        computed in float32

bfloat16 has 8 significant bits, so that W' cannot hold a ΔW that is small compared with W. The lost part is
‖ΔW − (W' − W)‖ / ‖ΔW‖ over all projections. Merging in float32 loses almost nothing.
"""

from __future__ import annotations

import logging
import math

import torch

from mindspeed_llm.adapters import LayerAdapter, LoraSettings
from mindspeed_llm.conversion.adapter_weights import AdapterWeights
from mindspeed_llm.conversion.model_weights import PARAM_NAMES, FullWeights
from mindspeed_llm.conversion.tensor_catalogue import CatalogueTensor
from mindspeed_llm.conversion.tensor_mapping import join_parts, split_parts
from mindspeed_llm.errors import ConfigError
from mindspeed_llm.families import MCORE_LAYER

logger = logging.getLogger(__name__)

MAX_LOST = 0.1  # a larger lost part is worth a warning
ROWS = 512  # rows of a projection that are merged at a time, so that the float32 values take little memory


class MergedWeights:
    """Weights of a base model with an adapter merged into them.

    Args:
        base: weights of the base model.
        adapter: the adapter, opened for this base model.
        dtype: dtype of the merged tensors.

    Raises:
        ConfigError: the adapter is not one of LoRA.

    Attributes:
        dtype: dtype of the merged tensors.
        merged: number of merged projections that have been read.
    """

    def __init__(self, base: FullWeights, adapter: AdapterWeights, dtype: torch.dtype) -> None:
        self.dtype, self.merged = dtype, 0
        self._base, self._adapter = base, adapter
        settings = adapter.settings
        if not isinstance(settings, LoraSettings):
            raise ConfigError(
                f"{adapter.folder}: an adapter of --tuning {settings.method} cannot be merged, because it is no change "
                "of the weights; use it beside its base model"
            )
        self._scale, self._layers = settings.scale, settings.layers
        self._tensors = adapter.catalogue.by_name()
        self._change = self._lost = 0.0  # sums of squares

    def full_tensor(self, tensor: CatalogueTensor) -> torch.Tensor:
        """Read a full tensor of the base model, and merge the adapter into it.

        Args:
            tensor: one of the catalogue of the base model.

        Returns:
            Tensor [*tensor.shape] in `dtype`.
        """
        value = self._base.full_tensor(tensor)
        adapter = self._adapter_of(tensor)
        if adapter is None:
            return value.to(self.dtype)
        parts = split_parts(tensor, value)
        del value
        merged = []
        for projection, part in zip(adapter.layer.projections, parts, strict=True):
            prefix = tensor.name.removesuffix("weight")
            is_target = projection in adapter.targets
            merged.append(self._merge(part, prefix, projection, adapter) if is_target else part.to(self.dtype))
        return join_parts(tensor, merged)

    def _adapter_of(self, tensor: CatalogueTensor) -> LayerAdapter | None:
        """Return what the adapter adds to a tensor; None if it is no weight of a layer that the adapter changes."""
        if tensor.layer is None:
            return None
        inside = tensor.name.removeprefix(MCORE_LAYER.format(tensor.layer))
        layers = self._layers.values()
        return next((a for a in layers if inside == f"{a.layer.module}.{a.layer.name}.weight"), None)

    def _merge(self, weight: torch.Tensor, prefix: str, projection: str, adapter: LayerAdapter) -> torch.Tensor:
        """Return W' [output, input] of one projection, and add what it lost to the sums.

        Args:
            weight: W [output, input] of the base model.
            prefix: name of the linear layer in megatron-core, with a point at the end.
            projection: name of the projection.
            adapter: what the adapter adds to the linear layer.
        """
        factor = adapter.factors[0] if adapter.is_shared else projection
        a, b = (
            self._adapter.full_tensor(self._tensors[f"{prefix}{name}"]).float()
            for name in (f"lora_A.{factor}", f"lora_B.{projection}")
        )
        result = torch.empty_like(weight, dtype=self.dtype)
        for rows in (slice(start, start + ROWS) for start in range(0, weight.shape[0], ROWS)):
            base = weight[rows].float()
            change = (b[rows] @ a).mul_(self._scale)
            result[rows] = base + change
            self._change += _square_sum(change)
            self._lost += _square_sum(change - (result[rows] - base))
        self.merged += 1
        return result

    @property
    def lost(self) -> float:
        """Lost part of the change, from 0; 0 if the adapter changes nothing."""
        return math.sqrt(self._lost / self._change) if self._change else 0.0

    def report(self) -> None:
        """Log how much of the change the merged model holds, with a warning if more than MAX_LOST is lost."""
        name = PARAM_NAMES[self.dtype]
        if not self._change:
            logger.info(f"merged {self.merged} projections; the adapter changes nothing: all its products are 0")
            return
        logger.info(f"merged {self.merged} projections; {name} keeps {1 - self.lost:.1%} of the adapter's change")
        if self.lost > MAX_LOST:
            logger.warning(
                f"warning: {self.lost:.1%} of the adapter's change is lost, because {name} cannot hold changes that "
                "are small compared with the weights. --params-dtype fp32 keeps it; so does the adapter without merging"
            )


def _square_sum(values: torch.Tensor) -> float:
    """Return the sum of the squares of the elements of a tensor [rows, columns]."""
    return float(torch.linalg.vector_norm(values)) ** 2
