"""Build the steps of a recipe: the command line of each program, and the files that it reads and writes.

    preprocess ──▶ OUTPUT/data/rows_packed_*
    train      ──▶ OUTPUT/checkpoints, OUTPUT/run
    evaluate   ──▶ OUTPUT/evaluation.json, OUTPUT/run/loss.png, OUTPUT/run/report.html
    export     ──▶ OUTPUT/model, a Hugging Face folder, or the folder of an adapter

A section may give other places; what it does not give follows from the sections before it.
"""

from __future__ import annotations

import glob
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mindspeed_llm.arguments.convert_arguments import parse_convert_arguments
from mindspeed_llm.arguments.data_arguments import parse_data_path
from mindspeed_llm.arguments.preprocess_arguments import PreprocessArguments, parse_preprocess_arguments
from mindspeed_llm.arguments.pretrain_parser import parse_pretrain_arguments
from mindspeed_llm.errors import ConfigError
from mindspeed_llm.manifest import document_prefix, manifest_path
from mindspeed_llm.recipe.recipe_file import Recipe
from mindspeed_llm.recipe.section_check import reference_problems, section_flags, value_problems
from mindspeed_llm.reports.generations import GENERATIONS_NAME
from mindspeed_llm.reports.run_page import PAGE_NAME
from mindspeed_llm.storage.checkpoint_directory import CheckpointDirectory

TOKENIZER = {
    "--tokenizer-name-or-path": "PretrainedFromHF",
    "--tokenizer-model": "GPTSentencePieceTokenizer",
}
DATA_PATHS = ("--data-path", "--train-data-path", "--valid-data-path", "--test-data-path")
# Directories and files that a program writes; all other paths of a command line are read.
WRITTEN = frozenset(
    (
        *("--output-prefix", "--cache-dir", "--data-cache-path", "--save-dir"),
        *("--save", "--save-hf", "--save-hf-merged", "--run-dir", "--tensorboard-dir"),
    )
)
PATHS = frozenset({"DIR", "FILE", "PATH", "PREFIX"})  # metavars of flags whose values are paths


@dataclass(frozen=True)
class RecipeStep:
    """One step of a recipe.

    Attributes:
        name: preprocess, train, evaluate or export.
        arguments: arguments of its program.
        inputs: paths and prefixes that it reads.
        outputs: paths and prefixes that it writes.
    """

    name: str
    arguments: tuple[str, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def build_steps(recipe: Recipe) -> list[RecipeStep]:
    """Build the steps of a recipe, and check the command line of each program, with the paths and names in it.

    Raises:
        ConfigError: a program would refuse its command line, or what it names does not exist and is not written by an
            earlier step. One line per problem of all sections.
    """
    problems: list[str] = []
    references = reference_problems(recipe.path, recipe.settings.output, recipe.sections)
    steps: list[RecipeStep] = []
    preprocessing: PreprocessArguments | None = None
    if "preprocess" in recipe.sections:
        words = _with(recipe.sections["preprocess"], "--output-prefix", str(recipe.output / "data" / "rows"))
        with _Problems(problems, recipe, "preprocess"):
            preprocessing = parse_preprocess_arguments(words)
        problems += references["preprocess"]
        steps.append(
            RecipeStep("preprocess", tuple(words), _read(words, "preprocess"), (_value(words, "--output-prefix"),))
        )
    train = _train_words(recipe, preprocessing)
    if "preprocess" not in recipe.sections or preprocessing is not None:
        with _Problems(problems, recipe, "train"):
            assumed = _recorded_later(train, preprocessing) if preprocessing else []
            parse_pretrain_arguments([*train, *assumed], recipe.settings.processes)
    else:
        # What the training takes from the preprocessing is unknown; its own values can be checked nevertheless.
        problems += value_problems(recipe.path, "train", train)
    problems += references["train"]
    save, run = _value(train, "--save"), _value(train, "--run-dir")
    exported = [_value(train, flag) for flag in ("--save-hf", "--save-hf-merged") if _value(train, flag)]
    steps.append(RecipeStep("train", tuple(train), _read(train, "train"), (save, f"{run}/metrics.jsonl", *exported)))
    records = (f"{run}/metrics.jsonl", f"{run}/{GENERATIONS_NAME}")
    evaluation = (f"{recipe.output}/evaluation.json", f"{run}/loss.png", f"{run}/{PAGE_NAME}")
    steps.append(RecipeStep("evaluate", (run,), records, evaluation))
    if "export" in recipe.sections:
        words = _export_words(recipe, train)
        with _Problems(problems, recipe, "export"):
            parse_convert_arguments(words)
        problems += references["export"]
        steps.append(RecipeStep("export", tuple(words), _read(words, "export"), (_value(words, "--save-dir"),)))
    if problems:
        raise ConfigError(list(dict.fromkeys(problems)))  # a missing --load is found twice
    return steps


class _Problems:
    """Collect the problems that a parser raises inside the block, with the file and the section."""

    def __init__(self, problems: list[str], recipe: Recipe, section: str) -> None:
        self.problems, self.prefix = problems, f"{recipe.path}: {section}"

    def __enter__(self) -> None:
        return

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        if not isinstance(error, ConfigError):
            return False
        self.problems += [f"{self.prefix}: {problem}" for problem in error.problems]
        return True


def _train_words(recipe: Recipe, preprocessing: PreprocessArguments | None) -> list[str]:
    """Return the arguments of the training, with the data and the tokenizer of the preprocessing."""
    words = _with(recipe.sections["train"], "--save", str(recipe.output / "checkpoints"))
    words = _with(words, "--run-dir", str(recipe.output / "run"))
    if preprocessing is None:
        return words
    if not any(_value(words, flag) for flag in DATA_PATHS):
        prefix = preprocessing.output.output_prefix
        if preprocessing.output.output_format == "document":
            prefix = str(document_prefix(prefix, preprocessing.input.json_keys[0]))
        words += ["--data-path", prefix]
    before = recipe.sections["preprocess"]
    if not any(_value(words, flag) for flag in TOKENIZER):
        for flag, kind in TOKENIZER.items():
            if value := _value(before, flag):
                words = _with([*words, f"{flag}={value}"], "--tokenizer-type", kind)
    return words


def _recorded_later(train: Sequence[str], preprocessing: PreprocessArguments) -> list[str]:
    """Return the flags that the manifest of the preprocessing will record, if it does not exist yet."""
    prefix = preprocessing.output.output_prefix
    is_own = prefix in _values(train, "--data-path")
    if not is_own or preprocessing.output.output_format == "document" or manifest_path(prefix).is_file():
        return []
    words = ["--is-instruction-dataset"]
    if preprocessing.output.neat_pack:
        words += ["--neat-pack"]
        words += [] if "--reset-attention-mask" in train else ["--reset-position-ids"]
    if not _value(train, "--seq-length"):
        words += ["--seq-length", str(preprocessing.sample.seq_length)]
    return words


def _export_words(recipe: Recipe, train: Sequence[str]) -> list[str]:
    """Return the arguments of the export: from the checkpoint of the training to a Hugging Face folder."""
    words = list(recipe.sections["export"])
    save = _value(train, "--save")
    is_adapter = bool(_values(train, "--lora-target-modules") or _value(train, "--lora-load"))
    if is_adapter and _value(words, "--load-dir"):  # the base model, into which the adapter is merged
        words = _with(words, "--lora-load", save)
    else:
        words = _with(_with(words, "--load-dir", save), "--load-model-type", "mg")
        if is_adapter and "--save-lora-to-hf" not in words:
            words.append("--save-lora-to-hf")
    words = _with(words, "--save-model-type", "hf")
    return _with(words, "--save-dir", str(recipe.output / "model"))


def _with(words: Sequence[str], flag: str, value: str) -> list[str]:
    """Return the arguments with a flag, unless they contain it."""
    return [*words] if _values(words, flag) else [*words, f"{flag}={value}"]


def _values(words: Sequence[str], flag: str) -> list[str]:
    """Return the values of a flag in arguments; empty without the flag."""
    for number, word in enumerate(words):
        name, equals, value = word.partition("=")
        if name == flag:
            if equals:
                return [value]
            rest = words[number + 1 :]
            end = next((index for index, other in enumerate(rest) if other.startswith("--")), len(rest))
            return list(rest[:end])
    return []


def _value(words: Sequence[str], flag: str) -> str:
    """Return the value of a flag in arguments; an empty text without the flag."""
    return next(iter(_values(words, flag)), "")


def _read(words: Sequence[str], section: str) -> tuple[str, ...]:
    """Return the paths and prefixes that a program reads."""
    found: list[str] = []
    for flag in section_flags(section):
        if flag.name not in WRITTEN and (flag.field.metadata.get("metavar") in PATHS or flag.name == "--input"):
            for name in flag.names:
                values = _values(words, name)
                found += parse_data_path(values)[1] if flag.name in DATA_PATHS else values
    return tuple(found)


def files_of(name: str) -> Iterator[Path]:
    """Yield the files of a path, glob or prefix in order; of a directory of checkpoints only the last checkpoint.

    Args:
        name: an input or output of a step.
    """
    path = Path(name)
    if path.is_file():
        yield path
    elif path.is_dir():
        tracker = CheckpointDirectory(path).tracker
        number = tracker.number() if tracker.path.is_file() else None
        checkpoint = None if number is None else next(iter(CheckpointDirectory(path).up_to(number)), None)
        yield from [tracker.path] if checkpoint is not None else []
        yield from sorted(file for file in (checkpoint or path).rglob("*") if file.is_file())
    elif glob.has_magic(name):
        yield from sorted(Path(file) for file in glob.glob(name, recursive=True) if Path(file).is_file())  # noqa: PTH207 - absolute ones too
    elif path.parent.is_dir() and path.name:
        endings = (f"{path.name}_", f"{path.name}.")
        yield from sorted(file for file in path.parent.iterdir() if file.name.startswith(endings) and file.is_file())
