"""Families of models: one file with one record for each. To add a family, add its file here; nothing else names one.

record     what a record holds
tensors    rows that the tensor tables are made of
defaults   defaults of config.json that all families share
registry   finds the records
"""

from mindspeed_llm.families.family import FamilyFeatures, ModelFamily
from mindspeed_llm.families.registry import families, find_family, is_family_name, model_type_names
from mindspeed_llm.families.tensor_rows import MCORE_LAYER, Form, Split, TensorRow

__all__ = [
    "MCORE_LAYER",
    "FamilyFeatures",
    "Form",
    "ModelFamily",
    "Split",
    "TensorRow",
    "families",
    "find_family",
    "is_family_name",
    "model_type_names",
]
