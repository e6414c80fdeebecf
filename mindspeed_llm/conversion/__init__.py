"""Convert weights between Hugging Face and megatron-core tensor by tensor, without a model or a process group.

tensor_catalogue         all tensors of one model, from the tables of its family
adapter_catalogue        all tensors of an adapter
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
model_weights            open the weights of a model in any of these formats
model_writers            write a model or an adapter to a temporary directory that is renamed at the end
adapter_weights          read the weights of an adapter, write a peft folder
merge_adapter            merge an adapter into its base model
base_hash                hash of a base model
conversion_checks        checks of the input of a conversion
convert                  conversion in both directions
convert_adapter          import, export and merging of an adapter
export                   export of a finished run as a Hugging Face folder or a peft folder
"""

from mindspeed_llm.conversion.adapter_catalogue import AdapterCatalogue
from mindspeed_llm.conversion.adapter_weights import AdapterWeights, open_adapter, write_peft_folder
from mindspeed_llm.conversion.base_hash import (
    cached_base_hash,
    combine_digests,
    store_base_hash,
    tensor_digests,
)
from mindspeed_llm.conversion.convert import check_export_target, convert, latest_checkpoint, to_hugging_face
from mindspeed_llm.conversion.convert_adapter import base_difference
from mindspeed_llm.conversion.export import (
    assets_of_run,
    config_of_run,
    config_of_shape,
    export_adapter_run,
    export_run,
)
from mindspeed_llm.conversion.generation_info import GenerationInfo, read_generation_info
from mindspeed_llm.conversion.hugging_face_weights import HuggingFaceWeights
from mindspeed_llm.conversion.model_assets import ModelAssets
from mindspeed_llm.conversion.tensor_catalogue import TensorCatalogue

__all__ = [
    "AdapterCatalogue",
    "AdapterWeights",
    "GenerationInfo",
    "HuggingFaceWeights",
    "ModelAssets",
    "TensorCatalogue",
    "assets_of_run",
    "base_difference",
    "cached_base_hash",
    "check_export_target",
    "combine_digests",
    "config_of_run",
    "config_of_shape",
    "convert",
    "export_adapter_run",
    "export_run",
    "latest_checkpoint",
    "open_adapter",
    "read_generation_info",
    "store_base_hash",
    "tensor_digests",
    "to_hugging_face",
    "write_peft_folder",
]
