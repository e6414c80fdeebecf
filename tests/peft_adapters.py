"""Random LoRA adapters made with peft, their reference logits, and their conversions."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from mindspeed_llm.arguments.convert_arguments import parse_convert_arguments
from mindspeed_llm.conversion import convert

ALL = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def make_adapter(
    base: Path,
    folder: Path,
    targets: Sequence[str] = ALL,
    dtype: torch.dtype = torch.float32,
    size: float = 1.0,
    **settings: Any,
) -> Path:
    """Save a random adapter with peft, in which B is not 0.

    Args:
        base: Hugging Face folder of the base model.
        folder: peft folder to write.
        targets: names of the projections.
        dtype: dtype of the weights.
        size: factor of B.
        settings: further settings of peft.LoraConfig.
    """
    import peft
    import transformers

    torch.manual_seed(7)
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    wanted = {"r": 4, "lora_alpha": 6, "task_type": "CAUSAL_LM", "init_lora_weights": False, **settings}
    peft.get_peft_model(model, peft.LoraConfig(target_modules=list(targets), **wanted)).save_pretrained(folder)
    path = folder / "adapter_model.safetensors"
    weights = {name: value * (size if "lora_B" in name else 1) for name, value in load_file(path).items()}
    save_file({name: value.to(dtype) for name, value in weights.items()}, path, {"format": "pt"})
    return folder


def adapter_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of a peft folder by their names."""
    return load_file(folder / "adapter_model.safetensors")


def change_config(folder: Path, **values: Any) -> None:
    """Change values in the adapter_config.json of a peft folder."""
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def logits_of(base: Path, adapter: Path | None = None) -> torch.Tensor:
    """Return logits [tokens, vocabulary] in float32, with an adapter through peft."""
    import peft
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    if adapter is not None:
        model = peft.PeftModel.from_pretrained(model, adapter)
    with torch.no_grad():
        logits: torch.Tensor = model.eval()(torch.arange(30)[None] * 7 % 301).logits[0]
    return logits


def run(*switches: str, **flags: object) -> Path:
    """Convert as convert_ckpt.py does, and return the directory that was written."""
    words = [f"--{switch}" for switch in switches]
    for name, value in flags.items():
        words += [f"--{name.replace('_', '-')}", *(value if isinstance(value, tuple) else [str(value)])]
    return convert(parse_convert_arguments(words))


def import_peft(adapter: Path, base: Path, save: Path, **flags: object) -> Path:
    """Convert a peft folder into a checkpoint of an adapter."""
    return run(load_dir=adapter, save_dir=save, hf_dir=base, **flags)


def export(checkpoint: Path, target: Path, **flags: object) -> Path:
    """Convert a checkpoint of an adapter into a peft folder."""
    types = {"load_model_type": "mg", "save_model_type": "hf"}
    return run("save-lora-to-hf", load_dir=checkpoint, save_dir=target, **types, **flags)


def merge(base: Path, adapter: Path, target: Path, **flags: object) -> Path:
    """Merge an adapter into a base model; by default both are Hugging Face folders."""
    return run(load_dir=base, lora_load=adapter, save_dir=target, **{"save_model_type": "hf", **flags})
