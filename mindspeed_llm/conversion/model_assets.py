"""What a Hugging Face folder holds besides weights: config, generation settings, tokenizer and chat template.

A checkpoint carries them in `hugging_face/`, an export has them beside the weights. They are read into memory once, so
that a save does not depend on the folder that they come from.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mindspeed_llm.arguments.config_json import format_value, token_ids
from mindspeed_llm.arguments.hugging_face_config import HuggingFaceConfig, parse_config
from mindspeed_llm.chat.jinja_export import jinja_string
from mindspeed_llm.conversion.generation_info import GenerationInfo
from mindspeed_llm.conversion.hugging_face_weights import COMPANIONS, TOKENIZER_FILES
from mindspeed_llm.errors import ConfigError

CONFIG, GENERATION, TOKENIZER = "config.json", "generation_config.json", "tokenizer_config.json"
CHAT_TEMPLATE = "chat_template.jinja"
VOCABULARIES = ("tokenizer.json", "tokenizer.model", "vocab.json")


@dataclass(frozen=True)
class ModelAssets:
    """The files of a folder besides its weights.

    Attributes:
        config: config.json.
        files: name → content of the others.
    """

    config: HuggingFaceConfig
    files: Mapping[str, bytes] = field(default_factory=dict)

    @classmethod
    def read(cls, config: HuggingFaceConfig) -> ModelAssets:
        """Read those beside a config.json.

        Raises:
            ConfigError: a file cannot be read.
        """
        try:
            _json(config.raw)
        except RecursionError as error:
            raise ConfigError(f"{config.folder / CONFIG}: cannot be written again (nested too deep)") from error
        return cls(config, read_existing_files(config.folder, [name for name in COMPANIONS if name != CONFIG]))

    def write(self, folder: Path, dtype: str | None = None) -> None:
        """Write all files into an existing folder.

        Args:
            dtype: type of the weights, such as 'bfloat16', for config.json; without it what config.json says.
        """
        raw = self.config.raw
        if dtype is not None:
            raw = {**raw, "torch_dtype" if "torch_dtype" in raw else "dtype": dtype}
        for name, content in {**self.files, CONFIG: _json(raw)}.items():
            (folder / name).write_bytes(content)

    def with_tokenizer(self, files: Mapping[str, bytes]) -> ModelAssets:
        """With the tokenizer that the data were made with, if the folder has none or another."""
        if not files or any(name in self.files and self.files[name] == files.get(name) for name in VOCABULARIES):
            return self
        kept = {name: content for name, content in self.files.items() if name not in TOKENIZER_FILES}
        return replace(self, files={**kept, **files})

    def trained_on(self, answering: GenerationInfo) -> ModelAssets:
        """With the end tokens and the chat template of the data.

        The model's own end tokens stay beside those of the data: it may still write them, and an answer is over there.

        Raises:
            ConfigError: generation_config.json or tokenizer_config.json cannot be used; one line for each fault.
        """
        files = dict(self.files)
        raw, generation = dict(self.config.raw), self._object(GENERATION)
        problems = [
            f"{self.config.folder / GENERATION}: {key} is {format_value(generation[key])}, not the id of a token"
            for key in ("eos_token_id", "pad_token_id", "bos_token_id")
            if generation.get(key) is not None and not token_ids(generation[key], several=key == "eos_token_id")
        ]
        if problems:
            raise ConfigError(problems)
        known = {**self.config.family.defaults, **raw}
        own = token_ids(generation.get("eos_token_id", known["eos_token_id"]))
        ends = [number for number in dict.fromkeys([*answering.ends, *own]) if 0 <= number < self.config.vocab_size]
        if answering.ends and ends:
            raw["eos_token_id"] = ends[0] if len(ends) == 1 else ends
            generation = {"bos_token_id": known["bos_token_id"], "pad_token_id": known["pad_token_id"]} | generation
            if generation["pad_token_id"] is None:
                generation["pad_token_id"] = answering.pad
            generation["eos_token_id"] = raw["eos_token_id"]
            files[GENERATION] = _json({key: value for key, value in generation.items() if value is not None})
        if not answering.keeps_template:
            files = self._with_chat_template(files, answering.chat_template)
        return replace(self, config=parse_config(self.config.folder, raw), files=files)

    def with_answers_of(self, other: ModelAssets) -> ModelAssets:
        """With the end tokens, generation settings and chat template of another folder of the same model.

        Raises:
            ConfigError: the two config.json describe different models.
        """
        theirs, ours = other.config.fields, self.config.fields
        where = f"{self.config.folder / CONFIG}: describes another model than {other.config.folder / CONFIG}"
        problems = [
            f"{where}: {key} {ours.get(key)}, not {theirs[key]}" for key in theirs if ours.get(key) != theirs[key]
        ]
        if problems:
            raise ConfigError(problems)
        raw = dict(self.config.raw)
        if "eos_token_id" in other.config.raw:
            raw["eos_token_id"] = other.config.raw["eos_token_id"]
        files = dict(self.files)
        if GENERATION in other.files:
            files[GENERATION] = other.files[GENERATION]
        files = self._with_chat_template(files, _own_chat_template(other.files, other._object(TOKENIZER)))
        return replace(self, config=parse_config(self.config.folder, raw), files=files)

    def _with_chat_template(self, files: dict[str, bytes], jinja: str | None) -> dict[str, bytes]:
        """`files` with `jinja` in the place of the tokenizer's chat template, as transformers 5 writes it."""
        settings = self._object(TOKENIZER)
        if jinja is not None and _own_chat_template(files, settings) == jinja:
            return files
        changed = {name: content for name, content in files.items() if name != CHAT_TEMPLATE}
        if "chat_template" in settings:
            changed[TOKENIZER] = _json({key: value for key, value in settings.items() if key != "chat_template"})
        if jinja is not None:
            try:
                changed[CHAT_TEMPLATE] = (self._end_token(settings, jinja) + jinja).encode()
            except UnicodeEncodeError as error:
                raise ConfigError(
                    f"{self.config.folder}: its chat template, or its end token, holds half of a surrogate pair "
                    f"({error.object[error.start : error.end]!a}), which no file in UTF-8 can; correct it"
                ) from error
        return changed

    def _end_token(self, settings: Mapping[str, Any], jinja: str) -> str:
        """A line of Jinja that sets eos_token, where only generation_config.json names it, by its id."""
        named = settings.get("eos_token") or self._object("special_tokens_map.json").get("eos_token")
        if named or "eos_token" not in jinja:
            return ""
        ids = token_ids(self._object(GENERATION).get("eos_token_id") or self.config.raw.get("eos_token_id"))
        added = self._object("tokenizer.json").get("added_tokens")
        for entry in added if isinstance(added, list) else []:
            if isinstance(entry, dict) and ids and entry.get("id") == ids[0] and isinstance(entry.get("content"), str):
                return f"{{%- set eos_token = {jinja_string(entry['content'])} %}}\n"
        return ""

    def _object(self, name: str) -> dict[str, Any]:
        """The JSON object of a file; empty if there is no such file.

        Raises:
            ConfigError: it is not JSON, or not an object.
        """
        path = self.config.folder / name
        if name not in self.files:
            return {}
        try:
            value = json.loads(self.files[name])
        except (ValueError, RecursionError) as error:
            reason = "nested too deep" if isinstance(error, RecursionError) else error
            raise ConfigError(f"{path}: is not readable JSON ({reason}); download it again, or remove it") from error
        if not isinstance(value, dict):
            raise ConfigError(f"{path}: is {format_value(value)}, not a JSON object; download it again, or remove it")
        return value


def read_existing_files(folder: Path, names: Sequence[str]) -> dict[str, bytes]:
    """The content of those files that are there.

    Raises:
        ConfigError: one of them cannot be read.
    """
    try:
        return {name: (folder / name).read_bytes() for name in names if (folder / name).is_file()}
    except OSError as error:
        raise ConfigError(f"{error.filename}: cannot be read ({error.strerror or error})") from error


def _own_chat_template(files: Mapping[str, bytes], settings: Mapping[str, Any]) -> str | None:
    """The default chat template of a tokenizer's files."""
    if CHAT_TEMPLATE in files:
        return files[CHAT_TEMPLATE].decode("utf-8", "replace")
    source = settings.get("chat_template")
    if isinstance(source, list):  # several, by name
        source = next(
            (one.get("template") for one in source if isinstance(one, dict) and one.get("name") == "default"), None
        )
    return source if isinstance(source, str) else None


def _json(value: Mapping[str, Any]) -> bytes:
    try:
        return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()
    except UnicodeEncodeError:  # half of a surrogate pair has no form but an escape
        return (json.dumps(value, indent=2) + "\n").encode()
