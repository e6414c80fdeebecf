"""Train the tokenizer of the demo.

    python examples/demo/make_tokenizer.py DATA.json OUT_FOLDER [--vocab-size 4096]

The tokenizer is a small byte-level BPE like that of Qwen2.5: the same normalization (NFC) and the same kind of
pre-tokenization (words with their leading space, single digits, runs of punctuation). The control tokens <|endoftext|>,
<|im_start|> and <|im_end|> are special tokens after the learned ones. Writes tokenizer.json and tokenizer_config.json.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

CONTROL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
# Pre-tokenization patterns in order of preference: contractions; a word with at most one preceding character that is
# not a letter or digit; single digits; punctuation with its line breaks; whitespace. The last space before a word
# belongs to the word. They are written as Qwen2.5 writes them, because gigatoken compares the text of the pattern.
PATTERNS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)",
    r"[^\r\n\p{L}\p{N}]?\p{L}+",
    r"\p{N}",
    r" ?[^\s\p{L}\p{N}]+[\r\n]*",
    r"\s*[\r\n]+",
    r"\s+(?!\S)",
    r"\s+",
)


def texts(data: Path) -> Iterator[str]:
    """Yield the training texts: every text of the rows, then the fixed parts of the chat template."""
    for row in json.loads(data.read_text("utf-8")):
        yield from (row["instruction"], row["input"], row["output"])
    # The rows do not contain these parts, and BPE merges only what is frequent.
    for _ in range(100):
        yield "system\nYou are a helpful assistant."
        yield "user\n"
        yield "assistant\n"


def train(data: Path, vocab_size: int) -> Tokenizer:
    """Train a tokenizer with at most `vocab_size` ids including control tokens; fewer if no merges remain."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex("|".join(PATTERNS)), behavior="isolated")
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, to_bytes])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(CONTROL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts(data), trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in CONTROL_TOKENS])
    return tokenizer


def write(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    temporary.write_text(text, "utf-8")
    temporary.replace(path)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0], allow_abbrev=False)
    parser.add_argument("data", type=Path, help="Alpaca-style JSON")
    parser.add_argument("out", type=Path, help="the folder to write")
    parser.add_argument(
        "--vocab-size", type=int, default=4096, help="maximum number of ids including control tokens (default 4096)"
    )
    arguments = parser.parse_args()
    if arguments.vocab_size < 256 + len(CONTROL_TOKENS):
        count = len(CONTROL_TOKENS)
        parser.error(f"--vocab-size must be {256 + count} or more: 256 bytes and {count} control tokens")
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
    control_ids = tokenizer.encode("".join(CONTROL_TOKENS)).ids
    print(f"{arguments.out}: {tokenizer.get_vocab_size():,} ids, control tokens {control_ids}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
