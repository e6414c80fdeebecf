"""Begin, end and pad token, and tokens added to the vocabulary, as the files of a Hugging Face folder name them."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mindspeed_llm.errors import ConfigError


@dataclass(frozen=True)
class SpecialTokens:
    """What the folder says; a token is its text, or its id where only that is known.

    Attributes:
        added: id → entry of added_tokens_decoder, such as {"content": "<|x|>", "special": true}.
        settings: the whole of tokenizer_config.json.
    """

    begin: str | int | None
    end: str | int | None
    pad: str | int | None
    added: dict[int, dict[str, Any]] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)


def read_special_tokens(folder: Path) -> SpecialTokens:
    """Reads tokenizer_config.json, then special_tokens_map.json, then generation_config.json and config.json.

    A file that says null settles the matter: there is no such token; later files are asked only for the end token.

    Raises:
        ConfigError: one of these files is not readable JSON.
    """
    settings = _object_in(folder / "tokenizer_config.json")
    mapped = _object_in(folder / "special_tokens_map.json")

    def named(key: str) -> str | int | None:
        for source in (settings, mapped):
            if key in source:
                return _content(source[key])
        return None

    end = named("eos_token")
    if end is None:
        for name in ("generation_config.json", "config.json"):
            number = _object_in(folder / name).get("eos_token_id")
            number = number[0] if isinstance(number, list) and number else number
            if isinstance(number, int):
                end = number
                break
    decoder = settings.get("added_tokens_decoder")
    added = {
        int(number): entry
        for number, entry in (decoder.items() if isinstance(decoder, dict) else ())
        if str(number).isdecimal() and isinstance(entry, dict) and isinstance(entry.get("content"), str)
    }
    return SpecialTokens(named("bos_token"), end, named("pad_token"), added, settings)


def _content(value: Any) -> str | None:
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) and value else None


def _object_in(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"--tokenizer-name-or-path: {path} is not readable JSON ({error}); download it again"
        ) from error
    return value if isinstance(value, dict) else {}
