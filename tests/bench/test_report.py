"""Ratios and bars follow from the figures, and what is missing is never taken for met."""

from __future__ import annotations

import math
from typing import Any

import pytest
import report
from report import Bar
from rich.console import Console


def _subject(ms: float, **other: object) -> dict[str, Any]:
    """Return a subject that takes so many milliseconds for 64 tokens, but for one slow run."""
    lengths = {"64": [ms / 1000, 1.0, ms / 1000]}
    figures: dict[str, object] = {
        "lengths": lengths,
        "tokens": {"64": 70},
        "rates": {},
        "stream": [],
        "decode": None,
    }
    return {"about": "", "peak_mib": 100.0, "off_by": 0.01, **figures, **other}


def _results(**models: dict[str, dict[str, Any]]) -> dict[str, Any]:
    sizes = {"file": 400 * 2**20, "weights": 10**6, "token": 10**8, "position": 10**5}
    return {
        "probe": {"machine": "m", "read_gb_s": 11.0, "gemm_gflops": 100.0, "operators": {}},
        "models": {
            name: {"title": name, "sizes": {**sizes, "parent": 2800 * 2**20}, "subjects": subjects}
            for name, subjects in models.items()
        },
    }


def _bar(bars: list[Bar], name: str) -> Bar:
    return next(bar for bar in bars if name in bar.name)


def _text(shown: object) -> str:
    console = Console(width=200, record=True, file=None, quiet=False)
    with console.capture() as capture:
        console.print(shown)
    return capture.get()


def test_a_bar_is_the_ratio_of_medians() -> None:
    bars = report.bars(
        _results(
            smollm2={
                "sdk": _subject(10),
                "onnxruntime-genai": _subject(19),
                "llama.cpp": _subject(30),
                "transformers": _subject(20),
            }
        )
    )
    assert _bar(bars, "genai").value == pytest.approx(1.9)
    assert _bar(bars, "genai").met is False
    assert _bar(bars, "llama.cpp").met is True
    assert _bar(bars, "transformers").met is True
    assert _bar(bars, "transformers").aim_met is False


def test_a_peer_without_figures_meets_no_bar() -> None:
    failed = {"error": "ModuleNotFoundError: it isn't there", "peak_mib": 1.0}
    results = _results(smollm2={"sdk": _subject(10), "llama.cpp": failed})
    for name in ("llama.cpp", "genai"):
        assert _bar(report.bars(results), name).met is None
    assert "not measured" in _text(report.bar_table(report.bars(results)))
    assert "no figures" in _text(report.main_table(results))
    assert any("it isn't there" in line for line in report.notes(results))


def test_the_fastest_peer_counts_and_the_sdk_is_none() -> None:
    bars = report.bars(
        _results(
            paper={
                "sdk": _subject(10),
                "sdk int4": _subject(5),
                "openvino": _subject(40),
                "transformers": _subject(90),
            }
        )
    )
    assert _bar(bars, "fastest peer").value == pytest.approx(4)
    assert _bar(bars, "fastest peer").met is True
    assert _bar(bars, "fastest peer").aim_met is False


@pytest.mark.parametrize(("mib", "met"), [(440, True), (441, False)])
def test_a_file_may_not_be_larger(mib: int, met: bool) -> None:
    results = _results(paper={"sdk": _subject(10)})
    results["models"]["paper"]["sizes"]["file"] = mib * 2**20
    assert _bar(report.bars(results), "file").met is met


def test_decoding_is_bound_by_weights_and_context_read_per_token() -> None:
    own = _subject(10, decode=[0.0125] * 3, decode_position=100)
    bars = report.bars(_results(paper={"sdk": own}))
    # 11 GB/s over 100 MB of weights and 10 MB of context: 100 tokens a second; 80 were said.
    assert _bar(bars, "decode").value == pytest.approx(80)
    assert _bar(bars, "decode").met is True


def test_logits_differ_by_a_share_of_their_spread() -> None:
    assert report.difference([[1.0, 3.0]], [[1.0, 3.0]]) == 0
    assert report.difference([[1.5, 3.5]], [[1.0, 3.0]]) == pytest.approx(0.5)


@pytest.mark.parametrize("logits", [[[1.0]], [[1.0, math.nan]], []])
def test_what_is_no_answer_differs_without_bound(logits: list[list[float]]) -> None:
    assert report.difference(logits, [[1.0, 3.0]]) == math.inf


def test_the_table_has_each_subject_s_ratio_to_the_sdk() -> None:
    shown = _text(
        report.main_table(_results(smollm2={"sdk": _subject(10), "openvino": _subject(25)}))
    )
    assert "25.0 (2.5)" in shown
    assert "10.0 (1.0)" in shown
