"""Pairs of command lines of pretrain_gpt.py that differ in one flag, for every flag."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from mindspeed_llm.arguments.compatibility_arguments import QWEN3_SPEC
from mindspeed_llm.arguments.dataclass_parser import Flag, declared_flags
from mindspeed_llm.arguments.pretrain_arguments import GROUPS, PretrainArguments
from mindspeed_llm.arguments.pretrain_parser import parse_pretrain_arguments

BASE = (
    "--num-layers 4 --hidden-size 64 --num-attention-heads 4 --vocab-size 300 --seq-length 32 --no-save-model "
    "--micro-batch-size 1 "
    "--lr 1e-3 --data-path none --is-instruction-dataset"
)
RANKS = 4
FLAGS = {flag.name: flag for group in GROUPS for flag in declared_flags(group)}


@dataclass(frozen=True)
class Change:
    """Arguments of both command lines, and arguments of only the second one."""

    words: str = "--train-iters 3"
    context: str = ""
    changed: str = ""


# Flags with only one supported value: the tests change them after parsing.
ONE_VALUE: dict[str, Any] = {
    "--stage": "dpo",
    "--normalization": "LayerNorm",
    "--position-embedding-type": "none",
    "--attention-dropout": 0.1,
    "--context-parallel-size": 2,
    "--is-instruction-dataset": False,
    "--eod-id": 5,
    "--split-in-file-order": True,
    "--attention-mask-type": "general",
    "--low-freq-factor": 2.0,
    "--high-freq-factor": 2.0,
    "--original-max-position-embeddings": 4096.0,
    "--lora-load": "elsewhere",  # must contain an adapter
    "--hf-config-path": "elsewhere",  # must contain a config.json
}
_FULL = "--recompute-granularity full --recompute-method uniform --recompute-num-layers 1"
_LORA = "--swiglu --lora-target-modules all-linear"
_PROMPT = "--tuning prompt --virtual-tokens 4 --neat-pack --reset-position-ids"
_P_TUNING = _PROMPT.replace("prompt", "p-tuning")
_FOLDER = "--tokenizer-type PretrainedFromHF --tokenizer-name-or-path"
_FILE = "--tokenizer-type GPTSentencePieceTokenizer --tokenizer-model"
SPECIAL = {
    "--hidden-size": Change(changed="--hidden-size 128"),
    "--num-attention-heads": Change(changed="--num-attention-heads 8"),
    "--kv-channels": Change(changed="--kv-channels 32"),
    "--group-query-attention": Change(changed="--group-query-attention --num-query-groups 2"),
    "--num-query-groups": Change(
        context="--group-query-attention --num-query-groups 2", changed="--num-query-groups 1"
    ),
    "--max-position-embeddings": Change(changed="--max-position-embeddings 64"),
    "--rotary-percent": Change(changed="--rotary-percent 0.5"),
    "--rope-scaling-factor": Change(context="--use-rope-scaling", changed="--rope-scaling-factor 4"),
    "--padded-vocab-size": Change(changed="--padded-vocab-size 304"),
    "--hidden-dropout": Change(changed="--hidden-dropout 0.1"),
    "--num-layers-per-virtual-pipeline-stage": Change(
        context="--pipeline-model-parallel-size 2 --global-batch-size 4",
        changed="--num-layers-per-virtual-pipeline-stage 1",
    ),
    "--num-layer-list": Change(
        context="--pipeline-model-parallel-size 2 --num-layer-list 2,2", changed="--num-layer-list 1,3"
    ),
    "--tensor-model-parallel-size": Change(changed="--tensor-model-parallel-size 2"),
    "--pipeline-model-parallel-size": Change(changed="--pipeline-model-parallel-size 2"),
    "--sequence-parallel": Change(context="--tensor-model-parallel-size 2", changed="--sequence-parallel"),
    "--overlap-param-gather": Change(
        context="--use-distributed-optimizer --overlap-grad-reduce", changed="--overlap-param-gather"
    ),
    "--global-batch-size": Change(context="--global-batch-size 4", changed="--global-batch-size 8"),
    "--train-samples": Change("", "--train-samples 12", "--train-samples 16"),
    "--train-epochs": Change("", "--train-epochs 1", "--train-epochs 2"),
    "--early-stopping": Change(
        context="--split 90,10,0 --eval-interval 1 --early-stopping 2", changed="--early-stopping 3"
    ),
    "--best-checkpoint": Change(context="--save x --split 90,10,0 --eval-interval 1", changed="--best-checkpoint"),
    "--save-hf-interval": Change(context="--save x --save-interval 1", changed="--save-hf-interval 2"),
    "--eval-iters": Change(context="--split 90,10,0", changed="--eval-iters 7"),
    "--lr-decay-iters": Change(changed="--lr-decay-iters 2"),
    "--lr-decay-style": Change(changed="--lr-decay-style cosine"),
    "--lr-decay-samples": Change("--train-samples 12", changed="--lr-decay-samples 8"),
    "--lr-wsd-decay-style": Change(
        context="--lr-decay-style WSD --lr-wsd-decay-iters 1", changed="--lr-wsd-decay-style linear"
    ),
    "--lr-wsd-decay-iters": Change(
        context="--lr-decay-style WSD --lr-wsd-decay-iters 1", changed="--lr-wsd-decay-iters 2"
    ),
    "--lr-wsd-decay-samples": Change(
        "--train-samples 12", "--lr-decay-style WSD --lr-wsd-decay-samples 4", "--lr-wsd-decay-samples 8"
    ),
    "--lr-warmup-fraction": Change(changed="--lr-warmup-fraction 0.1"),
    "--lr-warmup-samples": Change("--train-samples 12", changed="--lr-warmup-samples 8"),
    "--min-lr": Change(changed="--min-lr 1e-4"),
    "--recompute-granularity": Change(changed="--recompute-granularity selective"),
    "--recompute-method": Change(context=_FULL, changed="--recompute-method block"),
    "--recompute-num-layers": Change(context=_FULL, changed="--recompute-num-layers 2"),
    "--recompute-activation-function-num-layers": Change(
        context="--recompute-activation-function", changed="--recompute-activation-function-num-layers 2"
    ),
    "--spec": Change(context="--qk-layernorm", changed=f"--spec {' '.join(QWEN3_SPEC)}"),
    "--rope-scaling-type": Change(context="--use-rope-scaling", changed="--rope-scaling-type llama3"),
    "--tuning": Change(context=_PROMPT, changed="--tuning prefix"),
    "--virtual-tokens": Change(context=_PROMPT, changed="--virtual-tokens 5"),
    "--prompt-encoder-size": Change(context=_P_TUNING, changed="--prompt-encoder-size 8"),
    "--adapter-size": Change(context="--swiglu --tuning adapter --adapter-size 4", changed="--adapter-size 5"),
    "--lora-target-modules": Change(context=_LORA, changed="--lora-target-modules q_proj"),
    "--lora-r": Change(context=_LORA, changed="--lora-r 8"),
    "--lora-alpha": Change(context=_LORA, changed="--lora-alpha 8"),
    "--lora-dropout": Change(context=_LORA, changed="--lora-dropout 0.1"),
    "--use-rslora": Change(context=_LORA, changed="--use-rslora"),
    "--lora-plus-ratio": Change(context=_LORA, changed="--lora-plus-ratio 4"),
    "--save-hf-merged": Change(context=f"{_LORA} --save x", changed="--save-hf-merged y"),
    "--seq-length": Change(changed="--seq-length 64"),
    "--split": Change(context="--split 90,10,0", changed="--split 80,20,0"),
    "--prompt-type": Change(context="--prompt-type qwen", changed="--prompt-type llama2"),
    "--neat-pack": Change(context="--reset-position-ids", changed="--neat-pack"),
    "--length-grouped": Change(context="--variable-seq-lengths", changed="--length-grouped"),
    "--tokenizer-type": Change(context=f"{_FOLDER} a", changed="--tokenizer-type GPTSentencePieceTokenizer"),
    "--tokenizer-name-or-path": Change(context=f"{_FOLDER} a", changed="--tokenizer-name-or-path b"),
    "--tokenizer-model": Change(context=f"{_FILE} a", changed="--tokenizer-model b"),
    "--load": Change(context="--load nowhere --finetune", changed="--load elsewhere"),
    "--enable-hf2mg-convert": Change(context="--load nowhere --finetune", changed="--enable-hf2mg-convert"),
    "--generate-prompts": Change(
        context="--tokenizer-type PretrainedFromHF --tokenizer-name-or-path x --generate-tokens 8",
        changed="--generate-prompts other",
    ),
    "--save-hf": Change(context="--save x", changed="--save-hf y"),
    "--save-interval": Change(context="--save x", changed="--save-interval 2"),
    "--keep-last": Change(context="--save x", changed="--keep-last 2"),
    "--mfu": Change(context="--device-type A100 --mfu 0.5", changed="--mfu 0.4"),
    "--async-save": Change(context="--save x", changed="--async-save"),
}
# Covered by the tests of the data, because they need other flags.
PATHS = ("--data-path", "--train-data-path", "--valid-data-path", "--test-data-path")


def before_and_after(name: str) -> tuple[PretrainArguments, PretrainArguments]:
    """Return the arguments of two commands that differ in one flag and its consequences."""
    flag, change = FLAGS[name], SPECIAL.get(name)
    words = BASE.split() + (change or Change()).words.split() + (change or Change()).context.split()
    before = parse_pretrain_arguments(words, RANKS)
    if name in ONE_VALUE:
        return before, _replaced(before, flag, ONE_VALUE[name])
    changed = change.changed.split() if change else _other(flag, before)
    return before, parse_pretrain_arguments([*words, *changed], RANKS)


def _replaced(arguments: PretrainArguments, flag: Flag, value: Any) -> PretrainArguments:
    groups = [
        dataclasses.replace(group, **{flag.field.name: value}) if hasattr(group, flag.field.name) else group  # type: ignore[type-var]
        for group in arguments.groups
    ]
    return PretrainArguments.from_groups(groups, RANKS, arguments.given)


def _other(flag: Flag, arguments: PretrainArguments) -> list[str]:
    """Return arguments that change the value of a flag."""
    now = next(getattr(group, flag.field.name) for group in arguments.groups if hasattr(group, flag.field.name))
    if flag.switch is not None:
        return [flag.name]
    if flag.choices:
        built = [choice for choice in flag.choices if choice != now]
        return [flag.name, str(built[0])]
    if flag.kind is str:
        return [flag.name, "other"]
    return [flag.name, str((now or 0) + 1) if flag.kind is int else str(now / 2 if now else 0.5)]
