"""The page of a run: what it contains, that all text of the run is escaped, and what a browser shows."""

from __future__ import annotations

import html
import json
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from mindspeed_llm.errors import ConfigError, DataError
from mindspeed_llm.indexed_dataset import Histograms, Manifest, RowCounts, TokenizerInfo
from mindspeed_llm.manifest import manifest_path
from mindspeed_llm.reports import write_run_page
from mindspeed_llm.reports.__main__ import main
from mindspeed_llm.reports.generations import read_generations
from mindspeed_llm.reports.svg_chart import Series, line_chart

HOSTILE = "</td><script>document.title='x'</script><img src=x onerror=console.error(1)> & \"'\x1b[2J 三🙂"
ITERATIONS = (0, 2, 4)


def answer(iteration: int, line: int, output: str, **values: Any) -> dict[str, Any]:
    record = {"iteration": iteration, "line": line, "prompt": f"Reverse {line}: a b", "answer": "b a"}
    return record | {"output": output, "tokens": 3, "stopped": True, "exact": output == "b a"} | values


def json_lines(path: Path, records: list[dict[str, Any] | str]) -> None:
    texts = [record if isinstance(record, str) else json.dumps(record) for record in records]
    path.write_text("".join(text + "\n" for text in texts), "utf-8")


def packed_data(folder: Path, name: str) -> str:
    """Write the manifest of packed files."""
    prefix = str(folder / name)
    Manifest(
        packed=True, neat=True, seq_length=100, append_eod=True, eod_inside_sample=False,
        tokenizer=TokenizerInfo("PretrainedFromHF", "0", 100, 0, 1), template=None, handler="A", sources=[],
        counts=RowCounts(5, 5), samples=5, tokens=180, trained_tokens=60, packs=2, fill=0.9, packing=None,
        histograms=Histograms([[36, 5]], [[2, 1], [3, 1]]),
    ).write(manifest_path(prefix))  # fmt: skip
    return prefix


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run directory with hostile text in every place that a user or a model can fill."""
    folder = tmp_path / "a <b> run"
    folder.mkdir()
    start = {
        "kind": "start",
        "layout": {"tensor_model_parallel_size": 2, "sequence_parallel": True},
        "versions": {"torch": "2.13.0", "odd": HOSTILE},
        "arguments": {"data": {"data_path": [packed_data(tmp_path, "<i>set"), HOSTILE]}, "given": ["--data-path"]},
    }
    steps: list[dict[str, Any] | str] = [
        {"kind": "train", "iteration": i, "loss": 4.0 / i, "tokens": 90, "slots": 100, "trained_tokens": 30}
        | {"tokens_per_second": 500.0, "step_seconds": 1.0, "grad_norm": 1.0, "learning_rate": 1e-3}
        for i in (1, 2, 3, 4)
    ]
    held_out = [{"kind": "eval", "iteration": i, "split": "valid", "loss": 5.0 - i} for i in ITERATIONS]
    json_lines(folder / "metrics.jsonl", [start, *steps, *held_out])
    lines: list[dict[str, Any] | str] = []
    for iteration in ITERATIONS:
        said = "b a" if iteration == 4 else f"noise {iteration}"
        lines += [answer(iteration, 1, said), answer(iteration, 2, HOSTILE, stopped=False, answer=HOSTILE)]
        talk = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": HOSTILE}]
        free = answer(iteration, 3, "free text", messages=talk, exact=None)
        lines.append({key: value for key, value in free.items() if key not in ("prompt", "answer")})
    json_lines(folder / "generations.jsonl", lines)
    return folder


class Page(HTMLParser):
    """Collects elements, attributes and the cells of the table of answers."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.cells: list[str] = []
        self._in_answers = self._in_cell = False
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attributes)))
        if tag == "table":
            self._in_answers = dict(attributes).get("class") == "answers"
        self._in_cell |= tag == "td" and self._in_answers
        if tag == "td" and self._in_answers:
            self.cells.append("")

    def handle_endtag(self, tag: str) -> None:
        self._in_cell &= tag != "td"
        self._in_answers &= tag != "table"

    def handle_data(self, data: str) -> None:
        if self._in_cell:
            self.cells[-1] += data


def test_the_page_contains_the_whole_run_and_no_markup_of_it(run: Path) -> None:
    text = write_run_page(run).read_text("utf-8")
    page = Page(text)
    names = {name for name, _ in page.elements}
    assert not names & {"script", "img", "link", "iframe", "object", "base", "form"}
    for name, attributes in page.elements:
        assert not any(key.startswith("on") or key in ("src", "href") for key in attributes), (name, attributes)
    assert "http" not in text and "url(" not in text and "@import" not in text, "self-contained"
    assert "<script" not in text and "<i>set" not in text and "a <b> run" not in text
    assert "\x1b" not in text and r"\x1b[2J" in text, "control characters are visible"
    assert len(page.cells) == 3 * (2 + len(ITERATIONS))
    assert page.cells[:5] == ["Reverse 1: a b", "b a", "✗ noise 0", "✗ noise 2", "✓ b a"]
    assert "<script>document.title='x'</script>" in page.cells[6] and page.cells[7].endswith("三🙂…")
    assert page.cells[10].startswith("system: Be brief.\nuser: </td>") and page.cells[12] == "free text"
    for part in ("after 4 · 1 of 2", "1 of 2</b>", "2.13.0", "TP 2", "Exact answers", "Tokens per second"):
        assert part in text, part
    assert "packed: 2 rows, fill 90.00 %" in text and "padded: one sample per row: 5 rows, fill 36.00 %" in text
    drawings = re.findall(r"<svg.*?</svg>", text, flags=re.DOTALL)
    assert len(drawings) == 5
    for drawing in drawings:
        ElementTree.fromstring(drawing)


def test_a_run_without_answers_or_data_has_a_page(tmp_path: Path) -> None:
    json_lines(tmp_path / "metrics.jsonl", [{"kind": "train", "iteration": 1, "loss": 2.0}])
    text = write_run_page(tmp_path).read_text("utf-8")
    assert "What the model said" not in text and "Packing" not in text and "Loss" in text


def test_a_resumed_run_shows_its_later_answers_and_damaged_lines_are_skipped(tmp_path: Path) -> None:
    other = answer(2, 1, "x", prompt="another file")
    damaged: list[dict[str, Any] | str] = ["{", "[1]", '{"iteration": 1}', "[" * 100_000, ""]
    json_lines(tmp_path / "generations.jsonl", [answer(2, 1, "old"), *damaged, answer(2, 1, "b a"), other])
    found = read_generations(tmp_path)
    assert [prompt.answers[2].output for prompt in found.prompts] == ["b a", "x"]
    assert found.score(2) == (1, 2) and found.iterations == [2]


def test_the_command_writes_the_pages_of_all_runs(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = shutil.copytree(run, tmp_path / "other")
    main([str(run), str(other), "--html"])
    assert f"page: {run / 'report.html'}\npage: {other / 'report.html'}\n" in capsys.readouterr().out
    assert not (run / "loss.png").exists()
    out = tmp_path / "page.html"
    main([str(run), "--html", "--out", str(out)])
    assert out.exists()
    with pytest.raises(ConfigError, match="one page for each run"):
        main([str(run), str(other), "--html", "--out", str(out)])
    with pytest.raises(DataError, match="cannot be written"):
        write_run_page(run, tmp_path / "missing" / "page.html")


def test_a_page_needs_neither_torch_nor_matplotlib(run: Path) -> None:
    code = (
        "import sys; from mindspeed_llm.reports import write_run_page; write_run_page(sys.argv[1]); "
        "assert not {'torch', 'matplotlib'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(run)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_ticks_of_charts() -> None:
    chart = line_chart("t", [Series("a", "red", [0, 500], [0.0, 9.5], has_markers=True)], 400, 200)
    assert chart is not None
    assert [tick.label for tick in chart.y_ticks] == ["0", "5", "10"]
    assert [tick.label for tick in chart.x_ticks] == ["0", "200", "400"]
    assert chart.lines[0].markers[0].y == chart.bottom and chart.lines[0].markers[1].x == chart.right
    assert line_chart("t", [Series("a", "red", [], [])], 400, 200) is None
    flat = line_chart("t", [Series("a", "red", [3], [0.0])], 400, 200)
    assert flat is not None and flat.lines[0].path


# Appended to a copy of the page: for each cell its text, and whether a reader sees it after scrolling there.
PROBE = """<script>
const seen = [...document.querySelectorAll('.answers tbody td')].map(cell => {
  cell.scrollIntoView({block: 'center', inline: 'center'});
  const box = cell.getBoundingClientRect();
  const top = document.elementFromPoint(box.x + box.width / 2, box.y + box.height / 2);
  const style = getComputedStyle(cell);
  return {text: cell.innerText, height: box.height, width: box.width, font: parseFloat(style.fontSize),
    isSeen: cell.contains(top) && style.color !== getComputedStyle(document.body).backgroundColor};
});
const drawn = [...document.querySelectorAll('polyline')].map(line => line.getTotalLength());
document.body.innerHTML = '<pre id="found"></pre>';
document.getElementById('found').textContent = JSON.stringify({seen, drawn});
</script>"""


@pytest.mark.long
def test_a_browser_shows_the_answers(run: Path, tmp_path: Path) -> None:
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("chromium is not installed (Debian: apt-get install chromium)")
    page = write_run_page(run)
    assert not console_messages(dumped(browser, page, tmp_path)[1]), "no errors, and no script of the run has run"
    probed = tmp_path / "probed.html"
    probed.write_text(page.read_text("utf-8").replace("</body>", PROBE + "</body>"), "utf-8")
    dom, _ = dumped(browser, probed, tmp_path)
    (found,) = re.findall(r'<pre id="found">(.*?)</pre>', dom, flags=re.DOTALL)
    result = json.loads(html.unescape(found))
    assert len(result["seen"]) == 3 * (2 + len(ITERATIONS))
    for cell in result["seen"]:
        assert cell["isSeen"] and cell["height"] > 15 and cell["width"] > 60 and cell["font"] >= 12, cell
    assert [cell["text"] for cell in result["seen"][:5]] == [
        "Reverse 1: a b", "b a", "✗ noise 0", "✗ noise 2", "✓ b a"
    ]  # fmt: skip
    assert "document.title" in result["seen"][6]["text"], "markup of an answer is shown as text"
    assert len(result["drawn"]) == 6 and all(length > 50 for length in result["drawn"])


def dumped(browser: str, page: Path, folder: Path) -> tuple[str, str]:
    """Open a page in a headless browser; return its DOM and the log."""
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'profile'}"]
    command += ["--enable-logging=stderr", "--window-size=1250,900", "--dump-dom", page.as_uri()]
    environment = os.environ | {"HOME": str(folder)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout, done.stderr


def console_messages(log: str) -> list[str]:
    return [line for line in log.splitlines() if "CONSOLE" in line]
