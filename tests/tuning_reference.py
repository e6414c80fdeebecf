"""References in float64 on transformers' model: peft for virtual tokens, an own module for bottleneck adapters."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from reference_qwen2 import Sample
from virtual_packs import prediction_targets

from mindspeed_llm.adapters import BottleneckSettings, VirtualTokenSettings

Named = dict[str, torch.Tensor]
ENCODER = {"linear_1": "mlp_head.0", "linear_2": "mlp_head.2", "linear_3": "mlp_head.4"}


class HoulsbyLayer(torch.nn.Module):
    """A linear layer whose output passes a bottleneck adapter with a skip connection."""

    def __init__(self, linear: torch.nn.Module, hidden: int, size: int) -> None:
        super().__init__()
        self.linear = linear
        self.down, self.up = torch.nn.Linear(hidden, size), torch.nn.Linear(size, hidden)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        output = self.linear(states)
        low = self.down(output)
        active = low * 0.5 * (1.0 + torch.erf(low / math.sqrt(2.0)))
        return output + self.up(active)


def reference_model(folder: Path, settings: Any, adapter: Named, dtype: torch.dtype = torch.float64) -> Any:
    """Transformers' model with our adapter; `adapter` has megatron-core's names."""
    import transformers

    base = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="eager")
    if isinstance(settings, BottleneckSettings):
        for parameter in base.parameters():
            parameter.requires_grad = False
        hidden = base.config.hidden_size
        for layer in base.model.layers:
            layer.self_attn.o_proj = HoulsbyLayer(layer.self_attn.o_proj, hidden, settings.size)
            layer.mlp.down_proj = HoulsbyLayer(layer.mlp.down_proj, hidden, settings.size)
        model = base.to(dtype)
    else:
        model = _peft_model(base, settings).to(dtype)
    views = parameter_views(model, settings, list(adapter))
    with torch.no_grad():
        for name, value in adapter.items():
            views[name].copy_(value)
    return model.eval()


def _peft_model(base: Any, settings: VirtualTokenSettings) -> Any:
    import peft

    values = {"task_type": "CAUSAL_LM", "num_virtual_tokens": settings.virtual_tokens}
    if settings.method == "prompt":
        return peft.get_peft_model(base, peft.PromptTuningConfig(**values))
    if settings.method == "p-tuning":
        size = settings.encoder_width(base.config.hidden_size)
        return peft.get_peft_model(base, peft.PromptEncoderConfig(**values, encoder_hidden_size=size))
    heads = base.config.num_key_value_heads
    size = getattr(base.config, "head_dim", None) or base.config.hidden_size // base.config.num_attention_heads
    return peft.get_peft_model(
        base, peft.PrefixTuningConfig(**values, num_attention_heads=heads, token_dim=heads * size)
    )


def parameter_views(model: Any, settings: Any, names: list[str], gradient: bool = False) -> Named:
    """Our name → the reference's parameter, or its gradient; of a prefix, the columns of a layer."""
    found = {name: (p.grad if gradient else p) for name, p in model.named_parameters()}
    views = {}
    for name in names:
        if isinstance(settings, BottleneckSettings):
            _, _, layer, _, linear, _, part = name.split(".", 6)
            place = "self_attn.o_proj" if linear == "linear_proj" else "mlp.down_proj"
            views[name] = found[f"model.layers.{layer}.{place}.{part}"]
            continue
        own = name.removeprefix("virtual_tokens.source.")
        if settings.method == "prefix":
            table = found["prompt_encoder.default.embedding.weight"]
            layers = (
                model.config.num_hidden_layers
                if hasattr(model, "config")
                else model.base_model.config.num_hidden_layers
            )
            width = table.shape[1] // (2 * layers)
            number = 2 * int(name.split(".")[2]) + name.endswith("value")
            views[name] = table[:, number * width : (number + 1) * width]
        elif own == "embeddings":
            views[name] = found["prompt_encoder.default.embedding.weight"]
        else:
            linear, part = own.split(".")
            views[name] = found[f"prompt_encoder.default.{ENCODER[linear]}.{part}"]
    return views


def loss_and_gradients(
    model: Any, settings: Any, names: list[str], samples: list[Sample]
) -> tuple[float, float, Named]:
    """Mean loss over all predicted tokens, gradient norm, and gradients with megatron-core's names."""
    model.zero_grad()
    targets = [prediction_targets(settings, labels) for _, labels in samples]
    trained = sum(int((each != -100).sum()) for each in targets)
    total = 0.0
    for (ids, _), target in zip(samples, targets, strict=True):
        if not (target != -100).any():
            continue
        # The last logits predict what follows the sample; with prompts there are p more in front.
        logits = model(input_ids=ids[None]).logits[0, :-1][-len(target) :]
        loss = torch.nn.functional.cross_entropy(logits, target, ignore_index=-100, reduction="sum") / trained
        loss.backward()
        total += float(loss.detach())
    gradients = {name: value.clone() for name, value in parameter_views(model, settings, names, gradient=True).items()}
    return total, math.sqrt(sum(float(g.square().sum()) for g in gradients.values())), gradients
