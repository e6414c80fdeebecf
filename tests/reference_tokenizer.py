"""Control tokens in the text of the data as ordinary text: a second reading, with the libraries themselves.

A text of the data is written with FENCE between the characters of each control token, so that no token stands in it
any more. What is rendered is divided at the control tokens that remain, those of the template; between
them FENCE is taken out again, and the library is asked for tokens of ordinary text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from mindspeed_llm.chat import Conversation, map_texts
from mindspeed_llm.tokenization.tokenizer import Ids, Tokenizer, TokenOffsets

FENCE = "\ue000"  # of a private area, in no text of the tests


def plain_library(folder: Path) -> Callable[[str], list[int]]:
    """Text to ids, without a token for what is special: `tokenizers`, or SentencePiece with its own rule of spaces."""
    if (folder / "tokenizer.json").is_file():
        from tokenizers import Tokenizer as Rust

        rust = Rust.from_file(str(folder / "tokenizer.json"))
        rust.encode_special_tokens = True
        return lambda text: rust.encode(text, add_special_tokens=False).ids
    import sentencepiece

    model = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    return lambda text: model.encode(text)


class PlainReference(Tokenizer):
    """`usual` for the tokens of templates, and a library for everything between them.

    Args:
        controls: the control tokens.
    """

    def __init__(self, folder: Path, usual: Tokenizer, controls: Sequence[str]) -> None:
        self.bos_id, self.eos_id = usual.bos_id, usual.eos_id
        self._usual, self._plain = usual, plain_library(folder)
        self._controls = re.compile("(" + "|".join(sorted(map(re.escape, controls), key=len, reverse=True)) + ")")

    def fenced(self, talk: Conversation) -> Conversation:
        """`talk` with FENCE in each control token of its texts."""
        return map_texts(talk, lambda text: self._controls.sub(lambda found: FENCE.join(found[0]), text))

    def encode_batch(self, texts: Sequence[str]) -> list[Ids]:
        return [np.array(self._ids(text), np.int32) for text in texts]

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
