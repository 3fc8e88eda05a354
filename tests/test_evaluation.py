"""What a data file may hold, and what the figures made of it mean."""

from __future__ import annotations

import gzip
import importlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guardrail_sdk import Action, Category, CategoryRule, EngineError, Guard, Message, Policy
from guardrail_sdk._errors import DataError
from guardrail_sdk.evaluation import Row, evaluate, measure, moderate, read_rows, score
from guardrail_sdk.testing import FakeModel

SECRET = "canary-5b1f"

# scikit-learn has no types: this is the one place where they are given up.
reference: Any = importlib.import_module("sklearn.metrics")


def row(**changes: object) -> dict[str, object]:
    """A valid row as JSON, but for `changes`; a change to Ellipsis leaves the key out."""
    fields: dict[str, object] = {
        "id": "r1",
        "source": "demo",
        "lang": "en",
        "messages": [{"role": "user", "content": f"hello {SECRET}"}],
        "target": "user",
        "unsafe": True,
        "categories": ["S1"],
        **changes,
    }
    return {key: value for key, value in fields.items() if value is not ...}


def write(path: Path, *rows: Mapping[str, object]) -> Path:
    path.write_text("".join(json.dumps(item) + "\n" for item in rows), encoding="utf-8")
    return path


def said(text: str, **changes: object) -> dict[str, object]:
    """A row whose text tells the fake guard what to answer."""
    return row(id=f"id-{text}", messages=[{"role": "user", "content": text}], **changes)


def read_score(_: str, text: str) -> dict[Category, float]:
    """Read P(unsafe) off the judged text; the text `fail` makes the check fail."""
    if text == "fail":
        raise EngineError("The fake model was told to fail.")
    return {Category.S1: float(text)}


@pytest.fixture
def model() -> FakeModel:
    return FakeModel(read_score)


@pytest.fixture
def guard(model: FakeModel) -> Guard:
    return Guard(model=model, policy=Policy())


# Reading rows


def test_reads_plain_and_compressed_rows_alike(tmp_path: Path) -> None:
    plain = write(tmp_path / "a.jsonl", row(), row(id="r2", unsafe=None, categories=..., note="n"))
    packed = tmp_path / "a.jsonl.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    rows = list(read_rows(plain))
    assert rows == list(read_rows(packed))
    assert [item.id for item in rows] == ["r1", "r2"]
    assert rows[0].messages == (Message(role="user", content=f"hello {SECRET}"),)
    assert rows[0].categories == (Category.S1,)
    assert rows[1].unsafe is None
    assert rows[1].categories == ()


def test_passes_over_blank_lines_and_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(row()).encode() + b"\r\n\r\n  \n")
    assert [item.id for item in read_rows(path)] == ["r1"]


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"id": ...}, "id"),
        ({"id": ""}, "id"),
        ({"unsafe": ...}, "unsafe"),
        ({"unsafe": 1}, "unsafe"),
        ({"unsafe": SECRET}, "unsafe"),
        ({"lang": "English"}, "lang"),
        ({"categories": ["S15"]}, "categories.0"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user"}]}, "messages.0.content"),
        ({"messages": [{"role": SECRET, "content": "x"}]}, "messages.0.role"),
        ({"messages": [{"role": "user", "content": [SECRET]}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": "x", SECRET: 1}]}, "a key that is none of"),
        ({"target": "assistant"}, "must be the target"),
        ({SECRET: 1}, "a key that is none of"),
    ],
)
def test_a_wrong_row_is_an_error_that_names_file_line_and_key_but_no_text(
    tmp_path: Path, changes: dict[str, object], key: str
) -> None:
    path = write(tmp_path / "a.jsonl", row(), row(**changes))
    with pytest.raises(DataError) as caught:
        list(read_rows(path))
    message = str(caught.value)
    assert message.startswith(f"{path}, line 2: ")
    assert key in message
    assert SECRET not in message
    assert caught.value.__context__ is None


@settings(deadline=None)
@given(
    line=st.binary(max_size=80)
    | st.recursive(
        st.none() | st.booleans() | st.text(),
        lambda inner: (
            st.lists(inner) | st.dictionaries(st.sampled_from(["id", "messages", "role"]), inner)
        ),
        max_leaves=5,
    ).map(lambda value: json.dumps(value).encode())
)
def test_no_line_escapes_as_anything_but_a_data_error(
    tmp_path_factory: pytest.TempPathFactory, line: bytes
) -> None:
    path = tmp_path_factory.mktemp("rows") / "a.jsonl"
    path.write_bytes(line)
    try:
        rows = list(read_rows(path))
    except DataError:
        return
    assert not rows or not line.strip()


def test_deep_nesting_is_a_data_error(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"id":' + b"[" * 100_000)
    with pytest.raises(DataError, match="line 1: not a JSON object"):
        list(read_rows(path))


def cut(raw: bytes) -> bytes:
    return raw[:-9]


def replace(_: bytes) -> bytes:
    return b"not gzip"


def scramble(raw: bytes) -> bytes:
    return raw[:12] + b"\0" * 20


@pytest.mark.parametrize("damage", [cut, replace, scramble])
def test_a_damaged_file_is_a_data_error(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(damage(gzip.compress(json.dumps(row()).encode())))
    with pytest.raises(DataError, match=r"a\.jsonl\.gz can't be read"):
        list(read_rows(path))


def test_a_missing_file_and_a_foreign_ending_are_data_errors(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="No such file"):
        list(read_rows(tmp_path / "none.jsonl"))
    with pytest.raises(DataError, match="neither"):
        list(read_rows(tmp_path / "rows.csv"))


def test_a_row_does_not_show_its_text() -> None:
    assert SECRET not in repr(Row.model_validate_json(json.dumps(row(note=SECRET))))


# Figures

# Few distinct probabilities, so that most examples have ties.
judged_rows = st.lists(
    st.tuples(st.booleans(), st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]) | st.floats(0, 1)),
    max_size=200,
)


@settings(deadline=None)
@given(rows=judged_rows, threshold=st.floats(0, 1))
def test_figures_equal_scikit_learns(rows: list[tuple[bool, float]], threshold: float) -> None:
    labels = [label for label, _ in rows]
    probabilities = [probability for _, probability in rows]
    flagged = [probability >= threshold for probability in probabilities]
    metrics = measure(labels, probabilities, flagged)
    unsafe, safe = sum(labels), len(labels) - sum(labels)
    assert (metrics.rows, metrics.unsafe) == (len(rows), unsafe)
    if unsafe:
        precision, recall, f1, _ = reference.precision_recall_fscore_support(
            labels, flagged, average="binary", zero_division=0
        )
        always = reference.precision_recall_fscore_support(
            labels, [True] * len(rows), average="binary"
        )
        assert metrics.recall == pytest.approx(recall)
        assert metrics.f1 == pytest.approx(f1)
        assert metrics.always_unsafe_f1 == pytest.approx(always[2])
        if any(flagged):
            assert metrics.precision == pytest.approx(precision)
    else:
        assert (metrics.recall, metrics.f1, metrics.always_unsafe_f1) == (None, None, None)
    assert (metrics.precision is None) == (not any(flagged))
    if unsafe and safe:
        assert metrics.auprc == pytest.approx(
            reference.average_precision_score(labels, probabilities)
        )
        fpr, tpr, _ = reference.roc_curve(labels, probabilities, drop_intermediate=False)
        assert metrics.recall_at_fpr_1 == pytest.approx(np.max(tpr[fpr <= 0.01]))
        assert metrics.recall_at_fpr_5 == pytest.approx(np.max(tpr[fpr <= 0.05]))
    else:
        assert (metrics.auprc, metrics.recall_at_fpr_1, metrics.recall_at_fpr_5) == (None,) * 3
    if safe:
        alarms = sum(flag and not label for flag, label in zip(flagged, labels, strict=True))
        assert metrics.fpr == pytest.approx(alarms / safe)
    else:
        assert metrics.fpr is None


@settings(deadline=None)
@given(rows=judged_rows.filter(bool))
def test_brier_is_scikit_learns_and_ece_is_bounded_by_it(rows: list[tuple[bool, float]]) -> None:
    labels = [label for label, _ in rows]
    probabilities = [probability for _, probability in rows]
    metrics = measure(labels, probabilities, labels)
    assert metrics.brier is not None
    assert metrics.ece is not None
    assert metrics.brier == pytest.approx(np.mean((np.array(probabilities) - labels) ** 2))
    # The mean of a bin's gaps is at most their mean size, which is at most their root mean square.
    assert metrics.ece <= np.sqrt(metrics.brier) + 1e-9
    assert metrics.ece == pytest.approx(measure(labels[::-1], probabilities[::-1], labels).ece)


def test_ece_is_the_mean_gap_over_bins_of_equal_mass() -> None:
    said, true = [0.1] * 50 + [0.9] * 100, [0.3] * 50 + [0.8] * 100
    labels = [row % 10 < 10 * share for row, share in enumerate(true)]
    found = measure(labels, said, labels).ece
    assert found == pytest.approx((50 * 0.2 + 100 * 0.1) / 150)


def test_probabilities_that_are_frequencies_have_no_calibration_error() -> None:
    rng = np.random.default_rng(5)
    probabilities = rng.random(20_000)
    labels = rng.random(20_000) < probabilities
    metrics = measure(list(labels), list(probabilities), list(labels))
    assert metrics.ece is not None
    assert metrics.ece < 0.02
    squared = measure(list(labels), list(probabilities**3), list(labels)).ece
    assert squared is not None
    assert squared > 0.2


def test_intervals_are_those_of_resampled_rows() -> None:
    rng = np.random.default_rng(3)
    truth = rng.random(800) < 0.3
    flagged = np.where(truth, rng.random(800) < 0.8, rng.random(800) < 0.1)
    metrics = measure(list(truth), list(flagged.astype(float)), list(flagged))
    drawn = rng.integers(0, 800, (4000, 800))
    labels, flags = truth[drawn], flagged[drawn]
    hits, alarms = (labels & flags).sum(1), (~labels & flags).sum(1)
    for found, resampled in (
        (metrics.f1_interval, 2 * hits / (labels.sum(1) + hits + alarms)),
        (metrics.recall_interval, hits / labels.sum(1)),
        (metrics.fpr_interval, alarms / (~labels).sum(1)),
    ):
        assert found == pytest.approx(np.percentile(resampled, [2.5, 97.5]), abs=0.01)
    assert metrics == measure(list(truth), list(flagged.astype(float)), list(flagged))


@given(rows=judged_rows, threshold=st.floats(0, 1))
def test_intervals_are_there_where_the_figure_is(
    rows: list[tuple[bool, float]], threshold: float
) -> None:
    probabilities = [probability for _, probability in rows]
    metrics = measure(
        [label for label, _ in rows],
        probabilities,
        [probability >= threshold for probability in probabilities],
    )
    for value, interval in (
        (metrics.f1, metrics.f1_interval),
        (metrics.recall, metrics.recall_interval),
        (metrics.fpr, metrics.fpr_interval),
    ):
        assert (value is None) == (interval is None)
        assert interval is None or 0 <= interval[0] <= interval[1] <= 1


def test_recall_at_fpr_counts_a_rate_of_exactly_the_limit() -> None:
    labels = [False] * 100 + [True] * 2
    probabilities = [0.9] + [0.1] * 99 + [0.95, 0.8]
    metrics = measure(labels, probabilities, [False] * 102)
    assert metrics.recall_at_fpr_1 == 1.0  # one alarm in a hundred safe rows, at 0.8


@pytest.mark.parametrize("probability", [float("nan"), -0.1, 1.1, float("inf")])
def test_a_probability_that_is_none_is_refused(probability: float) -> None:
    with pytest.raises(ValueError, match=r"outside \[0, 1\]"):
        measure([True, False], [0.5, probability], [True, True])


def test_unequal_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="one length"):
        measure([True], [0.5, 0.5], [True])


# Scoring a guard


def test_rows_without_a_label_are_not_judged(model: FakeModel, guard: Guard) -> None:
    rows = [Row.model_validate_json(json.dumps(said("0.9", unsafe=None, categories=[])))]
    assert list(score(guard, rows)) == []
    assert model.seen == []


def test_flagged_is_any_decision_but_allow_at_the_policys_threshold(model: FakeModel) -> None:
    rows = [Row.model_validate_json(json.dumps(said(text))) for text in ("0.6", "0.8")]
    for policy, flagged in (
        (Policy(), [True, True]),
        (Policy(input_threshold=0.7), [False, True]),
        (Policy(categories=(CategoryRule(id=Category.S1, action=Action.FLAG),)), [True, True]),
        (Policy(categories=(CategoryRule(id=Category.S1, action=Action.ALLOW),)), [False, False]),
    ):
        scores = score(Guard(model=model, policy=policy), rows)
        assert [item.flagged for item in scores] == flagged


def test_a_failed_check_counts_as_flagged_with_certainty_even_if_the_policy_allows_it(
    model: FakeModel,
) -> None:
    row_ = Row.model_validate_json(json.dumps(said("fail", unsafe=False, categories=[])))
    (item,) = score(Guard(model=model, policy=Policy(on_error="allow")), [row_])
    assert (item.unsafe_probability, item.flagged, item.failed) == (1.0, True, True)


def test_a_report_groups_by_file_category_language_source_and_stage(
    guard: Guard, tmp_path: Path
) -> None:
    first = write(
        tmp_path / "first.jsonl",
        said("0.9", categories=["S1"]),
        said("0.2", categories=["S1", "S10"], lang="hi"),
        said("0.1", unsafe=False, categories=["S10"]),  # safe, though it touches the hazard
        said("0.3", unsafe=None, categories=[]),
    )
    second = write(
        tmp_path / "second.jsonl",
        said("0.7", unsafe=False, categories=[]),
        said("0.8", categories=["S2"], source="other"),
        row(
            id="answer",
            messages=[{"role": "user", "content": "0.1"}, {"role": "assistant", "content": "fail"}],
            target="assistant",
            unsafe=False,
            categories=[],
        ),
    )
    seen: list[tuple[int, int]] = []

    def progress(done: int, total: int) -> None:
        seen.append((done, total))

    report = evaluate(guard, [first, second], progress=progress)
    assert seen == [(number, 6) for number in range(1, 7)]
    assert (report.skipped, report.failed) == (1, 1)
    assert (report.model, report.policy) == ("fake", "default")
    assert (report.overall.rows, report.overall.unsafe) == (6, 3)
    assert report.files[str(first)].recall == 0.5
    assert report.files[str(second)].fpr == 1.0
    assert list(report.categories) == ["S1", "S2", "S10"]
    # S10: its one unsafe row, and the safe row of the first file, which alone names S10.
    assert (report.categories[Category.S10].rows, report.categories[Category.S10].recall) == (2, 0)
    assert report.categories[Category.S10].fpr == 0
    assert report.categories[Category.S2].rows == 3
    assert {lang: metrics.rows for lang, metrics in report.languages.items()} == {"en": 5, "hi": 1}
    assert {name: metrics.rows for name, metrics in report.sources.items()} == {
        "demo": 5,
        "other": 1,
    }
    assert {stage: metrics.rows for stage, metrics in report.stages.items()} == {
        "input": 5,
        "output": 1,
    }
    assert report.stages["output"].fpr == 1.0
    assert json.loads(report.to_json())["sources"]["other"]["recall"] == 1.0
    assert json.loads(report.to_json())["stages"]["input"]["rows"] == 5


def test_what_a_report_writes_has_ids_and_scores_but_no_text(tmp_path: Path) -> None:
    guard = Guard(model=FakeModel(lambda _, text: 0.9 if SECRET in text else 0.0), policy=Policy())
    report = evaluate(guard, [write(tmp_path / "a.jsonl", row(note=SECRET))])
    lines = [json.loads(line) for line in report.scores_jsonl().splitlines()]
    assert lines == [{"id": "r1", "unsafe_probability": 0.9, "flagged": True, "failed": False}]
    fields = json.loads(report.to_json())
    assert fields["overall"]["recall"] == 1.0
    assert fields["overall"]["fpr"] is None
    assert fields["categories"]["S1"]["unsafe"] == 1
    assert SECRET not in report.to_json() + report.scores_jsonl() + repr(report)


def test_a_limit_takes_the_same_rows_whatever_their_order(guard: Guard, tmp_path: Path) -> None:
    rows = [said(f"0.{number:02}") for number in range(50)]
    forwards = evaluate(guard, [write(tmp_path / "a.jsonl", *rows)], limit=10)
    backwards = evaluate(guard, [write(tmp_path / "b.jsonl", *reversed(rows))], limit=10)
    ids = [item.id for item in forwards.scores]
    assert len(ids) == 10
    assert ids == [item.id for item in reversed(backwards.scores)]
    assert ids != [item["id"] for item in rows[:10]]


def test_every_line_is_read_before_the_first_check(
    model: FakeModel, guard: Guard, tmp_path: Path
) -> None:
    good = write(tmp_path / "a.jsonl", said("0.9"))
    bad = write(tmp_path / "b.jsonl", row(id=""))
    with pytest.raises(DataError):
        evaluate(guard, [good, bad])
    assert model.seen == []


def test_nothing_to_measure_and_a_file_named_twice_are_errors(guard: Guard, tmp_path: Path) -> None:
    unlabelled = write(tmp_path / "a.jsonl", row(unsafe=None))
    with pytest.raises(DataError, match="No row has a label"):
        evaluate(guard, [unlabelled])
    with pytest.raises(DataError, match="given twice"):
        evaluate(guard, [unlabelled, tmp_path / "." / "a.jsonl"])


def test_moderate_gives_one_probability_for_each_conversation(guard: Guard) -> None:
    conversations = [
        [{"role": "user", "content": "0.25"}],
        [{"role": "user", "content": "0.1"}, {"role": "assistant", "content": "0.75"}],
        [{"role": "user", "content": "fail"}],
    ]
    assert moderate(conversations, guard=guard) == [0.25, 0.75, 1.0]
    assert moderate([], guard=guard) == []
