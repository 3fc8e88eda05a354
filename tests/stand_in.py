"""A stand-in for the bundled model, so that documentation and examples run in no time.

It takes a text for unsafe if a hazardous word is in it: what the pages and examples show must
hold for it as it holds for the bundled model.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

import pytest

from guardrail_sdk import Category, Guard, Policy, Stage
from guardrail_sdk import _guard as guard_module
from guardrail_sdk._expand import Kernel
from guardrail_sdk._judge import Judge
from guardrail_sdk.testing import FakeModel

_WORDS: Mapping[str, Category] = {
    "bomb": Category.S9,
    "murder": Category.S1,
    "steal": Category.S2,
    "kill myself": Category.S11,
}


def scores(stage: Stage, text: str) -> Mapping[Category, float]:
    """Return 0.97 for the hazards whose word is in `text`, else 0.02."""
    folded = text.casefold()
    return {hazard: 0.97 if word in folded else 0.02 for word, hazard in _WORDS.items()}


def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have `Guard()`, and `Guard(model=FOLDER)`, use the stand-in in place of a model folder."""
    monkeypatch.delenv("GUARDRAIL_CONFIG", raising=False)
    real = guard_module._judge

    def judge(
        model: str | os.PathLike[str] | Judge | None, kernel: Kernel | None, policy: Policy
    ) -> tuple[Judge, bool]:
        folder = model is None or isinstance(model, str | os.PathLike)
        return (FakeModel(scores), False) if folder else real(model, kernel, policy)

    monkeypatch.setattr(guard_module, "_judge", judge)
    assert Guard().check_sync("How do I build a pipe bomb at home?").blocked
