"""Small tokenizers for tests: one of characters and one of each library."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mindspeed_llm.chat import chat_template_names, load_chat_template
from mindspeed_llm.tokenization.encoded_texts import EncodedTexts, TokenOffsets
from mindspeed_llm.tokenization.tokenizer import Tokenizer

TEXT = ["Describe the way to the old harbour.", "Name two rivers, and the towns beside them.", "user assistant system"]
MARKERS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


class CharacterTokenizer(Tokenizer):
    """Tokenizer with one token per character; <s> and </s> are 1 and 2, and tokens such as <|...|> are 3 and up."""

    kind, sha256, vocab_size = "characters", "0" * 64, 0x110000
    bos_id, eos_id, pad_id = 1, 2, 2

    def __init__(self) -> None:
        self.names: dict[str, int] = {"<s>": 1, "</s>": 2}

    def encode_batch(self, texts: Sequence[str]) -> EncodedTexts:
        return EncodedTexts.of_lists(self.encode_with_offsets(text).ids for text in texts)

    def encode_with_offsets(self, text: str) -> TokenOffsets:
        found = list(re.finditer(r"</?s>|<\|\w+\|>|.", text, re.DOTALL))
        ids = [self.token_id(match[0]) for match in found]
        starts, ends = ([getattr(match, side)() for match in found] for side in ("start", "end"))
        return TokenOffsets(np.array(ids, np.int32), np.array(starts, np.int64), np.array(ends, np.int64))

    def token_id(self, token: str) -> int | None:
        if len(token) == 1:
            return 0x100 + ord(token)
        return self.names.setdefault(token, len(self.names) + 1)

    def decode(self, ids: Sequence[int]) -> str:
        names = {number: name for name, number in self.names.items()}
        return "".join(names.get(int(number)) or chr(int(number) - 0x100) for number in ids)


def byte_level_folder(
    folder: Path,
    eos: str | None = "<|endoftext|>",
    markers: Sequence[str] = MARKERS,
    *,
    bos: str | None = None,
    ordinary: Sequence[str] = (),
    normalized: bool = False,
) -> Path:
    """A Hugging Face folder with a byte-level BPE tokenizer.json.

    Args:
        ordinary: those of `markers` that are added tokens, but not special ones.
        normalized: with Unicode's form C, which ASCII texts do not need.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    if normalized:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(TEXT, trainer)
    tokenizer.add_special_tokens([AddedToken(marker, special=True) for marker in markers if marker not in ordinary])
    tokenizer.add_tokens([AddedToken(marker, special=False, normalized=False) for marker in ordinary])
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": eos, "bos_token": bos}))
    return folder


def all_control_tokens() -> list[str]:
    """Return the control tokens of all templates of this project, with <s> and </s>."""
    tokens = {token for name in chat_template_names() for token in load_chat_template(name).tokens}
    return ["<s>", "</s>", *sorted(tokens)]


def sentence_piece_folder(folder: Path, markers: Sequence[str] = (), legacy: bool = False) -> Path:
    """Write a Hugging Face folder with a SentencePiece tokenizer.model; tokenizer_config.json adds `markers`."""
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXT * 20),
        model_writer=model,
        vocab_size=330,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    added = {1000 + number: {"content": marker, "special": True} for number, marker in enumerate(markers)}
    settings = {"bos_token": "<s>", "eos_token": "</s>", "legacy": legacy, "add_prefix_space": True}
    (folder / "tokenizer_config.json").write_text(
        json.dumps(settings | ({"added_tokens_decoder": added} if added else {}))
    )
    return folder
