"""Define the GPT-2 family: LayerNorm, learned positions, GELU, a bias in every linear layer, and transposed weights.

Its linear layers are `Conv1D` in transformers: the weights are stored as [input, output].
"""

from mindspeed_llm.families.family import FamilyFeatures, ModelFamily
from mindspeed_llm.families.tensor_rows import FC1_BIAS_NAME, QKV, QKV_BIAS, tensor_row

FAMILY = ModelFamily(
    model_type="gpt2",
    architecture="GPT2LMHeadModel",
    names=("gpt2",),
    features=FamilyFeatures(
        qkv_bias=True, linear_bias=True, layer_norm=True, gated_mlp=False, learned_positions=True, rope_scaling=()
    ),
    defaults={
        "num_hidden_layers": 12,
        "hidden_size": 768,
        "num_attention_heads": 12,
        "intermediate_size": None,
        "hidden_act": "gelu_new",
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 1024,
        "vocab_size": 50257,
        "tie_word_embeddings": True,
        "pad_token_id": None,
        "bos_token_id": 50256,
        "eos_token_id": 50256,
    },
    key_names={
        "num_hidden_layers": "n_layer",
        "hidden_size": "n_embd",
        "num_attention_heads": "n_head",
        "intermediate_size": "n_inner",
        "hidden_act": "activation_function",
        "rms_norm_eps": "layer_norm_epsilon",
        "max_position_embeddings": "n_positions",
    },
    only={"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False, "add_cross_attention": False},
    ignored=("head_dim", "num_key_value_heads", "attention_bias", "mlp_bias"),
    layer=(
        tensor_row("input_layernorm.weight", "ln_1.weight H", "same", "whole"),
        tensor_row("input_layernorm.bias", "ln_1.bias H", "same", "whole"),
        tensor_row(QKV.name, "attn.c_attn.weight HA", "transposed_qkv", "rows"),
        tensor_row(QKV_BIAS.name, "attn.c_attn.bias A", "transposed_qkv", "rows"),
        tensor_row("self_attention.linear_proj.weight", "attn.c_proj.weight QH", "transposed", "columns"),
        tensor_row("self_attention.linear_proj.bias", "attn.c_proj.bias H", "same", "whole"),
        tensor_row("pre_mlp_layernorm.weight", "ln_2.weight H", "same", "whole"),
        tensor_row("pre_mlp_layernorm.bias", "ln_2.bias H", "same", "whole"),
        tensor_row("mlp.linear_fc1.weight", "mlp.c_fc.weight HF", "transposed", "rows"),
        tensor_row(FC1_BIAS_NAME, "mlp.c_fc.bias F", "same", "rows"),
        tensor_row("mlp.linear_fc2.weight", "mlp.c_proj.weight FH", "transposed", "columns"),
        tensor_row("mlp.linear_fc2.bias", "mlp.c_proj.bias H", "same", "whole"),
    ),
    embedding=tensor_row("embedding.word_embeddings.weight", "transformer.wte.weight VH", "same", "vocabulary"),
    positions=tensor_row("embedding.position_embeddings.weight", "transformer.wpe.weight PH", "same", "whole"),
    final_norm=tensor_row("decoder.final_layernorm.weight", "transformer.ln_f.weight H", "same", "whole"),
    final_norm_bias=tensor_row("decoder.final_layernorm.bias", "transformer.ln_f.bias H", "same", "whole"),
    layer_prefix="transformer.h.{}.",
    optional_prefix="transformer.",
    # Masks of the attention, which older versions of transformers stored.
    unused=(".attn.bias", ".attn.masked_bias"),
    fits_flags=True,
)
