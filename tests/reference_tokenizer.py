"""Independent reference for tokenizing control tokens in the data as ordinary text, using the tokenizer libraries.

FENCE is inserted between the characters of each control token in the texts of the data, so that these no longer contain
control tokens. The rendered text is then split at the remaining control tokens, which belong to the template. FENCE is
removed from the parts between them, and the library tokenizes these parts as ordinary text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

from mindspeed_llm.chat import Conversation, map_texts
from mindspeed_llm.tokenization.encoded_texts import EncodedTexts, TokenOffsets
from mindspeed_llm.tokenization.tokenizer import Tokenizer

FENCE = "\ue000"  # a private use character that no text of the tests contains


def plain_library(folder: Path) -> Callable[[str], list[int]]:
    """Return a function that tokenizes text without special tokens, with `tokenizers` or SentencePiece."""
    if (folder / "tokenizer.json").is_file():
        from tokenizers import Tokenizer as Rust

        rust = Rust.from_file(str(folder / "tokenizer.json"))
        rust.encode_special_tokens = True
        return lambda text: rust.encode(text, add_special_tokens=False).ids
    import sentencepiece

    model = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    return lambda text: model.encode(text)


class PlainReference(Tokenizer):
    """Tokenizer that uses `usual` for control tokens of templates and the library for the text between them.

    Args:
        controls: the control tokens.
    """

    def __init__(self, folder: Path, usual: Tokenizer, controls: Sequence[str]) -> None:
        self.bos_id, self.eos_id = usual.bos_id, usual.eos_id
        self._usual, self._plain = usual, plain_library(folder)
        self._controls = re.compile("(" + "|".join(sorted(map(re.escape, controls), key=len, reverse=True)) + ")")

    def fenced(self, conversation: Conversation) -> Conversation:
        """Return the conversation with FENCE inserted into each control token of its texts."""
        return map_texts(conversation, lambda text: self._controls.sub(lambda found: FENCE.join(found[0]), text))

    def encode_batch(self, texts: Sequence[str]) -> EncodedTexts:
        return EncodedTexts.of_lists(self._ids(text) for text in texts)

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = []
        for number, part in enumerate(self._controls.split(text)):
            if number % 2:
                token = self.token_id(part)
                assert token is not None
                ids.append(token)
            elif part:
                ids += self._plain(part.replace(FENCE, ""))
        return ids

    def token_id(self, token: str) -> int | None:
        return self._usual.token_id(token)

    def encode_with_offsets(self, text: str) -> TokenOffsets:
        raise NotImplementedError

    def decode(self, ids: Sequence[int]) -> str:
        raise NotImplementedError
