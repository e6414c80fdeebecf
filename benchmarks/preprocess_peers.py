"""Programs that preprocess.py compares with, run as a process: KIND DATA TOKENIZER WORKERS PROGRAM.

tokenizer       encode_batch_fast on the texts of all rows; reports the seconds of that loop only
trl             the data preparation of SFTTrainer: chat template, tokens, masks, packing
llama-factory   the data preparation of get_dataset: the same, with neat packing

The last two need separate environments with torch installed first (pip install -c constraints.txt torch). Versions that
work: TRL 1.16.0 with transformers 5.23.0; LLaMA-Factory 0.9.3 (installed with --no-deps) with the imports of its data
package: transformers 4.52.4, datasets 3.6.0, accelerate, peft 0.15.2, trl 0.9.6, numpy 1.26, pyarrow below 21,
omegaconf, fire, tyro, av. From 0.9.4, LLaMA-Factory imports torchaudio, whose wheels need the CUDA build of libtorch.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

SEQ_LENGTH = 4096
SYSTEM = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
CHAT = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}{{ '\n' }}{% else %}"
    "{{ message['content'] + '<|im_end|>\n' }}{% endif %}{% endfor %}"
)


def turns_of(row: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the (prompt, answer) pairs of a row."""
    if "conversations" in row:
        texts = [message["value"] for message in row["conversations"]]
        return list(zip(texts[::2], texts[1::2], strict=True))
    prompt = f"{row['instruction']}\n{row['input']}" if row["input"] else row["instruction"]
    return [(prompt, row["output"])]


def tokenizer_alone(data: Path, folder: Path, workers: int) -> None:
    os.environ["RAYON_NUM_THREADS"] = str(workers)
    os.environ["TOKENIZERS_PARALLELISM"] = "true" if workers > 1 else "false"
    from tokenizers import Tokenizer

    texts = []
    for row in json.loads(data.read_text(encoding="utf-8")):
        for number, (prompt, answer) in enumerate(turns_of(row)):
            # The system text is equal in all rows. It is included once, because this project also tokenizes it once.
            head = SYSTEM if number == 0 and not texts else ""
            texts.append(f"{head}<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n")
            texts.append(answer)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    before, started, tokens = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter(), 0
    for start in range(0, len(texts), 2_000):
        tokens += sum(map(len, tokenizer.encode_batch_fast(texts[start : start + 2_000], add_special_tokens=False)))
    wall, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_SELF)
    cpu = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    print(json.dumps({"encode_wall": wall, "encode_cpu": cpu, "tokens": tokens}))


def messages_of(row: dict[str, Any]) -> list[dict[str, str]]:
    messages = [{"role": "system", "content": "You are a helpful assistant."}]
    for prompt, answer in turns_of(row):
        messages += [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
    return messages


def fast_tokenizer(folder: Path) -> Any:
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"),
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template=CHAT,
    )


def trl(data: Path, folder: Path, workers: int) -> None:
    from datasets import Dataset
    from transformers import Qwen2Config, Qwen2ForCausalLM
    from trl import SFTConfig, SFTTrainer

    small = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 1, "num_key_value_heads": 1}
    model = Qwen2ForCausalLM(Qwen2Config(vocab_size=151_665, **small, **heads))
    rows = Dataset.from_list([{"messages": messages_of(row)} for row in json.loads(data.read_text(encoding="utf-8"))])
    with tempfile.TemporaryDirectory() as out:
        settings = SFTConfig(
            output_dir=out, packing=True, max_length=SEQ_LENGTH, dataset_num_proc=workers, assistant_only_loss=True,
            report_to="none", use_cpu=True, bf16=False, padding_free=False,
        )  # fmt: skip
        trainer = SFTTrainer(model=model, args=settings, train_dataset=rows, processing_class=fast_tokenizer(folder))
        print(json.dumps({"packs": len(trainer.train_dataset)}))


def llama_factory(kind: str, data: Path, folder: Path, workers: int) -> None:
    from llamafactory.data import get_dataset, get_template_and_fix_tokenizer
    from llamafactory.hparams import get_train_args

    with tempfile.TemporaryDirectory() as name:
        description: dict[str, Any] = {"file_name": str(data)}
        if kind == "sharegpt":
            description |= {"formatting": "sharegpt", "columns": {"messages": "conversations"}}
        (Path(name) / "dataset_info.json").write_text(json.dumps({"rows": description}))
        model, data_args, training, *_ = get_train_args(
            {
                "model_name_or_path": str(folder), "stage": "sft", "do_train": True, "dataset": "rows",
                "dataset_dir": name, "template": "qwen", "cutoff_len": SEQ_LENGTH, "packing": True,
                "neat_packing": True,
                "preprocessing_num_workers": workers, "overwrite_cache": True, "output_dir": name,
                "finetuning_type": "full", "report_to": "none", "use_cpu": True,
            }
        )  # fmt: skip
        tokenizer = fast_tokenizer(folder)
        template = get_template_and_fix_tokenizer(tokenizer, data_args)
        datasets = get_dataset(template, model, data_args, training, stage="sft", tokenizer=tokenizer)
        print(json.dumps({"packs": len(datasets["train_dataset"])}))


def main() -> None:
    kind, data, folder, workers, program = sys.argv[1:]
    with tempfile.TemporaryDirectory() as cache:  # an empty cache, so that no results of an earlier run are reused
        os.environ["HF_DATASETS_CACHE"] = cache
        if program == "tokenizer":
            tokenizer_alone(Path(data), Path(folder), int(workers))
        elif program == "trl":
            trl(Path(data), Path(folder), int(workers))
        else:
            llama_factory(kind, Path(data), Path(folder), int(workers))


if __name__ == "__main__":
    main()
