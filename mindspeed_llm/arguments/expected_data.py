"""Compare the manifests of packed files with a training command, before the files are opened.

The comparison itself is in manifest/expected_files.py. What only the files or the tokenizer tell is compared when they
are opened (data/compatibility.py).
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from mindspeed_llm.arguments.data_arguments import DataArguments, parse_data_path
from mindspeed_llm.arguments.data_rules import PATHS
from mindspeed_llm.arguments.pretrain_arguments import PretrainArguments
from mindspeed_llm.errors import ConfigError, DataError
from mindspeed_llm.manifest import DescribedFiles, ExpectedFiles, Manifest, blend_problems, differences, manifest_path


def expected_files(data: DataArguments, virtual_tokens: int) -> ExpectedFiles:
    """Return the packed files that a command requires, apart from its tokenizer.

    Args:
        data: flags of the data.
        virtual_tokens: reserved slots at the beginning of each sample.
    """
    return ExpectedFiles(
        seq_length=data.seq_length,
        neat_pack=data.neat_pack,
        split_at_end_tokens=data.reset_position_ids or data.reset_attention_mask,
        template=data.prompt_type,
        virtual_tokens=virtual_tokens,
    )


def other_data(arguments: PretrainArguments, invalid_flags: Collection[str]) -> list[str]:
    """Return one line for each difference between a training command and the manifests of its packed files.

    Files without a readable manifest are left to the run, which opens them. Raw data are preprocessed as the command
    says.

    Args:
        arguments: the parsed command.
        invalid_flags: flags whose own value is invalid; they are not compared.
    """
    if arguments.raw_data.given or not arguments.data.is_instruction_dataset:
        return []
    try:
        expected = expected_files(arguments.data, arguments.virtual_tokens)
    except ConfigError:  # the flags of the adapter are invalid, which their rules report
        expected = expected_files(arguments.data, 0)
        invalid_flags = {*invalid_flags, "--virtual-tokens"}
    prefixes = [name for values in PATHS.values() for name in parse_data_path(values(arguments))[1]]
    described = [files for prefix in dict.fromkeys(prefixes) if (files := _described(Path(prefix))) is not None]
    found = [pair for files in described for pair in differences(files, expected)]
    return [*(line for flag, line in found if flag not in invalid_flags), *blend_problems(described)]


def _described(prefix: Path) -> DescribedFiles | None:
    """Describe the files of a prefix by their manifest; None without a manifest that can be read."""
    path = manifest_path(prefix)
    try:
        manifest = Manifest.read(path) if path.is_file() else None
    except (DataError, OSError, ValueError):
        return None
    return None if manifest is None or manifest.state != "complete" else DescribedFiles.by_manifest(prefix, manifest)
