"""Our attention in a model of megatron-core: layers that are refused, and the padding of the vocabulary."""

from __future__ import annotations

import pytest
import torch

from mindspeed_llm.errors import ConfigError
from mindspeed_llm.megatron.megatron_versions import MegatronVersion

VERSION = MegatronVersion("0.16.1")


class TEDotProductAttention(torch.nn.Module):
    """Stands for the class of this name in TransformerEngine's layers, which cannot be built here."""

    def __init__(self, **_: object) -> None:
        super().__init__()


def build_model(experts: int | None = None, core_attention: type | None = None) -> torch.nn.Module:
    """Build a GPTModel of one layer from megatron.core's own layer spec."""
    from megatron.core.models.gpt import GPTModel
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
    from megatron.core.transformer import TransformerConfig

    spec = get_gpt_layer_local_spec(num_experts=experts)
    if core_attention is not None:
        spec.submodules.self_attention.submodules.core_attention = core_attention
    config = TransformerConfig(
        num_layers=1,
        hidden_size=16,
        num_attention_heads=2,
        num_moe_experts=experts,
        add_bias_linear=experts is None,
        attention_dropout=0.0,
        use_cpu_initialization=True,
    )
    return GPTModel(config, spec, vocab_size=64, max_sequence_length=16, position_embedding_type="rope")


def test_layers_that_packs_cannot_train_are_refused_by_name(one_rank: None) -> None:
    """Layers of a spec that the user's model provider may choose, whatever the flags are."""
    from mindspeed_llm.attention import select_kernel
    from mindspeed_llm.megatron.packed_attention_layers import attend_inside_samples

    kernel = select_kernel("cpu", torch.float32, 8).kernel
    attend_inside_samples(build_model(), kernel, None, VERSION)
    with pytest.raises(ConfigError, match="the layers have MoELayer: only dense models"):
        attend_inside_samples(build_model(experts=2), kernel, None, VERSION)
    with pytest.raises(ConfigError, match=r"the layers have TEDotProductAttention: .* --transformer-impl local"):
        attend_inside_samples(build_model(core_attention=TEDotProductAttention), kernel, None, VERSION)
    with pytest.raises(ConfigError, match="the model provider returned a Linear"):
        attend_inside_samples(torch.nn.Linear(2, 2), kernel, None, VERSION)


def test_padding_of_the_vocabulary_stays_finite(one_rank: None) -> None:
    """MindSpeed's loss multiplies the logits of labels on other ranks by 0, and 0 times infinity is NaN."""
    from mindspeed_llm.megatron.packed_attention_layers import _PaddingMask

    for dtype in (torch.float32, torch.bfloat16):
        logits = torch.randn(3, 1, 8).to(dtype)
        logits_before = logits.clone()
        _PaddingMask(5)(torch.nn.Identity(), None, (logits, None))
        assert torch.equal(logits[..., :5], logits_before[..., :5]) and torch.isfinite(logits).all()
        wide = logits.float()
        assert torch.equal(wide.softmax(-1)[..., 5:], torch.zeros(3, 1, 3))
        assert torch.isfinite((wide - wide.amax(-1, keepdim=True)) * 0).all()
