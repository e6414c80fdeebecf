"""How the data of a run write conversations and end answers: what its model needs to be asked in the same way."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from mindspeed_llm.arguments.data_arguments import DataArguments
from mindspeed_llm.chat import ChatTemplate, chat_template_names, export_chat_template, load_chat_template, tool_formats
from mindspeed_llm.errors import ConfigError
from mindspeed_llm.indexed_dataset import Manifest, TemplateInfo
from mindspeed_llm.tokenization import Tokenizer, find_stop_ids


@dataclass(frozen=True)
class GenerationInfo:
    """What the data say.

    Attributes:
        ends: ids of the tokens that end an answer, the most usual first; empty if that is unknown or not trained.
        pad: id of the padding token, if it is known.
        keeps_template: the tokenizer's own chat template stays: nothing is known of another (plain text, --prompt-type
            hf of files that an earlier version made).
        chat_template: Jinja; None if there is no equivalent of the template of the data, see `problem`.
        problem: why there is no chat template, for the user.
    """

    ends: tuple[int, ...] = ()
    pad: int | None = None
    keeps_template: bool = True
    chat_template: str | None = None
    problem: str | None = None


def read_generation_info(
    data: DataArguments, manifests: Sequence[Manifest], tokenizer: Tokenizer | None
) -> GenerationInfo:
    """Find out from the manifests of the data; without any, from --prompt-type and the tokenizer.

    Args:
        data: flags of the run.
        manifests: of its data sets, those that have one.
        tokenizer: the one that the command names, if any.
    """
    facts = [manifest.template for manifest in manifests if manifest.template is not None]
    if not facts:
        named = None if manifests else _built_in(data)
        ends = [number for manifest in manifests for number in _ends(manifest)]
        if named is not None and tokenizer is not None:
            ends = find_stop_ids(named, tokenizer, append_end=False)
        jinja = export_chat_template(named) if named is not None else None
        return GenerationInfo(tuple(dict.fromkeys(ends)), _pad(manifests, tokenizer), jinja is None, jinja)
    ends = [number for manifest in manifests for number in _ends(manifest)]
    known = GenerationInfo(tuple(dict.fromkeys(ends)), _pad(manifests, tokenizer))
    if len({fact.sha256 for fact in facts}) > 1:
        names = ", ".join(dict.fromkeys(fact.name for fact in facts))
        differing = f"the data sets were made with different templates ({names})"
        return GenerationInfo(known.ends, known.pad, keeps_template=False, problem=differing)
    fact = next((fact for fact in facts if fact.jinja is not None), facts[0])
    if fact.jinja is None and fact.name == "hf":
        return known
    jinja = fact.jinja if fact.jinja is not None else _written_anew(fact, data)
    problem = None
    if jinja is None:
        problem = (
            f"the manifest names the template {fact.name} by a hash that no template of that name has here, and does "
            "not hold its Jinja; preprocess again"
        )
    return GenerationInfo(known.ends, known.pad, keeps_template=False, chat_template=jinja, problem=problem)


def _ends(manifest: Manifest) -> Iterator[int]:
    if manifest.template is not None and manifest.template.ends is not None:
        yield from manifest.template.ends
    elif manifest.tokenizer.eod_id is not None and (manifest.template is not None or manifest.append_eod):
        yield manifest.tokenizer.eod_id


def _pad(manifests: Sequence[Manifest], tokenizer: Tokenizer | None) -> int | None:
    found = [manifest.tokenizer.pad_id for manifest in manifests if manifest.tokenizer.pad_id is not None]
    return found[0] if found else tokenizer.pad_id if tokenizer is not None else None


def _built_in(data: DataArguments) -> ChatTemplate | None:
    """The template that --prompt-type names, if it can be read."""
    if data.prompt_type is None or (data.prompt_type_path is None and data.prompt_type not in chat_template_names()):
        return None
    try:
        return load_chat_template(data.prompt_type, data.prompt_type_path)
    except ConfigError:
        return None


def _written_anew(fact: TemplateInfo, data: DataArguments) -> str | None:
    """The Jinja of a template that a manifest names without it (an earlier version wrote it); None if it is another."""
    found = [load_chat_template(fact.name)] if fact.name in chat_template_names() else []
    own = _built_in(data)
    for template in [*found, *([own] if own is not None else [])]:
        for tool_format in (None, *tool_formats()):
            for thinking in (None, True, False) if template.thoughts is not None else (None,):
                variant = template.with_options(tool_format, thinking)
                if variant.sha256 == fact.sha256:
                    return export_chat_template(variant)
    return None
