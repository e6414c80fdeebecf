"""Summary of a manifest as rows of a table."""

from __future__ import annotations

from collections.abc import Mapping

from mindspeed_llm.manifest import Manifest
from mindspeed_llm.preprocessing.summary_table import virtual_tokens_line
from mindspeed_llm.reports.packing_plot import compute_packing_statistics


def manifest_rows(manifest: Manifest) -> list[tuple[str, str]]:
    """Return the rows (name, value) that describe the content of packed files and how they were made.

    Args:
        manifest: manifest of the packed files.

    Raises:
        DataError: the manifest counts no samples, or its histograms are not valid.
    """
    counts, figures = manifest.counts, compute_packing_statistics(manifest)
    lengths = [pair[0] for pair in manifest.histograms.sample_length] or [0]
    rows = [
        ("rows read", f"{counts.rows_read:,}"),
        ("kept", f"{counts.kept:,}"),
        ("skipped", _counted(counts.skipped)),
        ("truncated", f"{counts.truncated:,}"),
        ("dropped", f"{counts.dropped:,}"),
        ("samples", f"{manifest.samples:,}"),
        ("sample length", f"min {min(lengths):,}, median {figures.median_length:,.0f}, max {max(lengths):,} tokens"),
        ("tokens", f"{manifest.tokens:,}"),
        ("trained", f"{manifest.trained_tokens:,} ({_share(manifest.trained_tokens, manifest.tokens)} of the tokens)"),
    ]
    if counts.control_rows or manifest.control_tokens_in_text != "keep":
        with_controls = _counted(counts.control_tokens, counts.control_rows)
        rows.append(("control tokens in text", f"{with_controls}, {manifest.control_tokens_in_text}"))
    if manifest.packed:
        rows += [
            ("packs", f"{manifest.packs:,} of {manifest.seq_length:,} slots, {100 * figures.fill:.2f} % filled"),
            *([("virtual tokens", virtual_tokens_line(manifest))] if manifest.virtual_tokens else []),
            ("padded instead", f"{manifest.samples:,} rows, {100 * figures.padded_fill:.2f} % filled"),
            (
                "samples per pack",
                f"mean {figures.mean:.1f}, max {figures.most:,}, coefficient of variation {figures.variation:.2f}",
            ),
        ]
    else:
        rows.append(("documents", f"{manifest.packs:,}, one per sample, not padded"))
    kind = "numbers the samples of a pack (neat)" if manifest.neat else "1 on tokens (plain)"
    end = ", inside samples too" if manifest.eod_inside_sample else ""
    tokenizer = manifest.tokenizer
    rows += [
        ("attention mask", kind),
        ("tokenizer", f"{tokenizer.kind}, {tokenizer.vocab_size:,} ids, SHA-256 {tokenizer.sha256[:12]}…"),
        ("end token", f"id {tokenizer.eod_id}{end}; padding id {tokenizer.pad_id}"),
        ("template", manifest.template.name if manifest.template else "none"),
        ("handler", manifest.handler),
        ("packing", f"{manifest.packing.method}, seed {manifest.packing.seed}" if manifest.packing else "none"),
        ("sources", _sources(manifest)),
    ]
    return rows


def _sources(manifest: Manifest, limit: int = 4) -> str:
    """Return names and sizes of the first input files, and the number of the others."""
    listed = [f"{source.name} ({source.size:,} bytes)" for source in manifest.sources[:limit]]
    more = len(manifest.sources) - limit
    return ", ".join([*listed, *([f"and {more:,} more"] if more > 0 else [])]) or "none"


def _counted(parts: Mapping[str, int], total_count: int | None = None) -> str:
    """Return the total, by default the sum of the parts, and the parts with the largest first."""
    listing = ", ".join(f"{name}: {count:,}" for name, count in sorted(parts.items(), key=lambda part: -part[1]))
    total = f"{sum(parts.values()) if total_count is None else total_count:,}"
    return f"{total} ({listing})" if listing else total


def _share(part: int, total: int) -> str:
    return f"{100 * part / total:.2f} %" if total else "–"
