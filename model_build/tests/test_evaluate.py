"""Figures from scores: thresholds, intervals, comparisons and unfinished text."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from sklearn.metrics import average_precision_score, f1_score
from synthetic import PRESETS, STEPS, write_scores

from guardrail_model_build.comparison import evaluate_scores, read_step
from guardrail_model_build.examples import Encoder
from guardrail_model_build.findings import PUBLIC, Evaluation
from guardrail_model_build.judging import prefixes
from guardrail_model_build.partial import partial_text
from guardrail_model_build.recipe import Everyday, Limits, Presets
from guardrail_model_build.resample import mcnemar, paired, ranking
from guardrail_model_build.scores import (
    PREFIXES,
    SHIPPED,
    VALIDATION,
    Judgements,
    Label,
    Score,
    ScoreFolder,
)
from guardrail_model_build.thresholds import PRESETS as PRESET_NAMES
from guardrail_model_build.thresholds import (
    SIDES,
    Bools,
    Floats,
    near_best,
    platt,
    settle,
    threshold,
)
from guardrail_model_build.tiny import tiny_checkpoint
from guardrail_sdk import Message
from guardrail_sdk.evaluation import Row


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scores(tmp_path_factory.mktemp("scores"), rows=200)


@pytest.fixture(scope="module")
def judged(folder: Path) -> Judgements:
    return Judgements.load(folder)


@pytest.fixture(scope="module")
def found(judged: Judgements) -> Evaluation:
    return evaluate_scores(judged)


# Keeping scores


def scores(step: str, file: str, *margins: float) -> list[Score]:
    return [
        Score(step=step, file=file, id=str(number), margin=margin)
        for number, margin in enumerate(margins)
    ]


def test_what_was_judged_is_known_after_a_stop(tmp_path: Path) -> None:
    ScoreFolder.open(tmp_path).add("teacher", "a", "model 1", scores("teacher", "a", 1.5, -2.0))
    again = ScoreFolder.open(tmp_path)
    assert again.has("teacher", "a", "model 1")
    assert not again.has("teacher", "a", "model 2"), "another model is to judge again"
    assert not again.has("teacher", "b", "model 1")
    assert not again.has("qat", "a", "model 1")


def test_scores_of_another_model_are_replaced(tmp_path: Path) -> None:
    store = ScoreFolder.open(tmp_path)
    store.add("teacher", "a", "model 1", scores("teacher", "a", 1.5, -2.0))
    store.add("qat", "a", "model 1", scores("qat", "a", 0.25))
    store.add("teacher", "a", "model 2", scores("teacher", "a", 7.0))
    lines = (tmp_path / "scores.jsonl").read_text().splitlines()
    kept = {(one.step, one.margin) for one in map(Score.model_validate_json, lines)}
    assert kept == {("qat", 0.25), ("teacher", 7.0)}


def test_what_was_only_half_judged_is_dropped(tmp_path: Path) -> None:
    ScoreFolder.open(tmp_path).add("teacher", "a", "key", scores("teacher", "a", 1.5))
    with (tmp_path / "scores.jsonl").open("a") as file:
        file.write(scores("teacher", "b", 3.0)[0].model_dump_json() + '\n{"step": "teach')
    store = ScoreFolder.open(tmp_path)
    assert not store.has("teacher", "b", "key")
    assert len((tmp_path / "scores.jsonl").read_text().splitlines()) == 1


def test_a_label_holds_no_text() -> None:
    row = Row.model_validate_json(
        '{"id": "x", "source": "demo", "lang": "en", "target": "user", "unsafe": true,'
        '"messages": [{"role": "user", "content": "canary-5b1f"}], "note": "canary-5b1f"}'
    )
    label = Label.of("demo", row)
    assert label.characters == 11
    assert "canary" not in label.model_dump_json()


# Thresholds


judged_rows = st.lists(
    st.tuples(st.booleans(), st.sampled_from([0.1, 0.5, 0.9]) | st.floats(0, 1, exclude_max=True)),
    min_size=1,
    max_size=60,
)


@settings(deadline=None)
@given(rows=judged_rows, limit=st.floats(0, 0.99))
def test_a_threshold_keeps_its_limit_and_no_lower_one_would(
    rows: list[tuple[bool, float]], limit: float
) -> None:
    unsafe = np.array([label for label, _ in rows])
    values = np.array([score for _, score in rows])
    cut = threshold(values, unsafe, limit)
    safe = values[~unsafe]
    allowed = limit * len(safe)
    assert (safe >= cut).sum() <= allowed
    lower = values[values < cut]
    if len(lower):
        assert (safe >= lower.max()).sum() > allowed


def test_a_threshold_is_not_a_rows_own_score_but_between_two() -> None:
    values = np.array([0.1, 0.2, 0.300001, 0.4, 0.9])
    cut = threshold(values, np.array([False, False, False, True, True]), 0.0)
    assert cut == 0.35


def f1(unsafe: Bools, flagged: Bools) -> float:
    return float(f1_score(unsafe, flagged)) if (unsafe & flagged).any() else 0.0


@settings(deadline=None)
@given(rows=judged_rows, rate=st.floats(0, 0.99), seed=st.integers(0, 9))
def test_a_balanced_threshold_spares_everyday_rows_and_then_comes_near_the_best_f1(
    rows: list[tuple[bool, float]], rate: float, seed: int
) -> None:
    unsafe = np.array([label for label, _ in rows])
    values = np.array([score for _, score in rows])
    everyday = np.random.default_rng(seed).random(len(rows)) < 0.5
    cut = near_best(values, unsafe, everyday, rate)
    spared = values[everyday & ~unsafe]
    assert (spared >= cut).sum() <= rate * len(spared)
    own = f1(unsafe, values >= cut)
    for other in values[values > cut]:
        # Higher thresholds flag no more everyday rows, so none of them may do much better.
        assert own >= f1(unsafe, values >= other) - 0.005 - 1e-9


def test_a_balanced_threshold_lies_between_the_other_two(judged: Judgements) -> None:
    presets = PRESETS.model_copy(
        update={"balanced": Everyday(sources=("no such source",), rate=0.0)}
    )
    known = judged.where(files=[VALIDATION])
    setting = settle(
        judged.margins[SHIPPED][known],
        judged.unsafe[known],
        [row.side for row, here in zip(judged.labels, known, strict=True) if here],
        [row.source for row, here in zip(judged.labels, known, strict=True) if here],
        presets,
    )
    for side in SIDES:
        low, own, high = (
            setting.thresholds[preset][side] for preset in ("strict", "balanced", "permissive")
        )
        assert low <= own <= high


def test_platt_recovers_how_scores_were_drawn() -> None:
    rng = np.random.default_rng(1)
    margins = rng.normal(size=20_000)
    unsafe = rng.random(20_000) < 1 / (1 + np.exp(-(2.0 * margins - 0.5)))
    fitted = platt(margins, unsafe)
    assert (fitted.scale, fitted.bias) == (
        pytest.approx(2.0, abs=0.1),
        pytest.approx(-0.5, abs=0.1),
    )


def test_a_model_that_ranks_backwards_is_read_as_one_that_knows_nothing() -> None:
    margins = np.array([3.0, 2.0, -2.0, -3.0] * 5)
    assert 0 < platt(margins, margins < 0).scale < 0.01


def test_presets_out_of_order_are_refused() -> None:
    rates = Limits(input=0.1, output=0.1)
    with pytest.raises(ValidationError, match="output: permissive <= balanced <= strict"):
        Presets(strict=rates, balanced=rates, permissive=Limits(input=0.1, output=0.2))


# Intervals


def drawn(rows: int, skill: float, seed: int) -> tuple[Bools, Floats]:
    rng = np.random.default_rng(seed)
    unsafe = rng.random(rows) < 0.3
    return unsafe, rng.normal(size=rows) + skill * unsafe


def test_ranking_intervals_are_those_of_resampled_rows() -> None:
    unsafe, values = drawn(400, 1.5, seed=2)
    values = values.round(1)  # ties
    found, _ = ranking(unsafe, values)
    picks = np.random.default_rng(9).integers(0, 400, (800, 400))
    resampled = [average_precision_score(unsafe[pick], values[pick]) for pick in picks]
    assert found == pytest.approx(np.percentile(resampled, [2.5, 97.5]), abs=0.02)


def test_the_interval_of_recall_at_5_percent_holds_it() -> None:
    unsafe, values = drawn(2000, 2.0, seed=3)
    _, ends = ranking(unsafe, values)
    cut = np.sort(values[~unsafe])[-int(0.05 * (~unsafe).sum())]
    assert ends is not None
    assert ends[0] < (values[unsafe] >= cut).mean() < ends[1]
    assert ends[1] - ends[0] < 0.15


def test_rows_of_one_kind_have_no_ranking() -> None:
    assert ranking(np.array([True, True]), np.array([0.1, 0.2])) == (None, None)


def test_paired_intervals_are_those_of_resampled_rows() -> None:
    unsafe, values = drawn(500, 2.0, seed=4)
    first = values > 1.0
    second = values + np.random.default_rng(5).normal(scale=0.5, size=500) > 1.0
    f1, fpr = paired(unsafe, first, second)
    picks = np.random.default_rng(6).integers(0, 500, (3000, 500))
    labels = unsafe[picks]

    def rates(flags: Bools) -> tuple[Floats, Floats]:
        hits, alarms = (labels & flags).sum(1), (~labels & flags).sum(1)
        return 2 * hits / (labels.sum(1) + hits + alarms), alarms / (~labels).sum(1)

    (f1_first, fpr_first), (f1_second, fpr_second) = rates(first[picks]), rates(second[picks])
    assert f1 == pytest.approx(np.percentile(f1_second - f1_first, [2.5, 97.5]), abs=0.01)
    assert fpr == pytest.approx(np.percentile(fpr_second - fpr_first, [2.5, 97.5]), abs=0.01)


def test_equal_verdicts_differ_by_nothing() -> None:
    unsafe, values = drawn(100, 1.0, seed=7)
    flags = values > 0.5
    assert paired(unsafe, flags, flags) == ((0.0, 0.0), (0.0, 0.0))
    assert mcnemar(unsafe, flags, flags) == 1.0


def test_mcnemar_counts_only_rows_that_one_alone_has_right() -> None:
    unsafe = np.array([True] * 10 + [False] * 90)
    first = unsafe.copy()
    second = unsafe.copy()
    second[:8] = False  # the second misses eight that the first has
    assert mcnemar(unsafe, first, second) == pytest.approx(2 * 0.5**8)


# The whole


def test_every_step_keeps_its_limits_on_validation(judged: Judgements) -> None:
    for name in STEPS:
        step = read_step(judged, name)
        for preset in PRESET_NAMES:
            for side in ("input", "output"):
                safe = judged.where(files=[VALIDATION], side=side) & ~judged.unsafe
                limit = getattr(getattr(PRESETS, preset), side)
                assert step.verdicts[preset][safe].mean() <= limit
                assert step.verdicts[preset][safe].mean() >= limit - 1 / safe.sum()


def test_strict_flags_all_that_balanced_flags_and_balanced_all_that_permissive_does(
    judged: Judgements,
) -> None:
    verdicts = read_step(judged, SHIPPED).verdicts
    assert not (verdicts["balanced"] & ~verdicts["strict"]).any()
    assert not (verdicts["permissive"] & ~verdicts["balanced"]).any()


def test_figures_come_by_step_file_and_side(found: Evaluation) -> None:
    assert list(found.steps) == list(STEPS)
    files = found.shipped.files
    assert list(files) == [VALIDATION, "chat_test", "answers_test", "unsafe_only", PUBLIC]
    assert list(files["chat_test"]) == ["input", "both"]
    assert files[PUBLIC]["both"].rows == 200 + 200 + 50
    assert files["unsafe_only"]["both"].fpr is None
    assert files["unsafe_only"]["both"].auprc is None
    assert files["unsafe_only"]["both"].recall is not None
    assert found.headline() == files[PUBLIC]["both"]
    one = files[VALIDATION]["input"]
    assert one.auprc_interval is not None
    assert one.auprc is not None
    assert one.auprc_interval[0] < one.auprc < one.auprc_interval[1]


def test_a_step_that_lost_skill_is_told_from_its_parent(found: Evaluation) -> None:
    pruned = found.steps["pruned"]
    assert pruned.parent == "teacher"
    difference = pruned.against_parent[VALIDATION]["both"]
    assert difference.f1_interval is not None
    assert difference.f1_interval[1] < -0.1
    assert difference.mcnemar_p < 1e-3
    assert difference.worse > difference.better
    assert found.steps["teacher"].against_parent == {}


def test_int4_is_compared_with_the_student_on_all_rows(found: Evaluation) -> None:
    cost = found.quantisation
    assert cost.student == "distilled"
    assert cost.overall["both"].rows == 200 + 200 + 200 + 50
    assert cost.in_one_piece.rows < cost.overall["both"].rows
    assert 0 < cost.mean_difference < cost.largest_difference


def test_int4_that_flags_more_safe_rows_does_not_hold(folder: Path) -> None:
    judged = Judgements.load(folder)
    margins = dict(judged.margins)
    margins[SHIPPED] = margins["distilled"].copy()
    alike = Judgements(
        about=judged.about,
        labels=judged.labels,
        margins=margins,
        hazards=judged.hazards,
        written=judged.written,
    )
    assert evaluate_scores(alike).quantisation.holds
    public = judged.where(files=judged.files()[1:]) & ~judged.unsafe
    margins[SHIPPED][np.flatnonzero(public)[:30]] += 9.0
    worse = evaluate_scores(alike).quantisation
    assert not worse.holds
    assert worse.overall["both"].fpr is not None
    assert worse.overall["both"].fpr > 0.01


def test_groups_count_their_own_rows(found: Evaluation, judged: Judgements) -> None:
    languages = found.shipped.languages[VALIDATION]["both"]
    assert sum(one.rows for one in languages.values()) == 200
    assert found.shipped.categories[PUBLIC]["both"]["S2"].unsafe >= 50
    expected = sum(
        row.file == VALIDATION and row.lang == "en" and bool(row.unsafe) for row in judged.labels
    )
    assert languages["en"].unsafe == expected


def test_hazards_with_enough_rows_get_a_threshold_between_theirs_and_the_others(
    found: Evaluation,
) -> None:
    chosen = {code: cut for one in found.category_thresholds.values() for code, cut in one.items()}
    assert chosen, "S1 has enough rows"
    assert all(0.1 <= cut <= 0.7 for cut in chosen.values())


def test_the_worst_rows_are_those_furthest_from_their_label(found: Evaluation) -> None:
    safe = [row.probability for row in found.worst if not row.unsafe]
    unsafe = [row.probability for row in found.worst if row.unsafe]
    assert safe == sorted(safe, reverse=True)
    assert unsafe == sorted(unsafe)
    assert safe[0] > 0.5 > unsafe[0]
    assert PREFIXES not in {row.file for row in found.worst}


def test_findings_survive_the_file(found: Evaluation) -> None:
    assert Evaluation.model_validate_json(found.model_dump_json()) == found


# Rows to judge


def a_row(identifier: str, *contents: str, unsafe: bool = True) -> Row:
    roles = ("user", "assistant")
    messages = tuple(
        Message(role=roles[turn % 2], content=content) for turn, content in enumerate(contents)
    )
    return Row(
        id=identifier,
        source="demo",
        lang="en",
        messages=messages,
        target=roles[(len(contents) - 1) % 2],
        unsafe=unsafe,
    )


def test_a_long_row_is_read_as_far_as_it_fits_and_a_short_one_whole() -> None:
    checkpoint = tiny_checkpoint("compact")
    encoder = Encoder(checkpoint.template, checkpoint.tokenizer, 128)
    short = encoder.encode(a_row("short", "a question", "an answer"))
    roomy = Encoder(checkpoint.template, checkpoint.tokenizer, 1000)
    assert short.ids == roomy.encode(a_row("short", "a question", "an answer")).ids
    example = encoder.encode(a_row("long", "a question", "word " * 2000))
    assert 100 < len(example.ids) <= 128
    assert example.ids[:8] == short.ids[:8], "the short message stays"
    assert example.ids[-4:] == short.ids[-4:], "and what asks for the verdict"
    with pytest.raises(ValueError, match="don't hold the template"):
        Encoder(checkpoint.template, checkpoint.tokenizer, 3).encode(a_row("s", "a", "b"))


def test_prefixes_grow_by_tenths_to_the_whole_response() -> None:
    text = "0123456789abcdefghijklmnopqrstuvwxyz."
    rows = [
        *(a_row(f"u{number}", "ask", text) for number in range(9)),
        *(a_row(f"s{number}", "ask", text, unsafe=False) for number in range(9)),
        a_row("prompt", text),
        a_row("tiny", "ask", "no"),
    ]
    found = prefixes(rows, 6)
    assert len(found) == 60
    assert sum(bool(row.unsafe) for row in found) == 30
    ten = found[:10]
    assert [row.id.partition("@")[2] for row in ten] == [str(10 * tenth) for tenth in range(1, 11)]
    assert ten[-1].messages[-1].content == text
    assert all(text.startswith(row.messages[-1].content) for row in ten)
    lengths = [len(row.messages[-1].content) for row in ten]
    assert lengths == sorted(set(lengths))
    assert {row.id[0] for row in found} == {"u", "s"}


# Unfinished text


def test_partial_text_counts_from_the_first_flag_on(judged: Judgements) -> None:
    flagged = np.zeros(len(judged.labels), dtype=np.bool_)
    by_row: dict[str, list[int]] = {}
    for place, row in enumerate(judged.labels):
        if row.file == PREFIXES:
            by_row.setdefault(row.id.partition("@")[0], []).append(place)
    unsafe = [places for places in by_row.values() if judged.labels[places[0]].unsafe]
    safe = [places for places in by_row.values() if not judged.labels[places[0]].unsafe]
    for places in unsafe[:5]:
        flagged[places[2]] = True  # at 30 % only: the stream has ended by then
    flagged[safe[0][0]] = True
    found = partial_text(judged, flagged)
    assert found is not None
    shares = [point.caught for point in found.points]
    assert shares == [0, 0, *[5 / len(unsafe)] * 8]
    assert found.never == 1 - 5 / len(unsafe)
    assert found.safe_flagged == 1 / len(safe)
    assert found.whole_safe_flagged == 0
    lengths = [judged.labels[places[2]].characters for places in unsafe[:5]]
    assert found.characters == np.median(lengths)


def test_without_prefixes_nothing_is_said_of_partial_text(judged: Judgements) -> None:
    kept = np.array([row.file != PREFIXES for row in judged.labels])
    without = Judgements(
        about=judged.about,
        labels=tuple(row for row in judged.labels if row.file != PREFIXES),
        margins={step: values[kept] for step, values in judged.margins.items()},
        hazards=judged.hazards[kept],
        written=judged.written[kept],
    )
    assert partial_text(without, np.ones(int(kept.sum()), dtype=np.bool_)) is None
