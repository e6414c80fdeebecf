"""Read the special tokens of a Hugging Face folder, and the tokens that its files add to the vocabulary.

The rules are those of transformers. The tokenizer and its chat template use the same result.

- tokenizer_config.json names tokens (eos_token), adds tokens at given ids (added_tokens_decoder), and lists further
  tokens (additional_special_tokens, extra_special_tokens).
- Without added_tokens_decoder, special_tokens_map.json is read after it and takes precedence, and added_tokens.json
  adds tokens.
- A named or listed text that is not a token yet becomes one, at the next free id.

Two rules go beyond transformers: a name that tokenizer_config.json does not contain is looked up in
special_tokens_map.json, and a missing end token in generation_config.json and config.json.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mindspeed_llm.errors import ConfigError

NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
LISTS = ("extra_special_tokens", "additional_special_tokens")  # transformers' current name, then its older one
FLAGS = ("single_word", "lstrip", "rstrip", "normalized")


@dataclass(frozen=True)
class SpecialTokens:
    """Tokens that the files of a folder declare.

    Attributes:
        begin: text of the begin token; None if there is none.
        end: text of the end token, or its id if only the id is known; None if there is none.
        pad: text of the pad token; None if there is none.
        added: id → entry, such as {"content": "<|x|>", "special": true, "lstrip": false}.
        listed: entries of further special tokens, which get the next free ids if they are not tokens yet.
        named: name → text, such as "eos_token" → "</s>", for the variables of a chat template.
        settings: complete content of tokenizer_config.json.
        disagreements: one line for each name for which two files give different tokens, with the file that is used.
        end_ids: ids at which generation stops, by generation_config.json or config.json.
    """

    begin: str | int | None
    end: str | int | None
    pad: str | int | None
    added: dict[int, dict[str, Any]] = field(default_factory=dict)
    listed: tuple[dict[str, Any], ...] = ()
    named: dict[str, str] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    disagreements: tuple[str, ...] = ()
    end_ids: tuple[int, ...] = ()


def read_special_tokens(folder: Path) -> SpecialTokens:
    """Read the special and added tokens that the files of `folder` declare.

    Raises:
        ConfigError: one of these files is not readable JSON.
    """
    settings = _object_in(folder / "tokenizer_config.json")
    mapped = _object_in(folder / "special_tokens_map.json")
    decoder = settings.get("added_tokens_decoder")
    known = isinstance(decoder, dict)
    # As in transformers: special_tokens_map.json takes precedence only if there is no added_tokens_decoder.
    merged = {**mapped, **settings} if known else {**settings, **mapped}
    names = [key for key in NAMES if {key} <= settings.keys() & mapped.keys()]
    different = [key for key in names if not _same_token(settings, mapped, key)]
    source = "tokenizer_config.json" if known else "special_tokens_map.json"
    own = merged.get("extra_special_tokens")  # an object of named tokens, or a list
    written = {key: merged[key] for key in _names_in(merged)} | (own if isinstance(own, dict) else {})
    entries = {key: entry for key, value in written.items() if (entry := _entry(value, special=True)) is not None}
    listed = _listed({**mapped, **settings} if known else settings)
    if not known:
        listed += [entry for entry in _listed(mapped) if entry not in listed]
    named = {key: str(entry["content"]) for key, entry in entries.items()}
    special = {*named.values(), *(entry["content"] for entry in listed)}
    added = _decoded(decoder) if isinstance(decoder, dict) else _added_in(folder / "added_tokens.json", special)
    end: str | int | None = named.get("eos_token")
    end_ids = _end_ids(folder)
    if end is None:
        end = end_ids[0] if end_ids else None
    return SpecialTokens(
        named.get("bos_token"),
        end,
        named.get("pad_token"),
        added,
        (*entries.values(), *listed),
        named,
        settings,
        tuple(
            f"{folder}: tokenizer_config.json and special_tokens_map.json name different tokens as {key}; "
            f"{source} is used, as in transformers"
            for key in different
        ),
        end_ids,
    )


def _names_in(merged: Mapping[str, Any]) -> list[str]:
    """Return the names of tokens: first the common names, then names of the model, such as image_token."""
    return [*(key for key in NAMES if key in merged), *(k for k in merged if k.endswith("_token") and k not in NAMES)]


def _same_token(first: Mapping[str, Any], second: Mapping[str, Any], key: str) -> bool:
    """Return whether two files give the same token under the name `key`, as text or as an object."""
    entry, other = _entry(first[key], special=True), _entry(second[key], special=True)
    return (entry or {}).get("content") == (other or {}).get("content")


def _listed(values: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the entries of the list of further special tokens."""
    value: Any = next((values[key] for key in LISTS if values.get(key)), [])
    tokens = value if isinstance(value, list) else []
    return [entry for token in tokens if (entry := _entry(token, special=True)) is not None]


def _entry(value: Any, special: bool) -> dict[str, Any] | None:
    """Return a token in the shape of added_tokens_decoder, from such an object or from text; None if it is neither."""
    given = value if isinstance(value, dict) else {"content": value}
    if not isinstance(given.get("content"), str) or not given["content"]:
        return None
    flags = {name: bool(given[name]) for name in FLAGS if name in given}
    return {"content": given["content"], "special": special, **flags}


def _decoded(decoder: Mapping[str, Any]) -> dict[int, dict[str, Any]]:
    """Return the valid entries of added_tokens_decoder as id → entry; JSON has the ids as text."""
    return {
        int(number): entry
        for number, value in decoder.items()
        if str(number).isdecimal()
        and isinstance(value, dict)
        and (entry := _entry(value, special=bool(value.get("special")))) is not None
    }


def _added_in(path: Path, special: set[str]) -> dict[int, dict[str, Any]]:
    """Return the tokens of added_tokens.json (text → id) as id → entry; a token in `special` is a special one."""
    return {
        number: {"content": text, "special": text in special, "lstrip": False, "rstrip": False}
        for text, number in _object_in(path).items()
        if isinstance(number, int) and text
    }


def _end_ids(folder: Path) -> tuple[int, ...]:
    """Return the ids of the end tokens from generation_config.json or config.json: one, or a list."""
    for name in ("generation_config.json", "config.json"):
        value = _object_in(folder / name).get("eos_token_id")
        numbers = tuple(number for number in (value if isinstance(value, list) else [value]) if type(number) is int)
        if numbers:
            return numbers
    return ()


def _object_in(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file; empty if there is no file or the file holds no object."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(
            f"--tokenizer-name-or-path: {path} is not readable JSON ({error}); download it again"
        ) from error
    return value if isinstance(value, dict) else {}
