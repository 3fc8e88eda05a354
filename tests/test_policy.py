"""What a verdict leads to under a policy: one table of cases, and the policy file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guardrail_sdk import Action, Category, CategoryRule, ConfigError, Policy, Verdict
from guardrail_sdk._policy import decide
from guardrail_sdk._types import Span, Stage

S1, S2, S6 = Category.S1, Category.S2, Category.S6
ALLOW, FLAG, REDACT, BLOCK = Action


def verdict(
    probability: float,
    scores: Mapping[Category, float],
    *,
    stage: Stage = "input",
    category_thresholds: Mapping[Category, float] | None = None,
) -> Verdict:
    return Verdict(
        unsafe_probability=probability,
        categories={**dict.fromkeys(Category, 0.0), **scores},
        stage=stage,
        role="user" if stage == "input" else "assistant",
        message_index=0,
        span=Span(start=0, end=1),
        windowed=False,
        context_trimmed=False,
        reading="written",
        threshold=0.5,
        category_thresholds=category_thresholds or {},
        model="test",
        policy="test",
        latency_ms=0.0,
    )


def rules(**actions: Action) -> Policy:
    return Policy(
        categories=tuple(CategoryRule(id=Category(c), action=a) for c, a in actions.items())
    )


CASES = {
    "safe": (verdict(0.49, {S1: 0.9}), Policy(), ALLOW, None),
    "at the threshold is unsafe": (verdict(0.5, {S1: 0.9}), Policy(), BLOCK, S1),
    "highest of the blocked": (verdict(0.9, {S1: 0.6, S2: 0.8}), Policy(), BLOCK, S2),
    "none reached: the highest scorer": (verdict(0.9, {S2: 0.2}), Policy(), BLOCK, S2),
    "allowed never blocks": (verdict(1.0, {S6: 1.0}), rules(S6=ALLOW), ALLOW, S6),
    "allowed as the highest scorer": (verdict(1.0, {S6: 0.3}), rules(S6=ALLOW), ALLOW, S6),
    "allowed beside blocked": (verdict(1.0, {S6: 1.0, S1: 0.6}), rules(S6=ALLOW), BLOCK, S1),
    "allowed beside too weak": (verdict(1.0, {S6: 1.0, S1: 0.4}), rules(S6=ALLOW), ALLOW, S6),
    "flag": (verdict(0.9, {S1: 0.9}), rules(S1=FLAG), FLAG, S1),
    "redact": (verdict(0.9, {S1: 0.9}), rules(S1=REDACT), REDACT, S1),
    "the strictest wins": (verdict(0.9, {S1: 0.9, S2: 0.6}), rules(S1=FLAG), BLOCK, S2),
    "redact over flag": (
        verdict(0.9, {S1: 0.9, S2: 0.6}),
        rules(S1=FLAG, S2=REDACT),
        REDACT,
        S2,
    ),
    "policy raises the threshold": (
        verdict(0.8, {S1: 0.9}),
        Policy(input_threshold=0.81),
        ALLOW,
        None,
    ),
    "policy lowers the threshold": (
        verdict(0.1, {S1: 0.9}),
        Policy(input_threshold=0.1),
        BLOCK,
        S1,
    ),
    "a threshold of zero counts": (verdict(0.0, {S1: 0.1}), Policy(input_threshold=0.0), BLOCK, S1),
    "another stage's threshold": (
        verdict(0.4, {S1: 0.9}),
        Policy(output_threshold=0.1),
        ALLOW,
        None,
    ),
    "output threshold": (
        verdict(0.4, {S1: 0.9}, stage="output"),
        Policy(output_threshold=0.1),
        BLOCK,
        S1,
    ),
    "another stage's rule": (
        verdict(0.9, {S1: 0.9}, stage="output"),
        Policy(categories=(CategoryRule(id=S1, stages=("input",), action=ALLOW),)),
        BLOCK,
        S1,
    ),
    "policy lowers a hazard's threshold": (
        verdict(0.9, {S1: 0.3, S6: 0.9}),
        Policy(
            categories=(
                CategoryRule(id=S1, threshold=0.3),
                CategoryRule(id=S6, action=ALLOW),
            )
        ),
        BLOCK,
        S1,
    ),
    "the model's threshold of a hazard": (
        verdict(0.9, {S1: 0.6, S6: 0.55}, category_thresholds={S1: 0.7}),
        rules(S6=FLAG),
        FLAG,
        S6,
    ),
    "a judge that knows no hazards": (
        replace(verdict(0.9, {}), categories={}),
        rules(S2=ALLOW),
        BLOCK,
        None,
    ),
    "a probability that is no number": (verdict(float("nan"), {S1: 0.9}), Policy(), BLOCK, S1),
}


@pytest.mark.parametrize(
    ("given_verdict", "policy", "action", "category"), CASES.values(), ids=CASES.keys()
)
def test_decide(
    given_verdict: Verdict, policy: Policy, action: Action, category: Category | None
) -> None:
    decision = decide(given_verdict, policy)

    assert (decision.action, decision.category) == (action, category)


@settings(deadline=None)
@given(
    low=st.floats(0, 1),
    high=st.floats(0, 1),
    scores=st.dictionaries(st.sampled_from(Category), st.floats(0, 1), min_size=1),
    actions=st.dictionaries(st.sampled_from(Category), st.sampled_from(Action)),
)
def test_a_higher_probability_is_never_treated_more_mildly(
    low: float, high: float, scores: dict[Category, float], actions: dict[Category, Action]
) -> None:
    policy = rules(**{category.value: action for category, action in actions.items()})
    low, high = sorted((low, high))

    milder = decide(verdict(low, scores), policy)
    stricter = decide(verdict(high, scores), policy)

    assert milder.action.severity <= stricter.action.severity


def test_a_policy_file_gives_the_policy_it_spells(tmp_path: Path) -> None:
    file = tmp_path / "policy.yaml"
    file.write_text(
        "categories:\n  - {id: S6, stages: [output], action: flag, threshold: 0.7}\n"
        "preset: strict\non_error: allow\ndeadline_ms: 200\n",
        encoding="utf-8",
    )

    assert Policy.from_file(file) == Policy(
        categories=(CategoryRule(id=S6, stages=("output",), action=FLAG, threshold=0.7),),
        preset="strict",
        on_error="allow",
        deadline_ms=200,
    )


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("on_eror: allow", "on_eror"),
        ("on_error: pass", "on_error"),
        ("preset: lax", "preset"),
        ("deadline_ms: 0", "deadline_ms"),
        ("categories: [{id: S1}, {id: S99}]", "categories[1].id"),
        ("categories: [{id: S1, threshold: 1.5}]", "categories[0].threshold"),
        ("categories: [{id: S1}, {id: S1}]", "S1 has two rules"),
        ("- a list", "(the whole file)"),
    ],
)
def test_a_wrong_policy_file_is_refused_by_key(tmp_path: Path, text: str, key: str) -> None:
    file = tmp_path / "policy.yaml"
    file.write_text(text, encoding="utf-8")

    with pytest.raises(ConfigError) as raised:
        Policy.from_file(file)

    assert key in str(raised.value)
    assert str(file) in str(raised.value)


@pytest.mark.parametrize("content", [b"a: [", b"\xff\xfe", b"!!python/object:os.system {}"])
def test_an_unreadable_policy_file_is_refused(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "policy.yaml"
    file.write_bytes(content)

    with pytest.raises(ConfigError, match="not a readable YAML file"):
        Policy.from_file(file)


def test_equal_policies_have_equal_ids_and_others_do_not() -> None:
    assert Policy().id == "default"
    assert rules(S1=FLAG).id == rules(S1=FLAG).id
    assert rules(S1=FLAG).id != rules(S1=REDACT).id
    assert Policy(preset="balanced").id == "default"
    assert Policy(preset="strict").id not in ("default", Policy(preset="permissive").id)
