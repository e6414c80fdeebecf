"""Rules between the flags of checkpoints, exports and output directories."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from mindspeed_llm.arguments.hugging_face_config import has_hugging_face_weights, is_hugging_face_folder
from mindspeed_llm.arguments.pretrain_arguments import PretrainArguments
from mindspeed_llm.arguments.rule import Rule, nearest_multiples

# Flag of a directory → the directory.
FOLDERS: dict[str, Callable[[PretrainArguments], str | None]] = {
    "--save": lambda args: args.checkpoint.save,
    "--load": lambda args: args.checkpoint.load,
    "--tokenizer-name-or-path": lambda args: args.tokenizer.tokenizer_name_or_path,
    "--run-dir": lambda args: args.logging.run_dir,
    "--save-hf": lambda args: args.checkpoint.save_hf,
    "--save-hf-merged": lambda args: args.checkpoint.save_hf_merged,
    "--lora-load": lambda args: args.lora.lora_load,
}
# Flags that decide whether data are held out.
DIVISION = ("--split", "--data-path", "--train-data-path", "--valid-data-path", "--test-data-path")
EXPORTS = ("--save-hf", "--save-hf-merged")


def _saves_into_loaded_model(arguments: PretrainArguments) -> bool:
    save, load = arguments.checkpoint.save, arguments.checkpoint.load
    return save is not None and load is not None and _same(save, load) and is_hugging_face_folder(save)


def _saves_into_other_model(arguments: PretrainArguments) -> bool:
    save = arguments.checkpoint.save
    return save is not None and not _saves_into_loaded_model(arguments) and has_hugging_face_weights(save)


def _export_takes_the_place_of(export_flag: str, flag: str) -> Rule[PretrainArguments]:
    """Return the rule that the directory of another flag must not be the one that is exported to."""

    def is_same(arguments: PretrainArguments) -> bool:
        export, folder = FOLDERS[export_flag](arguments), FOLDERS[flag](arguments)
        return export is not None and folder is not None and _same(export, folder)

    return Rule[PretrainArguments](
        (export_flag, flag), is_same, f"{{{export_flag}}}: {flag} names the same folder; give another directory"
    )


def _export_holds(export_flag: str, flag: str) -> Rule[PretrainArguments]:
    """Return the rule that the directory of another flag must not be inside the one that is exported to.

    The export replaces a complete directory and refuses one with other content. Without this rule the run would fail
    only at its end.
    """

    def is_inside(arguments: PretrainArguments) -> bool:
        export, folder = FOLDERS[export_flag](arguments), FOLDERS[flag](arguments)
        return export is not None and folder is not None and _inside(folder, export)

    return Rule[PretrainArguments](
        (export_flag, flag),
        is_inside,
        f"{{{flag}}}: inside {{{export_flag}}}, which may contain only the exported model; give another directory",
    )


def _same(first: str, second: str) -> bool:
    """Return whether two paths refer to the same directory, also through relative paths and symbolic links."""
    return Path(first).resolve() == Path(second).resolve()


def _inside(inner: str, outer: str) -> bool:
    return Path(outer).resolve() in Path(inner).resolve().parents


def _needs_save(flag: str, value: Callable[[PretrainArguments], object]) -> Rule[PretrainArguments]:
    """Return the rule that a flag of the checkpoints needs a directory for them."""
    return Rule[PretrainArguments](
        (flag, "--save"),
        lambda args: bool(value(args)) and args.checkpoint.save is None,
        f"{{{flag}}} needs --save; add --save DIR, or leave the flag out",
    )


def _needs_evaluation(flag: str, value: Callable[[PretrainArguments], object]) -> tuple[Rule[PretrainArguments], ...]:
    """Return the rules that a flag which compares held-out losses needs evaluations during training."""
    return (
        Rule[PretrainArguments](
            (flag, "--eval-interval", "--eval-iters"),
            lambda args: bool(value(args)) and (args.training.eval_interval is None or not args.training.eval_iters),
            f"{{{flag}}} compares the held-out losses of evaluations; give --eval-interval N, and --eval-iters above 0",
        ),
        Rule[PretrainArguments](
            (flag, *DIVISION),
            lambda args: bool(value(args)) and not args.data.has_validation,
            f"{{{flag}}} needs data that are held out; give a second number above 0 in --split, or --valid-data-path",
        ),
    )


def _hugging_face_interval_fault(arguments: PretrainArguments) -> bool:
    checkpoint = arguments.checkpoint
    interval, saves = checkpoint.save_hf_interval, checkpoint.save_interval
    return interval is not None and checkpoint.save is not None and (saves is None or interval % saves != 0)


def _intervals(arguments: PretrainArguments) -> str:
    """Return what to give for --save-hf-interval."""
    interval, saves = arguments.checkpoint.save_hf_interval or 0, arguments.checkpoint.save_interval
    return "add --save-interval" if saves is None else f"give {nearest_multiples(interval, saves)}"


RULES: tuple[Rule[PretrainArguments], ...] = (
    Rule[PretrainArguments](
        ("--save", "--no-save-model", "--dry-run"),
        lambda args: args.checkpoint.save is None and not args.checkpoint.no_save_model and not args.device.dry_run,
        "--save is missing: without it the trained model is lost at the end; add --save DIR, or --no-save-model for a "
        "benchmark or a test",
    ),
    _needs_save("--save-interval", lambda args: args.checkpoint.save_interval),
    _needs_save("--save-hf-interval", lambda args: args.checkpoint.save_hf_interval),
    _needs_save("--best-checkpoint", lambda args: args.checkpoint.best_checkpoint),
    *_needs_evaluation("--best-checkpoint", lambda args: args.checkpoint.best_checkpoint),
    *_needs_evaluation("--early-stopping", lambda args: args.training.early_stopping),
    Rule[PretrainArguments](
        ("--save-hf-interval", "--save-interval", "--save"),
        _hugging_face_interval_fault,
        lambda args: (
            f"--save-hf-interval {args.checkpoint.save_hf_interval} must be a multiple of --save-interval, because a "
            f"Hugging Face folder is written from a checkpoint; {_intervals(args)}"
        ),
    ),
    Rule[PretrainArguments](
        ("--save-hf", "--save"),
        lambda args: args.checkpoint.save_hf is not None and args.checkpoint.save is None,
        "{--save-hf} needs --save: the model is exported from the last checkpoint; add --save DIR",
    ),
    # A checkpoint tracker hides the model: `is_hugging_face_folder` becomes false, and --load reads the checkpoint.
    Rule[PretrainArguments](
        ("--save", "--load"),
        _saves_into_loaded_model,
        "{--save}: --load names the same folder, a Hugging Face model, which could not be loaded any more with "
        "checkpoints in it; give another directory",
    ),
    Rule[PretrainArguments](
        ("--save", "--load"),
        _saves_into_other_model,
        "{--save}: contains a Hugging Face model, which could not be loaded any more with checkpoints in it; "
        "give another directory",
    ),
    *(
        _export_takes_the_place_of(export, flag)
        for export in EXPORTS
        for flag in ("--save", "--load", "--tokenizer-name-or-path", "--lora-load")
    ),
    _export_takes_the_place_of("--save-hf-merged", "--save-hf"),
    *(_export_holds(export, flag) for export in EXPORTS for flag in ("--save", "--run-dir")),
    _needs_save("--async-save", lambda args: args.checkpoint.async_save),
    Rule[PretrainArguments](
        ("--keep-last", "--async-save", "--save"),
        lambda args: (
            args.checkpoint.keep_last is not None and not args.checkpoint.async_save and args.checkpoint.save is None
        ),
        "{--keep-last} needs --save; add --save DIR, or leave the flag out",
    ),
)
