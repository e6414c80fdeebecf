"""Choose the handler by the columns of the data if --handler-name is not given."""

from __future__ import annotations

import itertools
import json
import logging
from collections.abc import Sequence

from mindspeed_llm.chat import HANDLERS, fitting_handlers
from mindspeed_llm.errors import ConfigError
from mindspeed_llm.rawdata import InputFile, read_rows

logger = logging.getLogger(__name__)

# Keys under which other programs keep all rows of a file in one object.
WRAPPERS = ("data", "train", "rows", "examples", "instances", "items", "samples", "records", "test", "validation")
ROWS_TRIED = 100  # until one of them is an object
COLUMNS_SHOWN, COLUMN_SHOWN = 20, 40  # maximum number of columns in a message, and of characters in a name


def choose_handler(inputs: Sequence[str], sources: Sequence[Sequence[InputFile]], map_keys: str | None) -> str:
    """Return the name of the handler that the columns of the first row of each input decide, and log it.

    Args:
        inputs: values of --input.
        sources: the files of each input.
        map_keys: value of --map-keys.

    Raises:
        ConfigError: the columns do not decide it, or the inputs need different handlers.
        DataError: a file is damaged before its first row.
    """
    columns = [_first_columns(files) for files in sources]
    fitting = [fitting_handlers(found, map_keys) for found in columns]
    problems = [
        f"--handler-name is required: the columns of {name} ({_listed(found)}) fit "
        f"{' and '.join(fit) or 'no handler'}; "
        + (wrapper_advice(files[0], found) or f"{_needed_columns()}; --map-keys names other columns")
        for name, files, found, fit in zip(inputs, sources, columns, fitting, strict=True)
        if len(fit) != 1
    ]
    if problems:
        raise ConfigError(problems)
    handlers = list(dict.fromkeys(fit[0] for fit in fitting))
    if len(handlers) > 1:
        each = ", ".join(f"{name} for {fit[0]}" for name, fit in zip(inputs, fitting, strict=True))
        raise ConfigError(f"the columns differ: {each}; preprocess these --input separately, and merge the results")
    shown = _listed(columns[0])
    logger.info(f"--handler-name {handlers[0]}, chosen by the columns of the rows ({shown})")
    return handlers[0]


def wrapper_advice(file: InputFile, columns: Sequence[str]) -> str | None:
    """Return how to extract rows that are all in one object; None if the columns do not look like that.

    Args:
        file: the file of the row.
        columns: columns of its only row.
    """
    wrapper = next((name for name in columns if name in WRAPPERS), None)
    if wrapper is None or file.format != "json":
        return None
    extract = f"import json, sys; json.dump(json.load(sys.stdin)['{wrapper}'], sys.stdout)"
    command = f'python3 -c "{extract}" < {file.path} > NEW.json'
    return f"the rows are in '{wrapper}' of one object; extract them with {command}"


def _first_columns(files: Sequence[InputFile]) -> tuple[str, ...]:
    """Return the columns of the first row that is an object."""
    rows = itertools.islice(read_rows(files), ROWS_TRIED)
    usable = (row.value for row in rows if row.problem is None and isinstance(row.value, dict) and row.value)
    return tuple(map(str, next(usable, {})))


def _listed(columns: Sequence[str]) -> str:
    shown = [json.dumps(name, ensure_ascii=False)[1:-1][:COLUMN_SHOWN] for name in columns[:COLUMNS_SHOWN]]
    more = f" and {len(columns) - COLUMNS_SHOWN:,} more" if len(columns) > COLUMNS_SHOWN else ""
    return ", ".join(shown) + more if shown else "none"


def _needed_columns() -> str:
    """Return the handlers and the columns that they need, as one line."""
    return "; ".join(f"{name} reads {handler.needed_columns()}" for name, handler in HANDLERS.items())
