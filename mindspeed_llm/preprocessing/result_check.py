"""Check what reading the rows gave: errors and notices with advice that fits the fault of the data."""

from __future__ import annotations

from collections.abc import Iterator

from mindspeed_llm.arguments.preprocess_arguments import PreprocessArguments
from mindspeed_llm.chat import Handler, SharegptHandler
from mindspeed_llm.chat.messages import ROLE_NAMES
from mindspeed_llm.errors import ConfigError, DataError
from mindspeed_llm.preprocessing.batch_outcome import RowTally
from mindspeed_llm.preprocessing.handler_choice import wrapper_advice
from mindspeed_llm.preprocessing.inputs import PreprocessingInputs
from mindspeed_llm.preprocessing.summary_table import listed_counts
from mindspeed_llm.rawdata import BROKEN_JSON, NOT_UTF8, TOO_LARGE, encoding_advice
from mindspeed_llm.tokenization import LENGTH_REASONS

NO_ANSWER = {"answer is empty", "answer is missing"}
UNKNOWN_ROLE = "unknown role"
UNKNOWN_ENCODING = "convert their files with 'iconv -f ENCODING -t UTF-8 FILE > NEW'"


def check_result(arguments: PreprocessArguments, inputs: PreprocessingInputs, tally: RowTally) -> None:
    """Check that the rows gave samples.

    Raises:
        ConfigError: no row has a column of --map-keys.
        DataError: no row gave a sample.
    """
    handler, columns = inputs.handler, _columns(tally)
    if handler.unseen:
        raise ConfigError(
            [f"--map-keys: no row has the column '{name}'; they have {columns}" for name in sorted(handler.unseen)]
        )
    if tally.kept:
        return
    where = ", ".join(arguments.input.input)
    nothing = f"{where}: none of {tally.rows_read:,} rows gives a sample ({listed_counts(tally.skipped)})"
    raise DataError(f"{nothing}; {_advice(arguments, inputs, tally)}")


def _advice(arguments: PreprocessArguments, inputs: PreprocessingInputs, tally: RowTally) -> str:
    """Return what to do if no row gave a sample."""
    reasons, handler = tally.skipped.keys(), inputs.handler
    if reasons <= LENGTH_REASONS:
        return f"raise --seq-length {arguments.sample.seq_length}"
    if reasons == {TOO_LARGE}:
        return f"raise --max-row-mib {arguments.input.max_row_mib}"
    if NOT_UTF8 in reasons:
        return _first_encoding_advice(inputs) or UNKNOWN_ENCODING
    if BROKEN_JSON in reasons:
        return "a .jsonl file has one JSON value per line, a value over several lines needs a .json file"
    if tally.rows_read <= len(inputs.files):
        advice = wrapper_advice(inputs.files[0], tally.columns)
        if advice is not None:
            return advice
    answers = handler.columns.get("response")
    if reasons <= NO_ANSWER and answers in tally.columns:
        return f"the column '{answers}' has no text; name the column of the answers as \"response\" in --map-keys"
    if any(reason.startswith(UNKNOWN_ROLE) for reason in reasons):
        return _role_advice(handler)
    return f"they have {_columns(tally)}; name the columns that {handler.name} reads with --map-keys"


def result_notices(inputs: PreprocessingInputs, tally: RowTally) -> Iterator[str]:
    """Yield a notice with advice for rows that were skipped although most rows gave samples."""
    if tally.skipped[NOT_UTF8] and (advice := _first_encoding_advice(inputs)) is not None:
        yield f"{tally.skipped[NOT_UTF8]:,} rows are not UTF-8: {advice}"
    if any(reason.startswith(UNKNOWN_ROLE) for reason in tally.skipped):
        yield f"rows were skipped for unknown roles: {_role_advice(inputs.handler)}"


def _first_encoding_advice(inputs: PreprocessingInputs) -> str | None:
    return next((advice for file in inputs.files if (advice := encoding_advice(file)) is not None), None)


def _role_advice(handler: Handler) -> str:
    """Return the names of the roles that are read, and how to give others."""
    assert isinstance(handler, SharegptHandler)
    roles = "; ".join(f"{key}: {' or '.join(handler.role_names(key))}" for key in ROLE_NAMES)
    return f'the roles are {roles}; name others in --map-keys, such as \'{{"tags":{{"user_tag":"NAME"}}}}\''


def _columns(tally: RowTally) -> str:
    return ", ".join(name.replace("\n", "\\n") for name in tally.columns) or "no columns"
