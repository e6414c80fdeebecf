"""Read the prompts of --generate-prompts and convert them into token ids, as an exported model is prompted.

    {"prompt": "Reverse: a b c", "answer": "c b a"}                                     text of a user, or raw text
    {"messages": [{"role": "user", "content": "Reverse: a b c"}], "answer": "c b a"}    a conversation

In an instruction run the chat template of the data is rendered with its generation prompt. In pretraining `prompt` is
continued as it is. Lines may have further fields, which are ignored.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mindspeed_llm.arguments.data_arguments import TokenizerArguments
from mindspeed_llm.arguments.pretrain_arguments import PretrainArguments
from mindspeed_llm.chat import InvalidRowError, JinjaTemplate
from mindspeed_llm.chat.special_tokens import read_special_tokens
from mindspeed_llm.chat.template_files import choose_template
from mindspeed_llm.conversion.generation_info import GenerationInfo, read_generation_info
from mindspeed_llm.errors import ConfigError
from mindspeed_llm.manifest import Manifest
from mindspeed_llm.tokenization import Tokenizer, end_texts, token_text

FLAG = "--generate-prompts"
MAX_FAULTS = 20  # lines of a bad file that are listed
ROLES = ("system", "user", "assistant", "tool")
Message = dict[str, str]
Render = Callable[[list[Message]], str]


@dataclass(frozen=True)
class Prompt:
    """One line of the file.

    Attributes:
        line: its number, from 1.
        content: raw text or the text of a user; or the messages of a conversation.
        answer: the expected answer; None if the line has none.
    """

    line: int
    content: str | list[Message]
    answer: str | None = None


@dataclass(frozen=True)
class PromptSet:
    """The prompts of a run.

    Attributes:
        prompts: the lines of the file.
        ids: token ids of each prompt, list [prompts] of lists [tokens].
        ends: ids that end an answer: those of the training data and of the tokenizer's folder, at which an exported
            model stops as well. Empty if there are none.
        tokenizer: converts the ids of an answer into text.
    """

    prompts: list[Prompt]
    ids: list[list[int]]
    ends: tuple[int, ...]
    tokenizer: Tokenizer

    def text_of(self, ids: Sequence[int]) -> tuple[str, bool]:
        """Return the text of generated ids [tokens] without their end token, and whether there is one."""
        stopped = bool(ids) and ids[-1] in self.ends
        text = self.tokenizer.decode(ids[:-1] if stopped else ids)
        # A character of several tokens may be incomplete at the end.
        return text.encode("utf-8", "replace").decode("utf-8"), stopped


def read_prompts(path: str) -> list[Prompt]:
    """Read a file of prompts.

    Raises:
        ConfigError: the file cannot be read, has no prompts, or lines that are no prompts, each named by its number.
    """
    prompts, faults = _read(path)
    if faults:
        raise ConfigError(_listed(faults))
    return prompts


def load_prompts(arguments: PretrainArguments, manifests: Sequence[Manifest], tokenizer: Tokenizer) -> PromptSet:
    """Read the prompts of --generate-prompts and tokenize them.

    Args:
        arguments: checked arguments of the run.
        manifests: manifests of the data sets, which have the chat template; those without one are left out.
        tokenizer: tokenizer of the model.

    Raises:
        ConfigError: all faults of the file, one line each, with line numbers.
    """
    path = arguments.generation.generate_prompts
    assert path is not None
    prompts, faults = _read(path)
    generation = read_generation_info(arguments.data, manifests, tokenizer)
    render: Render | None = None
    # Text for pretraining may also be packed; its manifest has no template then.
    if arguments.data.is_instruction_dataset and not (manifests and all(one.template is None for one in manifests)):
        try:
            render = _renderer(arguments.tokenizer, generation, tokenizer)
        except ConfigError as error:
            raise ConfigError([*_listed(faults), *error.problems]) from error
    room = arguments.data.seq_length - arguments.generation.generate_tokens - arguments.virtual_tokens
    ids: list[list[int]] = []
    for prompt in prompts:
        try:
            own = _prompt_ids(prompt, render, tokenizer)
            if not own:
                raise InvalidRowError("the prompt has no token")
            if len(own) > room:
                raise InvalidRowError(
                    f"the prompt has {len(own):,} tokens, but --seq-length {arguments.data.seq_length:,} has room for "
                    f"{room:,} with --generate-tokens {arguments.generation.generate_tokens}; shorten it"
                )
        except InvalidRowError as reason:
            faults.append((prompt.line, f"{FLAG} {path}, line {prompt.line}: {reason}"))
            continue
        ids.append(own)
    if faults:
        raise ConfigError(_listed(faults))
    return PromptSet(prompts, ids, _ends(arguments.tokenizer, generation, tokenizer), tokenizer)


def _ends(flags: TokenizerArguments, generation: GenerationInfo, tokenizer: Tokenizer) -> tuple[int, ...]:
    """Return the ids that end an answer."""
    folder = flags.tokenizer_name_or_path
    of_folder = () if folder is None else read_special_tokens(Path(folder)).end_ids
    own = () if tokenizer.eos_id is None else (tokenizer.eos_id,)
    return tuple(dict.fromkeys([*generation.ends, *(of_folder or own)]))


def _listed(faults: list[tuple[int, str]]) -> list[str]:
    """Return the messages of faults (line, message) in the order of the lines, not more than MAX_FAULTS."""
    messages = [message for _, message in sorted(faults)]
    more = len(messages) - MAX_FAULTS
    return [*messages[:MAX_FAULTS], f"{FLAG}: {more:,} more lines are not valid"] if more > 0 else messages


def _read(path: str) -> tuple[list[Prompt], list[tuple[int, str]]]:
    """Return the prompts of a file, and (line, message) for each fault."""
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        return [], [(0, f"{FLAG} {path}: cannot be read ({error.strerror}); check the path")]
    prompts: list[Prompt] = []
    faults: list[tuple[int, str]] = []
    for number, line in enumerate(content.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            prompts.append(_parse(number, line))
        except InvalidRowError as reason:
            faults.append((number, f"{FLAG} {path}, line {number}: {reason}"))
    if not prompts and not faults:
        faults.append((0, f'{FLAG} {path}: contains no prompts; write one JSON object per line, {{"prompt": "text"}}'))
    return prompts, faults


def _parse(number: int, line: bytes) -> Prompt:
    """Parse one line.

    Raises:
        InvalidRowError: it is no prompt.
    """
    try:
        row = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError:
        raise InvalidRowError("not UTF-8; save the file as UTF-8") from None
    except (ValueError, RecursionError) as error:
        reason = error.msg if isinstance(error, json.JSONDecodeError) else "nested too deeply"
        raise InvalidRowError(f"not JSON ({reason}); write one JSON object per line") from None
    if not isinstance(row, dict):
        raise InvalidRowError('not an object; write {"prompt": "text"} or {"messages": [...]}')
    if ("prompt" in row) == ("messages" in row):
        raise InvalidRowError('give either "prompt" or "messages"')
    answer = row.get("answer")
    if answer is not None:
        answer = _text(answer, '"answer"')
    if "prompt" in row:
        return Prompt(number, _text(row["prompt"], '"prompt"'), answer)
    return Prompt(number, _messages(row["messages"]), answer)


def _text(value: Any, what: str) -> str:
    """Return a value that is text with a visible character.

    Raises:
        InvalidRowError: it is not.
    """
    if not isinstance(value, str):
        raise InvalidRowError(f"{what} is not text")
    if not value.strip():
        raise InvalidRowError(f"{what} is empty")
    try:
        value.encode()
    except UnicodeEncodeError:  # half of a surrogate pair, as JSON's escapes allow
        raise InvalidRowError(f"{what} is not Unicode text") from None
    return value


def _messages(value: Any) -> list[Message]:
    """Return the messages of a line.

    Raises:
        InvalidRowError: they are no conversation that ends with a question.
    """
    if not isinstance(value, list) or not value:
        raise InvalidRowError('"messages" is not a list of {"role": ..., "content": ...}')
    messages = []
    for position, message in enumerate(value):
        where = f"messages[{position}]"
        if not isinstance(message, dict):
            raise InvalidRowError(f"{where} is not an object")
        if message.get("role") not in ROLES:
            raise InvalidRowError(f"{where}: role is none of {', '.join(ROLES)}")
        messages.append({"role": message["role"], "content": _text(message.get("content"), f"{where}: content")})
    if messages[-1]["role"] not in ("user", "tool"):
        raise InvalidRowError('the last message is not of the user; the expected answer belongs into "answer"')
    return messages


def _renderer(flags: TokenizerArguments, generation: GenerationInfo, tokenizer: Tokenizer) -> Render:
    """Return the function that renders messages with the template that the exported model gets.

    Raises:
        ConfigError: the template is not known.
    """
    folder = flags.tokenizer_name_or_path
    source = generation.chat_template
    if source is None and generation.keeps_template:
        source = choose_template(folder, None)
    if source is None:
        raise ConfigError(f"{FLAG}: {generation.problem}")
    numbers = {"bos_token": tokenizer.bos_id, "eos_token": tokenizer.eos_id}
    texts = {name: token_text(tokenizer, number) for name, number in numbers.items()}
    special = {name: text for name, text in texts.items() if text is not None}
    named = {} if folder is None else read_special_tokens(Path(folder)).named
    template = JinjaTemplate(source, {**special, **named}, ends=end_texts(tokenizer, generation.ends))
    return template.render_prompt


def _prompt_ids(prompt: Prompt, render: Render | None, tokenizer: Tokenizer) -> list[int]:
    """Return the token ids of a prompt [tokens].

    Raises:
        InvalidRowError: the template cannot render the messages, or there is no template.
    """
    if render is None:
        if not isinstance(prompt.content, str):
            raise InvalidRowError('"messages" need a chat template, which text for pretraining has not; give "prompt"')
        begin = [tokenizer.bos_id] if tokenizer.adds_bos and tokenizer.bos_id is not None else []
        return begin + tokenizer.encode_batch([prompt.content])[0].tolist()
    content = prompt.content
    messages = [{"role": "user", "content": content}] if isinstance(content, str) else content
    return tokenizer.encode_batch([render(messages)])[0].tolist()
