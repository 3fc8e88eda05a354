"""Measures a guard on labelled rows, and offers it to benchmarks as a plain callable.

    >>> from pathlib import Path
    >>> from guardrail_sdk import Guard
    >>> from guardrail_sdk.evaluation import evaluate
    >>> report = evaluate(Guard(), [Path("my-rows.jsonl")])  # doctest: +SKIP
    >>> report.overall.recall  # doctest: +SKIP
    0.91

The rows' format is described in docs/data-format.md. Nothing in here keeps a row's text.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from guardrail_sdk._errors import DataError
from guardrail_sdk._guard import Guard
from guardrail_sdk._metrics import Interval, Metrics, measure
from guardrail_sdk._rows import Row, read_rows
from guardrail_sdk._types import Action, Category, CheckResult, Message, Stage

__all__ = [
    "Checker",
    "Interval",
    "Metrics",
    "Progress",
    "Report",
    "Row",
    "Score",
    "evaluate",
    "measure",
    "moderate",
    "read_rows",
    "score",
]

_Key = TypeVar("_Key", bound=str)

Progress = Callable[[int, int], None]
"""Is told, after each row, how many rows are judged and how many there are."""


class Checker(Protocol):
    """Whatever is measured: a `Guard`, or anything that checks conversations as it does."""

    def check_sync(
        self, messages: Sequence[Message] | Sequence[Mapping[str, str]], /
    ) -> CheckResult:
        """Judge the last of `messages`."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """What a guard said of one labelled row. It never holds the row's text."""

    id: str
    """The row's id."""
    source: str
    stage: Stage
    """`input` if a prompt was judged, `output` if a response."""
    lang: str
    categories: tuple[Category, ...]
    """The hazards that the row is labelled with."""
    unsafe: bool
    """The row's label."""
    unsafe_probability: float
    """P(unsafe) in [0, 1]; 1 if the check failed."""
    flagged: bool
    """True if the decision was anything but to allow, or if the check failed."""
    failed: bool
    """True if the check gave no verdict."""
    model: str | None
    """Id of the model that judged; None if the check failed."""
    policy: str | None
    """Id of the policy in force; None if the check failed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """A guard's metrics on some files, as a whole and by group."""

    model: str | None
    """Id of the model; None if no check gave a verdict."""
    policy: str | None
    """Id of the policy in force; None if no check gave a verdict."""
    skipped: int
    """Rows without a label, which were not judged."""
    failed: int
    """Rows whose check gave no verdict; they count as flagged with P(unsafe) = 1."""
    overall: Metrics
    files: Mapping[str, Metrics]
    categories: Mapping[Category, Metrics]
    """By hazard: its unsafe rows against every safe row of the files that name it."""
    languages: Mapping[str, Metrics]
    sources: Mapping[str, Metrics]
    """By the data set that rows name as their source."""
    stages: Mapping[Stage, Metrics]
    """Prompts (`input`) and responses (`output`), as far as there are rows of them."""
    scores: tuple[Score, ...]
    """One item for each judged row, in the order of the files."""

    def to_json(self) -> str:
        """Return everything but the single rows' scores as a JSON object, indented."""
        fields = {
            "model": self.model,
            "policy": self.policy,
            "skipped": self.skipped,
            "failed": self.failed,
            "overall": asdict(self.overall),
            "files": {name: asdict(metrics) for name, metrics in self.files.items()},
            "categories": {code: asdict(metrics) for code, metrics in self.categories.items()},
            "languages": {code: asdict(metrics) for code, metrics in self.languages.items()},
            "sources": {name: asdict(metrics) for name, metrics in self.sources.items()},
            "stages": {stage: asdict(metrics) for stage, metrics in self.stages.items()},
        }
        return json.dumps(fields, indent=2)

    def scores_jsonl(self) -> str:
        """Return one JSON object a line for each judged row: its id and score, never its text."""
        lines = (
            {
                "id": item.id,
                "unsafe_probability": item.unsafe_probability,
                "flagged": item.flagged,
                "failed": item.failed,
            }
            for item in self.scores
        )
        return "".join(json.dumps(line) + "\n" for line in lines)


def score(guard: Checker, rows: Iterable[Row]) -> Iterator[Score]:
    """Yield what `guard` says of each row that has a label; the others are passed over."""
    for row in rows:
        if row.unsafe is None:
            continue
        result = guard.check_sync(row.messages)
        verdict = result.verdict
        failed = verdict is None
        yield Score(
            id=row.id,
            source=row.source,
            stage="input" if row.target == "user" else "output",
            lang=row.lang,
            categories=row.categories,
            unsafe=row.unsafe,
            unsafe_probability=1.0 if verdict is None else verdict.unsafe_probability,
            flagged=failed or result.decision.action is not Action.ALLOW,
            failed=failed,
            model=None if verdict is None else verdict.model,
            policy=None if verdict is None else verdict.policy,
        )


def evaluate(
    guard: Checker,
    paths: Sequence[Path],
    *,
    limit: int | None = None,
    progress: Progress | None = None,
) -> Report:
    """Judge the labelled rows of `paths` and return how well `guard` did.

    Every file is read to its end before the first check, so that a wrong line is found at once.

    Args:
        guard: What is measured.
        paths: Files in the format of docs/data-format.md.
        limit: The most rows to judge of each file: always the same ones, chosen by a hash of
            their ids; None for all.
        progress: Called after each row.

    Raises:
        DataError: If a file can't be read, is given twice, or no row has a label.
    """
    twice = [path for path, count in Counter(path.resolve() for path in paths).items() if count > 1]
    if twice:
        raise DataError(f"{twice[0]} is given twice. Name each file once.")
    loaded = {str(path): list(read_rows(path)) for path in paths}
    chosen = {name: _sample(rows, limit) for name, rows in loaded.items()}
    total = sum(map(len, chosen.values()))
    if not total:
        raise DataError("No row has a label (key `unsafe`), so there is nothing to measure.")
    done = 0
    scores: dict[str, list[Score]] = {name: [] for name in chosen}
    for name, rows in chosen.items():
        for item in score(guard, rows):
            scores[name].append(item)
            done += 1
            if progress is not None:
                progress(done, total)
    skipped = sum(row.unsafe is None for rows in loaded.values() for row in rows)
    return _report(scores, skipped)


def moderate(
    conversations: Sequence[Sequence[Mapping[str, str]]], *, guard: Checker | None = None
) -> list[float]:
    """Return P(unsafe) of the last message of each conversation: the callable GuardBench takes.

    Args:
        conversations: Lists of messages with the keys `role` and `content`.
        guard: What judges; a `Guard()` with the default model and policy if None.

    Returns:
        One probability in [0, 1] for each conversation; 1 where the check failed.

    Raises:
        MessageError: If a conversation can't be understood.
    """
    judge = Guard() if guard is None else guard
    verdicts = (judge.check_sync(conversation).verdict for conversation in conversations)
    return [1.0 if verdict is None else verdict.unsafe_probability for verdict in verdicts]


def _sample(rows: Sequence[Row], limit: int | None) -> list[Row]:
    """Return the labelled rows, at most `limit` of them, in their order."""
    labelled = [row for row in rows if row.unsafe is not None]
    if limit is None or len(labelled) <= limit:
        return labelled
    places = sorted(range(len(labelled)), key=lambda place: _rank(labelled[place].id))
    return [labelled[place] for place in sorted(places[:limit])]


def _rank(identifier: str) -> bytes:
    return hashlib.sha256(identifier.encode()).digest()


def _report(scores: Mapping[str, Sequence[Score]], skipped: int) -> Report:
    every = [item for items in scores.values() for item in items]
    judged = next((item for item in every if not item.failed), None)
    named = {category for item in every if item.unsafe for category in item.categories}
    return Report(
        model=judged and judged.model,
        policy=judged and judged.policy,
        skipped=skipped,
        failed=sum(item.failed for item in every),
        overall=_measure(every),
        files={name: _measure(items) for name, items in scores.items()},
        categories={
            category: _measure(_against_safe(category, scores.values()))
            for category in Category
            if category in named
        },
        languages=_grouped(every, lambda item: item.lang),
        sources=_grouped(every, lambda item: item.source),
        stages=_grouped(every, lambda item: item.stage),
        scores=tuple(every),
    )


def _grouped(items: Sequence[Score], key: Callable[[Score], _Key]) -> dict[_Key, Metrics]:
    """Return the metrics of the items with the same key, by key, in the keys' order."""
    return {
        name: _measure([item for item in items if key(item) == name])
        for name in sorted({key(item) for item in items})
    }


def _against_safe(category: Category, files: Iterable[Sequence[Score]]) -> list[Score]:
    """Return `category`'s unsafe rows and the safe rows of the files that have some.

    Safe rows carry no hazard, so that a hazard's own rows alone would have no negatives.
    """
    group: list[Score] = []
    for items in files:
        unsafe = [item for item in items if item.unsafe and category in item.categories]
        if unsafe:
            group += [*unsafe, *(item for item in items if not item.unsafe)]
    return group


def _measure(items: Sequence[Score]) -> Metrics:
    return measure(
        [item.unsafe for item in items],
        [item.unsafe_probability for item in items],
        [item.flagged for item in items],
    )
