"""Write a small Qwen2.5-shaped model with random weights as a Hugging Face folder.

    python examples/demo/make_model.py TOKENIZER_FOLDER OUT_FOLDER [--seed 1234] [--layers 4] [--hidden-size 192]
        [--intermediate-size 512] [--heads 6] [--groups 2] [--scale 0.02]

The model has grouped-query attention, biases on query, key and value, RMSNorm, SwiGLU and rotary position embeddings.
It takes the place of a downloaded model: config.json, weights as safetensors, tokenizer, chat template and generation
settings.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
from pathlib import Path

import torch

from mindspeed_llm.arguments.hugging_face_config import read_config
from mindspeed_llm.conversion import TensorCatalogue
from mindspeed_llm.conversion.hugging_face_weights import HuggingFaceWriter

CONFIG = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "hidden_act": "silu",
    "max_position_embeddings": 1024,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
    "use_cache": True,
}
# The Jinja version of the chat template of `--prompt-type qwen`.
CHAT_TEMPLATE = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


# Options: the shape, and the standard deviation of the weights.
SHAPE = {
    "layers": ("num_hidden_layers", 4),
    "hidden-size": ("hidden_size", 192),
    "intermediate-size": ("intermediate_size", 512),
    "heads": ("num_attention_heads", 6),
    "groups": ("num_key_value_heads", 2),
}
SCALE = 0.02


def initial(name: str, shape: tuple[int, ...], draw: torch.Generator, layers: int, scale: float) -> torch.Tensor:
    """Initialize a weight as Megatron does: projections that write into the residual stream get a smaller scale."""
    if name.endswith("norm.weight"):
        return torch.ones(shape)
    if name.endswith("bias"):
        return torch.zeros(shape)
    if name.endswith(("o_proj.weight", "down_proj.weight")):
        scale /= math.sqrt(2 * layers)
    return scale * torch.randn(shape, generator=draw)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0], allow_abbrev=False)
    parser.add_argument("tokenizer", type=Path, help="folder with tokenizer.json")
    parser.add_argument("out", type=Path, help="the folder to write")
    parser.add_argument("--seed", type=int, default=1234, help="the same seed gives the same weights (default 1234)")
    for option, (key, value) in SHAPE.items():
        parser.add_argument(f"--{option}", type=int, default=value, help=f"{key} of config.json (default {value})")
    parser.add_argument("--scale", type=float, default=SCALE, help=f"standard deviation of weights (default {SCALE})")
    arguments = parser.parse_args()
    shape = {key: getattr(arguments, option.replace("-", "_")) for option, (key, _) in SHAPE.items()}
    out = arguments.out
    out.mkdir(parents=True, exist_ok=True)

    vocabulary = json.loads((arguments.tokenizer / "tokenizer.json").read_text("utf-8"))
    added = {token["content"]: token["id"] for token in vocabulary["added_tokens"]}
    ids = {**vocabulary["model"]["vocab"], **added}
    end, stop = ids["<|endoftext|>"], ids["<|im_end|>"]
    tokenizer = json.loads((arguments.tokenizer / "tokenizer_config.json").read_text("utf-8"))
    # With the class name Qwen2Tokenizer, transformers replaces the pre-tokenizer of the file with Qwen's.
    tokenizer["tokenizer_class"] = "PreTrainedTokenizerFast"
    shutil.copyfile(arguments.tokenizer / "tokenizer.json", out / "tokenizer.json")
    for name, content in (
        ("config.json", {**CONFIG, **shape, "vocab_size": max(ids.values()) + 1, "eos_token_id": stop}),
        ("generation_config.json", {"eos_token_id": [stop, end], "pad_token_id": end, "do_sample": False}),
        ("tokenizer_config.json", tokenizer),
    ):
        (out / name).write_text(json.dumps(content, indent=1) + "\n", "utf-8")
    (out / "chat_template.jinja").write_text(CHAT_TEMPLATE, "utf-8")

    shapes = TensorCatalogue(read_config(out)).hugging_face_shapes()
    draw = torch.Generator().manual_seed(arguments.seed)
    writer = HuggingFaceWriter(out, shapes, torch.float32)
    for name, size in shapes.items():
        writer.write(name, initial(name, size, draw, arguments.layers, arguments.scale))
    writer.finish()
    print(f"{out}: {sum(math.prod(size) for size in shapes.values()):,} parameters, {max(ids.values()) + 1:,} ids")


if __name__ == "__main__":
    main()
