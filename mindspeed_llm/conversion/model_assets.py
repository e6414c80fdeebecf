"""Assets of a model: config, generation settings, tokenizer and chat template, the files beside the weights.

A checkpoint contains them in `hugging_face/`, an export beside the weights. They are read into memory once, so that a
save does not depend on the folder that they come from.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mindspeed_llm.arguments.config_json import format_value, token_ids
from mindspeed_llm.arguments.hugging_face_config import HuggingFaceConfig, parse_config, read_config
from mindspeed_llm.chat.jinja_export import jinja_string
from mindspeed_llm.conversion.generation_info import GenerationInfo
from mindspeed_llm.conversion.hugging_face_weights import ASSET_FILES, TOKENIZER_FILES
from mindspeed_llm.errors import ConfigError
from mindspeed_llm.storage.checkpoint_directory import CARRIED, RECORD

logger = logging.getLogger(__name__)

CONFIG, GENERATION, TOKENIZER = "config.json", "generation_config.json", "tokenizer_config.json"
CHAT_TEMPLATE = "chat_template.jinja"
VOCABULARIES = ("tokenizer.json", "tokenizer.model", "vocab.json")


@dataclass(frozen=True)
class ModelAssets:
    """Assets of one model.

    Attributes:
        config: parsed config.json.
        files: name → content of the other files.
    """

    config: HuggingFaceConfig
    files: Mapping[str, bytes] = field(default_factory=dict)

    @classmethod
    def read(cls, config: HuggingFaceConfig) -> ModelAssets:
        """Read the assets in the folder of a config.json.

        Raises:
            ConfigError: a file cannot be read, or config.json is nested too deeply.
        """
        # json can read deeper nesting than it can write. Checked here, before a run trains, and not when it saves.
        try:
            _json(config.raw)
        except RecursionError as error:
            raise ConfigError(f"{config.folder / CONFIG}: cannot be written again (nested too deep)") from error
        return cls(config, read_existing_files(config.folder, [name for name in ASSET_FILES if name != CONFIG]))

    def write(self, folder: Path, dtype: str | None = None, has_config: bool = True) -> None:
        """Write all files into a folder.

        Args:
            folder: existing directory.
            dtype: dtype of the weights for config.json, such as 'bfloat16'; by default config.json is not changed.
            has_config: whether config.json is written as well.
        """
        raw = self.config.raw
        # transformers 5 writes `dtype`, earlier versions `torch_dtype`. The name that is there stays.
        if dtype is not None:
            raw = {**raw, "torch_dtype" if "torch_dtype" in raw else "dtype": dtype}
        for name, content in {**self.files, **({CONFIG: _json(raw)} if has_config else {})}.items():
            (folder / name).write_bytes(content)

    @property
    def tokenizer_files(self) -> dict[str, bytes]:
        """Name → content of the tokenizer's files; empty if there is no vocabulary."""
        files = {name: content for name, content in self.files.items() if name in TOKENIZER_FILES}
        return files if any(name in files for name in VOCABULARIES) else {}

    def with_tokenizer(self, files: Mapping[str, bytes]) -> ModelAssets:
        """Return assets with the tokenizer of the data, if these have no tokenizer or another one.

        Args:
            files: name → content of the tokenizer's files; empty if it is unknown.
        """
        if not files or any(name in self.files and self.files[name] == files.get(name) for name in VOCABULARIES):
            return self
        # All files of the other tokenizer are removed, so that the files of two tokenizers are never mixed.
        kept = {name: content for name, content in self.files.items() if name not in TOKENIZER_FILES}
        return replace(self, files={**kept, **files})

    def trained_on(self, generation_info: GenerationInfo) -> ModelAssets:
        """Return assets with the end tokens and the chat template of the training data.

        The original end tokens of the model are kept after those of the data: the model may still generate them, and
        they also end an answer.

        Args:
            generation_info: end tokens, padding token and chat template of the data.

        Raises:
            ConfigError: generation_config.json or tokenizer_config.json cannot be used; one line for each problem.
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
        # Ids that are no row of the embedding are left out: -1, or tokens beyond the vocabulary of the model.
        unique = dict.fromkeys([*generation_info.ends, *own])
        ends = [number for number in unique if 0 <= number < self.config.vocab_size]
        if generation_info.ends and ends:
            raw["eos_token_id"] = ends[0] if len(ends) == 1 else ends
            # Defaults come first, so that they do not replace what generation_config.json contains.
            generation = {"bos_token_id": known["bos_token_id"], "pad_token_id": known["pad_token_id"]} | generation
            if generation["pad_token_id"] is None:
                generation["pad_token_id"] = generation_info.pad
            generation["eos_token_id"] = raw["eos_token_id"]
            files[GENERATION] = _json({key: value for key, value in generation.items() if value is not None})
        if not generation_info.keeps_template:
            files = self._with_chat_template(files, generation_info.chat_template)
        return replace(self, config=parse_config(self.config.folder, raw), files=files)

    def with_generation_settings_of(self, other: ModelAssets) -> ModelAssets:
        """Return assets with the end tokens, generation settings and chat template of another folder of the same model.

        Args:
            other: assets of the other folder.

        Raises:
            ConfigError: the two config.json files describe different models, or a JSON file cannot be read.
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

    def with_files_of_adapter(self, folder: Path) -> ModelAssets:
        """Return assets with the tokenizer, the generation settings and the chat template of a peft folder.

        Args:
            folder: peft folder. What it does not contain is not changed.

        Raises:
            ConfigError: a JSON file cannot be read.
        """
        files = read_existing_files(folder, [name for name in ASSET_FILES if name != CONFIG])
        theirs = ModelAssets(replace(self.config, folder=folder), files)
        named = token_ids(theirs._object(GENERATION).get("eos_token_id"))
        raw = {**self.config.raw, "eos_token_id": named[0] if len(named) == 1 else named} if named else self.config.raw
        changed = self.with_tokenizer(theirs.tokenizer_files)
        settings = {GENERATION: files[GENERATION]} if GENERATION in files else {}
        changed = replace(
            changed, config=parse_config(self.config.folder, dict(raw)), files={**changed.files, **settings}
        )
        jinja = _own_chat_template(files, theirs._object(TOKENIZER))
        if jinja is None:
            return changed
        return replace(changed, files=changed._with_chat_template(dict(changed.files), jinja))

    def _with_chat_template(self, files: dict[str, bytes], jinja: str | None) -> dict[str, bytes]:
        """Return `files` with `jinja` as the only chat template, in the file that transformers 5 writes.

        Args:
            files: name → content.
            jinja: chat template; None removes the template without a replacement, because it would not fit the data.
        """
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
                    f"{self.config.folder}: its chat template, or its end token, contains half of a surrogate pair "
                    f"({error.object[error.start : error.end]!a}), which UTF-8 cannot encode; correct it"
                ) from error
        return changed

    def _end_token(self, settings: Mapping[str, Any], jinja: str) -> str:
        """Return a line of Jinja that sets eos_token; empty if the tokenizer files name the token.

        Some tokenizers name no end token; then only generation_config.json or config.json specifies its id. Without
        this line, eos_token would be undefined in the template.
        """
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
        """Return the JSON object in a file; empty if there is no such file.

        Raises:
            ConfigError: the content is not JSON, or not an object.
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


def assets_of_checkpoint(checkpoint: Path, config: HuggingFaceConfig) -> ModelAssets:
    """Return the assets of a model that is converted to the Hugging Face format.

    End tokens, generation settings and chat template of a checkpoint that a run saved are those of its training data.
    They are used even if config and tokenizer come from another folder.

    Args:
        checkpoint: an iter_ directory.
        config: configuration of the model.

    Raises:
        ConfigError: an asset cannot be read, or the other folder describes another model.
    """
    assets = ModelAssets.read(config)
    carried = checkpoint / CARRIED
    # Only runs write run.json. The assets in a converted checkpoint are a copy of the original model's.
    saved_by_run = (checkpoint / RECORD).is_file() and (carried / "config.json").is_file()
    if not saved_by_run or config.folder == carried:
        return assets
    logger.info(f"eos_token_id, generation settings and chat template are taken from the run: {carried}")
    return assets.with_generation_settings_of(ModelAssets.read(read_config(carried)))


def read_existing_files(folder: Path, names: Sequence[str]) -> dict[str, bytes]:
    """Read the files of a folder that exist.

    Args:
        folder: directory of the files.
        names: file names; those that do not exist are skipped.

    Returns:
        name → content.

    Raises:
        ConfigError: a file cannot be read.
    """
    try:
        return {name: (folder / name).read_bytes() for name in names if (folder / name).is_file()}
    except OSError as error:
        raise ConfigError(f"{error.filename}: cannot be read ({error.strerror or error})") from error


def _own_chat_template(files: Mapping[str, bytes], settings: Mapping[str, Any]) -> str | None:
    """Return the default chat template in the files of a tokenizer, or None."""
    # transformers prefers this file to the entry in tokenizer_config.json.
    if CHAT_TEMPLATE in files:
        return files[CHAT_TEMPLATE].decode("utf-8", "replace")
    source = settings.get("chat_template")
    if isinstance(source, list):  # several named templates
        named = (entry for entry in source if isinstance(entry, dict))
        source = next((entry.get("template") for entry in named if entry.get("name") == "default"), None)
    return source if isinstance(source, str) else None


def _json(value: Mapping[str, Any]) -> bytes:
    """Return the text of a JSON file as UTF-8."""
    try:
        return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()
    except UnicodeEncodeError:
        # UTF-8 cannot encode half of a surrogate pair; JSON can, as an escape sequence.
        return (json.dumps(value, indent=2) + "\n").encode()
