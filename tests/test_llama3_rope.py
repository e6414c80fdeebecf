"""Llama 3.1's rotary frequencies, by either flag, against those of transformers."""

from __future__ import annotations

import pytest
import torch
from tiny import tiny_arguments

BASE, SIZE = 500000.0, 128
SHAPE = f"--hidden-size 512 --num-attention-heads 4 --kv-channels {SIZE} --rotary-base {BASE} --seq-length 32"
OWN = "--use-rope-scaling"
UPSTREAM = (
    "--rope-scaling-type llama3 --low-freq-factor 1.0 --high-freq-factor 4.0 --original-max-position-embeddings 8192"
)


@pytest.mark.parametrize("flags", [OWN, UPSTREAM])
@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_frequencies_are_those_of_transformers(flags: str, factor: float, one_rank: None) -> None:
    transformers = pytest.importorskip("transformers")
    rope_utils = pytest.importorskip("transformers.modeling_rope_utils")
    from tiny_model import build_tiny_model

    rope = {"rope_type": "llama3", "rope_theta": BASE, "factor": factor, "low_freq_factor": 1.0}
    rope |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    config = transformers.LlamaConfig(
        hidden_size=512, num_attention_heads=4, head_dim=SIZE, rope_parameters=rope, max_position_embeddings=131072
    )
    expected, attention_factor = rope_utils.ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    arguments = tiny_arguments(f"{SHAPE} {flags} --rope-scaling-factor {factor}")
    [model] = build_tiny_model(arguments)
    found = model.rotary_pos_emb.inv_freq
    assert attention_factor == 1 and found.shape == (SIZE // 2,)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)
    [plain] = build_tiny_model(tiny_arguments(SHAPE))
    unscaled = plain.rotary_pos_emb.inv_freq
    assert torch.equal(found[0], unscaled[0]) and float(unscaled[-1] / found[-1]) == pytest.approx(factor)
