"""Print a summary of the quickstart: python examples/demo/summary.py QUICKSTART_DIR.

Compares the packed run with the padded run in QUICKSTART_DIR. The exit status is 1 unless the held-out loss fell to
MAX_LOSS_RATIO times its first value or lower.
"""

from __future__ import annotations

import sys
from pathlib import Path

from mindspeed_llm.console.text_tables import table_with_header
from mindspeed_llm.entry_point import run_program
from mindspeed_llm.errors import DataError
from mindspeed_llm.indexed_dataset import Manifest
from mindspeed_llm.reports import compute_packing_statistics, read_metrics, summarize_run
from mindspeed_llm.reports.runs_table import format_or_dash

MAX_LOSS_RATIO = 0.5  # last held-out loss relative to the first


def newest_checkpoint(folder: Path) -> Path:
    """Return the checkpoint named by latest_checkpointed_iteration.txt.

    Raises:
        DataError: If the file is missing or damaged, or the checkpoint does not exist.
    """
    tracker = folder / "latest_checkpointed_iteration.txt"
    try:
        checkpoint = folder / f"iter_{int(tracker.read_text('utf-8')):07d}"
    except (OSError, ValueError):
        raise DataError(f"{tracker}: missing or not a number; the training did not end") from None
    if not checkpoint.is_dir():
        raise DataError(f"{checkpoint}: missing, but {tracker.name} names it")
    return checkpoint


def main(folder: Path) -> int:
    run = folder / "checkpoint" / "run"
    packed, padded = summarize_run(read_metrics(run)), summarize_run(read_metrics(folder / "padded_run"))
    data = compute_packing_statistics(Manifest.read(folder / "packed" / "demo_packed_manifest.json"))
    checkpoint = newest_checkpoint(folder / "checkpoint")
    loss_ratio = None
    if packed.first_held_out is not None and packed.last_held_out is not None:
        loss_ratio = packed.last_held_out / packed.first_held_out
    speedup = None
    if packed.tokens_per_second and padded.tokens_per_second:
        speedup = packed.tokens_per_second / padded.tokens_per_second
    rows = [
        ["", "packed", "padded, not packed"],
        [
            "training loss, first → last",
            f"{format_or_dash(packed.first_loss, '.3f')} → {format_or_dash(packed.last_loss, '.3f')}",
            "",
        ],
        [
            "held-out loss, first → last",
            f"{format_or_dash(packed.first_held_out, '.3f')} → {format_or_dash(packed.last_held_out, '.3f')}",
            "",
        ],
        ["rows of the data set", f"{data.packs:,}", f"{data.samples:,}"],
        ["fill (tokens ÷ slots)", f"{data.fill:.2%}", f"{data.padded_fill:.2%}"],
        [
            "trained tokens ÷ tokens",
            f"{data.trained_tokens / data.tokens:.1%}",
            f"{data.trained_tokens / data.tokens:.1%}",
        ],
        [
            "tokens per second",
            format_or_dash(packed.tokens_per_second, ",.0f"),
            format_or_dash(padded.tokens_per_second, ",.0f"),
        ],
        ["packed ÷ padded", f"{format_or_dash(speedup, '.1f')} times", ""],
    ]
    print(table_with_header(rows))
    print(f"\ncheckpoint  {checkpoint}")
    for name in ("loss.png", "packing.png"):
        print(f"{name:<12}{run / name}")
        if not (run / name).exists():
            raise DataError(f"{run / name}: missing; the training did not draw it")
    # "not <=" so that a loss that is not a number fails as well.
    if loss_ratio is None or not loss_ratio <= MAX_LOSS_RATIO:
        ratio = format_or_dash(loss_ratio, ".2f")
        print(f"\nThe held-out loss did not fall to {MAX_LOSS_RATIO} of its first value: {ratio}.")
        return 1
    print(f"\nThe held-out loss fell to {loss_ratio:.2f} of its first value (required: {MAX_LOSS_RATIO}).")
    return 0


if __name__ == "__main__":
    if len(sys.argv) != 2:
        print(__doc__, file=sys.stderr)
        sys.exit(2)
    sys.exit(run_program(lambda: main(Path(sys.argv[1])), "summary.py"))
