"""Command line of `python -m mindspeed_llm.verify`: its own flags, and all flags of pretrain_gpt.py.

A training command on packed data can be given. What only concerns a longer run or its output has no effect.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from mindspeed_llm.adapters import is_peft_folder
from mindspeed_llm.arguments.bounds import between
from mindspeed_llm.arguments.config_file import expand_config
from mindspeed_llm.arguments.dataclass_parser import declared_flags, parse_known_groups
from mindspeed_llm.arguments.hugging_face_config import is_hugging_face_folder
from mindspeed_llm.arguments.parallel_arguments import ParallelArguments
from mindspeed_llm.arguments.pretrain_arguments import GROUPS, PretrainArguments
from mindspeed_llm.arguments.pretrain_parser import parse_pretrain_arguments
from mindspeed_llm.arguments.raw_data_arguments import RawDataArguments
from mindspeed_llm.arguments.training_arguments import TrainingArguments
from mindspeed_llm.errors import ConfigError
from mindspeed_llm.manifest import Manifest, has_document_files, manifest_path

PROGRAM = "mindspeed_llm.verify"
DESCRIPTION = (
    "Compare a model in this project with the same model in transformers, on the first packs of your data: logits, "
    "losses and gradients. All flags of pretrain_gpt.py are accepted; those below are its own."
)
# Flags of the length of a run. If none is given, the parser of pretrain_gpt.py needs one.
LENGTHS = ("--train-iters", "--train-samples", "--train-epochs")


@dataclass
class VerifyArguments:
    """Comparison with transformers."""

    packs: int | None = field(default=None, metadata=between(1, 10_000))
    """Number of packs to compare, from the first of the files: the global batch of the first step. Default: 2, rounded
    up to what the layout needs."""
    export: str | None = field(default=None, metadata={"metavar": "DIR"})
    """Hugging Face folder or peft folder that was exported from the checkpoint of --load or --lora-load, to compare
    with it."""
    reference_float64: Literal["auto", "always", "never"] = "auto"
    """Run transformers a second time in float64 and derive the limits from its own error. auto: if 16 bytes for each
    parameter are at most half of the free memory."""
    reference_on_host: bool = False
    """Keep transformers' model, which is not divided, in the memory of the host. The float64 run is always there."""
    scratch_dir: str | None = field(default=None, metadata={"metavar": "DIR"})
    """Directory for intermediate results, which are removed at the end: the gradients of both sides and their logits.
    Default: the directory for temporary files."""


@dataclass(frozen=True)
class VerifyCommand:
    """A checked command.

    Attributes:
        own: flags of this program.
        run: flags of the run.
        packs: number of packs to compare.
    """

    own: VerifyArguments
    run: PretrainArguments
    packs: int

    @property
    def reference_adapter(self) -> str | None:
        """Peft folder that peft adds to the base model; None if transformers loads a complete model."""
        export = self.own.export
        if export is None:
            return self.run.lora.lora_load
        return export if is_peft_folder(Path(export)) else None


def parse_verify_arguments(argv: Sequence[str], world_size: int, program: str = PROGRAM) -> VerifyCommand:
    """Parse and check the command line.

    Args:
        argv: command-line arguments without the program's name.
        world_size: number of ranks of the job.
        program: name of the program for the help.

    Raises:
        ConfigError: the command line is invalid. One line per problem.
    """
    every_group = (VerifyArguments, *GROUPS, RawDataArguments)
    command = expand_config(argv, [flag for group in every_group for flag in declared_flags(group)])
    mine, others = _divide(command.arguments)
    parsed = parse_known_groups(mine, [VerifyArguments], program, DESCRIPTION)
    own: VerifyArguments = parsed.groups[0]
    problems = [*command.problems, *parsed.problems, *_export_problems(own)]
    words = [*_defaults(others), *others]
    packs = own.packs or _default_packs(words, world_size)
    try:
        own_words = ["--finetune", "--global-batch-size", str(packs), "--no-save-model"]
        run = parse_pretrain_arguments([*words, *own_words], world_size, finds_files=True)
    except ConfigError as error:
        raise ConfigError(problems + [_named_here(problem) for problem in error.problems]) from error
    problems += [*run.wrong_files, *_problems(own, run)]
    if problems:
        raise ConfigError(problems)
    _fix(run)
    return VerifyCommand(own, run, packs)


def _divide(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Divide a command line into the flags of this program and those of pretrain_gpt.py."""
    names = {name for flag in declared_flags(VerifyArguments) for name in flag.names} | {"--help", "-h"}
    mine: list[str] = []
    others: list[str] = []
    target = others
    for word in argv:
        if word.startswith("-") and not word[1:2].isdigit():
            target = mine if word.partition("=")[0] in names else others
        target.append(word)
    return mine, others


def _defaults(argv: Sequence[str]) -> list[str]:
    """Return values for flags that are not given: of the data from its manifest, and of what does not matter here."""
    given = {word.partition("=")[0] for word in argv}
    words = ["--micro-batch-size", "1", "--lr", "1e-5", "--is-instruction-dataset"]
    if not given & set(LENGTHS):
        words += ["--train-iters", "1"]
    # Otherwise the activations of a pack, and not the weights, would decide how much memory the comparison needs.
    if not any(word.startswith("--recompute") for word in given):
        words += ["--recompute-granularity", "full", "--recompute-method", "uniform", "--recompute-num-layers", "1"]
    manifest = _manifest(argv)
    if manifest is not None:
        words += ["--seq-length", str(manifest.seq_length)]
        words += ["--neat-pack", "--reset-position-ids"] if manifest.neat else []
    return words


def _manifest(argv: Sequence[str]) -> Manifest | None:
    """Return the manifest of the first prefix of --data-path; None if there is none."""
    words = iter(argv)
    for word in words:
        name, _, value = word.partition("=")
        if name not in ("--data-path", "--train-data-path"):
            continue
        for prefix in [value] if value else list(words):
            if prefix.startswith("--"):
                break
            if manifest_path(prefix).is_file():
                return Manifest.read(manifest_path(prefix))
    return None


def _default_packs(words: Sequence[str], world_size: int) -> int:
    """Return the smallest number of packs that the layout can divide, at least 2."""
    # Problems, such as the flags of other groups, are reported when the whole command is parsed.
    parsed = parse_known_groups(words, [ParallelArguments, TrainingArguments], PROGRAM, DESCRIPTION)
    parallel, training = parsed.groups
    unit = training.micro_batch_size * max(1, world_size // parallel.model_parallel_size)
    if parallel.num_layers_per_virtual_pipeline_stage is not None:
        unit *= parallel.pipeline_model_parallel_size
    return -(-max(2, unit) // unit) * unit


def _fix(run: PretrainArguments) -> None:
    """Set what a comparison decides itself: one step over the first packs in file order, and nothing is written."""
    run.training.eval_iters = 0
    run.data.no_shuffle, run.data.padded_samples, run.data.length_grouped = True, False, False
    if not run.data.per_split_paths:
        run.data.split = "100,0,0"
    run.model.hidden_dropout, run.lora.lora_dropout = 0.0, 0.0
    # Each replica has all gradients then, in buffers of one copy.
    run.parallel.use_distributed_optimizer = False
    run.parallel.overlap_grad_reduce = run.parallel.overlap_param_gather = False
    run.checkpoint = replace(run.checkpoint, save=None, save_hf=None, save_hf_merged=None)


def _export_problems(own: VerifyArguments) -> list[str]:
    """Return the problem of --export, if it has one."""
    export = own.export
    if export is None or is_peft_folder(Path(export)) or is_hugging_face_folder(export):
        return []
    return [f"--export {export}: neither a Hugging Face folder nor a peft folder; give one of them"]


def _problems(own: VerifyArguments, run: PretrainArguments) -> list[str]:
    """Return one line for each problem between the flags."""
    problems = []
    load, lora, export = run.checkpoint.load, run.lora.lora_load, own.export
    is_model = load is not None and is_hugging_face_folder(load)
    is_export_of_adapter = export is not None and is_peft_folder(Path(export))
    if load is None:
        problems.append("--load is missing: give the Hugging Face folder or the checkpoint to compare")
    elif export is None and not is_model:
        problems.append(f"--load {load} is a checkpoint: add --export with the Hugging Face folder to compare it with")
    if lora is not None and export is None and not is_peft_folder(Path(lora)):
        problems.append(f"--lora-load {lora} is a checkpoint: add --export with the peft folder to compare it with")
    if is_export_of_adapter and lora is None:
        problems.append(f"--export {export} is an adapter: give the checkpoint of the adapter with --lora-load")
    if lora is not None and (is_export_of_adapter or export is None) and load is not None and not is_model:
        problems.append(f"--load {load}: peft needs the base model as a Hugging Face folder; convert it")
    if run.lora.settings is not None and lora is None:
        problems.append("--lora-target-modules without --lora-load: a new adapter changes nothing; leave the flag out")
    if run.tuning.tuning not in (None, "lora"):
        problems.append(f"--tuning {run.tuning.tuning}: not supported here yet; adapters of LoRA are compared")
    documents = [prefix for prefix in run.data.data_path or [] if has_document_files(prefix)]
    if run.training.stage == "pretrain" or documents:
        problems.append(
            f"{documents[0] if documents else '--stage pretrain'}: documents are not compared; give packed files, "
            "which preprocess_data.py --pack writes from the same text"
        )
    if run.training.fp16:
        problems.append("--fp16: small gradients would become 0 without a loss scale; compare in bf16 or float32")
    return problems


def _named_here(problem: str) -> str:
    """Return a message with the flag of this program in place of --global-batch-size."""
    return problem.replace("--global-batch-size", "--packs")
