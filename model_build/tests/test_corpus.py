"""The project's own rows: complete, distinct, balanced as its README says."""

from __future__ import annotations

import json
from collections import Counter
from functools import cache
from pathlib import Path

import pytest

from guardrail_model_build.data import Correction
from guardrail_sdk import Category
from guardrail_sdk.evaluation import Row, read_rows

CORPUS = Path(__file__).parent.parent / "corpus"
LANGUAGES = ("de", "en", "es", "fr", "hi", "it", "pt", "th")
_SHINGLE = 5
_ALIKE = 0.6


@cache
def _rows() -> list[Row]:
    manifest = json.loads((CORPUS / "manifest.json").read_text(encoding="utf-8"))
    return [row for name in sorted(manifest) for row in read_rows(CORPUS / f"{name}.jsonl")]


def test_the_manifest_counts_what_is_there() -> None:
    manifest = json.loads((CORPUS / "manifest.json").read_text(encoding="utf-8"))
    assert {path.stem for path in CORPUS.glob("*.jsonl")} == {*manifest, "corrections"}
    for name, entry in manifest.items():
        rows = [row for row in _rows() if row.source == name]
        assert entry["use"] == "own"
        assert entry["rows"] == len(rows)
        assert entry["unsafe"] == sum(row.unsafe is True for row in rows)


def test_ids_are_unique_and_every_row_is_labelled() -> None:
    assert len({row.id for row in _rows()}) == len(_rows())
    for row in _rows():
        assert row.unsafe is not None, row.id
        assert row.unsafe or not row.categories, row.id


def test_there_is_enough_of_everything() -> None:
    rows = _rows()
    assert len(rows) >= 8000
    assert sum(row.unsafe is False for row in rows) >= 0.6 * len(rows)
    languages = Counter(row.lang for row in rows)
    assert set(languages) == set(LANGUAGES)
    assert min(languages.values()) >= 500
    hazards = Counter(hazard for row in rows for hazard in row.categories)
    assert min(hazards[hazard] for hazard in Category) >= 150
    assert sum(row.target == "assistant" for row in rows) >= 1500
    assert sum(len(row.messages) > 2 for row in rows) >= 400


def test_no_two_rows_are_nearly_the_same() -> None:
    holders: dict[str, list[int]] = {}
    sizes: list[int] = []
    for index, row in enumerate(_rows()):
        own = _shingles(row)
        shared = Counter(other for shingle in own for other in holders.get(shingle, ()))
        for other, count in shared.most_common(1):
            alike = count / (len(own) + sizes[other] - count)
            assert alike <= _ALIKE, (row.id, _rows()[other].id)
        for shingle in own:
            holders.setdefault(shingle, []).append(index)
        sizes.append(len(own))


def _shingles(row: Row) -> set[str]:
    text = " ".join(" ".join(message.content for message in row.messages).lower().split())
    return {text[start : start + _SHINGLE] for start in range(max(1, len(text) - _SHINGLE + 1))}


def test_every_correction_can_be_read() -> None:
    lines = (CORPUS / "corrections.jsonl").read_text(encoding="utf-8").splitlines()
    found = [Correction.model_validate_json(line) for line in lines]
    assert len({fix.id for fix in found}) == len(found)
    own = {row.id for row in _rows()}
    assert not own & {fix.id for fix in found}, "our own rows are corrected where they stand"


@pytest.mark.parametrize("mark", ["<|", "Ignore this row", "TODO"])
def test_no_row_holds_what_a_writer_left_behind(mark: str) -> None:
    marked = [row.id for row in _rows() if row.messages[-1].content.startswith(mark)]
    assert not marked
