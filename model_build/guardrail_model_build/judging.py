"""Lets the steps of a build judge rows: by their logits in PyTorch, by the SDK as an ONNX file."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from statistics import median

from rich.progress import Progress

from guardrail_model_build.data import sample
from guardrail_model_build.examples import Encoder
from guardrail_model_build.partial import TENTHS
from guardrail_model_build.scores import SHIPPED, VALIDATION, Score
from guardrail_model_build.train import predict
from guardrail_model_build.workspace import Workspace
from guardrail_sdk import Category, Guard, Message, Policy, Verdict
from guardrail_sdk.evaluation import Row
from guardrail_sdk.prompt import template
from guardrail_sdk.tokenizer import PromptTokenizer

PATIENT = Policy(max_windows=10_000)
"""Every row is to be judged, however long it is."""

_SHORTEST = 20
"""Responses of fewer characters have no prefixes worth the name."""
_TIMED_TOKENS = 64
_TIMED_CHECKS = 31
_WORDS = "The train to the coast leaves at nine, and we are taking bread, cheese and tea along. "


class TorchStep:
    """One step's PyTorch model, reading single rows as training does.

    A row that is longer than the model's context is read as far as it fits: longest message first,
    messages lose their ends.

    Args:
        workspace: The build.
        name: The step.
        block: The block size if the step computes in INT4, else None.
    """

    def __init__(self, workspace: Workspace, name: str, *, block: int | None) -> None:
        checkpoint = workspace.checkpoint(name)
        self._name = name
        self._encoder = Encoder(
            checkpoint.template, checkpoint.tokenizer, workspace.recipe.context_length
        )
        self._model = checkpoint.model()
        self._model.round_to(block)

    def judge(self, file: str, rows: Sequence[Row]) -> list[Score]:
        """Return the score of each row."""
        examples = [self._encoder.encode(row) for row in rows]
        logits = predict(self._model, examples)
        return [
            Score(
                step=self._name,
                file=file,
                id=row.id,
                margin=float(values[0, 1]) - float(values[0, 0]),
            )
            for row, values in zip(rows, logits, strict=True)
        ]


def judge_shipped(guard: Guard, file: str, rows: Sequence[Row]) -> Iterator[Score]:
    """Yield what a guard, whose model's calibration is the identity, says of each row.

    Raises:
        RuntimeError: If a check fails.
    """
    with Progress() as bar:
        for row in bar.track(rows, description=f"judging {file}"):
            verdict = guard.check_sync(row.messages).verdict
            if verdict is None:
                raise RuntimeError(f"No verdict on row {row.id} of {file}.")
            whole = not verdict.windowed and not verdict.context_trimmed
            hazards = tuple(round(verdict.categories[hazard], 5) for hazard in Category)
            yield Score(
                step=SHIPPED,
                file=file,
                id=row.id,
                margin=margin(verdict),
                hazards=hazards if file == VALIDATION else None,
                written=whole and verdict.reading == "written",
            )


def margin(verdict: Verdict) -> float:
    """Return the margin that an uncalibrated probability came from."""
    p = min(max(verdict.unsafe_probability, 1e-12), 1 - 1e-12)
    return math.log(p) - math.log1p(-p)


def prefixes(rows: Sequence[Row], count: int) -> list[Row]:
    """Return the prefixes of about `count` responses, half of them unsafe where there are enough.

    The id of a prefix is its row's, `@` and the percentage of the characters it holds.
    """
    whole = [
        row
        for row in rows
        if row.target == "assistant" and len(row.messages[-1].content) >= _SHORTEST
    ]
    halves = [
        sample([row for row in whole if row.unsafe is unsafe], count // 2)
        for unsafe in (True, False)
    ]
    return [_prefix(row, tenth) for half in halves for row in half for tenth in TENTHS]


def check_latency_ms(guard: Guard, workspace: Workspace) -> float:
    """Return the median time of a check of a 64-token prompt, in milliseconds."""
    checkpoint = workspace.checkpoint("qat")
    tokenizer, layout = PromptTokenizer(checkpoint.tokenizer), template(checkpoint.template)
    text = ""
    for word in (_WORDS * _TIMED_TOKENS).split(" "):
        message = Message(role="user", content=f"{text} {word}".strip())
        if len(tokenizer.encode(layout.render([message]))) > _TIMED_TOKENS and text:
            break
        text = message.content
    words = text.split(" ")
    times: list[float] = []
    for turn in range(_TIMED_CHECKS + 1):
        # Another order each time, so that no check can use what an earlier one found.
        start = turn % len(words)
        text = " ".join(words[start:] + words[:start])
        verdict = guard.check_sync([Message(role="user", content=text)]).verdict
        if verdict is None:
            raise RuntimeError("No verdict on a harmless sentence.")
        times.append(verdict.latency_ms)
    # The first check loads what the others use.
    return round(median(times[1:]), 2)


def _prefix(row: Row, tenth: int) -> Row:
    *earlier, last = row.messages
    length = math.ceil(len(last.content) * tenth / 10)
    cut = replace(last, content=last.content[:length])
    return row.model_copy(update={"id": f"{row.id}@{10 * tenth}", "messages": (*earlier, cut)})
