"""The other programs of training.py, each in a process of its own: KIND SAMPLES THREADS CLOCK, a line on stdin a step.

hugging-face    Trainer on transformers' Qwen2: batches of four in random order, padded to their longest
trl             SFTTrainer with packing into sequences of the same length

Answers each line with a JSON object: seconds, tokens (not padding) and slots of the step; before the first, what runs.
The trainers' own loops run; a callback stops them between two steps. SAMPLES is a .npz of ids, labels, lengths and
settings; a package that is missing ends the process with one line that names it.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
import warnings
from typing import Any

import numpy as np


class Turn:
    """Steps one at a time, as they are asked for.

    Args:
        answers: where lines go; stdout itself belongs to whatever the libraries print.
        clock: elapsed or processor.
    """

    def __init__(self, answers: Any, clock: str) -> None:
        self.clock = time.perf_counter if clock == "elapsed" else time.process_time
        self.answers, self.tokens, self.slots, self.began = answers, 0, 0, 0.0

    def say(self, **values: object) -> None:
        self.answers.write(json.dumps(values) + "\n")
        self.answers.flush()

    def count(self, _: object, __: object, inputs: dict[str, Any]) -> None:
        """Before each forward pass."""
        ids, mask = inputs["input_ids"], inputs.get("attention_mask")
        self.slots += ids.numel()
        self.tokens += ids.numel() if mask is None else int(mask.sum())

    def callback(self, described: dict[str, str]) -> Any:
        """The trainer's callback that waits for its turn."""
        from transformers import TrainerCallback

        turn = self

        class Waiting(TrainerCallback):
            def wait(self, control: Any) -> None:
                if not sys.stdin.readline():
                    control.should_training_stop = True
                turn.tokens, turn.slots, turn.began = 0, 0, turn.clock()

            def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
                turn.say(**described)
                self.wait(control)

            def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
                turn.say(seconds=turn.clock() - turn.began, tokens=turn.tokens, slots=turn.slots)
                self.wait(control)

        return Waiting()


def rows_of(data: Any) -> list[dict[str, list[int]]]:
    """The samples as lists."""
    ends = np.cumsum(data["lengths"])[:-1]
    ids, labels = (np.split(data[name], ends) for name in ("ids", "labels"))
    return [{"input_ids": i.tolist(), "labels": own.tolist()} for i, own in zip(ids, labels, strict=True)]


def model_of(settings: dict[str, Any]) -> Any:
    """transformers' Qwen2 of the same shape, with its own choice of attention."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(1234)
    config = Qwen2Config(**settings["model"], use_cache=False)
    model = Qwen2ForCausalLM(config)
    assert next(model.parameters()).dtype == torch.float32
    return model


def common(settings: dict[str, Any], folder: str, rows: int, accumulation: int) -> dict[str, Any]:
    """Settings of both trainers: those of training.py, and nothing that is not training."""
    return {
        "output_dir": folder, "per_device_train_batch_size": rows, "gradient_accumulation_steps": accumulation,
        "learning_rate": settings["learning_rate"], "weight_decay": settings["weight_decay"], "adam_beta2": 0.999,
        "max_steps": 100_000, "max_grad_norm": 1.0, "lr_scheduler_type": "constant", "bf16": False,
        "use_cpu": True, "report_to": "none", "save_strategy": "no", "logging_strategy": "no", "disable_tqdm": True,
        "gradient_checkpointing": False, "seed": 1,
    }  # fmt: skip


def hugging_face(turn: Turn, data: Any, settings: dict[str, Any], folder: str) -> None:
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
    model.register_forward_pre_hook(turn.count, with_kwargs=True)
    versions = f"transformers {transformers.__version__}, attention {model.config._attn_implementation}"
    trainer = Trainer(
        model=model,
        args=TrainingArguments(**common(settings, folder, size, per_step), remove_unused_columns=False),
        train_dataset=rows,
        data_collator=padded,
        callbacks=[turn.callback({"versions": f"{versions}, {size} samples × {per_step} a step"})],
    )
    trainer.train()


def trl(turn: Turn, data: Any, settings: dict[str, Any], folder: str) -> None:
    import trl as library
    from datasets import Dataset
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast
    from trl import SFTConfig, SFTTrainer

    tokenizer = PreTrainedTokenizerFast(  # the samples are tokens already; the trainer wants to be given one
        tokenizer_object=Tokenizer(models.WordLevel({"<pad>": 0, "<end>": 1}, unk_token="<pad>")),
        pad_token="<pad>",
        eos_token="<end>",
    )
    model = model_of(settings)
    model.register_forward_pre_hook(turn.count, with_kwargs=True)
    how = SFTConfig(**common(settings, folder, 1, 1), packing=True, max_length=settings["seq_length"])
    described = (
        f"trl {library.__version__}, attention {model.config._attn_implementation}, packing {how.packing_strategy}"
    )
    trainer = SFTTrainer(
        model=model,
        args=how,
        train_dataset=Dataset.from_list(rows_of(data)),
        processing_class=tokenizer,
        callbacks=[turn.callback({"versions": described})],
    )
    trainer.train()


def main() -> None:
    kind, samples, threads, clock = sys.argv[1:]
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    turn = Turn(answers, clock)
    warnings.simplefilter("ignore")
    try:
        import torch

        torch.set_num_threads(int(threads))
        data = np.load(samples)
        settings = json.loads(str(data["settings"]))
        with tempfile.TemporaryDirectory() as folder:
            os.environ["HF_DATASETS_CACHE"] = os.environ["HF_HOME"] = folder
            (hugging_face if kind == "hugging-face" else trl)(turn, data, settings, folder)
    except ImportError as error:
        turn.say(missing=str(error))


if __name__ == "__main__":
    main()
