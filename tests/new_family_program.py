"""Convert and describe a model of a family that exists only as one file, which the test wrote into a folder.

    python new_family_program.py FOLDER_OF_THE_FILE WORKING_FOLDER

Prints a JSON object with what the test compares. It runs in a process of its own: families are read once.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import mindspeed_llm.families

mindspeed_llm.families.__path__.append(sys.argv[1])

import torch  # noqa: E402  (the family has to be there before anything reads the list of families)
from safetensors.torch import load_file, save_file  # noqa: E402

from mindspeed_llm.arguments.convert_arguments import parse_convert_arguments  # noqa: E402
from mindspeed_llm.arguments.hugging_face_config import read_config  # noqa: E402
from mindspeed_llm.arguments.loaded_shape import find_loaded_shape  # noqa: E402
from mindspeed_llm.conversion import config_of_shape, convert  # noqa: E402

CONFIG = {
    "model_type": "made-up",
    "architectures": ["MadeUpForCausalLM"],
    "hidden_size": 8,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "intermediate_size": 12,
    "num_hidden_layers": 2,
    "vocab_size": 11,
    "dtype": "float32",
}
LAYER = {
    "input_layernorm.weight": (8,),
    "attn.out.weight": (8, 8),  # a name that no other family has
    "post_attention_layernorm.weight": (8,),
    "mlp.gate_proj.weight": (12, 8),
    "mlp.up_proj.weight": (12, 8),
    "mlp.down_proj.weight": (8, 12),
    "self_attn.q_proj.weight": (8, 8),
    "self_attn.k_proj.weight": (4, 8),
    "self_attn.v_proj.weight": (4, 8),
    "self_attn.q_proj.bias": (8,),
    "self_attn.k_proj.bias": (4,),
    "self_attn.v_proj.bias": (4,),
    "self_attn.q_norm.weight": (4,),
    "self_attn.k_norm.weight": (4,),
}
OUTSIDE = {"blocks.wte.weight": (11, 8), "model.norm.weight": (8,), "lm_head.weight": (11, 8)}


def main() -> None:
    """Write a model of the family, convert it there and back in both formats, and describe it."""
    work = Path(sys.argv[2])
    source = work / "hf"
    source.mkdir()
    (source / "config.json").write_text(json.dumps(CONFIG))
    shapes = OUTSIDE | {f"blocks.{layer}.{name}": shape for layer in range(2) for name, shape in LAYER.items()}
    weights = {name: torch.randn(shape) for name, shape in shapes.items()}
    save_file(weights, source / "model.safetensors", metadata={"format": "pt"})
    same = {}
    for form, layout in (("torch_dist", []), ("torch", ["--target-pipeline-parallel-size", "2"])):
        kind = ["--model-type-hf", "fancy", "--ckpt-format", form, *layout]
        checkpoint, target = str(work / form), str(work / f"{form}_hf")
        convert(parse_convert_arguments(["--load-dir", str(source), "--save-dir", checkpoint, *kind]))
        back = ["--load-model-type", "mg", "--save-model-type", "hf", "--model-type-hf", "fancy"]
        convert(parse_convert_arguments([*back, "--load-dir", checkpoint, "--save-dir", target]))
        written = load_file(Path(target) / "model.safetensors")
        config = json.loads((Path(target) / "config.json").read_text())
        equal = all(torch.equal(written[name], value) for name, value in weights.items())
        same[form] = equal and written.keys() == weights.keys() and config == CONFIG
    shape = find_loaded_shape(["--load", str(source)])
    assert shape is not None
    model = read_config(source).model
    print(json.dumps({"same": same, "words": shape.missing_flags([]), "written": config_of_shape(model, 11, 64)}))


if __name__ == "__main__":
    main()
