"""Which library reads the tokenizer that the flags name."""

from __future__ import annotations

from pathlib import Path

from mindspeed_llm.errors import ConfigError
from mindspeed_llm.tokens.tokenizer import Tokenizer


def load_tokenizer(
    kind: str,
    name_or_path: str | None = None,
    model: str | None = None,
    *,
    fast: bool = True,
    workers: int = 1,
) -> Tokenizer:
    """The tokenizer of a Hugging Face folder, or of a SentencePiece model. Code that lies in the folder is never run.

    Args:
        kind: 'PretrainedFromHF' (reads `name_or_path`) or 'GPTSentencePieceTokenizer' (reads `model`).
        fast: prefer tokenizer.json where the folder holds tokenizer.model too.
        workers: threads for encode_batch.

    Raises:
        ConfigError: nothing there, or not readable.
    """
    if kind == "GPTSentencePieceTokenizer":
        from mindspeed_llm.tokens.sentence_piece import SentencePieceTokenizer

        if model is None:
            raise ConfigError(f"--tokenizer-type {kind} needs --tokenizer-model FILE")
        path = Path(model)
        if not path.is_file():
            raise ConfigError(f"--tokenizer-model {model}: no such file; check the path")
        return SentencePieceTokenizer(path, kind, workers=workers)

    if kind != "PretrainedFromHF":
        raise ConfigError(f"--tokenizer-type {kind}: not one of PretrainedFromHF, GPTSentencePieceTokenizer")
    if name_or_path is None:
        raise ConfigError(f"--tokenizer-type {kind} needs --tokenizer-name-or-path DIR")
    folder = Path(name_or_path)
    if not folder.is_dir():
        raise ConfigError(
            f"--tokenizer-name-or-path {name_or_path}: no such directory; download the model's tokenizer files there"
        )
    from mindspeed_llm.tokens.special_tokens import read_special_tokens

    special = read_special_tokens(folder)
    described, pieces = folder / "tokenizer.json", folder / "tokenizer.model"
    if described.is_file() and (fast or not pieces.is_file()):
        from mindspeed_llm.tokens.hugging_face import HuggingFaceTokenizer

        return HuggingFaceTokenizer(described, special, workers)
    if pieces.is_file():
        from mindspeed_llm.tokens.sentence_piece import SentencePieceTokenizer

        return SentencePieceTokenizer(pieces, kind, special, fast, workers)
    raise ConfigError(
        f"--tokenizer-name-or-path {name_or_path}: holds neither tokenizer.json nor tokenizer.model; "
        "name the folder that holds one of them"
    )
