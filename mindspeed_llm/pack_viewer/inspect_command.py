"""`preprocess_data.py inspect`: print the summary of packed files and one pack."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

from mindspeed_llm.arguments.inspect_arguments import DecodingArguments, InspectArguments
from mindspeed_llm.errors import DataError
from mindspeed_llm.indexed_dataset import PackedFiles
from mindspeed_llm.manifest import has_document_files
from mindspeed_llm.pack_viewer.html_page import write_html_page
from mindspeed_llm.pack_viewer.manifest_summary import manifest_rows
from mindspeed_llm.pack_viewer.pack_view import check_tokenizer, view_pack
from mindspeed_llm.pack_viewer.terminal_view import render_pack, use_colour
from mindspeed_llm.tokenization import Tokenizer, load_tokenizer

logger = logging.getLogger(__name__)


def inspect_pack(shown: InspectArguments, decoding: DecodingArguments) -> None:
    """Print the summary and one pack, and write the HTML page of --html.

    Args:
        shown: files, number of the pack and form of the output.
        decoding: tokenizer, to show text; without one the token ids are shown.

    Raises:
        ConfigError: there is no such pack, or the tokenizer is missing or is not the one that made the files.
        DataError: the files are missing or damaged, with --verify their hashes differ from the manifest, or the page
            cannot be written.
    """
    if has_document_files(shown.prefix):
        raise DataError(f"{shown.prefix}: document files, which have no packs; inspect shows packed files")
    files = PackedFiles.open(shown.prefix)
    if shown.verify:
        files.verify_hashes()
        logger.info("verified: all files match the hashes in the manifest")
    tokenizer = _tokenizer(decoding)
    if tokenizer is not None:
        check_tokenizer(files, tokenizer)
    view = view_pack(files, shown.pack, tokenizer)
    summary = [] if files.manifest is None else manifest_rows(files.manifest)
    print(render_pack(view, summary, use_colour(sys.stdout, shown.color)))
    if tokenizer is None:
        logger.info("notice: token ids are shown because --tokenizer-name-or-path is not given")
    if shown.html is not None:
        path = write_html_page(shown.html, view, summary, files.manifest, Path(shown.prefix).name)
        logger.info(f"written: {path}")


def _tokenizer(decoding: DecodingArguments) -> Tokenizer | None:
    """Load the tokenizer of the command line, if there is one."""
    if decoding.tokenizer_model is not None:
        return load_tokenizer("GPTSentencePieceTokenizer", model=decoding.tokenizer_model)
    if decoding.tokenizer_name_or_path is None:
        return None
    return load_tokenizer("PretrainedFromHF", decoding.tokenizer_name_or_path, fast=not decoding.tokenizer_not_use_fast)
