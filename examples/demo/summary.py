"""The quickstart's last page: python examples/demo/summary.py QUICKSTART_DIR

Prints what the runs in QUICKSTART_DIR came to. Exit status 1 unless the held-out loss fell to BAR
times its first value or lower.
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

BAR = 0.5


def newest_checkpoint(folder: Path) -> Path:
    """The checkpoint that latest_checkpointed_iteration.txt names.

    Raises:
        DataError: there is none.
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
    fall = None
    if packed.first_held_out is not None and packed.last_held_out is not None:
        fall = packed.last_held_out / packed.first_held_out
    faster = None
    if packed.tokens_per_second and padded.tokens_per_second:
        faster = packed.tokens_per_second / padded.tokens_per_second
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
        ["packed ÷ padded", f"{format_or_dash(faster, '.1f')} times", ""],
    ]
    print(table_with_header(rows))
    print(f"\ncheckpoint  {checkpoint}")
    for name in ("loss.png", "packing.png"):
        print(f"{name:<12}{run / name}")
        if not (run / name).exists():
            raise DataError(f"{run / name}: was not drawn")
    if fall is None or not fall <= BAR:
        print(f"\nThe held-out loss did not fall to {BAR} of its first value: {format_or_dash(fall, '.2f')}.")
        return 1
    print(f"\nThe held-out loss fell to {fall:.2f} of its first value (the bar is {BAR}).")
    return 0


if __name__ == "__main__":
    if len(sys.argv) != 2:
        print(__doc__, file=sys.stderr)
        sys.exit(2)
    sys.exit(run_program(lambda: main(Path(sys.argv[1])), "summary.py"))
