"""Tiny random models of every family, created with transformers, and their reference logits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

VOCABULARY = 301  # odd, so that two ranks need padding
LENGTHS = (61, 1, 13, 30, 7)  # of the samples, 112 in a pack of 128: 16 slots are padding
PACK = 128
SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.08,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}
# Llama 3.1's scaling, with its true constants, so that the slowest of these eight frequencies is stretched.
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
DEFAULT = {"rope_type": "default"}

# name: (config class, what differs from SHAPE)
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "Qwen2.5": ("Qwen2", {"rope_parameters": {**DEFAULT, "rope_theta": 1e6}, "rms_norm_eps": 1e-6}),
    "Qwen2.5, tied": ("Qwen2", {"rope_parameters": {**DEFAULT, "rope_theta": 1e6}, "tie_word_embeddings": True}),
    "Qwen3": ("Qwen3", {"rope_parameters": {**DEFAULT, "rope_theta": 1e6}, "head_dim": 32}),
    "Qwen3, tied": (
        "Qwen3",
        {"rope_parameters": {**DEFAULT, "rope_theta": 1e6}, "head_dim": 32, "tie_word_embeddings": True},
    ),
    "Llama 2": ("Llama", {"num_key_value_heads": 4, "rms_norm_eps": 1e-5}),
    "Llama 3": ("Llama", {"rope_parameters": {**DEFAULT, "rope_theta": 500000.0}}),
    "Llama 3.1": ("Llama", {"rope_parameters": LLAMA3, "max_position_embeddings": 131072}),
    "Llama 3.2, tied": (
        "Llama",
        {
            "rope_parameters": {**LLAMA3, "factor": 32.0},
            "max_position_embeddings": 131072,
            "tie_word_embeddings": True,
        },
    ),
    "GPT-2": ("GPT2", {"max_position_embeddings": 128, "n_inner": 96}),
    "Mistral": ("Mistral", {"rope_parameters": {**DEFAULT, "rope_theta": 10000.0}, "sliding_window": 200}),
}


def folder_name(name: str) -> str:
    return name.replace(",", "").replace(" ", "_")


def shape_of(kind: str) -> dict[str, Any]:
    """Return SHAPE without the keys that a config class of transformers does not have."""
    if kind != "GPT2":
        return SHAPE
    return {key: value for key, value in SHAPE.items() if key not in ("num_key_value_heads", "intermediate_size")}


def make_model(name: str, folder: Path, dtype: torch.dtype = torch.float32, **save: Any) -> Any:
    """Create a random model of a family with non-trivial norms and biases, and save it to a folder."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
    kind, different = MODELS[name]
    config = getattr(transformers, f"{kind}Config")(**{**shape_of(kind), **different})
    config._attn_implementation = "eager"
    torch.manual_seed(sum(map(ord, name)))
    suffix = "LMHeadModel" if kind == "GPT2" else "ForCausalLM"
    model = getattr(transformers, f"{kind}{suffix}")(config).to(dtype).eval()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "norm" in key or ".ln_" in key or key.endswith("bias"):
                parameter.add_(0.2 * torch.randn_like(parameter))
    model.save_pretrained(folder, **save)
    return model


def samples() -> list[torch.Tensor]:
    """Return the token ids of the samples of one pack."""
    draw = torch.Generator().manual_seed(5)
    return [torch.randint(0, VOCABULARY, (length,), generator=draw) for length in LENGTHS]


def reference_logits(model: Any) -> list[torch.Tensor]:
    """Return the logits of each sample computed separately, [length, vocabulary]."""
    with torch.no_grad():
        return [model(ids[None]).logits[0] for ids in samples()]
