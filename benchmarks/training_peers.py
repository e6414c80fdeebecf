"""Other training programs that training.py compares with, one per process: KIND SAMPLES THREADS CLOCK.

hugging-face    Trainer with the Qwen2 model of transformers: batches of four in random order, padded to their longest
trl             SFTTrainer with packing into sequences of the same length

Each line on stdin requests one step. The answer is a line of JSON with the seconds, tokens (without padding) and slots
of the step, and the peak memory of the process so far; a first line reports the versions. The trainers run their own
loops, and a callback waits between two steps. SAMPLES is a .npz file with ids, labels, lengths and settings; with
settings of LoRA, an adapter of peft is trained. If a package is missing, the process prints one line that names it and
ends.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import tempfile
import time
import warnings
from typing import Any

import numpy as np


class StepServer:
    """Measures training steps, one per request.

    Args:
        answers: stream of the answers; stdout itself is left to the output of the libraries.
        clock: 'elapsed' or 'processor'.
    """

    def __init__(self, answers: Any, clock: str) -> None:
        self.clock = time.perf_counter if clock == "elapsed" else time.process_time
        self.answers, self.tokens, self.slots, self.start = answers, 0, 0, 0.0

    def send(self, **values: object) -> None:
        self.answers.write(json.dumps(values) + "\n")
        self.answers.flush()

    def send_step(self, **more: object) -> None:
        """Answer a request with the counts since its start, and peak memory in MiB."""
        seconds = self.clock() - self.start
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        self.send(seconds=seconds, tokens=self.tokens, slots=self.slots, peak=peak, **more)

    def count(self, _: object, __: object, inputs: dict[str, Any]) -> None:
        """Count tokens and slots; a hook that runs before each forward pass."""
        ids, mask = inputs["input_ids"], inputs.get("attention_mask")
        self.slots += ids.numel()
        self.tokens += ids.numel() if mask is None else int(mask.sum())

    def callback(self, description: dict[str, str]) -> Any:
        """Return a callback of the trainer that waits for a request before each step."""
        from transformers import TrainerCallback

        server = self

        class Waiting(TrainerCallback):
            def wait(self, control: Any) -> None:
                if not sys.stdin.readline():
                    control.should_training_stop = True
                server.tokens, server.slots, server.start = 0, 0, server.clock()

            def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
                server.send(**description)
                self.wait(control)

            def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
                server.send_step()
                self.wait(control)

        return Waiting()


def rows_of(data: Any) -> list[dict[str, list[int]]]:
    """Convert the samples to dictionaries of lists."""
    ends = np.cumsum(data["lengths"])[:-1]
    ids, labels = (np.split(data[name], ends) for name in ("ids", "labels"))
    return [{"input_ids": i.tolist(), "labels": target.tolist()} for i, target in zip(ids, labels, strict=True)]


def model_of(settings: dict[str, Any]) -> Any:
    """Create the Qwen2 model of transformers with the same shape and its default attention, and its adapter if any."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(1234)
    config = Qwen2Config(**settings["model"], use_cache=False)
    model = Qwen2ForCausalLM(config)
    assert next(model.parameters()).dtype == torch.float32
    if not settings["lora"]:
        return model
    from peft import LoraConfig, get_peft_model

    return get_peft_model(model, LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM", **settings["lora"]))


def versions_of(model: Any, library: Any) -> str:
    """Return the versions of the library and of peft if it is used, and the attention implementation."""
    peft = f", peft {sys.modules['peft'].__version__}" if hasattr(model, "peft_config") else ""
    return f"{library.__name__} {library.__version__}{peft}, attention {model.config._attn_implementation}"


def common_settings(settings: dict[str, Any], folder: str, rows: int, accumulation: int) -> dict[str, Any]:
    """Return the settings of both trainers: those of training.py, without logging, saving or reports."""
    return {
        "output_dir": folder, "per_device_train_batch_size": rows, "gradient_accumulation_steps": accumulation,
        "learning_rate": settings["learning_rate"], "weight_decay": settings["weight_decay"], "adam_beta2": 0.999,
        "max_steps": 100_000, "max_grad_norm": 1.0, "lr_scheduler_type": "constant", "bf16": False,
        "use_cpu": True, "report_to": "none", "save_strategy": "no", "logging_strategy": "no", "disable_tqdm": True,
        "gradient_checkpointing": False, "seed": 1,
    }  # fmt: skip


def hugging_face(server: StepServer, data: Any, settings: dict[str, Any], folder: str) -> None:
    import torch
    import transformers
    from transformers import Trainer, TrainingArguments

    rows = rows_of(data)
    size = settings["rows"]
    per_step = max(1, round(settings["tokens_of_a_step"] / (size * float(np.mean(data["lengths"])))))

    def padded(samples: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
        longest = max(len(sample["input_ids"]) for sample in samples)

        def column(name: str, fill: int) -> torch.Tensor:
            return torch.tensor([sample[name] + [fill] * (longest - len(sample[name])) for sample in samples])

        samples = [{**sample, "attention_mask": [1] * len(sample["input_ids"])} for sample in samples]
        fills = {"input_ids": 0, "attention_mask": 0, "labels": -100}
        return {name: column(name, fill) for name, fill in fills.items()}

    model = model_of(settings)
    model.register_forward_pre_hook(server.count, with_kwargs=True)
    versions = versions_of(model, transformers)
    trainer = Trainer(
        model=model,
        args=TrainingArguments(**common_settings(settings, folder, size, per_step), remove_unused_columns=False),
        train_dataset=rows,
        data_collator=padded,
        callbacks=[server.callback({"versions": f"{versions}, {size} samples × {per_step} per step"})],
    )
    trainer.train()


def trl(server: StepServer, data: Any, settings: dict[str, Any], folder: str) -> None:
    import trl as library
    from datasets import Dataset
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast
    from trl import SFTConfig, SFTTrainer

    tokenizer = PreTrainedTokenizerFast(  # not used for the tokenized samples, but required by SFTTrainer
        tokenizer_object=Tokenizer(models.WordLevel({"<pad>": 0, "<end>": 1}, unk_token="<pad>")),
        pad_token="<pad>",
        eos_token="<end>",
    )
    model = model_of(settings)
    model.register_forward_pre_hook(server.count, with_kwargs=True)
    config = SFTConfig(**common_settings(settings, folder, 1, 1), packing=True, max_length=settings["seq_length"])
    versions = f"{versions_of(model, library)}, packing {config.packing_strategy}"
    trainer = SFTTrainer(
        model=model,
        args=config,
        train_dataset=Dataset.from_list(rows_of(data)),
        processing_class=tokenizer,
        callbacks=[server.callback({"versions": versions})],
    )
    trainer.train()


def main() -> None:
    kind, samples, threads, clock = sys.argv[1:]
    # Answers use a copy of stdout; whatever the libraries print to stdout goes to stderr.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    server = StepServer(answers, clock)
    warnings.simplefilter("ignore")
    try:
        import torch

        torch.set_num_threads(int(threads))
        data = np.load(samples)
        settings = json.loads(str(data["settings"]))
        with tempfile.TemporaryDirectory() as folder:
            os.environ["HF_DATASETS_CACHE"] = os.environ["HF_HOME"] = folder
            (hugging_face if kind == "hugging-face" else trl)(server, data, settings, folder)
    except ImportError as error:
        server.send(missing=str(error))


if __name__ == "__main__":
    main()
