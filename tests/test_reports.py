"""Run folder → numbers, tables and pictures."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mindspeed_llm.console.text_tables import table_with_header
from mindspeed_llm.errors import DataError
from mindspeed_llm.manifest import Histograms, Manifest, PackingInfo, RowCounts, TokenizerInfo
from mindspeed_llm.plotting import format_count, new_figure, render_png
from mindspeed_llm.programs import preprocess
from mindspeed_llm.reports import (
    compute_packing_statistics,
    draw_loss,
    draw_packing,
    draw_runs,
    read_metrics,
    run_names,
    runs_table,
    summarize_run,
)
from mindspeed_llm.reports.loss_plot import layout_name, running_mean

ROOT = Path(__file__).parents[1]
PNG = b"\x89PNG\r\n\x1a\n"


def train(iteration: int, **values: Any) -> dict[str, Any]:
    record = {
        "kind": "train", "iteration": iteration, "consumed_samples": 8 * iteration, "loss": 4.0 / iteration,
        "learning_rate": 1e-4, "grad_norm": 1.0, "trained_tokens": 300, "tokens": 900, "slots": 1000, "fill": 0.9,
        "tokens_per_second": 100.0 * iteration, "trained_tokens_per_second": 30.0, "step_seconds": 1.0, "time": 0.0,
    }  # fmt: skip
    return record | values


def held_out(iteration: int, loss: float, split: str = "valid") -> dict[str, Any]:
    return {"kind": "eval", "iteration": iteration, "split": split, "loss": loss, "trained_tokens": 50}


START = {"kind": "start", "layout": {"tensor_model_parallel_size": 2}, "versions": {}, "arguments": {}}


def written(folder: Path, *records: dict[str, Any] | str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    lines = [record if isinstance(record, str) else json.dumps(record) + "\n" for record in records]
    (folder / "metrics.jsonl").write_text("".join(lines), "utf-8")
    return folder


def test_a_resumed_run_counts_its_later_lines(tmp_path: Path) -> None:
    run = written(tmp_path, START, train(1), train(2), train(3), held_out(3, 9.0), START, train(2, loss=1.5),
                  train(3, loss=1.25), held_out(3, 8.0), held_out(3, 7.0, "test"))  # fmt: skip
    metrics = read_metrics(run)
    assert metrics.series("loss") == ([1, 2, 3], [4.0, 1.5, 1.25])
    assert metrics.held_out() == ([3], [8.0]) and metrics.held_out("test") == ([3], [7.0])
    assert len(metrics.starts) == 2 and metrics.damaged == 0


def test_an_incomplete_last_line_is_ignored(tmp_path: Path) -> None:
    metrics = read_metrics(written(tmp_path, train(1), '{"kind": "train", "iterat') / "metrics.jsonl")
    assert metrics.series("loss")[0] == [1] and metrics.damaged == 0


def test_an_incomplete_line_does_not_affect_later_lines(tmp_path: Path) -> None:
    torn = '{"kind": "train", "iteration": 2, "lo' + json.dumps(START) + "\n"
    metrics = read_metrics(written(tmp_path, train(1), torn, "no JSON\n", "[1]\n", train(3)))
    assert metrics.series("loss")[0] == [1, 3] and len(metrics.starts) == 1 and metrics.damaged == 3


def test_invalid_numbers_are_omitted(tmp_path: Path) -> None:
    nan = json.dumps(train(2)).replace('"loss": 2.0', '"loss": NaN') + "\n"
    metrics = read_metrics(written(tmp_path, train(1), nan, train(3, loss=None), train(4, loss="x"), train(5)))
    assert metrics.series("loss")[0] == [1, 5]


@pytest.mark.parametrize("content", [None, "", "hello\n"])
def test_no_metrics_is_a_user_s_error(content: str | None, tmp_path: Path) -> None:
    if content is not None:
        written(tmp_path, content)
    with pytest.raises(DataError, match=r"metrics\.jsonl"):
        read_metrics(tmp_path)


def test_figures_of_a_run(tmp_path: Path) -> None:
    lines = [train(i, peak_memory_bytes=i << 30) for i in range(1, 6)]
    run = written(tmp_path, START, *lines, held_out(0, 8.5), held_out(5, 2.5))
    figures = summarize_run(read_metrics(run))
    assert (figures.iterations, figures.first_loss, figures.last_loss) == (5, 4.0, 0.8)
    assert (figures.first_held_out, figures.last_held_out) == (8.5, 2.5)
    assert figures.peak_memory_bytes == 5 << 30
    assert figures.fill == pytest.approx(0.9) and figures.trained_share == pytest.approx(1 / 3)
    # The first line pays for warming up; then 900 tokens at 200, 300, 400 and 500 a second: 3600 in 11.55 s.
    assert figures.tokens_per_second == pytest.approx(3600 / 11.55)


def test_table_shows_a_dash_for_what_was_not_logged(tmp_path: Path) -> None:
    full = read_metrics(written(tmp_path / "a", train(1), held_out(1, 3.0)))
    bare = read_metrics(written(tmp_path / "b", {"kind": "train", "iteration": 7}))
    lines = runs_table(["with", "without"], [full, bare]).splitlines()
    assert len(lines) == 4 and "90.00%" in lines[2] and "3.0000" in lines[2]
    assert lines[3].split() == ["without", "7", *["–"] * 9]
    assert table_with_header([["一", "b"], ["x", "1"]]).splitlines()[0] == "一  b"


def test_plots_are_written_atomically(tmp_path: Path) -> None:
    run = written(tmp_path / "one", START, *[train(i) for i in range(1, 300)], held_out(100, 2.0), held_out(299, 1.0))
    other = written(tmp_path / "two", train(1), train(2))
    picture = draw_loss(run)
    assert picture == run / "loss.png" and picture.read_bytes().startswith(PNG)
    both = draw_runs([run, other], tmp_path / "new" / "runs.png")
    assert both.read_bytes().startswith(PNG)
    assert sorted(path.name for path in run.iterdir()) == ["loss.png", "metrics.jsonl"], (
        "nothing is left beside the picture"
    )


def test_a_picture_that_fails_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib.figure import Figure

    run = written(tmp_path, train(1), train(2))
    old = draw_loss(run).read_bytes()

    def disk_full(_: Figure, file: Any, **__: Any) -> None:
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Figure, "savefig", disk_full)
    with pytest.raises(OSError, match="No space"):
        draw_loss(run)
    assert (run / "loss.png").read_bytes() == old
    assert sorted(path.name for path in run.iterdir()) == ["loss.png", "metrics.jsonl"]


def test_a_run_without_steps_has_no_picture(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nothing to draw"):
        draw_loss(written(tmp_path, START))
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_drawing_touches_no_global_state_of_matplotlib(tmp_path: Path) -> None:
    run = written(tmp_path, START, train(1), train(2))
    program = (
        f"import sys; from mindspeed_llm.reports import draw_loss; assert 'matplotlib' not in sys.modules; "
        f"draw_loss({str(run)!r}); assert 'matplotlib.pyplot' not in sys.modules and 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)


def test_formatting_helpers(tmp_path: Path) -> None:
    assert running_mean([1, 2, 3, 4, 100], 3) == [1, 2, 3, pytest.approx(107 / 3), 100]
    assert [format_count(n) for n in (950, 12_345, 5_200_000, 2.5e9)] == ["950", "12.3 k", "5.2 M", "2.5 G"]
    layout = {"world_size": 8, "tensor_model_parallel_size": 2, "pipeline_model_parallel_size": 1, "device": "cpu"}
    assert layout_name(layout) == "TP 2 · PP 1 · DP 4"
    assert layout_name({"tensor_model_parallel_size": "x"}) == ""
    assert run_names([tmp_path / "a/run", tmp_path / "b/run"]) == ["a/run", "b/run"]
    assert run_names([tmp_path / "a"]) == ["a"]


def report(*words: object, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mindspeed_llm.reports", *map(str, words)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)


def test_command_line(tmp_path: Path) -> None:
    run = written(tmp_path / "a", START, train(1), train(2), held_out(2, 1.5))
    done = report(run, run, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "1.5000" in done.stdout and (tmp_path / "runs.png").exists()
    assert report(run, "--no-picture").returncode == 0 and not (run / "loss.png").exists()
    assert report(run).returncode == 0 and (run / "loss.png").exists()
    for wrong in ([tmp_path / "none"], [], [run, "--picture"]):
        done = report(*wrong)
        assert done.returncode == 2 and "Traceback" not in done.stderr and done.stderr.count("\n") == 1


def manifest(**values: Any) -> Manifest:
    """Lengths 10 (3 samples), 20 (1) and 50 (1) in two packs of 50: 3 samples, then 2."""
    facts: dict[str, Any] = {
        "packed": True, "neat": True, "seq_length": 50, "append_eod": False, "eod_inside_sample": False,
        "tokenizer": TokenizerInfo("PretrainedFromHF", "0", 100, 0, 1), "template": None, "handler": "A",
        "sources": [], "counts": RowCounts(5, 5), "samples": 5, "tokens": 100, "trained_tokens": 40, "packs": 2,
        "fill": 1.0, "packing": PackingInfo("full and mixed", 1),
        "histograms": Histograms([[10, 3], [20, 1], [50, 1]], [[1, 1], [4, 1]]),
    }  # fmt: skip
    return Manifest(**(facts | values))


def test_packing_figures() -> None:
    figures = compute_packing_statistics(manifest())
    assert (figures.fill, figures.padded_fill) == (1.0, pytest.approx(0.4))
    assert (figures.mean, figures.most, figures.median_length) == (2.5, 4, 10)
    assert figures.variation == pytest.approx(1.5 / 2.5)
    median = compute_packing_statistics(manifest(histograms=Histograms([[10, 2], [20, 2], [50, 1]], [[1, 1], [4, 1]])))
    assert median.median_length == 20
    even = compute_packing_statistics(manifest(samples=4, histograms=Histograms([[10, 2], [20, 1], [50, 1]], [[2, 2]])))
    assert even.median_length == 15


def test_packing_picture_of_one_and_of_several(tmp_path: Path) -> None:
    packed, unpacked = tmp_path / "a_packed_manifest.json", tmp_path / "b_packed_manifest.json"
    manifest().write(packed)
    manifest(packed=False, neat=False, packs=5, packing=None,
             histograms=Histograms([[10, 3], [20, 1], [50, 1]], [[1, 5]])).write(unpacked)  # fmt: skip
    assert draw_packing(packed, tmp_path / "packing.png").read_bytes().startswith(PNG)
    assert draw_packing([packed, unpacked], tmp_path / "both.png").read_bytes().startswith(PNG)


def test_a_picture_that_cannot_be_drawn_is_a_notice_and_leaves_no_old_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest().write(tmp_path / "a_packed_manifest.json")
    preprocess.draw(str(tmp_path / "a"), None)
    assert (tmp_path / "a_packing.png").read_bytes().startswith(PNG) and capsys.readouterr().err == ""
    manifest(samples=0).write(tmp_path / "a_packed_manifest.json")
    preprocess.draw(str(tmp_path / "a"), None)
    notice = "notice: no picture was drawn (the manifest counts no samples; preprocess again)\n"
    assert capsys.readouterr().err == notice and not (tmp_path / "a_packing.png").exists()


def test_the_packing_plot_shows_kept_and_skipped_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = []
    monkeypatch.setattr(
        "mindspeed_llm.reports.packing_plot.save_figure", lambda figure, out: words.append(figure) or out
    )
    counts = RowCounts(1_234, 1_200, {"answer is missing": 4, "longer than seq_length": 30}, 17, 30)
    manifest(counts=counts).write(tmp_path / "a_packed_manifest.json")
    draw_packing(tmp_path / "a_packed_manifest.json", tmp_path / "packing.png")
    lengths, packs, slots = words[0].axes
    assert lengths.get_xlabel().splitlines()[1:] == [
        "1,234 rows: 1,200 kept, 17 of them truncated",
        "34 skipped, 30 of them dropped as too long",
    ]
    assert slots.get_legend().get_texts()[0].get_text() == "trained, 40.0 % of the tokens"
    assert "fill 100.00 %" in slots.texts[0].get_text() and "mean 2.5" in packs.texts[0].get_text()


@pytest.mark.parametrize(
    "values",
    [
        {"samples": 0},
        {"histograms": Histograms([[1, 2, 3]], [])},
        {"histograms": Histograms([[2**80, 1]], [])},
        {"histograms": Histograms([], [[-1, 1]])},
    ],
)
def test_a_manifest_that_makes_no_sense_is_a_user_s_error(values: dict[str, Any], tmp_path: Path) -> None:
    manifest(**values).write(tmp_path / "a_packed_manifest.json")
    with pytest.raises(DataError, match=r"(preprocess|run preprocess_data\.py) again"):
        draw_packing(tmp_path / "a_packed_manifest.json", tmp_path / "packing.png")
    assert not (tmp_path / "packing.png").exists()
    with pytest.raises(DataError):
        draw_packing([], tmp_path / "packing.png")


def test_a_picture_is_laid_out_before_it_is_drawn() -> None:
    figure = new_figure(3, 2)
    axes = figure.subplots()
    axes.set_ylabel("as far from the edge as it needs")
    loose = axes.get_position().bounds
    assert render_png(figure).startswith(b"\x89PNG") and axes.get_position().bounds != loose
    assert figure.get_layout_engine() is None, "savefig would draw twice"
