"""Model families: one file with one ModelFamily for each. To add a family, add its file here; no other file names it.

family        the dataclass that describes a family
tensor_rows   rows of the tensor tables
defaults      defaults of config.json that several families share
registry      finds the families
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
