"""The committed charts show the committed results."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from xml.etree import ElementTree

import pytest

from benchmarks.charts.__main__ import main
from benchmarks.charts.chart import Chart
from benchmarks.charts.data import NOT_CHARTED, SOURCES, Source
from benchmarks.charts.drawing import save
from benchmarks.report import ROOT

RESULTS, CHARTS = ROOT / "benchmarks" / "results", ROOT / "docs" / "charts"
DESCRIPTION, TEXT = "{http://purl.org/dc/elements/1.1/}description", "{http://www.w3.org/2000/svg}text"


def charts() -> Iterator[Chart]:
    return (source.read(RESULTS) for source in SOURCES)


def texts(path: Path) -> list[str]:
    """Return all text of a picture without the fonts' sizes, which may differ between machines."""
    return ["".join(text.itertext()).strip() for text in ElementTree.parse(path).iter(TEXT)]


def test_every_result_is_charted_or_named_as_not_charted() -> None:
    charted = {name for source in SOURCES for name in source.files}
    results = {path.name for path in RESULTS.glob("*.json")}
    assert not charted & set(NOT_CHARTED)
    assert results == charted | set(NOT_CHARTED), "name new results in benchmarks/charts/data.py"


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.chart.__name__)
def test_a_committed_chart_shows_its_results_as_they_are(source: Source, tmp_path: Path) -> None:
    chart = source.read(RESULTS)
    committed = CHARTS / f"{chart.name}.svg"
    shown = ElementTree.parse(committed).find(f".//{DESCRIPTION}")
    assert shown is not None
    assert shown.text is not None
    advice = "draw the charts again: python -m benchmarks.charts"
    assert json.loads(shown.text) == json.loads(json.dumps(asdict(chart))), advice
    assert texts(committed) == texts(save(chart, tmp_path)), advice


def test_every_chart_has_results_and_the_page_shows_it() -> None:
    names = {f"{chart.name}.svg" for chart in charts()}
    assert {path.name for path in CHARTS.iterdir()} == names
    page = (ROOT / "docs" / "performance.md").read_text()
    assert [name for name in names if f"(charts/{name})" not in page] == []


def test_a_chart_is_drawn_to_the_same_bytes_each_time(tmp_path: Path) -> None:
    chart = next(charts())
    first = save(chart, tmp_path).read_bytes()
    assert save(chart, tmp_path).read_bytes() == first
    assert b"<dc:date>" not in first


def test_a_chart_without_its_results_is_skipped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results, out = tmp_path / "results", tmp_path / "out" / "charts"
    results.mkdir()
    (results / "transfer-cpu.json").write_bytes((RESULTS / "transfer-cpu.json").read_bytes())
    main(results, out)
    assert [path.name for path in out.iterdir()] == ["transfer.svg"]
    assert "lacks engine-factbook-cpu.json" in capsys.readouterr().err
