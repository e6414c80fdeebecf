"""Families of models: one file with one record for each. To add a family, add its file here; nothing else names one.

record     what a record holds
tensors    rows that the tensor tables are made of
defaults   defaults of config.json that all families share
registry   finds the records
"""

from mindspeed_llm.families.family import Family, Features
from mindspeed_llm.families.registry import families, family_named, is_named, model_type_names
from mindspeed_llm.families.tensor_rows import MCORE_LAYER, Form, Row, Split

__all__ = [
    "MCORE_LAYER",
    "Family",
    "Features",
    "Form",
    "Row",
    "Split",
    "families",
    "family_named",
    "is_named",
    "model_type_names",
]
