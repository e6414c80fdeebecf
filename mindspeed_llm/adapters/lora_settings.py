"""Settings of a LoRA adapter (Hu et al. 2021, https://arxiv.org/abs/2106.09685).

A projection W [out, in] gets a product of two small matrices, of which only these are trained:

    y = W x + s · B (A x)        A [r, in], B [out, r], s = alpha / r (with rsLoRA alpha / √r)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from mindspeed_llm.adapters.projections import ALL_LINEAR, LINEAR_LAYERS, LinearLayer
from mindspeed_llm.errors import ConfigError

# Key of the matrix A that all projections of a linear layer share.
SHARED = "shared"


@dataclass(frozen=True)
class LayerAdapter:
    """What an adapter adds to one linear layer.

    Attributes:
        layer: the linear layer.
        targets: projections of the layer that the adapter changes, in the order of the layer.
        is_shared: whether all projections share one A, as in MindSpeed-LLM; otherwise each has its own, as in peft.
    """

    layer: LinearLayer
    targets: tuple[str, ...]
    is_shared: bool

    @property
    def factors(self) -> tuple[str, ...]:
        """Names of the matrices A: one for each target, or 'shared'."""
        return (SHARED,) if self.is_shared else self.targets


@dataclass(frozen=True)
class LoraSettings:
    """Settings of an adapter.

    Attributes:
        targets: names of linear layers (linear_qkv: one A for all of its projections) or of projections (q_proj: one A
            each).
        rank: number of rows of A, r.
        alpha: numerator of the scale.
        dropout: probability with which an element of the input of A is dropped during training.
        uses_rslora: whether the scale is alpha / √r instead of alpha / r.

    Raises:
        ConfigError: a target is unknown or given twice.
    """

    targets: tuple[str, ...]
    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    uses_rslora: bool = False
    method: ClassVar[str] = "lora"
    virtual_tokens: ClassVar[int] = 0

    def __post_init__(self) -> None:
        self.layers  # noqa: B018  (raises for invalid targets)

    @classmethod
    def of(cls, targets: Sequence[str], *others: object, **settings: object) -> LoraSettings:
        """Create settings from the values of --lora-target-modules, where all-linear stands for every projection.

        Targets that mean the same, such as linear_proj and o_proj, and their order, give the same settings.

        Args:
            targets: names of linear layers or projections, or all-linear.
            others: further positional arguments of the class.
            settings: keyword arguments of the class.

        Raises:
            ConfigError: a target is unknown or given twice.
        """
        if list(targets) == [ALL_LINEAR]:
            targets = [name for layer in LINEAR_LAYERS for name in layer.projections]
        layers = cls(tuple(targets)).layers.values()
        ordered = [name for layer in layers for name in ((layer.layer.name,) if layer.is_shared else layer.targets)]
        return cls(tuple(ordered), *others, **settings)  # type: ignore[arg-type]

    @property
    def description(self) -> str:
        """Settings in words."""
        scale = f"alpha {self.alpha:g}, {'rsLoRA, ' if self.uses_rslora else ''}scale {self.scale:g}"
        return f"rank {self.rank}, {scale}, on {' '.join(self.targets)}"

    @property
    def scale(self) -> float:
        """Factor s of the product."""
        return self.alpha / (math.sqrt(self.rank) if self.uses_rslora else self.rank)

    @property
    def layers(self) -> dict[str, LayerAdapter]:
        """What is added to each linear layer, by its name in megatron-core, in the order of LINEAR_LAYERS.

        Raises:
            ConfigError: a target is unknown or given twice.
        """
        known = [name for layer in LINEAR_LAYERS for name in (layer.name, *layer.projections)]
        problems = [
            f"--lora-target-modules {name}: unknown; known are {', '.join(known)} and {ALL_LINEAR}, which stands alone"
            for name in dict.fromkeys(self.targets)
            if name not in known
        ]
        found = {}
        for layer in LINEAR_LAYERS:
            named = [name for name in self.targets if name == layer.name or name in layer.projections]
            if not named:
                continue
            is_fused = layer.name in named
            if len(named) > (1 if is_fused else len(set(named))):
                problems.append(f"--lora-target-modules {' '.join(named)}: names a projection twice")
            targets = layer.projections if is_fused else tuple(name for name in layer.projections if name in named)
            # With one projection there is nothing to share, so that both names mean the same.
            found[layer.name] = LayerAdapter(layer, targets, is_fused and len(layer.projections) > 1)
        if problems:
            raise ConfigError(problems)
        return found

    @property
    def projections(self) -> tuple[str, ...]:
        """All projections that the adapter changes, with their names in Hugging Face's format."""
        return tuple(name for adapter in self.layers.values() for name in adapter.targets)
