"""End tokens and chat template of the training data, which the trained model needs for generation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from mindspeed_llm.arguments.data_arguments import DataArguments
from mindspeed_llm.chat import ChatTemplate, chat_template_names, export_chat_template, load_chat_template, tool_formats
from mindspeed_llm.errors import ConfigError
from mindspeed_llm.manifest import Manifest, TemplateInfo
from mindspeed_llm.tokenization import Tokenizer, find_stop_ids


@dataclass(frozen=True)
class GenerationInfo:
    """Generation settings that follow from the training data.

    Attributes:
        ends: ids of the tokens that end an answer, the most common first; empty if unknown or not trained.
        pad: id of the padding token, if it is known.
        keeps_template: whether the tokenizer keeps its own chat template because no other is known (plain text, or
            --prompt-type hf in files of an earlier version).
        chat_template: Jinja source; None if the template of the data has no Jinja equivalent, see `problem`.
        problem: reason why there is no chat template, as part of a message.
    """

    ends: tuple[int, ...] = ()
    pad: int | None = None
    keeps_template: bool = True
    chat_template: str | None = None
    problem: str | None = None


def read_generation_info(
    data: DataArguments, manifests: Sequence[Manifest], tokenizer: Tokenizer | None
) -> GenerationInfo:
    """Read end tokens and chat template from the manifests of the data.

    Without manifests they follow from --prompt-type and the tokenizer.

    Args:
        data: data arguments of the run.
        manifests: manifests of the data sets; a data set without a manifest is left out.
        tokenizer: tokenizer of the command line, if any.
    """
    templates = [manifest.template for manifest in manifests if manifest.template is not None]
    if not templates:
        # A manifest without a template means plain text: --prompt-type is then no description of the data.
        named = None if manifests else _named_template(data)
        ends = [end for manifest in manifests for end in _ends(manifest)]
        if named is not None and tokenizer is not None:
            ends = find_stop_ids(named, tokenizer, append_end=False)
        jinja = export_chat_template(named) if named is not None else None
        return GenerationInfo(tuple(dict.fromkeys(ends)), _pad(manifests, tokenizer), jinja is None, jinja)
    ends = [end for manifest in manifests for end in _ends(manifest)]
    known = GenerationInfo(tuple(dict.fromkeys(ends)), _pad(manifests, tokenizer))
    if len({template.sha256 for template in templates}) > 1:
        names = ", ".join(dict.fromkeys(template.name for template in templates))
        differing = f"the data sets were made with different templates ({names})"
        return GenerationInfo(known.ends, known.pad, keeps_template=False, problem=differing)
    info = next((template for template in templates if template.jinja is not None), templates[0])
    if info.jinja is None and info.name == "hf":
        return known
    jinja = info.jinja if info.jinja is not None else _export_again(info, data)
    problem = None
    if jinja is None:
        problem = (
            f"the manifest contains no Jinja of the template {info.name}, and its hash does not match any template of "
            "that name in this version; preprocess the data again"
        )
    return GenerationInfo(known.ends, known.pad, keeps_template=False, chat_template=jinja, problem=problem)


def _ends(manifest: Manifest) -> Iterator[int]:
    """Yield the ids of the tokens that end an answer."""
    if manifest.template is not None and manifest.template.ends is not None:
        yield from manifest.template.ends
    # Manifests of earlier versions contain no `ends`. Without a template only --append-eod writes end tokens; training
    # adds them to documents.
    elif manifest.tokenizer.eod_id is not None and (
        manifest.template is not None or manifest.append_eod or manifest.documents is not None
    ):
        yield manifest.tokenizer.eod_id


def _pad(manifests: Sequence[Manifest], tokenizer: Tokenizer | None) -> int | None:
    """Return the id of the padding token, from the manifests if possible."""
    ids = [manifest.tokenizer.pad_id for manifest in manifests if manifest.tokenizer.pad_id is not None]
    return ids[0] if ids else tokenizer.pad_id if tokenizer is not None else None


def _named_template(data: DataArguments) -> ChatTemplate | None:
    """Return the template that --prompt-type names, or None if it cannot be read."""
    if data.prompt_type is None or (data.prompt_type_path is None and data.prompt_type not in chat_template_names()):
        return None
    try:
        return load_chat_template(data.prompt_type, data.prompt_type_path)
    except ConfigError:
        return None


def _export_again(info: TemplateInfo, data: DataArguments) -> str | None:
    """Return the Jinja of a template for which a manifest has only the hash; None if no template has that hash.

    Manifests of earlier versions contain name and hash of the template but not its Jinja.
    """
    candidates = [load_chat_template(info.name)] if info.name in chat_template_names() else []
    named = _named_template(data)
    for template in [*candidates, *([named] if named is not None else [])]:
        # The options of the preprocessing run change the hash. They are not in the manifest, so all are compared.
        for tool_format in (None, *tool_formats()):
            for thinking in (None, True, False) if template.thoughts is not None else (None,):
                variant = template.with_options(tool_format, thinking)
                if variant.sha256 == info.sha256:
                    return export_chat_template(variant)
    return None
