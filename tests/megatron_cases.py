"""The runs that Megatron and our own loop both make, with their flags."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

TP, PP = "--tensor-model-parallel-size 2", "--pipeline-model-parallel-size 2"
DISTRIBUTED = "--use-distributed-optimizer"
STEPS = 4
# Of MindSpeed: kernels of torch_npu and recomputation.
OPTIONS = (
    "--use-flash-attn --use-fused-rmsnorm --use-fused-swiglu --optimizer-selection fused_torch_adamw "
    "--recompute-granularity full --recompute-method block --recompute-num-layers 2"
)
FIVE = "--train-iters 5"

SHAPE = (
    "--num-layers 4 --hidden-size 64 --ffn-hidden-size 96 --num-attention-heads 4 --group-query-attention "
    "--num-query-groups 2 --disable-bias-linear --add-qkv-bias --swiglu --normalization RMSNorm --norm-epsilon 1e-6 "
    "--position-embedding-type rope --rotary-base 10000 --untie-embeddings-and-output-weights "
    "--make-vocab-size-divisible-by 64 --seq-length 256 --init-method-std 0.05"
)
# The large epsilon: where a gradient is rounding alone, 1e-8 would let Adam make a whole step of it.
TRAINING = (
    "--micro-batch-size 1 --global-batch-size 4 --lr 1e-3 --min-lr 1e-4 --clip-grad 1.0 --lr-decay-style cosine "
    f"--lr-decay-iters {STEPS} --weight-decay 0.1 --adam-eps 1e-6 --seed 1234 --log-interval 1 --train-iters {STEPS}"
)
PACKS = "--is-instruction-dataset --prompt-type qwen --neat-pack --reset-position-ids"
OWN = "--device cpu --loss-chunk-size 0 --no-save-model"
# What Megatron does not do on a CPU, and what its defaults do not give.
MEGATRON = (
    "--transformer-impl local --attention-dropout 0 --hidden-dropout 0 --max-position-embeddings 256 "
    "--attention-softmax-in-fp32 --no-gradient-accumulation-fusion --no-persist-layer-norm --no-masked-softmax-fusion "
    "--no-rope-fusion --no-bias-swiglu-fusion --no-bias-dropout-fusion --distributed-backend gloo "
    "--use-cpu-initialization --eval-interval 1000"
)


@dataclass(frozen=True)
class MegatronCase:
    """One run of Megatron, and the run of our own loop that it must equal.

    Attributes:
        ranks: number of ranks.
        layout: flags of the layout, for both.
        own: name of the case whose run of our own loop is the reference; "" for its own, None for none.
        more: further flags of Megatron.
        without: flag of MEGATRON that the run leaves out.
        imports: whether the script has our import line.
        boundaries: False for the negative control, which trains each pack as one sample.
        packs: whether the run has our flags; otherwise it has Megatron's mock data.
        saves: name of the checkpoint that the run saves at step 2 and at its end.
        loads: name of the checkpoint that the run resumes; "" for the weights that all runs start with.
        finetunes: whether both load only the weights of `loads`, which Megatron has saved.
        stop: last step of the run.
        mindspeed: how the run loads MindSpeed: by an import "before" or "after" our line, by a "flag", or "": not.
        starts: whether the run makes the weights that all others start with, in one step from its own initialization.
        module: whether the script is started with `python -m mindspeed_llm.megatron`, without the import line.
    """

    ranks: int = 1
    layout: str = ""
    own: str | None = ""
    more: str = ""
    without: str = ""
    imports: bool = True
    boundaries: bool = True
    packs: bool = True
    saves: str = ""
    loads: str = ""
    finetunes: bool = False
    stop: int = STEPS
    module: bool = False
    mindspeed: str = ""
    starts: bool = False


CASES = {
    "tp1": MegatronCase(),
    "tp2 sp": MegatronCase(2, f"{TP} --sequence-parallel"),
    "pp2 mbs2": MegatronCase(2, f"{PP} --micro-batch-size 2"),
    "interleaved": MegatronCase(2, f"{PP} --num-layers-per-virtual-pipeline-stage 1"),
    "dp2": MegatronCase(2, DISTRIBUTED),
    "epochs": MegatronCase(layout="--no-shuffle --padded-samples --split 0.8,99.2,0 --global-batch-size 5"),
    "whole packs": MegatronCase(own="tp1", boundaries=False),
    "saved": MegatronCase(2, DISTRIBUTED, own="dp2", saves="resume", stop=2),
    "resumed": MegatronCase(2, DISTRIBUTED, own="dp2", loads="resume"),
    "theirs": MegatronCase(2, DISTRIBUTED, loads="resume", finetunes=True),
    "mock": MegatronCase(own=None, imports=False, packs=False, saves="mock", more=FIVE),
    "mock imported": MegatronCase(own=None, packs=False, saves="mock imported", more=FIVE),
}
CASES["module"] = MegatronCase(own="tp1", imports=False, module=True)
# For a Megatron that cannot load our checkpoints: it makes the weights that all runs start with.
CASES["start"] = MegatronCase(own=None, starts=True)
# Under MindSpeed's adaptor, to which --reset-attention-mask must not be passed: it would turn on its own packing.
UNDER_MINDSPEED = {
    "line": MegatronCase(own="tp1", mindspeed="after", more="--reset-attention-mask"),
    "their line first": MegatronCase(own="tp1", mindspeed="before"),
    "module": MegatronCase(own="tp1", imports=False, module=True, mindspeed="flag"),
    "options": MegatronCase(own="tp1", mindspeed="after", more=OPTIONS, without="--no-bias-swiglu-fusion"),
    "whole packs": MegatronCase(own="tp1", mindspeed="after", boundaries=False),
    "tp2 sp": MegatronCase(2, f"{TP} --sequence-parallel", own="tp2 sp", mindspeed="after"),
    "pp2 mbs2": MegatronCase(2, f"{PP} --micro-batch-size 2", own="pp2 mbs2", mindspeed="after"),
    "interleaved": MegatronCase(2, CASES["interleaved"].layout, own="interleaved", mindspeed="after"),
    "dp2": MegatronCase(2, DISTRIBUTED, own="dp2", mindspeed="after"),
    "saved": MegatronCase(2, DISTRIBUTED, own="dp2", mindspeed="after", saves="resume", stop=2),
    "resumed": MegatronCase(2, DISTRIBUTED, own="dp2", mindspeed="after", loads="resume"),
}
CASES |= {f"under MindSpeed, {name}": case for name, case in UNDER_MINDSPEED.items()}
SHORT = ("tp2 sp", "interleaved")


def own_flags(case: MegatronCase, folder: Path) -> list[str]:
    """Return the command line of our own loop, without the places of its output."""
    words = f"{SHAPE} {TRAINING} {PACKS} {OWN} --split 90,10,0 --eval-iters 2 {case.layout}".split()
    tokenizer = ["--tokenizer-type", "PretrainedFromHF", "--tokenizer-name-or-path", str(folder / "tokenizer")]
    return [*words, *tokenizer, "--data-path", str(folder / "packed")]


def megatron_flags(case: MegatronCase, folder: Path) -> list[str]:
    """Return the command line of Megatron."""
    words = f"{SHAPE} {TRAINING} {MEGATRON} --split 90,10,0 --eval-iters 2 {case.layout} {case.more}".split()
    words = [word for word in words if word != case.without]
    if case.mindspeed == "flag":  # with the tokenizer type that MindSpeed adds
        words += ["--use-mindspeed", "--tokenizer-type", "PretrainedFromHF"]
        words += ["--tokenizer-name-or-path", str(folder / "tokenizer")]
    else:
        words += ["--tokenizer-type", "HuggingFaceTokenizer", "--tokenizer-model", str(folder / "tokenizer")]
    if case.stop < STEPS:
        words += ["--exit-interval", str(case.stop)]
    if case.saves:
        words += ["--save", str(folder / "saved" / case.saves), "--save-interval", "2"]
    if not case.packs:
        return [*words, "--mock-data"]
    words += [*PACKS.split(), "--data-path", str(folder / "packed")]
    if case.starts:
        return [*words, "--save", str(folder / "start"), "--save-interval", "1", "--exit-interval", "1"]
    if case.loads:
        return [*words, "--load", str(folder / "saved" / case.loads), *(["--finetune"] if case.finetunes else [])]
    return [*words, "--load", str(folder / "start"), "--finetune", "--dist-ckpt-strictness", "log_all"]
