"""The local model: the worst reading and window count, and nothing is let through unjudged."""

from __future__ import annotations

import contextlib
import json
import math
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from counting import counted
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from tokenizers import Tokenizer
from unigram import unigram

from guardrail_sdk._engine import Engine
from guardrail_sdk._errors import ArtifactError, EngineTimeout, InputTooLong, MessageError
from guardrail_sdk._judge import Budget
from guardrail_sdk._local import LocalModel, listed_categories
from guardrail_sdk._normalise import readings
from guardrail_sdk._policy import Policy, decide
from guardrail_sdk._session import open_session
from guardrail_sdk._states import States
from guardrail_sdk._types import Action, Category, Message, Preset, Role, Verdict
from guardrail_sdk.artifact import MANIFEST, Artifact, hash_files, open_artifact
from guardrail_sdk.prompt import LlamaGuardTemplate, template
from guardrail_sdk.tokenizer import PromptTokenizer

DATA = Path(__file__).parent / "data"
SENTENCE = "The train to the coast leaves at nine and comes back at seven. "


ONE_PASS = ("tiny", "tiny-encoder")


@pytest.fixture(scope="module", params=ONE_PASS)
def one_pass(request: pytest.FixtureRequest) -> LocalModel:
    """A model whose verdict and hazards are read from one run: a decoder, and an encoder."""
    return LocalModel(open_artifact(DATA / str(request.param)))


@pytest.fixture(scope="module")
def llama_guard() -> LocalModel:
    return LocalModel(open_artifact(DATA / "tiny-llama-guard"))


@pytest.fixture(scope="module", params=[*ONE_PASS, "tiny-llama-guard"])
def model(request: pytest.FixtureRequest) -> LocalModel:
    return LocalModel(open_artifact(DATA / str(request.param)))


def said(content: str, role: Role = "user") -> Message:
    return Message(role=role, content=content)


def judge(model: LocalModel, *conversation: Message, policy: Policy | None = None) -> Verdict:
    return model.judge(conversation, policy or Policy(), Budget())


def logits_of(artifact: Artifact, conversation: Sequence[Message]) -> dict[str, float]:
    """Return each output's logit for a conversation as one prompt, by way of the engine alone."""
    pieces = template(artifact.manifest.template).render(conversation)
    ids = PromptTokenizer(artifact.tokenizer).encode(pieces)
    (logits,) = Engine(artifact).classify([ids], Budget())
    return dict(zip(artifact.manifest.outputs, map(float, logits), strict=True))


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def test_a_verdict_is_what_the_logits_say(one_pass: LocalModel) -> None:
    conversation = [said("How are you?"), said("Very well.", "assistant")]
    logits = logits_of(one_pass.artifact, conversation)

    verdict = judge(one_pass, *conversation)

    expected = sigmoid(logits["unsafe"] - logits["safe"])
    assert verdict.unsafe_probability == pytest.approx(expected, abs=1e-5)
    assert verdict.categories == {
        hazard: pytest.approx(sigmoid(logits[hazard]), abs=1e-5) for hazard in Category
    }
    assert (verdict.stage, verdict.role, verdict.message_index) == ("output", "assistant", 1)
    assert (verdict.span.start, verdict.span.end) == (0, len("Very well."))
    assert (verdict.windowed, verdict.context_trimmed, verdict.reading) == (False, False, "written")
    assert (verdict.model, verdict.policy) == (one_pass.artifact.id, "default")
    assert verdict.latency_ms > 0


def altered(folder: Path, name: str, change: dict[str, object]) -> LocalModel:
    """Return the model `name` with another manifest and whatever files `folder` has already."""
    shutil.copytree(
        DATA / name,
        folder,
        dirs_exist_ok=True,
        ignore=lambda _, files: [file for file in files if (folder / file).exists()],
    )
    data = json.loads((DATA / name / MANIFEST).read_text(encoding="utf-8"))
    data["files"] = dict(hash_files(folder, tuple(data["files"])))
    (folder / MANIFEST).write_text(json.dumps(data | change), encoding="utf-8")
    return LocalModel(open_artifact(folder))


every_one_pass = pytest.mark.parametrize("name", ONE_PASS)


@every_one_pass
def test_each_stage_has_its_own_calibration_and_thresholds(tmp_path: Path, name: str) -> None:
    model = altered(
        tmp_path,
        name,
        {
            "calibration": {"input": {"scale": 2.0, "bias": -0.5}, "output": {"scale": 900.0}},
            "thresholds": {
                "input": {"unsafe": 0.25, "categories": {"S4": 0.1}},
                "output": {"unsafe": 0.75},
            },
        },
    )
    logits = logits_of(model.artifact, [said("Hello")])

    verdict = judge(model, said("Hello"))
    answer = judge(model, said("Hello"), said("Hello", "assistant"))

    expected = sigmoid(2 * (logits["unsafe"] - logits["safe"]) - 0.5)
    assert verdict.unsafe_probability == pytest.approx(expected, abs=1e-5)
    assert (verdict.threshold, verdict.category_thresholds) == (0.25, {Category.S4: 0.1})
    assert (answer.threshold, answer.category_thresholds) == (0.75, {})
    assert answer.unsafe_probability < 1e-9 or answer.unsafe_probability > 1 - 1e-9


def probability(model: LocalModel, *conversation: Message) -> float:
    """Return P(unsafe) of a conversation as one prompt, by way of the engine alone."""
    logits = logits_of(model.artifact, conversation)
    return sigmoid(logits["unsafe"] - logits["safe"])


@every_one_pass
def test_a_preset_decides_what_counts_as_unsafe(tmp_path: Path, name: str) -> None:
    likely = probability(altered(tmp_path, name, {}), said("Hello"))
    lower, higher, highest = likely / 2, (1 + likely) / 2, (3 + likely) / 4
    stricter: dict[str, object] = {"strict": lower, "unsafe": higher, "permissive": highest}
    milder: dict[str, object] = {"strict": lower / 2, "unsafe": lower, "permissive": higher}
    presets: list[Preset] = ["strict", "balanced", "permissive"]

    for thresholds, blocked in ((stricter, [True, False, False]), (milder, [True, True, False])):
        model = altered(tmp_path, name, {"thresholds": {"input": thresholds, "output": thresholds}})
        for preset, expected in zip(presets, blocked, strict=True):
            policy = Policy(preset=preset)
            verdict = judge(model, said("Hello"), policy=policy)
            own = thresholds["unsafe" if preset == "balanced" else preset]
            assert verdict.threshold == own
            assert (decide(verdict, policy).action is Action.BLOCK) == expected


def test_a_threshold_of_the_policys_own_overrides_its_preset(tmp_path: Path) -> None:
    thresholds = {"strict": 0.0, "unsafe": 0.5}
    model = altered(
        tmp_path, "tiny-encoder", {"thresholds": {"input": thresholds, "output": thresholds}}
    )
    policy = Policy(preset="strict", input_threshold=1.0)

    verdict = judge(model, said("Hello"), policy=policy)

    assert verdict.threshold == 0.0
    assert decide(verdict, policy).action is Action.ALLOW


def test_a_preset_that_the_model_lacks_gives_no_verdict(one_pass: LocalModel) -> None:
    for preset in ("strict", "permissive"):
        with pytest.raises(ArtifactError, match=f"no preset '{preset}'. Use `balanced`, or set"):
            judge(one_pass, said("Hello"), policy=Policy(preset=preset))
        with pytest.raises(ArtifactError, match="no preset"):
            one_pass.require_preset(preset)
    one_pass.require_preset("balanced")


def test_a_preset_of_one_stage_alone_is_none(tmp_path: Path) -> None:
    thresholds = {"input": {"unsafe": 0.5, "strict": 0.2}, "output": {"unsafe": 0.5}}

    with pytest.raises(ArtifactError, match="no preset 'strict'"):
        altered(tmp_path, "tiny", {"thresholds": thresholds}).require_preset("strict")


def test_a_message_is_judged_with_its_context_and_without(one_pass: LocalModel) -> None:
    """The worse counts: what precedes a message can change what it means, and can lull a model."""
    chats = [
        [said(f"{opening} {SENTENCE}"), said(answer, "assistant"), said("And then?")]
        for opening in ("Hello.", "Tell me!", "Who knows?")
        for answer in ("Yes.", "Not today, sorry.")
    ]
    worse_with: list[bool] = []
    for chat in chats:
        whole, alone = probability(one_pass, *chat), probability(one_pass, chat[-1])
        assert judge(one_pass, *chat).unsafe_probability == pytest.approx(
            max(whole, alone), abs=1e-5
        )
        worse_with.append(whole > alone)

        response = [*chat, said("Then we slept.", "assistant")]
        whole, least = probability(one_pass, *response), probability(one_pass, *response[-2:])
        assert judge(one_pass, *response).unsafe_probability == pytest.approx(
            max(whole, least), abs=1e-5
        )
        worse_with.append(whole > least)
    assert len(set(worse_with)) == 2, "either case was met"


def test_what_precedes_a_message_is_not_what_is_judged(one_pass: LocalModel) -> None:
    """To a model, the same words are another thing in the turn before than in the turn judged."""
    first, last = said("Tell me!"), said("Who knows?")

    in_turn, in_reverse = probability(one_pass, first, last), probability(one_pass, last, first)

    assert abs(in_turn - in_reverse) > 1e-3


def test_an_answer_is_not_judged_as_a_question_is(one_pass: LocalModel) -> None:
    asked, answered = judge(one_pass, said(SENTENCE)), judge(one_pass, said(SENTENCE, "assistant"))

    assert (asked.stage, answered.stage) == ("input", "output")
    assert abs(asked.unsafe_probability - answered.unsafe_probability) > 1e-4


DISGUISED = [
    "Ｈｏｗ ｄｏ Ｉ open a lo\u200bcked door?",
    "Please read aGVsbG8gdGhlcmUgbXkgZnJpZW5k aloud",
    "Ubj qb V znxr gur oernq jvgubhg na bira, naq jung qb V qb jvgu vg?",
]


@pytest.mark.parametrize("text", DISGUISED)
def test_the_worst_reading_counts(one_pass: LocalModel, text: str) -> None:
    found = readings(text)
    assert len(found) > 1
    scores: dict[str, float] = {}
    for reading in found:
        scores[reading.name] = probability(one_pass, said(reading.text))

    verdict = judge(one_pass, said(text))

    assert verdict.unsafe_probability == pytest.approx(max(scores.values()), abs=1e-5)
    assert scores[verdict.reading] == pytest.approx(max(scores.values()), abs=1e-5)
    assert verdict.span.end <= len(text)


def test_the_worst_window_counts_and_its_span_says_where(one_pass: LocalModel) -> None:
    text = "".join(f"Sentence number {number} of many others. " for number in range(80))

    verdict = judge(one_pass, said(text))

    part = text[verdict.span.start : verdict.span.end]
    assert verdict.windowed
    assert 0 < len(part) < len(text)
    assert verdict.unsafe_probability == pytest.approx(probability(one_pass, said(part)), abs=1e-5)
    assert verdict.unsafe_probability > min(
        judge(one_pass, said(text[start : start + 200])).unsafe_probability
        for start in range(0, len(text), 200)
    )


def test_a_trimmed_context_is_reported(model: LocalModel) -> None:
    verdict = judge(model, said(SENTENCE * 60), said("Yes.", "assistant"), said("And then?"))

    assert verdict.context_trimmed
    assert not verdict.windowed
    assert verdict.message_index == 2


@pytest.mark.parametrize("text", ["", " ", "\n", "\0", "\u200b", "\ud800", "\U000e0041"], ids=ascii)
@pytest.mark.parametrize("role", ["user", "assistant"])
def test_a_message_of_nothing_is_judged(model: LocalModel, text: str, role: Role) -> None:
    verdict = judge(model, said("Hello", "user"), said(text, role))

    assert 0 <= verdict.unsafe_probability <= 1
    assert verdict.span.end <= len(text)


@settings(max_examples=40)
@given(text=st.text(max_size=300), context=st.text(max_size=300))
def test_any_text_gets_a_verdict(one_pass: LocalModel, text: str, context: str) -> None:
    verdict = judge(one_pass, said(context), said(text))

    assert 0 <= verdict.unsafe_probability <= 1
    assert set(verdict.categories) == set(Category)
    assert 0 <= verdict.span.start <= verdict.span.end <= len(text)


def unjudged(*_: object) -> None:
    raise AssertionError("the model ran")


MEGABYTE = 1_000_000
HOSTILE = {
    "words": "word " * (MEGABYTE // 5),
    "letter": "A" * MEGABYTE,
    "emoji": "🧨" * (MEGABYTE // 4),
    "combining": "a" + "\u0301" * (MEGABYTE // 2),
    "specials": "<|im_end|>" * (MEGABYTE // 10),
    "markers": "<user>" * (MEGABYTE // 6),
    "ligatures": "\ufdfa" * (MEGABYTE // 3),
    "turns": "User:\n" * (MEGABYTE // 6),
    "surrogates": "\ud800" * MEGABYTE,
    "controls": "\x01" * MEGABYTE,
}


@pytest.fixture(scope="module")
def encoder_of_words(tmp_path_factory: pytest.TempPathFactory) -> LocalModel:
    """The tiny encoder with another tokenizer: one that normalises, as its like have."""
    folder = tmp_path_factory.mktemp("words")
    (folder / "tokenizer.json").write_bytes(unigram())
    return altered(folder, "tiny-encoder", {})


@pytest.mark.parametrize("name", HOSTILE)
def test_a_megabyte_is_refused_soon_and_before_the_model_runs(
    model: LocalModel, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model.warm_up()
    monkeypatch.setattr(Engine, "classify", unjudged)
    began = time.process_time()

    with pytest.raises(InputTooLong) as caught:
        judge(model, said(HOSTILE[name]))

    assert time.process_time() - began < 1.0
    assert HOSTILE[name][:4] not in str(caught.value)


SPACES = {"spaces": " " * MEGABYTE, "lines": "\n" * MEGABYTE, "thai": "ส" * (MEGABYTE // 3)}


@pytest.mark.parametrize("name", [*HOSTILE, *SPACES])
def test_a_tokenizer_that_normalises_refuses_or_reads_a_megabyte_soon(
    encoder_of_words: LocalModel, name: str
) -> None:
    """To it, spaces are no tokens, and a run of what it doesn't know is one."""
    encoder_of_words.warm_up()
    text = {**HOSTILE, **SPACES}[name]
    began = time.process_time()

    with contextlib.suppress(InputTooLong):
        assert judge(encoder_of_words, said(text)).span.end <= len(text)

    assert time.process_time() - began < 6.0


def test_a_megabyte_of_context_is_trimmed_soon(model: LocalModel) -> None:
    model.warm_up()
    for text in HOSTILE.values():
        began = time.process_time()

        verdict = judge(model, said(text), said("Hello"))

        assert verdict.context_trimmed
        assert time.process_time() - began < 1.0


@pytest.mark.parametrize(
    ("conversation", "message"),
    [
        ([], "empty"),
        ([said("secret", "tool")], "role 'tool'"),
        ([said("secret", "system")], "role"),
    ],
)
def test_what_is_not_a_users_or_an_assistants_is_refused(
    one_pass: LocalModel, conversation: list[Message], message: str
) -> None:
    with pytest.raises(MessageError, match=message) as caught:
        judge(one_pass, *conversation)

    assert "secret" not in str(caught.value)


def test_a_cancelled_check_has_no_verdict(one_pass: LocalModel) -> None:
    budget = Budget()
    budget.cancelled.set()

    with pytest.raises(EngineTimeout):
        one_pass.judge([said("Hello")], Policy(), budget)


def test_a_passed_deadline_has_no_verdict(one_pass: LocalModel) -> None:
    with pytest.raises(EngineTimeout):
        one_pass.judge([said("Hello")], Policy(), Budget(deadline=time.monotonic()))


def test_concurrent_judgements_agree(model: LocalModel) -> None:
    texts = [SENTENCE * (number % 5 + 1) for number in range(20)]
    expected = [judge(model, said(text)) for text in texts]

    def verdict_of(text: str) -> Verdict:
        return judge(model, said(text))

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(verdict_of, texts))

    for verdict, other in zip(found, expected, strict=True):
        assert replace(verdict, latency_ms=0.0) == replace(other, latency_ms=0.0)


@pytest.fixture(scope="module")
def without_states(tmp_path_factory: pytest.TempPathFactory) -> LocalModel:
    """The same model as `llama_guard`, to be used while rows are read whole."""
    folder = tmp_path_factory.mktemp("whole") / "model"
    return LocalModel(open_artifact(shutil.copytree(DATA / "tiny-llama-guard", folder)))


pieces = st.lists(
    st.one_of(
        st.text(max_size=40), st.sampled_from([SENTENCE, "\n", "aGVsbG8gd29ybGQ= ", "ℌello "])
    ),
    min_size=1,
    max_size=8,
)


@settings(max_examples=10)
@given(pieces=pieces, role=st.sampled_from(["user", "assistant"]))
def test_a_text_that_grows_gets_the_verdict_of_one_that_did_not(
    llama_guard: LocalModel, without_states: LocalModel, pieces: list[str], role: Role
) -> None:

    def nothing(states: States, row: Sequence[int]) -> list[NDArray[np.float32]]:
        return []

    policy = Policy(input_threshold=1.0, output_threshold=1.0)
    for count in range(1, len(pieces) + 1):
        conversation = said("Hello"), said("".join(pieces[:count]), role)
        verdict = judge(llama_guard, *conversation, policy=policy)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(States, "past", nothing)
            expected = judge(without_states, *conversation, policy=policy)
        assert verdict.unsafe_probability == pytest.approx(expected.unsafe_probability, abs=1e-3)


@pytest.mark.parametrize("role", ["user", "assistant"])
def test_a_policys_text_is_kept_from_its_second_reading_on(
    role: Role, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(DATA / "tiny-llama-guard", tmp_path / "model")
    session = counted(monkeypatch, open_session(open_artifact(folder)))
    model = LocalModel(open_artifact(folder))
    policy = Policy(input_threshold=1.0, output_threshold=1.0)
    read: list[int] = []
    for content in ("Hello", "Good morning", "What is a train?"):
        session.runs.clear()
        judge(model, said(content, role), policy=policy)
        read.append(session.tokens)

    assert min(read[:2]) > 150
    assert read[2] < 100


def test_a_safe_answer_of_llama_guard_lists_nothing(llama_guard: LocalModel) -> None:
    verdict = judge(llama_guard, said("Hello"), policy=Policy(input_threshold=1.0))

    assert verdict.unsafe_probability < 1.0
    assert verdict.categories == dict.fromkeys(Category, 0.0)


def test_an_unsafe_answer_of_llama_guard_is_read_on_from_unsafe(llama_guard: LocalModel) -> None:
    """With a threshold of 0 it counts as unsafe, whatever the likeliest first token is."""
    artifact = llama_guard.artifact
    tokenizer = PromptTokenizer(artifact.tokenizer)
    outputs = artifact.manifest.outputs
    output_ids = [tokenizer.output_id(output) for output in outputs]
    ids = tokenizer.encode(LlamaGuardTemplate().render([said("Hello")]))
    ids.append(tokenizer.output_id("unsafe"))
    answer = Engine(artifact).answer(ids, output_ids, outputs.index("<|eot_id|>"), 31, Budget())

    verdict = judge(llama_guard, said("Hello"), policy=Policy(input_threshold=0.0))

    assert verdict.categories == pytest.approx(listed_categories(answer, outputs))


def answering(*words: tuple[str, float]) -> dict[Category, float]:
    """Return the scores of an answer whose words have these probabilities."""
    outputs = LlamaGuardTemplate().outputs
    rows: list[list[float]] = []
    for word, probability in words:
        rest = math.log((1 - probability) / (len(outputs) - 1))
        rows.append([math.log(probability) if output == word else rest for output in outputs])
    return listed_categories(np.array(rows, dtype=np.float32), outputs)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([("\n", 0.9), ("S", 0.9), ("1", 0.5), ("<|eot_id|>", 0.9)], {"S1": 0.45}),
        (
            [("\n", 0.9), ("S", 0.8), ("2", 0.5), (",S", 0.5), ("13", 0.6), ("<|eot_id|>", 0.9)],
            {"S2": 0.4, "S13": 0.3},
        ),
        ([("\n", 0.9), ("S", 0.5), ("1", 0.5), (",S", 0.9), ("1", 0.9)], {"S1": 0.81}),
        ([("<|eot_id|>", 0.9)], {}),
        ([("S", 0.9), ("S", 0.9), ("<|eot_id|>", 0.9)], {}),
        ([("1", 0.9), ("2", 0.9)], {}),
        ([("S", 0.9), ("1", 0.9), ("3", 0.9)], {"S1": 0.81}),
    ],
    ids=["one", "two", "twice", "none", "no-number", "no-letter", "stray-number"],
)
def test_listed_categories_score_the_probability_of_their_code(
    words: list[tuple[str, float]], expected: dict[str, float]
) -> None:
    scores = answering(*words)

    assert set(scores) == set(Category)
    assert {hazard: score for hazard, score in scores.items() if score} == pytest.approx(expected)


@every_one_pass
def test_a_tokenizer_larger_than_the_model_is_refused(tmp_path: Path, name: str) -> None:
    """The model would see its further tokens as nothing."""
    tokenizer = Tokenizer.from_file(str(DATA / name / "tokenizer.json"))
    tokenizer.add_tokens(["zzz"])  # pyright: ignore[reportUnknownMemberType] - an open stub
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    model = altered(tmp_path, name, {})

    with pytest.raises(ArtifactError, match="more tokens than the model"):
        model.warm_up()


@every_one_pass
def test_a_model_that_cannot_load_fails_every_judgement(tmp_path: Path, name: str) -> None:
    (tmp_path / "model.onnx").write_bytes(b"not onnx")
    model = altered(tmp_path, name, {})

    for _ in range(2):
        with pytest.raises(ArtifactError, match="is not an ONNX file"):
            judge(model, said("Hello"))


def test_nothing_heavy_is_imported_before_the_first_judgement() -> None:
    code = (
        "import sys, pathlib; from guardrail_sdk._local import LocalModel; "
        "from guardrail_sdk.artifact import open_artifact; "
        f"model = LocalModel(open_artifact(pathlib.Path({str(DATA / 'tiny')!r}))); "
        "heavy = {'numpy', 'onnxruntime', 'tokenizers'}; early = heavy & set(sys.modules); "
        "model.warm_up(); print(sorted(early), sorted(heavy & set(sys.modules)))"
    )

    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )

    assert found.stdout == "[] ['numpy', 'onnxruntime', 'tokenizers']\n"
    assert found.stderr == ""


def test_a_file_changed_between_making_the_guard_and_its_first_use_is_refused(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(DATA / "tiny", folder)
    model = LocalModel(open_artifact(folder))
    weights = folder / "model.onnx.data"
    changed = bytearray(weights.read_bytes())
    changed[-1] ^= 1
    weights.write_bytes(changed)

    with pytest.raises(ArtifactError, match="was changed"):
        model.warm_up()
