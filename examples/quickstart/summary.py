"""Print the table of the quickstart: python examples/quickstart/summary.py QUICKSTART_DIR.

Compares the packed run with the padded one, and names the spikes of both loss curves: means of ten steps, which are the
lines of the runs, above MAX_RISE times the mean before plus ALLOWANCE, after the warm-up.
"""

from __future__ import annotations

import sys
from itertools import pairwise
from pathlib import Path

from mindspeed_llm.console.text_tables import table_with_header
from mindspeed_llm.entry_point import run_program
from mindspeed_llm.manifest import Manifest
from mindspeed_llm.reports import compute_packing_statistics, read_metrics, summarize_run
from mindspeed_llm.reports.run_metrics import RunMetrics
from mindspeed_llm.reports.runs_table import format_or_dash

WARM_UP = 0.05  # share of the steps
MAX_RISE, ALLOWANCE = 1.2, 0.05


def spikes(metrics: RunMetrics) -> list[str]:
    """Return each rise of the loss that is a spike, such as '0.41 → 0.97 at step 60'."""
    steps, losses = metrics.series("loss")
    lines = [(step, loss) for step, loss in zip(steps, losses, strict=True) if step > WARM_UP * steps[-1]]
    return [
        f"{before:.2f} → {after:.2f} at step {step}"
        for (_, before), (step, after) in pairwise(lines)
        if after > MAX_RISE * before + ALLOWANCE
    ]


def main(folder: Path) -> int:
    run = read_metrics(folder / "checkpoint" / "run")
    packed, padded = summarize_run(run), summarize_run(read_metrics(folder / "padded_run"))
    data = compute_packing_statistics(Manifest.read(folder / "packed" / "train_packed_manifest.json"))
    speedup = None
    if packed.tokens_per_second and padded.tokens_per_second:
        speedup = packed.tokens_per_second / padded.tokens_per_second
    share = f"{data.trained_tokens / data.tokens:.1%}"
    rows = [
        ["", "packed", "padded, not packed"],
        ["training loss, first → last", _course(packed.first_loss, packed.last_loss), ""],
        ["held-out loss, first → last", _course(packed.first_held_out, packed.last_held_out), ""],
        ["rows of the data set", f"{data.packs:,}", f"{data.samples:,}"],
        ["fill (tokens ÷ slots)", f"{data.fill:.2%}", f"{data.padded_fill:.2%}"],
        ["trained tokens ÷ tokens", share, share],
        [
            "tokens per second",
            format_or_dash(packed.tokens_per_second, ",.0f"),
            format_or_dash(padded.tokens_per_second, ",.0f"),
        ],
        ["packed ÷ padded", f"{format_or_dash(speedup, '.1f')} times", ""],
    ]
    print(table_with_header(rows))
    for name, metrics in (("pretraining", read_metrics(folder / "pretraining" / "run")), ("fine-tuning", run)):
        print(f"spikes of the loss in {name}: {'; '.join(spikes(metrics)) or 'none'}")
    return 0


def _course(first: float | None, last: float | None) -> str:
    return f"{format_or_dash(first, '.4f')} → {format_or_dash(last, '.4f')}"


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: summary.py QUICKSTART_DIR")
    sys.exit(run_program(lambda: main(Path(sys.argv[1])), "summary.py"))
