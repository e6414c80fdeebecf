"""Hidden states between the layers of both models, at places that the tensor table of the family names.

Each layer has a norm before attention and one before the MLP, in every family and in both libraries. Input and output
of these norms, and of the final norm, are enough to name the part in which two models begin to differ:

    layer 1 input ─ norm ─▶ layer 1 attention input ─ attention, + ─▶ layer 1 middle ─ norm ─▶ layer 1 MLP input ─ …
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch

from mindspeed_llm.conversion import TensorCatalogue
from mindspeed_llm.conversion.tensor_catalogue import CatalogueTensor
from mindspeed_llm.families import MCORE_LAYER

# What lies between the previous tap and this one.
Part = Literal["embedding", "norm", "attention", "MLP"]
ATTENTION_AND_MLP_NORM = ("input_layernorm.weight", "pre_mlp_layernorm.weight")


@dataclass(frozen=True)
class Tap:
    """A place at which both models are compared.

    Attributes:
        name: name for the recording and for messages, such as 'layer 3, MLP'.
        part: what was computed since the previous tap.
        own: module of megatron-core, without '.weight'.
        theirs: module of transformers.
        is_input: whether the input of the norm is compared, and not its output.
    """

    name: str
    part: Part
    own: str
    theirs: str
    is_input: bool


def taps_of(catalogue: TensorCatalogue) -> list[Tap]:
    """Return the taps of a model in the order in which they are computed."""
    tensors, final = catalogue.by_name(), catalogue.config.family.final_norm.name
    found: list[Tap] = []
    for layer in range(catalogue.layers):
        attention, mlp = (MCORE_LAYER.format(layer) + name for name in ATTENTION_AND_MLP_NORM)
        # Layer n is number n + 1 in messages, so that the MLP before layer n is that of layer number n.
        found += _taps_of_norm(tensors[attention], ("MLP", layer) if layer else ("embedding", None), layer + 1)
        found += _taps_of_norm(tensors[mlp], ("attention", layer + 1), layer + 1)
    return found + _taps_of_norm(tensors[final], ("MLP", catalogue.layers), None)


def _taps_of_norm(norm: CatalogueTensor, before: tuple[Part, int | None], layer: int | None) -> list[Tap]:
    """Return the taps at input and output of one norm.

    Args:
        norm: weight of the norm.
        before: what its input is the result of, and the number of the layer.
        layer: number of its own layer; None for the final norm.
    """
    part, layer_before = before
    modules = norm.name.removesuffix(".weight"), norm.parts[0][0].removesuffix(".weight")
    goal = "the MLP" if norm.name.endswith(ATTENTION_AND_MLP_NORM[1]) else "attention"
    name = "final norm" if layer is None else f"layer {layer}, norm before {goal}"
    return [
        Tap(part if layer_before is None else f"layer {layer_before}, {part}", part, *modules, True),
        Tap(name, "norm", *modules, False),
    ]


@contextmanager
def recorded_taps(
    modules: dict[str, torch.nn.Module], taps: list[Tap], attribute: str, keep: Callable[[str, torch.Tensor], None]
) -> Iterator[None]:
    """Call `keep` with the name of each tap and its hidden states [...] while the block runs a forward pass.

    Args:
        modules: the modules of this rank by name.
        taps: the taps; those of other ranks are ignored.
        attribute: 'own' or 'theirs': which name of a tap is that of a module.
        keep: receives name and values.
    """

    def of_input(name: str, _: Any, inputs: Any) -> None:
        keep(name, inputs[0])

    def of_output(name: str, _: Any, __: Any, output: Any) -> None:
        keep(name, output)

    handles = []
    for tap in taps:
        module = modules.get(getattr(tap, attribute))
        if module is not None and tap.is_input:
            handles.append(module.register_forward_pre_hook(partial(of_input, tap.name)))
        elif module is not None:
            handles.append(module.register_forward_hook(partial(of_output, tap.name)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def epsilon_of(norm: torch.nn.Module) -> float | None:
    """Return the epsilon of a norm of either library; None if it has none."""
    for name in ("eps", "variance_epsilon"):
        value = getattr(norm, name, None)
        if value is not None:
            return float(value)
    return None
