"""A folder with raw data, a tokenizer and a tiny Hugging Face model, and training commands that name them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from preprocess_command import ALPACA, rows
from safetensors.torch import save_file
from small_tokenizers import byte_level_folder

from mindspeed_llm.arguments.hugging_face_config import read_config
from mindspeed_llm.conversion import TensorCatalogue

SEQ_LENGTH = 128
# Flags that the two commands have in common.
BOTH = f"--seq-length {SEQ_LENGTH} --prompt-type qwen3 --neat-pack --tokenizer-type PretrainedFromHF"
TRAIN = (
    "--device cpu --no-save-model --micro-batch-size 1 --lr 1e-3 --lr-decay-style constant --is-instruction-dataset "
    "--reset-attention-mask --log-interval 1 --split 100,0,0 --eval-iters 0 --model-type-hf qwen3 "
    "--enable-hf2mg-convert"
)
RAW = f"--handler-name {ALPACA} --pack --append-eod --enable-thinking true --workers 2"
CONFIG = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "hidden_act": "silu",
    "tie_word_embeddings": True,
}


class RawDataFolder:
    """A folder with rows.json, tokenizer/ and hf/.

    Args:
        folder: where to write them.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.rows = folder, folder / "rows.json"
        self.rows.write_text(json.dumps(rows(40)), "utf-8")
        byte_level_folder(folder / "tokenizer")
        (folder / "hf").mkdir()
        (folder / "hf" / "config.json").write_text(json.dumps(CONFIG), "utf-8")
        draw = torch.Generator().manual_seed(1)
        shapes = TensorCatalogue(read_config(folder / "hf")).hugging_face_shapes()
        weights = {name: 0.05 * torch.randn(shape, generator=draw) for name, shape in shapes.items()}
        save_file(weights, folder / "hf" / "model.safetensors")

    def words(self, data: Any, *more: str) -> list[str]:
        """Return a training command without the flags of raw data."""
        words = f"{TRAIN} {BOTH} --tokenizer-name-or-path {self.folder / 'tokenizer'} --load {self.folder / 'hf'}"
        return [*words.split(), "--data-path", str(data), *more]

    def raw_words(self, *more: str) -> list[str]:
        """Return a training command with rows.json as --data-path."""
        return self.words(self.rows, *RAW.split(), *more)

    def preprocess_words(self, prefix: Path) -> list[str]:
        """Return the command of preprocess_data.py that makes the same packed files."""
        words = f"{BOTH} {RAW} --input {self.rows} --output-prefix {prefix}"
        return [*words.split(), "--tokenizer-name-or-path", str(self.folder / "tokenizer")]
