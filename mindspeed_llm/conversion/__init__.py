"""Weights between Hugging Face's format and megatron-core's, tensor by tensor, without a model or a process group.

catalogue      all tensors of one model, from the tables of its family
mapping        the engine that runs the tables
hugging_face   safetensors folders
distributed    megatron.core's distributed checkpoint (torch_dist)
rank_files     the older layout with one file per rank (torch)
answering      how the data of a run end answers: end tokens, chat template
assets     the files of a folder besides its weights
convert        a conversion from one end to the other
"""

from mindspeed_llm.conversion.convert import check_export_target, convert, latest_checkpoint, to_hugging_face
from mindspeed_llm.conversion.export import assets_of_run, config_of_run, config_of_shape, export_run
from mindspeed_llm.conversion.generation_info import GenerationInfo, read_generation_info
from mindspeed_llm.conversion.hugging_face_weights import HuggingFaceWeights
from mindspeed_llm.conversion.model_assets import ModelAssets
from mindspeed_llm.conversion.tensor_catalogue import TensorCatalogue

__all__ = [
    "GenerationInfo",
    "HuggingFaceWeights",
    "ModelAssets",
    "TensorCatalogue",
    "assets_of_run",
    "check_export_target",
    "config_of_run",
    "config_of_shape",
    "convert",
    "export_run",
    "latest_checkpoint",
    "read_generation_info",
    "to_hugging_face",
]
