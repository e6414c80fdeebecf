"""Convert weights between Hugging Face and megatron-core tensor by tensor, without a model or a process group.

tensor_catalogue         all tensors of one model, from the tables of its family
tensor_mapping           join, split and shard tensors as the tables specify
tensor_streams           read the next tensor while the current one is written
hugging_face_weights     safetensors files of a Hugging Face folder
distributed_checkpoint   the distributed checkpoint format of megatron-core (torch_dist)
rank_files               per-rank checkpoint files (the older Megatron layout, torch)
checkpoint_index         `.metadata` of a distributed checkpoint, read without unpickling
pickle_reader            pickles as plain descriptions; nothing is imported or called
torch_file_reader        files of torch.save, read without torch.load
generation_info          end tokens and chat template of the training data
model_assets             assets of a model: config, tokenizer, generation settings and chat template
convert                  conversion in both directions
export                   export of a finished run as a Hugging Face folder
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
