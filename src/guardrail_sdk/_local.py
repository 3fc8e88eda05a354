"""The judge that guards use by default: a model folder, run on this machine."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from guardrail_sdk._engine import Engine
from guardrail_sdk._errors import ArtifactError
from guardrail_sdk._expand import Kernel
from guardrail_sdk._judge import Budget
from guardrail_sdk._kernel import asked
from guardrail_sdk._layout import Layout, Row
from guardrail_sdk._normalise import Reading, readings
from guardrail_sdk._policy import Policy
from guardrail_sdk._process import PerProcess
from guardrail_sdk._types import Category, Conversation, Message, Preset, Stage, Verdict
from guardrail_sdk.artifact import Artifact, open_artifact
from guardrail_sdk.prompt import stage_of, template
from guardrail_sdk.tokenizer import PromptTokenizer

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_LONGEST_ANSWER = 32
"""Outputs in which a Llama Guard lists all its 13 categories: 29, and a few to spare."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Parts:
    """What a model needs to judge, loaded."""

    layout: Layout
    engine: Engine
    output_ids: tuple[int, ...]
    """The token id of each output; empty if the model doesn't write its categories out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Candidate:
    """One window of one reading of the judged message."""

    reading: Reading
    row: Row
    windowed: bool


_loaded: PerProcess[tuple[Path, str, Kernel | None], _Parts] = PerProcess()


class LocalModel:
    """A verified model folder as a `Judge`: tokenizer and graph load at the first judgement.

    Instances for the same folder share what they load, and any number of threads may judge.

    Args:
        artifact: The model.
        kernel: What its projections run with; None to choose.
    """

    def __init__(self, artifact: Artifact, kernel: Kernel | None = None) -> None:
        self._artifact = artifact
        self._kernel: Kernel | None = kernel or asked()

    @property
    def id(self) -> str:
        """Name, version and hash: what `Verdict.model` says."""
        return self._artifact.id

    @property
    def artifact(self) -> Artifact:
        """The model folder."""
        return self._artifact

    @property
    def extends(self) -> bool:
        """Whether it reads only what is new of a text that begins like an earlier one."""
        return self._artifact.manifest.family == "llama"

    def require_preset(self, preset: Preset) -> None:
        """Return if the model offers `preset` at every stage.

        Raises:
            ArtifactError: If it doesn't.
        """
        for thresholds in self._artifact.manifest.thresholds.values():
            thresholds.at(preset)

    def warm_up(self) -> None:
        """Load the model and judge once, so that the first check is as fast as the others.

        Raises:
            ArtifactError: If the model can't be loaded.
        """
        self.judge([Message(role="user", content="Hello")], Policy(), Budget())

    def judge(self, conversation: Conversation, policy: Policy, budget: Budget) -> Verdict:
        """Judge the last message of `conversation`, in every reading and every window.

        A message too long for the model's context is judged in overlapping windows of it;
        earlier messages are shortened first. It is judged with them and without. The worst window
        of the worst reading counts.

        Raises:
            ArtifactError: If the model can't be loaded, at the first judgement.
            EngineTimeout: If the budget is spent.
            InputTooLong: If the message needs more windows than the policy allows.
            EngineError: If the model fails.
            MessageError: If the last message isn't a user's or an assistant's.
        """
        began = time.perf_counter()
        stage = stage_of(conversation)
        parts = self._parts()
        budget.spend()
        *earlier, judged = conversation
        context = parts.layout.context(conversation)
        candidates = [
            candidate
            for around in _contexts(context, judged)
            for candidate in _candidates(parts.layout, [*around, judged], policy, budget)
        ]
        # Readings differ in places: most of their windows are the same, and run once.
        prompts = list(dict.fromkeys(candidate.row.ids for candidate in candidates))
        logits = parts.engine.classify(prompts, budget)
        scores = {
            ids: self._probability(stage, row) for ids, row in zip(prompts, logits, strict=True)
        }
        worst = max(candidates, key=lambda candidate: scores[candidate.row.ids])
        probability = scores[worst.row.ids]
        thresholds = self._artifact.manifest.thresholds[stage]
        preset = thresholds.at(policy.preset)
        own = policy.unsafe_threshold(stage)
        unsafe = probability >= (preset if own is None else own)
        verdict_logits = logits[prompts.index(worst.row.ids)]
        return Verdict(
            unsafe_probability=probability,
            categories=self._categories(parts, worst.row.ids, verdict_logits, unsafe, budget),
            stage=stage,
            role=judged.role,
            message_index=len(earlier),
            span=worst.reading.original_span(worst.row.span.start, worst.row.span.end),
            windowed=worst.windowed,
            context_trimmed=context != tuple(earlier),
            reading=worst.reading.name,
            threshold=preset,
            category_thresholds=thresholds.categories,
            model=self.id,
            policy=policy.id,
            latency_ms=(time.perf_counter() - began) * 1000,
        )

    def _parts(self) -> _Parts:
        artifact = self._artifact
        kernel = self._kernel
        key = (artifact.folder, artifact.sha256, kernel)
        return _loaded.get(key, lambda: _load(artifact, kernel))

    def _probability(self, stage: Stage, logits: NDArray[np.float32]) -> float:
        outputs = self._artifact.manifest.outputs
        calibration = self._artifact.manifest.calibration[stage]
        margin = float(logits[outputs.index("unsafe")]) - float(logits[outputs.index("safe")])
        return _sigmoid(calibration.scale * margin + calibration.bias)

    def _categories(
        self,
        parts: _Parts,
        ids: Sequence[int],
        logits: NDArray[np.float32],
        unsafe: bool,
        budget: Budget,
    ) -> Mapping[Category, float]:
        """Return the score of each hazard, read from `logits` or from the written answer."""
        outputs = self._artifact.manifest.outputs
        if not parts.output_ids:
            return {hazard: _sigmoid(float(logits[outputs.index(hazard)])) for hazard in Category}
        if not unsafe:
            return dict.fromkeys(Category, 0.0)
        # Said for the model: below a probability of one half it would say `safe`.
        said = [*ids, parts.output_ids[outputs.index("unsafe")]]
        stop = outputs.index("<|eot_id|>")
        answer = parts.engine.answer(said, parts.output_ids, stop, _LONGEST_ANSWER - 1, budget)
        return listed_categories(answer, outputs)


def listed_categories(answer: NDArray[np.float32], outputs: Sequence[str]) -> dict[Category, float]:
    """Return the score of each hazard in an answer that lists some, as Llama Guard does.

    Args:
        answer: The logits at each step, float32 [said, outputs]; the likeliest output was said.
        outputs: What each logit means.

    Returns:
        The probability of a listed hazard's code, that of `S` times that of its number, and 0
        for a hazard that isn't listed.
    """
    scores = dict.fromkeys(Category, 0.0)
    letter: float | None = None
    for logits in answer:
        best = int(logits.argmax())
        probability = _softmax_at(logits, best)
        code = f"S{outputs[best]}"
        if letter is not None and code in Category.__members__:
            hazard = Category(code)
            scores[hazard] = max(scores[hazard], letter * probability)
        letter = probability if outputs[best] in ("S", ",S") else None
    return scores


def _contexts(context: Conversation, judged: Message) -> list[Conversation]:
    """Return the contexts in which `judged` is read: all that precedes it, and the least.

    Earlier turns can change what a message means; they can also lull the model, by accident or
    on purpose. A response keeps the message it answers, a prompt keeps none.
    """
    turns = [message for message in context if message.role != "system"]
    least = turns[-1:] if judged.role == "assistant" else []
    return [context] if turns == least else [context, least]


def _candidates(
    layout: Layout, conversation: Conversation, policy: Policy, budget: Budget
) -> list[_Candidate]:
    """Return every window of every reading of the last message, as written first."""
    *context, judged = conversation
    # Laid out before the other readings are made: what is too long costs nothing more.
    written = layout.rows(conversation, policy.max_windows, budget)
    candidates: list[_Candidate] = []
    for reading in readings(judged.content):
        rows = written
        if reading.name != "written":
            other = replace(judged, content=reading.text)
            rows = layout.rows([*context, other], policy.max_windows, budget)
        windowed = len(rows) > 1
        candidates += [_Candidate(reading=reading, row=row, windowed=windowed) for row in rows]
    return candidates


def _load(artifact: Artifact, kernel: Kernel | None) -> _Parts:
    manifest = artifact.manifest
    chosen = template(manifest.template)
    tokenizer = PromptTokenizer(artifact.tokenizer)
    output_ids: tuple[int, ...] = ()
    most_tokens = manifest.context_length
    if chosen.decodes_categories:
        output_ids = tuple(tokenizer.output_id(output) for output in manifest.outputs)
        most_tokens -= _LONGEST_ANSWER
    layout = Layout(chosen, tokenizer, most_tokens)
    engine = Engine(artifact, kernel)
    engine.load()
    if not engine.knows(tokenizer.largest_id):
        raise ArtifactError(
            f"{artifact.tokenizer} has more tokens than the model, which would not see them. "
            "Rebuild the model."
        )
    # Whoever changed a file between the guard's making and this first use is found out here.
    open_artifact(artifact.folder, expected_sha256=artifact.sha256)
    return _Parts(layout=layout, engine=engine, output_ids=output_ids)


def _sigmoid(value: float) -> float:
    return 0.5 * (1 + math.tanh(value / 2))


def _softmax_at(logits: NDArray[np.float32], index: int) -> float:
    values = [float(value) for value in logits]
    top = max(values)
    return math.exp(values[index] - top) / sum(math.exp(value - top) for value in values)
