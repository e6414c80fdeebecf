"""Check that the first bytes of a file fit its name, before anything is read.

    rows.jsonl   [{"instruction": …       a JSON array, not one value per line; rename it to .json
    rows.csv     instruction;output       columns separated by ';'
    rows.json    <!DOCTYPE html>          a web page

A message names the file, what it contains and how to convert it.
"""

from __future__ import annotations

import re

from mindspeed_llm.errors import DataError
from mindspeed_llm.rawdata.input_files import TEXT_FORMATS, InputFile
from mindspeed_llm.rawdata.json_splitter import parse_json
from mindspeed_llm.rawdata.text_encodings import fitting_encoding
from mindspeed_llm.rawdata.text_formats import BYTE_ORDER_MARK, open_file

HEAD_BYTES = 1 << 18
ROW_BORDER = re.compile(rb"[\n{]")
# First bytes → what the file is, and what to do.
SIGNATURES = {
    b"\xff\xfe\x00\x00": ("text in UTF-32", "convert it with 'iconv -f UTF-32 -t UTF-8 {path} > NEW'"),
    b"\xff\xfe": ("text in UTF-16", "convert it with 'iconv -f UTF-16 -t UTF-8 {path} > NEW'"),
    b"\xfe\xff": ("text in UTF-16", "convert it with 'iconv -f UTF-16 -t UTF-8 {path} > NEW'"),
    b"PK\x03\x04": ("an Excel file or a ZIP archive", "save the sheet as CSV (UTF-8), or unzip the archive"),
    b"\xd0\xcf\x11\xe0": ("an Excel file", "save the sheet as CSV (UTF-8)"),
    b"\x1f\x8b": ("compressed with gzip", "rename it to {name}.gz"),
    b"\x28\xb5\x2f\xfd": ("compressed with zstd", "rename it to {name}.zst"),
    b"BZh91AY&SY": ("compressed with bzip2", "decompress it with bunzip2"),
    b"\xfd7zXZ": ("compressed with xz", "decompress it with unxz"),
    b"PAR1": ("a parquet file", "rename it to {stem}.parquet"),
    b"ARROW1": ("an Arrow file", "rename it to {stem}.arrow"),
    b"version https://git-lfs": ("a pointer of Git LFS, not the data", "download the data with 'git lfs pull'"),
    b"<!doctype html": ("a web page", "download the file itself, not the page that shows it"),
    b"<html": ("a web page", "download the file itself, not the page that shows it"),
}
OWN_SIGNATURES = {"parquet": b"PAR1", "arrow": b"ARROW1"}
SEPARATORS = {";": "a semicolon", "\t": "a tab", "|": "'|'"}
COMMAS = (
    "python3 -c \"import csv, sys; csv.writer(sys.stdout).writerows(csv.reader(sys.stdin, delimiter='{separator}'))\""
    " < {path} > NEW.csv"
)


def content_problem(file: InputFile) -> str | None:
    """Return what is wrong with the content of a file and what to do, as one line; None if nothing is.

    A file that cannot be opened has no problem here: the error comes from reading it.
    """
    try:
        with open_file(file) as (_, stream):
            head = stream.read(HEAD_BYTES)
    except (DataError, OSError):
        return None
    for signature, (kind, advice) in SIGNATURES.items():
        is_page = signature.startswith(b"<")  # in a .txt file it may be the text itself
        if head[: len(signature)].lower() == signature.lower() and not (is_page and file.format == "txt"):
            if OWN_SIGNATURES.get(file.format) == signature:
                return None
            path = file.path
            named = advice.format(path=path, name=path.name, stem=path.stem)
            return f"{path}: the content is {kind}, which its name does not say; {named}"
    return _text_problem(file, head.removeprefix(BYTE_ORDER_MARK)) if file.format in TEXT_FORMATS else None


def encoding_advice(file: InputFile) -> str | None:
    """Return a line with the encoding of a text file that is not UTF-8; None if none fits its beginning."""
    if file.format not in TEXT_FORMATS:
        return None
    try:
        with open_file(file) as (_, stream):
            encoding = fitting_encoding(stream.read(HEAD_BYTES))
    except (DataError, OSError):
        return None
    return None if encoding is None else _encoding_problem(file, encoding)


def _text_problem(file: InputFile, head: bytes) -> str | None:
    """Return the problem of a text file that begins with `head`."""
    if _is_mostly_not_utf8(head) and (encoding := fitting_encoding(head)) is not None:
        return _encoding_problem(file, encoding)
    if file.format == "jsonl" and _is_json_array(head):
        return f"{file.path}: a JSON array, not one JSON value per line; rename it to a name that ends with .json"
    first = head.partition(b"\n")[0].decode(errors="replace")
    if file.format == "csv" and "," not in first:
        for separator, name in SEPARATORS.items():
            if separator in first:
                shown = COMMAS.format(separator="\\t" if separator == "\t" else separator, path=file.path)
                return f"{file.path}:1: {name} separates the columns, not a comma; convert it with {shown}"
    return None


def _encoding_problem(file: InputFile, encoding: str) -> str:
    return (
        f"{file.path}: the text is not UTF-8, it fits {encoding}; "
        f"convert it with 'iconv -f {encoding} -t UTF-8 {file.path} > NEW'"
    )


def _is_mostly_not_utf8(head: bytes) -> bool:
    """Return whether at least half of the rows or lines are not UTF-8. The last one may be incomplete."""
    if head.isascii():
        return False
    pieces = [piece for piece in ROW_BORDER.split(head) if len(piece.strip()) > 2]
    whole = pieces[:-1] if len(pieces) > 1 and len(head) == HEAD_BYTES else pieces
    return 2 * sum(not _is_utf8(piece) for piece in whole) >= len(whole) > 0


def _is_utf8(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True


def _is_json_array(head: bytes) -> bool:
    """Return whether the file is one JSON array, rather than lines of which the first one holds an array."""
    text = head.lstrip()
    if re.match(rb"\[\s*(\{|$)", text) is None:
        return False
    line, _, rest = text.partition(b"\n")
    try:
        parse_json(line.decode(errors="replace"))
    except (ValueError, RecursionError):
        return True
    return not rest.strip()
