"""Reference of LoRA: peft on transformers' model in float64, one sample at a time."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import reference_qwen2 as reference
import torch

PARTS = {
    "self_attention.linear_qkv": "self_attn",
    "self_attention.linear_proj": "self_attn",
    "mlp.linear_fc1": "mlp",
    "mlp.linear_fc2": "mlp",
}


def peft_model(
    folder: Path, settings: Any, adapter: dict[str, torch.Tensor], dtype: torch.dtype = torch.float64
) -> Any:
    """peft's model with our adapter; `adapter` has megatron-core's names."""
    import peft
    import transformers

    base = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="eager")
    config = peft.LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        target_modules=list(settings.projections),
        use_rslora=settings.uses_rslora,
    )
    model = peft.get_peft_model(base, config)
    state = dict(model.named_parameters())
    with torch.no_grad():
        for name, value in adapter.items():
            for own in peft_names(name, settings):
                state[own].copy_(value)
    return model


def peft_names(name: str, settings: Any) -> list[str]:
    """decoder.layers.0.mlp.linear_fc2.lora_A.down_proj → names in peft: several for a shared A."""
    _, _, layer, module, linear, kind, factor = name.split(".")
    targets = settings.layers[linear].targets if factor == "shared" else (factor,)
    prefix = f"base_model.model.model.layers.{layer}.{PARTS[f'{module}.{linear}']}"
    return [f"{prefix}.{target}.{kind}.default.weight" for target in targets]


def loss_and_gradients(
    model: Any, settings: Any, names: list[str], samples: list[reference.Sample]
) -> tuple[float, float, dict[str, torch.Tensor]]:
    """Mean loss over the trained tokens of all samples, gradient norm, and gradients with megatron-core's names."""
    model.zero_grad()
    trained = sum(int((labels[1:] != -100).sum()) for _, labels in samples)
    total = 0.0
    for ids, labels in samples:
        if len(ids) < 2 or not (labels[1:] != -100).any():
            continue
        logits = model(ids[None]).logits[0, :-1]
        loss = torch.nn.functional.cross_entropy(logits, labels[1:], ignore_index=-100, reduction="sum") / trained
        loss.backward()
        total += float(loss)
    state = dict(model.named_parameters())
    gradients = {name: sum(state[own].grad for own in peft_names(name, settings)) for name in names}
    return total, math.sqrt(sum(float(g.square().sum()) for g in gradients.values())), gradients
