"""Special tokens of a Hugging Face folder, and tokens added to the vocabulary, as its files declare them.

They are read as transformers reads them, for the tokenizer and for its chat template alike:

- tokenizer_config.json names tokens (eos_token), adds some at given ids (added_tokens_decoder), and lists others
  (additional_special_tokens, extra_special_tokens);
- if it has no added_tokens_decoder, special_tokens_map.json comes after it and wins, and added_tokens.json adds tokens;
- what is named or listed and is no token yet becomes one, at the next free id.

Beyond transformers, special_tokens_map.json is asked for a name that the configuration does not have at all, and
generation_config.json and config.json for an end token.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mindspeed_llm.errors import ConfigError

NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
LISTS = ("extra_special_tokens", "additional_special_tokens")  # the new name and the old one
FLAGS = ("single_word", "lstrip", "rstrip", "normalized")


@dataclass(frozen=True)
class SpecialTokens:
    """What the folder declares; a token is its text, or its id where only that is known.

    Attributes:
        added: id → entry, such as {"content": "<|x|>", "special": true, "lstrip": false}.
        listed: entries of further special tokens, which get the next free ids if they are no tokens yet.
        named: name, such as "eos_token" → text, as a chat template sees it.
        settings: the whole of tokenizer_config.json.
        disagreements: what two files say differently, a line each, with which of them is followed.
    """

    begin: str | int | None
    end: str | int | None
    pad: str | int | None
    added: dict[int, dict[str, Any]] = field(default_factory=dict)
    listed: tuple[dict[str, Any], ...] = ()
    named: dict[str, str] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    disagreements: tuple[str, ...] = ()


def read_special_tokens(folder: Path) -> SpecialTokens:
    """Read what the files of `folder` declare.

    Raises:
        ConfigError: one of these files is not readable JSON.
    """
    settings = _object_in(folder / "tokenizer_config.json")
    mapped = _object_in(folder / "special_tokens_map.json")
    decoder = settings.get("added_tokens_decoder")
    known = isinstance(decoder, dict)
    merged = {**mapped, **settings} if known else {**settings, **mapped}
    different = [key for key in NAMES if {key} <= settings.keys() & mapped.keys() and not _same(settings, mapped, key)]
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
    if end is None:
        end = _eos_id(folder)
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
            f"{source} is followed, as by transformers"
            for key in different
        ),
    )


def _names_in(merged: Mapping[str, Any]) -> list[str]:
    """The names of tokens, the usual ones first; a model may have names of its own, such as image_token."""
    return [*(key for key in NAMES if key in merged), *(k for k in merged if k.endswith("_token") and k not in NAMES)]


def _same(first: Mapping[str, Any], second: Mapping[str, Any], key: str) -> bool:
    one, other = _entry(first[key], special=True), _entry(second[key], special=True)
    return (one or {}).get("content") == (other or {}).get("content")


def _listed(values: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The entries of the list of further tokens."""
    found: Any = next((values[key] for key in LISTS if values.get(key)), [])
    tokens = found if isinstance(found, list) else []
    return [entry for token in tokens if (entry := _entry(token, special=True)) is not None]


def _entry(value: Any, special: bool) -> dict[str, Any] | None:
    """A token as added_tokens_decoder has it; it may be written as its text alone."""
    given = value if isinstance(value, dict) else {"content": value}
    if not isinstance(given.get("content"), str) or not given["content"]:
        return None
    flags = {name: bool(given[name]) for name in FLAGS if name in given}
    return {"content": given["content"], "special": special, **flags}


def _decoded(decoder: Mapping[str, Any]) -> dict[int, dict[str, Any]]:
    return {
        int(number): entry
        for number, value in decoder.items()
        if str(number).isdecimal()
        and isinstance(value, dict)
        and (entry := _entry(value, special=bool(value.get("special")))) is not None
    }


def _added_in(path: Path, special: set[str]) -> dict[int, dict[str, Any]]:
    """The tokens of an added_tokens.json, which has text → id; those that are named or listed are special."""
    return {
        number: {"content": text, "special": text in special, "lstrip": False, "rstrip": False}
        for text, number in _object_in(path).items()
        if isinstance(number, int) and text
    }


def _eos_id(folder: Path) -> int | None:
    for name in ("generation_config.json", "config.json"):
        number = _object_in(folder / name).get("eos_token_id")
        number = number[0] if isinstance(number, list) and number else number
        if isinstance(number, int):
            return number
    return None


def _object_in(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(
            f"--tokenizer-name-or-path: {path} is not readable JSON ({error}); download it again"
        ) from error
    return value if isinstance(value, dict) else {}
