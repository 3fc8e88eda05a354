"""What the report shows, and what it must not."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from synthetic import write_scores

from guardrail_model_build.findings import Evaluation
from guardrail_model_build.report import main

VOID = {"meta", "br", "link", "img", "input", "hr"}


class Checker(HTMLParser):
    """Notes ids and outside references, and that tags close in order."""

    def __init__(self) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.references: list[str] = []
        self.open: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            if name in ("src", "href", "xlink:href"):
                self.references.append(value or "")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    main([str(write_scores(folder / "scores", rows=120)), str(folder / "out")])
    return folder / "out"


@pytest.fixture(scope="module")
def page(rendered: Path) -> str:
    return (rendered / "report.html").read_text()


def test_the_report_is_one_file_that_asks_for_no_other(page: str) -> None:
    checker = Checker()
    checker.feed(page)
    assert not checker.open, "every tag is closed"
    assert len(checker.ids) == len(set(checker.ids)), "drawings share no id"
    assert all(reference.startswith("#") for reference in checker.references)
    assert {reference[1:] for reference in checker.references} <= set(checker.ids)
    assert "<script" not in page
    assert "@import" not in page
    assert not re.search(r"url\((?!#)", page)


def test_every_section_and_plot_is_there(page: str) -> None:
    checker = Checker()
    checker.feed(page)
    for heading in (
        "Test sets",
        "Curves",
        "Presets",
        "Calibration",
        "From base to INT4",
        "Categories",
        "Languages",
        "Sources",
        "Unfinished responses",
        "Latency",
        "Worst rows",
    ):
        assert f"<h2>{heading}</h2>" in page
    # Curves of prompts and of responses, reliability, steps, categories, languages, prefixes,
    # latency.
    assert page.count("<svg ") == 8
    assert "S2 Non-Violent Crimes" in checker.text


def test_no_colour_is_fixed_so_that_both_themes_are_readable(page: str) -> None:
    drawings = "".join(re.findall(r"<svg .*?</svg>", page, re.DOTALL))
    assert set(re.findall(r"#[0-9a-f]{6}\b", drawings)) <= {"#000000"}
    assert not re.search(r"(fill|stroke): #", drawings)
    assert "prefers-color-scheme: dark" in page
    assert "@media print" in page


def test_the_page_and_the_figures_say_the_same(rendered: Path, page: str) -> None:
    found = Evaluation.model_validate_json((rendered / "evaluation.json").read_text())
    best = found.headline()
    assert best.f1 is not None
    assert f"{best.f1:.3f}" in page
    assert found.worst[0].id in page
    for name in ("ece", "brier", "roc_auc", "f1_interval", "recall_at_fpr_1", "precision"):
        assert (
            name
            in json.loads(found.model_dump_json())["steps"]["onnx"]["files"]["validation"]["both"]
        )


def test_rendering_again_changes_nothing(rendered: Path, page: str, tmp_path: Path) -> None:
    main([str(rendered.parent / "scores"), str(tmp_path)])
    assert (tmp_path / "report.html").read_text() == page
    figures = (tmp_path / "evaluation.json").read_text()
    assert figures == (rendered / "evaluation.json").read_text()


def test_other_models_are_shown_beside_it(rendered: Path, tmp_path: Path) -> None:
    fields = json.loads((rendered / "evaluation.json").read_text())
    other = tmp_path / "other.json"
    other.write_text(json.dumps(fields | {"name": "guard-other<b>", "latency_ms": 99.0}))
    main([str(rendered.parent / "scores"), str(tmp_path / "out"), "--compare", str(other)])
    page = (tmp_path / "out" / "report.html").read_text()
    assert "guard-other&lt;b&gt; 0.0.1" in page
    assert "<td>99.0</td>" in page


def test_a_build_without_evaluation_files_has_a_report(tmp_path: Path) -> None:
    scores = write_scores(tmp_path / "scores", rows=120, public=False)
    main([str(scores), str(tmp_path)])
    found = Evaluation.model_validate_json((tmp_path / "evaluation.json").read_text())
    assert list(found.shipped.files) == ["validation"]
    assert found.headline() == found.shipped.files["validation"]["both"]
    assert "F1, validation" in (tmp_path / "report.html").read_text()
