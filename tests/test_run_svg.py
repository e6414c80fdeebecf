"""The SVG picture of a run: well-formed, without scripts and foreign addresses, and with what the run contains."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest
from hostile_run import HOSTILE, answer, hostile_run, json_lines

from mindspeed_llm.errors import ConfigError, DataError
from mindspeed_llm.reports import write_run_svg
from mindspeed_llm.reports.__main__ import main
from mindspeed_llm.reports.generations import read_generations
from mindspeed_llm.reports.run_svg import CHARACTER, EVALUATIONS, PROMPTS, WIDTH, table_rows

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return hostile_run(tmp_path)


def test_the_picture_shows_the_run_and_escapes_its_text(run: Path) -> None:
    path = write_run_svg(run)
    assert path == run / "report.svg"
    root = ElementTree.parse(path).getroot()
    assert not {element.tag for element in root.iter()} - {
        SVG + name for name in ("svg", "style", "rect", "text", "tspan", "line", "polyline", "circle", "title")
    }, "no script, no image, no foreign object"
    attributes = {name for element in root.iter() for name in element.attrib}
    assert not [name for name in attributes if name.startswith("on") or "href" in name]
    texts = ["".join(element.itertext()) for element in root.iter(SVG + "text")]
    for text in ("TP 2", "1 of 2", "Reverse 1: a b", "b a", "✗ noise 2", "✓ b a", "after 4", "free text"):
        assert [found for found in texts if text in found], text
    assert any("<script>" in text for text in texts), "markup is shown as text"
    assert not any("\x1b" in text for text in texts)
    assert len(list(root.iter(SVG + "polyline"))) == 5


def test_the_table_is_a_part_of_the_prompts_and_evaluations(tmp_path: Path) -> None:
    assert table_rows(read_generations(tmp_path)) == []
    lines = [answer(10 * i, line, HOSTILE * 9, prompt=f"{line} " + "p" * 300) for i in range(9) for line in range(20)]
    json_lines(tmp_path / "generations.jsonl", lines)
    head, *rows = table_rows(read_generations(tmp_path))
    assert [cell.text for cell in head] == ["prompt", "expected", "after 0", "after 30", "after 50", "after 80"]
    assert len(head) == 2 + EVALUATIONS and len(rows) == PROMPTS
    assert [row[0].text.split()[0] for row in rows] == ["0", "4", "8", "11", "15", "19"]
    ends = [*(cell.x for cell in head[1:]), WIDTH]
    for row in rows:
        for cell, end in zip(row, ends, strict=True):
            assert cell.x + CHARACTER * len(cell.text) < end, cell


def test_the_command_writes_pictures(run: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    main([str(run), "--svg", "--html"])
    written = capsys.readouterr().out
    assert f"picture: {run}/report.svg" in written and f"page: {run}/report.html" in written
    with pytest.raises(ConfigError, match="one of them"):
        main([str(run), "--svg", "--html", "--out", str(tmp_path / "x")])
    with pytest.raises(DataError, match="choose another path with --out"):
        main([str(run), "--svg", "--out", str(tmp_path / "none" / "x.svg")])


def test_a_run_without_answers_and_evaluations(run: Path) -> None:
    (run / "generations.jsonl").unlink()
    (run / "metrics.jsonl").write_text('{"kind": "start"}\n')
    root = ElementTree.parse(write_run_svg(run)).getroot()
    assert "a training run" in "".join(root.itertext())
