"""Load the tokenizer that the flags specify, with the library that can read it."""

from __future__ import annotations

from pathlib import Path

from mindspeed_llm.arguments.data_arguments import TokenizerArguments
from mindspeed_llm.arguments.missing_paths import (
    missing_tokenizer_folder,
    missing_tokenizer_model,
    no_tokenizer_files,
)
from mindspeed_llm.chat.special_tokens import SpecialTokens, read_special_tokens
from mindspeed_llm.errors import ConfigError
from mindspeed_llm.tokenization.tokenizer import MAX_IDS, Tokenizer


def load_tokenizer(
    kind: str,
    name_or_path: str | None = None,
    model: str | None = None,
    *,
    fast: bool = True,
    trusted: bool = False,
    backend: str | None = None,
) -> Tokenizer:
    """Load the tokenizer of a Hugging Face folder or of a SentencePiece model; code in the folder is never run.

    Args:
        kind: 'PretrainedFromHF' (reads `name_or_path`) or 'GPTSentencePieceTokenizer' (reads `model`).
        name_or_path: directory with the files of the tokenizer.
        model: path of a SentencePiece model.
        fast: prefer tokenizer.json if the folder contains tokenizer.model as well.
        trusted: whether --trust-remote-code was given; the error for a tokenizer that needs code then explains why
            that code is not run.
        backend: value of `--tokenizer-backend`; None for the reference library of the tokenizer.

    Raises:
        ConfigError: a file is missing or cannot be read, an id is too large, the tokenizer is defined by its own code
            only, or `backend` cannot be used.
    """
    tokenizer = _load(kind, name_or_path, model, fast, trusted, backend)
    if tokenizer.vocab_size > MAX_IDS:
        raise ConfigError(
            f"{name_or_path or model}: the tokenizer has the token id {tokenizer.vocab_size - 1:,}; "
            f"ids must be below {MAX_IDS:,}; download its files again, or correct the file that declares this id"
        )
    return tokenizer


def load_tokenizer_of_command(flags: TokenizerArguments) -> Tokenizer | None:
    """Load the tokenizer that a training command names; None if it names none.

    Args:
        flags: flags of the tokenizer.

    Raises:
        ConfigError: see `load_tokenizer`.
    """
    if flags.tokenizer_type is None:
        return None
    return load_tokenizer(
        flags.tokenizer_type,
        flags.tokenizer_name_or_path,
        flags.tokenizer_model,
        fast=not flags.tokenizer_not_use_fast,
    )


def _load(
    kind: str, name_or_path: str | None, model: str | None, fast: bool, trusted: bool, backend: str | None
) -> Tokenizer:
    """Load the tokenizer; see `load_tokenizer` for the arguments and errors."""
    if kind == "GPTSentencePieceTokenizer":
        from mindspeed_llm.tokenization.sentencepiece_tokenizer import LIBRARY, SentencePieceTokenizer

        if model is None:
            raise ConfigError(f"--tokenizer-type {kind} needs --tokenizer-model FILE")
        path = Path(model)
        if (missing := missing_tokenizer_model(model)) is not None:
            raise ConfigError(missing)
        return SentencePieceTokenizer(path, kind, backend=backend or LIBRARY)

    if kind != "PretrainedFromHF":
        raise ConfigError(f"--tokenizer-type {kind}: not one of PretrainedFromHF, GPTSentencePieceTokenizer")
    if name_or_path is None:
        raise ConfigError(f"--tokenizer-type {kind} needs --tokenizer-name-or-path DIR")
    folder = Path(name_or_path)
    if (missing := missing_tokenizer_folder(name_or_path)) is not None:
        raise ConfigError(missing)
    special = read_special_tokens(folder)
    described, pieces = folder / "tokenizer.json", folder / "tokenizer.model"
    if described.is_file() and (fast or not pieces.is_file()):
        from mindspeed_llm.tokenization.hugging_face_tokenizer import LIBRARY, HuggingFaceTokenizer

        return HuggingFaceTokenizer(described, special, backend or LIBRARY)
    if (code := custom_tokenizer_class(special)) is not None:
        raise ConfigError(_code_refused(folder, code, trusted))
    if pieces.is_file():
        from mindspeed_llm.tokenization.sentencepiece_tokenizer import LIBRARY, SentencePieceTokenizer

        return SentencePieceTokenizer(pieces, kind, special, fast, backend or LIBRARY)
    raise ConfigError(no_tokenizer_files(name_or_path))


def custom_tokenizer_class(special: SpecialTokens) -> str | None:
    """Return the class that `auto_map` names for the tokenizer, such as 'tokenization_x.XTokenizer', or None."""
    auto_map = special.settings.get("auto_map")
    entry = auto_map.get("AutoTokenizer") if isinstance(auto_map, dict) else auto_map
    classes = [name for name in (entry if isinstance(entry, list) else [entry]) if isinstance(name, str)]
    return classes[0] if classes else None


def _code_refused(folder: Path, code: str, trusted: bool) -> str:
    """Return the message for a tokenizer that is defined by its own code, with the ways to load it without."""
    reason = (
        "--trust-remote-code: code of a tokenizer's folder is never run here, not even with this flag, because the "
        "rest of this program could then not be trusted either"
        if trusted
        else f"--tokenizer-name-or-path {folder}: its tokenizer is defined by its own Python code, which is not run"
    )
    if (folder / "tokenizer.json").is_file():
        return f"{reason}; {folder} names {code}. Leave --tokenizer-not-use-fast out: its tokenizer.json needs no code"
    model = folder / "tokenizer.model"
    other = f", or read {model} alone by its own rules: --tokenizer-type GPTSentencePieceTokenizer"
    return (
        f"{reason}; {folder} names {code} and contains no tokenizer.json. If you trust that code, load it once with "
        f"transformers and save a fast tokenizer (tokenizer.json) beside it{other if model.is_file() else ''}"
    )
