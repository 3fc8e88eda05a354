"""Scores as a build would leave them, drawn at random: figures and reports need no model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from guardrail_model_build.recipe import Limits, Presets
from guardrail_model_build.scores import (
    PREFIXES,
    SHIPPED,
    VALIDATION,
    About,
    Label,
    Score,
    ScoreFolder,
)
from guardrail_sdk import Category, Stage

STEPS = ("teacher", "pruned", "distilled", "qat", SHIPPED)
SKILL = {"teacher": 3.6, "pruned": 1.2, "distilled": 3.3, "qat": 3.2, SHIPPED: 3.2}
PRESETS = Presets(
    strict=Limits(input=0.15, output=0.2),
    balanced=Limits(input=0.05, output=0.1),
    permissive=Limits(input=0.02, output=0.03),
)
LANGUAGES = ("en", "de", "fr", "it", "es", "pt", "hi", "th")


def labels(file: str, rows: int, rng: np.random.Generator, sides: tuple[Stage, ...]) -> list[Label]:
    """Return random labels; a third of the rows is unsafe."""
    found: list[Label] = []
    for row in range(rows):
        unsafe = bool(rng.random() < 0.35)
        hazard = list(Category)[int(rng.integers(14) * rng.random())]
        found.append(
            Label(
                file=file,
                id=f"{file}-{row:05x}",
                source=f"{file}_{'abc'[row % 3]}",
                lang=LANGUAGES[int(8 * rng.random() ** 2)],
                side=sides[row % len(sides)],
                unsafe=unsafe,
                categories=(hazard,) if unsafe else (),
                characters=int(rng.integers(40, 900)),
                alone=bool(rng.random() < 0.9),
            )
        )
    return found


def prefix_labels(whole: list[Label], count: int) -> list[Label]:
    """Return the labels of the prefixes of the first `count` responses of each kind."""
    found: list[Label] = []
    for unsafe in (True, False):
        responses = [row for row in whole if row.side == "output" and row.unsafe is unsafe]
        found += [
            row.model_copy(
                update={
                    "file": PREFIXES,
                    "id": f"{row.id}@{10 * tenth}",
                    "characters": row.characters * tenth // 10,
                }
            )
            for row in responses[:count]
            for tenth in range(1, 11)
        ]
    return found


def write_scores(folder: Path, *, rows: int = 300, public: bool = True) -> Path:
    """Fill `folder` as a build does and return it."""
    rng = np.random.default_rng(7)
    files = {VALIDATION: labels(VALIDATION, rows, rng, ("input", "output"))}
    if public:
        files["chat_test"] = labels("chat_test", rows, rng, ("input",))
        files["answers_test"] = labels("answers_test", rows, rng, ("output",))
        files["unsafe_only"] = [
            row.model_copy(update={"unsafe": True, "categories": (Category.S2,)})
            for row in labels("unsafe_only", rows // 4, rng, ("input",))
        ]
    files[PREFIXES] = prefix_labels(files[VALIDATION], 20)
    noise = {(file, row.id): rng.normal() for file, named in files.items() for row in named}
    store = ScoreFolder.open(folder)
    for step in STEPS:
        for file, named in files.items():
            if file != PREFIXES or step == SHIPPED:
                store.add(step, file, "key", list(_scores(step, named, noise, rng)))
    about = About(
        name="guard-synthetic",
        version="0.0.1",
        steps=STEPS,
        student="distilled",
        presets=PRESETS,
        latency_ms=12.5,
    )
    store.describe(about, [row for named in files.values() for row in named])
    return folder


def _scores(
    step: str,
    rows: list[Label],
    noise: dict[tuple[str, str], float],
    rng: np.random.Generator,
) -> Iterator[Score]:
    for row in rows:
        shift = SKILL[step] * (1.0 if row.unsafe else -1.0) / 2
        if row.file == PREFIXES:
            shift *= int(row.id.rpartition("@")[2]) / 100
        own = rng.normal() if step == "pruned" else 0.1 * rng.normal()
        margin = 1.4 * (shift + noise[row.file, row.id] + own - 0.8)
        hazards = tuple(
            0.7 if hazard in row.categories else 0.1 * float(rng.random()) for hazard in Category
        )
        yield Score(
            step=step,
            file=row.file,
            id=row.id,
            margin=margin,
            hazards=hazards if step == SHIPPED and row.file == VALIDATION else None,
            written=bool(rng.random() < 0.95),
        )
