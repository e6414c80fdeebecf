"""tokenizer.json into a tokenizer of the library `tokenizers`, quickly."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import tokenizers

FIELDS = {
    "version", "truncation", "padding", "added_tokens", "normalizer", "pre_tokenizer", "post_processor", "decoder",
    "model",
}  # fmt: skip
BPE_FIELDS = {
    "type", "vocab", "merges", "dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix", "fuse_unk",
    "byte_fallback", "ignore_merges",
}  # fmt: skip
NO_OPTIONS = {"type", "vocab", "merges"}
TOKEN_FIELDS = {"id", "content", "single_word", "lstrip", "rstrip", "normalized", "special"}


def read_tokenizer(content: bytes) -> tuple[tokenizers.Tokenizer, int]:
    """The tokenizer that a tokenizer.json describes, and the greatest id of its vocabulary (-1 if that is empty).

    The library holds Python's lock while it reads the file, and goes over a BPE model three times. With the model
    parsed here and handed to it as what it is, a vocabulary of 150,000 tokens takes .33 s in place of .45 s, and
    nothing can be done meanwhile. What is not as expected, to the last field, is left to the library alone.

    Raises:
        Exception: the library cannot read it.
    """
    import tokenizers

    parts = _in_parts(content)
    if parts is not None:
        return parts
    rust = tokenizers.Tokenizer.from_str(content.decode())
    return rust, max(rust.get_vocab(with_added_tokens=True).values(), default=-1)


def add_tokens(rust: tokenizers.Tokenizer, tokens: Iterable[tokenizers.AddedToken]) -> None:
    """Add `tokens` in their order, as many at a time as can be: each call goes over all that were added before."""
    for special, some in itertools.groupby(tokens, lambda token: token.special):
        (rust.add_special_tokens if special else rust.add_tokens)(list(some))


def _in_parts(content: bytes) -> tuple[tokenizers.Tokenizer, int] | None:
    """The same, if it is a BPE model with nothing unknown around it, and the result has the ids of the file."""
    import tokenizers
    from tokenizers import models

    try:
        described = json.loads(content.decode())
        if not _as_expected(described):
            return None
        model, added = described["model"], described["added_tokens"]
        options = {name: value for name, value in model.items() if name not in NO_OPTIONS and value is not None}
        merges = [pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"]]
        around = {**described, "added_tokens": [], "model": {"type": "BPE", "vocab": {}, "merges": []}}
        rust = tokenizers.Tokenizer.from_str(json.dumps(around))
        rust.model = models.BPE(model["vocab"], [(left, right) for left, right in merges], **options)
        numbers = {entry.pop("id"): entry["content"] for entry in added}
        add_tokens(rust, [tokenizers.AddedToken(**entry) for entry in added])
    except Exception:  # the library says what is wrong, when it reads the file itself
        return None
    if {number: token.content for number, token in rust.get_added_tokens_decoder().items()} != numbers:
        return None
    return rust, max([*model["vocab"].values(), *numbers], default=-1)


def _as_expected(described: dict[str, Any]) -> bool:
    """Whether there is nothing in it but what `_in_parts` understands; files of before 2024 have merges as "a b"."""
    model, added = described["model"], described["added_tokens"]
    kind = type(model["merges"][0]) if model["merges"] else list
    return (
        described.keys() <= FIELDS
        and model.keys() <= BPE_FIELDS
        and model["type"] == "BPE"
        and isinstance(added, list)
        and all(entry.keys() == TOKEN_FIELDS for entry in added)
        and kind in (str, list)
        and all(type(pair) is kind for pair in model["merges"])
    )
