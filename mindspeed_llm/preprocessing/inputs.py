"""Load the inputs of preprocessing: files, handler, chat template and tokenizer. All errors are raised together."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mindspeed_llm.arguments.preprocess_arguments import PreprocessArguments, check_rules
from mindspeed_llm.chat import (
    Handler,
    Renderer,
    create_handler,
    find_templates,
    load_chat_template,
    load_jinja_template,
    plain_text_template,
)
from mindspeed_llm.chat.messages import THOUGHTS
from mindspeed_llm.chat.special_tokens import read_special_tokens
from mindspeed_llm.errors import ConfigError, DataError
from mindspeed_llm.manifest import manifest_path
from mindspeed_llm.preprocessing.handler_choice import choose_handler
from mindspeed_llm.rawdata import InputFile, companion_files, content_problem, find_input_files
from mindspeed_llm.tokenization import SampleBuilder, Tokenizer, end_texts, load_tokenizer, token_text
from mindspeed_llm.tokenization.hugging_face_tokenizer import HuggingFaceTokenizer

logger = logging.getLogger(__name__)

NAMES_SHOWN, NAME_SHOWN = 20, 60  # maximum number of names in a notice, and of characters in a name


@dataclass(frozen=True)
class PreprocessingInputs:
    """Everything that preprocessing reads.

    Attributes:
        sources: the files of each --input.
        handler: converts a row into a conversation.
        template: renders a conversation as text.
        tokenizer: converts text into token ids.
    """

    sources: list[list[InputFile]]
    handler: Handler
    template: Renderer
    tokenizer: Tokenizer

    @property
    def files(self) -> list[InputFile]:
        """Files of all sources."""
        return [file for source in self.sources for file in source]

    def builder(self, arguments: PreprocessArguments) -> SampleBuilder:
        """Create the builder that converts conversations into samples.

        Raises:
            ConfigError: the tokenizer does not fit the template.
        """
        sample, plain = arguments.sample, self.handler.plain
        return SampleBuilder(
            self.tokenizer,
            self.template,
            sample.capacity,
            sample.append_eod,
            sample.overlong,
            train_prompts=sample.train_on_prompt or plain,
            mask_history=sample.mask_history,
            divide=plain,
            controls=sample.control_tokens_in_text,
        )


def load_inputs(arguments: PreprocessArguments) -> PreprocessingInputs:
    """Load everything that the command line names.

    Raises:
        ConfigError: all inputs that are missing or do not fit.
    """
    given = arguments.tokenizer
    template: Renderer | None = None
    tokenizer = None
    sources, problems = _sources(arguments)
    handler, faults = _handler(arguments, sources)
    problems += faults
    try:
        tokenizer = load_tokenizer(
            given.tokenizer_type or "PretrainedFromHF",
            given.tokenizer_name_or_path,
            given.tokenizer_model,
            fast=not given.tokenizer_not_use_fast,
            trusted=given.trust_remote_code,
            backend=arguments.run.tokenizer_backend,
        )
    except ConfigError as error:
        problems += error.problems
    try:
        if handler is not None and handler.plain:
            template = None if tokenizer is None else plain_text_template(tokenizer.adds_bos)
        # Without a tokenizer it is not known whether the tokenizer has a template.
        elif tokenizer is not None or arguments.sample.prompt_type is not None:
            template = _template(arguments, tokenizer)
    except ConfigError as error:
        problems += error.problems
    if sources is None or handler is None or template is None or tokenizer is None:
        raise ConfigError(problems)
    reason = f" ({tokenizer.fallback_reason})" if tokenizer.fallback_reason else ""
    logger.info(f"tokenizer library: {tokenizer.library}{reason}")
    if not template.has_reasoning:
        handler.ignore_reasoning()
    if template.passes_sources:
        handler.read_sources()
    return PreprocessingInputs(sources, handler, template, tokenizer)


def name_problems(arguments: PreprocessArguments) -> list[str]:
    """Return the problems of handler and chat template, one line each, without reading rows or the tokenizer.

    Args:
        arguments: the parsed command, which is not changed.
    """
    sample, folder = arguments.sample, arguments.tokenizer.tokenizer_name_or_path
    handler, problems = _handler(arguments, None)
    if handler is not None and handler.plain:
        return problems
    is_in_tokenizer = (
        sample.prompt_type in (None, "hf") and (sample.prompt_type_path, sample.chat_template) == (None,) * 2
    )
    if is_in_tokenizer and (folder is None or not Path(folder).is_dir()):
        return problems  # a missing folder is another problem
    if handler is None and sample.prompt_type is None:
        return problems  # the rows may be plain text, which has no template
    try:
        _template(arguments, None)
    except ConfigError as error:
        problems += error.problems
    return problems


def _sources(arguments: PreprocessArguments) -> tuple[list[list[InputFile]] | None, list[str]]:
    """Return the files of each --input, and one line per problem; None if there are problems."""
    try:
        sources = find_input_files(arguments.input.input, arguments.input.max_row_mib)
    except DataError as error:
        return None, str(error).splitlines()
    files = [file for source in sources for file in source]
    problems = [problem for file in files if (problem := content_problem(file)) is not None]
    if problems:
        return None, problems
    size = sum(file.size for file in files)
    logger.info(f"reading {len(files)} {'file' if len(files) == 1 else 'files'}, {size / 1e6:.2f} MB")
    return sources, []


def _handler(arguments: PreprocessArguments, sources: list[list[InputFile]] | None) -> tuple[Handler | None, list[str]]:
    """Return the handler of --handler-name, or the one that the columns decide, and one line per problem.

    The decision is stored in `arguments`: rules between flags, the token cache and workers of Ray depend on it.
    """
    given = arguments.input
    if given.handler_name is None:
        if sources is None:
            return None, []
        try:
            given.handler_name = choose_handler(given.input, sources, given.map_keys)
            check_rules(arguments)
        except ConfigError as error:
            return None, error.problems
        except DataError as error:
            return None, [str(error)]
    handler, problems = create_handler(given.handler_name, given.map_keys)
    if handler is not None and handler.plain and "text" in handler.columns and given.map_keys is None:
        handler.columns["text"] = given.json_keys[0]
    return handler, problems


def _template(arguments: PreprocessArguments, tokenizer: Tokenizer | None) -> Renderer:
    """Load the chat template of conversations."""
    sample = arguments.sample
    if sample.prompt_type is None:
        source = _template_found(arguments)
        if tokenizer is not None:
            logger.info(f"--prompt-type is not given: {source} is used (hf)")
    name = sample.prompt_type or "hf"
    if name == "hf" and sample.prompt_type_path is None:
        if sample.tool_format is not None:
            raise ConfigError(
                "--tool-format: --prompt-type hf writes tools as the tokenizer's template does; leave it out"
            )
        return _jinja_template(arguments, tokenizer)
    template = load_chat_template(name, sample.prompt_type_path)
    return template.with_options(
        sample.tool_format, sample.enable_thinking, sample.reasoning_history, sample.train_empty_reasoning
    )


def _template_found(arguments: PreprocessArguments) -> str:
    """Return where the template in Jinja is that a missing --prompt-type means, for messages.

    Raises:
        ConfigError: there is none.
    """
    sample, folder = arguments.sample, arguments.tokenizer.tokenizer_name_or_path
    if sample.prompt_type_path is not None:
        raise ConfigError(f"--prompt-type is required: the name of the chat template in {sample.prompt_type_path}")
    if sample.chat_template is not None:
        return f"the chat template in {sample.chat_template}"
    if folder is not None and find_templates(Path(folder)):
        return f"the chat template of the tokenizer in {folder}"
    raise ConfigError(
        "--prompt-type is required: the name of the chat template, such as qwen; or hf, with a tokenizer that has a "
        "chat template or with --chat-template FILE"
    )


def _jinja_template(arguments: PreprocessArguments, tokenizer: Tokenizer | None) -> Renderer:
    """Load a chat template in Jinja, with the special tokens of the tokenizer."""
    sample, folder = arguments.sample, arguments.tokenizer.tokenizer_name_or_path
    special: dict[str, str] = {}
    ends: list[str] = []
    if tokenizer is not None:
        numbers = {"bos_token": tokenizer.bos_id, "eos_token": tokenizer.eos_id}
        texts = {name: token_text(tokenizer, number) for name, number in numbers.items()}
        special = {name: text for name, text in texts.items() if text is not None}
        ends = end_texts(tokenizer, () if folder is None else read_special_tokens(Path(folder)).end_ids)
    return load_jinja_template(
        folder,
        sample.enable_thinking,
        sample.chat_template,
        sample.chat_template_name,
        special=special,
        ends=ends,
        reasoning_history=sample.reasoning_history,
        train_empty_reasoning=sample.train_empty_reasoning,
    )


def input_notices(arguments: PreprocessArguments, inputs: PreprocessingInputs) -> Iterator[str]:
    """Yield a notice for each input or flag that has another effect than expected, before any row is read."""
    template, tokenizer = inputs.template, inputs.tokenizer
    for name in arguments.input.input:
        inside = sorted(entry.name for entry in Path(name).iterdir() if entry.is_dir()) if Path(name).is_dir() else []
        if inside:
            yield f"--input {name}: the directories in it are not read ({', '.join(inside)}); '{name}/**/*' reads all"
        if skipped := [path.name for path in companion_files(name)]:
            more = f" and {len(skipped) - NAMES_SHOWN:,} more" if len(skipped) > NAMES_SHOWN else ""
            yield f"--input {name}: not read, because they are not data: {', '.join(skipped[:NAMES_SHOWN])}{more}"
    yield from tokenizer.disagreements
    if template.begins and tokenizer.bos_id is None:
        yield f"--prompt-type {template.name} needs a begin token, but the tokenizer has none; none is written"
    if arguments.tokenizer.tokenizer_not_use_fast and isinstance(tokenizer, HuggingFaceTokenizer):
        yield "--tokenizer-not-use-fast: the folder holds no tokenizer.model; its tokenizer.json is used"
    if arguments.tokenizer.trust_remote_code:
        yield "--trust-remote-code has no effect: the tokenizer needs no code of its own, and none is run"
    prefix = arguments.output.output_prefix
    if arguments.output.output_format == "packed" and manifest_path(prefix).is_file():
        yield (
            f"--output-prefix {prefix}: the packed files there are replaced; a training that was started on them "
            "resumes only if rows and settings are the same"
        )
    if arguments.run.log_interval is not None:
        yield "--log-interval has no effect: progress is shown by time"
    if inputs.handler.plain and not arguments.sample.append_eod:
        yield "without --append-eod nothing marks the end of a document; add it if the model is to learn where one ends"


def unread_field_notices(inputs: PreprocessingInputs, unread: dict[str, set[str]]) -> Iterator[str]:
    """Yield a notice for each file whose messages have fields that contain text and were not read.

    Args:
        inputs: files, handler, template and tokenizer.
        unread: file → names of the fields.
    """
    for file, names in unread.items():
        shown = [json.dumps(name, ensure_ascii=False)[1:-1][:NAME_SHOWN] for name in sorted(names)[:NAMES_SHOWN]]
        more = f" and {len(names) - NAMES_SHOWN:,} more" if len(names) > NAMES_SHOWN else ""
        line = f"{file}: fields of messages that hold text and are not read: {', '.join(shown)}{more}"
        if not inputs.template.has_reasoning and any(name in THOUGHTS or "thinking" in name for name in names):
            line += f"; the template {inputs.template.name} writes no thoughts (qwen3 does)"
        yield line
