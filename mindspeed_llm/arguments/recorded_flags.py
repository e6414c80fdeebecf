"""Complete a training command with the flags that the manifests of its packed files record.

A manifest says how its files were made, so `--is-instruction-dataset --neat-pack --reset-position-ids --seq-length
--prompt-type` and the size of the vocabulary need not be repeated. A flag that is given is not replaced; if it
contradicts the files, the command is refused (expected_data.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import dataclass
from typing import Any

from mindspeed_llm.arguments.data_arguments import parse_data_path
from mindspeed_llm.errors import DataError
from mindspeed_llm.manifest import Manifest, manifest_path

PATHS = ("--data-path", "--train-data-path", "--valid-data-path", "--test-data-path")
VOCABULARY = ("--vocab-size", "--padded-vocab-size")
TOKENIZER = ("--tokenizer-type", "--tokenizer-name-or-path", "--tokenizer-model")


@dataclass(frozen=True)
class RecordedFlags:
    """Arguments that the manifests add to a command line.

    Attributes:
        arguments: flags and values.
        source: the manifest, for messages.
    """

    arguments: list[str]
    source: str

    @property
    def flags(self) -> list[str]:
        """Names of the flags."""
        return [word for word in self.arguments if word.startswith("--")]


def find_recorded_flags(argv: Sequence[str]) -> RecordedFlags | None:
    """Return the flags that a command line leaves out and the manifests of all its packed files agree on.

    Raw data, documents and files without a manifest add nothing, and neither does a manifest that cannot be read, which
    is reported when the files are opened.

    Args:
        argv: command-line arguments without the program's name.
    """
    given = {word.partition("=")[0] for word in argv}
    if "--handler-name" in given:  # the files are made when the run starts, as the flags say
        return None
    prefixes = list(_prefixes(argv))
    if not prefixes:
        return None
    try:
        manifests = [Manifest.read(manifest_path(prefix)) for prefix in prefixes if manifest_path(prefix).is_file()]
    except (DataError, OSError, ValueError):
        return None
    if not manifests or len(manifests) < len(prefixes):
        return None
    words: list[str] = []
    for flags, value in _values(manifests, given):
        if given.isdisjoint(flags):
            words += [flags[0]] if value is True else [flags[0], str(value)]
    if not words:
        return None
    more = f" and {len(manifests) - 1} more" if len(manifests) > 1 else ""
    return RecordedFlags(words, f"{manifest_path(prefixes[0])}{more}")


def _values(manifests: Sequence[Manifest], given: Set[str]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield (flags, value) for each value on which the manifests agree; none is added if one of the flags is given."""

    def agreed(read: Callable[[Manifest], Any]) -> Any:
        """Return the value of all manifests; None if they differ."""
        values = {read(manifest) for manifest in manifests}
        return values.pop() if len(values) == 1 else None

    yield ("--is-instruction-dataset",), True
    if agreed(lambda manifest: manifest.packed and manifest.neat):
        yield ("--neat-pack",), True
        yield ("--reset-position-ids", "--reset-attention-mask"), True
    if (length := agreed(lambda manifest: manifest.seq_length)) is not None:
        yield ("--seq-length",), length
    template = agreed(lambda manifest: manifest.template and manifest.template.name)
    if template and not template.startswith("-"):
        yield ("--prompt-type", "--prompt-type-path"), template
    vocabulary = agreed(lambda manifest: manifest.tokenizer.vocab_size)
    # With a tokenizer its own size counts; it is compared with that of the files.
    if vocabulary is not None and given.isdisjoint(TOKENIZER):
        yield VOCABULARY, vocabulary


def _prefixes(argv: Sequence[str]) -> Iterator[str]:
    """Yield the prefixes of all data paths of a command line."""
    for number, word in enumerate(argv):
        name, equals, value = word.partition("=")
        if name in PATHS:
            values = [value] if equals else []
            for following in argv[number + 1 :]:
                if following.startswith("--"):
                    break
                values.append(following)
            yield from parse_data_path(values)[1]
