"""`satstore report`: one file, complete, that asks for nothing and runs nothing."""

import base64
import re
import warnings
from html.parser import HTMLParser
from pathlib import Path

import pytest
from command_line import call
from tiny import run_tiny

from satstore.config.experiment import ExperimentConfig
from satstore.reports.html import write_report
from satstore.runs.logs_folder import make_run
from satstore.runs.run import Run


class Page(HTMLParser):
    """What a page holds: texts, the addresses it asks for, and whether its elements are closed in order."""

    VOID = frozenset({"meta", "img", "br"})

    def __init__(self, content: str) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.sources: list[str] = []
        self.tags: list[str] = []
        self.open: list[str] = []
        self.feed(content)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.sources += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return run_tiny(tmp_path_factory.mktemp("tiny"))


def test_report__is_one_file_with_figures_tables_config_and_advice(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    code, out, err = call("report", "res", "--out", path, "--logs-dir", run.path.parents[1])
    assert code == 0, err
    assert out.strip() == str(path)
    page = Page(path.read_text())
    assert page.open == []
    text = " ".join(" ".join(page.texts).split())
    for part in (
        run.name,
        f"test accuracy {run.manifest.summary.test_accuracy:.2%}",
        "What the curves mean",
        "too thin to advise:",
        "layers have no tail",
        '"model": "TinyNet"',
        '"torch"',
    ):
        assert part in text, part
    for layer, value in run.manifest.summary.saturation.items():
        assert f"{value:.1%}" in text, layer
    images = [source for source in page.sources if source.startswith("data:image/svg+xml;base64,")]
    assert len(images) == 4, "layers, training, spectra, epochs"
    figures = [base64.b64decode(image.partition(",")[2]).decode() for image in images]
    assert "saturation, accuracy" in figures[0]
    assert [source for source in page.sources if not source.startswith(("data:", "#"))] == []
    assert "default-src 'none'" in path.read_text()


def test_report__shows_hostile_names_as_text(run: Run) -> None:
    found = Run(run.path)
    found.manifest.warnings = ["<script>alert(1)</script> \x1b[31m"]
    found.manifest.config = {**found.manifest.config, "note": "</pre><img src=x onerror=alert(1)>"}
    page = Page(write_report([found]))
    assert "script" not in page.tags
    assert page.tags.count("img") == 4
    assert "\x1b" not in "".join(page.texts)


def test_report__says_why_a_stage_failed(run: Run) -> None:
    found = Run(run.path)
    record = found.manifest.stages["probe"]
    record.status, record.error = "failed", "the disk is full <now>"
    page = Page(write_report([found]))
    assert "probe: the disk is full <now>" in page.texts
    assert "failed:" not in Page(write_report([run])).texts


def test_report__of_several_experiments_has_a_section_of_each(run: Run, tmp_path: Path) -> None:
    other = run_tiny(tmp_path, seed=1, stages=["train"])
    content = write_report([run, other])
    assert len(re.findall(r'<h2 id="run\d">', content)) == 2
    assert Page(content).sources[:2] == ["#run0", "#run1"]


def test_report__of_a_run_that_never_started_says_so(tmp_path: Path) -> None:
    new = make_run(tmp_path, "new", ExperimentConfig(dataset="Digits"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        page = Page(write_report([new]))
    assert "no layer is known yet; run satstore train" in page.texts
