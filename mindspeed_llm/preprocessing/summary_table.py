"""The summary table at the end of a preprocessing run."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mindspeed_llm.console.text_tables import key_value_table
from mindspeed_llm.manifest import Manifest, document_prefix
from mindspeed_llm.preprocessing.batch_outcome import RowTally

PARTS_SHOWN = 12  # in one line
# How rows with control tokens in their text were treated, by --control-tokens-in-text.
CONTROLS = {"keep": "kept as control tokens", "plain": "tokenised as plain text", "reject": "rejected"}


def summary_table(manifest: Manifest, tally: RowTally, lengths: NDArray[np.int32], seconds: float, prefix: Path) -> str:
    """Format how many rows were kept, skipped and truncated, and why, and what was written.

    Args:
        manifest: manifest of the packed files.
        tally: counts of the rows.
        lengths: sample lengths in tokens, [samples].
        seconds: duration of the run.
        prefix: --output-prefix.

    Returns:
        a table with one line per figure.
    """
    mode = manifest.control_tokens_in_text
    rows = [("rows read", f"{tally.rows_read:,}"), ("kept", f"{tally.kept:,}")]
    rows.append(("skipped", _counted(sum(tally.skipped.values()), tally.skipped)))
    if tally.skipped:
        rows.append(("", f"listed in {prefix}_rejected.jsonl"))
    rows.append(("truncated", _counted(tally.truncated, tally.steps)))
    rows.append(("dropped", f"{tally.dropped:,}"))
    if tally.cut_prompts:
        rows.append(("last prompt unanswered", f"{tally.cut_prompts:,} (the prompt is left out)"))
    if tally.control_rows:
        rows.append(
            ("control tokens in text", f"{_counted(tally.control_rows, tally.control_tokens)}, {CONTROLS[mode]}")
        )
        if mode != "reject":
            rows.append(("", f"listed in {prefix}_control_tokens.jsonl"))
    rows.append(("tokens", f"{tally.tokens:,}"))
    rows.append(("trained", f"{tally.trained:,} ({100 * tally.trained / tally.tokens:.2f} % of the tokens)"))
    rows.append(
        ("sample length", f"min {lengths.min():,}, median {np.median(lengths):,.0f}, max {lengths.max():,} tokens")
    )
    if manifest.packed:
        spread = [value for value, _ in manifest.histograms.samples_per_pack]
        mean = manifest.samples / manifest.packs
        rows.append(
            ("packs", f"{manifest.packs:,} of {manifest.seq_length:,} slots, {100 * manifest.fill:.2f} % filled")
        )
        if manifest.virtual_tokens:
            rows.append(("virtual tokens", virtual_tokens_line(manifest)))
        rows.append(("samples per pack", f"min {spread[0]:,}, mean {mean:.1f}, max {spread[-1]:,}"))
    elif manifest.documents is None:
        rows.append(("documents", f"{manifest.packs:,}, one for each sample, not padded"))
    else:
        rows.append(("documents", f"{manifest.packs:,}, {manifest.documents.ended:,} with an end token"))
    rows.append(("seconds", f"{seconds:.1f}"))
    written = (
        f"{prefix}_packed_*" if manifest.documents is None else f"{document_prefix(prefix, manifest.documents.key)}.*"
    )
    rows.append(("written", written))
    return key_value_table(rows)


def virtual_tokens_line(manifest: Manifest) -> str:
    """Return how many slots are reserved for virtual tokens, which are overhead and not filled."""
    slots = manifest.samples * manifest.virtual_tokens
    share = f"{100 * manifest.virtual_share:.2f} % of all"
    return f"{manifest.virtual_tokens:,} slots at the beginning of each sample, {slots:,} slots ({share}), not filled"


def listed_counts(parts: Counter[str]) -> str:
    """Return the largest parts and their counts as one line, and the sum of the others."""
    listed = parts.most_common()
    shown = [f"{name}: {count:,}" for name, count in listed[:PARTS_SHOWN]]
    if others := listed[PARTS_SHOWN:]:
        shown.append(f"{len(others):,} others: {sum(count for _, count in others):,}")
    return ", ".join(shown)


def _counted(total: int, parts: Counter[str]) -> str:
    return f"{total:,} ({listed_counts(parts)})" if parts else f"{total:,}"
