"""Train the demo's tokenizer: python examples/demo/make_tokenizer.py DATA.json OUT_FOLDER [--vocab-size 4096]

A byte-level BPE like Qwen2.5's in small: the same normalisation (NFC), the same kind of pre-tokenisation (words with
their leading blank, single digits, runs of signs), and the chat markers <|endoftext|>, <|im_start|>, <|im_end|> as
special tokens after the learnt ones. Writes tokenizer.json and tokenizer_config.json.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

MARKERS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
# Contractions; a word with at most one sign before it; one digit at a time; signs with their line end; blank space, its
# last blank left to the word that follows.
PIECES = (
    r"(?i:'(?:[sdmt]|ll|ve|re))",
    r"[^\r\n\p{L}\p{N}]?\p{L}+",
    r"\p{N}",
    r" ?[^\s\p{L}\p{N}]+[\r\n]*",
    r"\s*[\r\n]+",
    r"\s+(?!\S)",
    r"\s+",
)


def texts(data: Path) -> Iterator[str]:
    """Every text of the rows, and the words of the chat template, which are in no row."""
    for row in json.loads(data.read_text("utf-8")):
        yield from (row["instruction"], row["input"], row["output"])
    for _ in range(100):
        yield "system\nYou are a helpful assistant."
        yield "user\n"
        yield "assistant\n"


def train(data: Path, vocab_size: int) -> Tokenizer:
    """A tokenizer of at most `vocab_size` ids, markers included; fewer where the data has no more pieces to merge."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex("|".join(PIECES)), behavior="isolated")
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, to_bytes])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(MARKERS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts(data), trainer)
    tokenizer.add_special_tokens([AddedToken(marker, special=True, normalized=False) for marker in MARKERS])
    return tokenizer


def write(path: Path, text: str) -> None:
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    beside.write_text(text, "utf-8")
    beside.replace(path)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0], allow_abbrev=False)
    parser.add_argument("data", type=Path, help="Alpaca-style JSON")
    parser.add_argument("out", type=Path, help="the folder to write")
    parser.add_argument(
        "--vocab-size", type=int, default=4096, help="at most so many ids, markers included (default 4096)"
    )
    arguments = parser.parse_args()
    if arguments.vocab_size < 256 + len(MARKERS):
        parser.error(f"--vocab-size must be {256 + len(MARKERS)} or more: 256 bytes and {len(MARKERS)} markers")
    tokenizer = train(arguments.data, arguments.vocab_size)
    config = {
        "tokenizer_class": "Qwen2Tokenizer",
        "model_max_length": 32768,
        "bos_token": None,
        "eos_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
        "unk_token": None,
        "add_bos_token": False,
        "add_prefix_space": False,
        "split_special_tokens": False,
    }
    arguments.out.mkdir(parents=True, exist_ok=True)
    write(arguments.out / "tokenizer.json", tokenizer.to_str(pretty=False))
    write(arguments.out / "tokenizer_config.json", json.dumps(config, indent=1) + "\n")
    print(f"{arguments.out}: {tokenizer.get_vocab_size():,} ids, markers {tokenizer.encode(''.join(MARKERS)).ids}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
