"""Which library reads the tokenizer that the flags name."""

from __future__ import annotations

from pathlib import Path

from mindspeed_llm.chat.special_tokens import SpecialTokens, read_special_tokens
from mindspeed_llm.errors import ConfigError
from mindspeed_llm.tokenization.tokenizer import MOST_IDS, Tokenizer


def load_tokenizer(
    kind: str,
    name_or_path: str | None = None,
    model: str | None = None,
    *,
    fast: bool = True,
    trusted: bool = False,
) -> Tokenizer:
    """The tokenizer of a Hugging Face folder, or of a SentencePiece model. Code that lies in the folder is never run.

    Args:
        kind: 'PretrainedFromHF' (reads `name_or_path`) or 'GPTSentencePieceTokenizer' (reads `model`).
        fast: prefer tokenizer.json where the folder holds tokenizer.model too.
        trusted: --trust-remote-code was given, so that the error for a tokenizer of code has to say why it is not run.

    Raises:
        ConfigError: nothing there, not readable, ids that are too large, or a tokenizer that only its own code
            describes.
    """
    tokenizer = _loaded(kind, name_or_path, model, fast, trusted)
    if tokenizer.vocab_size > MOST_IDS:
        raise ConfigError(
            f"{name_or_path or model}: the tokenizer has the token id {tokenizer.vocab_size - 1:,}; "
            f"ids are below {MOST_IDS:,}; download its files again, or correct the one that names this id"
        )
    return tokenizer


def _loaded(kind: str, name_or_path: str | None, model: str | None, fast: bool, trusted: bool) -> Tokenizer:
    if kind == "GPTSentencePieceTokenizer":
        from mindspeed_llm.tokenization.sentencepiece_tokenizer import SentencePieceTokenizer

        if model is None:
            raise ConfigError(f"--tokenizer-type {kind} needs --tokenizer-model FILE")
        path = Path(model)
        if not path.is_file():
            raise ConfigError(f"--tokenizer-model {model}: no such file; check the path")
        return SentencePieceTokenizer(path, kind)

    if kind != "PretrainedFromHF":
        raise ConfigError(f"--tokenizer-type {kind}: not one of PretrainedFromHF, GPTSentencePieceTokenizer")
    if name_or_path is None:
        raise ConfigError(f"--tokenizer-type {kind} needs --tokenizer-name-or-path DIR")
    folder = Path(name_or_path)
    if not folder.is_dir():
        raise ConfigError(
            f"--tokenizer-name-or-path {name_or_path}: no such directory; download the model's tokenizer files there"
        )
    special = read_special_tokens(folder)
    described, pieces = folder / "tokenizer.json", folder / "tokenizer.model"
    if described.is_file() and (fast or not pieces.is_file()):
        from mindspeed_llm.tokenization.hugging_face_tokenizer import HuggingFaceTokenizer

        return HuggingFaceTokenizer(described, special)
    if (code := custom_tokenizer_class(special)) is not None:
        raise ConfigError(_code_refused(folder, code, trusted))
    if pieces.is_file():
        from mindspeed_llm.tokenization.sentencepiece_tokenizer import SentencePieceTokenizer

        return SentencePieceTokenizer(pieces, kind, special, fast)
    raise ConfigError(
        f"--tokenizer-name-or-path {name_or_path}: holds neither tokenizer.json nor tokenizer.model; "
        "name the folder that holds one of them"
    )


def custom_tokenizer_class(special: SpecialTokens) -> str | None:
    """The class that `auto_map` names as the tokenizer, such as 'tokenization_x.XTokenizer'; None without one."""
    named = special.settings.get("auto_map")
    found = named.get("AutoTokenizer") if isinstance(named, dict) else named
    classes = [one for one in (found if isinstance(found, list) else [found]) if isinstance(one, str)]
    return classes[0] if classes else None


def _code_refused(folder: Path, code: str, trusted: bool) -> str:
    why = (
        "--trust-remote-code: code of a tokenizer's folder is never run here, with this flag neither: nothing else of "
        "this program could then be trusted"
        if trusted
        else f"--tokenizer-name-or-path {folder}: its tokenizer is code of its own, which is not run"
    )
    if (folder / "tokenizer.json").is_file():
        return f"{why}; {folder} names {code}. Leave --tokenizer-not-use-fast out: its tokenizer.json needs no code"
    model = folder / "tokenizer.model"
    other = f", or read {model} alone by its own rules: --tokenizer-type GPTSentencePieceTokenizer"
    return (
        f"{why}; {folder} names {code} and holds no tokenizer.json. Where you trust that code, load it once with "
        f"transformers and save a fast tokenizer (tokenizer.json) beside it{other if model.is_file() else ''}"
    )
