"""The linear layers of a transformer layer and the projections that each of them computes.

megatron-core               Hugging Face                          tensor parallelism divides
linear_qkv                  q_proj, k_proj, v_proj                the output (column-parallel)
linear_proj                 o_proj                                the input (row-parallel)
linear_fc1                  gate_proj, up_proj                    the output
linear_fc2                  down_proj                             the input

The names of either column are targets of an adapter.
"""

from __future__ import annotations

from dataclasses import dataclass

ALL_LINEAR = "all-linear"


@dataclass(frozen=True)
class LinearLayer:
    """A linear layer of megatron-core.

    Attributes:
        name: name in megatron-core.
        module: module of megatron-core that contains it.
        hugging_face_module: module of transformers that contains its projections.
        projections: names in Hugging Face's format, in the order of the rows of the layer.
        input: letter of the input size (families/tensor_rows.py).
        outputs: letter of the output size of each projection.
        is_column_parallel: whether tensor parallelism divides the output, and not the input.
    """

    name: str
    module: str
    hugging_face_module: str
    projections: tuple[str, ...]
    input: str
    outputs: str
    is_column_parallel: bool


LINEAR_LAYERS = (
    LinearLayer("linear_qkv", "self_attention", "self_attn", ("q_proj", "k_proj", "v_proj"), "H", "QKK", True),
    LinearLayer("linear_proj", "self_attention", "self_attn", ("o_proj",), "Q", "H", False),
    LinearLayer("linear_fc1", "mlp", "mlp", ("gate_proj", "up_proj"), "H", "FF", True),
    LinearLayer("linear_fc2", "mlp", "mlp", ("down_proj",), "F", "H", False),
)
